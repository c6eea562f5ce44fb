"""OpenAI's `.pt`: a dictionary of sizes (`dims`) and weights (`model_state_dict`), as torch saves it.

Owns what such a file must hold. Knows nothing of tokenizers: the file has none.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from streaming.whisper.formats.imported import LONGEST_NAME, FormatError, ImportedModel, guarded, layout_name, put

MAGIC = b"PK\x03\x04"
"""torch writes archives of this kind since 2020, as all of OpenAI's files are."""
OLD_MAGIC = b"\x80\x02"

_INDEX = "data.pkl"
_LARGEST_INDEX = 4 << 20
"""Bytes of the archive's part that says what is where; large-v3's has a quarter of a million."""
_NEEDED = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{kind}Storage" for kind in ("Half", "Float", "BFloat16", "Double")),
}
"""What that part may name. torch knows more, none of which runs what a file holds; but some takes any memory."""


def read(file: Path) -> ImportedModel:
    """Read the model in a file; nothing in it is executed, and no number in it can claim more memory than the file has.

    Raises:
        FormatError: it is truncated, or holds something else.
    """
    return guarded(lambda: _read(file), file.name)


def _read(file: Path) -> ImportedModel:
    _check_archive(file)
    # Mapped: weights are slices of the file, so that no number in it can claim more than there is.
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise FormatError(f"{file.name} has no dims and model_state_dict: it is not one of OpenAI's Whisper files")
    heads = _heads(content["dims"], file.name)
    weights = _renamed(content["model_state_dict"], file.name)
    if sum(weight.nbytes for weight in weights.values()) > file.stat().st_size:  # one number for many
        raise FormatError(f"{file.name} has weights that are larger than itself: it is damaged")
    return ImportedModel("OpenAI", weights, heads)


def _check_archive(file: Path) -> None:
    """Nothing in it is larger than it looks, before torch reads it.

    Raises:
        FormatError: something is, or it holds something else than sizes and weights.
    """
    with ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != ZIP_STORED or entry.file_size > entry.compress_size for entry in entries):
            raise FormatError(f"{file.name} is compressed, unlike torch's own: load it with torch, and save it again")
        for entry in entries:
            if entry.filename.rpartition("/")[2].lower() != _INDEX:  # as torch looks for it
                continue
            if entry.file_size > _LARGEST_INDEX:
                raise FormatError(f"{file.name} has an index of {entry.file_size} bytes: it is not a Whisper model")
            if strange := sorted({*_named(archive.read(entry))} - _NEEDED):
                raise FormatError(
                    f"{file.name} contains more than sizes and weights ({strange[0][:LONGEST_NAME]!r}): nothing "
                    "in it was executed; save only its dims and model_state_dict"
                )


def _named(index: bytes) -> Iterator[str]:
    """The functions and classes that it asks for."""
    for operation, argument, _ in pickletools.genops(index):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield operation.name  # other ways to ask, which torch does not write


def _heads(dims: Any, name: str) -> int:
    if isinstance(dims, dict):
        audio, text = dims.get("n_audio_head"), dims.get("n_text_head")
        if type(audio) is int and type(text) is int and audio == text:
            return audio
    raise FormatError(f"{name} states no number of heads, or two: it is not one of OpenAI's Whisper files")


def _renamed(state: Any, name: str) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{name} has no weights in its model_state_dict: it is not one of OpenAI's Whisper files")
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        ours = layout_name(str(key))
        if ours is None or value.layout is not torch.strided or value.device.type != "cpu":
            shown = str(key)[:LONGEST_NAME]
            raise FormatError(
                f"{name} has weights that no Whisper model has ({shown!r}): it is of another architecture"
            )
        put(found, ours, value, name)
    return found
