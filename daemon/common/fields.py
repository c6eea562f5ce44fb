"""What a client sent, read as JSON or judged as a text, or shown to it in its own error; and texts as bare words. Knows
no dialect."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from daemon.common.logs import shortened

LONGEST_TEXT = 256
"""Characters of what a client may name, where its protocol says nothing else."""

_LONGEST = 60

_SIGNS = '.,!?;:…"“”„«»()[]¡¿。，、？！；：'  # noqa: RUF001 - the signs of other scripts are meant
"""Punctuation, at a word's edge. Not the apostrophe, nor currencies: those belong to the word."""


def read_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it is not JSON that can be read; says why.
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


def is_text(value: object, most: int = LONGEST_TEXT) -> TypeGuard[str]:
    """Whether it is one of at most `most` characters that can be sent back.

    Half a surrogate pair, which JSON can write, could not be: UTF-8 has no bytes for it.
    """
    return isinstance(value, str) and len(value) <= most and not any("\ud800" <= each <= "\udfff" for each in value)


def bare(word: str) -> str:
    """Without punctuation around it, in small letters; "" where it is nothing else."""
    return word.strip().strip(_SIGNS).lower()


def bare_text(text: str) -> str:
    return " ".join(filter(None, map(bare, text.split())))


def shown(value: object) -> str:
    """`value` as JSON, cut: what a client sent must not fill its own error or our log."""
    return shortened(json.dumps(value, ensure_ascii=True), _LONGEST)


def quoted(value: object, most: int = _LONGEST) -> str:
    """The same as Python writes it, for what came in an address, a header or a form rather than as JSON."""
    return shortened(ascii(value), most)


def language_code(tag: str | None) -> str | None:
    """The code of a language tag, however a client writes it: `en` of `en`, `EN`, `en-US` and `en_us`. None of nothing.

    Whether there is such a language is the model's to say, not a dialect's.
    """
    return tag.strip().replace("_", "-").partition("-")[0].lower() if tag else None
