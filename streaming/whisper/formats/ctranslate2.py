"""CTranslate2's `model.bin`, which every user of faster-whisper has.

Owns the layout of the file (versions 4 to 6) and of Whisper in it: fused projections, scales of rounded rows. Knows
nothing of tokenizers, or of what becomes of the weights.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from streaming.whisper.formats.imported import FormatError, ImportedModel, Reader, guarded, put, tensor

SPECIFICATION = "WhisperSpec"

_VERSIONS = (4, 5, 6)
_WORDS = {
    torch.float32: "float32",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_DTYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Block:
    """One projection or norm: its name there, and its names here, several for a fused projection, in order."""

    there: str
    here: tuple[str, ...]


_SELF = (
    _Block("self_attention/linear_0", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    _Block("self_attention/linear_1", ("self_attn.out_proj",)),
    _Block("self_attention/layer_norm", ("self_attn_layer_norm",)),
)
_CROSS = (
    _Block("attention/linear_0", ("encoder_attn.q_proj",)),
    _Block("attention/linear_1", ("encoder_attn.k_proj", "encoder_attn.v_proj")),
    _Block("attention/linear_2", ("encoder_attn.out_proj",)),
    _Block("attention/layer_norm", ("encoder_attn_layer_norm",)),
)
_FEED = (
    _Block("ffn/linear_0", ("fc1",)),
    _Block("ffn/linear_1", ("fc2",)),
    _Block("ffn/layer_norm", ("final_layer_norm",)),
)
_LAYERS = {"encoder": (*_SELF, *_FEED), "decoder": (*_SELF, *_CROSS, *_FEED)}


def is_one(data: memoryview) -> bool:
    """Return whether the file begins as every `model.bin` does: with its version, and the name of a specification."""
    if len(data) < 6:
        return False
    version, length = struct.unpack("<IH", data[:6])
    return version < 1 << 8 and 1 < length < 64 and bytes(data[6 : 6 + length]).rstrip(b"\0").isalnum()


def read(data: memoryview, name: str) -> ImportedModel:
    """Read the model in a `model.bin`.

    Args:
        data: of the file.
        name: of the file, for the messages.

    Raises:
        FormatError: it is truncated, of another kind of model, or in numbers that are not known.
    """
    return guarded(lambda: _read(data, name), name)


def _read(data: memoryview, name: str) -> ImportedModel:
    variables = _variables(Reader(data, name), name)
    form = _WORDS.get(variables["decoder/layer_0/self_attention/linear_0/weight"].dtype, "")
    return ImportedModel(f"CTranslate2 {form}".rstrip(), dict(_renamed(variables)), _heads(variables, name))


def _variables(reader: Reader, name: str) -> dict[str, Tensor]:
    version = reader.number("I")
    if version not in _VERSIONS:
        raise FormatError(f"{name} is not a CTranslate2 model.bin of a known version ({version}): convert it again")
    specification = _text(reader)
    if specification != SPECIFICATION:
        raise FormatError(f"{name} contains a {specification!r} model; a Whisper model ({SPECIFICATION}) is required")
    reader.number("I")  # the specification's revision
    found: dict[str, Tensor] = {}
    for _ in range(reader.number("I")):
        key = _text(reader)
        shape = reader.shape(reader.number("B"))
        kind = reader.number("B")
        if kind not in _DTYPES:
            raise FormatError(
                f"{name} has weights ({key}) in an unknown format (type {kind}): convert to float16 or int8"
            )
        content = reader.take(reader.number("I"))
        dtype = _DTYPES[kind]
        if len(content) != prod(shape) * dtype.itemsize:
            raise FormatError(f"{name}: the length of the weights {key} does not fit their shape: it is damaged")
        put(found, key, tensor(content, dtype, shape), name)
    for _ in range(reader.number("I")):
        alias, key = _text(reader), _text(reader)
        put(found, alias, found[key], name)
    if reader.left:
        raise FormatError(f"{name} continues after the end of its weights: it is damaged")
    return found


def _text(reader: Reader) -> str:
    return reader.name(reader.number("H"))


def _renamed(found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "encoder.embed_positions.weight", _expanded(found, "encoder/position_encodings/encodings")
    yield "decoder.embed_positions.weight", _expanded(found, "decoder/position_encodings/encodings")
    yield "decoder.embed_tokens.weight", _expanded(found, "decoder/embeddings/weight")
    for number in (1, 2):
        yield from _block(found, f"encoder/conv{number}", "encoder.", (f"conv{number}",))
    for half, blocks in _LAYERS.items():
        yield from _block(found, f"{half}/layer_norm", f"{half}.", ("layer_norm",))
        for layer in range(_count(found, half)):
            for block in blocks:
                yield from _block(found, f"{half}/layer_{layer}/{block.there}", f"{half}.layers.{layer}.", block.here)


def _block(found: Mapping[str, Tensor], there: str, prefix: str, here: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if f"{there}/gamma" in found:
        weight, bias = found[f"{there}/gamma"], found[f"{there}/beta"]
    else:
        weight, bias = _expanded(found, f"{there}/weight"), found[f"{there}/bias"]
    for name, part, offset in zip(here, weight.chunk(len(here)), bias.chunk(len(here)), strict=True):
        yield f"{prefix}{name}.weight", part
        if not name.endswith("k_proj"):  # Whisper's keys have none: the fused one is of zeros
            yield f"{prefix}{name}.bias", offset


def _expanded(found: Mapping[str, Tensor], key: str) -> Tensor:
    """Rows of 8 or 16 bits were multiplied by their scales, each by its own or all by one; others stay as they are."""
    weight = found[key]
    if weight.dtype not in (torch.int8, torch.int16):
        return weight
    scale = found[f"{key}_scale"].float().flatten()
    if len(scale) not in (1, len(weight)):
        raise FormatError(f"{key} has {len(scale)} scales for {len(weight)} rows: the file is damaged")
    if not bool((scale.isfinite() & (scale != 0)).all()):
        raise FormatError(f"{key} has scales that are 0 or not numbers: the file is damaged")
    return (weight / scale.view(-1, *[1] * (weight.dim() - 1))).half()


def _count(found: Mapping[str, Tensor], half: str) -> int:
    layers = {int(match[1]) for key in found if (match := re.match(rf"{half}/layer_(\d{{1,3}})/", key))}
    if layers != set(range(len(layers))) or not layers:
        raise KeyError(f"{half}/layer_{min(set(range(len(layers) + 1)) - layers)}")
    return len(layers)


def _heads(found: Mapping[str, Tensor], name: str) -> int:
    """Files of before version 5 do not say: 64 wide, as in every published size."""
    counts = {int(found[key].flatten()[0]) for half in _LAYERS if (key := f"{half}/num_heads") in found}
    if len(counts) > 1:
        raise FormatError(f"{name} has different numbers of heads in its encoder and its decoder: it is damaged")
    return counts.pop() if counts else found["decoder/embeddings/weight"].shape[-1] // 64
