"""All listening ports: which there are, on whose sockets, and that none is open to anybody by mistake.

Owns which edges serve (websockets and pages, a dialect's own port, uploads, Wyoming), the sockets that the service
manager hands over, and the order in which the ports open and close. Knows nothing of what lies behind them: the gateway
and the pages are handed on as they are.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from daemon.common.errors import ConfigurationError, ServiceError
from daemon.common.metrics import Metrics
from daemon.common.permissions import exposed, wyoming_remark
from daemon.core.gateway import Gateway
from daemon.dialects import deepgram, deepgram_files, native, openai_files, openai_realtime, vosk, whisperlive
from daemon.dialects.codec import Dialect
from daemon.dialects.file_dialect import FileDialect
from daemon.endpoints import zeroconf
from daemon.endpoints.file_descriptors import Accepting, room_for
from daemon.endpoints.limits import ConnectionLimiter
from daemon.endpoints.pages import Pages
from daemon.endpoints.websocket import Server
from daemon.endpoints.wyoming import Wyoming
from daemon.settings.schema import DialectSettings, ServerSettings, Settings

if TYPE_CHECKING:
    from daemon.endpoints.uploads import Uploads

_log = logging.getLogger(__name__)


class Ports:
    """The listening ports that the settings ask for.

    Args:
        settings: those of the start, with all tokens.
        inherited: the file descriptors of sockets that the service manager listens on for the service.
        gateway: what lies behind the ports.
        pages: the plain pages of the shared port.
        metrics: count connections and faults.

    Raises:
        ConfigurationError: Wyoming cannot be served as the settings say.

    Attributes:
        server: the websockets and pages.
        uploads: the files; None where the settings do not ask for them.
        wyoming: likewise.
    """

    def __init__(
        self, settings: Settings, inherited: Sequence[int], gateway: Gateway, pages: Pages, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._inherited = inherited
        self._sockets: list[socket.socket] = []  # those that the service manager hands over
        self._metrics = metrics
        self.server = Server(
            settings.server,
            settings.subscribers.send_timeout,
            gateway,
            pages,
            metrics,
            _dialects(settings.dialects),
            _file_dialects(settings.dialects),
        )
        self.uploads = self._make_uploads(gateway)
        self.wyoming = self._make_wyoming(gateway)

    async def listen(self) -> None:
        """Listen on every port that the settings ask for.

        Raises:
            ConfigurationError: anybody could come in, and the settings do not say that this is intended.
            ServiceError: a port cannot be opened.
        """
        Accepting(self._metrics).watch()
        self._make_room(self._settings.server)
        if self.uploads is not None:
            await self.uploads.open()
            self.server.hand_over = self.uploads.protocol
        try:
            self._sockets = [_inherit(each) for each in self._inherited]
            self.check_guarded(self._settings.server)
            await self.server.listen(self._sockets)
        except ConfigurationError:
            for each in self._sockets:
                each.close()
            raise
        except OSError as error:
            address = f"{self._settings.server.host}:{self._settings.server.port}"
            if self._inherited:
                address = "the socket that the service manager handed over"
            raise ServiceError(f"cannot listen on {address}: {error.strerror or error}") from None
        if self._sockets:
            _log.info("using the socket of the service manager: server.host and server.port have no effect")
        _log.info("listening on %s", self.server.url)
        for dialect in _dialects_apart(self._settings.dialects):
            await self._listen_for(dialect)
        if self.wyoming is not None:
            await self._listen_wyoming(self.wyoming)

    async def _listen_for(self, dialect: Dialect) -> None:
        port = self._settings.dialects.ports[dialect.name]
        try:
            await self.server.listen_for(dialect, port)
        except OSError as error:
            address = f"{self._settings.server.host}:{port}"
            raise ServiceError(
                f"dialects.{dialect.name}: cannot listen on {address}: {error.strerror or error}"
            ) from None
        _log.info("%s: listening on %s", dialect.name, self.server.urls[dialect.name])

    async def _listen_wyoming(self, wyoming: Wyoming) -> None:
        try:
            await wyoming.listen()
        except OSError as error:
            address = f"{wyoming.settings.host}:{wyoming.settings.port}"
            raise ServiceError(f"wyoming: cannot listen on {address}: {error.strerror or error}") from None
        _log.info("wyoming: listening on tcp://%s:%d", *wyoming.address)
        if remark := wyoming_remark(wyoming.settings.host):
            _log.warning("wyoming: %s", remark)

    def _make_room(self, settings: ServerSettings) -> None:
        # Those that have a slot, those that are about to take one, and for each of a file's the file.
        most = settings.max_handshakes + 3 * settings.max_streams + settings.max_subscribers
        # As many again may be told that there is no place.
        most_of_wyoming = 2 * self.wyoming.settings.max_clients if self.wyoming is not None else 0
        room = room_for(most + most_of_wyoming)
        self.server.connections.in_all = max(1, room - most_of_wyoming)
        if self.wyoming is not None:
            self.wyoming.connections.in_all = most_of_wyoming

    def check_guarded(self, settings: ServerSettings) -> None:
        """Check that `settings` do not let anybody in by mistake.

        Raises:
            ConfigurationError: anybody could come in, and the settings do not say that this is intended.
        """
        check_guarded(settings, self._sockets)

    def reload(self, settings: ServerSettings) -> None:
        """Use `settings` for new connections.

        Raises:
            OSError: the certificate cannot be used; nothing has changed then.
        """
        self.server.reload(settings)
        self._make_room(settings)
        if self.wyoming is not None:
            self.wyoming.connections.of_address = settings.max_per_address

    def stop_accepting(self) -> None:
        """Accept no new clients. What is on its way from the others is still heard."""
        self.server.stop_accepting()
        if self.wyoming is not None:
            self.wyoming.stop_accepting()

    async def wait_streams(self) -> None:
        """Wait until the last final of every client's stream is on its way to it."""
        await self.server.wait_streams()
        if self.uploads is not None:
            await self.uploads.close()
        if self.wyoming is not None:
            await self.wyoming.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until every connection has ended, those of subscribers too."""
        await self.server.wait_closed()

    # --- parts -----------------------------------------------------------------------------------------------------

    def _make_uploads(self, gateway: Gateway) -> Uploads | None:
        dialects = _file_dialects(self._settings.dialects)
        if not dialects:
            return None
        # Here: it takes a while to import, and not every command serves.
        from daemon.endpoints.uploads import Uploads

        send_timeout = self._settings.subscribers.send_timeout
        return Uploads(self.server, gateway, dialects, self._settings.dialects.max_upload, send_timeout, self._metrics)

    def _make_wyoming(self, gateway: Gateway) -> Wyoming | None:
        settings = self._settings.wyoming
        if not settings.host:
            return None
        if settings.zeroconf and (mend := zeroconf.missing()):
            raise ConfigurationError(f"wyoming.zeroconf: {mend}")
        refused = self._metrics.connections_refused
        limiter = ConnectionLimiter(
            self._settings.server.max_per_address, settings.max_clients, lambda why: refused.labels(why).inc()
        )
        return Wyoming(
            settings, self._settings.subscribers.send_timeout, gateway, self._metrics, limiter, self.server.pace
        )


def check_guarded(server: ServerSettings, inherited: Sequence[socket.socket] = ()) -> None:
    """Check that a port does not let anybody in by mistake.

    Args:
        server: the settings of the port, with all tokens.
        inherited: sockets that listen already, in place of the address in the settings.

    Raises:
        ConfigurationError: anybody could come in, and the settings do not say that this is intended.
    """
    # A path of the file system is guarded by its permissions.
    names = [each.getsockname()[0] for each in inherited if each.family != socket.AF_UNIX]
    hosts = names if inherited else [server.host]
    if trouble := exposed(hosts, server.tokens, open_to_all=server.open):
        raise ConfigurationError(trouble)


def _dialects(settings: DialectSettings) -> list[Dialect]:
    """Return the dialects that are spoken on the shared port."""
    optional = ((settings.openai, openai_realtime.DIALECT), (settings.deepgram, deepgram.DIALECT))
    return [native.DIALECT, *(dialect for wanted, dialect in optional if wanted)]


def _file_dialects(settings: DialectSettings) -> list[FileDialect]:
    """Return the dialects of files on the shared port."""
    optional = ((settings.openai, openai_files.DIALECT), (settings.deepgram, deepgram_files.DIALECT))
    return [dialect for wanted, dialect in optional if wanted]


def _dialects_apart(settings: DialectSettings) -> list[Dialect]:
    """Return the dialects that have a port of their own."""
    known = (vosk.dialect(settings.vosk_sample_rate), whisperlive.DIALECT)
    return [dialect for dialect in known if dialect.name in settings.ports]


def _inherit(descriptor: int) -> socket.socket:
    """Open the socket that the service manager handed over.

    Raises:
        OSError: it is no socket that listens.
    """
    inherited = socket.socket(fileno=descriptor)
    if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(f"descriptor {descriptor} is not a listening socket: set Accept=no in the socket unit")
    return inherited
