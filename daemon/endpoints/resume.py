"""Streams that outlive their connections.

Owns who has such a stream just now, the secret under which it is found again, how long it waits when nobody has it, and
which of its events its client has not got. Knows nothing of sockets, of protocols or of audio: the connection that has
a stream brings it what comes in, and sends what it says.

    begin -> held -> (the connection drops) waiting -> held by the next -> ...
                                            waiting -> its time is up: the stream ends, as if it had been stopped
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from daemon.common.errors import Fault
from daemon.common.metrics import Metrics
from daemon.core.stream import Stream
from daemon.endpoints.limits import Readers
from streaming.events import Error, Event, Partial, Ready

_log = logging.getLogger(__name__)

_MOST_KEPT = 1024
"""Events that were sent and that a client may have missed all the same: more than a network holds."""


_BEGIN = 'begin a new one with {"type":"start"}, and send again what has no final yet'


class ResumableStream:
    """One stream, and what its client was sent of it.

    It is an `EventQueue`: the connection that has it writes what comes out of it.

    Args:
        stream: the stream.
        seconds: how long it waits for its client; 0 for not at all.
        token: the secret under which it is found again.
        leave: called once, when it is over.

    Attributes:
        code: the code to close its client's connection with, once the stream has ended.
        left: whether its client went on purpose. Then nobody waits for it.
        over: whether it can no longer be resumed.
    """

    def __init__(self, stream: Stream, seconds: float, token: str, leave: Callable[[], None]) -> None:
        self.stream = stream
        self.seconds = seconds
        self.token = token
        self.code: int | None = None
        self.left = False
        self.over = False
        self.turn: asyncio.Timeout | None = None  # of whoever has it
        self.free = asyncio.Event()
        self.claims = 0  # those who have it or want it
        self.waiting: asyncio.Task[None] | None = None
        self._leave = leave
        self._greeting: Ready | None = None
        self._sent = 0
        self._confirmed = 0  # what its client said that it has got
        self._kept: deque[tuple[int, Event]] = deque()  # sent, with its number; partials are not worth it
        self._forgotten = 0  # the number of the newest that is not kept any more
        self._again: deque[Event] = deque()

    # --- what its client is told -----------------------------------------------------------------------------------

    @property
    def overflowed(self) -> bool:
        return self.stream.outbox.overflowed

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield what its client has not got, in order. The reader may be cancelled, and another may begin anew."""
        if (greeting := self.take_greeting()) is not None:
            yield greeting
        while self._again:
            yield self._send(self._again.popleft())
        async for event in self.stream.outbox:
            yield self._send(event)

    def _send(self, event: Event) -> Event:
        self._sent += 1
        if self.seconds and not isinstance(event, Partial):
            self._kept.append((self._sent, event))
            if len(self._kept) > _MOST_KEPT:
                self._forgotten, _ = self._kept.popleft()
        return event

    # --- its connections -------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Tell its client `Ready` next."""
        self._greeting = self.stream.greeting
        if self.seconds:
            self._greeting = replace(
                self._greeting,
                token=self.token,
                resume=self.seconds,
                samples=self.stream.samples,
                flushes=self.stream.flushes,
            )

    def take_greeting(self) -> Ready | None:
        """Return the greeting; None if it was told already."""
        greeting, self._greeting = self._greeting, None
        return greeting

    def resume(self, events: int) -> None:
        """Continue on another connection, whose client has got so many events.

        Raises:
            Fault: `bad_field`: it cannot have got so many.
        """
        if not self._confirmed <= events <= self._sent:
            raise Fault(
                "bad_field",
                f"events must be the number of events received from this stream, {self._confirmed}..{self._sent}, "
                f"got {events}",
                fatal=True,
            )
        self.stream.cut()
        self.left = False
        self._again = deque([event for number, event in self._kept if number > events]) + self._again
        if self._forgotten > events:
            message = f"{self._forgotten - events} events are no longer kept (partials included); later ones follow"
            self._again.appendleft(Error("replay_incomplete", message, fatal=False))
        self._kept.clear()
        self._sent = self._confirmed = self._forgotten = events
        self.greet()

    async def finish(self) -> None:
        """End the stream, and return when its last final is on its way. It may be called again."""
        await self.stream.finish()
        self.stream.close()

    def leave(self) -> None:
        self.stream.close()
        self._leave()


class ResumableStreams:
    """All streams that have a client, and those that wait for one.

    Each token begins with what all tokens of this run of the daemon begin with, and no others do: a client that a
    balancer led to another daemon is told so.
    """

    def __init__(self, readers: Readers, metrics: Metrics) -> None:
        self._readers = readers
        self._metrics = metrics
        self._ours = f"{secrets.token_urlsafe(6)}."
        self._streams: dict[ResumableStream, bytes] = {}

    def begin(self, stream: Stream, seconds: float, leave: Callable[[], None]) -> ResumableStream:
        """Return a new stream as one that can be resumed. See the class `ResumableStream` for the arguments."""
        resumable = ResumableStream(stream, seconds, self._ours + secrets.token_urlsafe(32), leave)
        self._streams[resumable] = _digest(resumable.token)
        resumable.greet()
        return resumable

    def find(self, token: str) -> ResumableStream:
        """Find the stream that `token` resumes.

        Raises:
            Fault: `cannot_resume`.
        """
        if not token.startswith(self._ours):
            raise _elsewhere()
        shown = _digest(token)
        # All are compared, each for the same time: how long this takes tells nothing about any of them.
        found = [
            resumable
            for resumable, digest in self._streams.items()
            if hmac.compare_digest(shown, digest) and resumable.seconds
        ]
        if not found or found[0].over:
            raise _gone()
        return found[0]

    def resume(self, resumable: ResumableStream, events: int) -> None:
        """Resume a stream for the caller, who holds it. See `ResumableStream.resume`.

        Raises:
            Fault: `bad_field`.
        """
        resumable.resume(events)
        self._metrics.streams_resumed.inc()

    @asynccontextmanager
    async def holding(self, resumable: ResumableStream) -> AsyncIterator[None]:
        """Give a stream to the caller alone, for a block.

        The one who has it now loses it, and so does the caller when somebody comes later. Afterwards it waits for the
        next, if it is not over.

        Raises:
            Fault: `cannot_resume`: it ended meanwhile. `taken_over`: somebody came later.
        """
        resumable.claims += 1
        turn = asyncio.timeout(None)
        try:
            await self._claim(resumable)
            async with turn:
                resumable.turn = turn
                if resumable.waiting is not None:
                    resumable.waiting.cancel()
                    resumable.waiting = None
                yield
        except TimeoutError:
            if turn.expired():
                raise _taken_over() from None
            raise
        finally:
            if resumable.turn is turn:
                resumable.turn = None
                resumable.free.set()
            resumable.claims -= 1
            self._settle(resumable)

    async def _claim(self, resumable: ResumableStream) -> None:
        while resumable.turn is not None:
            if not resumable.turn.expired():
                resumable.turn.reschedule(asyncio.get_running_loop().time())
            resumable.free.clear()
            await resumable.free.wait()
        if resumable.over:
            raise _gone()

    def _settle(self, resumable: ResumableStream) -> None:
        """Decide what becomes of it when nobody has it or wants it."""
        if resumable.claims or resumable not in self._streams:
            return
        if resumable.over:
            del self._streams[resumable]
            resumable.leave()
        else:
            resumable.waiting = asyncio.create_task(self._wait(resumable))

    async def _wait(self, resumable: ResumableStream) -> None:
        """Wait for its client, who ends this by taking it, or until its time is up, or the service stops."""
        resumable.stream.cut()
        self._metrics.streams_waiting.inc()
        try:
            async with self._readers.reading():
                await asyncio.sleep(0 if resumable.left else resumable.seconds)
            if resumable.seconds and not resumable.left:
                self._metrics.streams_expired.inc()
                _log.info("%s: the client did not come back within %g s", resumable.stream.source, resumable.seconds)
        except TimeoutError:
            pass  # the service stops
        finally:
            self._metrics.streams_waiting.dec()
        resumable.over = True
        resumable.claims += 1
        try:
            await resumable.finish()
        finally:
            resumable.claims -= 1
            self._settle(resumable)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _gone() -> Fault:
    return Fault(
        "cannot_resume",
        f"no stream waits under this token: it is unknown, its time is up, or its stream has ended; {_BEGIN}",
        fatal=True,
    )


def _elsewhere() -> Fault:
    return Fault(
        "cannot_resume",
        f"this token is from another daemon, or from before a restart of this one; {_BEGIN}",
        fatal=True,
    )


def _taken_over() -> Fault:
    return Fault("taken_over", "another connection sent this stream's token and continues the stream", fatal=True)
