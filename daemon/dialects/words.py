"""What a client sent, read as JSON, or shown to it in its own error. Knows no dialect."""

from __future__ import annotations

import json
from typing import Any

from daemon.logs import shortened

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
    return shortened(json.dumps(value, ensure_ascii=True), _LONGEST)


def quoted(value: object, most: int = _LONGEST) -> str:
    """The same as Python writes it, for what came in an address, a header or a form rather than as JSON."""
    return shortened(ascii(value), most)
