"""A real `whisperd run` on a free port, for the demo and the benchmarks.

Owns its start, the wait until it is ready, and its stop. Knows nothing of what is sent to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness.daemon import Daemon
from bench.harness.daemon import ServiceError as ServiceError


@contextmanager
def running(
    settings: Mapping[str, object] | None = None, limits: Mapping[str, object] | None = None
) -> Iterator[Daemon]:
    """Run the service for as long as the block runs, and stop it by SIGTERM.

    Args:
        settings: those that differ from the defaults.
        limits: keys of `server`.

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
