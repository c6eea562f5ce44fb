"""How the daemon shows itself to Home Assistant: the sources -> the payload of its device.

Owns the device's entities, their ids, and how each is read from the topics. Pure functions: knows nothing of brokers,
of when anything is published, or of what becomes of it.

One device has all entities. For each source: an event for each final (for automations), the last text, the switch,
whether somebody speaks, and the latency of the last final. For the daemon itself: what waits for the broker, what was
dropped, and whether what waits would outlive a restart.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

Entity = dict[str, Any]

HOMEPAGE = "https://pypi.org/project/whisperd/"

_LONGEST_STATE = 250
"""A state of more than 255 characters is none: Home Assistant then shows `unknown`."""


@dataclass(frozen=True, slots=True)
class HomeAssistantDevice:
    """The device that Home Assistant is shown.

    Attributes:
        prefix: the first level of Home Assistant's topics.
        topic: the first level, or levels, of ours.
        node: an id that no other daemon there has.
        name: what Home Assistant calls it.
    """

    prefix: str
    topic: str
    node: str
    name: str

    @property
    def config_topic(self) -> str:
        return f"{self.prefix}/device/whisperd_{self.node}/config"

    @property
    def birth_topic(self) -> str:
        """The topic where Home Assistant says that it is back."""
        return f"{self.prefix}/status"


def payload(device: HomeAssistantDevice, shown: Iterable[str], hidden: Iterable[str] = ()) -> str:
    """Return the device with its sources, as JSON.

    Args:
        device: its names and topics.
        shown: the sources that it has.
        hidden: sources whose entities are removed, where they were shown before.
    """
    version = _version()
    entities = _of_daemon(device)
    for source in shown:
        entities |= _of_source(device, source)
    for source in hidden:
        # An entity of which only the platform is said is removed.
        entities |= {key: {"p": entity["p"]} for key, entity in _of_source(device, source).items()}
    return json.dumps(
        {
            "dev": {"ids": [f"whisperd_{device.node}"], "name": device.name, "mf": "whisperd", "sw": version},
            "o": {"name": "whisperd", "sw": version, "url": HOMEPAGE},
            "cmps": entities,
            "availability_topic": f"{device.topic}/status",
            "qos": 1,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


@cache
def _version() -> str:
    return metadata.version("whisperd")


def slug(source: str) -> str:
    """Return `source` as a part of an id: two names never have one slug."""
    plain = re.sub(r"[^a-z0-9]+", "_", source.lower()).strip("_")
    # A name that looks like one with a digest gets one too.
    if plain == source and not re.search(r"(^|_)[0-9a-f]{6}$", plain):
        return plain
    return f"{plain}_{hashlib.sha256(source.encode()).hexdigest()[:6]}".lstrip("_")


def _of_source(device: HomeAssistantDevice, source: str) -> dict[str, Entity]:
    topic = f"{device.topic}/{source}"
    return _with_ids(
        device,
        slug(source),
        {
            "final": {
                "p": "event",
                "name": f"{source} final",
                "icon": "mdi:text-recognition",
                "event_types": ["final"],
                "state_topic": f"{topic}/final",
                "value_template": "{{ dict(value_json, event_type='final') | to_json }}",
            },
            "text": {
                "p": "sensor",
                "name": f"{source} text",
                "icon": "mdi:text",
                "state_topic": f"{topic}/final",
                "value_template": f"{{{{ value_json.text[:{_LONGEST_STATE}] }}}}",
                "json_attributes_topic": f"{topic}/final",
            },
            "listening": {
                "p": "switch",
                "name": f"{source} listening",
                "icon": "mdi:microphone",
                "state_topic": f"{topic}/switch",
                "command_topic": f"{topic}/set",
            },
            "speech": {
                "p": "binary_sensor",
                "name": f"{source} speech",
                "device_class": "sound",
                "state_topic": f"{topic}/state",
                "value_template": "{{ 'ON' if value == 'speech' else 'OFF' }}",
            },
            "latency": {
                "p": "sensor",
                "name": f"{source} latency",
                "device_class": "duration",
                "unit_of_measurement": "ms",
                "entity_category": "diagnostic",
                "state_topic": f"{topic}/final",
                "value_template": "{{ value_json.latency_ms }}",
            },
        },
    )


def _of_daemon(device: HomeAssistantDevice) -> dict[str, Entity]:
    topic = f"{device.topic}/diagnostics"
    return _with_ids(
        device,
        "daemon",
        {
            "waiting": {
                "p": "sensor",
                "name": "Waiting finals",
                "icon": "mdi:tray-full",
                "state_class": "measurement",
                "entity_category": "diagnostic",
                "state_topic": topic,
                "value_template": "{{ value_json.waiting }}",
            },
            "dropped": {
                "p": "sensor",
                "name": "Dropped finals",
                "icon": "mdi:tray-remove",
                "state_class": "total_increasing",
                "entity_category": "diagnostic",
                "state_topic": topic,
                "value_template": "{{ value_json.dropped }}",
            },
            "spool": {
                "p": "binary_sensor",
                "name": "Spool",
                "device_class": "problem",
                "entity_category": "diagnostic",
                "state_topic": topic,
                "value_template": "{{ 'ON' if value_json.spool == 'failed' else 'OFF' }}",
            },
        },
    )


def _with_ids(device: HomeAssistantDevice, owner: str, entities: Mapping[str, Entity]) -> dict[str, Entity]:
    """Return entities under keys that are unique in the device, with ids that are unique in the house."""
    return {
        f"{owner}_{kind}": {
            **entity,
            "unique_id": f"whisperd_{device.node}_{owner}_{kind}",
            "default_entity_id": f"{entity['p']}.whisperd_{owner}_{kind}",
        }
        for kind, entity in entities.items()
    }
