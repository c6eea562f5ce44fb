"""Names over a real websocket, from a server that answers as Home Assistant does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from harness import PATIENCE, wait_until
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from daemon.common.errors import ConfigurationError
from daemon.home_assistant import source
from daemon.home_assistant.source import HouseNames, NamesError, address, ask_names
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import HomeAssistantSettings
from daemon.settings.secrets import home_assistant_token
from streaming.vocabulary import Vocabulary

TOKEN = "long.lived.token"


@dataclass
class House:
    """Answers questions with what is in it. admin: whether the token is an administrator's."""

    admin: bool = True
    lamp: str = "Kallax lamp"
    url: str = ""
    open: set[ServerConnection] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    subscriptions: list[int] = field(default_factory=list)
    first: str = "auth_required"

    async def answer(self, connection: ServerConnection) -> None:
        self.open.add(connection)
        with suppress(ConnectionClosed):
            await connection.send(json.dumps({"type": self.first, "ha_version": "2026.11.0"}))
            shown = json.loads(await connection.recv())
            if shown != {"type": "auth", "access_token": TOKEN}:
                await connection.send(json.dumps({"type": "auth_invalid", "message": "Invalid access token"}))
                return
            await connection.send(json.dumps({"type": "auth_ok", "ha_version": "2026.11.0"}))
            async for message in connection:
                question = json.loads(message)
                self.asked.append(question["type"])
                await connection.send(json.dumps(self.reply(question)))
        self.open.discard(connection)

    def reply(self, question: dict[str, Any]) -> dict[str, Any]:
        number, kind = question["id"], question["type"]
        if kind == "homeassistant/expose_entity/list" and not self.admin:
            error = {"code": "unauthorized", "message": "Unauthorized"}
            return {"id": number, "type": "result", "success": False, "error": error}
        if kind == "subscribe_events":
            self.subscriptions.append(number)
        results: dict[str, Any] = {
            "subscribe_events": None,
            "homeassistant/expose_entity/list": {
                "exposed_entities": {"light.a": {"conversation": True}, "light.b": {}}
            },
            "get_states": [
                {"entity_id": "light.a", "attributes": {"friendly_name": self.lamp}},
                {"entity_id": "light.b", "attributes": {"friendly_name": "Hidden"}},
            ],
            "config/entity_registry/list": [
                {"entity_id": "light.a", "options": {"conversation": {"should_expose": True}}},
                {"entity_id": "light.b", "options": {"conversation": {"should_expose": False}}},
            ],
            "config/entity_registry/get_entries": {"light.a": {"aliases": [None, "Lumen"], "area_id": "k"}},
            "config/area_registry/list": [{"area_id": "k", "name": "Kitchen", "aliases": []}],
        }
        return {"id": number, "type": "result", "success": True, "result": results.get(kind, [])}

    async def rename(self, lamp: str) -> None:
        self.lamp = lamp
        for connection in self.open:
            event = {"id": self.subscriptions[0], "type": "event", "event": {"event_type": "entity_registry_updated"}}
            await connection.send(json.dumps(event))


@asynccontextmanager
async def at_home(**about: Any) -> AsyncIterator[House]:
    house = House(**about)
    async with serve(house.answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        house.url = f"http://127.0.0.1:{port}"
        yield house


def settings(url: str, **more: Any) -> HomeAssistantSettings:
    return HomeAssistantSettings(url=url, **more)


def texts(vocabulary: Vocabulary) -> list[str]:
    return [phrase.text for phrase in vocabulary.phrases]


@pytest.mark.parametrize("admin", [True, False])
async def test_the_names_of_a_house(admin: bool) -> None:
    """An administrator's token or another: the exposed entities, their aliases and areas."""
    async with at_home(admin=admin) as house:
        found = await ask_names(settings(house.url, weight=1.5), TOKEN)
    assert texts(found) == ["Kitchen", "Kallax lamp", "Lumen"]
    assert {phrase.weight for phrase in found.phrases} == {1.5}


async def test_what_is_no_home_assistant_or_does_not_let_us_in() -> None:
    async with at_home() as house:
        with pytest.raises(NamesError, match="make a long-lived access token"):
            await ask_names(settings(house.url), "wrong")
    async with at_home(first="hello") as house:
        with pytest.raises(NamesError, match=r"not Home Assistant: check home_assistant\.url"):
            await ask_names(settings(house.url), TOKEN)


async def test_names_follow_changes_and_outlive_an_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source, "_SETTLE", 0.0)
    monkeypatch.setattr(source, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(source, "_LONGEST_PAUSE", 0.01)
    caplog.set_level(logging.INFO)
    told: list[list[str]] = []
    async with at_home() as house:
        names = HouseNames(settings(house.url), TOKEN, lambda found: told.append(texts(found)))
        task = asyncio.create_task(names.run())
        try:
            await wait_until(lambda: len(told) == 1 and len(house.subscriptions) == 4)
            await house.rename("Thibault")
            await wait_until(lambda: len(told) == 2)
            assert told[-1] == ["Kitchen", "Thibault", "Lumen"]
            for connection in list(house.open):
                await connection.close()
            await wait_until(lambda: len(told) == 3)
        finally:
            task.cancel()
            await asyncio.wait({task})
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "trying again" in warnings[0]
    assert TOKEN not in caplog.text


async def test_one_that_is_away_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(source, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(source, "_LONGEST_PAUSE", 0.01)
    caplog.set_level(logging.DEBUG, logger="daemon.home_assistant.source")
    task = asyncio.create_task(HouseNames(settings("http://127.0.0.1:9"), TOKEN, lambda _: None).run())
    await wait_until(lambda: len(caplog.records) > 3)
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE)
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1


def test_where_it_is_and_with_which_token(tmp_path: Any) -> None:
    assert address("http://ha.local:8123/") == "ws://ha.local:8123/api/websocket"
    assert address("https://ha.example/home") == "wss://ha.example/home/api/websocket"
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    given = settings("http://h", token_file=str(file))
    assert home_assistant_token(given, ServiceEnvironment()) == TOKEN
    assert home_assistant_token(settings("http://h", token="t"), ServiceEnvironment()) == "t"
    assert TOKEN not in repr(settings("http://h", token=TOKEN))
    with pytest.raises(ConfigurationError, match="needs a token: make a long-lived access token"):
        home_assistant_token(settings("http://h"), ServiceEnvironment())
