"""The listening port: websockets and a few plain pages.

Owns the sockets, who may come in and how many, the limits on what they send, and how long a peer that does not read is
waited for. Knows the dialect by the path, and of what lies behind only that streams can be opened and events
subscribed to (`Gateway`). Every fault of a client becomes an error event and, when fatal, a close; none becomes a
traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, urlsplit

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConcurrencyError, ConnectionClosed
from websockets.http11 import Request, Response

from daemon.access import Rights, is_local, rights_of
from daemon.config import Server as ServerSettings
from daemon.dialects import native
from daemon.edges import Outbox, Pace, Readers, Seats, Stream, Visitors
from daemon.faults import Fault
from daemon.metrics import Metrics
from daemon.resume import Line, Lines
from daemon.sources import DEFAULT_SOURCE, check_name
from daemon.web import NOTHING, SOURCES, Page, Pages, refusal
from streaming.events import Event, Inbound, Resume, Start, Stop

_log = logging.getLogger(__name__)

STREAM, EVENTS = "/v1/stream", "/v1/events"
METRICS = "/metrics"
"""How much is said, and when, is nobody's business either: it takes a token, whatever sources that is for."""

# What the public name service gives to nobody.
_PRIVATE_NAMES = (".localhost", ".local", ".lan", ".home", ".home.arpa", ".internal", ".localdomain")

_START_GRACE = 1.0
"""Seconds that a client has for its `start`. One that sends nothing gets `ready` then, in case it waits for that."""

_CLOSE_TIMEOUT = 10.0
_TLS_TIMEOUT = 10.0  # the same as the library's own for the handshake after it
_MOST_UNREAD = 1024 * 1024
"""Bytes of answers that a peer may leave unread: events stop far below, see `send_timeout`."""
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_PING_INTERVAL = 20.0
# A pong waits behind the audio that we have not read yet, and we read no faster than we hear: so a long patience
# here, and the kernel's keepalive (below) for peers that are really gone.
_PING_TIMEOUT = 120.0
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


class Gateway(Protocol):
    """What lies behind the port."""

    async def open_stream(self, start: Start) -> Stream:
        """Waits until the engine is warm. Raises: Fault."""

    def subscribe(self, source: str | None, since: int | None, may_read: Callable[[str], bool]) -> Outbox: ...


class Server:
    """send_timeout: seconds that a peer may take to take in one message.

    Attributes:
        listening: set once it does; url is then where.
    """

    def __init__(
        self, settings: ServerSettings, send_timeout: float, gateway: Gateway, pages: Pages, metrics: Metrics
    ) -> None:
        self.listening = asyncio.Event()
        self.url = ""
        self.max_message = settings.max_message
        self._settings = settings
        self._send_timeout = send_timeout
        self.gateway = gateway
        self._pages = pages
        self._metrics = metrics
        self._listeners: list[WebsocketServer] = []
        self._tls: ssl.SSLContext | None = None
        self.streams = Seats(settings.max_streams, "streams")
        # Whoever has not yet said whether it begins a stream or goes on with one that has its seat: as many as that.
        self.lobby = Seats(settings.max_streams, "streams")
        self._subscribers = Seats(settings.max_subscribers, "subscribers")
        self._visitors = Visitors(settings.max_per_address)
        self._handshakes = _Handshakes(settings, metrics)
        self.readers = Readers()
        self.lines = Lines(self.readers, metrics)

    # --- life ------------------------------------------------------------------------------------------------------

    async def listen(self, inherited: Sequence[socket.socket] = ()) -> None:
        """On `inherited`, sockets that listen already, or else where the settings say.

        Raises:
            OSError: the address is taken or not ours, or the certificate cannot be read.
        """
        settings = self._settings
        self._tls = _tls(settings.certificate, settings.key)
        places: list[dict[str, Any]] = [{"sock": each} for each in inherited]
        for place in places or [{"host": settings.host, "port": settings.port}]:
            self._listeners.append(await self._serve_at(place))
        self.url = _url(next(iter(self._listeners[0].sockets)), tls=self._tls is not None)
        self.listening.set()

    async def _serve_at(self, place: dict[str, Any]) -> WebsocketServer:
        settings = self._settings
        # The library wants a class here, and calls it: anything that makes a connection will do.
        options: dict[str, Any] = {"create_connection": partial(_Visitor, self._handshakes), **place}
        if self._tls is not None:
            options["ssl_handshake_timeout"] = _TLS_TIMEOUT
        return await serve(
            self._handle,
            **options,
            ssl=self._tls,
            process_request=self._respond,
            compression=None,
            max_size=4 * settings.max_message,  # what is a little too big is read, and answered
            ping_interval=_PING_INTERVAL,
            ping_timeout=_PING_TIMEOUT,
            close_timeout=_CLOSE_TIMEOUT,
            server_header=None,
            logger=_quiet_logger(),
        )

    def reload(self, settings: ServerSettings) -> None:
        """For connections to come: tokens, origins, numbers, and the certificate, read again even under its old name.

        Raises:
            OSError: the certificate cannot be used; nothing has changed then.
        """
        if self._tls is not None and settings.certificate is not None:
            _tls(settings.certificate, settings.key)
            self._tls.load_cert_chain(settings.certificate, settings.key)
        self._settings = settings
        self.streams.number = self.lobby.number = settings.max_streams
        self._subscribers.number = settings.max_subscribers
        self._visitors.most = settings.max_per_address
        self._handshakes.settings = settings

    def stop_accepting(self) -> None:
        """No new connections; streams hear what is on its way and then end, each with its finals and a close."""
        for listener in self._listeners:
            listener.close(close_connections=False)
        self.readers.stop()

    async def wait_streams(self) -> None:
        """Until the last final of every stream is on its way to its client."""
        await self.lobby.wait_free()
        await self.streams.wait_free()

    async def wait_closed(self) -> None:
        """Until every connection has ended."""
        for listener in self._listeners:
            await listener.wait_closed()

    # --- plain HTTP ------------------------------------------------------------------------------------------------

    def _respond(self, ws: ServerConnection, request: Request) -> Response | None:
        """None lets the websocket handshake go on."""
        self._handshakes.over(ws)
        if request.method != "GET":
            return _response(Page(HTTPStatus.METHOD_NOT_ALLOWED, b"Only GET.\n"), allow="GET")
        path = urlsplit(request.path).path
        if ",".join(request.headers.get_all("Upgrade")).lower() == "websocket":
            return None if path in (STREAM, EVENTS) else _response(NOTHING)
        rights = Rights()
        if path in (SOURCES, METRICS):
            try:
                rights = self._let_in(path, request)
            except Fault as fault:
                self._metrics.client_errors.labels(fault.code).inc()
                status = HTTPStatus.UNAUTHORIZED if fault.code == "unauthorised" else HTTPStatus.FORBIDDEN
                return _response(refusal(status, native.encode(fault.event(fatal=True))))
        known = ",".join(request.headers.get_all("If-None-Match"))
        return _response(self._pages.get(path, known, rights.may_read))

    def _let_in(self, path: str, request: Request) -> Rights:
        """Raises:
        Fault: the page at `path` is not for whoever asks.
        """
        if path == SOURCES:
            # A page asks its own origin without naming it.
            _check_name(_host(request), self._settings)
        return self._authorise(request, _parse_query(urlsplit(request.path).query).get("token"))

    # --- websockets ------------------------------------------------------------------------------------------------

    async def _handle(self, ws: ServerConnection) -> None:
        _notice_dead_peers(ws)
        code: int | None
        try:
            with self._visitors.visit(_address(ws)):
                code = await self._serve(ws)
        except Fault as fault:
            # Nothing of ours serves this client yet, or any more.
            code = native.close_code(fault.code)
            self.note(ws, fault)
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                await self.send(ws, fault.event(fatal=True))
        except ConnectionClosed:
            return
        except Exception:
            _log.exception("a connection's handler failed")
            code = native.close_code("internal")
        if code is not None:
            await _close(ws, code, _CLOSE_TIMEOUT)

    async def _serve(self, ws: ServerConnection) -> int | None:
        """Until it is over; the code to close with, or None where it is closed already."""
        request = ws.request
        assert request is not None, "the handshake is over"
        parts = urlsplit(request.path)
        query = _parse_query(parts.query)
        rights = self._authorise(request, query.pop("token", None))
        if parts.path == STREAM:
            return await self._serve_stream(ws, query, rights)
        return await self._serve_events(ws, query, rights)

    async def _serve_stream(self, ws: ServerConnection, query: dict[str, str], rights: Rights) -> int | None:
        _only(query, "source")
        return await _Conversation(self, ws, query.get("source"), rights).run()

    async def _serve_events(self, ws: ServerConnection, query: dict[str, str], rights: Rights) -> int | None:
        _only(query, "source", "since")
        source = check_name(query["source"]) if "source" in query else None
        rights.check_read(source)
        since = _since(query)
        with self._subscribers:
            outbox = self.gateway.subscribe(source, since, rights.may_read)
            writer = asyncio.create_task(self.write(ws, outbox))
            reader = asyncio.create_task(_hear_nothing(ws))
            try:
                await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not reader.done():
                    return native.CLOSE_SHUTTING_DOWN
                fault = reader.result()
                if fault is None:
                    return None
                self.note(ws, fault)
                outbox.put(fault.event(fatal=True))
                return native.close_code(fault.code)
            finally:
                reader.cancel()
                outbox.close()
                await writer

    def _authorise(self, request: Request, token: str | None) -> Rights:
        _check_origin(request, self._settings)
        given = [token] if token is not None else []
        for header in request.headers.get_all("Authorization"):
            scheme, _, bearer = header.partition(" ")
            given += [bearer.strip()] if scheme.lower() == "bearer" else []
        rights = rights_of(given, self._settings.tokens)
        if rights is None:
            raise Fault(
                "unauthorised", "a token is needed: send the header Authorization: Bearer TOKEN, or ?token=TOKEN"
            )
        return rights

    # --- what conversations ask for --------------------------------------------------------------------------------

    async def send(self, ws: ServerConnection, event: Event) -> None:
        async with asyncio.timeout(self._send_timeout):
            await ws.send(native.encode(event))

    async def write(self, ws: ServerConnection, outbox: Outbox) -> bool:
        """All of `outbox` to the peer; whether it was all. One that is too slow is disconnected."""
        try:
            async for event in outbox:
                await self.send(ws, event)
            if not outbox.overflowed:
                return True
        except ConnectionClosed:
            return False
        except TimeoutError:
            pass
        self._metrics.subscribers_dropped.inc()
        _log.info("%s reads too slowly: disconnected", _peer(ws))
        await _close(ws, native.CLOSE_TRY_LATER, self._send_timeout, "too slow: reconnect with ?since=SEQ")
        return False

    async def begin(self, start: Start) -> Line:
        """Raises:
        Fault: `full`, or see `Gateway`.
        """
        self.streams.take()
        try:
            stream = await self.gateway.open_stream(start)
        except BaseException:
            self.streams.give_back()
            raise
        return self.lines.begin(stream, min(start.resume, self._settings.resume), self.streams.give_back)

    def pace(self) -> Pace:
        """Of one client."""
        return Pace(self._settings.max_rate, self._metrics.slowed_seconds.inc)

    def note(self, ws: ServerConnection, fault: Fault, level: int = logging.INFO) -> None:
        self._metrics.client_errors.labels(fault.code).inc()
        _log.log(level, "%s: %s: %s", _peer(ws), fault.code, fault.message)


class _Conversation:
    """One connection of a client of `/v1/stream`, from its first frame to its close."""

    def __init__(self, server: Server, ws: ServerConnection, source: str | None, rights: Rights) -> None:
        self._rights = rights
        self._server = server
        self._ws = ws
        self._source = source
        self._decoder = native.Decoder()
        self._pace = server.pace()
        self._blamed = False

    async def run(self) -> int | None:
        """Until its stream has ended and its client was told, or the connection dropped; the code to close with, None
        where it is closed already.

        Raises:
            Fault: there is no stream, or it is somebody else's now.
            ConnectionClosed: before there was a stream.
        """
        message: Inbound | Resume | None = None
        try:
            async with self._server.readers.reading():
                with self._server.lobby:
                    message = await self._first()
                    line = await self._find(message)
        except TimeoutError:
            return native.CLOSE_SHUTTING_DOWN
        while True:
            async with self._server.lines.holding(line):
                late = await self._carry(line, message)
            if late is None:
                return None
            line, message = await self._find(late), late  # `ready` was sent in vain: its client was only slow

    async def _first(self) -> Inbound | Resume | None:
        try:
            async with asyncio.timeout(_START_GRACE):
                return await self._next()
        except TimeoutError:
            return None

    async def _find(self, message: Inbound | Resume | None) -> Line:
        if isinstance(message, Resume):
            line = self._server.lines.find(message.token)
            self._rights.check_send(line.stream.source)
            return line
        start = message if isinstance(message, Start) else Start()
        start = replace(start, source=start.source if start.source is not None else self._source)
        self._rights.check_send(start.source if start.source is not None else DEFAULT_SOURCE)
        return await self._server.begin(start)

    async def _carry(self, line: Line, message: Inbound | Resume | None) -> Start | Resume | None:
        """Both ways, until the end of the stream or of the connection; or until the client says late what it wants."""
        if isinstance(message, Resume):
            line.resume(message.events)
        writer = asyncio.create_task(self._server.write(self._ws, line))
        try:
            if line.code is None:
                outcome = await self._listen(line, None if isinstance(message, Start | Resume) else message)
                if isinstance(outcome, Start | Resume):
                    line.over = True
                    return outcome
                if outcome is None:
                    line.left = line.overflowed or _left(self._ws)
                    return None
                line.code = outcome
            await line.finish()
            told = await writer
            line.over = await _close(self._ws, line.code, _CLOSE_TIMEOUT) and told
            line.left = line.overflowed or _left(self._ws)
            return None
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _listen(self, line: Line, message: Inbound | None) -> int | Start | Resume | None:
        """The code to close with; None: the connection is closed."""
        try:
            async with self._server.readers.reading():
                return await self._read(line, message)
        except TimeoutError:
            return native.CLOSE_SHUTTING_DOWN
        except ConnectionClosed:
            return None
        except Fault as fault:
            self._blame(line, fault, fatal=True)
            return native.close_code(fault.code)
        except Exception as error:
            _log.exception("a stream broke")
            line.stream.broke(error)
            return native.close_code("internal")

    async def _read(self, line: Line, message: Inbound | Resume | None) -> int | Start | Resume:
        while not isinstance(message, Stop):
            if isinstance(message, Start | Resume):
                return message
            if message is not None:
                await line.stream.receive(message)
            message = await self._next(line)
        return native.CLOSE_DONE

    async def _next(self, line: Line | None = None) -> Inbound | Resume | None:
        """The next message; None in place of one that could not be read but does not end the stream."""
        await self._pace.wait()
        frame = await self._ws.recv()
        limit = self._server.max_message
        if len(frame) > limit:
            raise Fault("message_too_big", f"a message may have {limit} bytes, got {len(frame)}: send smaller frames")
        try:
            return self._decoder.decode(frame)
        except Fault as fault:
            if fault.fatal or line is None:
                raise
            self._blame(line, fault, fatal=False)
            return None

    def _blame(self, line: Line, fault: Fault, *, fatal: bool) -> None:
        # One line for each client: whoever sends rubbish does so by the thousand.
        self._server.note(self._ws, fault, logging.DEBUG if self._blamed else logging.INFO)
        self._blamed = True
        line.put(fault.event(fatal=fatal))


class _Handshakes:
    """Connections that have not yet said what they want: how many there may be, of one address and in all."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._waiting: dict[ServerConnection, str | None] = {}
        self._of: Counter[str | None] = Counter()

    def begins(self, ws: ServerConnection) -> bool:
        """False: it is one too many."""
        address = _address(ws)
        counted = address is not None and not is_local(address)
        if len(self._waiting) >= self.settings.max_handshakes:
            self.metrics.connections_refused.labels("handshakes").inc()
            return False
        if counted and self._of[address] >= self.settings.max_per_address:
            self.metrics.connections_refused.labels("address").inc()
            return False
        self._waiting[ws] = address
        self._of[address] += 1
        return True

    def over(self, ws: ServerConnection) -> None:
        """It has said what it wants, or gone."""
        if ws in self._waiting:
            address = self._waiting.pop(ws)
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]  # addresses are many


class _Visitor(ServerConnection):
    """The library's connection, counted from its first moment, and not answered without bound."""

    def __init__(self, handshakes: _Handshakes, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._handshakes = handshakes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._handshakes.begins(self):
            self.transport.write(_TOO_MANY)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshakes.over(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Events wait until their peer takes them in; the library's own answers to pings do not.
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self._handshakes.metrics.client_errors.labels("not_reading").inc()
            _log.info("%s sends without reading: disconnected", _peer(self))
            self.transport.abort()


async def _hear_nothing(ws: ServerConnection) -> Fault | None:
    """Until the client sends something, which is its fault, or goes."""
    try:
        await ws.recv()
    except ConnectionClosed:
        return None
    return Fault("subscribe_only", f"{EVENTS} only sends: stream audio to {STREAM}")


async def _close(ws: ServerConnection, code: int, patience: float, reason: str = "") -> bool:
    """Close, and do not wait for ever for a peer that does not answer. Whether it did: it has read all before that."""
    # Its answer comes behind all that it is still sending, which somebody must take in.
    discarding = asyncio.create_task(_discard(ws))
    try:
        async with asyncio.timeout(patience):
            await ws.close(code, reason)
    except TimeoutError:
        ws.transport.abort()
    finally:
        discarding.cancel()
    return ws.protocol.close_rcvd is not None


def _left(ws: ServerConnection) -> bool:
    """Whether the peer closed the connection on purpose, and not because something failed."""
    close = ws.protocol.close_rcvd
    return close is not None and close.code in native.LEFT


async def _discard(ws: ServerConnection) -> None:
    # Or somebody else takes it in already.
    with contextlib.suppress(ConnectionClosed, ConcurrencyError):
        while True:
            await ws.recv()


def _address(ws: ServerConnection) -> str | None:
    """Of the peer; None where there is none: it came by a path, or has left."""
    address = ws.remote_address
    return str(address[0]) if isinstance(address, tuple) and address else None


def _peer(ws: ServerConnection) -> str:
    address = ws.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client that left"


def _notice_dead_peers(ws: ServerConnection) -> None:
    sock: socket.socket = ws.transport.get_extra_info("socket")
    # A peer that left meanwhile has no socket to set anything on.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # Linux has them all
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# --- requests --------------------------------------------------------------------------------------------------------


def _parse_query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise Fault("bad_parameter", "too many parameters in the address") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise Fault("bad_parameter", "a parameter in the address may come once")
    return query


def _only(query: dict[str, str], *known: str) -> None:
    for name in query:
        if name not in known:
            raise Fault(
                "unknown_parameter", f"unknown parameter {name[:60]!a} in the address: {', '.join(known)} or token"
            )


def _since(query: dict[str, str]) -> int | None:
    text = query.get("since")
    if text is None:
        return None
    if "source" not in query:
        raise Fault("bad_parameter", "since needs a source: each source counts for itself")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Fault("bad_parameter", f"since must be the seq of an event, got {text[:60]!a}")
    return int(text)


def _check_origin(request: Request, settings: ServerSettings) -> None:
    """Browsers let any page connect to any address and say only whose page it is; programs say nothing."""
    host = _host(request)
    for origin in request.headers.get_all("Origin"):
        if origin in settings.origins or "*" in settings.origins:
            continue
        if _split(origin).netloc != host:
            raise Fault("bad_origin", f"pages of {origin[:60]!a} may not connect: add it to server.origins")
        _check_name(host, settings)


def _host(request: Request) -> str:
    return next(iter(request.headers.get_all("Host")), "")


def _check_name(host: str, settings: ServerSettings) -> None:
    """Our own page has our own name, but so has a stranger's whose public name was made to point at this machine.

    So without a token, which a stranger would need, only names are ours that no stranger can own. `host` is as in the
    header.
    """
    if settings.tokens or _is_ours(_split(f"//{host}").hostname or "."):
        return
    if "*" not in settings.origins and host not in (_split(origin).netloc for origin in settings.origins):
        raise Fault(
            "bad_origin",
            f"{host[:60]!a} is a public name that anybody might point here: add its https://... to server.origins, "
            "or set server.tokens",
        )


def _is_ours(name: str) -> bool:
    """Whether `name` is an address, or one that the public name service does not give away."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE_NAMES)
    return True


def _split(url: str) -> SplitResult:
    """Its parts; none of what is no URL at all."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _response(page: Page, allow: str | None = None) -> Response:
    headers = Headers({"Connection": "close", "Cache-Control": "no-store"} | page.headers)
    if page.status is not HTTPStatus.NOT_MODIFIED:
        headers.update({"Content-Type": page.content_type, "Content-Length": str(len(page.body))})
    if allow:
        headers["Allow"] = allow
    if page.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(page.status.value, page.status.phrase, headers, page.body)


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise OSError(
            f"the certificate {certificate} and key {key} cannot be used: {error.strerror or error}"
        ) from None
    return context


def _url(sock: socket.socket, *, tls: bool) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"


def _quiet_logger() -> logging.Logger:
    """The library's, without a traceback for a client that does not speak HTTP, and without the tokens in requests."""
    logger = logging.getLogger("daemon.server.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
