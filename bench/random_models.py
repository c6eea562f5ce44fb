"""Models of the published sizes with random weights: speed can be measured with nothing downloaded.

Owns the sizes, and how a pair of them is made in memory, on the device, without files. The texts mean nothing, and end
only at their limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from streaming.whisper.checkpoint import Checkpoint, Dimensions, Grammar
from streaming.whisper.engine import WhisperEngine, assemble
from streaming.whisper.graph_runner import GraphRunner
from streaming.whisper.model import Decoder, Encoder

_ENGLISH, _MULTILINGUAL, _WITH_CANTONESE = 51864, 51865, 51866


@dataclass(frozen=True, slots=True)
class Shape:
    """A published size.

    Attributes:
        drafts: decoder layers of the student that is published for it, or that one would distil.
    """

    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    mels: int
    vocabulary: int
    drafts: int


SHAPES: Mapping[str, Shape] = {
    "tiny.en": Shape(384, 6, 4, 4, 80, _ENGLISH, 2),
    "base.en": Shape(512, 8, 6, 6, 80, _ENGLISH, 2),
    "small.en": Shape(768, 12, 12, 12, 80, _ENGLISH, 4),
    "medium.en": Shape(1024, 16, 24, 24, 80, _ENGLISH, 2),
    "large-v2": Shape(1280, 20, 32, 32, 80, _MULTILINGUAL, 2),
    "large-v3": Shape(1280, 20, 32, 32, 128, _WITH_CANTONESE, 2),
    "large-v3-turbo": Shape(1280, 20, 32, 4, 128, _WITH_CANTONESE, 2),
}
"""From the checkpoints' `config.json`."""


def random_pair(
    name: str,
    device: str,
    dtype: torch.dtype,
    contexts: Sequence[float],
    *,
    shape: Shape | None = None,
    slots: int | None = None,
    agree: bool = False,
) -> WhisperEngine:
    """Make a teacher of a published size, and a student with its encoder and fewer decoder layers.

    Args:
        name: of the size.
        device: where they are.
        dtype: of their weights.
        contexts: windows that both hear, in seconds, ascending.
        shape: another than that of `name`.
        slots: jobs in a batch at fixed addresses; None for tensors that are made anew.
        agree: whether the teacher's further layers add nothing, so that it says what the student says, at its own cost.
    """
    place = torch.device(device)
    shape = shape or SHAPES[name]
    teacher = _checkpoint(name, shape, contexts)
    fewer = replace(shape, decoder_layers=shape.drafts)
    student = _checkpoint(f"{name} of {shape.drafts} decoder layers", fewer, contexts)
    torch.manual_seed(0)
    encoder = _random("encoder", Encoder, teacher.dimensions, place, dtype)
    drafts = _random("decoder", Decoder, student.dimensions, place, dtype)
    checks = _random("decoder", Decoder, teacher.dimensions, place, dtype)
    if agree:
        _silence(checks, shape.drafts)
        checks |= drafts
    first = assemble(student, "student", encoder | drafts, place)
    second = assemble(teacher, "teacher", encoder | checks, place, first)
    numbers = str(dtype).removeprefix("torch.")
    if slots is None:
        return WhisperEngine(first, second, place, numbers)
    make_runner = partial(GraphRunner, device=place, largest=slots, deterministic=False, capture=True)
    return WhisperEngine(first, second, place, numbers, make_runner)


def _silence(weights: Mapping[str, Tensor], layers: int) -> None:
    """Let the decoder's layers from number `layers` on add nothing to what the earlier ones say."""
    for name, value in weights.items():
        number = name.split(".")[2]
        if number.isdecimal() and int(number) >= layers and ("out_proj" in name or "fc2" in name):
            value.zero_()


def _random(
    part: str, kind: type[nn.Module], sizes: Dimensions, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    with torch.device("meta"):
        empty = kind(sizes)
    return {f"{part}.{name}": _weights(name, value.shape, device, dtype) for name, value in empty.state_dict().items()}


def _weights(name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    if "layer_norm" in name:
        return torch.full(shape, float(name.endswith("weight")), device=device, dtype=dtype)
    return torch.randn(shape, device=device, dtype=dtype) * 0.02


def _checkpoint(name: str, shape: Shape, contexts: Sequence[float]) -> Checkpoint:
    return Checkpoint(
        name=f"random {name}", directory=Path(), dimensions=dimensions(shape), grammar=_grammar(shape.vocabulary),
        contexts=tuple(contexts), alignment_heads=None, tokenizer_file=Path(),
    )  # fmt: skip


def dimensions(shape: Shape) -> Dimensions:
    """Return a shape as `config.json` would have it."""
    return Dimensions(
        mels=shape.mels, d_model=shape.d_model,
        encoder_layers=shape.encoder_layers, encoder_heads=shape.heads, encoder_ffn=4 * shape.d_model,
        decoder_layers=shape.decoder_layers, decoder_heads=shape.heads, decoder_ffn=4 * shape.d_model,
        vocabulary=shape.vocabulary, source_positions=1500, target_positions=448,
        scale_embedding=False, tied_embedding=True, median_filter=7,
    )  # fmt: skip


def _grammar(vocabulary: int) -> Grammar:
    """As an English-only one, whatever the size: a prompt's length does not change the speed of a pass."""
    stamps = vocabulary - 1501
    eot = 50256
    return Grammar(
        sot=eot + 1, eot=eot, languages={}, tasks={}, no_timestamps=stamps - 1, no_speech=stamps - 2,
        suppress=tuple(range(eot, vocabulary)), begin_suppress=(), max_initial_timestamp=50, max_length=448,
    )  # fmt: skip
