"""MQTT, with a real mosquitto and its own clients."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from brokers import connected, mosquitto, section, short_pauses
from harness import Broker, broker, client, listener, publish, scripted, service, speech, unfinished_speech, wait_until

from daemon.common.metrics import Metrics
from daemon.common.sources import Sources
from daemon.core.hub import Outbox
from daemon.mqtt import publisher
from daemon.mqtt.publisher import Mqtt
from daemon.service.app import Service
from daemon.settings import schema
from streaming.job import Job, Phrase, Vocabulary

__all__ = ["mosquitto", "short_pauses"]  # fixtures

NAMES = ("final", "partial", "text", "state", "switch")
FINAL, PARTIAL, TEXT, STATE, SWITCH = (f"whisperd/kitchen/{name}" for name in NAMES)
DIAGNOSTICS = "whisperd/diagnostics"


async def say_a_sentence(daemon: Service, source: str = "kitchen") -> list[dict[str, Any]]:
    async with client(daemon.server.url, f"/v1/stream?source={source}") as mine:
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        return mine.events


async def test_every_topic(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with listener(mosquitto.port) as broker_says:
        async with service(scripted(tokenizer_file), section(mosquitto.port)) as daemon:
            await broker_says.until("whisperd/status", "online")
            async with client(daemon.server.url, "/v1/stream?source=kitchen") as mine:
                await mine.play(unfinished_speech())
                await broker_says.until(PARTIAL)
                await mine.play(speech()[len(unfinished_speech()) :])
                await mine.say(type="stop")
                assert await mine.rest() == 1000
            await broker_says.until(STATE, "idle")
        await broker_says.until("whisperd/status", "offline")
    (final,) = mine.of("final")
    # The same objects as on the websocket.
    assert [json.loads(payload) for payload in broker_says.payloads(FINAL)] == [final]
    assert broker_says.payloads(TEXT) == [final["text"]]
    partials = [json.loads(payload) for payload in broker_says.payloads(PARTIAL)]
    assert all(partial in mine.events for partial in partials)
    states = broker_says.payloads(STATE)
    assert states[0] == "listening"
    assert states[-1] == "idle"
    assert "speech" in states
    topics = {message.topic for message in broker_says.messages} - {"test/mark"}
    assert topics == {"whisperd/status", DIAGNOSTICS, STATE, SWITCH, PARTIAL, FINAL, TEXT}


async def test_what_is_retained_and_what_is_not(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with service(scripted(tokenizer_file), section(mosquitto.port)) as daemon:
        async with listener(mosquitto.port) as early:
            await say_a_sentence(daemon)
            await early.until(TEXT)
            if early.payloads(STATE)[-1:] != ["idle"]:  # a state may overtake a final that is not queued yet
                await early.until(STATE, "idle")
        async with listener(mosquitto.port) as late:
            await publish(mosquitto.port, "test/mark", "end")
            await late.until("test/mark", "end")
    kept = {message.topic: message.payload for message in late.messages if message.retain}
    assert json.loads(kept.pop(DIAGNOSTICS)) == {"waiting": 0, "dropped": 0, "spool": "memory"}
    assert kept == {"whisperd/status": "online", STATE: "idle", SWITCH: "ON", "test/mark": "here"}


async def test_another_base_topic(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with (
        listener(mosquitto.port, ["home/ears/#"]) as broker_says,
        service(scripted(tokenizer_file), section(mosquitto.port, topic="home/ears")) as daemon,
    ):
        await broker_says.until("home/ears/status", "online")
        await say_a_sentence(daemon)
        await broker_says.until("home/ears/kitchen/text")


async def test_switching_a_source_off_and_on(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with (
        listener(mosquitto.port) as broker_says,
        service(scripted(tokenizer_file), section(mosquitto.port)) as daemon,
        client(daemon.server.url, "/v1/stream?source=kitchen") as mine,
    ):
        await broker_says.until("whisperd/status", "online")
        await mine.play(unfinished_speech())
        await mine.until("speech_started")
        await publish(mosquitto.port, "whisperd/kitchen/set", "OFF")
        await broker_says.until(STATE, "idle")
        await broker_says.until(SWITCH, "OFF")
        # An answer to each command, even to one that changes nothing.
        await publish(mosquitto.port, "whisperd/kitchen/set", "OFF")
        await broker_says.until(SWITCH, "OFF")
        # What was said before becomes final: at once, whether anything more comes or not, and without it.
        final = await mine.until("final")
        off_at = len(unfinished_speech()) / 32000
        assert final["end"] <= off_at
        await mine.play(speech())
        await mine.say(type="flush", id="off")
        await mine.until("flushed")
        assert len(mine.of("speech_started")) == 1

        await publish(mosquitto.port, "whisperd/kitchen/set", " on ")
        await broker_says.until(STATE, "listening")
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        # The clock went on meanwhile.
        assert mine.of("final")[1]["start"] > off_at + len(speech()) / 32000
        assert [event["id"] for event in mine.of("flushed")] == ["off"]
        await broker_says.until(TEXT)


async def test_a_vocabulary_for_a_source(
    tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A retained one holds for whoever starts; what is wrong is named, and changes nothing."""
    topic, phrases = "whisperd/kitchen/vocabulary/set", '["Kallax", {"text":"Lumen","weight":2}]'
    await publish(mosquitto.port, topic, phrases, retain=True)
    jobs: list[Job] = []
    load = scripted(tokenizer_file, before=jobs.extend)
    async with listener(mosquitto.port) as broker_says, service(load, section(mosquitto.port)) as daemon:
        lists = daemon.pipeline.vocabularies
        await wait_until(lambda: lists.of("kitchen").phrases)
        assert lists.of("kitchen") == Vocabulary((Phrase("Kallax"), Phrase("Lumen", 2.0)))
        for wrong in ('["a", 3]', "{", "[" * 60000, '"Kallax"'):
            await publish(mosquitto.port, topic, wrong)
        await publish(mosquitto.port, "whisperd/ kitchen/vocabulary/set", "[]")
        await publish(mosquitto.port, "whisperd/hall/vocabulary/set", '["Xanthe"]')
        await wait_until(lambda: lists.of("hall").phrases)
        await say_a_sentence(daemon)
        await broker_says.until(TEXT)
        said = {tuple(phrase.text for phrase in job.vocabulary.phrases) for job in jobs}
        assert said - {()} == {("Kallax", "Lumen")}  # the canary has none
        await publish(mosquitto.port, topic, "", retain=True)
        await wait_until(lambda: not lists.of("kitchen").phrases)
        assert "whisperd_mqtt_bad_commands_total 5.0" in daemon.pipeline.metrics.text().decode()
    ignored = [record.getMessage() for record in caplog.records if "was ignored" in record.getMessage()]
    assert len(ignored) == 5
    assert "phrase 2 must be a string, or text and weight" in ignored[0]


async def test_commands_that_do_not_count(
    tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(mosquitto.port, "whisperd/kitchen/set", "OFF", retain=True)
    caplog.set_level(logging.INFO)
    async with (
        listener(mosquitto.port) as broker_says,
        service(scripted(tokenizer_file), section(mosquitto.port)) as daemon,
    ):
        await broker_says.until("whisperd/status", "online")
        await publish(mosquitto.port, "whisperd/kitchen/set", "MAYBE")
        await publish(mosquitto.port, "whisperd/ kitchen/set", "OFF")
        await publish(mosquitto.port, "whisperd/hall/set", "OFF")
        await broker_says.until("whisperd/hall/state", "idle")
        events = await say_a_sentence(daemon)
        assert [event["type"] for event in events].count("final") == 1
        assert "whisperd_mqtt_bad_commands_total 2.0" in daemon.pipeline.metrics.text().decode()
    ignored = [record.getMessage() for record in caplog.records if "was ignored" in record.getMessage()]
    assert len(ignored) == 2
    assert "must be ON or OFF" in ignored[0]


async def test_a_client_that_vanishes_is_heard_by_the_broker(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with (
        listener(mosquitto.port) as broker_says,
        service(scripted(tokenizer_file), section(mosquitto.port)) as daemon,
        client(daemon.server.url, "/v1/stream?source=kitchen") as mine,
    ):
        await mine.play(unfinished_speech())
        await mine.until("speech_started")
        mine.ws.transport.abort()
        assert json.loads((await broker_says.until(FINAL)).payload)["text"].startswith("turn")
        await broker_says.until(STATE, "idle")


async def test_a_broker_that_goes_away_gets_the_finals_in_order_when_it_is_back(
    tokenizer_file: Path, mosquitto: Broker
) -> None:
    async with service(scripted(tokenizer_file), section(mosquitto.port)) as daemon:
        await wait_until(lambda: connected(daemon))
        mosquitto.stop()
        await wait_until(lambda: not connected(daemon))
        for name in "abc":
            await say_a_sentence(daemon, name)
        await asyncio.to_thread(mosquitto.start)
        async with listener(mosquitto.port) as broker_says:
            # The listener may have come too late for the first of them, never for one in the middle of the others.
            await say_a_sentence(daemon, "d")
            await broker_says.until("whisperd/d/text")
            await wait_until(lambda: connected(daemon))
    order = [message.topic.split("/")[1] for message in broker_says.messages if message.topic.endswith("/final")]
    assert order == sorted(order)
    assert "whisperd_mqtt_waiting_finals 0.0" in daemon.pipeline.metrics.text().decode()


async def test_a_broker_that_comes_late_gets_all_finals_in_order(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_FIRST_PAUSE", 3.0)  # the listener is there before the service tries again
    monkeypatch.setattr(publisher, "_LONGEST_PAUSE", 3.0)
    with broker(tmp_path, started=False) as late:
        async with service(scripted(tokenizer_file), section(late.port)) as daemon:
            finals = []
            for name in "abc":
                events = await say_a_sentence(daemon, name)
                finals += [event for event in events if event["type"] == "final"]
            await asyncio.to_thread(late.start)
            async with listener(late.port) as broker_says:
                await broker_says.until("whisperd/c/text")
                got = [json.loads(m.payload) for m in broker_says.messages if m.topic.endswith("/final")]
                assert got == finals
                # What is over is not told as if it were going on.
                assert not [m for m in broker_says.messages if m.topic.endswith("/partial")]


async def test_what_waits_for_the_broker_is_bounded_and_what_is_dropped_is_counted(
    tokenizer_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with broker(tmp_path, started=False) as never:
        async with service(scripted(tokenizer_file), section(never.port, queue=2)) as daemon:
            for name in "abcd":
                await say_a_sentence(daemon, name)
            counters = daemon.pipeline.metrics.text().decode()
            assert "whisperd_mqtt_waiting_finals 2.0" in counters
            assert "whisperd_mqtt_dropped_finals_total 2.0" in counters
    assert caplog.text.count("dropping the oldest") == 1
    assert "2 finals were not delivered" in caplog.text


def test_names_that_clients_make_up_are_not_kept_for_ever() -> None:
    """For years each connection may bring a name of its own, and the broker may be away."""
    sources = Sources()
    made = Mqtt(schema.MqttSettings(host="127.0.0.1"), None, Outbox(10, Metrics(), lambda _: None), sources, Metrics())

    def kept() -> int:
        return sum(len(each) for each in vars(made).values() if isinstance(each, dict))

    def come_and_go(first: int) -> None:
        for number in range(first, first + 10_000):
            sources.opened(f"client-{number}")
            sources.closed(f"client-{number}")

    come_and_go(0)
    before = kept()
    come_and_go(10_000)
    assert kept() == before


async def test_a_password_that_is_wrong_stops_nothing(
    tokenizer_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with broker(tmp_path, started=False) as strict:
        strict.options = "allow_anonymous false\n"
        await asyncio.to_thread(strict.start)
        async with service(scripted(tokenizer_file), section(strict.port, username="u", password="p")) as daemon:
            await wait_until(lambda: "trying again" in caplog.text)
            assert [event["type"] for event in await say_a_sentence(daemon)].count("final") == 1
    assert "ot authori" in caplog.text


async def test_a_name_that_cannot_even_be_looked_up_stops_nothing(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(scripted(tokenizer_file), {"mqtt": {"host": "a..b"}}) as daemon:
        await wait_until(lambda: "trying again" in caplog.text)
        assert [event["type"] for event in await say_a_sentence(daemon)].count("final") == 1
