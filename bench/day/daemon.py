"""The daemon under test: a `whisperd run` that is ended in every way, and started again with what it kept.

Owns its process, its settings, and what its own counters say, added up over its lives. Knows nothing of what is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.broker import free_port

PATIENCE = 180.0
"""Seconds for a start or an end: of a daemon with a real engine, on a machine that may be busy."""


class Daemon:
    """scripted: with an engine whose answers are written down.

    Attributes:
    port, wyoming_port: where it listens in all its lives. lives: how often it was started.
    bad_ends: exit codes after SIGTERM that were not 0.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, object], environment: Mapping[str, str], *, scripted: bool
    ) -> None:
        self.port, self.wyoming_port = free_port(), free_port()
        self.lives = 0
        self.bad_ends: list[int] = []
        self._folder = folder
        self._environment = {**os.environ, **environment, "STATE_DIRECTORY": str(folder / "state")}
        self._config = folder / "whisperd.yaml"
        self._settings = dict(settings)
        self._write()
        program = ["-m", "bench.day.scripted"] if scripted else ["-m", "daemon.commands.cli", "run", "-c"]
        self._command = [sys.executable, *program, str(self._config)]
        self._popen: subprocess.Popen[bytes] | None = None
        self._before: Counter[str] = Counter()  # of lives that are over
        self._now: dict[str, float] = {}

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None, "start it first"
        return self._popen.pid

    def _write(self) -> None:
        self._config.write_text(  # JSON is YAML
            json.dumps(
                {
                    **self._settings,
                    "server": {"host": "127.0.0.1", "port": self.port},
                    "wyoming": {"host": "127.0.0.1", "port": self.wyoming_port, "source": "satellite"},
                }
            )
        )

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until it is ready.

        Raises:
            RuntimeError: it does not become so; its log is in the message.
        """
        self.lives += 1
        with open(self._folder / "log", "a") as log:  # noqa: ASYNC230 - a small file
            self._popen = subprocess.Popen(  # noqa: ASYNC220 - it is waited for below
                self._command, stderr=log, env=self._environment
            )
        deadline = time.monotonic() + PATIENCE
        while (await asyncio.to_thread(self.get, "/readyz"))[0] != 200:
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"whisperd did not become ready:\n{self.log}")
            await asyncio.sleep(0.05)  # polled, as a supervisor would: there is no event before it listens

    async def terminate(self) -> None:
        """SIGTERM, as a supervisor; what it had to say is out when this returns."""
        assert self._popen is not None, "start it first"
        await self.sample()
        self._popen.terminate()
        code = await asyncio.to_thread(self._popen.wait, PATIENCE)
        if code != 0:
            self.bad_ends.append(code)
        self._bury()

    def kill(self) -> None:
        """SIGKILL, in this moment."""
        assert self._popen is not None, "start it first"
        self._popen.send_signal(signal.SIGKILL)

    def reload(self, changed: Mapping[str, object]) -> None:
        """Other settings, and SIGHUP."""
        assert self._popen is not None, "start it first"
        self._settings |= changed
        self._write()
        self._popen.send_signal(signal.SIGHUP)

    async def wait_killed(self) -> None:
        assert self._popen is not None, "start it first"
        await asyncio.to_thread(self._popen.wait, PATIENCE)
        self._bury()

    def end(self) -> None:
        """Whatever state it is in."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def _bury(self) -> None:
        self._before.update(self._now)
        self._now = {}

    # --- what it counts --------------------------------------------------------------------------------------------

    async def sample(self) -> dict[str, float]:
        """Its counters and gauges, by name; nothing while it is away."""
        life = self.lives
        status, body = await asyncio.to_thread(self.get, "/metrics")
        if status != 200 or life != self.lives:
            return {}
        values = dict(_values(body))
        self._now = {name: value for name, value in values.items() if "_total" in name}
        return values

    async def watch(self) -> None:
        """Take samples for ever: a life that is killed does not tell its last ones."""
        while True:
            await self.sample()
            await asyncio.sleep(0.5)

    @property
    def counted(self) -> Counter[str]:
        """Its counters over all lives, as they were last seen."""
        return self._before + Counter(self._now)

    def get(self, path: str) -> tuple[int, str]:
        """(status, body) of a page; (0, "") where there is no answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except (OSError, HTTPException):
                return 0, ""


def _values(text: str) -> Iterator[tuple[str, float]]:
    """Samples of one name are added up, whatever their labels; each with a label is there under that too, as
    `name{value}`."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name.endswith("_total") and sample.labels:
                sums[f"{sample.name}{{{','.join(sample.labels.values())}}}"] = sample.value
    yield from sums.items()
