"""Files that are sent to be transcribed, on the shared port; and secrets for browsers.

Owns the requests with bodies (`POST /v1/audio/transcriptions`, `POST /v1/listen`): reading a form or a file within its
limit, the stream that its audio becomes, and the answer, whole or as it comes; and the question for a secret. The port
(`Server`) decides who may come in, how many, and when the service stops. Knows the dialects of files, and of what lies
behind only that streams can be opened.

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
import hashlib
import logging
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
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
from daemon.common.sources import channel_names, check_name
from daemon.core.audio_files import AudioFile, FileError, RawFile
from daemon.core.gateway import Gateway
from daemon.core.hub import Outbox
from daemon.core.stream import Stream
from daemon.dialects import deepgram, deepgram_files, openai_files, openai_secrets
from daemon.dialects.advice import AdviceLog
from daemon.dialects.codec import Handshake
from daemon.dialects.file_dialect import FileDialect
from daemon.dialects.openai_realtime import SOURCE, tokens
from daemon.dialects.transcript import Transcript
from daemon.endpoints.auth import handshake_of, is_preflight
from daemon.endpoints.incoming import incoming_of, limited_of
from daemon.endpoints.limits import TURN, Readers
from daemon.endpoints.websocket import Server
from streaming.events import Endpointing, Error, Final, Notice, Start
from streaming.vocabulary import MOST_PHRASES

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_Answer = Callable[[web.Request, Rights], Awaitable[web.StreamResponse]]

_NAME = "the file"
"""What it is called in messages."""

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
        dialects: those that are spoken.
        max_upload: the bytes that a request may have.
        send_timeout: seconds that a client may take for a piece of an answer.
        metrics: count faults.
    """

    def __init__(
        self,
        server: Server,
        gateway: Gateway,
        dialects: Sequence[FileDialect],
        max_upload: int,
        send_timeout: float,
        metrics: Metrics,
    ) -> None:
        self._server = server
        self._gateway = gateway
        self._dialects = dialects
        self._max_upload = max_upload
        self._send_timeout = send_timeout
        self._metrics = metrics
        app = web.Application(client_max_size=max_upload)
        answers: dict[str, _Answer] = {
            openai_files.DIALECT.name: self._answer_form,
            deepgram_files.DIALECT.name: self._answer_recording,
        }
        for each in dialects:
            app.router.add_post(each.path + "{slashes:/*}", partial(self._transcribe, each, answers[each.name]))
        if openai_files.DIALECT in dialects:
            app.router.add_post(openai_secrets.PATH + "{slashes:/*}", self._issue_secret)
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
        refused = None if is_preflight(request.method, handshake) else self._server.refused(handshake)
        if refused is not None:
            return self._refusal(request, *refused)
        page = self._server.answer(request.method, handshake)
        if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
            paths = " or ".join(each.path for each in self._dialects)
            fault = Fault("method_not_allowed", f"only GET and HEAD are allowed; send files to {paths}")
            refusal = self._refusal(request, self._dialects[0], fault)
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

    async def _transcribe(self, dialect: FileDialect, answer: _Answer, request: web.Request) -> web.StreamResponse:
        try:
            with limited_of(request.transport).being_served():
                handshake = _handshake(request)
                rights = self._server.guard.authorise(handshake, dialect.tokens(handshake))
                with self._server.slots:
                    return await answer(request, rights)
        except Fault as fault:
            return self._refusal(request, dialect, fault)
        except (HttpProcessingError, ClientError, ValueError) as error:
            reason = f"the request cannot be read: {quoted(str(error), 200)}"
            return self._refusal(request, dialect, Fault("bad_form", reason))
        except OSError:
            raise  # the client has gone
        except Exception:
            _log.exception("a file's handler failed")
            reason = "an internal error occurred; see the service's log"
            return self._refusal(request, dialect, Fault("internal", reason))

    def _warn(self, request: web.Request, warnings: Sequence[str]) -> None:
        for warning in warnings:
            _log.info("%s: %s", request.remote or "a client that left", warning)

    # --- OpenAI's forms --------------------------------------------------------------------------------------------

    async def _answer_form(self, request: web.Request, rights: Rights) -> web.StreamResponse:
        source = rights.check_send(request.query.get("source") or SOURCE)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as upload:
            fields = await self._received(self._read_form(request, upload))
            asked = openai_files.wanted(fields)
            with contextlib.closing(await _opened(upload)) as file:
                start = replace(
                    file.start(partials=False, words=asked.word_times),
                    source=source,
                    language=asked.language,
                    languages=asked.languages,
                    vocabulary=asked.vocabulary,
                    long_form=self._gateway.long_form,
                )
                heard = _Heard(await self._gateway.open_stream(start), file)
                async with heard.hearing(self._server.readers) as finals:
                    if asked.stream:
                        return await self._stream(request, asked, heard, finals)
                    all_finals = [final async for final in finals]
                heard.check()
                warnings = [*asked.warnings, *heard.warnings]
                self._warn(request, warnings)
                body = await asyncio.to_thread(openai_files.answer, all_finals, file.seconds, asked, warnings)
            headers = {"Content-Type": openai_files.FORMATS[asked.response_format], **openai_files.headers(warnings)}
            return web.Response(text=body, headers=headers)

    async def _stream(
        self, request: web.Request, asked: openai_files.Wanted, heard: _Heard, finals: AsyncIterator[Final]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        sent: list[Final] = []
        transcript = Transcript()
        try:
            async for final in finals:
                await self._send(response, openai_files.delta(transcript.final(final.text)))
                sent.append(final)
            heard.check()
        except Fault as fault:
            self._note(request, fault)
            await self._send(response, openai_files.stream_error(fault))
        else:
            warnings = [*asked.warnings, *heard.warnings]
            self._warn(request, warnings)
            await self._send(response, openai_files.done(sent, heard.file.seconds, asked, warnings))
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

    # --- Deepgram's files ------------------------------------------------------------------------------------------

    async def _answer_recording(self, request: web.Request, rights: Rights) -> web.StreamResponse:
        created = datetime.now(UTC)
        asked = deepgram_files.parse(_handshake(request).query)
        source = check_name(asked.start.source or deepgram.SOURCE)
        if not asked.start.separate:
            rights.check_send(source)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as upload:
            digest = await self._received(self._read_recording(request, upload))
            headerless = asked.headerless and not deepgram_files.is_container(_beginning(upload))
            with contextlib.closing(await _opened(upload, asked.start if headerless else None)) as file:
                start = replace(
                    file.start(partials=False, words=True),
                    source=source,
                    language=asked.start.language,
                    languages=asked.start.languages,
                    endpointing=asked.start.endpointing,
                    vocabulary=asked.start.vocabulary,
                    separate=asked.start.separate and file.channels > 1,
                    # Who says how long a pause ends an utterance wants utterances.
                    long_form=self._gateway.long_form if asked.start.endpointing == Endpointing() else "vad",
                )
                with self._places(start, rights):
                    stream = await self._gateway.open_stream(start)
                    heard = _Heard(stream, file)
                    async with heard.hearing(self._server.readers) as finals:
                        all_finals = [final async for final in finals]
                heard.check()
                self._warn(request, heard.warnings)
                AdviceLog(deepgram_files.DIALECT.name).say(asked.advice)
                models = stream.greeting
                recording = deepgram_files.Recording(
                    sha256=digest,
                    seconds=file.seconds,
                    channels=file.channels,
                    sources=stream.sources,
                    headerless=headerless,
                    student=models.student,
                    teacher=models.teacher,
                    created=created,
                )
                # The words of a day are megabytes: others have their turn meanwhile.
                body, headers = await asyncio.to_thread(
                    deepgram_files.answer, all_finals, recording, asked, heard.notices
                )
            return web.Response(text=body, headers=headers)

    @contextlib.contextmanager
    def _places(self, start: Start, rights: Rights) -> Iterator[None]:
        """Take a slot for each channel that is heard by itself, beside the one of the file, for a block.

        Raises:
            Fault: `forbidden`, `full`.
        """
        source = start.source or deepgram.SOURCE
        for name in channel_names(source, start.channels) if start.separate else (source,):
            rights.check_send(name)
        more = start.channels - 1 if start.separate else 0
        if more:
            self._server.slots.take(more)
        try:
            yield
        finally:
            if more:
                self._server.slots.give_back(more)

    async def _read_recording(self, request: web.Request, upload: IO[bytes]) -> str:
        """Read a body that is a file into `upload`, and return its SHA-256.

        Raises:
            Fault: `message_too_big`, `bad_form`, `missing_file`, `unsupported`.
        """
        kind = request.content_type
        if kind == "application/json" or kind.endswith("+json"):
            raise Fault("unsupported", "this service fetches nothing from a url: send the audio itself as the body")
        if kind.startswith("multipart/"):
            raise Fault("bad_form", "send the audio itself as the body, and not a form with a file")
        self._check_body(request)
        digest = hashlib.sha256()
        body = _Body(request.content, self._max_upload)
        with incoming_of(request.transport).watched(body.came):
            while chunk := await body.patiently(body.read(_CHUNK)):
                digest.update(chunk)
                upload.write(chunk)
        if not upload.tell():
            raise Fault("missing_file", "the request has no body: send the audio in it")
        upload.seek(0)
        return digest.hexdigest()

    # --- secrets ---------------------------------------------------------------------------------------------------

    async def _issue_secret(self, request: web.Request) -> web.StreamResponse:
        """Return a secret with the rights of the token that asks. A secret makes no secrets, or it would never end."""
        guard = self._server.guard
        try:
            with limited_of(request.transport).being_served():
                handshake = _handshake(request)
                rights = guard.authorise(handshake, tokens(handshake), by_token=True)
                seconds = openai_secrets.wanted(await self._read_question(request))
                ends = int(time.time()) + seconds
                text = openai_secrets.answer(guard.secrets.issue(rights, seconds, guard.settings.tokens), ends)
        except Fault as fault:
            return self._refusal(request, openai_files.DIALECT, fault)
        headers = {"Content-Type": openai_files.FORMATS["json"], "Cache-Control": "no-store"}
        return web.Response(text=text, headers=headers)

    async def _read_question(self, request: web.Request) -> bytes:
        """Read a body that is no form.

        Raises:
            Fault: `message_too_big`, `timeout`, `shutting_down`, `bad_form`.
        """
        body = _Body(request.content, openai_secrets.LARGEST)

        async def whole() -> bytes:
            read = b""
            while chunk := await body.patiently(body.read(_CHUNK)):
                read += chunk
            return read

        try:
            with incoming_of(request.transport).watched(body.came):
                return await self._received(whole())
        except (HttpProcessingError, ClientError) as error:
            raise Fault("bad_form", f"the request cannot be read: {quoted(str(error), 200)}") from None

    # --- bodies ----------------------------------------------------------------------------------------------------

    async def _received(self, reading: Awaitable[_T]) -> _T:
        """Wait for `reading`, which reads a body.

        Raises:
            Fault: `shutting_down`.
        """
        try:
            async with self._server.readers.reading():
                return await reading
        except TimeoutError:
            raise Fault("shutting_down", "the service is stopping: send the file again later") from None

    def _check_body(self, request: web.Request) -> None:
        """Check what is said of a body before any of it is read.

        Raises:
            Fault: `message_too_big`, `bad_form`.
        """
        if (encoding := request.headers.get("Content-Encoding", "identity")).strip().lower() != "identity":
            raise Fault("bad_form", f"send the file without Content-Encoding, got {quoted(encoding)}")
        if (request.content_length or 0) > self._max_upload:
            raise _too_big(self._max_upload)

    async def _read_form(self, request: web.Request, upload: IO[bytes]) -> list[tuple[str, str]]:
        """Read the form, and return its fields. The file goes into `upload`.

        Raises:
            Fault: `message_too_big`, `bad_form`, `missing_file`.
        """
        if not request.content_type.startswith("multipart/"):
            raise Fault("bad_form", "send a form: multipart/form-data with the field file")
        self._check_body(request)
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
        if not upload.tell():
            raise Fault("missing_file", "the form has no field file, or nothing is in it: send the audio in it")
        upload.seek(0)
        return fields

    # --- refusals --------------------------------------------------------------------------------------------------

    def _refusal(self, request: web.Request, dialect: FileDialect, fault: Fault) -> web.Response:
        self._note(request, fault)
        made = dialect.reject(fault)
        headers = {**made.headers, "Cache-Control": "no-store"}
        if made.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "POST"
        if made.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            headers["Retry-After"] = "10"
        response = web.Response(status=made.status, body=made.body, headers=headers)
        response.force_close()  # what is still to come of the body is not read
        return response

    def _note(self, request: web.Request, fault: Fault) -> None:
        self._metrics.client_errors.labels(fault.code).inc()
        _log.info("%s: %s: %s", request.remote or "a client that left", fault.code, fault.message)


class _Heard:
    """The stream that a file becomes.

    Attributes:
        notices: what its client should know of the file although there is an answer; complete at the end.
    """

    def __init__(self, stream: Stream, file: AudioFile | RawFile) -> None:
        self.file = file
        self.notices: list[Notice] = []
        self._stream = stream
        self._fault: Fault | None = None

    @property
    def warnings(self) -> list[str]:
        """The messages of the notices."""
        return [notice.message for notice in self.notices]

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
                        self._notice("too_long", f"{self.file.name}: only the first {_LONGEST / 3600:g} h were heard")
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
            self._notice("damaged", f"{self.file.name} is damaged: {missing}")
        else:
            self._fault = Fault("bad_audio", f"{self.file.name} is damaged: {missing}")

    def _notice(self, code: str, message: str) -> None:
        self.notices.append(Notice(code, message, self._stream.source))

    async def _finals(self, outbox: Outbox) -> AsyncIterator[Final]:
        async for event in outbox:
            match event:
                case Final():
                    yield event
                case Notice(code=code, message=message):
                    self._notice(code, f"{self.file.name}: {message}")
                case Error(code=code, message=message):
                    self._fault = self._fault or Fault(code, message)
        if outbox.overflowed:
            self._fault = Fault("internal", "the client reads the answer too slowly")


class _Body:
    """A request's body, with limits. It can be asked as the library's reader of forms asks.

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
            raise Fault("timeout", f"half a request arrived, and nothing more for {_IDLE:g} s") from None
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
            raise Fault("timeout", f"the request arrives too slowly: send at least {_SLOWEST} bytes a second")
        if now - self._paused > TURN:
            await asyncio.sleep(0)
            self._paused = self._clock()
        return data

    def _check_size(self) -> None:
        if max(self._content.total_bytes, self._raw) > self._most:
            raise _too_big(self._most)


def _too_big(most: int) -> Fault:
    return Fault("message_too_big", f"such a request may have at most {most} bytes (a file: dialects.max_upload)")


async def _opened(upload: IO[bytes], start: Start | None = None) -> AudioFile | RawFile:
    """Open a file that was sent; with `start`, of samples without a header that it describes.

    Raises:
        Fault: `bad_audio`.
    """
    try:
        return await AudioFile.opened(_NAME, upload) if start is None else RawFile(_NAME, upload, start)
    except FileError as error:
        raise Fault("bad_audio", str(error)) from None


def _beginning(upload: IO[bytes]) -> bytes:
    beginning = upload.read(16)
    upload.seek(0)
    return beginning


async def _chunks(body: _Body, part: BodyPartReader, most: int) -> AsyncIterator[bytes]:
    size = 0
    while chunk := await body.patiently(part.read_chunk(_CHUNK)):
        size += len(chunk)
        if size > most:
            raise Fault("bad_form", f"a field may have at most {most} bytes")
        yield chunk


def _handshake(request: web.Request) -> Handshake:
    return handshake_of(request.raw_path, request.headers.items())
