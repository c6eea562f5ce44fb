"""`whisperd check`: is everything there that the configuration asks for?

Owns the questions, and the sentence that says what to do about each answer. Each probe gives a line of detail or
raises; none changes anything. Knows nothing of the parts that it asks about but their settings.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiomqtt

from daemon.broker import make_client, older_version_wanted, sentence, tls_context
from daemon.config import Models, Mqtt, Server


class ProbeError(Exception):
    """Something is not there; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Probe:
    what: str
    ask: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Answer:
    what: str
    fine: bool
    detail: str


def ask(probes: Sequence[Probe]) -> list[Answer]:
    return [_ask(probe) for probe in probes]


def table(answers: Sequence[Answer]) -> str:
    width = max(len(answer.what) for answer in answers)
    return "\n".join(
        f"{'ok  ' if answer.fine else 'FAIL'}  {answer.what:{width}}  {answer.detail}" for answer in answers
    )


def _ask(probe: Probe) -> Answer:
    try:
        return Answer(probe.what, True, probe.ask())
    except Exception as error:  # whatever a probe meets is an answer
        return Answer(probe.what, False, " ".join(str(error).split()) or type(error).__name__)


# --- probes ----------------------------------------------------------------------------------------------------------


def address(server: Server) -> str:
    """That the port is free and the address ours."""
    place = f"{server.host}:{server.port}"
    try:
        infos = socket.getaddrinfo(server.host or None, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = infos[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ProbeError(
            f"{place}: {error.strerror or error}: stop what listens there, or set server.host and server.port"
        ) from None
    guarded = "with tokens" if server.tokens else "without tokens"
    open_to_all = not server.tokens and not str(where[0]).startswith(("127.", "::1"))
    return f"{place}, {guarded}{': anybody who reaches it may listen; set server.tokens' if open_to_all else ''}"


def tls(server: Server) -> str:
    if server.certificate is None:
        return "off"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(server.certificate, server.key)
    except OSError as error:
        raise ProbeError(
            f"{server.certificate}, {server.key}: {error.strerror or error}: give readable PEM files that match"
        ) from None
    return server.certificate


def device(models: Models) -> str:
    """That the device is there. Loads torch, which takes seconds."""
    import torch

    if models.device.startswith("cuda"):
        index = int(models.device.partition(":")[2] or 0)
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise ProbeError(
                f"{models.device} is not there: set models.device to auto or cpu, or install a CUDA build of torch "
                f"and the driver (this is torch {torch.__version__}, {torch.cuda.device_count()} GPUs seen)"
            )
    cuda = torch.cuda.is_available() and models.device != "cpu"
    name = torch.cuda.get_device_name() if cuda else f"cpu, {models.threads or torch.get_num_threads()} threads"
    return f"{name} (torch {torch.__version__})"


def broker(mqtt: Mqtt, password: str | None) -> str:
    if not mqtt.host:
        return "off"
    try:
        asyncio.run(_connect(mqtt, password))
    except aiomqtt.MqttError as error:
        raise ProbeError(
            f"{mqtt.host}:{mqtt.port}: {sentence(error)}: start the broker, or mend the mqtt section; the service runs "
            "without it and keeps trying"
        ) from None
    return f"{mqtt.host}:{mqtt.port}, topics {mqtt.topic}/..."


async def _connect(mqtt: Mqtt, password: str | None) -> None:
    # Without the service's client id: a service that runs keeps its connection.
    context = tls_context(mqtt)
    try:
        async with make_client(mqtt, password, context, "3.1.1" if mqtt.version == "3.1.1" else "5"):
            pass
    except aiomqtt.MqttError as error:
        if mqtt.version != "auto" or not older_version_wanted(error):
            raise
        async with make_client(mqtt, password, context, "3.1.1"):
            pass
