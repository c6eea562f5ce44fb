"""The little of Home Assistant that the tests need: how it reads topics by an entity's templates.

Knows discovery payloads, MQTT messages and Jinja; nothing of our code.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_STATE = 255


def render(template: str, **names: Any) -> str:
    """A template as Home Assistant renders it: sandboxed, with its own filter `to_json` and test `search`."""
    environment = ImmutableSandboxedEnvironment()
    environment.filters["to_json"] = json.dumps
    environment.tests["search"] = lambda value, find, ignorecase=False: bool(
        re.search(find, value, re.IGNORECASE if ignorecase else 0)
    )
    return environment.from_string(template).render(**names)


def state(entity: dict[str, Any], payload: str) -> str:
    """What an entity makes of a message on its state topic; for an event, its JSON."""
    template = entity.get("value_template")
    if template is None:
        return payload
    try:
        parsed = json.loads(payload)
    except ValueError:
        parsed = None
    return render(template, value=payload, value_json=parsed)


class Schema:
    """The schema that ships with the package."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = json.loads(files("daemon").joinpath("schemas/mqtt.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(self.content)
        self._validators = {
            name: jsonschema.Draft202012Validator({**self.content, "$ref": f"#/$defs/{name}"})
            for name in self.content["$defs"]
        }

    def definition(self, topic: str) -> str:
        """The name of the definition of what is published there."""
        levels = topic.split("/")
        for pattern, reference in self.content["topics"].items():
            wanted = pattern.split("/")
            if len(wanted) == len(levels) and all(w in ("+", got) for w, got in zip(wanted, levels, strict=True)):
                return str(reference.removeprefix("#/$defs/"))
        raise AssertionError(f"the schema knows no topic {topic}")

    def validate(self, topic: str, payload: str) -> str:
        """The definition that `payload` was held to.

        Raises:
            jsonschema.ValidationError: it is not like that.
        """
        name = self.definition(topic)
        content: Any = json.loads(payload) if name in ("partial", "final", "diagnostics", "discovery") else payload
        self._validators[name].validate(content)
        return name
