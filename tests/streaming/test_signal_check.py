"""Audio that carries nothing by its form: each kind of it is found once, and nothing that carries something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streaming.audio import AudioDecoder, AudioFormat
from streaming.events import Encoding
from streaming.job import Waveform

Recording = Any


def codes(samples: NDArray[Any], *, channels: int = 1, rate: int = 16000, step: int = 3200) -> list[str]:
    """What is found in samples that come in pieces."""
    kind: Encoding = "pcm_f32le" if samples.dtype == np.float32 else "pcm_s16le"
    decoder, data, found = AudioDecoder(AudioFormat(kind, rate, channels)), samples.tobytes(), []
    for at in range(0, len(data), step):
        decoder.feed(data[at : at + step])
        found += decoder.findings()
    decoder.finish()
    found += decoder.findings()
    assert all(len(each.message) < 300 for each in found)
    return [each.code for each in found]


def hum(seconds: float, rate: int = 16000) -> Waveform:
    return (0.1 * np.sin(np.arange(round(seconds * rate)) / 9)).astype(np.float32)


@pytest.mark.parametrize("seconds", [1.5, 30.0])
def test_zeros(seconds: float) -> None:
    count = round(16000 * seconds)
    assert codes(np.zeros(count, np.int16)) == ["no_signal"]
    assert codes(np.zeros(count, np.float32)) == ["no_signal"]
    # Whole numbers that are read as floats are next to nothing.
    assert codes(np.ones(2 * count, np.int16).view(np.float32)) == ["no_signal"]


def test_a_little_is_not_nothing(recording: Recording) -> None:
    faint = np.round(recording("stop") * 20).astype(np.int16)
    assert codes(faint) == codes(np.zeros(8000, np.int16)) == codes(np.zeros(0, np.int16)) == []
    late = np.concatenate([np.zeros(9 * 16000, np.float32), hum(1.5)])
    assert codes(late) == []


def test_channels_that_cancel_each_other() -> None:
    one = hum(12)
    assert codes(np.stack([one, -one], 1), channels=2) == ["channels_cancel"]
    assert codes(np.stack([one, -one, one, -one], 1), channels=4) == ["channels_cancel"]
    for other in (one, 0.5 * -one, np.zeros_like(one), hum(12)[::-1]):
        assert codes(np.stack([one, other], 1), channels=2) == []


@pytest.mark.parametrize("scale", [100, 32768, 2.0**31])
def test_floats_of_another_scale(scale: float) -> None:
    assert codes(hum(3) * np.float32(10 * scale)) == ["out_of_range"]


def test_what_is_only_loud_is_within_range() -> None:
    loud = hum(3) * np.float32(25)
    assert codes(loud) == []
    loud[100] = 1e6  # a click
    assert codes(loud) == []


def test_no_numbers() -> None:
    assert codes(np.full(48000, np.nan, np.float32)) == ["not_numbers"]
    some = hum(3)
    some[5] = np.inf
    assert codes(some) == []
