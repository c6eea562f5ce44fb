"""OpenAI's `.pt`: a dictionary of sizes (`dims`) and weights (`model_state_dict`), as torch saves it.

Owns what such a file must hold. Knows nothing of tokenizers: the file has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streaming.whisper.formats.foreign import LONGEST_NAME, Foreign, FormatError, guarded, layout_name

MAGIC = b"PK\x03\x04"
"""torch writes archives of this kind since 2020, as all of OpenAI's files are."""
OLD_MAGIC = b"\x80\x02"


def read(file: Path) -> Foreign:
    """The model in `file`. Nothing in it is executed, and its weights are looked up in it, never asked for by size.

    Raises:
        FormatError: it is truncated, or holds something else.
    """
    return guarded(lambda: _read(file), file.name)


def _read(file: Path) -> Foreign:
    # Mapped: weights are slices of the file, so that no number in it can claim more than there is.
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise FormatError(f"{file.name} holds no dims and model_state_dict: it is none of OpenAI's Whisper files")
    heads = _heads(content["dims"], file.name)
    return Foreign("OpenAI", _renamed(content["model_state_dict"], file.name), heads)


def _heads(dims: Any, name: str) -> int:
    keys = ("n_audio_head", "n_text_head")
    heads = [dims.get(key) for key in keys] if isinstance(dims, dict) else []
    if len(set(heads)) != 1 or type(heads[0]) is not int:
        raise FormatError(f"{name} names no number of heads, or two ({heads}): it is none of OpenAI's Whisper files")
    return int(heads[0])


def _renamed(state: Any, name: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{name} has no weights in its model_state_dict: it is none of OpenAI's Whisper files")
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        ours = layout_name(str(key))
        if ours is None or not value.is_floating_point() or value.layout is not torch.strided:
            shown = str(key)[:LONGEST_NAME]
            raise FormatError(
                f"{name} has weights that no Whisper model has ({shown!r}): it is of another architecture"
            )
        found[ours] = value
    return found
