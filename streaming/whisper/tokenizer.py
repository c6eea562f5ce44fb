"""Tokenizers from strangers' files, as `tokenizer.json` has them.

Owns what is checked before the tokenizers library reads such a file, and turns the library's panics into errors. Knows
nothing of which tokens a model needs.
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
    """The tokenizer cannot be used; the message says why."""


def load_tokenizer(file: Path) -> Tokenizer:
    """Load the tokenizer in a file, which must be one of byte pairs, as every Whisper's is.

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
    """Turn whatever the library raises within the block into TokenizerError.

    It raises bare exceptions, and panics, which are none.

    Raises:
        TokenizerError: the library failed.
    """
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
    """What the library takes on trust, and panics or ends the process without: that two tokens, joined, are one.

    Raises:
        ValueError: they are not.
    """
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        raise ValueError("it does not use byte pairs")
    tokens, merges = model.get("vocab"), model.get("merges")
    if not isinstance(tokens, Mapping) or not tokens or not isinstance(merges, list):
        raise ValueError("it has no vocabulary or no merges")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("its tokens have a prefix or suffix")
    if not all(_is_pair(each, tokens) for each in merges):
        raise ValueError("one of its merges joins or makes something that is not a token")


def _is_pair(merge: Any, tokens: Mapping[str, Any]) -> bool:
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(halves, list) or len(halves) != 2 or not all(isinstance(half, str) for half in halves):
        return False
    return all(each in tokens for each in (*halves, "".join(halves)))


def _sentence(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
