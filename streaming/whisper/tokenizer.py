"""Tokenizers of strangers, as `tokenizer.json` has them.

Owns what is looked at before the tokenizers library reads such a file, and that its panics are errors like others.
Knows nothing of which tokens a model needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

_LARGEST = 64 << 20
"""Bytes; those of the published models have four million."""


class TokenizerError(Exception):
    """It cannot be used; the message says why."""


def load_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in `file`, which is of byte pairs, as every Whisper's is.

    Raises:
        TokenizerError: it is none, or cannot be read.
    """
    try:
        _check(_content(file))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(_sentence(error)) from error
    with library_errors():
        return Tokenizer.from_file(str(file))


@contextmanager
def library_errors() -> Iterator[None]:
    """Whatever the library raises within, as TokenizerError: bare Exception, and panics, which are none."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(_sentence(error)) from error


def _content(file: Path) -> Any:
    with file.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")
    return json.loads(content)


def _check(content: Any) -> None:
    """What the library takes on trust, and panics by, or ends the process: that two tokens, joined, are one.

    Raises:
        ValueError
    """
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        raise ValueError("it is not of byte pairs")
    tokens, merges = model.get("vocab"), model.get("merges")
    if not isinstance(tokens, Mapping) or not tokens or not isinstance(merges, list):
        raise ValueError("it has no vocabulary, or no pairs")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("its tokens are not what they are joined of")
    if not all(_is_pair(each, tokens) for each in merges):
        raise ValueError("it joins what is no token, or to what is none")


def _is_pair(merge: Any, tokens: Mapping[str, Any]) -> bool:
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(halves, list) or len(halves) != 2 or not all(isinstance(half, str) for half in halves):
        return False
    return all(each in tokens for each in (*halves, "".join(halves)))


def _sentence(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
