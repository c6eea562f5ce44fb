"""A real broker, and a subscriber there that is not ours: it has a session, and so gets what came while it was away.

Owns the subscriber's connection, which is made anew whenever it is lost, and every final that came, repeats too. Knows
nothing of what the finals are compared with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bench.broker import Broker
from bench.harness.daemon import PATIENCE
from bench.harness.delivery import Final
from bench.tasks import wait_until

_FINALS = "whisperd/+/final"
_KEEPALIVE = 5


class MqttSubscriber:
    """A subscriber to all finals.

    Args:
        port: of the broker.

    Attributes:
        finals: in the order in which they came; they grow in another thread.
        connections: made so far.
        subscribed: set while it hears; not while the broker is away.
    """

    def __init__(self, port: int) -> None:
        self.finals: list[Final] = []
        self.connections = 0
        self.subscribed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._port = port
        client = self._client = Client(
            CallbackAPIVersion.VERSION2, "recorder", clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
        )
        client.reconnect_delay_set(1, 2)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message

    @property
    def ids(self) -> set[str]:
        return {each.id for each in list(self.finals)}

    @property
    def repeated(self) -> int:
        """How many finals came again."""
        return len(self.finals) - len(self.ids)

    async def ids_once(self, enough: Callable[[set[str]], bool]) -> set[str]:
        """Wait until the ids that came are enough, or nothing comes any more.

        Args:
            enough: tells of ids whether they are.

        Returns:
            The ids that came.
        """
        await wait_until(lambda: enough(self.ids), PATIENCE)
        return self.ids

    async def start(self) -> None:
        self._client.connect_async("127.0.0.1", self._port, _KEEPALIVE)
        self._client.loop_start()
        await asyncio.wait_for(self.subscribed.wait(), PATIENCE)

    async def stop(self) -> None:
        await asyncio.to_thread(self._client.disconnect)
        await asyncio.to_thread(self._client.loop_stop)

    # Called in the library's thread, which acknowledges a message when `_on_message` has returned.

    def _on_connect(self, client: Client, *_: Any) -> None:
        self.connections += 1
        client.subscribe(_FINALS, qos=1)

    def _on_subscribe(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self.subscribed.set)

    def _on_disconnect(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self.subscribed.clear)

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        self.finals.append(Final.of(json.loads(message.payload), time.monotonic()))


@dataclass(frozen=True, slots=True)
class Mqtt:
    """A broker, and who listens there."""

    broker: Broker
    subscriber: MqttSubscriber

    def settings(self, **more: object) -> dict[str, dict[str, object]]:
        """Return the section of the settings for a daemon that publishes here.

        Args:
            more: keys of that section.
        """
        return {"mqtt": {"host": "127.0.0.1", "port": self.broker.port, **more}}


@contextlib.asynccontextmanager
async def mqtt(folder: Path, *, sessions: bool = False) -> AsyncIterator[Mqtt]:
    """Run a broker, and a subscriber there, for as long as the block runs.

    Args:
        folder: where the broker keeps its files.
        sessions: whether what waits for the subscriber outlives the broker.

    Yields:
        The broker and the subscriber.

    Raises:
        MissingError: the broker is not installed.
        RuntimeError: it does not start.
    """
    broker = Broker(folder)
    if sessions:
        broker.keep_sessions()
    try:
        broker.start()
        subscriber = MqttSubscriber(broker.port)
        await subscriber.start()
        try:
            yield Mqtt(broker, subscriber)
        finally:
            await subscriber.stop()
    finally:
        broker.stop()
