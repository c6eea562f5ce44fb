"""The Wyoming port: Home Assistant's voice pipeline, and other clients of its protocol.

Owns the listener, how many clients may connect and how long one may keep silent, and when a turn is over. Knows the
dialect, and of what lies behind only that streams can be opened and what the models are called. A client's fault is
answered by an `error` event and the end of its connection; nothing that was heard is lost to the others.

A turn is one question and one answer: `audio-start`, chunks, `audio-stop`, and exactly one `transcript`, in which all
utterances are joined. It is over

- with `requires_external_vad: true` at `audio-stop`: the client hears where speech ends;
- with `false` then too, or as soon as all that was said has its final, whether the client stops sending or not. And
  when nobody speaks, or nobody stops, for too long. The client is told meanwhile where speech begins and stops.

What a client still sends of a turn that was answered early is not listened to: it has taken the first transcript.

A notice that the audio has the wrong form goes to the log alone: the protocol has no word for it but `error`, which
ends a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from daemon.common.errors import Fault
from daemon.common.metrics import Metrics
from daemon.common.version import our_version
from daemon.core.gateway import Gateway
from daemon.core.stream import Stream
from daemon.dialects import wyoming as dialect
from daemon.endpoints.limits import CapacityLimiter, ConnectionLimiter, LimitedConnection, RateLimiter, Readers
from daemon.settings.schema import WyomingSettings
from streaming.events import Audio, Final, Notice, Start, Stop

_log = logging.getLogger(__name__)

_READ = 65536
_BACKLOG = 100


class Wyoming:
    """Serves the clients of the port.

    Args:
        settings: those of the port.
        send_timeout: seconds that a client may take for what it is told.
        gateway: what lies behind the port.
        metrics: count clients and faults.
        connections: counts them all.
        pace: makes a limiter for each client's messages.

    Attributes:
        address: host and port, once it listens.
    """

    def __init__(
        self,
        settings: WyomingSettings,
        send_timeout: float,
        gateway: Gateway,
        metrics: Metrics,
        connections: ConnectionLimiter,
        pace: Callable[[], RateLimiter],
    ) -> None:
        self.connections = connections
        self.pace = pace
        self.address = ("", 0)
        self.settings = settings
        self.send_timeout = send_timeout
        self.gateway = gateway
        self.readers = Readers()
        self._metrics = metrics
        self._slots = CapacityLimiter(settings.max_clients, "places for Wyoming clients")
        self._listener: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Start to listen for Wyoming clients.

        Raises:
            OSError: the address is taken or not ours.
        """
        self._listener = await asyncio.start_server(
            self._accept, self.settings.host, self.settings.port, limit=_READ, backlog=_BACKLOG
        )
        self.address = self._listener.sockets[0].getsockname()[:2]

    def stop_accepting(self) -> None:
        """Accept no new connections. Turns hear what is on its way, and are answered."""
        if self._listener is not None:
            self._listener.close()
        self.readers.stop()

    async def wait_closed(self) -> None:
        """Wait until every turn is answered, and every connection has ended."""
        if self._clients:
            await asyncio.wait(self._clients)

    async def refuse(self, connection: _Connection, fault: Fault) -> None:
        self._metrics.client_errors.labels(fault.code).inc()
        _log.info("%s: %s: %s", connection.peer, fault.code, fault.message)
        await connection.send(dialect.error(fault.code, fault.message))

    def too_slow(self, peer: str) -> None:
        self._metrics.subscribers_dropped.inc()
        _log.info("%s reads too slowly: disconnected", peer)

    # asyncio would make a task of a coroutine itself, but not let us wait for it.
    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self)
        limited = self.connections.enter(connection.address, lambda _: writer.transport.abort())
        if limited is None:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(connection, limited))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, connection: _Connection, limited: LimitedConnection) -> None:
        self._metrics.wyoming_clients.inc()
        try:
            with self._slots, limited.being_served():
                await _Conversation(self, connection).run()
        except Fault as fault:
            await self.refuse(connection, fault)
        except Exception:
            _log.exception("a Wyoming connection's handler failed")
            self._metrics.errors.labels("internal").inc()
        finally:
            await connection.close()
            limited.left()
            self._metrics.wyoming_clients.dec()


class _Connection:
    """A client's socket. Sending never fails: that the client has gone is noticed by reading."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener: Wyoming) -> None:
        peer = writer.get_extra_info("peername")
        self.address: str | None = peer[0] if peer else None
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "a client that left"
        self._reader = reader
        self._writer = writer
        self._listener = listener

    async def read(self) -> bytes:
        """Return what has come; b"" when the client has said all."""
        try:
            return await self._reader.read(_READ)
        except OSError:
            return b""

    async def send(self, data: bytes) -> None:
        if not data or self._writer.is_closing():
            return
        try:
            self._writer.write(data)
            async with asyncio.timeout(self._listener.send_timeout):
                await self._writer.drain()
        except TimeoutError:
            self.abort()
        except OSError:
            pass

    def abort(self) -> None:
        self._listener.too_slow(self.peer)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close so that what was sent arrives: to close on a client that still sends would take it back."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._listener.send_timeout):
                if self._writer.can_write_eof() and not self._writer.is_closing():
                    self._writer.write_eof()
                while await self.read():
                    pass
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._listener.send_timeout):
                await self._writer.wait_closed()


class _Conversation:
    """One client, from its first byte to the answer of its last turn."""

    def __init__(self, listener: Wyoming, connection: _Connection) -> None:
        self._listener = listener
        self._settings = listener.settings
        self._connection = connection
        self._decoder = dialect.WyomingDecoder(ends_turns=not self._settings.requires_external_vad)
        self._pace = listener.pace()
        self._turn: _Turn | None = None

    async def run(self) -> None:
        """Serve the client until it or the service ends it. What was said becomes final, and is answered."""
        try:
            await self._listen()
            await self._end_turn()
        finally:
            if self._turn is not None:
                self._turn.close()

    async def _listen(self) -> None:
        try:
            async with self._listener.readers.reading():
                await self._converse()
        except TimeoutError:
            pass  # the service stops
        except Fault as fault:
            if self._turn is not None:
                self._turn.answer.failed = True  # its finals are made for the others
            await self._listener.refuse(self._connection, fault)
        except Exception as error:
            if self._turn is None:
                raise
            _log.exception("a stream failed")
            self._turn.broke(error)

    async def _converse(self) -> None:
        while (message := await self._next()) is not None:
            turn = self._turn  # the message may end it, and only its end tell that it has failed
            match message:
                case dialect.Describe():
                    await self._describe()
                case dialect.Ping(text):
                    await self._connection.send(dialect.pong(text))
                case dialect.Transcribe(model):
                    await self._check_model(model)
                case Start():
                    await self._end_turn()
                    await self._begin_turn(message)
                case Audio():
                    await self._hear(message)
                case Stop():
                    await self._end_turn()
            if turn is not None and turn.answer.failed:
                return

    async def _next(self) -> dialect.WyomingMessage | None:
        """Return the next message; None when the client has said all, or nothing for too long."""
        await self._pace.wait()
        try:
            async with asyncio.timeout(self._settings.timeout):
                while (message := self._decoder.next()) is None:
                    data = await self._connection.read()
                    if not data:
                        return None
                    self._decoder.feed(data)
                self._pace.charge(self._decoder.parsed)
                return message
        except TimeoutError:
            if self._decoder.halfway:
                seconds = f"{self._settings.timeout:g} s"
                raise Fault("timeout", f"half a message arrived, and nothing more for {seconds}", fatal=True) from None
            return None

    async def _describe(self) -> None:
        model = await self._listener.gateway.wait_model()
        description = f"checked by {model.teacher}" if model.teacher else "without a teacher"
        await self._connection.send(
            dialect.info(
                our_version(),
                model.student,
                description,
                model.languages,
                requires_external_vad=self._settings.requires_external_vad,
            )
        )

    async def _check_model(self, name: str | None) -> None:
        if name is None:
            return
        model = await self._listener.gateway.wait_model()
        if name != model.student:
            raise Fault("unknown_model", f"the model here is {model.student}: request that one or none", fatal=True)

    async def _begin_turn(self, start: Start) -> None:
        stream = await self._listener.gateway.open_stream(replace(start, source=self._settings.source))
        self._turn = _Turn(stream, start, self._settings, self._connection)

    async def _hear(self, audio: Audio) -> None:
        if self._turn is not None:
            await self._turn.hear(audio)
            if self._turn.answered:
                await self._end_turn()

    async def _end_turn(self) -> None:
        if self._turn is not None:
            await self._turn.end()
            self._turn = None  # not before: the service's end may come between, and then this is called again


class _Turn:
    """One stream and its answer.

    Attributes:
        answered: whether it is over, and the rest of its audio is not asked for.
    """

    def __init__(self, stream: Stream, start: Start, settings: WyomingSettings, connection: _Connection) -> None:
        self.answer = dialect.Answer(ends_turns=not settings.requires_external_vad)
        self.answered = False
        self._stream = stream
        self._settings = settings
        self._connection = connection
        self._closed = False
        self._bytes = 0
        self._bytes_per_second = 2 * start.sample_rate * start.channels
        self._writer = asyncio.create_task(self._write())

    async def hear(self, audio: Audio) -> None:
        await self._stream.receive(audio)
        self._bytes += len(audio.data)
        await self._end_if_over()

    async def end(self) -> None:
        """Take no more audio, and return when the answer is out. May be interrupted, and called again."""
        await self._stream.finish()
        self.close()
        await asyncio.wait({self._writer})
        self._writer.result()

    def close(self) -> None:
        """Leave, answered or not."""
        if not self._closed:
            self._closed = True
            self._stream.close()

    def broke(self, error: Exception) -> None:
        self._stream.broke(error)

    async def _write(self) -> None:
        outbox = self._stream.outbox
        async for event in outbox:
            await self._connection.send(self.answer.encode(event))
            if isinstance(event, Notice):
                _log.warning("%s: %s (not sent to the client: wyoming)", event.source, event.message)
            if isinstance(event, Final):
                await self._end_if_over()
        if outbox.overflowed:
            self._connection.abort()

    async def _end_if_over(self) -> None:
        if self._is_over():
            await self._stream.caught_up()
        if self._is_over():
            self.answered = True
            await self._stream.finish()

    def _is_over(self) -> bool:
        settings = self._settings
        if settings.requires_external_vad or self.answered:
            return False
        seconds = self._bytes / self._bytes_per_second
        waited = bool(self.answer.text) or seconds >= settings.no_speech
        return seconds >= settings.longest or (waited and self._stream.settled)
