"""What a file of another program gives: a model's sizes, its weights, and what it knows of its vocabulary.

Owns the shape of an import before it is a checkpoint, the error that every reader raises, the names that OpenAI gives
to weights, and bounded reading: a number in a file is never believed beyond the bytes that are there. Knows no format.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from streaming.whisper.checkpoint import Dimensions

MOST_ELEMENTS = 1 << 28
"""In one tensor; large-v3's largest has 66 million."""
MOST_WEIGHTS = 1 << 14
"""Tensors in a file; large-v3 has 1,259."""

LONGEST_NAME = 200

_Read = TypeVar("_Read")


class FormatError(Exception):
    """The file cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model as its file has it.

    Attributes:
        form: the format and its numbers, in words.
        weights: by the Hugging Face layout's names without the leading "model.", as `read_weights` gives them; what was
            rounded to fewer bits is expanded to half precision.
        heads: of the attention.
        vocabulary: the tokens' bytes in order, without the special ones, where the file has them.
    """

    form: str
    weights: Mapping[str, Tensor]
    heads: int
    vocabulary: Sequence[bytes] | None = None


# --- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Little-endian values from a file's bytes.

    Raises:
        FormatError: from every method, where the file ends before the value does.
    """

    def __init__(self, data: memoryview, name: str) -> None:
        self._data, self._name = data, name
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        if count < 0 or count > self.left:
            raise FormatError(f"{self._name} ends before its weights do: it is truncated, fetch it again")
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Read numbers.

        Args:
            form: as in `struct`, without the byte order.
        """
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def number(self, form: str) -> int:
        return int(self.numbers(form)[0])

    def name(self, count: int) -> str:
        """Read a short, printable name, as of a tensor."""
        part = self.take(count)
        text = bytes(part[: LONGEST_NAME + 1]).rstrip(b"\0").decode("latin-1")
        if len(part) > LONGEST_NAME or not (text.isascii() and text.isprintable()):
            raise FormatError(f"{self._name} has weights with an invalid name: it is damaged, or not a Whisper model")
        return text

    def shape(self, rank: int, form: str = "I") -> tuple[int, ...]:
        """Read the sizes of a tensor, which has no more dimensions or elements than any Whisper's."""
        if not 0 <= rank <= 4:
            raise FormatError(f"{self._name} has a tensor of {rank} dimensions: it is damaged, or not a Whisper model")
        sizes = tuple(int(size) for size in self.numbers(form * rank))
        if prod(sizes) > MOST_ELEMENTS or any(size < 0 for size in sizes):
            raise FormatError(f"{self._name} has a tensor of the size {sizes}: it is damaged")
        return sizes


def tensor(data: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return a copy of little-endian numbers as a tensor; no bytes give an empty one."""
    if not len(data):
        return torch.zeros(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(tuple(shape))


def put(found: dict[str, Tensor], key: str, weight: Tensor, name: str) -> None:
    """Add one more of the weights in a file.

    Args:
        found: the weights so far.
        key: its name.
        weight: the tensor.
        name: of the file, for the messages.

    Raises:
        FormatError: it is there already, or there are too many.
    """
    if key in found:
        raise FormatError(f"{name} has the weights {key!r} twice: it is damaged")
    if len(found) >= MOST_WEIGHTS:
        raise FormatError(f"{name} has more than {MOST_WEIGHTS} tensors: it is damaged, or not a Whisper model")
    found[key] = weight


def guarded(read: Callable[[], _Read], name: str) -> _Read:
    """Return what `read` returns; damage, which shows in many ways deep in arithmetic and libraries, is one error.

    Args:
        read: reads a file.
        name: of the file, for the messages.

    Raises:
        FormatError: it failed.
    """
    try:
        return read()
    except FormatError:
        raise
    except KeyError as error:
        lacking = str(error)[:LONGEST_NAME]
        raise FormatError(f"{name} lacks the weights {lacking}: it is not a complete Whisper model") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FormatError(f"{name} cannot be read ({reason}): it is damaged, or not a Whisper model") from error


# --- names -----------------------------------------------------------------------------------------------------------

_PARTS = {
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
    **{
        f"{theirs}{part}": f"{ours}{name}"
        for theirs, ours in (("attn", "self_attn"), ("cross_attn", "encoder_attn"))
        for part, name in (
            (".query", ".q_proj"),
            (".key", ".k_proj"),
            (".value", ".v_proj"),
            (".out", ".out_proj"),
            ("_ln", "_layer_norm"),
        )
    },
}
_WHOLES = {
    "encoder.positional_embedding": "encoder.embed_positions.weight",
    "decoder.positional_embedding": "decoder.embed_positions.weight",
    "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
    **{
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (
            ("encoder.conv1", "encoder.conv1"),
            ("encoder.conv2", "encoder.conv2"),
            ("encoder.ln_post", "encoder.layer_norm"),
            ("decoder.ln", "decoder.layer_norm"),
        )
        for kind in ("weight", "bias")
    },
}
_IN_LAYER = re.compile(r"((?:en|de)coder)\.blocks\.(\d{1,3})\.(.+)\.(weight|bias)")


def layout_name(name: str) -> str | None:
    """Return the layout's name of weights that OpenAI calls `name`; None for what no Whisper has."""
    if name in _WHOLES:
        return _WHOLES[name]
    match = _IN_LAYER.fullmatch(name)
    if match is None or match[3] not in _PARTS:
        return None
    return f"{match[1]}.layers.{int(match[2])}.{_PARTS[match[3]]}.{match[4]}"


# --- sizes -----------------------------------------------------------------------------------------------------------


def dimensions(model: ImportedModel, name: str) -> Dimensions:
    """Return the model's sizes, once every weight of a Whisper of these sizes is there, and nothing else.

    Raises:
        FormatError: weights are missing, too many, or of another shape.
    """
    sizes = guarded(lambda: _dimensions(model), name)
    if not sizes.encoder_layers or not sizes.decoder_layers:
        raise FormatError(f"{name} has no layers: it is not a complete Whisper model")
    if sizes.encoder_heads < 1 or sizes.d_model % sizes.encoder_heads:
        raise FormatError(f"{name} has {sizes.encoder_heads} heads for a width of {sizes.d_model}: it is damaged")
    expected = shapes(sizes)
    if missing := sorted(expected.keys() - model.weights.keys()):
        raise FormatError(f"{name} lacks the weights {missing[0]!r}: it is truncated, or not a complete Whisper model")
    if more := sorted(model.weights.keys() - expected.keys()):
        raise FormatError(f"{name} has weights that no Whisper model has ({more[0]!r}): it is of another architecture")
    for key, shape in expected.items():
        weight = model.weights[key]
        if tuple(weight.shape) != shape:
            raise FormatError(
                f"{name} has the weights {key!r} in the shape {tuple(weight.shape)}, but its other sizes "
                f"need {shape}: it is damaged, or of another architecture"
            )
        if not weight.numel() or not weight.is_floating_point():
            raise FormatError(f"{name} has integers as the weights {key!r}: it is damaged")
    return sizes


def _dimensions(model: ImportedModel) -> Dimensions:
    weights = model.weights
    d_model, mels, _ = weights["encoder.conv1.weight"].shape
    return Dimensions(
        mels=mels,
        d_model=d_model,
        encoder_layers=_count(weights, "encoder"),
        encoder_heads=model.heads,
        encoder_ffn=weights["encoder.layers.0.fc1.weight"].shape[0],
        decoder_layers=_count(weights, "decoder"),
        decoder_heads=model.heads,
        decoder_ffn=weights["decoder.layers.0.fc1.weight"].shape[0],
        vocabulary=weights["decoder.embed_tokens.weight"].shape[0],
        source_positions=weights["encoder.embed_positions.weight"].shape[0],
        target_positions=weights["decoder.embed_positions.weight"].shape[0],
        scale_embedding=False,
        tied_embedding=True,
        median_filter=7,
    )


def _count(weights: Mapping[str, Tensor], half: str) -> int:
    return sum(name.startswith(f"{half}.layers.") and name.endswith(".fc1.weight") for name in weights)


def shapes(sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a Whisper model, by their names without the leading "model."."""
    width = sizes.d_model
    found: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (width, sizes.mels, 3),
        "encoder.conv1.bias": (width,),
        "encoder.conv2.weight": (width, width, 3),
        "encoder.conv2.bias": (width,),
        "encoder.embed_positions.weight": (sizes.source_positions, width),
        "decoder.embed_positions.weight": (sizes.target_positions, width),
        "decoder.embed_tokens.weight": (sizes.vocabulary, width),
    }
    for half, layers, ffn, attentions in (
        ("encoder", sizes.encoder_layers, sizes.encoder_ffn, ("self_attn",)),
        ("decoder", sizes.decoder_layers, sizes.decoder_ffn, ("self_attn", "encoder_attn")),
    ):
        norms = [f"{half}.layer_norm"]
        for layer in range(layers):
            prefix = f"{half}.layers.{layer}"
            norms += [f"{prefix}.final_layer_norm", *(f"{prefix}.{each}_layer_norm" for each in attentions)]
            found |= {f"{prefix}.fc1.weight": (ffn, width), f"{prefix}.fc1.bias": (ffn,)}
            found |= {f"{prefix}.fc2.weight": (width, ffn), f"{prefix}.fc2.bias": (width,)}
            for each in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    found[f"{prefix}.{each}.{part}.weight"] = (width, width)
                    if part != "k_proj":  # Whisper's keys have none
                        found[f"{prefix}.{each}.{part}.bias"] = (width,)
        found |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    return found
