"""Asks Home Assistant for its names, and again whenever they change.

Owns the connection: signing in, the questions, and when they are asked again. A Home Assistant that is away stops
nothing: the names that it last gave stay. What it answers is bounded, and what it says wrong is named once. Knows
nothing of who hears the names.

Source: Home Assistant's websocket API (https://developers.home-assistant.io/docs/api/websocket).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from daemon.common.client_input import quoted, read_json
from daemon.home_assistant.names import House, vocabulary
from daemon.settings.schema import HomeAssistantSettings
from streaming.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

_ANSWER_TIMEOUT = 30.0
_LARGEST_ANSWER = 32 << 20
"""Bytes: the states of a house with thousands of entities are several million."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
_SETTLE = 5.0
"""Seconds from a change to asking again: whoever renames one thing mostly renames several."""

_CHANGES = ("entity_registry_updated", "area_registry_updated", "floor_registry_updated", "device_registry_updated")


class NamesError(Exception):
    """Home Assistant does not give its names; the message says why, and what to do."""


class HouseNames:
    """Home Assistant's names, told to whoever hears them.

    Args:
        settings: where Home Assistant is.
        token: a long-lived access token.
        tell: called with the names, at first and after each change.
    """

    def __init__(self, settings: HomeAssistantSettings, token: str, tell: Callable[[Vocabulary], None]) -> None:
        self._settings = settings
        self._token = token
        self._tell = tell
        self._complaint = ""

    async def run(self) -> None:
        """Ask, and ask again, until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with signed_in(self._settings, self._token) as conversation:
                    pause = _FIRST_PAUSE
                    await self._follow(conversation)
            except (OSError, TimeoutError, WebSocketException, NamesError, ValueError) as error:
                self._complain(error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _follow(self, conversation: Conversation) -> None:
        """Tell the names, and again after each change, until the connection ends."""
        for change in _CHANGES:
            await conversation.ask("subscribe_events", event_type=change)
        while True:
            names = vocabulary(await conversation.house(), self._settings.weight)
            self._complaint = ""
            _log.info("home assistant: %d names of %s", len(names.phrases), self._settings.url)
            self._tell(names)
            await conversation.wait_change()
            await asyncio.sleep(_SETTLE)

    def _complain(self, error: Exception) -> None:
        """Say what is wrong, once for each reason in a row."""
        said = reason(error)
        level = logging.DEBUG if said == self._complaint else logging.WARNING
        _log.log(level, "home assistant: %s: %s; trying again", self._settings.url, said)
        self._complaint = said


@asynccontextmanager
async def signed_in(settings: HomeAssistantSettings, token: str) -> AsyncIterator[Conversation]:
    """Connect to Home Assistant for a block, and show it the token.

    Raises:
        NamesError: it does not accept the token, or is something else.
        OSError: it is out of reach, like TimeoutError and WebSocketException.
    """
    async with connect(
        address(settings.url), max_size=_LARGEST_ANSWER, open_timeout=_ANSWER_TIMEOUT, max_queue=16,
        user_agent_header="whisperd",
    ) as connection:  # fmt: skip
        conversation = Conversation(connection)
        await conversation.sign_in(token)
        yield conversation


async def ask_names(settings: HomeAssistantSettings, token: str) -> Vocabulary:
    """Ask for the names once.

    Raises:
        NamesError: see `signed_in`, whose other errors may come too.
    """
    async with signed_in(settings, token) as conversation:
        return vocabulary(await conversation.house(), settings.weight)


def reason(error: Exception) -> str:
    """Return why there are no names, as one sentence."""
    if isinstance(error, TimeoutError):
        return "there was no answer in time"
    said = str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__


def address(url: str) -> str:
    """Return the address of the websocket API of the Home Assistant at `url`."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/api/websocket"


class Conversation:
    """Questions and answers on one connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._asked = 0
        self._changed = False

    async def sign_in(self, token: str) -> None:
        """Show the token.

        Raises:
            NamesError: it is not accepted.
        """
        if (await self._receive()).get("type") != "auth_required":
            raise NamesError("what answers there is not Home Assistant: check home_assistant.url")
        await self._send({"type": "auth", "access_token": token})
        if (await self._receive()).get("type") != "auth_ok":
            raise NamesError("the token is not accepted: make a long-lived access token in your profile there")

    async def house(self) -> House:
        """Return what there is in the house.

        Raises:
            NamesError: something cannot be asked.
        """
        self._changed = False
        states = _entries(await self.ask("get_states"))
        exposed = await self._exposed()
        wanted = sorted(exposed)
        entries = await self.ask("config/entity_registry/get_entries", entity_ids=wanted) if wanted else {}
        registered = {name: entry for name, entry in _mapping(entries).items() if isinstance(entry, Mapping)}
        devices, areas, floors = [
            _entries(await self.ask(f"config/{what}_registry/list")) for what in ("device", "area", "floor")
        ]
        return House(exposed, states, registered, devices, areas, floors)

    async def _exposed(self) -> frozenset[str]:
        """The entities that voice assistants may see. Without an administrator's token: those that are registered."""
        try:
            found = _mapping(await self.ask("homeassistant/expose_entity/list"))
            exposed = _mapping(found.get("exposed_entities")).items()
            return frozenset(name for name, whom in exposed if _mapping(whom).get("conversation") is True)
        except NamesError:
            entries = _entries(await self.ask("config/entity_registry/list"))
            return frozenset(str(each.get("entity_id")) for each in entries if _should_expose(each))

    async def wait_change(self) -> None:
        """Wait until something was renamed, moved, exposed, came or went."""
        while not self._changed:
            self._note(await self._received(None))

    async def ask(self, question: str, **about: Any) -> Any:
        """Return the answer to a question.

        Raises:
            NamesError: it was refused.
        """
        self._asked += 1
        await self._send({"id": self._asked, "type": question, **about})
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            while True:
                message = await self._received(None)
                if message.get("id") == self._asked and message.get("type") == "result":
                    break
                self._note(message)
        if message.get("success") is not True:
            why = _mapping(message.get("error")).get("message")
            raise NamesError(f"{question} was refused: {quoted(why)}")
        return message.get("result")

    def _note(self, message: Mapping[str, Any]) -> None:
        self._changed = self._changed or message.get("type") == "event"

    async def _send(self, message: Mapping[str, Any]) -> None:
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            await self._connection.send(json.dumps(message))

    async def _receive(self) -> Mapping[str, Any]:
        return await self._received(_ANSWER_TIMEOUT)

    async def _received(self, patience: float | None) -> Mapping[str, Any]:
        async with asyncio.timeout(patience):
            return _mapping(read_json(await self._connection.recv()))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entries(value: object) -> tuple[Mapping[str, Any], ...]:
    return tuple(each for each in value if isinstance(each, Mapping)) if isinstance(value, list) else ()


def _should_expose(entry: Mapping[str, Any]) -> bool:
    options = _mapping(_mapping(entry.get("options")).get("conversation"))
    return options.get("should_expose") is True
