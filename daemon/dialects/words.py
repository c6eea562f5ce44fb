"""What a client sent, read as JSON, or shown to it in its own error. Knows no dialect."""

from __future__ import annotations

import json
from typing import Any

_LONGEST = 60


def read_json(text: str | bytes) -> Any:
    """Raises:
    ValueError: it is none; says why.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        # Python's own words for it advise to change a setting of the interpreter.
        raise ValueError("a number has too many digits") from None


def shown(value: object) -> str:
    """`value` as JSON, cut: what a client sent must not fill its own error or our log."""
    return _cut(json.dumps(value, ensure_ascii=True))


def quoted(value: object) -> str:
    """The same as Python writes it, for what came in an address or a form rather than as JSON."""
    return _cut(ascii(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def language_code(tag: str | None) -> str | None:
    """The code of a language tag, however a client writes it: `en` of `en`, `EN`, `en-US` and `en_us`. None of nothing.

    Whether there is such a language is the model's to say, not a dialect's.
    """
    return tag.strip().replace("_", "-").partition("-")[0].lower() if tag else None
