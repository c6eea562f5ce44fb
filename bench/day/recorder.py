"""A subscriber of the broker that is not ours: it keeps a session, and so gets what came while it was away.

Owns its connection, which is made anew whenever it is lost. Every final is handed on as it comes, repeats too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

_KEEPALIVE = 5


class Recorder:
    """An MQTT subscriber that hands on every final.

    Attributes:
        connections: made so far. subscribed: it hears; not set while the broker is away.
    """

    def __init__(self, port: int, topic: str, take: Callable[[dict[str, Any]], None]) -> None:
        """take: called in another thread."""
        self.connections = 0
        self.subscribed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._topic = f"{topic}/+/final"
        self._port = port
        client = self._client = Client(
            CallbackAPIVersion.VERSION2, "recorder", clean_session=False, protocol=MQTTProtocolVersion.MQTTv311
        )
        client.reconnect_delay_set(1, 2)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message

    async def start(self) -> None:
        self._client.connect_async("127.0.0.1", self._port, _KEEPALIVE)
        self._client.loop_start()
        await asyncio.wait_for(self.subscribed.wait(), 30)

    async def stop(self) -> None:
        await asyncio.to_thread(self._client.disconnect)
        await asyncio.to_thread(self._client.loop_stop)

    # Called in the library's thread, which acknowledges a message when `_on_message` has returned.

    def _on_connect(self, client: Client, *_: Any) -> None:
        self.connections += 1
        client.subscribe(self._topic, qos=1)

    def _on_subscribe(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self.subscribed.set)

    def _on_disconnect(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self.subscribed.clear)

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        self._take(json.loads(message.payload))
