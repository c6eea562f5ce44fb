"""What the listening edges have in common.

Owns the shape of what lies behind an edge (`Stream`, `Outbox`), how many clients may sit at one at once, how many of
them from one address, how many messages each is read in a second, and the last moment that they are given when the
service stops. Knows no protocol, no socket, and nothing that has these shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from daemon.access import is_local
from daemon.faults import Fault
from streaming.events import Event, Inbound, Ready

OPEN_TIMEOUT = 10.0
"""Seconds that a connection may say nothing."""

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""The answer to a connection that is one too many, before it has said what it wants."""

_LAST_WORDS = 0.3
"""Seconds for which audio that is on its way is still read when the service stops."""

_SHORT = 1024
"""Characters of a message that is no longer than others."""

_LEAST_PAUSE = 0.02
"""Seconds. A shorter pause for each message costs more than the message."""


class Outbox(Protocol):
    @property
    def overflowed(self) -> bool: ...

    def put(self, event: Event) -> None: ...

    def close(self) -> None: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...


class Stream(Protocol):
    source: str
    flushes: int

    @property
    def outbox(self) -> Outbox: ...

    @property
    def settled(self) -> bool: ...

    @property
    def samples(self) -> int: ...

    @property
    def greeting(self) -> Ready: ...

    def ready(self) -> None: ...

    async def receive(self, message: Inbound) -> None: ...

    def cut(self) -> None: ...

    async def finish(self) -> None: ...

    def broke(self, error: Exception) -> None: ...

    def close(self) -> None: ...


class Seats:
    """So many at once, and no more.

    Attributes:
        number: how many; it may change, and nobody who sits has to leave.
    """

    def __init__(self, number: int, what: str) -> None:
        self._free = asyncio.Event()
        self.number = number
        self._what = what
        self._taken = 0

    def take(self) -> None:
        """Raises:
        Fault: `full`.
        """
        if self._taken >= self.number:
            raise Fault("full", f"all {self.number} {self._what} are taken: try again later", fatal=True)
        self._taken += 1

    def give_back(self) -> None:
        self._taken -= 1
        if not self._taken:
            self._free.set()

    async def wait_free(self) -> None:
        """Until none is taken."""
        while self._taken:
            self._free.clear()
            await self._free.wait()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give_back()


class Visitors:
    """So many connections from one address. Those of this machine are not counted: a proxy here stands for many.

    Attributes:
        most: how many; it may change, and nobody who is here has to leave.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._here: Counter[str] = Counter()

    @contextlib.contextmanager
    def visit(self, address: str | None) -> Iterator[None]:
        """address: None where there is none, as of a path.

        Raises:
            Fault: `too_many_connections`.
        """
        if address is None or is_local(address):
            yield
            return
        if self._here[address] >= self.most:
            raise Fault(
                "too_many_connections",
                f"{self.most} connections from one address is all there may be: close one, or try again later",
            )
        self._here[address] += 1
        try:
            yield
        finally:
            self._here[address] -= 1
            if not self._here[address]:
                del self._here[address]  # addresses are many


class Pace:
    """So many messages of one client in a second. More are read later, as fast as this allows: the network's own
    back-pressure slows the client down, and nothing that it says is lost.

    slowed: told the seconds of each pause.
    """

    def __init__(self, rate: int, slowed: Callable[[float], object]) -> None:
        self._interval = 1 / rate
        self._slowed = slowed
        self._due = 0.0  # when the next message would come if all came evenly

    async def wait(self) -> None:
        """Before each message. Whoever was silent for a second has as many in hand as a second has."""
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - 1.0) + self._interval
        ahead = self._due - now
        if ahead > _LEAST_PAUSE:
            self._slowed(ahead)
            await asyncio.sleep(ahead)

    def charge(self, text: int) -> None:
        """For a message with so many characters that are parsed: a long one takes as much of everybody's time as many
        short ones."""
        self._due += text // _SHORT * self._interval


class Readers:
    """Those who listen to a client until the service stops."""

    def __init__(self) -> None:
        self._stop_at: float | None = None  # the loop's time from which on nobody is read
        self._reading: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Within, the service's end raises TimeoutError a moment after it was announced."""
        async with asyncio.timeout_at(self._stop_at) as reader:
            self._reading.add(reader)
            try:
                yield
            finally:
                self._reading.discard(reader)

    def stop(self) -> None:
        """The service stops: what is on its way is heard, and then nothing more."""
        self._stop_at = asyncio.get_running_loop().time() + _LAST_WORDS
        for reader in self._reading:
            reader.reschedule(self._stop_at)
