"""The device for Home Assistant: its payload, and what a real run publishes, held to the schema that ships."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from brokers import mosquitto
from harness import (
    Broker,
    Listener,
    client,
    listener,
    publish,
    scripted,
    service,
    speech,
    unfinished_speech,
    wait_until,
)
from home_assistant import LONGEST_STATE, Schema, state
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydantic import ValidationError
from setuptools import Distribution

from daemon.common.errors import Fault
from daemon.common.metrics import Metrics
from daemon.common.sources import Sources, check_name
from daemon.core.hub import Outbox
from daemon.mqtt import publisher
from daemon.mqtt.home_assistant import HomeAssistantDevice, payload, slug
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import Settings

__all__ = ["mosquitto"]  # a fixture

DEVICE = HomeAssistantDevice("homeassistant", "whisperd", "attic", "Ears")
SCHEMA = Schema()
TOPICS = ("whisperd/#", "homeassistant/#")


def entities(text: str) -> dict[str, dict[str, Any]]:
    components: dict[str, dict[str, Any]] = json.loads(text)["cmps"]
    return components


def named(text: str, entity_id: str) -> dict[str, Any]:
    (found,) = [each for each in entities(text).values() if each.get("default_entity_id") == entity_id]
    return found


# --- the payload -----------------------------------------------------------------------------------------------------


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except Fault:
        return False
    return True


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64).filter(is_name) | st.sampled_from(
    ["kitchen", "Kitchen", "living room", "living_room", "daemon", "台所", "a", "a_final", "b_0a1b2c", "0a1b2c"]
)


@settings_of_hypothesis(max_examples=30)
@given(st.lists(NAMES, unique=True, max_size=6), st.lists(NAMES, unique=True, max_size=3))
def test_any_sources_make_a_device_of_which_each_id_is_there_once(shown: list[str], hidden: list[str]) -> None:
    hidden = [name for name in hidden if name not in shown]
    text = payload(DEVICE, shown, hidden)
    assert SCHEMA.validate(DEVICE.config_topic, text) == "discovery"
    found = entities(text)
    there = [entity for entity in found.values() if len(entity) > 1]
    assert len(there) == 3 + 5 * len(shown)
    assert len(found) == len(there) + 5 * len(hidden)
    for key in ("unique_id", "default_entity_id"):
        assert len({entity[key] for entity in there}) == len(there)


@given(NAMES, NAMES)
def test_two_names_never_have_one_slug(one: str, other: str) -> None:
    assert (slug(one) == slug(other)) == (one == other)


def test_ids_that_people_write() -> None:
    assert slug("kitchen") == "kitchen"
    assert slug("living_room") == "living_room"
    assert slug("Living room").startswith("living_room_")
    assert slug("台所").isascii()


def test_a_source_that_is_hidden_is_removed_entity_by_entity() -> None:
    before, after = entities(payload(DEVICE, ["hall"])), entities(payload(DEVICE, [], ["hall"]))
    assert before.keys() == after.keys()
    gone = {key for key, entity in after.items() if entity == {"p": before[key]["p"]}}
    assert gone == {f"hall_{kind}" for kind in ("final", "text", "listening", "speech", "latency")}


def test_how_home_assistant_reads_what_is_published() -> None:
    text = payload(DEVICE, ["kitchen"])
    final = json.dumps({"type": "final", "source": "kitchen", "text": 'say "no" ' * 100, "latency_ms": 130, "at": 1.5})
    event = json.loads(state(named(text, "event.whisperd_kitchen_final"), final))
    assert event == {**json.loads(final), "event_type": "final"}
    assert event["event_type"] in named(text, "event.whisperd_kitchen_final")["event_types"]
    last = state(named(text, "sensor.whisperd_kitchen_text"), final)
    assert len(last) <= LONGEST_STATE
    assert last.startswith('say "no" say')
    assert state(named(text, "sensor.whisperd_kitchen_latency"), final) == "130"
    speaks = named(text, "binary_sensor.whisperd_kitchen_speech")
    assert [state(speaks, each) for each in ("idle", "listening", "speech")] == ["OFF", "OFF", "ON"]
    assert state(named(text, "switch.whisperd_kitchen_listening"), "OFF") == "OFF"
    diagnostics = json.dumps({"waiting": 3, "dropped": 2, "spool": "failed"})
    assert state(named(text, "sensor.whisperd_daemon_waiting"), diagnostics) == "3"
    assert state(named(text, "sensor.whisperd_daemon_dropped"), diagnostics) == "2"
    assert state(named(text, "binary_sensor.whisperd_daemon_spool"), diagnostics) == "ON"


# --- a real run ------------------------------------------------------------------------------------------------------


def settings(made: Broker, **more: Any) -> dict[str, Any]:
    return {"mqtt": {"host": "127.0.0.1", "port": made.port, "node_id": "attic", **more}}


def ears(made: Broker) -> AbstractAsyncContextManager[Listener]:
    return listener(made.port, TOPICS)


async def say_a_sentence(daemon: Service, source: str, says: Listener | None = None, *, words: bool = False) -> None:
    """says: has a partial before the final comes."""
    async with client(daemon.server.url, f"/v1/stream?source={quote(source)}") as mine:
        await mine.say(type="start", words=words)
        await mine.play(unfinished_speech())
        if says is not None:
            await says.until(f"whisperd/{source}/partial")
        await mine.play(speech()[len(unfinished_speech()) :])
        await mine.say(type="stop")
        assert await mine.rest() == 1000


async def test_all_that_a_real_run_publishes_is_as_the_schema_says(
    tokenizer_file: Path, tmp_path: Path, mosquitto: Broker
) -> None:
    environment = ServiceEnvironment(state=tmp_path / "state")
    async with ears(mosquitto) as says:
        async with service(scripted(tokenizer_file), settings(mosquitto), environment) as daemon:
            await says.until("whisperd/status", "online")
            await say_a_sentence(daemon, "kitchen", says)
            await say_a_sentence(daemon, "Küche", says, words=True)
            await publish(mosquitto.port, "whisperd/kitchen/set", "OFF")
            await says.until("whisperd/kitchen/switch", "OFF")
        await says.until("whisperd/status", "offline")
    seen = [SCHEMA.validate(m.topic, m.payload) for m in says.messages if m.topic != "test/mark"]
    assert set(seen) == {reference.removeprefix("#/$defs/") for reference in SCHEMA.content["topics"].values()}
    # The topics that the entities name are topics of ours.
    for entity in entities(says.payloads(DEVICE.config_topic)[-1]).values():
        for key in ("state_topic", "command_topic", "json_attributes_topic"):
            assert key not in entity or SCHEMA.definition(entity[key])


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("whisperd/status", "here"),
        ("whisperd/kitchen/state", "ON"),
        ("whisperd/kitchen/final", '{"type":"final","source":"kitchen"}'),
        ("whisperd/diagnostics", '{"waiting":-1,"dropped":0,"spool":"disk"}'),
        ("homeassistant/device/whisperd_a/config", '{"dev":{},"o":{},"cmps":{}}'),
    ],
)
def test_the_schema_can_say_no(topic: str, text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(topic, text)


def test_the_schema_is_part_of_the_package() -> None:
    distribution = Distribution()
    distribution.parse_config_files([str(Path(__file__).parent.parent.parent.parent / "pyproject.toml")])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # none but those that the settings name
    found = build.find_data_files("daemon", str(Path(publisher.__file__).parent.parent))
    assert [Path(each).name for each in found].count("mqtt.schema.json") == 1


async def test_a_device_with_the_microphone_and_whoever_was_heard(
    tokenizer_file: Path, tmp_path: Path, mosquitto: Broker
) -> None:
    environment = ServiceEnvironment(state=tmp_path / "state")
    async with ears(mosquitto) as says:
        async with service(scripted(tokenizer_file), settings(mosquitto), environment) as daemon:
            first = await says.until(DEVICE.config_topic)
            await say_a_sentence(daemon, "kitchen")
            second = await says.until(DEVICE.config_topic)
        assert "event.whisperd_kitchen_final" not in first.payload
        assert named(second.payload, "event.whisperd_kitchen_final")["state_topic"] == "whisperd/kitchen/final"
        # Remembered, without a word.
        async with service(scripted(tokenizer_file), settings(mosquitto), environment):
            third = await says.until(DEVICE.config_topic)
            await says.until("whisperd/kitchen/switch", "ON")
        assert third.payload == second.payload
        # Others instead.
        async with service(scripted(tokenizer_file), settings(mosquitto, sources=["hall"]), environment):
            fourth = await says.until(DEVICE.config_topic)
            await says.until("whisperd/hall/state", "idle")
        assert named(fourth.payload, "event.whisperd_hall_final")
        assert entities(fourth.payload)["kitchen_final"] == {"p": "event"}
    # Retained: for a Home Assistant that comes later.
    async with ears(mosquitto) as late:
        await publish(mosquitto.port, "test/mark", "end")
        await late.until("test/mark", "end")
    assert [m.payload for m in late.messages if m.topic == DEVICE.config_topic and m.retain] == [fourth.payload]


async def test_every_microphone_is_shown_before_it_is_heard(tokenizer_file: Path, mosquitto: Broker) -> None:
    microphones = [{"source": "kitchen", "device": "not here"}, {"source": "hall", "device": "nor here"}]
    sections = settings(mosquitto) | {"microphone": {"enabled": True, "source": "desk"}, "microphones": microphones}
    async with ears(mosquitto) as says, service(scripted(tokenizer_file), sections):
        first = await says.until(DEVICE.config_topic)
        for name in ("desk", "kitchen", "hall"):
            assert named(first.payload, f"event.whisperd_{name}_final")


async def test_a_device_is_removed_by_an_empty_message(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with service(scripted(tokenizer_file), settings(mosquitto)) as daemon:
        await wait_until(lambda: "whisperd_mqtt_connected 1.0" in daemon.pipeline.metrics.text().decode())
    async with ears(mosquitto) as says:
        if not says.payloads(DEVICE.config_topic):
            await says.until(DEVICE.config_topic)
        async with service(scripted(tokenizer_file), settings(mosquitto, discovery=False)) as daemon:
            assert (await says.until(DEVICE.config_topic)).payload == ""
            await say_a_sentence(daemon, "kitchen")
            await says.until("whisperd/kitchen/text")
        assert says.payloads(DEVICE.config_topic)[1:] == [""]
    async with ears(mosquitto) as late:
        await publish(mosquitto.port, "test/mark", "end")
        await late.until("test/mark", "end")
        assert not late.payloads(DEVICE.config_topic)


async def test_home_assistant_is_told_again_when_it_has_started(
    tokenizer_file: Path, mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publisher._BIRTH_PAUSE == (5.0, 15.0)
    monkeypatch.setattr(publisher, "_BIRTH_PAUSE", (0.0, 0.1))
    async with ears(mosquitto) as says, service(scripted(tokenizer_file), settings(mosquitto)) as daemon:
        await say_a_sentence(daemon, "kitchen")
        await says.until("whisperd/kitchen/state", "idle")
        # Not this one, nor this: only a start.
        await publish(mosquitto.port, "homeassistant/status", "offline")
        await publish(mosquitto.port, "homeassistant/status", "online")
        birth = len(says.messages)
        for topic in (DEVICE.config_topic, "whisperd/kitchen/state", "whisperd/kitchen/switch", "whisperd/diagnostics"):
            while topic not in [m.topic for m in says.messages[birth:]]:
                await says.next()
        assert says.payloads("homeassistant/status") == ["offline", "online"]


async def test_another_prefix_and_name(tokenizer_file: Path, mosquitto: Broker) -> None:
    async with (
        listener(mosquitto.port, ["ha/#"]) as says,
        service(scripted(tokenizer_file), settings(mosquitto, discovery_prefix="ha", name="Ears", topic="up/ears")),
    ):
        device = json.loads((await says.until("ha/device/whisperd_attic/config")).payload)
        assert device["dev"]["name"] == "Ears"
        assert device["dev"]["ids"] == ["whisperd_attic"]
        assert device["availability_topic"] == "up/ears/status"


def told(*microphones: str, **keys: Any) -> set[str]:
    """The sources that Home Assistant is shown where the settings are these."""
    settings = Settings.model_validate({"mqtt": {"host": "127.0.0.1", **keys}}).mqtt
    made = publisher.Mqtt(
        settings, None, Outbox(10, Metrics(), lambda _: None), Sources(), Metrics(), None, microphones
    )
    return {key.removesuffix("_final") for key in entities(made._config()) if key.endswith("_final")}


def test_home_assistant_is_shown_64_sources_at_most() -> None:
    names = [f"s{number}" for number in range(65)]
    assert told(*names) == set(names[:64])
    assert told(sources=names[:64]) == set(names[:64])
    assert told(sources=[*names[:64], "s0"]) == set(names[:64])
    # Those that somebody wrote down are not left out without a word.
    with pytest.raises(ValidationError, match="has 65 names, but at most 64 are shown: leave out the least important"):
        told(sources=names)


async def test_clients_cannot_fill_home_assistant(
    tokenizer_file: Path, mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MOST_SHOWN", 2)
    async with ears(mosquitto) as says, service(scripted(tokenizer_file), settings(mosquitto)) as daemon:
        for source in "abcd":
            async with client(daemon.server.url, f"/v1/stream?source={source}") as mine:
                await mine.say(type="stop")
                await mine.rest()
        await asyncio.wait_for(says.until("whisperd/d/state", "idle"), 30)
        found = entities(says.payloads(DEVICE.config_topic)[-1])
        assert {key.partition("_")[0] for key in found} == {"daemon", "a", "b"}
