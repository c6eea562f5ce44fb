"""How a broker is reached: certificates, passwords, access rules, versions. With a real mosquitto and openssl."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import connected, counters, mosquitto_not_started, section, short_pauses
from harness import Broker, client, free_port, listener, publish, scripted, service, speech, wait_until

from daemon.commands import check
from daemon.common.errors import ConfigurationError
from daemon.mqtt.client import tls_context
from daemon.service.app import Service
from daemon.settings.schema import MqttSettings, Settings

__all__ = ["mosquitto_not_started", "short_pauses"]  # fixtures

OWN_USER = "user root\n"
"""Started by root, mosquitto would become a user who may not read a test's files; started by others it cannot."""


LIBRARY_LEAVES_SOCKETS = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
"""After a handshake that failed paho drops its sockets without closing them, and Python closes them instead."""


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log was told at its usual level."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def say(daemon: Service, source: str = "kitchen") -> None:
    async with client(daemon.server.url, f"/v1/stream?source={source}") as mine:
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        assert len(mine.of("final")) == 1


# --- who may come in, and what they may write ------------------------------------------------------------------------


def with_password(made: Broker, folder: Path, user: str, password: str) -> None:
    path = folder / "passwords"
    path.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(path), user, password], check=True, capture_output=True)
    made.options = f"{OWN_USER}allow_anonymous false\npassword_file {path}\n"


async def test_a_wrong_password_is_said_once_and_a_right_one_lets_us_in(
    tokenizer_file: Path, tmp_path: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with_password(mosquitto, tmp_path, "house", "right")
    mosquitto.start()
    attempts = logging.getLogger("daemon.mqtt.publisher")
    attempts.setLevel(logging.DEBUG)
    try:
        async with service(
            scripted(tokenizer_file), section(mosquitto.port, username="house", password="wrong")
        ) as daemon:
            await wait_until(lambda: caplog.text.count("trying again") >= 4)
            await say(daemon)
    finally:
        attempts.setLevel(logging.NOTSET)
    (line,) = [line for line in said(caplog) if "trying again" in line]
    assert "the broker refused the connection" in line
    assert "correct mqtt.username and mqtt.password" in line
    (tmp_path / "secret").write_text("right\n")
    right = section(mosquitto.port, username="house", password_file=str(tmp_path / "secret"))
    async with service(scripted(tokenizer_file), right) as daemon:
        await wait_until(lambda: connected(daemon))


async def test_what_the_access_rules_refuse_is_said_once_counted_and_holds_up_nothing(
    tokenizer_file: Path, tmp_path: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "rules"
    rules.write_text(
        "topic readwrite whisperd/status\ntopic readwrite whisperd/kitchen/#\ntopic read whisperd/#\n"
        "topic readwrite test/mark\n"
    )
    rules.chmod(0o600)
    mosquitto.options = f"{OWN_USER}allow_anonymous true\nacl_file {rules}\n"
    mosquitto.start()
    async with (
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(mosquitto.port)) as daemon,
    ):
        await says.until("whisperd/status", "online")
        for source in ("hall", "hall", "kitchen"):
            await say(daemon, source)
        await says.until("whisperd/kitchen/text")
        assert not says.payloads("whisperd/hall/final")
        await wait_until(lambda: "whisperd_mqtt_waiting_finals 0.0" in counters(daemon))
        refused = float(counters(daemon).partition("\nwhisperd_mqtt_refused_total ")[2].split()[0])
        assert refused >= 4  # two finals and their texts, beside what is retained
    lines = [line for line in said(caplog) if "access rules" in line]
    assert sum("may not write whisperd/hall/final" in line for line in lines) == 1
    assert len(lines) == len(set(lines))


# --- TLS -------------------------------------------------------------------------------------------------------------


def openssl(folder: Path, *arguments: str) -> None:
    program = shutil.which("openssl")
    assert program, "these tests need openssl: apt-get install openssl"
    subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
        "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip


def certificate(folder: Path, name: str, host: str) -> None:
    """name.pem and name.key, signed by `house`."""
    openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
        "-addext", f"subjectAltName=DNS:{host}",
    )  # fmt: skip
    openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "house.pem", "-CAkey", "house.key", "-CAcreateserial",
        "-days", "2", "-copy_extensions", "copy", "-out", f"{name}.pem",
    )  # fmt: skip


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of the house and a strange one; certificates of a broker at localhost, and of a client."""
    folder = tmp_path_factory.mktemp("papers")
    authority(folder, "house")
    authority(folder, "stranger")
    certificate(folder, "broker", "localhost")
    certificate(folder, "client", "whisperd")
    return folder


@pytest.fixture
def guarded(mosquitto: Broker, papers: Path) -> Broker:
    mosquitto.options = (
        f"allow_anonymous true\n{OWN_USER}cafile {papers}/house.pem\ncertfile {papers}/broker.pem\n"
        f"keyfile {papers}/broker.key\n"
    )
    return mosquitto


def tls(made: Broker, papers: Path, **more: Any) -> dict[str, Any]:
    return {"mqtt": {"host": "localhost", "port": made.port, "tls": True, "ca_file": f"{papers}/house.pem", **more}}


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_broker_with_a_certificate(tokenizer_file: Path, guarded: Broker, papers: Path) -> None:
    plain = free_port()
    guarded.options += f"listener {plain} 127.0.0.1\n"
    guarded.start()
    await wait_until(lambda: is_open(plain))
    async with (
        listener(plain) as says,
        service(scripted(tokenizer_file), tls(guarded, papers)) as daemon,
    ):
        await says.until("whisperd/status", "online")
        await say(daemon)
        await says.until("whisperd/kitchen/text")


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_broker_that_asks_for_a_certificate(
    version: str, tokenizer_file: Path, guarded: Broker, papers: Path
) -> None:
    guarded.options += "require_certificate true\n"
    guarded.start()
    ours = {"certificate": f"{papers}/client.pem", "key": f"{papers}/client.key", "version": version}
    async with service(scripted(tokenizer_file), tls(guarded, papers, **ours)) as daemon:
        await wait_until(lambda: connected(daemon))


@LIBRARY_LEAVES_SOCKETS
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"ca_file": "stranger.pem"}, "its certificate is not trusted"),
        ({"host": "127.0.0.1"}, "its certificate is for another name"),
    ],
)
async def test_a_certificate_that_will_not_do_is_said(
    more: dict[str, str],
    sentence: str,
    tokenizer_file: Path,
    guarded: Broker,
    papers: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    guarded.start()
    more = {key: f"{papers}/{value}" if key == "ca_file" else value for key, value in more.items()}
    async with service(scripted(tokenizer_file), tls(guarded, papers, **more)) as daemon:
        await wait_until(lambda: sentence in caplog.text)
        assert not connected(daemon)


async def test_another_name_is_taken_only_when_that_was_asked_for(
    tokenizer_file: Path, guarded: Broker, papers: Path
) -> None:
    guarded.start()
    section = tls(guarded, papers, host="127.0.0.1", tls_insecure=True)
    async with service(scripted(tokenizer_file), section) as daemon:
        await wait_until(lambda: connected(daemon))


@LIBRARY_LEAVES_SOCKETS
async def test_tls_with_a_port_that_speaks_none(
    tokenizer_file: Path, mosquitto: Broker, papers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.start()
    async with service(scripted(tokenizer_file), tls(mosquitto, papers)):
        await wait_until(lambda: "trying again" in caplog.text)


def test_another_name_does_not_mean_another_authority(papers: Path) -> None:
    context = tls_context(MqttSettings(tls=True, tls_insecure=True, ca_file=f"{papers}/house.pem"))
    assert context is not None
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_REQUIRED)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"ca_file": "/nowhere"}, "mqtt.ca_file: /nowhere: No such file"),
        ({"certificate": "/nowhere"}, "mqtt.certificate: /nowhere: No such file"),
        ({"certificate": "client.pem", "key": "broker.key"}, "give readable PEM files that match"),
        ({"ca_file": "client.key"}, "mqtt.ca_file: "),
    ],
)
def test_a_file_that_will_not_do_is_said_at_the_start(more: dict[str, str], sentence: str, papers: Path) -> None:
    more = {key: value if value.startswith("/") else f"{papers}/{value}" for key, value in more.items()}
    with pytest.raises(ConfigurationError) as caught:
        tls_context(MqttSettings.model_validate({"tls": True, **more}))
    assert sentence in str(caught.value)


# --- versions --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def old_broker(port: int) -> AsyncIterator[tuple[int, list[int]]]:
    """A relay to a broker that refuses whoever speaks MQTT 5, as brokers do that know only 3.1.1. Its port, and the
    versions it was spoken to in."""
    spoken: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await reader.read(4096)
        level = hello[hello.index(b"MQTT") + 4]
        spoken.append(level)
        if level > 4:
            writer.write(bytes([0x20, 2, 0, 1]))  # CONNACK: unacceptable protocol version
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        there_writer.write(hello)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], spoken


async def test_a_broker_that_does_not_know_mqtt_5(tokenizer_file: Path, mosquitto: Broker) -> None:
    mosquitto.start()
    async with (
        old_broker(mosquitto.port) as (port, spoken),
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), {"mqtt": {"host": "127.0.0.1", "port": port}}) as daemon,
    ):
        await says.until("whisperd/status", "online")
        await say(daemon)
        await says.until("whisperd/kitchen/text")
        await publish(mosquitto.port, "whisperd/kitchen/set", "OFF")
        await says.until("whisperd/kitchen/switch", "OFF")
        assert spoken == [5, 4]
        settings = Settings.model_validate({"mqtt": {"host": "127.0.0.1", "port": port}}).mqtt
        assert f"127.0.0.1:{port}" in await asyncio.to_thread(check.broker, settings, None)


@pytest.mark.parametrize(("version", "level"), [("3.1.1", [4]), ("5", [5, 5])])
async def test_a_version_that_was_asked_for_is_the_only_one(
    version: str, level: list[int], tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.start()
    async with old_broker(mosquitto.port) as (port, spoken):
        section = {"mqtt": {"host": "127.0.0.1", "port": port, "version": version}}
        async with service(scripted(tokenizer_file), section):
            await wait_until(lambda: len(spoken) >= len(level))
        assert spoken[: len(level)] == level
    if version == "5":
        assert "it does not speak this version of MQTT: set mqtt.version" in caplog.text
