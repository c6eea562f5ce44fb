"""A real `whisperd run` on a free port, for the demo and the benchmarks.

Owns starting it, waiting until it is ready, and stopping it. Knows nothing of what is sent to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from bench.broker import free_port

PATIENCE = 120.0


class ServiceError(RuntimeError):
    """The service did not start or end as it should; its log is in the message."""


@dataclass(frozen=True, slots=True)
class Service:
    """port: of the websocket and HTTP listener. seconds_to_ready: from the process's start to `/readyz`."""

    port: int
    pid: int
    seconds_to_ready: float

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@contextmanager
def running(
    settings: Mapping[str, object] | None = None, limits: Mapping[str, object] | None = None
) -> Iterator[Service]:
    """The service with `settings` over the defaults, stopped by SIGTERM at the end. limits: keys of `server`.

    Raises:
        ServiceError: it did not become ready, or did not end well.
    """
    with TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        port = free_port()
        config = Path(folder) / "whisperd.yaml"
        config.write_text(
            yaml.safe_dump({**(settings or {}), "server": {"host": "127.0.0.1", "port": port, **(limits or {})}})
        )
        began = time.monotonic()
        # The environment is over the file, and whoever has set a port there means another service.
        environment = {**os.environ, "WHISPERD_SERVER__PORT": str(port)}
        command = [sys.executable, "-m", "daemon.commands.cli", "run", "-c", str(config)]
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            if not _ready(process, port, began + PATIENCE):
                raise ServiceError(f"whisperd did not become ready:\n{Path(log.name).read_text()}")
            yield Service(port, process.pid, time.monotonic() - began)
            process.terminate()
            if process.wait(PATIENCE) != 0:
                raise ServiceError(f"whisperd ended with {process.returncode}:\n{Path(log.name).read_text()}")
        finally:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], port: int, deadline: float) -> bool:
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return True
        except OSError:
            pass
        time.sleep(0.05)  # polled, as a supervisor would: a process has no event to wait for before it listens
    return False
