"""What may change while the service runs.

Owns the list of those keys, and the comparison of the settings in force with the new ones. Knows nothing of how a
change takes effect: each part applies its own settings.

A key is in the list if no connected client notices the change: the new value holds for the next connection, stream or
log line. Everything else belongs to something that would have to be rebuilt (a port, a model, a device, the broker's
connection), and waits for a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.settings.schema import Section, Settings

_SOMETIMES = frozenset({"escalate.when", "server.certificate", "server.key"})
"""Depending on what it is and what it shall be: see `_may_change`."""

_SECTIONS = frozenset({"vocabulary", "sources", "vad", "segment", "confidence", "partials", "files", "log", "shutdown"})
_KEYS = frozenset(
    {
        "server.tokens",
        "server.tokens_file",
        "server.open",
        "server.origins",
        "server.max_streams",
        "server.max_subscribers",
        "server.max_per_address",
        "server.max_handshakes",
        "server.max_rate",
        "server.resume",
        "escalate.below",
        "escalate.shortest",
        "scheduler.backlog",
        "scheduler.longest_wait",
    }
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload changes.

    Attributes:
        settings: those in force, with all changes that are possible now.
        changed: the keys that change, such as `log.level`.
        waiting: the keys that wait for a restart, such as `server.port`.
    """

    settings: Settings
    changed: tuple[str, ...]
    waiting: tuple[str, ...]


def plan(now: Settings, wanted: Settings, *, teacher_loaded: bool) -> Plan:
    settings, changed, waiting = now, [], []
    for key in _differing(now, wanted):
        if _may_change(key, now, wanted, teacher_loaded):
            changed.append(key)
            settings = _with(settings, key, wanted)
        else:
            waiting.append(key)
    return Plan(settings, tuple(changed), tuple(waiting))


def reloadable(key: str) -> bool:
    """Return whether `key`, such as `log.level`, may change while the service runs, at least between some values."""
    return key in _KEYS | _SOMETIMES or key.partition(".")[0] in _SECTIONS


def _differing(now: Settings, wanted: Settings) -> list[str]:
    found = []
    for name in Settings.model_fields:
        mine, theirs = getattr(now, name), getattr(wanted, name)
        if not isinstance(mine, Section):
            found += [name] if mine != theirs else []
        else:
            keys = type(mine).model_fields
            found += [f"{name}.{key}" for key in keys if getattr(mine, key) != getattr(theirs, key)]
    return found


def _may_change(key: str, now: Settings, wanted: Settings, teacher_loaded: bool) -> bool:
    match key:
        case "escalate.when":
            return teacher_loaded or wanted.escalate.when == "never"
        case "server.certificate" | "server.key":
            # Another one may come; but a port does not begin or cease to speak TLS.
            return now.server.certificate is not None and wanted.server.certificate is not None
    return reloadable(key)


def _with(settings: Settings, path: str, wanted: Settings) -> Settings:
    name, _, key = path.partition(".")
    if not key:
        return settings.model_copy(update={name: getattr(wanted, name)})
    section: Section = getattr(settings, name)
    section = section.model_copy(update={key: getattr(getattr(wanted, name), key)})
    return settings.model_copy(update={name: section})
