"""A checkpoint's weights on disk: read as tensors, and written in 8 bits.

Owns the file's layout and sharing. Knows nothing of how a model computes.

A file is `model.safetensors` (or its shards) with the names of the Hugging Face layout. Beyond that layout, weights may
be kept in 8 bits: `NAME` in int8 beside `NAME_scale`, a float32 for each output channel. And a student's file may have
only its own weights: `shares` in its `whisperd.json` names the teacher that has the rest, by the digest of its weights,
so that these are once on disk and once in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from streaming.whisper.checkpoint import Checkpoint, CheckpointError
from streaming.whisper.locate import weight_files
from streaming.whisper.quantized import expand, quantize

SCALE = "_scale"
LEAST_ROUNDED = 1 << 16
"""Elements from which on a tensor is rounded: the rest is a hundredth of the whole."""
_LAYERS = ("encoder.layers.", "decoder.layers.")


def read_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read weights in `dtype` on the CPU, for a student also those that it shares.

    Returns:
        Tensors by the layout's names without the leading "model.".

    Raises:
        CheckpointError: a file is missing or damaged, or the weights of another teacher are shared.
    """
    own = _read(checkpoint.directory, dtype)
    if checkpoint.lender is None:
        return own
    return {name: weight for name, weight in _read(_lender(checkpoint), dtype).items() if _lent(name, own)} | own


def weights_digest(directory: Path) -> str:
    """Return the SHA-256 of the weights' files, one after another, by which a student knows its teacher.

    Raises:
        CheckpointError: a file is missing or unreadable.
    """
    digest = hashlib.sha256()
    for path in weight_files(directory):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise _unreadable(path, error) from error
    return digest.hexdigest()


def write_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write weights in 8 bits, except small tensors and position embeddings, which are kept in float16.

    Args:
        weights: by the layout's names without the leading "model.".
        file: where they go.
    """
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        key = name if name.startswith("proj_out.") else f"model.{name}"
        if weight.dim() > 1 and weight.numel() >= LEAST_ROUNDED and "embed_positions" not in name:
            stored[key], stored[f"{key}{SCALE}"] = quantize(weight)
        else:
            stored[key] = weight.to(torch.float16).contiguous()
    save_file(stored, file, metadata={"format": "pt"})


def own_names(directory: Path) -> set[str]:
    """Return the names of the weights that lie in a directory itself, without the leading "model.".

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return set(_shapes(directory))


def stored_numbers(checkpoint: Checkpoint) -> set[str]:
    """Return in which numbers a model's weights lie in their files, shared ones too, by safetensors' names (F16, I8).

    The scales of weights in 8 bits are left out.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    numbers = _numbers(checkpoint.directory)
    if checkpoint.lender is not None:
        numbers |= {name: kind for name, kind in _numbers(checkpoint.lender).items() if _lent(name, numbers)}
    return set(numbers.values())


def same_encoder(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Return whether two encoders' weights are the same, to the last bit of the coarser of the two.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if ours.dimensions.d_model != theirs.dimensions.d_model or ours.dimensions.mels != theirs.dimensions.mels:
        return False
    mine, other = _encoder_places(ours), _encoder_places(theirs)
    return mine.keys() == other.keys() and all(
        _equal(_read_tensor(mine[name], name), _read_tensor(other[name], name)) for name in mine
    )


def count_parameters(checkpoint: Checkpoint, *, own: bool = False) -> int:
    """Count a model's parameters from the headers of its weights.

    Args:
        checkpoint: the model.
        own: whether to leave out those that a student shares.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    shapes = _shapes(checkpoint.directory)
    if checkpoint.lender is not None and not own:
        shapes |= {name: shape for name, shape in _shapes(checkpoint.lender).items() if _lent(name, shapes)}
    return sum(prod(shape) for name, shape in shapes.items() if not name.startswith("proj_out."))


def _lender(checkpoint: Checkpoint) -> Path:
    assert checkpoint.lender is not None
    if weights_digest(checkpoint.lender) != checkpoint.lender_digest:
        raise CheckpointError(
            f"{checkpoint.directory} shares the weights of another teacher than the one in {checkpoint.lender}: "
            "fetch or export the two together"
        )
    return checkpoint.lender


def _lent(name: str, own: Mapping[str, object]) -> bool:
    """Whether a teacher's tensor is a student's too: layers are lent all or not at all, as students have fewer."""
    group = next((group for group in _LAYERS if name.startswith(group)), None)
    return name not in own and (group is None or not any(each.startswith(group) for each in own))


def _read(directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in weight_files(directory):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error
        for name, weight in tensors.items():
            if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
                continue
            if weight.dtype == torch.int8:
                weight = _expanded(weight, tensors.get(f"{name}{SCALE}"), name, file)
            weights[name.removeprefix("model.")] = weight.to(dtype)
    return weights


def _expanded(weight: Tensor, scale: Tensor | None, name: str, file: Path) -> Tensor:
    if scale is None or scale.shape != weight.shape[:1]:
        raise CheckpointError(f"{file} has {name} in 8 bits without a scale for each of its rows: export it again")
    return expand(weight, scale)


def _shapes(directory: Path) -> dict[str, list[int]]:
    return {name: header.get_shape() for name, header in _headers(directory)}


def _numbers(directory: Path) -> dict[str, str]:
    return {name: header.get_dtype() for name, header in _headers(directory)}


def _headers(directory: Path) -> Iterator[tuple[str, Any]]:
    """What the files tell of each tensor but the scales, without reading it."""
    for file in weight_files(directory):
        with _opened(file) as weights:
            names = set(weights.keys())
            for name in names:
                if not (name.endswith(SCALE) and name.removesuffix(SCALE) in names):
                    yield name.removeprefix("model."), weights.get_slice(name)


def _encoder_places(checkpoint: Checkpoint) -> dict[str, Path]:
    """The file of each tensor, a lent one's too."""
    own = _places(checkpoint.directory)
    if checkpoint.lender is not None:
        own |= {name: file for name, file in _places(checkpoint.lender).items() if _lent(name, own)}
    return {name: file for name, file in own.items() if name.startswith("encoder.")}


def _places(directory: Path) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for file in weight_files(directory):
        with _opened(file) as weights:
            places.update((name.removeprefix("model."), file) for name in weights.keys())  # noqa: SIM118 - no dict
    return places


def _read_tensor(file: Path, name: str) -> Tensor:
    with _opened(file) as weights:
        tensor: Tensor = weights.get_tensor(f"model.{name}")
    return tensor


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    coarser = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    return ours.shape == theirs.shape and torch.equal(ours.to(coarser), theirs.to(coarser))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} cannot be read ({error}); fetch or export it again")
