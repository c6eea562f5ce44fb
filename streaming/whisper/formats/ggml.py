"""whisper.cpp's ggml file: sizes, mel filters, the vocabulary, then weights, some of them in blocks of few bits.

Owns the layout of the file and of its blocks. Knows nothing of what becomes of vocabulary and weights.

A block is 32 numbers of a row: a scale in half precision, in some kinds a least value, then the numbers in 4, 5 or
8 bits. Of those in 4 and 5 bits the low halves of 16 bytes are the first 16 numbers, the high halves the others; the
fifth bits are together in 32 bits before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streaming.whisper.formats.imported import FormatError, ImportedModel, Reader, guarded, layout_name, put, tensor

MAGIC = (0x67676D6C).to_bytes(4, "little")

_BLOCK = 32
_GENERATION = 2
"""Of the blocks' layout; files say it in thousands beside their kind."""
_LONGEST_TOKEN = 1024
_MOST_TOKENS = 1 << 17
_AT_ONCE = 1 << 14
"""Blocks that are expanded at once: on the way they take many times what they come to."""
_END = b"<|endoftext|>"

_Bytes = NDArray[np.uint8]
_Halves = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Numbers in blocks of `size` bytes, which `expand` turns from `[blocks, size]` to `[blocks, 32]`."""

    name: str
    size: int
    expand: Callable[[_Bytes], _Halves]


def _half(blocks: _Bytes, at: int) -> _Halves:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: _Bytes) -> _Bytes:
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fives(blocks: _Bytes, at: int) -> _Bytes:
    fifth = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return _nibbles(blocks[:, at + 4 :]) + fifth * np.uint8(16)


_FLOATS = {0: ("f32", torch.float32), 1: ("f16", torch.float16)}
_KINDS = {
    2: _Kind("q4_0", 18, lambda b: (_nibbles(b[:, 2:]).astype(np.float32) - 8) * _half(b, 0)),
    3: _Kind("q4_1", 20, lambda b: _nibbles(b[:, 4:]) * _half(b, 0) + _half(b, 2)),
    6: _Kind("q5_0", 22, lambda b: (_fives(b, 2).astype(np.float32) - 16) * _half(b, 0)),
    7: _Kind("q5_1", 24, lambda b: _fives(b, 4) * _half(b, 0) + _half(b, 2)),
    8: _Kind("q8_0", 34, lambda b: b[:, 2:].view(np.int8) * _half(b, 0)),
}


def read(data: memoryview, name: str) -> ImportedModel:
    """Read the model in a ggml file.

    Args:
        data: of the file.
        name: of the file, for the messages.

    Raises:
        FormatError: it is truncated, of another kind of model, or in numbers that are not known.
    """
    return guarded(lambda: _read(Reader(data, name), name), name)


def _read(reader: Reader, name: str) -> ImportedModel:
    reader.take(len(MAGIC))
    sizes = reader.numbers("11i")
    heads, text_heads, kind = sizes[3], sizes[7], sizes[10]
    if min(sizes[:10]) < 1 or kind < 0 or heads != text_heads:
        raise FormatError(f"{name} has sizes that no Whisper model has: it is damaged, or of another kind")
    reader.take(4 * prod(reader.shape(2)))  # the mel filters, which are always the same
    tokens = _vocabulary(reader, name)
    weights: dict[str, Tensor] = {}
    words: set[str] = set()
    while reader.left:
        rank, length, number = reader.numbers("3i")
        shape = reader.shape(rank)[::-1]
        key = reader.name(length)
        ours = layout_name(key)
        if ours is None:
            raise FormatError(f"{name} has weights that no Whisper model has ({key!r}): it is damaged")
        if number in _KINDS and kind // 1000 != _GENERATION:
            raise FormatError(f"{name} was quantised by an old whisper.cpp: quantise it again, or use the f16 file")
        # Biases of convolutions are columns there.
        shape = shape[:1] if ours.endswith(".bias") and shape[1:] == (1,) else shape
        word, weight = _weights(reader, number, shape, name)
        put(weights, ours, weight, name)
        words |= {word} if len(shape) > 1 and ".layers." in ours else set()
    return ImportedModel(f"ggml {'/'.join(sorted(words))}", weights, heads, tokens)


def _vocabulary(reader: Reader, name: str) -> Sequence[bytes]:
    tokens: list[bytes] = []
    count = reader.number("I")
    if count > _MOST_TOKENS:
        raise FormatError(f"{name} has {count} tokens: it is damaged, or not a Whisper model")
    for _ in range(count):
        length = reader.number("I")
        if length > _LONGEST_TOKEN:
            raise FormatError(f"{name} has a token of {length} bytes: it is damaged, or not a Whisper model")
        tokens.append(bytes(reader.take(length)))
    # Some converters count the first of the special tokens among the others.
    return tokens[:-1] if tokens[-1:] == [_END] else tokens


def _weights(reader: Reader, number: int, shape: tuple[int, ...], name: str) -> tuple[str, Tensor]:
    """The numbers' kind in words, and the weights."""
    if number in _FLOATS:
        word, dtype = _FLOATS[number]
        return word, tensor(reader.take(prod(shape) * dtype.itemsize), dtype, shape)
    if number not in _KINDS:
        raise FormatError(
            f"{name} has weights in an unknown format (type {number}): "
            "use a file in f16, q8_0, q5_0, q5_1, q4_0 or q4_1"
        )
    kind = _KINDS[number]
    if not shape or shape[-1] % _BLOCK:
        raise FormatError(f"{name} has rows of {shape[-1:]} numbers in blocks of {_BLOCK}: it is damaged")
    blocks = prod(shape) // _BLOCK
    packed = np.frombuffer(reader.take(blocks * kind.size), np.uint8).reshape(blocks, kind.size)
    halves = np.empty((blocks, _BLOCK), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):  # whether they are numbers is seen when they are written
        for at in range(0, blocks, _AT_ONCE):
            halves[at : at + _AT_ONCE] = kind.expand(packed[at : at + _AT_ONCE])
    return kind.name, torch.from_numpy(halves).view(shape)
