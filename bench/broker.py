"""A real mosquitto on a free port, for the benchmarks and the tests.

Owns its configuration, its process, and the signals that it gets. Knows nothing of what is published.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PATIENCE = 30.0


class MissingError(Exception):
    """A program that is needed is not installed; the message says which package has it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto() -> str:
    """Return the path of the program.

    Raises:
        MissingError: it is not installed.
    """
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise MissingError("there is no broker: apt-get install mosquitto")
    return program


class Broker:
    """A broker that can stop and come back, with nothing remembered unless `persistence` says so.

    Args:
        folder: where its configuration, its log and its sessions go.

    Attributes:
        options: lines of its configuration, read when it starts.
        persistence: more such lines.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.options = "allow_anonymous true\n"
        self.persistence = "persistence false\n"
        self._folder = folder
        self._popen: subprocess.Popen[bytes] | None = None

    def keep_sessions(self) -> None:
        """Make it keep what subscribers with a session wait for, even when it is killed."""
        self.persistence = f"persistence true\npersistence_location {self._folder}/\nautosave_on_changes true\n"
        # Started by root it would become another user, who may not write here; started by others it cannot.
        self.persistence += "autosave_interval 1\nuser root\n"

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            MissingError: it is not installed.
            RuntimeError: it does not start; its log is in the message.
        """
        program = mosquitto()
        config = self._folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\n{self.persistence}{self.options}")
        with open(self._folder / "mosquitto.log", "a") as log:
            self._popen = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "mosquitto.log").read_text()) from None
                time.sleep(0.01)  # a port has no event to wait for

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None, "start it first"
        self._popen.send_signal(number)

    def stop(self) -> None:
        """Kill it, as `kill -9` does."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None
