"""A real `whisperd run` in a process of its own, ended in every way and started again with what it kept.

Owns its settings, its process, and what its own counters say, added up over its lives. Knows nothing of what is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.broker import free_port

PATIENCE = 300.0
"""Seconds for a start, an end or an answer: of a daemon with a real engine, on a machine that may be busy."""

WHISPERD = ("daemon.commands.cli", "run", "-c")
SCRIPTED = ("bench.harness.scripted",)
"""The service with an engine whose answers are written down."""

_TRUSTING = ssl.create_default_context()
_TRUSTING.check_hostname, _TRUSTING.verify_mode = False, ssl.CERT_NONE
"""It is ours, whatever its certificate says."""


class ServiceError(RuntimeError):
    """The service did not start or end as it should; its log is in the message."""


class Daemon:
    """A `whisperd run`, through all its lives.

    Args:
        folder: where its settings, its log and its state go.
        settings: its sections; host and port of the server are added.
        environment: variables that it has besides ours.
        program: the module to run and its first arguments; the settings' file comes last.

    Attributes:
        port: where it listens in all its lives.
        lives: how often it was started.
        seconds_to_ready: how long the last start took.
        bad_ends: exit codes after SIGTERM that were not 0.
        log_file: has the log of all its lives.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = WHISPERD,
    ) -> None:
        self.port = free_port()
        self.lives = 0
        self.seconds_to_ready = 0.0
        self.bad_ends: list[int] = []
        self.log_file = folder / "log"
        self._config = folder / "whisperd.yaml"
        self._settings = dict(settings)
        # The environment is over the file, and whoever has set a port there means another service.
        own = {"STATE_DIRECTORY": str(folder / "state"), "WHISPERD_SERVER__PORT": str(self.port)}
        self._environment = {**os.environ, **(environment or {}), **own}
        self._command = [sys.executable, "-m", *program, str(self._config)]
        self._started: subprocess.Popen[bytes] | None = None
        self._before: Counter[str] = Counter()  # of lives that are over
        self._now: dict[str, float] = {}
        self._write()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        scheme = "wss" if "certificate" in self._settings.get("server", {}) else "ws"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def wyoming_port(self) -> int:
        return int(self._settings["wyoming"]["port"])

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._started is not None, "start it first"
        return self._started

    def _write(self) -> None:
        server = {"host": "127.0.0.1", "port": self.port, **self._settings.get("server", {})}
        self._config.write_text(json.dumps({**self._settings, "server": server}))  # JSON is YAML

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon and wait until it is ready.

        Raises:
            ServiceError: it does not become ready.
        """
        self.lives += 1
        began = time.monotonic()
        with open(self.log_file, "a") as log:
            self._started = subprocess.Popen(self._command, stderr=log, env=self._environment)
        while self.get("/readyz")[0] != 200:
            if not self.alive or time.monotonic() > began + PATIENCE:
                self.end()
                raise ServiceError(f"whisperd did not become ready:\n{self.log}")
            time.sleep(0.05)  # polled, as a supervisor would: there is no event before it listens
        self.seconds_to_ready = time.monotonic() - began

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until the daemon has ended, whatever ended it, and return its exit code."""
        code = self._process.wait(PATIENCE)
        self._before.update(self._now)
        self._now = {}
        return code

    def terminate(self) -> int:
        """End the daemon by SIGTERM, as a supervisor does, and return its exit code."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        if code != 0:
            self.bad_ends.append(code)
        return code

    async def stop(self) -> int:
        """Terminate the daemon after a last look at its counters, and return its exit code."""
        await self.sample()
        return await asyncio.to_thread(self.terminate)

    def reload(self, changed: Mapping[str, Any]) -> None:
        """Change settings, and send SIGHUP.

        Args:
            changed: the sections that replace those of the same name.
        """
        self._settings |= changed
        self._write()
        self.signal(signal.SIGHUP)

    def end(self) -> None:
        """Kill the daemon, whatever state it is in."""
        if self._started is not None:
            self._started.kill()
            self._started.wait()

    # --- what it says ----------------------------------------------------------------------------------------------

    def get(self, path: str) -> tuple[int, str]:
        """Fetch a page.

        Returns:
            Its status and body; (0, "") where there is no answer.
        """
        connection = HTTPConnection(*self.address, timeout=10)
        if self.url.startswith("wss:"):
            connection = HTTPSConnection(*self.address, timeout=10, context=_TRUSTING)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except (OSError, HTTPException):
                return 0, ""

    async def sample(self) -> dict[str, float]:
        """Return the daemon's counters and gauges, by name; nothing while it is away."""
        life = self.lives
        status, body = await asyncio.to_thread(self.get, "/metrics")
        if status != 200 or life != self.lives:
            return {}
        values = _values(body)
        self._now = {name: value for name, value in values.items() if "_total" in name}
        return values

    async def watch(self) -> None:
        """Take samples for ever: a life that is killed does not tell its last ones."""
        while True:
            await self.sample()
            await asyncio.sleep(0.5)

    @property
    def counted(self) -> Counter[str]:
        """The daemon's counters over all lives, as they were last seen."""
        return self._before + Counter(self._now)


@contextlib.contextmanager
def running(
    settings: Mapping[str, object] | None = None, limits: Mapping[str, object] | None = None
) -> Iterator[Daemon]:
    """Run a daemon in a temporary folder for as long as the block runs, and stop it by SIGTERM.

    Args:
        settings: those that differ from the defaults.
        limits: keys of `server`.

    Yields:
        The daemon.

    Raises:
        ServiceError: it did not become ready, or did not end well.
    """
    with TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), {**(settings or {}), "server": {**(limits or {})}})
        try:
            daemon.start()
            yield daemon
            if code := daemon.terminate():
                raise ServiceError(f"whisperd ended with {code}:\n{daemon.log}")
        finally:
            daemon.end()


def _values(text: str) -> dict[str, float]:
    """Read samples in Prometheus' text format.

    Returns:
        Each sample by its name. Those of one name are added up, whatever their labels; each counter with a label is
        there under that too, as `name{value}`.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name.endswith("_total") and sample.labels:
                sums[f"{sample.name}{{{','.join(sample.labels.values())}}}"] = sample.value
    return sums
