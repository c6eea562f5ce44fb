"""Brokers that set limits, hang up on what they do not like, and send what is none. Behind them a real mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from brokers import counter, mosquitto_not_started, section, short_pauses
from harness import Broker, Event, client, listener, publish, scripted, service, speech, wait_until

from daemon.mqtt.client import make_client, packet_size
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import MqttSettings

__all__ = ["mosquitto_not_started", "short_pauses"]  # fixtures


async def say(daemon: Service, source: str = "kitchen", *, words: bool = False) -> Event:
    async with client(daemon.server.url, f"/v1/stream?source={source}") as mine:
        await mine.say(type="start", words=words, partials=False)
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        (final,) = mine.of("final")
        return final


def aside(folder: Path) -> list[tuple[str, str]]:
    """What the spool put aside: why, and the id."""
    (path,) = folder.glob("mqtt-*.sqlite")
    file = sqlite3.connect(path)
    try:
        return file.execute("SELECT why, id FROM aside ORDER BY number").fetchall()
    finally:
        file.close()


# --- a limit ---------------------------------------------------------------------------------------------------------

LIMIT = 450
"""Bytes: of the finals here those with words are above it, and those without are not."""


@pytest.mark.parametrize("version", ["5", "3.1.1"])  # the older one is told nothing, but hung up on
async def test_a_final_with_words_that_is_too_large_is_told_without_them(
    version: str, tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.options += f"max_packet_size {LIMIT}\n"
    mosquitto.start()
    async with (
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(mosquitto.port, version=version)) as daemon,
    ):
        large = await say(daemon, "large", words=True)
        assert len(json.dumps(large)) > LIMIT
        small = await say(daemon, "small")
        await says.until("whisperd/small/text")
        await wait_until(lambda: counter(daemon, "mqtt_waiting_finals") == 0)
        assert counter(daemon, "mqtt_too_big_total") >= 2  # the device for Home Assistant, and the words
    del large["words"]
    told = [json.loads(m.payload) for m in says.messages if m.topic.endswith("/final")]
    assert [final for at, final in enumerate(told) if final not in told[:at]] == [large, small]
    assert f"the final {large['id']} of large is sent without its words" in caplog.text


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_final_that_is_too_large_is_put_aside_and_named_and_the_others_go_on(
    version: str, tokenizer_file: Path, tmp_path: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.options += "max_packet_size 200\n"
    mosquitto.start()
    state = tmp_path / "state"
    sections = section(mosquitto.port, version=version)
    async with (
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), sections, ServiceEnvironment(state=state)) as daemon,
    ):
        finals = [await say(daemon, "a"), await say(daemon, "b", words=True)]
        await says.until("whisperd/b/text", finals[1]["text"])
        await wait_until(lambda: counter(daemon, "mqtt_waiting_finals") == 0)
    assert [id for _, id in aside(state)] == [final["id"] for final in finals]
    for final in finals:
        assert f"the final {final['id']} of {final['source']} was given up" in caplog.text
    assert not [m for m in says.messages if m.topic.endswith("/final")]
    assert says.payloads("whisperd/a/text")[-1] == finals[0]["text"]


async def test_a_device_that_is_too_large_is_shown_as_far_as_it_fits(
    tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.options += "max_packet_size 6000\n"
    mosquitto.start()
    names = [f"room{number}" for number in range(20)]
    async with (
        listener(mosquitto.port, ["whisperd/#", "homeassistant/#"]) as says,
        service(scripted(tokenizer_file), section(mosquitto.port, sources=names, node_id="n")) as daemon,
    ):
        topic = "homeassistant/device/whisperd_n/config"
        device = await says.until(topic)
        await say(daemon, "room3")
        await says.until("whisperd/room3/text")
        assert counter(daemon, "mqtt_too_big_total") == 0
        assert counter(daemon, "mqtt_connections_total") == 1
    shown = {key.partition("_")[0] for key in json.loads(device.payload)["cmps"]} - {"daemon"}
    assert shown == set(names[: len(shown)])
    assert len(shown) > 1
    assert packet_size(topic, device.payload) <= 6000
    assert f"is shown {len(shown)} of 20 sources" in caplog.text


# --- a relay that does as a test says --------------------------------------------------------------------------------


@dataclass
class Relay:
    """Between the daemon and a broker. dislikes: it hangs up when the daemon sends this, or acknowledges it with
    `reason`, where there is one.

    Attributes:
        hung_up: how many times it did. closed: how many connections the daemon has closed.
    """

    there: int
    dislikes: Callable[[bytes], bool] = lambda _: False
    reason: int | None = None
    port: int = 0
    hung_up: int = 0
    closed: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def inject(self, packet: bytes) -> None:
        """As if the broker had sent it, on the newest connection."""
        self.writers[-1].write(packet)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.there)
        self.writers.append(writer)

        async def forth() -> None:
            with contextlib.suppress(ConnectionError):
                while packet := await read_packet(reader):
                    if not self.dislikes(packet):
                        there_writer.write(packet)
                        continue
                    self.hung_up += 1
                    if self.reason is None:
                        return
                    writer.write(b"\x40\x03" + packet_id(packet) + bytes([self.reason]))
            self.closed += 1

        async def back() -> None:
            while data := await there_reader.read(65536):
                writer.write(data)

        both = [asyncio.create_task(forth()), asyncio.create_task(back())]
        self.tasks.update(both)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        writer.close()
        there_writer.close()


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    """A whole one, with its head; empty at the end."""
    try:
        head = await reader.readexactly(2)
        while head[-1] & 0x80:
            head += await reader.readexactly(1)
        size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))
        return head + await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return b""


def packet_id(publish: bytes) -> bytes:
    """Of a message of quality 1: behind the topic."""
    topic = 1 + next(place for place, byte in enumerate(publish[1:], 1) if not byte & 0x80)
    behind = topic + 2 + int.from_bytes(publish[topic : topic + 2], "big")
    return publish[behind : behind + 2]


@asynccontextmanager
async def relay(
    there: int, dislikes: Callable[[bytes], bool] = lambda _: False, reason: int | None = None
) -> AsyncIterator[Relay]:
    made = Relay(there, dislikes, reason)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_a_final_upon_which_the_broker_hangs_up_each_time_is_put_aside_and_the_others_go_on(
    tokenizer_file: Path, tmp_path: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.start()
    state = tmp_path / "state"
    async with (
        relay(mosquitto.port, lambda data: b'"type":"final","source":"bad"' in data) as between,
        listener(mosquitto.port) as says,
        service(
            scripted(tokenizer_file), section(between.port, discovery=False), ServiceEnvironment(state=state)
        ) as daemon,
    ):
        bad, good = await say(daemon, "bad"), await say(daemon, "good")
        await says.until("whisperd/good/text", good["text"])
        assert between.hung_up == 3
        assert says.payloads("whisperd/bad/text") == [bad["text"]]
    assert aside(state) == [("the broker closed the connection each time it was sent, 3 times in a row", bad["id"])]
    assert f"the final {bad['id']} of bad was given up" in caplog.text


@pytest.mark.parametrize(
    ("reason", "said"),
    [(0x80, "unspecified error"), (0x83, "implementation specific error"), (0x91, "packet identifier in use")],
)
async def test_a_final_that_the_broker_cannot_take_is_put_aside_and_the_others_go_on(
    reason: int, said: str, tokenizer_file: Path, tmp_path: Path, mosquitto: Broker
) -> None:
    """It acknowledges it with an error that might be of the moment."""
    mosquitto.start()
    state = tmp_path / "state"
    async with (
        relay(mosquitto.port, lambda data: b'"type":"final","source":"bad"' in data, reason) as between,
        listener(mosquitto.port) as says,
        service(
            scripted(tokenizer_file), section(between.port, discovery=False), ServiceEnvironment(state=state)
        ) as daemon,
    ):
        bad, good = await say(daemon, "bad"), await say(daemon, "good")
        await says.until("whisperd/good/text", good["text"])
        assert between.hung_up == 3
    assert aside(state) == [(f"the broker said '{said}' each time it was sent, 3 times in a row", bad["id"])]


@pytest.mark.parametrize("what", ["homeassistant/device/whisperd_n/config", "whisperd/diagnostics", "whisperd/+/set"])
async def test_what_is_told_or_asked_first_does_not_hold_up_the_rest(
    what: str, tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """As brokers of clouds do with a topic that is not allowed."""
    mosquitto.start()
    async with (
        relay(mosquitto.port, lambda data: len(what).to_bytes(2, "big") + what.encode() in data) as between,
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(between.port, node_id="n")) as daemon,
    ):
        await says.until("whisperd/status", "online")
        await say(daemon)
        await says.until("whisperd/kitchen/text")
        assert between.hung_up == 3
    assert f"{what} was given up (the broker closed the connection each time it was sent" in caplog.text


# --- what is no message ----------------------------------------------------------------------------------------------


def message(topic: bytes, payload: bytes = b"OFF") -> bytes:
    """A PUBLISH of MQTT 5."""
    body = len(topic).to_bytes(2, "big") + topic + b"\0" + payload
    return bytes([0x30, len(body)]) + body


@pytest.mark.parametrize(
    "topic", [b"\xff\xfe/set", b"whisperd/a#/set", b"whisperd/a+b/set", b"", b"whisperd/a/b/set", b"elsewhere", b"a\0b"]
)
async def test_a_topic_that_is_none_is_counted_and_said_now_and_then(
    topic: bytes, tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.start()
    async with (
        relay(mosquitto.port) as between,
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(between.port)) as daemon,
    ):
        await says.until("whisperd/status", "online")
        for _ in range(300):
            between.inject(message(topic))
        await wait_until(lambda: counter(daemon, "mqtt_bad_commands_total") == 300)
        between.inject(message(b"whisperd/kitchen/set"))
        await says.until("whisperd/kitchen/switch", "OFF")
        assert counter(daemon, "mqtt_connections_total") == 1
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(told) <= 10


@pytest.mark.parametrize(
    "packet",
    [
        bytes([0x30, 2, 0xFF, 0xFF]),  # a topic longer than the packet
        bytes([0x30, 0]),
        bytes([0x30, 6, 0, 1, 0x61, 0xFF, 0xFF, 0xFF]),  # properties longer than the packet
        bytes([0x40, 1, 0]),  # half an acknowledgement
        bytes([0x90, 0]),
        bytes([0x20, 1, 0]),
        bytes([0xE0, 1, 0x77]),  # a reason that is none
        bytes([0xF0, 2, 0, 0]),
        bytes([0x00, 1, 0]),
        bytes([0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),  # a length without end
    ],
    ids=bytes.hex,
)
async def test_a_packet_that_is_none_costs_the_connection_at_most(
    packet: bytes, tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.start()
    async with (
        relay(mosquitto.port) as between,
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(between.port)) as daemon,
    ):
        await says.until("whisperd/status", "online")
        between.inject(packet * 20)
        await wait_until(lambda: len(between.writers) > 1 or counter(daemon, "mqtt_bad_commands_total"))
        await wait_until(lambda: counter(daemon, "mqtt_connected"))
        await say(daemon)
        await says.until("whisperd/kitchen/text")
        # Nothing is left open, and read for ever.
        await wait_until(lambda: between.closed == len(between.writers) - 1)
    assert len(caplog.records) < 30
    assert not [record for record in caplog.records if record.exc_info]


HUGE = bytes([0x30, 0xFF, 0xFF, 0xFF, 0x7F])
"""The head of a message of 256 MiB."""

FLOODS = {
    "one beyond the limit": (bytes([0x30, 0x81, 0x80, 0x04]), "it announced a packet of 65537 bytes"),
    "256 MiB": (HUGE, "it announced a packet of 268435455 bytes"),
    "QoS 2": (bytes([0x34, 8, 0, 1, 0x61, 0, 1, 0, 0, 0]), "it sent a message with QoS 2"),
}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("name", FLOODS)
async def test_a_broker_that_sends_too_much_loses_the_connection_before_it_is_read(
    name: str, version: str, tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    packet, said = FLOODS[name]
    mosquitto.start()
    async with (
        relay(mosquitto.port) as between,
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(between.port, version=version)) as daemon,
    ):
        await says.until("whisperd/status", "online")
        between.inject(packet)  # nothing else of it comes, nor is waited for
        await wait_until(lambda: len(between.writers) > 1)
        await wait_until(lambda: counter(daemon, "mqtt_connected"))
        await say(daemon)
        await says.until("whisperd/kitchen/text")
        assert counter(daemon, "mqtt_bad_commands_total") == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"127.0.0.1:{between.port}: the connection was closed: {said}" in line


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_message_as_large_as_is_taken_is_taken(
    version: str, tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.start()
    async with (
        listener(mosquitto.port) as says,
        service(scripted(tokenizer_file), section(mosquitto.port, version=version)) as daemon,
    ):
        await says.until("whisperd/status", "online")
        await publish(mosquitto.port, "whisperd/kitchen/set", "x" * 65000)
        await wait_until(lambda: counter(daemon, "mqtt_bad_commands_total"))
        assert counter(daemon, "mqtt_connections_total") == 1
    assert "must be ON or OFF" in caplog.text


async def test_a_large_message_that_is_retained_does_not_keep_finals_from_their_broker(
    tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """An older broker sends it each time that it is asked for commands."""
    mosquitto.start()
    await publish(mosquitto.port, "whisperd/kitchen/set", "x" * 100_000, retain=True)
    async with (
        listener(mosquitto.port, ["whisperd/+/text"]) as says,
        service(scripted(tokenizer_file), section(mosquitto.port, version="3.1.1")) as daemon,
    ):
        await wait_until(lambda: "the subscription to whisperd/+/set was given up" in caplog.text)
        await say(daemon)
        await says.until("whisperd/kitchen/text")
        assert counter(daemon, "mqtt_connected")
        assert counter(daemon, "mqtt_connections_total") == 4
    assert "3 times in a row): sources cannot be switched" in caplog.text


async def test_a_broker_that_answers_with_too_much_is_named_now_and_then(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It lets us in, and then sends more than we take; or does so at once."""
    attempts = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        hello = await read_packet(reader)
        welcome = b"\x20\x03\0\0\0" if hello[hello.index(b"MQTT") + 4] == 5 else b"\x20\x02\0\0"
        writer.write((welcome if attempts % 2 else b"") + HUGE)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server, service(scripted(tokenizer_file), section(server.sockets[0].getsockname()[1])):
        await wait_until(lambda: attempts > 30)
    told = [record.getMessage() for record in caplog.records if record.getMessage().endswith("; trying again")]
    assert 1 <= len(told) <= 10
    assert all("the connection was closed: it announced a packet of 268435455 bytes" in line for line in told)


async def test_the_end_of_a_connection_that_nobody_asks_for_is_no_error(
    mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker and a daemon that end in the same moment."""
    mosquitto.start()
    made = make_client(MqttSettings(host="127.0.0.1", port=mosquitto.port), None, None, "5")
    async with made:
        mosquitto.stop()
        await wait_until(made._disconnected.done)
    del made
    gc.collect()
    assert "never retrieved" not in caplog.text
