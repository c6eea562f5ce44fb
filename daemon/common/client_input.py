"""Reading what clients send (JSON, texts, language tags), and quoting it in errors.

Owns the limits on a client's text, how a value is shown in an error or the log, and the form of bare words. Knows no
dialect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeGuard

from daemon.common.errors import Fault
from daemon.common.logs import shortened
from streaming.vocabulary import Vocabulary, VocabularyError, read_vocabulary

LONGEST_TEXT = 256
"""Characters of what a client may name, where its protocol says nothing else."""

_LONGEST = 60

_SIGNS = '.,!?;:…"“”„«»()[]¡¿。，、？！；：'  # noqa: RUF001 - the signs of other scripts are meant
"""Punctuation, at a word's edge. Not the apostrophe, nor currencies: those belong to the word."""


def read_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it is not JSON that can be read; the message says why.
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
    """Return whether `value` is a string of at most `most` characters that can be sent back.

    Half of a surrogate pair cannot: JSON can write it, but UTF-8 has no bytes for it.
    """
    return isinstance(value, str) and len(value) <= most and not any("\ud800" <= each <= "\udfff" for each in value)


def bare(word: str) -> str:
    """Return `word` in lower case without the punctuation around it; "" where nothing is left."""
    return word.strip().strip(_SIGNS).lower()


def bare_text(text: str) -> str:
    return " ".join(filter(None, map(bare, text.split())))


def shown(value: object) -> str:
    """Return `value` as JSON, cut: what a client sent must not fill its own error or the log."""
    return shortened(json.dumps(value, ensure_ascii=True), _LONGEST)


def quoted(value: object, most: int = _LONGEST) -> str:
    """Return `value` as Python writes it, cut to `most` characters.

    It is for what came in an address, a header or a form rather than as JSON.
    """
    return shortened(ascii(value), most)


def language_code(tag: str | None) -> str | None:
    """Return the code of a language tag, or None where there is no tag.

    Clients write tags in several ways: `en`, `EN`, `en-US` and `en_us` are all `en`. The model decides whether there is
    such a language, not a dialect.
    """
    return tag.strip().replace("_", "-").partition("-")[0].lower() if tag else None


def language_codes(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the codes of several language tags, each once, in their order; empty tags are none."""
    return tuple(dict.fromkeys(code for tag in tags if (code := language_code(tag))))


def read_phrases(value: object) -> Vocabulary:
    """Read a client's list of phrases.

    Raises:
        Fault: `bad_vocabulary`.
    """
    try:
        return read_vocabulary(value)
    except VocabularyError as error:
        raise Fault("bad_vocabulary", str(error)) from None
