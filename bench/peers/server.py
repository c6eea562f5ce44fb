"""A server in a process of its own: started, waited for, measured, and ended with all that it started.

Owns the process. Knows nothing of what it serves.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from bench.harness.daemon import PATIENCE, ServiceError

_MIB = 1 << 20
_SHOWN = 2000
"""Characters of a log that are shown of a server that did not start."""
_TO_END = 10.0
"""Seconds that a server has to end by itself."""


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """Run a server for as long as the block runs.

    Args:
        command: its program and arguments.
        port: where it will listen, on this machine.
        log: what it says goes there.
        environment: variables beside ours.

    Yields:
        Its process, once it listens.

    Raises:
        ServiceError: it does not listen in time; the end of its log is in the message.
    """
    with open(log, "wb") as out:
        started = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        _wait(started, port, log)
        yield psutil.Process(started.pid)
    finally:
        _end(started)


def _wait(started: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            if started.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-_SHOWN:]
                raise ServiceError(f"{started.args!r} did not start to listen:\n{said}") from None
            time.sleep(0.1)  # a port has no event to wait for


def _end(started: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(family, _TO_END)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    started.wait()


def memory(server: psutil.Process) -> float:
    """Return the RSS of a process and of those that it started, in MiB; 0 once it is gone."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss / _MIB
    return total
