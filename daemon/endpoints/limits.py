"""The limits that the listening edges have in common.

Owns how many clients there may be at once, how many connections, from one address and in all, how many messages of each
are read in a second, and the last moment that they are given when the service stops. Knows no protocol, no socket, and
nothing of what lies behind an edge.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial

from daemon.common.errors import Fault
from daemon.common.permissions import is_local

OPEN_TIMEOUT = 10.0
"""Seconds in which a connection must have said what it wants, whatever has to come before that."""

_LONGEST_WAIT = 60.0
"""Seconds that one may be there and not be served: between two requests, or after a refusal or a close. Whoever serves
it is done with it sooner."""

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""The answer to a connection that is one too many, before it has said what it wants."""

_LAST_WORDS = 0.3
"""Seconds for which audio that is on its way is still read when the service stops."""

_SHORT = 1024
"""Characters of a message that is no longer than others."""

_LEAST_PAUSE = 0.02
"""Seconds. A shorter pause for each message costs more than the message."""

TURN = 0.01
"""Seconds after which whoever has more in hand lets the others have their turn."""


class CapacityLimiter:
    """Lets in so many at once, and no more.

    Args:
        what: their name in errors, such as `streams`.

    Attributes:
        number: how many; it may change, and nobody who is in has to leave.
    """

    def __init__(self, number: int, what: str) -> None:
        self._free = asyncio.Event()
        self.number = number
        self._what = what
        self._taken = 0

    def take(self, places: int = 1) -> None:
        """Take one or more of the places.

        Raises:
            Fault: `full`.
        """
        if self._taken + places > self.number:
            free = "all" if self._taken >= self.number else f"{self._taken} of"
            raise Fault("full", f"{free} {self.number} {self._what} are taken: try again later", fatal=True)
        self._taken += places

    @property
    def taken(self) -> int:
        return self._taken

    def give_back(self, places: int = 1) -> None:
        self._taken -= places
        if not self._taken:
            self._free.set()

    async def wait_free(self) -> None:
        """Wait until no place is taken."""
        while self._taken:
            self._free.clear()
            await self._free.wait()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give_back()


class ConnectionLimiter:
    """Limits the connections of a port, each from the moment that it is accepted until it has ended.

    Nothing that a connection may cost comes before it is counted, and nothing after.

    A connection is served, or it waits: it has not said what it wants, was refused, or is on its way out. Of those that
    are served, so many may come from one address (how many there may be in all is for `CapacityLimiter`). Those that
    wait are limited from one address and in all. Where one comes too many, the one goes that has waited longest, of the
    address that has most of them, and rather one that has said nothing than one that is about to say what it wants. So
    a client that holds connections open takes only its own room. This machine's addresses are not limited each: a proxy
    here stands for many.

    Args:
        turned_away: called with the reason whenever a connection goes that would have stayed.

    Attributes:
        of_address: how many may be served, and may wait, from one address. It may change, and nobody who is here has to
            leave.
        waiting: how many may wait in all. It may change likewise.
        in_all: how many there may be in all; None for any number.
    """

    def __init__(self, of_address: int, waiting: int, turned_away: Callable[[str], object]) -> None:
        self.of_address = of_address
        self.waiting = waiting
        self.in_all: int | None = None
        self._turned_away = turned_away
        self._waiting: dict[str | None, dict[LimitedConnection, None]] = {}  # in the order in which they began to wait
        self._served: Counter[str] = Counter()
        self._here: set[LimitedConnection] = set()

    def enter(self, address: str | None, leave: Callable[[bool], object]) -> LimitedConnection | None:
        """Count one more connection.

        Args:
            address: the client's; None where there is none, as on a unix socket.
            leave: called when the connection has to go, with whether that is to make room for others.

        Returns:
            The connection as it is counted; None if there is no room for it.
        """
        if is_limited(address):
            while len(mine := self._waiting.get(address, {})) >= self.of_address:
                self._turn_away(_first(mine), "address")
        while self.number_waiting >= self.waiting:
            self._turn_away(self._longest(), "handshakes")
        if self.in_all is not None and len(self._here) >= self.in_all:
            if not self._waiting:
                self._turned_away("descriptors")
                return None
            self._turn_away(self._longest(), "descriptors")
        connection = LimitedConnection(self, address, leave)
        self._here.add(connection)
        self.wait(connection)
        return connection

    @property
    def number_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def end(self) -> None:
        """Turn away all that have not said what they want."""
        for connection in [each for mine in self._waiting.values() for each in mine if not each.asked]:
            connection.turn_away(crowded=False)

    # --- for its connections -----------------------------------------------------------------------------------------

    def wait(self, connection: LimitedConnection) -> None:
        self._waiting.setdefault(connection.address, {})[connection] = None

    def stop_waiting(self, connection: LimitedConnection) -> None:
        mine = self._waiting.get(connection.address, {})
        mine.pop(connection, None)
        if not mine:
            self._waiting.pop(connection.address, None)  # addresses are many

    def serve(self, address: str) -> None:
        """Count one more connection from `address` as served.

        Raises:
            Fault: `too_many_connections`.
        """
        if self._served[address] >= self.of_address:
            raise Fault(
                "too_many_connections",
                f"one address may have at most {self.of_address} connections: close one, or try again later",
            )
        self._served[address] += 1

    def served(self, address: str) -> None:
        self._served[address] -= 1
        if not self._served[address]:
            del self._served[address]

    def forget(self, connection: LimitedConnection) -> None:
        self._here.discard(connection)
        self.stop_waiting(connection)

    def _longest(self) -> LimitedConnection:
        most: dict[LimitedConnection, None] = max(self._waiting.values(), key=len)
        return _first(most)

    def _turn_away(self, connection: LimitedConnection, why: str) -> None:
        self._turned_away(why)
        connection.turn_away(crowded=True)


def _first(waiting: Iterable[LimitedConnection]) -> LimitedConnection:
    """Return the one that goes first.

    Those that are done go first, then those that have said nothing, then those that are saying what they want, then
    those that are being answered; and of each kind, the one that has waited longest.
    """
    return min(waiting, key=lambda each: (not each.idle, each.idle != each.asked))


class LimitedConnection:
    """One connection, as `ConnectionLimiter` counts it.

    Attributes:
        address: the client's; None where there is none.
        asked: whether it has said what it wants.
        idle: whether it is silent, because it has said nothing yet, or is done.
    """

    def __init__(self, limiter: ConnectionLimiter, address: str | None, leave: Callable[[bool], object]) -> None:
        self.address = address
        self.asked = False
        self.idle = True
        self._limiter = limiter
        self._leave = leave
        self._gone = False
        self._patience = self._for(OPEN_TIMEOUT)

    def ask(self) -> None:
        """Note that it has said what it wants. It then has more time."""
        self.asked = True
        self._wait()

    @contextlib.contextmanager
    def being_served(self) -> Iterator[None]:
        """Count it among those that are served, for a block.

        Raises:
            Fault: `too_many_connections`.
        """
        address = self.address if is_limited(self.address) else None
        if address is not None:
            self._limiter.serve(address)
        self.asked = True
        self._patience.cancel()
        self._limiter.stop_waiting(self)
        try:
            yield
        finally:
            if address is not None:
                self._limiter.served(address)
            self.idle = True
            if not self._gone:
                self._limiter.wait(self)
                self._wait()

    def turn_away(self, *, crowded: bool) -> None:
        leave = self._leave
        self.left()
        leave(crowded)

    def left(self) -> None:
        """Note that it has ended. It may be called again."""
        self._gone = True
        self._patience.cancel()
        self._limiter.forget(self)
        self._leave = _nothing  # or what it has, which may be large, would wait for the collector of cycles

    def _wait(self) -> None:
        self._patience.cancel()
        if not self._gone:
            self._patience = self._for(_LONGEST_WAIT)

    def _for(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, partial(self.turn_away, crowded=False))


def _nothing(_: bool) -> None: ...


def is_limited(address: str | None) -> bool:
    """Return whether the number of connections from `address` is limited."""
    return address is not None and not is_local(address)


class RateLimiter:
    """Limits how many messages of one client are read in a second.

    More are read later, as fast as this allows: the network's own back-pressure slows the client down, and nothing that
    it sends is lost.

    Args:
        rate: messages a second.
        slowed: called with the seconds of each pause.
    """

    def __init__(self, rate: int, slowed: Callable[[float], object]) -> None:
        self._interval = 1 / rate
        self._slowed = slowed
        self._due = 0.0  # when the next message would come if all came evenly
        self._turn = 0.0  # when others had theirs

    async def wait(self) -> None:
        """Wait before a message is read, if the client has sent too many.

        A client that was silent for a second may send as many at once as a second has. Those are read without a pause,
        but the others have their turn all the same, because reading what is buffered waits for nothing.
        """
        self.count()
        now = asyncio.get_running_loop().time()
        if ahead := self.pause():
            await asyncio.sleep(ahead)
        elif now - self._turn > TURN:
            await asyncio.sleep(0)
        else:
            return
        self._turn = asyncio.get_running_loop().time()

    def count(self) -> None:
        """Count one more message."""
        self._due = max(self._due, asyncio.get_running_loop().time() - 1.0) + self._interval

    def pause(self) -> float:
        """Return the seconds for which nothing more shall be read; 0 where they are too few to matter."""
        ahead = self._due - asyncio.get_running_loop().time()
        if ahead <= _LEAST_PAUSE:
            return 0.0
        self._slowed(ahead)
        return ahead

    def charge(self, text: int) -> None:
        """Charge a message of `text` characters that are parsed.

        A long one takes as much of everybody's time as many short ones.
        """
        self._due += text // _SHORT * self._interval


class Readers:
    """The tasks that read from clients, until the service stops."""

    def __init__(self) -> None:
        self._stop_at: float | None = None  # the loop's time from which on nobody is read
        self._reading: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read within a block.

        Raises:
            TimeoutError: the service stops, and the last moment is over.
        """
        async with asyncio.timeout_at(self._stop_at) as reader:
            self._reading.add(reader)
            try:
                yield
            finally:
                self._reading.discard(reader)

    def stop(self) -> None:
        """Announce that the service stops: what is on its way is read, and then nothing more."""
        self._stop_at = asyncio.get_running_loop().time() + _LAST_WORDS
        for reader in self._reading:
            reader.reschedule(self._stop_at)
