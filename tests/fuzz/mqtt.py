"""MQTT: what others publish where the daemon listens, by a real broker.

`mqtt`: commands at `whisperd/<source>/set`, vocabularies, and births of Home Assistant, right and wrong, retained or
not. After each example a command that is right is obeyed as ever.
"""

from __future__ import annotations

import itertools
import queue
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bench.broker import Broker

from .rounds import Target
from .service import PATIENCE, Daemon

_MARKER = "marker"

# A broker itself ends whoever sends a control character, a surrogate or a wildcard in a topic.
_LETTERS = st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="+#")
NAMES = st.text(_LETTERS, max_size=80) | st.sampled_from(["a1", "kitchen", "a" * 64, "a" * 65, " x", "$SYS", '"', "\\"])
TOPICS = (
    NAMES.map("whisperd/{}/set".format)
    | NAMES.map("whisperd/{}/vocabulary/set".format)
    | st.just("homeassistant/status")
    | st.lists(NAMES, min_size=1, max_size=3).map("/".join).map("whisperd/{}".format)
)
BODIES = (
    st.sampled_from([b"ON", b"OFF", b"on", b" off\n", b"online", b"", b"ON\x00", b"\xff" * 3, b"x" * 100_000])
    | st.sampled_from([b'["Kallax"]', b'[{"text":"a","weight":9}]', b"[]", b"[" * 9999, b'["a",'])
    | st.binary(max_size=50)
    | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
MESSAGES = st.lists(st.tuples(TOPICS, BODIES, st.booleans(), st.sampled_from([0, 1, 2])), max_size=12)


class House:
    """A broker, a daemon that listens to it, and somebody who publishes."""

    def open(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._broker = Broker(Path(self._folder.name))
        self._broker.start()
        self._daemon = Daemon({"mqtt": {"host": "127.0.0.1", "port": self._broker.port, "discovery": True}})
        self._daemon.open()
        self._told = queue.Queue[bytes]()
        self._commands = itertools.cycle([b"OFF", b"ON"])
        client = self._client = Client(CallbackAPIVersion.VERSION2)
        client.on_message = self._on_message
        client.connect("127.0.0.1", self._broker.port)
        client.subscribe([("whisperd/status", 1), (f"whisperd/{_MARKER}/switch", 1)])
        client.loop_start()
        self._await(b"online")  # it has subscribed

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        try:
            self._daemon.close()
        finally:
            self._broker.stop()
            self._folder.cleanup()

    def publish(self, messages: list[tuple[str, bytes, bool, int]]) -> None:
        for topic, body, retain, qos in messages:
            self._client.publish(topic, body, qos=qos, retain=retain)
        command = next(self._commands)
        # Of one publisher the broker keeps the order: when this one is obeyed, all before it were looked at.
        self._client.publish(f"whisperd/{_MARKER}/set", command, qos=1)
        self._await(command)
        self._daemon.check_log()

    def _await(self, body: bytes) -> None:
        while self._told.get(timeout=PATIENCE) != body:
            pass  # what was retained, or told before

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        self._told.put(bytes(message.payload))


_house = House()

TARGETS = (Target("mqtt", MESSAGES, _house.publish, size=100, open=_house.open, close=_house.close),)
