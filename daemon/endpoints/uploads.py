"""Files that are sent to be transcribed: `POST /v1/audio/transcriptions` on the shared port.

Owns the requests with bodies: reading a form within its limit, the stream that its audio becomes, and the answer, whole
or as it comes. The port (`Server`) decides who may come in, how many, and when the service stops. Knows OpenAI's words
for files, and of what lies behind only that streams can be opened.

The websockets library that listens reads no bodies, so aiohttp does, on the same port: the listener hands it each
connection that begins with a POST. There is one port because clients have one address for both (`base_url`), and
aiohttp because multipart forms, `Expect: 100-continue` and chunked bodies are a library's work.

A file takes a slot among the streams, and its utterances wait in the same queue as everybody's, one at a time. So it is
transcribed as fast as the machine allows, and no live final waits longer than for one more row in a batch. A client
that leaves ends its stream. When the service stops, what was heard of a file becomes final for the others, and its
client is told to come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import IO, TypeVar, cast

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    ClientError,
    MultipartReader,
    StreamReader,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError

from daemon.common.client_input import quoted
from daemon.common.errors import Fault
from daemon.common.metrics import Metrics
from daemon.common.permissions import Rights
from daemon.core.audio_files import AudioFile, FileError
from daemon.core.gateway import Gateway
from daemon.core.hub import Outbox
from daemon.core.stream import Stream
from daemon.dialects import openai_files as dialect
from daemon.dialects.codec import Handshake
from daemon.dialects.openai_realtime import SOURCE, tokens
from daemon.dialects.transcript import Transcript
from daemon.endpoints.auth import handshake_of, is_preflight
from daemon.endpoints.incoming import incoming_of, limited_of
from daemon.endpoints.limits import TURN, Readers
from daemon.endpoints.websocket import Server
from streaming.events import Error, Final, Notice
from streaming.vocabulary import MOST_PHRASES

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_CHUNK = 65536
_IN_MEMORY = 1024 * 1024
"""Bytes of a file that need no disk."""

_LONGEST = 24 * 3600
"""Seconds of one file. A few megabytes can hold years of silence, and each has its slot until the end."""

_FIELD = 16 * 1024
_MOST_FIELDS = 64 + MOST_PHRASES
_MOST_TEXT = 512 * 1024
"""Bytes of all fields beside the file: room for as many phrases as there may be, in any script, with their names."""
_MOST_LINES = 16 * _MOST_FIELDS
"""Of a form, beside what is in its fields: boundaries, headers, and what nobody asked for before the first of them."""
_IDLE = 30.0
"""Seconds within which more of a body must come, and for which a connection without a request is kept."""
_SLOWEST = 4096
"""Bytes a second that a body must bring in the long run: it has a slot while it comes."""
_IN_HAND = 16 * 1024
"""Bytes of a body that the library may have ready before it is asked for any, and sixteen times fewer chunks, however
small: it gives all of them at once, and joins those of a line one by one."""
_LINGER = 2.0
"""Seconds for which the rest of a body is passed over, so that its client can read why."""


class Uploads:
    """Answers the requests with files.

    Args:
        server: the port that they come by.
        gateway: opens their streams.
        max_upload: the bytes that a request may have.
        send_timeout: seconds that a client may take for a piece of an answer.
        metrics: count faults.
    """

    def __init__(
        self, server: Server, gateway: Gateway, max_upload: int, send_timeout: float, metrics: Metrics
    ) -> None:
        self._server = server
        self._gateway = gateway
        self._max_upload = max_upload
        self._send_timeout = send_timeout
        self._metrics = metrics
        app = web.Application(client_max_size=max_upload)
        app.router.add_post(dialect.PATH + "{slashes:/*}", self._transcribe)
        app.router.add_route("*", "/{path:.*}", self._other)
        app.on_response_prepare.append(self._share)
        # A client that leaves takes its stream with it. What it asks for is in no log.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, keepalive_timeout=_IDLE, shutdown_timeout=1.0,
            lingering_time=_LINGER, logger=self._make_logger(), read_bufsize=_IN_HAND,
            # Nothing is unpacked: a few bytes could become any number of them, and be counted too late.
            auto_decompress=False,
        )  # fmt: skip

    def _make_logger(self) -> logging.Logger:
        """Return a logger for the library.

        What is not HTTP is a client's fault like any other. It is counted, and does not fill the log with what the
        client sent.
        """

        def is_ours(record: logging.LogRecord) -> bool:
            error = record.exc_info[1] if record.exc_info else None
            if isinstance(error, HttpProcessingError):
                self._metrics.client_errors.labels("bad_request").inc()
                return False
            return True

        logger = logging.Logger(f"{__name__}.aiohttp")  # of this port alone
        logger.parent = _log
        logger.addFilter(is_ours)
        return logger

    async def open(self) -> None:
        # What a part's header is wrong about is its client's, and not worth a line of the log each time.
        warnings.filterwarnings("ignore", category=BadContentDispositionHeader)
        warnings.filterwarnings("ignore", category=BadContentDispositionParam)
        await self._runner.setup()

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol for one connection."""
        server = self._runner.server
        assert server is not None, "open it first"
        return server()

    @property
    def connections(self) -> list[web.RequestHandler]:
        return self._runner.server.connections if self._runner.server is not None else []

    async def close(self) -> None:
        """End every connection, without waiting for an answer that has not begun."""
        await self._runner.cleanup()

    # --- requests --------------------------------------------------------------------------------------------------

    async def _other(self, request: web.Request) -> web.StreamResponse:
        limited_of(request.transport).ask()
        handshake = _handshake(request)
        if handshake.path == dialect.PATH and not is_preflight(request.method, handshake):
            refusal = self._refusal(request, Fault("method_not_allowed", "send files with POST"))
            refusal.headers["Allow"] = "POST"
            return refusal
        page = self._server.answer(request.method, handshake)
        if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
            fault = Fault("method_not_allowed", f"only GET and HEAD are allowed; send files to {dialect.PATH}")
            refusal = self._refusal(request, fault)
            refusal.headers.update(page.headers)
            return refusal
        headers = (
            page.headers
            if page.status == HTTPStatus.NO_CONTENT
            else {"Content-Type": page.content_type, **page.headers}
        )
        return web.Response(status=page.status, body=page.body or None, headers=headers)

    async def _share(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages of others that may read an answer do so, whatever is answered, refusals too."""
        response.headers.update(self._server.guard.sharing(_handshake(request)))

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        try:
            with limited_of(request.transport).being_served():
                handshake = _handshake(request)
                rights = self._server.guard.authorise(handshake, tokens(handshake))
                with self._server.slots:
                    return await self._answer(request, rights)
        except Fault as fault:
            return self._refusal(request, fault)
        except (HttpProcessingError, ClientError, ValueError) as error:
            return self._refusal(request, Fault("bad_form", f"the form cannot be read: {quoted(str(error), 200)}"))
        except OSError:
            raise  # the client has gone
        except Exception:
            _log.exception("a file's handler failed")
            return self._refusal(request, Fault("internal", "an internal error occurred; see the service's log"))

    async def _answer(self, request: web.Request, rights: Rights) -> web.StreamResponse:
        source = rights.check_send(request.query.get("source", SOURCE))
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as upload:
            try:
                async with self._server.readers.reading():
                    fields = await self._read_form(request, upload)
            except TimeoutError:
                raise Fault("shutting_down", "the service is stopping: send the file again later") from None
            asked = dialect.wanted(fields)
            try:
                file = await AudioFile.opened("the file", upload)
            except FileError as error:
                raise Fault("bad_audio", str(error)) from None
            with contextlib.closing(file):
                start = replace(
                    file.start(partials=False, words=asked.word_times),
                    source=source,
                    language=asked.language,
                    languages=asked.languages,
                    vocabulary=asked.vocabulary,
                )
                heard = _Heard(await self._gateway.open_stream(start), file)
                heard.warnings += asked.warnings
                async with heard.hearing(self._server.readers) as finals:
                    if asked.stream:
                        return await self._stream(request, asked, heard, finals)
                    all_finals = [final async for final in finals]
                heard.check()
                self._warn(request, heard)
                body = dialect.answer(all_finals, file.seconds, asked, heard.warnings)
            headers = {"Content-Type": dialect.FORMATS[asked.response_format], **dialect.headers(heard.warnings)}
            return web.Response(text=body, headers=headers)

    def _warn(self, request: web.Request, heard: _Heard) -> None:
        for warning in heard.warnings:
            _log.info("%s: %s", request.remote or "a client that left", warning)

    async def _stream(
        self, request: web.Request, asked: dialect.Wanted, heard: _Heard, finals: AsyncIterator[Final]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        sent: list[Final] = []
        transcript = Transcript()
        try:
            async for final in finals:
                await self._send(response, dialect.delta(transcript.final(final.text)))
                sent.append(final)
            heard.check()
        except Fault as fault:
            self._note(request, fault)
            await self._send(response, dialect.stream_error(fault))
        else:
            self._warn(request, heard)
            await self._send(response, dialect.done(sent, heard.file.seconds, asked, heard.warnings))
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, text: str) -> None:
        """Write a piece of the answer to the client.

        Raises:
            ConnectionError: the client has gone, or does not take it in.
        """
        try:
            async with asyncio.timeout(self._send_timeout):
                await response.write(text.encode())
        except TimeoutError:
            self._metrics.subscribers_dropped.inc()
            raise ConnectionResetError("it reads too slowly") from None

    # --- forms -----------------------------------------------------------------------------------------------------

    async def _read_form(self, request: web.Request, upload: IO[bytes]) -> list[tuple[str, str]]:
        """Read the form, and return its fields. The file goes into `upload`.

        Raises:
            Fault: `message_too_big`, `bad_form`, `missing_file`.
        """
        if not request.content_type.startswith("multipart/"):
            raise Fault("bad_form", "send a form: multipart/form-data with the field file")
        if (encoding := request.headers.get("Content-Encoding", "identity")).strip().lower() != "identity":
            raise Fault("bad_form", f"send the form without Content-Encoding, got {quoted(encoding)}")
        if (request.content_length or 0) > self._max_upload:  # before any of it is read
            raise _too_big(self._max_upload)
        try:
            body = _Body(request.content, self._max_upload)
            with incoming_of(request.transport).watched(body.came):
                return await self._read_parts(body, request.headers, upload)
        except (AssertionError, RuntimeError, LookupError) as error:
            # The library's words for what it did not foresee; the body is the client's all the same.
            raise Fault("bad_form", f"the form cannot be read: {quoted(str(error), 200)}") from None

    async def _read_parts(self, body: _Body, headers: Mapping[str, str], upload: IO[bytes]) -> list[tuple[str, str]]:
        fields: list[tuple[str, str]] = []
        found = False
        room = _MOST_TEXT
        parts = MultipartReader(headers, cast(StreamReader, body))
        while (part := await body.patiently(parts.next())) is not None:
            if isinstance(part, MultipartReader):
                raise Fault("bad_form", "the form contains another form: send fields and one file")
            if part.name == "file":
                if found:
                    raise Fault("bad_form", "send one file at a time")
                found = True
                async for chunk in _chunks(body, part, self._max_upload):
                    upload.write(chunk)
            else:
                value = b"".join([chunk async for chunk in _chunks(body, part, _FIELD)])
                fields.append((part.name or "", value.decode("utf-8", "replace")))
                room -= len(value) + len(fields[-1][0])
                if room < 0:
                    raise Fault("bad_form", f"the fields beside the file may have at most {_MOST_TEXT} bytes in all")
            if len(fields) > _MOST_FIELDS:
                raise Fault("bad_form", f"a form may have at most {_MOST_FIELDS} fields")
        if not found:
            raise Fault("missing_file", "the form has no field file: send the audio in it")
        upload.seek(0)
        return fields

    # --- refusals --------------------------------------------------------------------------------------------------

    def _refusal(self, request: web.Request, fault: Fault) -> web.Response:
        self._note(request, fault)
        status, body = dialect.error(fault)
        headers = {"Content-Type": dialect.FORMATS["json"], "Cache-Control": "no-store"}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status in (429, 503):
            headers["Retry-After"] = "10"
        response = web.Response(status=status, text=body, headers=headers)
        response.force_close()  # what is still to come of the body is not read
        return response

    def _note(self, request: web.Request, fault: Fault) -> None:
        self._metrics.client_errors.labels(fault.code).inc()
        _log.info("%s: %s: %s", request.remote or "a client that left", fault.code, fault.message)


class _Heard:
    """The stream that a file becomes.

    Attributes:
        warnings: what its client should know of the file although there is an answer; complete at the end.
    """

    def __init__(self, stream: Stream, file: AudioFile) -> None:
        self.file = file
        self.warnings: list[str] = []
        self._stream = stream
        self._fault: Fault | None = None

    @contextlib.asynccontextmanager
    async def hearing(self, readers: Readers) -> AsyncIterator[AsyncIterator[Final]]:
        """Hear the file during a block, which gets the finals as they come."""
        hearing = asyncio.create_task(self._hear(readers))
        try:
            yield self._finals(self._stream.outbox)
            await hearing
        finally:
            hearing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hearing
            self._stream.close()

    def check(self) -> None:
        """Check that the whole file was heard and has its text.

        Raises:
            Fault: not all of it was heard, or not all that was heard has its text.
        """
        if self._fault is not None:
            raise self._fault

    async def _hear(self, readers: Readers) -> None:
        try:
            async with readers.reading():
                async for audio, _ in self.file.blocks():
                    await self._stream.receive(audio)
                    if self.file.seconds > _LONGEST:
                        self.warnings.append(f"{self.file.name}: only the first {_LONGEST / 3600:g} h were heard")
                        break
                else:
                    self._judge(self.file.missing)
        except TimeoutError:
            self._fault = Fault("shutting_down", "the service is stopping: send the file again later")
        except Exception as error:
            _log.exception("a stream failed")
            self._stream.broke(error)
        await self._stream.finish()
        self._stream.close()

    def _judge(self, missing: str | None) -> None:
        if missing is None:
            return
        if self.file.seconds:
            self.warnings.append(f"{self.file.name} is damaged: {missing}")
        else:
            self._fault = Fault("bad_audio", f"{self.file.name} is damaged: {missing}")

    async def _finals(self, outbox: Outbox) -> AsyncIterator[Final]:
        async for event in outbox:
            match event:
                case Final():
                    yield event
                case Notice(message=message):
                    self.warnings.append(f"{self.file.name}: {message}")
                case Error(code=code, message=message):
                    self._fault = self._fault or Fault(code, message)
        if outbox.overflowed:
            self._fault = Fault("internal", "the client reads the answer too slowly")


class _Body:
    """A request's body, as the library's reader of forms asks for it, with limits.

    All its bytes count, whatever they are, also those of the chunks that it may come in. It must not come too slowly,
    and one that is all there is not read in one go.
    """

    def __init__(self, content: StreamReader, most: int) -> None:
        self._content = content
        self._most = most
        self._clock = asyncio.get_running_loop().time
        self._began = self._paused = self._clock()
        self._lines = 0
        self._raw = content.total_bytes  # of what came before, only the contents are known
        self._waiting: asyncio.Timeout | None = None

    def came(self, size: int) -> None:
        """Count bytes of the connection.

        A reader that waits for contents is told when there were too many bytes, because there may never be any
        contents.
        """
        if self._content.is_eof():
            return  # it belongs to the next request
        self._raw += size
        if self._raw > self._most and self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._clock())

    async def patiently(self, work: Awaitable[_T]) -> _T:
        """Wait for `work`, which reads the body.

        Raises:
            Fault: `timeout`: no more comes. Or see `read`.
        """
        try:
            async with asyncio.timeout(_IDLE) as self._waiting:
                return await work
        except TimeoutError:
            self._check_size()
            raise Fault("timeout", f"half a form arrived, and nothing more for {_IDLE:g} s") from None
        finally:
            self._waiting = None

    async def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes of the body, or all of it if `size` is negative.

        Raises:
            Fault: `message_too_big`, `timeout`.
        """
        return await self._counted(await self._content.read(size))

    async def readline(self, **options: int | None) -> bytes:
        self._lines += 1
        if self._lines > _MOST_LINES:
            raise Fault("bad_form", f"a form may have at most {_MOST_LINES} lines outside its fields")
        return await self._counted(await self._content.readline(**options))

    def at_eof(self) -> bool:
        return self._content.at_eof()

    def unread_data(self, data: bytes) -> None:
        self._content.unread_data(data)

    async def _counted(self, data: bytes) -> bytes:
        self._check_size()
        now = self._clock()
        if now - self._began > _IDLE + self._content.total_bytes / _SLOWEST:
            raise Fault("timeout", f"the form arrives too slowly: send at least {_SLOWEST} bytes a second")
        if now - self._paused > TURN:
            await asyncio.sleep(0)
            self._paused = self._clock()
        return data

    def _check_size(self) -> None:
        if max(self._content.total_bytes, self._raw) > self._most:
            raise _too_big(self._most)


def _too_big(most: int) -> Fault:
    return Fault("message_too_big", f"a request may have at most {most} bytes (dialects.max_upload)")


async def _chunks(body: _Body, part: BodyPartReader, most: int) -> AsyncIterator[bytes]:
    size = 0
    while chunk := await body.patiently(part.read_chunk(_CHUNK)):
        size += len(chunk)
        if size > most:
            raise Fault("bad_form", f"a field may have at most {most} bytes")
        yield chunk


def _handshake(request: web.Request) -> Handshake:
    return handshake_of(request.raw_path, request.headers.items())
