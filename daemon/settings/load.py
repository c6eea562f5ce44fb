"""The settings, from one YAML file and the environment.

Owns where they are looked for, and their order: the environment (`WHISPERD_SERVER__PORT=9000`) comes before the file,
and the file before the defaults. It is the only reader of the environment, with `environment.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from daemon.common.errors import ConfigurationError
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.explain import kind_of, path_of, sentence_of
from daemon.settings.schema import MqttSettings, Section, Settings
from daemon.settings.secrets import credential_file

PREFIX = "WHISPERD_"


PLACES = (Path("whisperd.yaml"), Path("/etc/whisperd/whisperd.yaml"))
"""Where the file is looked for when none is named; the defaults hold when there is none."""


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Load the settings from a file and the environment.

    Args:
        path: the file; None for the first of `PLACES` that exists.
        environ: the variables of the environment.

    Raises:
        ConfigurationError: a file cannot be read, a key is unknown, or a value is not allowed.
    """
    values = _merge(_read(path or find()), _from_environment(environ))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # A value that may be of two types has an error for each: the first says enough.
        first = {path_of(each): sentence_of(each) for each in reversed(error.errors())}
        raise ConfigurationError("\n".join(reversed(first.values()))) from None


def find() -> Path | None:
    return next((place for place in PLACES if place.is_file()), None)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML itself takes the last one, and drops the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} appears twice, and only one can apply: merge the two", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is not YAML: {_yaml_trouble(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: must have keys such as server: and models:, but contains {kind_of(values)}")
    return values


def _yaml_trouble(error: Exception) -> str:
    """Return what is wrong and where, without the line itself, which may contain a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, yaml.YAMLError):
        return str(error).partition("\n")[0]
    if isinstance(error, UnicodeDecodeError):
        return "it must be UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a date or a number in it is invalid"


_FOREIGN = (
    (r"([A-Z0-9_]+_)?SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)", r".*"),
    (r"([A-Z0-9_]+_)?PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://.*"),
    (r"([A-Z0-9_]+_)?PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)", r".*"),
    (r"([A-Z0-9_]+_)?NAME", r"/.*"),
    (r"([A-Z0-9_]+_)?ENV_.+", r".*"),
)
"""Names, behind the prefix, and values that Kubernetes sets in each pod beside a Service called whisperd, or
whisperd-something, and docker where containers are linked. Nobody meant a setting by them.
"""


def foreign_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of variables that begin with our prefix and are not settings."""
    return sorted(name for name, value in environ.items() if name.startswith(PREFIX) and _is_foreign(name, value))


def _is_foreign(name: str, value: str) -> bool:
    rest = name.removeprefix(PREFIX)
    if rest.partition("__")[2]:
        return False
    return any(re.fullmatch(its, rest) and re.fullmatch(has, value, re.DOTALL) for its, has in _FOREIGN)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return `WHISPERD_SERVER__PORT=9000` as `{"server": {"port": 9000}}`."""
    values: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or _is_foreign(name, text):
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        if not key:
            raise ConfigurationError(
                f"{name}: an environment override must name a section and a key, such as {PREFIX}SERVER__PORT"
            )
        if section in Settings.model_fields and _section(section) is None:
            raise ConfigurationError(f"{name}: {section} is a list, and can only be set in the file")
        if key in values.setdefault(section, {}):
            raise ConfigurationError(f"{name}: {section}.{key} is set twice, in two spellings, and only one can apply")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigurationError(f"{name}: must be UTF-8")
        values[section][key] = _scalar(section, key, text)
    return values


def _scalar(section: str, key: str, text: str) -> Any:
    """Return `text` as YAML reads it, except where the key takes a text: a password may look like a number."""
    annotation = _annotation(section, key)
    if annotation is str:
        return text
    if annotation == (str | None):
        return text or None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # validation says what is wrong with it


def _annotation(section: str, key: str) -> Any:
    model = _section(section)
    inner = model.model_fields.get(key) if model else None
    return inner.annotation if inner else None


def _section(name: str) -> type[Section] | None:
    """Return the class of a section; None where there is none of this name, or a list of sections."""
    field = Settings.model_fields.get(name)
    model = field.annotation if field else None
    return model if isinstance(model, type) and issubclass(model, Section) else None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Put `above` over `below`, section by section. A key with nothing behind it (`server:`) has its defaults."""
    merged = {key: value for key, value in below.items() if value is not None or key not in Settings.model_fields}
    for section, keys in above.items():
        under = merged.get(section, {})
        if isinstance(under, dict):  # what is no section is left for validation to name
            merged[section] = {**under, **keys}
    return merged


def unheeded(mqtt: MqttSettings, environment: ServiceEnvironment, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return what is configured and has no effect, a sentence each."""
    warnings = []
    if foreign := foreign_variables(environ):
        warnings.append(f"ignored, because Kubernetes and Docker set such variables: {', '.join(foreign)}")
    passwords = {
        "mqtt.password": mqtt.password,
        "mqtt.password_file": mqtt.password_file,
        "the credential mqtt_password": credential_file("mqtt_password", environment),
    }
    first, *others = [name for name, given in passwords.items() if given is not None] or [""]
    warnings += [f"{name} is not used: {first} takes precedence" for name in others]
    return warnings
