"""`whisperd check`: is everything there that the configuration asks for?

Owns the questions, and the sentence that says what to do about each answer. Each probe returns a line of detail or
raises, and none changes anything. Knows the settings, and asks the parts themselves where they can tell: the MQTT
client, zeroconf, the rules for exposed ports, the files of secrets.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import platform
import socket
import ssl
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiomqtt
from websockets.exceptions import WebSocketException

from daemon.common.errors import ServiceError
from daemon.common.permissions import exposed, is_local, wyoming_remark
from daemon.endpoints import zeroconf
from daemon.engines.cluster.host import look_at_cluster
from daemon.engines.persistence import LostBatchError
from daemon.home_assistant.source import NamesError, ask_names, reason
from daemon.mqtt.client import RefusedError, Version, make_client, older_version_wanted, sentence, tls_context
from daemon.settings.schema import (
    HomeAssistantSettings,
    ModelSettings,
    MqttSettings,
    ServerSettings,
    Settings,
    WyomingSettings,
)
from daemon.settings.secrets import secret_trouble

_GUESSABLE = 16

_PATIENCE = 10.0
"""Seconds that something on the network may take."""

_CLUSTER_PATIENCE = 90.0
"""Seconds that a cluster may take to answer: its library waits long for one that is not there."""


class ProbeError(Exception):
    """Something is not there; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Probe:
    what: str
    ask: Callable[[], str]


@dataclass(frozen=True, slots=True)
class CheckResult:
    what: str
    fine: bool
    detail: str


def ask(probes: Sequence[Probe]) -> Iterator[CheckResult]:
    """Ask one probe after the other, and give each answer as it comes: some take seconds."""
    return (_ask(probe) for probe in probes)


def row(answer: CheckResult, probes: Sequence[Probe]) -> str:
    """Return an answer as a line of the table of `probes`."""
    width = max(len(probe.what) for probe in probes)
    return f"{'ok  ' if answer.fine else 'FAIL'}  {answer.what:{width}}  {answer.detail}"


def as_json(answers: Sequence[CheckResult]) -> str:
    return json.dumps([asdict(answer) for answer in answers], indent=2)


def _ask(probe: Probe) -> CheckResult:
    try:
        return CheckResult(probe.what, True, probe.ask())
    except Exception as error:  # whatever a probe meets is an answer
        return CheckResult(probe.what, False, " ".join(str(error).split()) or type(error).__name__)


# --- probes ----------------------------------------------------------------------------------------------------------


def python() -> str:
    return f"{platform.python_version()} in {sys.prefix}"


def configuration(path: Path | None, unheeded: Sequence[str]) -> str:
    """Return which file the configuration is, and what is there and has no effect.

    Args:
        path: the file; None for the defaults.
        unheeded: sentences about what has no effect.
    """
    return "; ".join([str(path or "the defaults"), *unheeded])


def address(server: ServerSettings) -> str:
    """Check that the port is free or a whisperd is there already, that the address is ours, and that it is guarded.

    Args:
        server: the settings of the port, with all tokens.

    Raises:
        ProbeError: one of these is not so.
    """
    if trouble := exposed([server.host], server.tokens, open_to_all=server.open):
        raise ProbeError(trouble)
    place = f"{server.host}:{server.port}"
    where = _bind(server.host, server.port, _SERVER, lambda: _is_whisperd(server))
    if where is None:
        return f"{place}: a whisperd is already running there{_holder(server.port)}"
    guarded = "with tokens" if server.tokens else "without tokens"
    remark = "" if server.tokens or is_local(where) else ": anybody who reaches it may listen (server.open)"
    short = sum(len(each.token) < _GUESSABLE for each in server.tokens)
    remark += f"; {short} of them shorter than {_GUESSABLE} characters: guessable" if short else ""
    return f"{place}, {guarded}{remark}"


def wyoming(settings: WyomingSettings) -> str:
    """Check the port as `address` does, and that it can be announced if it shall be.

    Raises:
        ProbeError: one of these is not so.
    """
    if not settings.host:
        return "off"
    if settings.zeroconf and (mend := zeroconf.missing()):
        raise ProbeError(f"wyoming.zeroconf {mend}")
    place = f"{settings.host}:{settings.port}"
    if _bind(settings.host, settings.port, _WYOMING, lambda: _speaks_wyoming(settings)) is None:
        return f"{place}: a whisperd is already running there{_holder(settings.port)}"
    remark = wyoming_remark(settings.host)
    return f"{place}{', announced by zeroconf' if settings.zeroconf else ''}{f'; {remark}' if remark else ''}"


def dialect(name: str, port: int, server: ServerSettings) -> str:
    """Check that a dialect's own port is free, or that a whisperd is there already.

    Raises:
        ProbeError: the port is taken, or not ours.
    """
    place, keys = f"{server.host}:{port}", (f"dialects.{name}", f"dialects.{name}")
    if _bind(server.host, port, keys, lambda: _is_whisperd(server.model_copy(update={"port": port}))) is None:
        return f"{place}: a whisperd is already running there{_holder(port)}"
    return place


_SERVER = ("server.port", "server.host and server.port")
_WYOMING = ("wyoming.port", "wyoming.host and wyoming.port")


def _bind(host: str, port: int, keys: tuple[str, str], is_ours: Callable[[], bool]) -> str | None:
    """Return the address that `host` is, if one can listen there; None if what listens there already is ours.

    `keys` are the key of the port, and those of the whole address.

    Raises:
        ProbeError: neither.
    """
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = infos[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        if taken and is_ours():
            return None
        place, holder = f"{host}:{port}", _holder(port) if taken else ""
        if error.errno == errno.EACCES:
            raise ProbeError(f"{place}: only root may use ports below 1024: choose another {keys[0]}") from None
        raise ProbeError(
            f"{place}: {error.strerror or error}{holder}: stop the program that listens there, or set {keys[1]}"
        ) from None
    return str(where[0])


def _speaks_wyoming(settings: WyomingSettings) -> bool:
    host = settings.host if settings.host not in ("", "0.0.0.0", "::") else "localhost"
    heard = b""
    try:
        with socket.create_connection((host, settings.port), timeout=1) as connection:
            connection.sendall(b'{"type": "describe"}\n')
            while b"whisperd" not in heard and len(heard) < 65536 and (more := connection.recv(4096)):
                heard += more
    except OSError:
        pass  # what it said until then counts
    return b"whisperd" in heard


def secrets(files: Mapping[str, Path], config: Path | None, plain: Sequence[str]) -> str:
    """Check that files with secrets can be read, and not by everybody.

    Args:
        files: those that the settings name, by their keys.
        config: the file of the settings.
        plain: the keys of secrets that `config` itself contains.

    Raises:
        ProbeError: a file cannot be read, or everybody may read it.
    """
    if trouble := [said for key, path in files.items() if (said := secret_trouble(key, path))]:
        raise ProbeError("; ".join(trouble))
    remark = ""
    if config is not None and plain and config.stat().st_mode & stat.S_IROTH:
        remark = f"; everybody may read {', '.join(plain)} in {config}"
    return f"{', '.join(map(str, files.values())) or 'no files'}{remark}"


def state(folder: Path | None) -> str:
    """Check that what outlives the process can be written.

    Raises:
        ProbeError: it cannot.
    """
    if folder is None:
        return "none: nothing survives the process"
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ProbeError(
            f"{folder}: {error.strerror}: make it writable (chown, or StateDirectory= in the unit)"
        ) from None
    return str(folder)


def _holder(port: int) -> str:
    """Return ` (name, process N)` for what listens on `port`, as far as this user may see it (proc(5))."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: listening
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(each) in inodes for each in (process / "fd").iterdir()):
                return f" ({(process / 'comm').read_text().strip()}, process {process.name})"
    return ""


def _is_whisperd(server: ServerSettings) -> bool:
    host = server.host if server.host not in ("", "0.0.0.0", "::") else "localhost"
    connection = http.client.HTTPConnection(host, server.port, timeout=1)
    if server.certificate is not None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is asked for its name, not trusted
        connection = http.client.HTTPSConnection(host, server.port, timeout=1, context=context)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().read(100) == b"alive\n"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tls(server: ServerSettings) -> str:
    if server.certificate is None:
        return "off"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(server.certificate, server.key)
    except OSError as error:
        raise ProbeError(
            f"{server.certificate}, {server.key}: {error.strerror or error}: give readable PEM files that match"
        ) from None
    return server.certificate


def no_microphone(input_devices: Callable[[], Sequence[str]]) -> str:
    """Return what could record if a microphone were asked for.

    That nothing could is no fault then, whatever the reason.
    """
    try:
        found = len(input_devices())
    except Exception as error:
        return f"off; {error}, to use one"
    return f"off; {found or 'no'} device{'' if found == 1 else 's'} could record"


def devices(models: ModelSettings) -> str:
    """Check that the devices are there, and return their memory. It loads torch, which takes seconds.

    Raises:
        ProbeError: one is not there.
    """
    return "; ".join(_device(name, models.threads) for name in models.devices)


def _device(wanted: str, threads: int | None) -> str:
    try:
        import torch
    except ImportError as error:
        raise ProbeError(f"torch cannot be imported ({error}): pip install torch") from None

    known = f"torch {torch.__version__}, {torch.cuda.device_count()} GPUs seen"
    index = int(wanted.partition(":")[2] or 0)
    if wanted.startswith("cuda") and index >= torch.cuda.device_count():
        raise ProbeError(
            f"{wanted} is not available: set models.device to auto or cpu, or install a CUDA build of torch "
            f"and the driver (this is {known})"
        )
    if wanted != "cpu" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        return f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free ({known})"
    idle = Path("/dev/nvidiactl").exists() and wanted == "auto"
    remark = "; a GPU is here, but this torch cannot use it: install its CUDA build" if idle else ""
    return f"cpu, {threads or torch.get_num_threads()} threads ({known}){remark}"


def cluster(settings: Settings) -> str:
    """Check that the cluster's application answers, with as many replicas as are expected. It loads Ray.

    Raises:
        ProbeError: it does not.
    """
    engine = settings.engine
    place = f"{engine.application} at {engine.address}"
    try:
        joined = _within(_CLUSTER_PATIENCE, lambda: asyncio.run(look_at_cluster(settings)))
    except (ServiceError, LostBatchError, OSError, TimeoutError) as error:
        raise ProbeError(f"{error}; the service starts without it, is not ready, and keeps trying") from None
    said = f"{place}: {joined.replicas.running} replicas run ({joined.description.models})"
    if joined.replicas.running < engine.replicas:
        raise ProbeError(
            f"{said}, and engine.replicas expects {engine.replicas}: see `serve status`, and in `ray status` whether "
            "machines are missing"
        )
    return said


def house(settings: HomeAssistantSettings, token: str) -> str:
    """Check that Home Assistant gives its names.

    Raises:
        ProbeError: it does not.
    """
    try:
        names = _within(_PATIENCE, lambda: asyncio.run(ask_names(settings, token)))
    except (OSError, TimeoutError, WebSocketException, NamesError, ValueError) as error:
        raise ProbeError(
            f"{settings.url}: {reason(error)}: correct the home_assistant section; the service runs without the names, "
            "and keeps trying"
        ) from None
    return f"{settings.url}, {len(names.phrases)} names"


def broker(mqtt: MqttSettings, password: str | None) -> str:
    """Check that the broker lets us in, and lets us publish: one message, not retained, to `check` below our topic.

    Raises:
        ProbeError: it does not.
    """
    if not mqtt.host:
        return "off"
    place = f"{mqtt.host}:{mqtt.port}"
    try:
        remark = _within(_PATIENCE, lambda: asyncio.run(_publish(mqtt, password)))
    except RefusedError as error:
        raise ProbeError(
            f"{place}: publishing to {mqtt.topic}/check is not allowed ({error}): allow {mqtt.topic}/# in the "
            "broker's access list, or set mqtt.topic"
        ) from None
    except (aiomqtt.MqttError, OSError, ValueError) as error:
        raise ProbeError(
            f"{place}: {sentence(error)}: start the broker, or correct the mqtt section; the service runs without it "
            "and keeps trying"
        ) from None
    return f"{place}, may publish to {mqtt.topic}/...{remark}"


async def _publish(mqtt: MqttSettings, password: str | None) -> str:
    """Publish a message, and return a remark where the broker cannot say whether it took it.

    Raises:
        RefusedError: it does not take it.
        aiomqtt.MqttError: it is out of reach, or does not let us in.
    """
    # Without the service's client id: a service that runs keeps its connection.
    context = tls_context(mqtt)
    version: Version = "3.1.1" if mqtt.version == "3.1.1" else "5"
    try:
        async with make_client(mqtt, password, context, version) as client:
            await client.deliver(f"{mqtt.topic}/check", "whisperd check")
    except aiomqtt.MqttError as error:
        if mqtt.version != "auto" or not older_version_wanted(error):
            raise
        version = "3.1.1"
        async with make_client(mqtt, password, context, version) as client:
            await client.deliver(f"{mqtt.topic}/check", "whisperd check")
    return "" if version == "5" else " (not certain: MQTT 3.1.1 does not report it)"


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what `work` returns, within so many seconds. It may hang in a resolver, which nothing interrupts.

    Raises:
        TimeoutError: it took longer. And whatever `work` raises.
    """
    outcome: list[Any] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]
