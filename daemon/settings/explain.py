"""What is wrong with a setting, as a sentence that begins with its key.

Owns the wording, the guess at what an unknown key was meant to be, and that no secret is quoted. Knows nothing of
files.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from daemon.settings.schema import Section, Settings, Token


def kind_of(value: object) -> str:
    return {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}.get(
        type(value), type(value).__name__
    )


def _parts(error: Any) -> list[str]:
    *above, last = error["loc"] or ("",)
    # Where a value may be of two types, the type that was tried is part of pydantic's location. An unknown key may be
    # called so.
    found = [str(part) for part in above if part not in ("str", "int")]
    return found if last in ("str", "int") and error["type"] != "extra_forbidden" else [*found, str(last)]


def path_of(error: Any) -> str:
    return ".".join(_parts(error))


def sentence_of(error: Any) -> str:
    """Return one of pydantic's errors as a sentence that begins with the key's path."""
    path = path_of(error)
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(_parts(error))}"
    # A secret must not get into the log by way of a slip in its own key.
    got = f", got {kind_of(error['input']) if _may_be_secret(path, error['input']) else repr(error['input'])}"
    match error["type"]:
        case "value_error":
            return f"{path}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
        case "literal_error":
            return f"{path}: must be {error['ctx']['expected']}{got}"
        case "missing":
            return f"{path}: is missing"
        case "model_type":
            return f"{path}: must be a section with its own keys{got}"
        case "string_type":
            hint = ": put it in quotes" if isinstance(error["input"], int | float) else ""
            return f"{path}: must be a string{got}{hint}"
        case "tuple_type":
            return f"{path}: must be a list{got}"
        case "string_pattern_mismatch":
            return f"{path}: {_PATTERNS.get(path, 'has an invalid form')}{got}"
    return f"{path}: {error['msg'].replace('Input should be', 'must be')}{got}"


def _may_be_secret(path: str, value: object) -> bool:
    whole_section = "." not in path and not isinstance(value, int | float)
    secrets = ("mqtt.password", "home_assistant.token", "server.tokens")
    return whole_section or path in secrets or path.startswith("server.tokens.")


_TOPIC_RULE = "must be a topic without + and #, and must neither begin nor end with /"


_PATTERNS = {
    "models.device": "must be auto, cpu, cuda:N, or several: cuda:0,cuda:1",
    "mqtt.topic": _TOPIC_RULE,
    "mqtt.discovery_prefix": _TOPIC_RULE,
    "home_assistant.url": "must be empty, or an address such as http://homeassistant.local:8123",
    "mqtt.node_id": "must be 1..64 of the letters a-z and A-Z, digits, _ and -",
}


def _sections() -> dict[str, type[Section]]:
    """Return the class of each section; for several in one, that of its elements; for what is no section, no keys."""
    types = {name: (field.annotation, *get_args(field.annotation)) for name, field in Settings.model_fields.items()}
    return {
        name: next((each for each in found if isinstance(each, type) and issubclass(each, Section)), Section)
        for name, found in types.items()
    }


def _nearest(parts: Sequence[str]) -> str:
    """Return what may have been meant: the key of this name elsewhere, the most similar one here, or all of them."""
    *above, key = parts
    sections = _sections()
    section, dot, inner = key.partition(".")
    if not above and dot and section in sections and inner in sections[section].model_fields:
        return f": a dot does not make a section: write {section}: {{{inner}: ...}}"
    namesakes = [f"{name}.{key}" for name, section in sections.items() if key in section.model_fields]
    known = list(sections[above[0]].model_fields if above else sections)
    if above[:2] == ["server", "tokens"]:
        known, namesakes = list(Token.model_fields), []
    likest = [".".join([*above, near]) for near in difflib.get_close_matches(key, known, n=1, cutoff=0.5)]
    if meant := likest[:1] if above and likest else namesakes[:1] or likest:
        return f"; did you mean {meant[0]}?"
    return f"; known are {', '.join(known)}"
