"""The automations of the README: they parse, and what they refer to is what we publish."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from home_assistant import Schema, render

from daemon.mqtt.home_assistant import HomeAssistantDevice, payload

PAGE = (Path(__file__).parent.parent.parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
AUTOMATIONS: dict[str, dict[str, Any]] = {block["alias"]: block for block in BLOCKS if "alias" in block}
LIGHT, TELL, NIGHT = AUTOMATIONS.values()
DEVICE = HomeAssistantDevice("homeassistant", "whisperd", "attic", "whisperd")
ENTITIES = {each["default_entity_id"] for each in json.loads(payload(DEVICE, ["kitchen"]))["cmps"].values()}
NOW = 1_800_000_000.0


def texts(of: Any) -> list[str]:
    """Every text in a document."""
    if isinstance(of, dict):
        return [text for value in of.values() for text in texts(value)]
    if isinstance(of, list):
        return [text for value in of for text in texts(value)]
    return [of] if isinstance(of, str) else []


def trigger(**final: Any) -> dict[str, Any]:
    """The variables of a template: an event entity that has just become `final`."""
    attributes = {"event_type": "final", "source": "kitchen", "at": NOW - 1, "confidence": 0.9, **final}
    to_state = SimpleNamespace(attributes=attributes)
    return {
        "trigger": SimpleNamespace(to_state=to_state, id="off"),
        "now": lambda: SimpleNamespace(timestamp=lambda: NOW),
    }


def runs(automation: dict[str, Any], variables: dict[str, Any]) -> bool:
    """One after the other, as Home Assistant does: what follows a false one is not even looked at."""
    return all(render(condition, **variables) == "True" for condition in automation["conditions"])


def test_they_are_automations() -> None:
    for automation in AUTOMATIONS.values():
        assert automation.keys() <= {"alias", "mode", "triggers", "conditions", "actions"}
        assert {each["trigger"] for each in automation["triggers"]} <= {"state", "time"}
        assert all("action" in each for each in automation["actions"])


@pytest.mark.parametrize("automation", AUTOMATIONS.values(), ids=AUTOMATIONS)
def test_they_name_entities_and_fields_that_there_are(automation: dict[str, Any]) -> None:
    ids = set(re.findall(r"\b\w+\.whisperd_\w+", " ".join(texts(automation))))
    assert ids
    assert ids <= ENTITIES
    used = re.findall(r"attributes(?:\.get\('|\.(?!get\b))(\w+)", " ".join(texts(automation)))
    assert set(used) <= set(Schema().content["$defs"]["final"]["required"])


def test_a_light_by_voice() -> None:
    assert runs(LIGHT, trigger(text="Please turn on the kitchen light"))
    assert not runs(LIGHT, trigger(text="Please turn on the kitchen light", at=NOW - 60))
    assert runs(LIGHT, trigger(text="Turn on the kitchen light."))  # as Whisper writes
    assert not runs(LIGHT, trigger(text="what a nice kitchen light"))
    # The entity became unavailable: it has no text then.
    unavailable = trigger()
    unavailable["trigger"].to_state.attributes = {}
    assert not runs(LIGHT, unavailable)
    (action,) = LIGHT["actions"]
    for word in ("on", "off"):
        for text in (f"turn {word} the kitchen light", f"Turn {word} the kitchen light!"):
            assert render(action["action"], **trigger(text=text)) == f"light.turn_{word}"


def test_a_notification_with_what_was_said() -> None:
    assert runs(TELL, trigger(text="dinner is ready"))
    assert not runs(TELL, trigger(text="dinner is ready", at=NOW - 3000))
    (action,) = TELL["actions"]
    assert render(action["data"]["message"], **trigger(text="dinner is ready")) == "dinner is ready"
    assert render(action["data"]["title"], **trigger(text="x")) == "In the kitchen"


def test_mute_at_night() -> None:
    (action,) = NIGHT["actions"]
    assert {each["id"] for each in NIGHT["triggers"]} == {"on", "off"}
    assert render(action["action"], **trigger()) == "switch.turn_off"
    assert action["target"]["entity_id"] == "switch.whisperd_kitchen_listening"
