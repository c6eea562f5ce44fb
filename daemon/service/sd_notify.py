"""Messages to the service manager: datagrams of KEY=VALUE lines on a unix socket (sd_notify(3)).

Owns the socket. Knows nothing of what the words mean to the service. Without a manager every call does nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time


class Notifier:
    """Sends messages to the service manager.

    Args:
        address: the value of NOTIFY_SOCKET: a path, or `@name` in the abstract namespace; None without a manager.
    """

    def __init__(self, address: str | None) -> None:
        self._address: str | None = None
        if address:
            self._address = "\0" + address[1:] if address.startswith("@") else address

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def loading(self, text: str, seconds: float) -> None:
        """Say that starting takes longer, and ask for `seconds` from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", f"STATUS={text}")

    def ready(self, text: str) -> None:
        self._send("READY=1", f"STATUS={text}")

    def reloading(self, text: str) -> None:
        """Say that the settings are being read again. `ready` must follow.

        The time in it is for managers newer than 252, which tell by it which reload was meant.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS={text}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self, text: str) -> None:
        self._send("STOPPING=1", f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        # A manager that is gone, or too busy to read, must not stop the service.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)
