"""What a signal asks of a command that runs until it is told to end.

Owns which signal means what, and that the second request to end does not wait. Knows nothing of what is stopped or
reloaded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

_log = logging.getLogger(__name__)


def reload_on_signal(reload: Callable[[], None]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on the first SIGTERM or SIGINT, and end the process at once on the second."""
    loop = asyncio.get_running_loop()
    asked = False

    def on_signal(name: str) -> None:
        nonlocal asked
        if asked:
            _log.warning("%s again: exiting at once", name)
            logging.shutdown()
            os._exit(1)
        asked = True
        _log.info("%s: finishing the last finals", name)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
