"""The one line that says what goes on: `systemctl status` shows it.

Owns its words. Knows nothing of where the numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """What the line is made of.

    Attributes:
        models: what was loaded, in words.
        unready: why no stream should come; None when ready.
        streams: how many are open.
        speaking: the number of sources where somebody speaks.
        last_final: seconds since the last final; None before the first.
        notes: what needs attention.
    """

    models: str
    unready: str | None
    streams: int
    speaking: int
    last_final: float | None
    notes: tuple[str, ...] = ()


def line(facts: Facts) -> str:
    head = f"ready: {facts.models}" if facts.unready is None else f"not ready: {facts.unready}"
    streams = f"{facts.streams} stream{'' if facts.streams == 1 else 's'}"
    if facts.speaking:
        streams += f" ({facts.speaking} speaking)"
    last = "no final yet" if facts.last_final is None else f"last final {_ago(facts.last_final)}"
    return "; ".join([head, streams, last, *facts.notes])


def _ago(seconds: float) -> str:
    """Return how long ago it was, coarsely, so that an idle service has little to say."""
    if seconds < 10:
        return "just now"
    if seconds < 60:
        return f"{seconds // 10 * 10:.0f} s ago"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:.0f} d ago"
