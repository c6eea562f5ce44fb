"""One websocket connection of a client that streams, from its first frame to its close, whatever dialect it speaks.

Owns the order of things: the codec's messages are taken in one by one, a start opens a stream, what the stream says is
encoded and sent, and whatever ends it (the client, its fault, the service), all that was heard becomes final first. A
notice about the audio for which the dialect has no word goes to the log. Where the connection alone ends, the stream is
left behind for the next (`resume.py`). Knows the shape of a codec and none of the dialects; of what lies behind, only
that streams can be begun, and found again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

from websockets.exceptions import ConnectionClosed

from daemon.common.errors import Fault
from daemon.common.logs import bind_log_context
from daemon.common.permissions import Rights
from daemon.common.sources import DEFAULT_SOURCE, channel_names, check_name
from daemon.dialects.codec import CLOSE_DONE, CLOSE_SHUTTING_DOWN, Codec, Dialect, Frame, Message, Reply
from daemon.endpoints.limits import RateLimiter, Readers
from daemon.endpoints.peer import Peer
from daemon.endpoints.resume import ResumableStream, ResumableStreams
from streaming.events import Audio, Event, Inbound, Notice, Resume, Start, Stop

_log = logging.getLogger(__name__)

_TOGETHER = 32 * 1024
"""Bytes of audio that are passed on as one piece: a second of 16 bits at 16 kHz."""


class Host(Protocol):
    """The port that the client came by.

    Attributes:
        readers: the tasks that read from clients, until the service stops.
        max_message: the bytes that a frame may have.
        streams: the streams that can be resumed.
    """

    @property
    def readers(self) -> Readers: ...

    @property
    def max_message(self) -> int: ...

    @property
    def streams(self) -> ResumableStreams: ...

    async def begin(self, start: Start) -> ResumableStream:
        """Open a stream, once the engine is warm.

        Raises:
            Fault: it cannot be opened.
        """

    def pace(self) -> RateLimiter:
        """Return the limiter of one client's messages."""

    @property
    def lull(self) -> float:
        """Seconds that a reader waits, after it has taken in all that is here, so that more is here next time."""


class Conversation:
    """The conversation with one client.

    Args:
        host: the port that the client came by.
        peer: the client.
        dialect: what it speaks.
        codec: its own codec of that dialect.
        rights: what it may do.
        arrived: called when it has a stream, and so a slot.
    """

    def __init__(
        self, host: Host, peer: Peer, dialect: Dialect, codec: Codec, rights: Rights, arrived: Callable[[], None]
    ) -> None:
        self._host = host
        self._peer = peer
        self._dialect = dialect
        self._codec = codec
        self._rights = rights
        self._arrived = arrived
        self._pace = host.pace()
        self._resumable: ResumableStream | None = None
        self._holding = contextlib.AsyncExitStack()  # of the stream
        self._heard = False  # the stream was told something
        self._audio = bytearray()  # for the stream, of messages that were here at once
        self._writer: asyncio.Task[bool] | None = None

    async def run(self) -> int | None:
        """Serve the client until its stream has ended and it was told, or the connection dropped.

        Returns:
            The code to close with; None if the connection is closed already.

        Raises:
            Fault: `taken_over`.
        """
        async with self._holding:
            try:
                return await self._end(await self._listen())
            finally:
                if self._writer is not None:
                    self._writer.cancel()
                    await asyncio.gather(self._writer, return_exceptions=True)

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def _listen(self) -> int | None:
        """Return the code to close with; None if the connection is closed."""
        try:
            async with self._host.readers.reading():
                await self._converse()
        except TimeoutError:
            return CLOSE_SHUTTING_DOWN
        except ConnectionClosed:
            return None
        except Fault as fault:
            fault.fatal = True
            with contextlib.suppress(ConnectionClosed):
                await self._blame(fault)
            self._peer.reason = self._dialect.close_reason(fault)
            return self._dialect.close_code(fault.code)
        except Exception as error:
            if self._resumable is None:
                raise
            _log.exception("a stream failed")
            self._resumable.stream.broke(error)
            return self._dialect.close_code("internal")
        return CLOSE_DONE

    async def _converse(self) -> None:
        await self._take_in(self._codec.greet)
        frame = await self._first()
        try:
            while await self._take_in(self._codec.assume if frame is None else partial(self._codec.decode, frame)):
                if not self._peer.has_more and not await self._all_is_taken_in():
                    return
                frame = await self._next()
        finally:
            await self._pass_on()

    async def _first(self) -> Frame | None:
        """Return the first frame; None if there was none within the grace."""
        try:
            async with asyncio.timeout(self._codec.grace):
                return await self._next()
        except TimeoutError:
            return None

    async def _next(self) -> Frame:
        await self._pace.wait()
        frame = await self._peer.hear()
        if isinstance(frame, str):
            self._pace.charge(len(frame))
        limit = max(self._host.max_message, self._dialect.largest)
        if len(frame) > limit:
            raise Fault("message_too_big", f"a message may have at most {limit} bytes, got {len(frame)}: send less")
        return frame

    async def _take_in(self, give: Callable[[], Iterable[Message]]) -> bool:
        """Take in all messages that `give` returns, and return whether more may come."""
        try:
            for message in give():
                if isinstance(message, Stop):
                    return False
                await self._take(message)
        except Fault as fault:
            if fault.fatal:
                raise
            await self._pass_on()
            await self._blame(fault)
        return self._may_go_on

    @property
    def _may_go_on(self) -> bool:
        """Whether its stream takes more: it may have said all on another connection, or nothing for too long."""
        resumable = self._resumable
        return resumable is None or (resumable.code is None and not resumable.stream.silent)

    async def _all_is_taken_in(self) -> bool:
        """Let the stream hear all that is here, wait for more to come, and return whether more may come."""
        await self._pass_on()
        if self._may_go_on and (lull := self._host.lull):
            await asyncio.sleep(lull)
        return self._may_go_on

    async def _take(self, message: Message) -> None:
        match message:
            case Audio(data) if len(self._audio) + len(data) <= _TOGETHER:
                self._audio += data
                return
        await self._pass_on()
        match message:
            case Reply(frame):
                await self._peer.tell([frame])
            case Start():
                await self._open(message)
            case Resume():
                await self._resume(message)
            case _:
                await self._tell_stream(message)

    async def _pass_on(self) -> None:
        """Give the stream the audio that came, in one piece: what each piece costs is most of what audio costs."""
        if self._audio:
            audio, self._audio = bytes(self._audio), bytearray()
            await self._tell_stream(Audio(audio))

    async def _tell_stream(self, message: Inbound) -> None:
        assert self._resumable is not None, "a codec begins with a start"
        self._heard = True
        await self._resumable.stream.receive(message)

    async def _blame(self, fault: Fault) -> None:
        self._peer.note(fault)
        if self._resumable is not None and self._resumable.seconds:
            # In the order of the stream's own events, for its client counts what it gets.
            self._resumable.stream.outbox.put(fault.event())
        else:
            await self._peer.tell(self._codec.blame(fault))

    # --- its stream ------------------------------------------------------------------------------------------------

    async def _open(self, start: Start) -> None:
        if self._resumable is not None and self._heard:
            await self._resumable.finish()
        await self._leave()
        source = check_name(start.source if start.source is not None else DEFAULT_SOURCE)
        for name in channel_names(source, start.channels) if start.separate else (source,):
            self._rights.check_send(name)
        await self._hold(await self._host.begin(replace(start, source=source)), None)

    async def _resume(self, wanted: Resume) -> None:
        await self._leave()
        resumable = self._host.streams.find(wanted.token)
        for name in resumable.stream.sources:
            self._rights.check_send(name)
        bind_log_context(source=resumable.stream.source, session=resumable.stream.greeting.session)
        await self._hold(resumable, wanted.events)

    async def _hold(self, resumable: ResumableStream, events: int | None) -> None:
        """Take a stream as this client's. Of one that is resumed, `events` is how many its client has got."""
        await self._holding.enter_async_context(self._host.streams.holding(resumable))
        if events is not None:
            self._host.streams.resume(resumable, events)
        self._arrived()
        self._resumable = resumable
        self._heard = False
        if (greeting := resumable.take_greeting()) is not None:
            # Before any answer to what the client says next, which does not go through the stream.
            with contextlib.suppress(ConnectionClosed):  # what it said before it went is still to be heard
                await self._peer.tell(self._codec.encode(greeting))
        self._writer = asyncio.create_task(self._peer.write(resumable, self._encode))

    def _encode(self, event: Event) -> Iterator[Frame]:
        sent = False
        for frame in self._codec.encode(event):
            sent = True
            yield frame
        if isinstance(event, Notice) and not sent:
            # Else its user would wait for text, and the operator look for a fault here.
            _log.warning("%s: %s (not sent to the client: %s)", event.source, event.message, self._dialect.name)

    async def _leave(self) -> None:
        """Let go of the stream; what it has said is still told."""
        # Forgotten first: a writer that fails must not have the stream ended twice.
        resumable, writer, self._resumable, self._writer = self._resumable, self._writer, None, None
        if resumable is not None:
            resumable.over = True
            resumable.stream.close()
        try:
            if writer is not None:
                await writer
        finally:
            await self._holding.aclose()

    async def _end(self, code: int | None) -> int | None:
        """End what the code of `_listen` leaves to end, and return what `run` returns."""
        resumable = self._resumable
        if resumable is None:
            await self._part(code)
            return code
        if code is not None:
            resumable.code = resumable.code or code
            await resumable.finish()
            sent = self._writer is not None and await self._writer
            await self._part(resumable.code)
            # Whoever has not answered the close may not have read what came before it, and may come back for it.
            resumable.over = await self._peer.close(resumable.code) and sent
        resumable.left = resumable.overflowed or self._peer.left
        return None

    async def _part(self, code: int | None) -> None:
        """Say goodbye, in a dialect that has a word for it."""
        if code is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._peer.tell(self._codec.part(code))
