"""The listening ports: serves websockets, and a few plain pages beside them.

Owns the listening sockets and the handshake. Asks `auth.py` who may come in and `limits.py` how many, picks the dialect
by the path, or by the port where it has one of its own, and hands the client to a `Conversation`. A subscriber of
events is served here. Of what lies behind, it knows only that streams can be opened and events subscribed to. Every
fault of a client becomes an error in the words of its dialect and, when fatal, a close; none becomes a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from daemon.common.client_input import quoted
from daemon.common.errors import Fault
from daemon.common.metrics import Metrics
from daemon.common.permissions import Rights
from daemon.core.gateway import Gateway
from daemon.dialects import native
from daemon.dialects.codec import (
    CLOSE_SHUTTING_DOWN,
    Codec,
    Dialect,
    Frame,
    Handshake,
    Rejection,
    check_known,
    close_code,
    query_once,
)
from daemon.dialects.file_dialect import FileDialect
from daemon.endpoints.auth import RequestGuard, handshake_of, is_preflight, path_of
from daemon.endpoints.conversation import Conversation
from daemon.endpoints.incoming import IncomingConnection, limited_of
from daemon.endpoints.limits import CapacityLimiter, ConnectionLimiter, RateLimiter, Readers
from daemon.endpoints.pages import NOTHING, Page, Pages, is_guarded, refusal
from daemon.endpoints.peer import CLOSE_TIMEOUT, Connection, Peer
from daemon.endpoints.resume import ResumableStream, ResumableStreams
from daemon.settings.schema import ServerSettings
from streaming.events import Start

_log = logging.getLogger(__name__)

EVENTS = "/v1/events"
_AT_ONCE = 8
"""Connections that are accepted before those that are here have their turn: or of a crowd that comes at once, the last
would push out the first before it could say a word."""
_QUEUE = 1024
"""Connections that wait in the kernel meanwhile, as far as it lets them (net.core.somaxconn)."""
_MOST_FRAMES = 4
"""Messages of a client that wait to be read, at most; beyond that the network holds them back."""
_A_LITTLE = 262144
"""Bytes: a frame that is too big by no more than this is read, and answered, all the same."""
_BRING_BODIES = {b"P", b"D", b"O"}
"""How POST, PUT, PATCH, DELETE and OPTIONS begin. The library here has no answer to one that comes with a body."""
_PING_INTERVAL = 20.0
# A pong waits behind the audio that we have not read yet, and we read no faster than we hear: so a long patience
# here, and the kernel's keepalive (see `Peer`) for peers that are really gone.
_PING_TIMEOUT = 120.0

Find = Callable[[str], Dialect | None]
"""The dialect that is spoken under a path."""

_LULL = 0.0004
"""Seconds for each stream that is open: from fifty on, what costs most is taking in each client's frames alone."""
_SHORTEST_LULL = 0.02
"""In a shorter one hardly anything comes: clients send a frame every 20 ms."""
_LONGEST_LULL = 0.08


class Server:
    """The websockets and pages of all ports.

    Args:
        settings: those of the shared port, with all tokens.
        send_timeout: seconds that a client may take for one message.
        gateway: what lies behind the ports.
        pages: the plain pages.
        metrics: count faults and connections.
        dialects: those of the shared port.
        file_dialects: those of its files, whose paths are refused in their words where no file is sent.

    Attributes:
        listening: set once the server listens.
        url: where it listens then.
        urls: the addresses of the dialects with ports of their own, by their names.
        hand_over: returns what serves a connection on the shared port that begins with a POST, or another request which
            may have a body: the library here reads none. None if nothing does.
        connections: all of them, of all ports.
    """

    def __init__(
        self,
        settings: ServerSettings,
        send_timeout: float,
        gateway: Gateway,
        pages: Pages,
        metrics: Metrics,
        dialects: Iterable[Dialect] = (native.DIALECT,),
        file_dialects: Sequence[FileDialect] = (),
    ) -> None:
        self.listening = asyncio.Event()
        self.url = ""
        self.urls: dict[str, str] = {}
        self.max_message = settings.max_message
        self.guard = RequestGuard(settings)
        self.hand_over: Callable[[], asyncio.Protocol] | None = None
        self._settings = settings
        self._send_timeout = send_timeout
        self._gateway = gateway
        self._pages = pages
        self._metrics = metrics
        self._by_path = {path: dialect for dialect in dialects for path in dialect.paths}
        self._file_dialects = file_dialects
        self._listeners: list[WebsocketServer] = []
        self._tls: ssl.SSLContext | None = None
        self.slots = CapacityLimiter(settings.max_streams, "streams")
        # Whoever has not yet said whether it begins a stream or goes on with one that has its slot: as many as that.
        self._pending = CapacityLimiter(settings.max_streams, "streams")
        self._subscribers = CapacityLimiter(settings.max_subscribers, "subscribers")
        self.connections = ConnectionLimiter(
            settings.max_per_address, settings.max_handshakes, lambda why: metrics.connections_refused.labels(why).inc()
        )
        self.readers = Readers()
        self.streams = ResumableStreams(self.readers, metrics)

    # --- life ------------------------------------------------------------------------------------------------------

    async def listen(self, inherited: Sequence[socket.socket] = ()) -> None:
        """Listen on `inherited`, sockets that listen already, or else where the settings say.

        Raises:
            OSError: the address is taken or not ours, or the certificate cannot be read.
        """
        settings = self._settings
        self._tls = _tls(settings.certificate, settings.key)
        places: list[dict[str, Any]] = [{"sock": each} for each in inherited]
        for place in places or [{"host": settings.host, "port": settings.port}]:
            await self._serve_at(place, self._by_path.get, self.hand_over)
        self.url = self._url(0)
        self.listening.set()

    async def listen_for(self, dialect: Dialect, port: int) -> None:
        """Listen for a dialect on a port of its own, once the server listens.

        Raises:
            OSError: the port is taken or not ours.
        """
        await self._serve_at({"host": self._settings.host, "port": port}, partial(_always, dialect))
        self.urls[dialect.name] = self._url(-1)

    async def _serve_at(
        self, place: dict[str, Any], find: Find, hand_over: Callable[[], asyncio.Protocol] | None = None
    ) -> None:
        settings = self._settings
        # The library wants a class here, and calls it: what it makes is what a connection is first given to.
        options: dict[str, Any] = {"create_connection": partial(self._incoming, find, hand_over), **place}
        largest = max(settings.max_message, *(each.largest for each in self._by_path.values())) + _A_LITTLE
        listener = await serve(
            partial(self._handle, find),
            **options,
            process_request=partial(self._respond, find),
            compression=None,
            backlog=_AT_ONCE,
            max_queue=_MOST_FRAMES,
            max_size=largest,  # what is a little too big is read, and answered
            ping_interval=_PING_INTERVAL,
            ping_timeout=_PING_TIMEOUT,
            close_timeout=CLOSE_TIMEOUT,
            server_header=None,
            logger=_quiet_logger(),
        )
        for each in listener.sockets:
            with socket.socket(fileno=os.dup(each.fileno())) as same:
                same.listen(_QUEUE)
        self._listeners.append(listener)

    def _incoming(
        self, find: Find, hand_over: Callable[[], asyncio.Protocol] | None, *arguments: Any, **options: Any
    ) -> IncomingConnection:
        """Return what a new connection is first given to.

        `arguments` and `options` are those of the library's connection, which is made for clients that speak its
        protocol.
        """

        def choose(data: bytes) -> asyncio.Protocol:
            if data[:1] in _BRING_BODIES and hand_over is not None:
                return hand_over()
            made = Connection(self._metrics, self.pace(), *arguments, **options)
            # Here, because the library would ask with what it first gave the connection to.
            made.protocol.select_subprotocol = partial(_select_subprotocol, find, made)  # type: ignore[method-assign]
            return made

        return IncomingConnection(self.connections, self._tls, choose)

    def _url(self, listener: int) -> str:
        return _url(next(iter(self._listeners[listener].sockets)), tls=self._tls is not None)

    def reload(self, settings: ServerSettings) -> None:
        """Use `settings` for new connections: tokens, origins, numbers, and the certificate.

        The certificate is read again even under its old name.

        Raises:
            OSError: the certificate cannot be used; nothing has changed then.
        """
        if self._tls is not None and settings.certificate is not None:
            _tls(settings.certificate, settings.key)
            self._tls.load_cert_chain(settings.certificate, settings.key)
        self._settings = self.guard.settings = settings
        self.slots.number = self._pending.number = settings.max_streams
        self._subscribers.number = settings.max_subscribers
        self.connections.of_address, self.connections.waiting = settings.max_per_address, settings.max_handshakes

    def stop_accepting(self) -> None:
        """Accept no new connections. Streams hear what is on its way and then end, each with its finals and a close."""
        for listener in self._listeners:
            listener.close(close_connections=False)
        self.connections.end()
        self.readers.stop()

    async def wait_streams(self) -> None:
        """Wait until the last final of every stream is on its way to its client."""
        await self._pending.wait_free()
        await self.slots.wait_free()

    async def wait_closed(self) -> None:
        """Wait until every connection has ended."""
        for listener in self._listeners:
            await listener.wait_closed()

    # --- plain HTTP ------------------------------------------------------------------------------------------------

    def _respond(self, find: Find, ws: ServerConnection, request: Request) -> Response | None:
        """Return the answer to a request; None lets the websocket handshake go on."""
        limited_of(ws.transport).ask()
        handshake = _handshake(request)
        if request.method == "GET" and ",".join(handshake.headers.get("upgrade", ())).lower() == "websocket":
            dialect = find(handshake.path)
            if dialect is not None:
                return self._reject(dialect, ws, handshake)
            return None if handshake.path == EVENTS else self._nothing(ws, handshake)
        return _response(self.answer(request.method, handshake), body=request.method != "HEAD")

    def answer(self, method: str, handshake: Handshake) -> Page:
        """Return the answer to a request without a body."""
        refused = None if is_preflight(method, handshake) else self.refused(handshake)
        page = self._answer(method, handshake) if refused is None else self._refusal(*refused)
        return replace(page, headers={"Cache-Control": "no-store", **page.headers, **self.guard.sharing(handshake)})

    def _answer(self, method: str, handshake: Handshake) -> Page:
        try:
            if is_preflight(method, handshake):
                return Page(HTTPStatus.NO_CONTENT, b"", headers=self.guard.preflight(handshake))
            if method not in ("GET", "HEAD"):
                return Page(HTTPStatus.METHOD_NOT_ALLOWED, b"Only GET and HEAD.\n", headers={"Allow": "GET, HEAD"})
            rights = self._let_in(handshake) if is_guarded(handshake.path) else Rights()
        except Fault as fault:
            self._metrics.client_errors.labels(fault.code).inc()
            status = HTTPStatus.UNAUTHORIZED if fault.code == "unauthorised" else HTTPStatus.FORBIDDEN
            return refusal(status, native.encode(fault.event(fatal=True)))
        known = ",".join(handshake.headers.get("if-none-match", ()))
        return self._pages.get(handshake.path, known, rights.may_read)

    def refused(self, handshake: Handshake) -> tuple[FileDialect, Fault] | None:
        """Return the dialect of files that a request without a file belongs to, and why it is refused."""
        for dialect in self._file_dialects:
            if (fault := dialect.fault(handshake.path)) is not None:
                return dialect, fault
        return None

    def _refusal(self, dialect: FileDialect, fault: Fault) -> Page:
        self._metrics.client_errors.labels(fault.code).inc()
        made = dialect.reject(fault)
        headers = dict(made.headers)
        content_type = headers.pop("Content-Type")
        if made.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "POST"
        return Page(HTTPStatus(made.status), made.body, content_type, headers)

    def _nothing(self, ws: ServerConnection, handshake: Handshake) -> Response:
        """Return the answer to a websocket client whose path is that of no dialect."""
        refused = self.refused(handshake)
        if refused is None:
            return _response(NOTHING)
        self._peer(ws).note(refused[1])
        return _rejection(refused[0].reject(refused[1]))

    def _let_in(self, handshake: Handshake) -> Rights:
        """Check that the client may have the page it asks for, and return its rights.

        Raises:
            Fault: the page is not for this client.
        """
        # A page asks its own origin without naming it.
        self.guard.check_name(handshake)
        return self.guard.authorise(handshake, native.tokens(handshake))

    def _reject(self, dialect: Dialect, ws: ServerConnection, handshake: Handshake) -> Response | None:
        """Return the refusal that a dialect makes before the handshake, if it makes any."""
        if dialect.reject is None:
            return None
        try:
            self._admit(dialect, handshake)
        except Fault as fault:
            self._peer(ws).note(fault)
            return _rejection(dialect.reject(fault))
        return None

    # --- websockets ------------------------------------------------------------------------------------------------

    async def _handle(self, find: Find, ws: ServerConnection) -> None:
        assert ws.request is not None, "the handshake is over"
        dialect = find(path_of(ws.request.path)) or _EVENTS
        try:
            limited = limited_of(ws.transport)
        except ConnectionError:
            return
        peer = self._peer(ws)
        code: int | None
        patience: float | None = None
        try:
            with limited.being_served():
                code = await self._serve(dialect, peer, ws.request)
        except Fault as fault:
            # Nothing of ours serves this client yet, or any more.
            code, patience = dialect.close_code(fault.code), self._send_timeout
            peer.note(fault)
            peer.reason = dialect.close_reason(fault)
            fault.fatal = True
            with contextlib.suppress(ConnectionClosed):
                await peer.tell(await _refusal(dialect, peer, fault))
        except ConnectionClosed:
            return
        except Exception:
            _log.exception("a connection's handler failed")
            self._metrics.errors.labels("internal").inc()
            code = dialect.close_code("internal")
        if code is not None:
            await peer.close(code, patience)

    async def _serve(self, dialect: Dialect, peer: Peer, request: Request) -> int | None:
        """Serve a client, and return the code to close with; None where the connection is closed already."""
        if dialect is _EVENTS:
            return await self._serve_events(peer, request)
        codec, rights = self._admit(dialect, _handshake(request))
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(self._pending)
            return await Conversation(self, peer, dialect, codec, rights, waiting.close).run()

    async def _serve_events(self, peer: Peer, request: Request) -> int | None:
        handshake = _handshake(request)
        rights = self.guard.authorise(handshake, native.tokens(handshake))
        query = query_once(handshake.query)
        check_known(query, "source", "since")
        source = rights.check_read(query.get("source"))
        since = _since(query)
        with self._subscribers:
            outbox = self._gateway.subscribe(source, since, rights.may_read)
            writer = asyncio.create_task(peer.write(outbox, lambda event: [native.encode(event)]))
            reader = asyncio.create_task(_hear_nothing(peer))
            try:
                await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not reader.done():
                    return CLOSE_SHUTTING_DOWN
                fault = reader.result()
                if fault is None:
                    return None
                peer.note(fault)
                outbox.put(fault.event(fatal=True))
                return close_code(fault.code)
            finally:
                reader.cancel()
                outbox.close()
                await writer

    def _admit(self, dialect: Dialect, handshake: Handshake) -> tuple[Codec, Rights]:
        """Check that the client may come in, and return its codec and its rights.

        Raises:
            Fault: it may not come in, or its address is wrong.
        """
        rights = self.guard.authorise(handshake, dialect.tokens(handshake))
        return dialect.make(handshake), rights

    def _peer(self, ws: ServerConnection) -> Peer:
        assert isinstance(ws, Connection), "the listener makes no others"
        return Peer(ws, self._send_timeout, self._metrics)

    # --- what conversations ask for --------------------------------------------------------------------------------

    async def begin(self, start: Start) -> ResumableStream:
        """Take a slot, one for each channel that is heard by itself, and open a stream that its client can resume.

        Raises:
            Fault: `full`, or the stream cannot be opened.
        """
        places = start.channels if start.separate else 1
        self.slots.take(places)
        try:
            stream = await self._gateway.open_stream(start)
        except BaseException:
            self.slots.give_back(places)
            raise
        # A container is read from its beginning: such a stream cannot be taken up at a sample.
        resume = 0.0 if start.encoding == "opus" else min(start.resume, self._settings.resume)
        return self.streams.begin(stream, resume, partial(self.slots.give_back, places))

    @property
    def lull(self) -> float:
        """See `conversation.Host`. The more streams there are, the more of their audio is taken in at once."""
        lull = self.slots.taken * _LULL
        return min(lull, _LONGEST_LULL) if lull >= _SHORTEST_LULL else 0.0

    def pace(self) -> RateLimiter:
        """Return the limiter of one client's messages."""
        return RateLimiter(self._settings.max_rate, self._metrics.slowed_seconds.inc)


_EVENTS = Dialect(
    "events", native.Native, native.tokens, native.refuse
)  # those who only listen; it is never asked for a codec


async def _refusal(dialect: Dialect, peer: Peer, fault: Fault) -> Iterable[Frame]:
    """Return what `dialect` tells a client that does not come in."""
    if dialect.refuse_by_name is not None and (frame := await peer.first()) is not None:
        return dialect.refuse_by_name(fault, frame)
    return dialect.refuse(fault)


async def _hear_nothing(peer: Peer) -> Fault | None:
    """Wait until the client sends something, which is its fault, or goes."""
    try:
        await peer.hear()
    except ConnectionClosed:
        return None
    except Fault:
        pass  # too much of it, too
    return Fault("subscribe_only", f"{EVENTS} only sends: stream audio to {native.STREAM}")


# --- requests --------------------------------------------------------------------------------------------------------


def _since(query: dict[str, str]) -> int | None:
    text = query.get("since")
    if text is None:
        return None
    if "source" not in query:
        raise Fault("bad_parameter", "since needs a source, because each source counts on its own")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Fault("bad_parameter", f"since must be the seq of an event, got {quoted(text)}")
    return int(text)


def _handshake(request: Request) -> Handshake:
    handshake = handshake_of(request.path, request.headers.raw_items())
    offered = ",".join(handshake.headers.get("sec-websocket-protocol", ())).split(",")
    return replace(handshake, subprotocols=tuple(each.strip() for each in offered if each.strip()))


def _always(dialect: Dialect, _: str) -> Dialect:
    """Return the dialect whatever the path, because the port is its own."""
    return dialect


def _select_subprotocol(find: Find, ws: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    assert ws.request is not None, "it is being answered"
    dialect = find(path_of(ws.request.path))
    return next((each for each in offered if dialect is not None and each in dialect.subprotocols), None)


def _response(page: Page, *, body: bool = True) -> Response:
    """Return a page as the library's response. Without `body`, its length is told all the same."""
    headers = {"Connection": "close"} | page.headers
    if page.status not in (HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT):
        headers |= {"Content-Type": page.content_type, "Content-Length": str(len(page.body))}
    return Response(page.status.value, page.status.phrase, Headers(headers), page.body if body else b"")


def _rejection(rejection: Rejection) -> Response:
    headers = {"Connection": "close", "Content-Length": str(len(rejection.body)), **rejection.headers}
    return Response(rejection.status, HTTPStatus(rejection.status).phrase, Headers(headers), rejection.body)


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
    """Return the library's logger, without tracebacks for clients that do not speak HTTP, and without tokens."""
    logger = logging.getLogger("daemon.endpoints.websocket.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
