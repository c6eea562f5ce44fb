"""A subscriber of events that speaks MQTT.

Owns the topics, the connection to the broker, and what is sent on it in which order. A broker that is down stops
nothing: finals wait in the spool and go out in order once it is back; partials do not wait. Knows events and the states
of sources, and nothing of where either comes from.

Each connection is a new client with a clean session, and the spool is the only truth: a final leaves it when the broker
has acknowledged it. A final whose acknowledgement was lost is therefore sent twice, with the same id, never not at all.

A message that the broker does not accept (its access rules; the size of its packets; it hangs up whenever it is sent
the message) is counted, named and passed over: it must not hold up those behind it. A broker that sends too much loses
the connection; one that does so each time is not asked for commands any more.

What is retained (states, switches, diagnostics, the device for Home Assistant) is sent anew at each connection. Of
several changes that wait, only the last is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import socket
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import aiomqtt

from daemon.common.client_input import quoted, read_json, read_phrases
from daemon.common.errors import Fault
from daemon.common.logs import log_context
from daemon.common.metrics import Metrics
from daemon.common.sources import Sources, State, check_name
from daemon.mqtt.client import (
    MqttClient,
    RefusedError,
    TooBigError,
    Version,
    how_it_ended,
    is_too_big,
    make_client,
    may_be_its_fault,
    older_version_wanted,
    packet_size,
    sentence,
    subscription_refused,
    tls_context,
)
from daemon.mqtt.home_assistant import HomeAssistantDevice, payload
from daemon.mqtt.spool import Entry, Spool
from daemon.settings.schema import MOST_SHOWN, MqttSettings
from streaming.events import Event, Final, Partial, to_json
from streaming.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
_library = logging.getLogger("daemon.mqtt.publisher.aiomqtt")
_library.setLevel(logging.CRITICAL)  # what went wrong with a connection we say ourselves: once, not at every attempt
_V = TypeVar("_V")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY = 10.0
"""Seconds that a connection must last before the next pause is a short one again. A broker that lets us in and throws
us out (a second daemon with the same client id) must not be called on every second."""

_BIRTH_PAUSE = (5.0, 15.0)
"""Seconds, at random, that Home Assistant has after its start before all is told again: not by everybody at once."""

_DIAGNOSTICS_INTERVAL = 10.0

_MOST_COMMANDS = 100
_MOST_RETAINED = 4096
"""Topics that wait to be told, and switches that are known to have been told: clients make up names, and a broker may
be away for long. What is forgotten is told at the next connection, or once more."""


_MOST_HANGUPS = 3
"""Times that a broker may hang up when it is sent one message; then that is what it does not like. Old brokers, and
those of clouds, have no other way to say so."""

_MOST_COMPLAINTS, _COMPLAINTS_IN = 10, 60.0
"""Lines of the log about what others send us, in so many seconds; the rest is only counted."""


class Mqtt:
    """Sends events to the broker, and obeys the commands that come from there.

    Args:
        settings: those of the broker.
        password: the broker's.
        events: all that is published.
        sources: their states and switches.
        metrics: count messages and connections.
        spool: the file for finals that wait; None for none.
        microphones: the sources that are known before they are heard.
        saved: called with the id of each final once it is kept; see `Spool`.
        vocabulary: called with a source and the phrases that its streams are to hear from now on.

    Raises:
        ConfigurationError: a certificate cannot be used.
    """

    def __init__(
        self,
        settings: MqttSettings,
        password: str | None,
        events: AsyncIterable[Event],
        sources: Sources,
        metrics: Metrics,
        spool: Path | None = None,
        microphones: Sequence[str] = (),
        saved: Callable[[str], None] = lambda _: None,
        vocabulary: Callable[[str, Vocabulary], None] = lambda *_: None,
    ) -> None:
        self._settings = settings
        self._password = password
        self._tls = tls_context(settings)
        self._version: Version = "3.1.1" if settings.version == "3.1.1" else "5"
        self._events = events
        self._sources = sources
        self._metrics = metrics
        self._microphones = microphones
        self._vocabulary = vocabulary
        self._device = HomeAssistantDevice(
            settings.discovery_prefix, settings.topic, settings.node_id or _host(), settings.name
        )
        self._spooled = spool is not None
        self._spool = Spool(spool, settings.queue, settings.max_age, metrics, saved=saved)
        self._partials: dict[tuple[str, int], Partial] = {}
        self._retained: dict[str, str] = {}  # what the broker was not told yet: topic -> payload
        self._switches: dict[str, bool] = {}  # as they were told last
        self._diagnosed = ""  # the diagnostics that were told last
        self._connected = False
        self._ending = False  # no more events will come
        self._complaint = ""
        self._said: set[str] = set()  # what needs to be said once
        self._largest: int | None = None  # bytes of a packet that the broker takes
        self._under_way: str | None = None  # what the broker is being sent
        self._suspect = ("", 0)  # what was under way when it hung up, and how many times in a row
        self._given_up: dict[str, str] = {}  # what it is not sent any more, and why
        self._floods = 0  # how many times in a row it sent too much
        self._complaints: deque[float] = deque(maxlen=_MOST_COMPLAINTS)  # when they were made
        self._news = asyncio.Event()
        sources.watch(self._note_source)

    async def open(self) -> None:
        """Read what an earlier process left, and which sources were switched off, before anything is heard."""
        await self._spool.open()
        for source, listen in self._spool.sources().items():
            self._sources.switch(source, listen)

    async def run(self) -> None:
        """Send until the events end and what waits is delivered, or it turns out that the broker is away."""
        saving = asyncio.create_task(self._spool.run())
        collector = asyncio.create_task(self._collect())
        try:
            await self._keep_connected(collector)
        finally:
            collector.cancel()
            saving.cancel()
            await self._spool.close()
            self._tell_what_is_left()

    async def _keep_connected(self, collector: asyncio.Task[None]) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            self._under_way = None
            client = self._client()
            try:
                async with client:
                    await self._talk(client)
                return
            except (aiomqtt.MqttError, ValueError) as error:  # a name that cannot be looked up is a ValueError
                if self._try_older_version(error):
                    continue
                self._lost(error, client)
            if self._ending:
                return
            if time.monotonic() - began > _STEADY:
                pause = _FIRST_PAUSE
                self._given_up.clear()  # the broker may have been changed
                self._floods = 0
            self._blame(client)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(collector), pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _blame(self, client: MqttClient) -> None:
        """Find out whether the broker hung up, or could not take a message, because of what it was being sent."""
        if client.flooded is not None:
            self._blame_commands(client.flooded)
            return
        what = self._under_way
        if what is None or (client.rejected is None and not may_be_its_fault(client.hung_up)):
            return
        before, count = self._suspect
        count = count + 1 if what == before else 1
        self._suspect = (what, count)
        if is_too_big(client.hung_up):
            self._given_up[what] = "it is too large for the broker"
        elif count >= _MOST_HANGUPS:
            did = "closed the connection" if client.rejected is None else f"said {str(client.rejected).lower()!r}"
            self._given_up[what] = f"the broker {did} each time it was sent, {count} times in a row"

    def _blame_commands(self, why: str) -> None:
        """Give up subscriptions whose messages cost the connection each time.

        Somebody published what is too much, and if it is retained it comes at each connection: finals must not wait
        until it is taken away.
        """
        self._floods += 1
        if self._floods >= _MOST_HANGUPS:
            for topic in (self._topic("+", "set"), self._topic("+", "vocabulary", "set"), self._device.birth_topic):
                self._given_up[_subscription(topic)] = f"{why}, {self._floods} times in a row"

    # --- what comes from the hub and the sources -------------------------------------------------------------------

    async def _collect(self) -> None:
        async for event in self._events:
            if isinstance(event, Final):
                self._partials.pop((event.source, event.utterance), None)
                self._spool.add(_entry(event))
            elif isinstance(event, Partial) and self._connected:
                self._partials[(event.source, event.utterance)] = event
            self._news.set()
        self._ending = True
        self._news.set()

    def _note_source(self, source: str, state: State) -> None:
        on = self._sources.is_on(source)
        new = self._spool.remember(source, on)
        self._retain(self._topic(source, "state"), state)
        if self._switches.get(source) is not on:
            self._retain_switch(source)
        if new and self._settings.discovery:
            self._retain(self._device.config_topic, self._config())

    # --- a connection ----------------------------------------------------------------------------------------------

    def _client(self) -> MqttClient:
        settings = self._settings
        return make_client(
            settings,
            self._password,
            self._tls,
            self._version,
            # The same at each connection: the broker then ends an old one, and its will, before it lets us in.
            identifier=settings.client_id or _client_id(settings.topic),
            will=aiomqtt.Will(self._topic("status"), "offline", qos=1, retain=True),
            max_queued_incoming_messages=_MOST_COMMANDS,
            logger=_library,
            ignored=lambda why: self._ignore("a message of the broker", why),
        )

    async def _talk(self, client: MqttClient) -> None:
        """Send and receive until the events end. Then the broker is told that the daemon goes."""
        _log.info("mqtt: connected to %s:%d, MQTT %s", self._settings.host, self._settings.port, self._version)
        self._complaint = ""
        self._largest = client.largest
        self._metrics.mqtt_connections.inc()
        await self._subscribe(client, self._topic("+", "set"), "sources cannot be switched")
        await self._subscribe(client, self._topic("+", "vocabulary", "set"), "phrases cannot be set")
        if self._settings.discovery:
            await self._subscribe(client, self._device.birth_topic, "restarts of Home Assistant go unnoticed")
        await self._introduce(client)
        self._connected = True
        self._metrics.mqtt_connected.set(1)
        self._news.set()
        tasks = {asyncio.create_task(work) for work in (self._send(client), self._obey(client), self._diagnose())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._connected = False
            self._metrics.mqtt_connected.set(0)
            self._partials.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        # A clean end sends no will.
        await self._publish(client, self._topic("status"), "offline", retain=True)

    async def _subscribe(self, client: MqttClient, topic: str, otherwise: str) -> None:
        what = _subscription(topic)
        if (why := self._given_up.get(what)) is not None:
            self._say_once(what, f"{what} was given up ({why}): {otherwise}")
            return
        self._under_way = what
        granted = await client.subscribe(topic, qos=1)
        self._under_way = None
        if subscription_refused(granted):
            self._say_refused(topic, f"may not read {topic}: {otherwise}")

    async def _introduce(self, client: MqttClient) -> None:
        """Tell who we are, how we are, and then that we are there.

        The states of the sources come after the finals that wait, because they are newer.
        """
        self._retained.clear()
        self._retain_sources()
        self._diagnosed = self._diagnostics()
        await self._publish(client, self._device.config_topic, self._config(), retain=True)
        await self._publish(client, self._topic("diagnostics"), self._diagnosed, retain=True)
        await self._publish(client, self._topic("status"), "online", retain=True)

    async def _send(self, client: MqttClient) -> None:
        """Send whatever waits, one by one: finals first, then what is retained, then partials. Until the events end."""
        while True:
            self._news.clear()
            if (entry := self._spool.first()) is not None:
                await self._send_final(client, entry)
            elif self._retained:
                await self._send_retained(client)
            elif self._partials:
                partial = self._partials.pop(next(iter(self._partials)))
                await self._publish(client, self._topic(partial.source, "partial"), to_json(partial), qos=0)
            elif self._ending:
                return
            else:
                await self._news.wait()

    async def _send_final(self, client: MqttClient, entry: Entry) -> None:
        kind, body = [("final", entry.final), ("text", entry.text)][entry.sent]
        topic = self._topic(entry.source, kind)
        what = f"the {kind} {entry.id} of {entry.source}"
        refused = await self._publish(client, topic, body, what)
        if isinstance(refused, TooBigError) and kind == "final" and (less := _without_words(body)) is not None:
            self._say_once("words", f"{what} is sent without its words ({refused}), and so are others like it")
            refused = await self._publish(client, topic, less, f"{what} without its words")
        if isinstance(refused, TooBigError):
            if kind == "final":
                self._spool.put_aside(entry, str(refused))
            kept = "; it is in the table `aside` of the spool" if kind == "final" and self._spool.on_disk else ""
            _log.error("mqtt: %s was given up: %s%s", what, refused, kept)
        for each in (what, f"{what} without its words"):
            self._given_up.pop(each, None)  # it does not come again
        self._spool.delivered(entry)

    async def _send_retained(self, client: MqttClient) -> None:
        topic, body = next(iter(self._retained.items()))
        await self._publish(client, topic, body, retain=True)
        if self._retained.get(topic) == body:  # it may have changed meanwhile
            del self._retained[topic]

    async def _publish(
        self, client: MqttClient, topic: str, body: str, what: str = "", *, qos: int = 1, retain: bool = False
    ) -> RefusedError | None:
        """Publish a message, and return why it was given up; None if the broker has it.

        What is refused for good is counted, and those behind it may be welcome. `what` names the message where its
        topic does not.
        """
        what = what or topic
        refused: RefusedError | None = None
        if what in self._given_up:
            refused = TooBigError(self._given_up[what])
        else:
            self._under_way = what
            try:
                await client.deliver(topic, body, qos=qos, retain=retain)
            except RefusedError as error:
                refused = error
            self._under_way = None
        if isinstance(refused, TooBigError):
            self._metrics.mqtt_too_big.inc()
            if what == topic:
                self._say_once(f"too big: {topic.rpartition('/')[2]}", f"{topic} was given up ({refused})")
        elif refused is not None:
            self._metrics.mqtt_refused.inc()
            self._say_refused(topic.rpartition("/")[2], f"may not write {topic} ({refused})")
        return refused

    # --- what is retained ------------------------------------------------------------------------------------------

    def _retain(self, topic: str, body: str) -> None:
        _put(self._retained, topic, body)
        self._news.set()

    def _retain_switch(self, source: str) -> None:
        on = self._sources.is_on(source)
        _put(self._switches, source, on)
        self._retain(self._topic(source, "switch"), "ON" if on else "OFF")

    def _retain_sources(self) -> None:
        states: dict[str, State] = {**dict.fromkeys(self._shown(), "idle"), **self._sources.states()}
        for source, state in states.items():
            self._retain(self._topic(source, "state"), state)
            self._retain_switch(source)

    def _retain_diagnostics(self) -> None:
        self._diagnosed = self._diagnostics()
        self._retain(self._topic("diagnostics"), self._diagnosed)

    def _config(self) -> str:
        """Return the device for Home Assistant, or nothing, which removes it.

        It is one message. Where that is more than the broker takes, sources are left out, those that came last first.
        """
        if not self._settings.discovery:
            return ""
        shown = self._shown()
        # Those that are named now may be fewer than those that were shown before.
        known = self._spool.sources() if self._settings.sources else ()
        hidden = [source for source in known if source not in shown]

        def first(count: int) -> str:
            return payload(self._device, shown[:count], hidden[: max(0, count - len(shown))])

        def size(count: int) -> int:
            return packet_size(self._device.config_topic, first(count))

        count = len(shown) + len(hidden)
        if self._largest is not None and size(count) > self._largest:
            count = max(0, bisect_right(range(count + 1), self._largest, key=size) - 1)
        if count < len(shown):
            self._say_once(
                "shown",
                f"Home Assistant is shown {count} of {len(shown)} sources, because the broker accepts no packet "
                f"above {self._largest} bytes: list the important ones in mqtt.sources",
            )
        return first(count)

    def _shown(self) -> list[str]:
        """Return the sources that Home Assistant is shown.

        They are those that the settings name, or else all that were ever heard.
        """
        known = self._settings.sources or (*self._microphones, *self._spool.sources())
        return list(dict.fromkeys(known))[:MOST_SHOWN]

    def _diagnostics(self) -> str:
        kept = "disk" if self._spool.on_disk else "failed" if self._spooled else "memory"
        return json.dumps({"waiting": len(self._spool), "dropped": self._spool.dropped, "spool": kept})

    async def _diagnose(self) -> None:
        while True:
            await asyncio.sleep(_DIAGNOSTICS_INTERVAL)
            if self._diagnostics() != self._diagnosed:
                self._retain_diagnostics()

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def _obey(self, client: MqttClient) -> None:
        birth: asyncio.TimerHandle | None = None
        try:
            async for message in client.messages:
                topic = str(message.topic)
                if topic.endswith("/vocabulary/set"):  # it holds until another comes, retained or not
                    self._set_vocabulary(topic, message.payload)
                    continue
                # A retained command was meant for whoever listened then; and a retained birth is over.
                if message.retain:
                    continue
                if topic == self._device.birth_topic:
                    if message.payload == b"online":
                        if birth is not None:
                            birth.cancel()
                        birth = asyncio.get_running_loop().call_later(random.uniform(*_BIRTH_PAUSE), self._tell_again)
                else:
                    self._switch(topic, message.payload)
        finally:
            if birth is not None:
                birth.cancel()

    def _tell_again(self) -> None:
        _log.info("mqtt: Home Assistant has started: publishing everything again")
        self._retain(self._device.config_topic, self._config())
        self._retain_sources()
        self._retain_diagnostics()

    def _switch(self, topic: str, body: object) -> None:
        source = topic.removeprefix(self._topic("")).removesuffix("/set")
        command = body.decode("ascii", "replace").strip().upper() if isinstance(body, bytes) else ""
        try:
            source = check_name(source)
            if topic != self._topic(source, "set"):
                raise Fault("bad_command", "this topic was not subscribed to")
            if command not in ("ON", "OFF"):
                raise Fault("bad_command", "must be ON or OFF")
        except Fault as fault:
            self._ignore(f"a command for {quoted(source)}", fault.message)
            return
        with log_context(source=source):
            _log.info("mqtt: %s was switched %s", source, command.lower())
        self._sources.switch(source, command == "ON")
        self._retain_switch(source)  # whoever turned it waits for that, even if nothing changed

    def _set_vocabulary(self, topic: str, body: object) -> None:
        source = topic.removeprefix(self._topic("")).removesuffix("/vocabulary/set")
        try:
            source = check_name(source)
            if topic != self._topic(source, "vocabulary", "set"):
                raise Fault("bad_command", "this topic was not subscribed to")
            phrases = read_phrases(_json(body))
        except Fault as fault:
            self._ignore(f"a vocabulary for {quoted(source)}", fault.message)
            return
        with log_context(source=source):
            _log.info("mqtt: %s has a vocabulary of %d phrases", source, len(phrases.phrases))
        self._vocabulary(source, phrases)

    def _ignore(self, what: str, why: str) -> None:
        """Count a message that is ignored, and log it now and then.

        Anybody who may publish there may do so as often as they like.
        """
        self._metrics.mqtt_bad_commands.inc()
        if self._may_complain():
            _log.warning("mqtt: %s was ignored: %s", what, why)

    def _may_complain(self) -> bool:
        now, said = time.monotonic(), self._complaints
        if len(said) == _MOST_COMPLAINTS and now - said[0] <= _COMPLAINTS_IN:
            return False
        said.append(now)
        return True

    # --- what the log is told --------------------------------------------------------------------------------------

    def _try_older_version(self, error: Exception) -> bool:
        if self._settings.version != "auto" or self._version != "5" or not older_version_wanted(error):
            return False
        self._version = "3.1.1"
        return True

    def _lost(self, error: Exception, client: MqttClient) -> None:
        said = sentence(error) if client.hung_up is None else how_it_ended(client.hung_up)
        new = True
        if client.flooded is not None:
            self._metrics.mqtt_bad_commands.inc()
            said, new = f"the connection was closed: {client.flooded}", self._may_complain()
        level = logging.WARNING if new and said != self._complaint else logging.DEBUG  # once, not at every attempt
        _log.log(level, "mqtt: %s:%d: %s; trying again", self._settings.host, self._settings.port, said)
        self._complaint = said

    def _say_refused(self, what: str, said: str) -> None:
        who = f"user {self._settings.username}" if self._settings.username else "a client without a user name"
        self._say_once(what, f"refused by the broker's access rules: {who} {said}; everything else continues")

    def _say_once(self, what: str, said: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning("mqtt: %s", said)

    def _tell_what_is_left(self) -> None:
        if self._spool and self._spool.on_disk:
            _log.info("mqtt: %d finals wait on disk for the next start", len(self._spool))
        elif self._spool:
            _log.error("mqtt: %d finals were not delivered", len(self._spool))

    def _topic(self, *levels: str) -> str:
        return "/".join((self._settings.topic, *levels))


def _json(body: object) -> object:
    """Return what a message says; what is empty takes a retained one back, and says nothing.

    Raises:
        Fault: `bad_command`.
    """
    if not isinstance(body, bytes) or not body.strip():
        return []
    try:
        return read_json(body)
    except ValueError as error:
        raise Fault("bad_command", f"must be a JSON list of phrases: {error}") from None


def _subscription(topic: str) -> str:
    return f"the subscription to {topic}"


def _put(latest: dict[str, _V], key: str, value: _V) -> None:
    """Put a value last, in the order of the changes. The oldest goes where there are too many."""
    latest.pop(key, None)
    latest[key] = value
    if len(latest) > _MOST_RETAINED:
        del latest[next(iter(latest))]


def _without_words(body: str) -> str | None:
    """Return a final without the times of its words, which are most of it; None where it has none."""
    final = json.loads(body)
    if final.pop("words", None) is None:
        return None
    return json.dumps(final, ensure_ascii=False, separators=(",", ":"))


def _entry(final: Final) -> Entry:
    assert final.id is not None, "the hub names every final"
    assert final.at is not None, "and says when it was"
    return Entry(final.id, final.source, final.at, to_json(final), final.text)


def _client_id(topic: str) -> str:
    """Return an id that differs between hosts, and between daemons of one host, which have different topics."""
    usual = topic == MqttSettings.model_fields["topic"].default
    return f"whisperd-{socket.gethostname()}" if usual else f"whisperd-{socket.gethostname()}-{topic.replace('/', '-')}"


def _host() -> str:
    """Return the host's name as part of a topic and of ids."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", socket.gethostname()) or "whisperd"
