"""One websocket client that streams, from its first frame to its close, whatever dialect it speaks.

Owns the order of things: the codec's messages are taken in one by one, a start opens a stream, what the stream says is
encoded and told, and whatever ends it (the client, its fault, the service), all that was heard becomes final first.
Knows the shape of a codec and none of the dialects; of what lies behind only that streams can be opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

from websockets.exceptions import ConnectionClosed

from daemon.access import Rights
from daemon.dialects.codec import CLOSE_DONE, CLOSE_SHUTTING_DOWN, Codec, Dialect, Frame, Message, Reply
from daemon.edges import Pace, Readers, Stream
from daemon.faults import Fault
from daemon.peer import Peer
from daemon.sources import DEFAULT_SOURCE
from streaming.events import Start, Stop

_log = logging.getLogger(__name__)


class Host(Protocol):
    """The port that the client came by.

    Attributes:
        readers: those who listen until the service stops. max_message: bytes of a frame.
    """

    @property
    def readers(self) -> Readers: ...

    @property
    def max_message(self) -> int: ...

    @property
    def open_stream(self) -> Callable[[Start], Awaitable[Stream]]:
        """Waits until the engine is warm. Raises: Fault."""

    def pace(self) -> Pace:
        """Of one client."""


class Conversation:
    def __init__(self, host: Host, peer: Peer, dialect: Dialect, codec: Codec, rights: Rights) -> None:
        self._host = host
        self._peer = peer
        self._dialect = dialect
        self._codec = codec
        self._rights = rights
        self._pace = host.pace()
        self._stream: Stream | None = None
        self._heard = False  # the stream was told something
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> int | None:
        """Until the last final is out, whatever ended it; the code to close with, None where it is closed already."""
        try:
            code = await self._listen()
            await self._finish()
        finally:
            await self._leave()
        if code is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._peer.tell(self._codec.part(code))
        return code

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def _listen(self) -> int | None:
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
            if self._stream is None:
                raise
            _log.exception("a stream broke")
            self._stream.broke(error)
            return self._dialect.close_code("internal")
        return CLOSE_DONE

    async def _converse(self) -> None:
        await self._take_in(self._codec.greet)
        frame = await self._first()
        while await self._take_in(self._codec.assume if frame is None else partial(self._codec.decode, frame)):
            frame = await self._next()

    async def _first(self) -> Frame | None:
        """None when there was none within the grace."""
        try:
            async with asyncio.timeout(self._codec.grace):
                return await self._next()
        except TimeoutError:
            return None

    async def _next(self) -> Frame:
        await self._pace.wait()
        frame = await self._peer.ws.recv()
        limit = max(self._host.max_message, self._dialect.largest)
        if len(frame) > limit:
            raise Fault("message_too_big", f"a message may have {limit} bytes, got {len(frame)}: send smaller frames")
        return frame

    async def _take_in(self, give: Callable[[], Iterable[Message]]) -> bool:
        """False once the client has said all."""
        try:
            for message in give():
                if isinstance(message, Stop):
                    return False
                await self._take(message)
        except Fault as fault:
            if fault.fatal:
                raise
            await self._blame(fault)
        return True

    async def _take(self, message: Message) -> None:
        match message:
            case Reply(frame):
                await self._peer.tell([frame])
            case Start():
                await self._open(message)
            case _:
                assert self._stream is not None, "a codec begins with a start"
                self._heard = True
                await self._stream.receive(message)

    async def _blame(self, fault: Fault) -> None:
        self._peer.note(fault)
        await self._peer.tell(self._codec.blame(fault))

    # --- its stream ------------------------------------------------------------------------------------------------

    async def _open(self, start: Start) -> None:
        if self._heard:
            await self._finish()
        await self._leave()
        self._rights.check_send(start.source if start.source is not None else DEFAULT_SOURCE)
        self._stream = await self._host.open_stream(start)
        self._heard = False
        self._writer = asyncio.create_task(self._peer.write(self._stream.outbox, self._codec.encode))
        self._stream.ready()

    async def _finish(self) -> None:
        if self._stream is not None:
            await self._stream.finish()

    async def _leave(self) -> None:
        """What is in the outbox is still sent."""
        # Forgotten first: a writer that fails must not have the stream closed, and counted out, twice.
        stream, writer, self._stream, self._writer = self._stream, self._writer, None, None
        if stream is not None:
            stream.close()
        if writer is not None:
            await writer
