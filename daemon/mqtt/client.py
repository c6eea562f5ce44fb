"""How a broker is reached: versions, certificates, and what its refusals mean.

Owns the making of an MQTT client from the settings, what a broker may do to it (limits that it sets, packets that are
invalid, hanging up at any moment), and the sentences for whatever it answers. Knows nothing of topics or of what is
sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from daemon.common.errors import ConfigurationError
from daemon.settings.schema import MqttSettings

Version = Literal["5", "3.1.1"]
_T = TypeVar("_T")

_LONGEST_TIMEOUT = 6.0
"""Seconds for an answer of the broker. At the end of the service a frozen broker costs this twice: for the last final,
and for the goodbye. `shutdown.drain` must have room for both."""

# Reason codes of MQTT 5. A 3.1.1 broker's few are translated into them by the library.
_UNSUPPORTED_VERSION, _BAD_CLIENT_ID, _BAD_PASSWORD, _NOT_AUTHORISED, _BANNED, _BAD_TOPIC = 132, 133, 134, 135, 138, 144
_TAKEN_OVER = 142
_TOO_BIG, _QUOTA, _BAD_PAYLOAD, _NO_RETAIN, _NO_QOS = 149, 151, 153, 154, 155
_UNSPECIFIED, _MALFORMED, _PROTOCOL_ERROR, _IMPLEMENTATION = 128, 129, 130, 131

_ITS_FAULT = frozenset(
    (_UNSPECIFIED, _MALFORMED, _PROTOCOL_ERROR, _IMPLEMENTATION, _NOT_AUTHORISED, _BAD_TOPIC, _TOO_BIG, _BAD_PAYLOAD,
     _NO_RETAIN, _NO_QOS)
)  # fmt: skip
"""With these a broker may hang up because of the message that was under way; without a reason too. All others are about
the connection: somebody else has our name, the broker ends, nothing was heard for too long."""

_LARGEST_COMMAND = 65536
"""Bytes of a packet that we take: what comes in is a switch's ON or OFF. MQTT 5 tells the broker so; one that knows it
not, or does not heed it, loses the connection."""

_REFUSALS = {
    _UNSUPPORTED_VERSION: "it does not speak this version of MQTT: set mqtt.version",
    _BAD_CLIENT_ID: "it does not accept this client id: set mqtt.client_id",
    _BAD_PASSWORD: "wrong user or password: correct mqtt.username and mqtt.password (or password_file, the credential)",
    _NOT_AUTHORISED: "not authorised: correct mqtt.username and mqtt.password, or the broker's access rules",
    _BANNED: "this client is banned",
}


class RefusedError(Exception):
    """The broker took a message and threw it away, and would do so again. The message says why."""


class TooBigError(RefusedError):
    """A message is larger than this broker takes, or costs the connection each time."""


def packet_size(topic: str, payload: str, qos: int = 1) -> int:
    """Return the bytes of a message as MQTT 5 sends it, which is one more than 3.1.1 needs."""
    rest = 2 + len(topic.encode()) + (2 if qos else 0) + 1 + len(payload.encode())
    return 1 + max(1, (rest.bit_length() + 6) // 7) + rest  # its length has seven bits a byte


class MqttClient(aiomqtt.Client):
    """A client that a broker cannot harm.

    It heeds the limit that the broker sets, hears the reason with which a message is refused or the connection ended,
    survives invalid packets, and leaves nothing open behind.

    It overrides callbacks of the library that have no public name. The tests of outages and refusals would show if the
    library called them otherwise.

    Args:
        arguments: the library's.
        ignored: called with why a message of the broker could not be read.
        options: the library's.

    Attributes:
        largest: the bytes of a packet that the broker takes, where it says so (MQTT 5).
        flooded: what the broker sent that was too much, for which the connection was ended; None while it sent no such
            thing.
        hung_up: why an established connection ended; None while it has not.
        rejected: the reason with which the broker acknowledged a message that it could not take; None where the
            connection ended for another fault, or for the broker's quota.
    """

    def __init__(self, *arguments: Any, ignored: Callable[[str], None] = lambda _: None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.largest: int | None = None
        self.hung_up: ReasonCode | None = None
        self.rejected: ReasonCode | None = None
        self.flooded: str | None = None
        self._ignored = ignored
        self._refused: ReasonCode | None = None
        self._bound_reading()
        self._take_note()

    async def __aenter__(self) -> MqttClient:
        try:
            await super().__aenter__()
        except BaseException:
            self._client._sock_close()  # who does not answer to a CONNECT would keep it
            raise
        self._take_note()
        return self

    async def __aexit__(self, *told: Any) -> None:
        try:
            await super().__aexit__(*told)
        finally:
            # Where the connection has failed already the library returns early, and leaves the socket open: a broker
            # that goes on sending would be read for ever.
            self._client._sock_close()

    def _take_note(self) -> None:
        """Read how the connection came about or ended, so that it is no error when nobody else does."""
        for future in (self._connected, self._disconnected):
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _wait_for(self, fut: Awaitable[_T], timeout: float | None) -> _T:  # noqa: ASYNC109 - it is the library's
        # The library's own waits for an answer where the connection is gone already.
        if fut is self._disconnected:
            return await super()._wait_for(fut, timeout)
        answer = asyncio.ensure_future(super()._wait_for(fut, timeout))
        try:
            either: set[asyncio.Future[Any]] = {answer, self._disconnected}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise aiomqtt.MqttError("the broker closed the connection") from self._disconnected.exception()
            return answer.result()
        finally:
            answer.cancel()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.largest = getattr(properties, "MaximumPacketSize", None)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if self.hung_up is None and self._connected.done() and self._connected.exception() is None:
            self.hung_up = reason_code
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        # The library's own drops the reason, and offers no other way to it.
        if reason_code.is_failure:
            self._refused = reason_code
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reason_codes: Any, properties: Any = None) -> None:
        if mid in self._pending_subscribes:  # the library's own logs any other with a traceback
            super()._on_subscribe(client, userdata, mid, reason_codes, properties)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        # An exception here would leave the packet where it is, to be read again and again.
        if self._queue.full():
            self._ignored("too many are waiting")
            return
        try:
            super()._on_message(client, userdata, message)
        except ValueError:  # no UTF-8, or a wildcard in it
            self._ignored("its topic is invalid")

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        # The library's own reader goes on after an exception, with the same packet.
        def read() -> None:
            try:
                client.loop_read()
                self._check_kept()
                while (open := client.socket()) is not None and hasattr(open, "pending") and open.pending() > 0:
                    client.loop_read()  # what TLS has decrypted already wakes nobody
                    self._check_kept()
            except Exception as error:
                self._break(error)

        def watch() -> None:
            if sock.fileno() >= 0:
                self._loop.add_reader(sock.fileno(), read)
                self._misc_task = self._loop.create_task(self._misc_loop())

        self._loop.call_soon_threadsafe(watch)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        # The library's own watches the socket a turn of the loop later, when a broker that was killed may have cost us
        # it already: that would be an error with a traceback in the log.
        def watch() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), write)

        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:
                self._break(error)

        self._loop.call_soon_threadsafe(watch)

    def _bound_reading(self) -> None:
        # The library keeps whatever length a packet announces, and offers no limit. It asks the socket for the whole of
        # it at once, before a byte of it is read. A release that reads otherwise goes on without the limit.
        receive = getattr(self._client, "_sock_recv", None)
        if receive is None:
            return

        def receive_less(bufsize: int) -> bytes:
            if bufsize > _LARGEST_COMMAND:
                raise self._flood(f"it announced a packet of {bufsize} bytes, and only {_LARGEST_COMMAND} are allowed")
            return bytes(receive(bufsize))

        self._client._sock_recv = receive_less  # type: ignore[method-assign]

    def _check_kept(self) -> None:
        # Of what comes with quality 2 the library keeps any number, until the broker says that we may have it.
        if getattr(self._client, "_in_messages", None):
            raise self._flood("it sent a message with QoS 2, which was not requested")

    def _flood(self, what: str) -> Exception:
        """Return an error for too much, which is not of the kind that the library takes for a broker that hung up."""
        self.flooded = what
        return aiomqtt.MqttError(what)

    def _break(self, error: Exception) -> None:
        """End a connection that is of no use any more."""
        if not self._disconnected.done():
            self._disconnected.set_exception(error)
        self._client._sock_close()

    async def deliver(self, topic: str, payload: str, *, qos: int = 1, retain: bool = False) -> None:
        """Publish a message, one at a time, and return when the broker has acknowledged it.

        Raises:
            TooBigError: it is more than the broker takes, and was not sent.
            RefusedError: it was acknowledged with a refusal that will not change by itself.
            aiomqtt.MqttError: the connection is lost, or the broker cannot take it now.
        """
        size = packet_size(topic, payload, qos)
        if self.largest is not None and size > self.largest:
            raise TooBigError(f"it has {size} bytes, and the broker accepts no more than {self.largest}")
        self._refused = None
        await self.publish(topic, payload, qos=qos, retain=retain)
        reason = self._refused
        if reason is None:
            return
        if reason.value == _TOO_BIG:
            raise TooBigError(f"it has {size} bytes, which is too large for the broker")
        if reason.value in (_NOT_AUTHORISED, _BAD_TOPIC, _BAD_PAYLOAD):
            raise RefusedError(str(reason).lower())
        if reason.value != _QUOTA:
            self.rejected = reason
        raise aiomqtt.MqttError(f"the broker could not accept a message: {reason}")


def make_client(
    settings: MqttSettings,
    password: str | None,
    tls: ssl.SSLContext | None,
    version: Version,
    **options: Any,
) -> MqttClient:
    """Return a client for one connection, with a clean session. The library gets `options`."""
    v5 = version == "5"
    more: dict[str, Any] = {"clean_start": True, "properties": _limits()} if v5 else {"clean_session": True}
    return MqttClient(
        settings.host,
        settings.port,
        username=settings.username,
        password=password,
        protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
        keepalive=settings.keepalive,
        timeout=min(_LONGEST_TIMEOUT, 2.0 * settings.keepalive),
        tls_context=tls,
        **more,
        **options,
    )


def _limits() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # the library is not typed
    properties.MaximumPacketSize = _LARGEST_COMMAND
    return properties


def tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """Return the TLS context that the settings describe; None without TLS.

    Raises:
        ConfigurationError: a file cannot be read, or is not what it should be.
    """
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigurationError(f"mqtt.ca_file: {settings.ca_file}: {error.strerror or error}") from None
    if settings.certificate is not None:
        try:
            context.load_cert_chain(settings.certificate, settings.key)
        except OSError as error:
            files = ", ".join(filter(None, (settings.certificate, settings.key)))
            raise ConfigurationError(
                f"mqtt.certificate: {files}: {error.strerror or error}: give readable PEM files that match"
            ) from None
    context.check_hostname = not settings.tls_insecure
    return context


def older_version_wanted(error: Exception) -> bool:
    """Return whether a broker says by `error` that it does not know MQTT 5."""
    return _code(error) == _UNSUPPORTED_VERSION


def sentence(error: Exception) -> str:
    """Return what went wrong with a connection, and what to do where that is known."""
    if (code := _code(error)) in _REFUSALS:
        return f"the broker refused the connection: {_REFUSALS[code]}"
    # The library makes its own error of those of sockets and certificates.
    beneath = error.__context__
    if isinstance(beneath, ssl.SSLCertVerificationError):
        why = beneath.verify_message
        if "mismatch" in why.lower():
            return f"its certificate is for another name ({why}): set mqtt.host to that name, or mqtt.tls_insecure"
        return f"its certificate is not trusted ({why}): set mqtt.ca_file to the certificate of its authority"
    if isinstance(beneath, ssl.SSLError):
        return (
            f"TLS failed ({beneath.reason or beneath}): does this port use TLS, and does the broker require "
            "mqtt.certificate?"
        )
    return str(error) or type(error).__name__


def how_it_ended(reason: ReasonCode) -> str:
    """Return why a broker ended a connection, and what to do where that is known."""
    if reason.value in (_TAKEN_OVER, _UNSPECIFIED):  # mosquitto 2.0 says neither
        why = "another client came with the same id"
        if reason.value == _UNSPECIFIED:
            why = "the broker gave no reason; if this comes again, another client may have the same id"
        return f"the connection ended ({why}: give each daemon its own mqtt.topic or mqtt.client_id)"
    return f"the connection ended ({str(reason).lower()})"


def may_be_its_fault(reason: ReasonCode | None) -> bool:
    """Return whether a broker that hung up for `reason` may have done so because of the message that was under way."""
    return reason is not None and reason.value in _ITS_FAULT


def is_too_big(reason: ReasonCode | None) -> bool:
    """Return whether a broker that hung up for `reason` did so because the message was too big."""
    return reason is not None and reason.value == _TOO_BIG


def subscription_refused(granted: Any) -> bool:
    """Return whether the answer to a subscription, one code for each topic, has a refusal in it."""
    return any((code.value if isinstance(code, ReasonCode) else int(code)) >= 128 for code in granted)


def _code(error: Exception) -> int | None:
    code = getattr(error, "rc", None)
    if isinstance(code, ReasonCode) and code.packetType == PacketTypes.CONNACK:
        return int(code.value)
    return None
