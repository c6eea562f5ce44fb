"""What a file of another program gives: a model's sizes, its weights, and what it knows of its vocabulary.

Owns the shape of an import before it is a checkpoint, the fault that every reader raises, and reading with an end:
a number in a file is never believed beyond the bytes that are there. Knows no format.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

MOST_ELEMENTS = 1 << 31
"""In one tensor; large-v3's largest has 66 million."""


class FormatError(Exception):
    """The file cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model as its file has it.

    weights: by the Hugging Face layout's names, with the leading "model.". heads: of the attention, which some formats
    do not say: 64 wide, as in every published size. vocabulary: the tokens' bytes in order, where the file has them.
    generation: what it says of its rules, by the names of `generation_config.json`.
    """

    weights: Mapping[str, Tensor]
    heads: int
    vocabulary: Sequence[bytes] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)


class Reader:
    """Little-endian values out of a file's bytes.

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
        """form: as of `struct`, without the byte order."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def number(self, form: str) -> int:
        return int(self.numbers(form)[0])

    def shape(self, rank: int, form: str = "I") -> tuple[int, ...]:
        """The sizes of a tensor. More dimensions or elements than any Whisper has are no tensor."""
        if not 0 <= rank <= 4:
            raise FormatError(f"{self._name} has a tensor of {rank} dimensions: it is damaged, or no Whisper model")
        sizes = tuple(int(size) for size in self.numbers(form * rank))
        if prod(sizes) > MOST_ELEMENTS:
            raise FormatError(f"{self._name} has a tensor of {prod(sizes)} elements: it is damaged")
        return sizes


def tensor(data: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A copy of little-endian numbers as a tensor; no bytes give an empty one."""
    if not len(data):
        return torch.zeros(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(tuple(shape))
