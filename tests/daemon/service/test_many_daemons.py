"""Several daemons: what a client is told that came to another one, and that they leave each other alone at a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from brokers import counter, mosquitto, short_pauses
from harness import Broker, client, listener, publish, scripted, service, speech, wait_until
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from daemon.mqtt.client import how_it_ended
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment

__all__ = ["mosquitto", "short_pauses"]  # fixtures

START = {"sample_rate": 16000, "resume": 30, "partials": False}


async def say(daemon: Service, source: str) -> dict[str, Any]:
    """The final of one utterance."""
    async with client(daemon.server.url, f"/v1/stream?source={source}") as mine:
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    (final,) = mine.of("final")
    return final


# --- clients ---------------------------------------------------------------------------------------------------------


async def test_a_client_that_resumes_at_another_daemon_is_told_so(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as one, service(scripted(tokenizer_file)) as other:
        async with client(one.server.url) as mine:
            await mine.say(type="start", **START)
            token = (await mine.next())["token"]
            await mine.play(speech()[:32000])
            mine.ws.transport.abort()
        for _ in range(2):
            refused = await resumed(other, token)
            assert (refused["code"], refused["fatal"]) == ("cannot_resume", True)
            assert "this token is from another daemon" in refused["message"]
        # That has cost nothing: the stream still waits where it was.
        async with client(one.server.url) as mine:
            await mine.say(type="resume", token=token, events=0)
            ready = await mine.next()
            assert ready["type"] == "ready"
            await mine.play(speech()[2 * ready["samples"] :])
            await mine.say(type="stop")
            assert await mine.rest() == 1000
        assert len(mine.of("final")) == 1
        # Afterwards it is over, and not elsewhere.
        assert "no stream waits under this token" in (await resumed(one, token))["message"]


async def resumed(daemon: Service, token: str) -> dict[str, Any]:
    """How it was refused."""
    async with client(daemon.server.url) as mine:
        await mine.say(type="resume", token=token, events=0)
        error = await mine.next()
        assert await mine.rest() == 1007
    return error


async def test_whoever_listens_anywhere_has_each_final_once_by_its_id(tokenizer_file: Path) -> None:
    """`since` counts at one daemon alone: at another, ask for all that are kept, and pass over known ids."""
    async with service(scripted(tokenizer_file)) as one, service(scripted(tokenizer_file)) as other:
        said = [await say(daemon, "kitchen") for daemon in (one, other, other, one)]
        known: dict[str, dict[str, Any]] = {}
        for daemon, there in ((one, 2), (other, 2), (one, 2)):
            async with client(daemon.server.url, "/v1/events?source=kitchen&since=0") as mine:
                for _ in range(there):
                    final = await mine.until("final")
                    known[final["id"]] = final
        assert sorted(known) == sorted(final["id"] for final in said)


# --- a broker --------------------------------------------------------------------------------------------------------


def at(made: Broker, **more: Any) -> dict[str, Any]:
    return {"mqtt": {"host": "127.0.0.1", "port": made.port, **more}}


def everything(made: Broker) -> Any:
    return listener(made.port, ("whisperd/#", "homeassistant/#"))


async def test_two_daemons_of_one_machine_leave_each_other_alone(
    tokenizer_file: Path, tmp_path: Path, mosquitto: Broker
) -> None:
    """They have the same state directory, and differ in what docs/many-daemons.md names."""
    state = ServiceEnvironment(state=tmp_path)
    load = scripted(tokenizer_file)
    async with everything(mosquitto) as says:
        async with service(load, at(mosquitto, topic="whisperd/a", node_id="a"), state) as one:
            await says.until("whisperd/a/status", "online")
            async with service(load, at(mosquitto, topic="whisperd/b", node_id="b"), state) as other:
                await says.until("whisperd/b/status", "online")
                for daemon, name in ((one, "a"), (other, "b")):
                    final = await say(daemon, "kitchen")
                    told = await says.until(f"whisperd/{name}/kitchen/final")
                    assert f'"id":"{final["id"]}"' in told.payload
                # A command is for one of them.
                await publish(mosquitto.port, "whisperd/a/kitchen/set", "OFF")
                await says.until("whisperd/a/kitchen/switch", "OFF")
                assert (one.pipeline.sources.is_on("kitchen"), other.pipeline.sources.is_on("kitchen")) == (False, True)
                # Neither has thrown the other out, and what waits for the broker has a file each.
                assert [counter(each, "mqtt_connections_total") for each in (one, other)] == [1, 1]
                assert [counter(each, "mqtt_spool_on_disk") for each in (one, other)] == [1, 1]
            await says.until("whisperd/b/status", "offline")
        await says.until("whisperd/a/status", "offline")
    assert says.payloads("whisperd/a/status") == says.payloads("whisperd/b/status") == ["online", "offline"]
    for name, another in ("ab", "ba"):
        device = says.payloads(f"homeassistant/device/whisperd_{name}/config")[-1]
        assert f"whisperd/{name}/kitchen/final" in device
        assert f"whisperd/{another}/" not in device
    assert {each.topic for each in says.messages if each.topic.startswith("homeassistant")} == {
        "homeassistant/device/whisperd_a/config", "homeassistant/device/whisperd_b/config",
    }  # fmt: skip


async def test_two_daemons_with_one_id_are_told_what_to_set(
    tokenizer_file: Path, mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    load = scripted(tokenizer_file)
    advice = "same id: give each daemon its own mqtt.topic or mqtt.client_id"
    async with service(load, at(mosquitto)) as one:
        await wait_until(lambda: counter(one, "mqtt_connections_total") == 1)
        async with service(load, at(mosquitto)):
            await wait_until(lambda: advice in caplog.text)


@pytest.mark.parametrize("code", [142, 128])
def test_an_end_that_another_daemon_may_have_caused_is_told_with_what_to_set(code: int) -> None:
    """Newer brokers say why, older ones hang up."""
    said = how_it_ended(ReasonCode(PacketTypes.DISCONNECT, identifier=code))
    assert "mqtt.client_id" in said
    assert ("gave no reason" in said) is (code == 128)
    assert "client_id" not in how_it_ended(ReasonCode(PacketTypes.DISCONNECT, identifier=139))
