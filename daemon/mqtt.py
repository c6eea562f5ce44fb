"""A hub subscriber that speaks MQTT.

Owns the topics, the connection to the broker and what waits for it. A broker that is down stops nothing: finals wait
in a bounded queue and go out in order once it is back; partials do not wait. Knows events and the states of sources,
and nothing of where either comes from.

Each connection is a new client with a clean session, and the queue here is the only truth: a final leaves it when the
broker has acknowledged it. One whose acknowledgement was lost is therefore sent twice, never not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterable

import aiomqtt

from daemon.config import Mqtt as MqttSettings
from daemon.faults import Fault
from daemon.metrics import Metrics
from daemon.sources import Sources, State, check_name
from streaming.events import Event, Final, Partial, to_json

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY = 10.0
"""Seconds that a connection must last before the next pause is a short one again. A broker that lets us in and throws
us out (a second daemon with the same client id) must not be called on every second."""

_MOST_COMMANDS = 100


class Mqtt:
    """events: all that is published. password: found by whoever reads the configuration.

    Raises:
        OSError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        settings: MqttSettings,
        password: str | None,
        events: AsyncIterable[Event],
        sources: Sources,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._password = password
        self._tls = ssl.create_default_context(cafile=settings.ca_file) if settings.tls else None
        self._events = events
        self._sources = sources
        self._metrics = metrics
        self._finals: deque[list[tuple[str, str]]] = deque()  # of each, the messages that are still to be sent
        self._partials: dict[tuple[str, int], Partial] = {}
        self._states: dict[str, State] = {}  # changes that the broker was not told
        self._connected = False
        self._ending = False  # no more events will come
        self._dropped = 0
        self._news = asyncio.Event()
        sources.watch(self._note_state)

    async def run(self) -> None:
        """Until the events end and what waits is delivered, or it turns out that the broker is away."""
        collector = asyncio.create_task(self._collect())
        pause = _FIRST_PAUSE
        try:
            while True:
                began = time.monotonic()
                try:
                    async with self._client() as client:
                        await self._talk(client)
                    return
                except (aiomqtt.MqttError, ValueError) as error:  # a name that cannot be looked up is a ValueError
                    self._lost(error)
                if self._ending:
                    return
                if time.monotonic() - began > _STEADY:
                    pause = _FIRST_PAUSE
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(collector), pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            collector.cancel()
            if self._finals:
                _log.error("mqtt: %d finals were not delivered", len(self._finals))

    # --- what comes from the hub -----------------------------------------------------------------------------------

    async def _collect(self) -> None:
        async for event in self._events:
            if isinstance(event, Final):
                self._partials.pop((event.source, event.utterance), None)
                self._queue(event)
            elif isinstance(event, Partial) and self._connected:
                self._partials[(event.source, event.utterance)] = event
            self._news.set()
        self._ending = True
        self._news.set()

    def _queue(self, final: Final) -> None:
        self._finals.append(
            [(self._topic(final.source, "final"), to_json(final)), (self._topic(final.source, "text"), final.text)]
        )
        if len(self._finals) > self._settings.queue:
            self._finals.popleft()
            self._metrics.mqtt_dropped.inc()
            self._dropped += 1
            if self._dropped == 1:
                _log.warning("mqtt: more than %d finals wait for the broker: dropping the oldest", self._settings.queue)
        self._metrics.mqtt_waiting.set(len(self._finals))

    def _note_state(self, source: str, state: State) -> None:
        self._states[source] = state
        self._news.set()

    # --- a connection ----------------------------------------------------------------------------------------------

    def _client(self) -> aiomqtt.Client:
        settings = self._settings
        return aiomqtt.Client(
            settings.host,
            settings.port,
            username=settings.username,
            password=self._password,
            # The same at each connection: the broker then ends an old one, and its will, before it lets us in.
            identifier=settings.client_id or f"whisperd-{socket.gethostname()}",
            will=aiomqtt.Will(self._topic("status"), "offline", qos=1, retain=True),
            clean_session=True,
            keepalive=settings.keepalive,
            max_queued_incoming_messages=_MOST_COMMANDS,
            tls_context=self._tls,
            logger=logging.getLogger("daemon.mqtt.aiomqtt"),
        )

    async def _talk(self, client: aiomqtt.Client) -> None:
        """Until the events end; then the broker is told that we are."""
        _log.info("mqtt: connected to %s:%d", self._settings.host, self._settings.port)
        self._metrics.mqtt_connections.inc()
        await client.subscribe(self._topic("+", "set"), qos=1)
        await client.publish(self._topic("status"), "online", qos=1, retain=True)
        self._states = self._sources.states()
        self._connected = True
        self._metrics.mqtt_connected.set(1)
        self._news.set()
        tasks = {asyncio.create_task(self._send(client)), asyncio.create_task(self._obey(client))}
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
        await client.publish(self._topic("status"), "offline", qos=1, retain=True)

    async def _send(self, client: aiomqtt.Client) -> None:
        """Whatever waits, one by one: finals first, then states, then partials. Until the events have ended."""
        while True:
            self._news.clear()
            if self._finals:
                await self._send_final(client)
            elif self._states:
                await self._send_state(client)
            elif self._partials:
                partial = self._partials.pop(next(iter(self._partials)))
                await client.publish(self._topic(partial.source, "partial"), to_json(partial), qos=0)
            elif self._ending:
                return
            else:
                await self._news.wait()

    async def _send_final(self, client: aiomqtt.Client) -> None:
        final = self._finals[0]
        while final:
            topic, payload = final[0]
            await client.publish(topic, payload, qos=1)
            del final[0]
        # The queue may have overflowed meanwhile, and dropped this very one.
        if self._finals and self._finals[0] is final:
            self._finals.popleft()
        self._metrics.mqtt_waiting.set(len(self._finals))

    async def _send_state(self, client: aiomqtt.Client) -> None:
        source, state = next(iter(self._states.items()))
        await client.publish(self._topic(source, "state"), state, qos=1, retain=True)
        if self._states.get(source) == state:  # it may have changed meanwhile
            del self._states[source]

    async def _obey(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            source = str(message.topic).removesuffix("/set").rpartition("/")[2]
            # A retained command was given once, to whoever listened then.
            if not message.retain:
                self._switch(source, message.payload)

    def _switch(self, source: str, payload: object) -> None:
        command = payload.decode("ascii", "replace").strip().upper() if isinstance(payload, bytes) else ""
        try:
            check_name(source)
            if command not in ("ON", "OFF"):
                raise Fault("bad_command", "must be ON or OFF")
        except Fault as fault:
            _log.warning("mqtt: a command for %.60a was ignored: %s", source, fault.message)
            return
        _log.info("mqtt: %s is switched %s", source, command.lower())
        self._sources.switch(source, command == "ON")

    def _lost(self, error: Exception) -> None:
        _log.warning("mqtt: %s:%d: %s; trying again", self._settings.host, self._settings.port, error)

    def _topic(self, *levels: str) -> str:
        return "/".join((self._settings.topic, *levels))
