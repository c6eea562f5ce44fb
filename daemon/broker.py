"""How a broker is reached: versions, certificates, and what its refusals mean.

Owns the making of an MQTT client from the settings, and the sentences for whatever a broker answers. Knows nothing of
topics or of what is sent.
"""

from __future__ import annotations

import ssl
from typing import Any, Literal

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from daemon.config import ConfigurationError
from daemon.config import Mqtt as MqttSettings

Version = Literal["5", "3.1.1"]

_LONGEST_TIMEOUT = 6.0
"""Seconds for an answer of the broker. At the end of the service a frozen broker costs this twice: for the last final,
and for the goodbye. `shutdown.drain` must have room for both."""

# Reason codes of MQTT 5. A 3.1.1 broker's few are translated into them by the library.
_UNSUPPORTED_VERSION, _BAD_CLIENT_ID, _BAD_PASSWORD, _NOT_AUTHORISED, _BANNED, _BAD_TOPIC = 132, 133, 134, 135, 138, 144
_TOO_BIG, _BAD_PAYLOAD = 149, 153

_REFUSALS = {
    _UNSUPPORTED_VERSION: "it does not speak this version of MQTT: set mqtt.version",
    _BAD_CLIENT_ID: "it does not take this client id: set mqtt.client_id",
    _BAD_PASSWORD: "wrong user or password: mend mqtt.username and mqtt.password (or password_file, or the credential)",
    _NOT_AUTHORISED: "not authorised: mend mqtt.username and mqtt.password, or the broker's access rules",
    _BANNED: "this client is banned there",
}


class RefusedError(Exception):
    """The broker took a message and threw it away, and would do so again. The message says why."""


class Client(aiomqtt.Client):
    """A client that also hears the reason with which an acknowledgement refuses a message (MQTT 5).

    It overrides two callbacks of the library that have no public name; the tests of outages and refusals hold them to
    what they are called by.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._refused: ReasonCode | None = None

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        # The library's own drops the reason, and offers no other way to it.
        if reason_code.is_failure:
            self._refused = reason_code
        super()._on_publish(client, userdata, mid, reason_code, properties)

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
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        self._loop.call_soon_threadsafe(watch)

    async def deliver(self, topic: str, payload: str, *, qos: int = 1, retain: bool = False) -> None:
        """Publish, one at a time, and return when the broker has acknowledged it.

        Raises:
            RefusedError: it did so with a refusal that will not change by itself.
            aiomqtt.MqttError: the connection is lost, or the broker cannot take it now.
        """
        self._refused = None
        await self.publish(topic, payload, qos=qos, retain=retain)
        reason = self._refused
        if reason is None:
            return
        if reason.value in (_NOT_AUTHORISED, _BAD_TOPIC, _TOO_BIG, _BAD_PAYLOAD):
            raise RefusedError(str(reason).lower())
        raise aiomqtt.MqttError(f"the broker could not take a message: {reason}")


def make_client(
    settings: MqttSettings,
    password: str | None,
    tls: ssl.SSLContext | None,
    version: Version,
    **options: Any,
) -> Client:
    """A client for one connection, with a clean session."""
    v5 = version == "5"
    return Client(
        settings.host,
        settings.port,
        username=settings.username,
        password=password,
        protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
        **({"clean_start": True} if v5 else {"clean_session": True}),
        keepalive=settings.keepalive,
        timeout=min(_LONGEST_TIMEOUT, 2.0 * settings.keepalive),
        tls_context=tls,
        **options,
    )


def tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """None without TLS.

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
    """Whether a broker says by `error` that it does not know MQTT 5."""
    return _code(error) == _UNSUPPORTED_VERSION


def sentence(error: Exception) -> str:
    """What went wrong with a connection, and what to do where that is known."""
    if (code := _code(error)) in _REFUSALS:
        return f"the broker refused us: {_REFUSALS[code]}"
    # The library makes its own error of those of sockets and certificates.
    beneath = error.__context__
    if isinstance(beneath, ssl.SSLCertVerificationError):
        why = beneath.verify_message
        if "mismatch" in why.lower():
            return f"its certificate is for another name ({why}): set mqtt.host to that name, or mqtt.tls_insecure"
        return f"its certificate is not trusted ({why}): set mqtt.ca_file to that of its authority"
    if isinstance(beneath, ssl.SSLError):
        return (
            f"TLS failed ({beneath.reason or beneath}): does this port speak it, and does it ask for mqtt.certificate?"
        )
    return str(error) or type(error).__name__


def subscription_refused(granted: Any) -> bool:
    """Whether the answer to a subscription, one code for each, has a refusal in it."""
    return any((code.value if isinstance(code, ReasonCode) else int(code)) >= 128 for code in granted)


def _code(error: Exception) -> int | None:
    code = getattr(error, "rc", None)
    if isinstance(code, ReasonCode) and code.packetType == PacketTypes.CONNACK:
        return int(code.value)
    return None
