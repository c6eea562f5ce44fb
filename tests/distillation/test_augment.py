"""What augmentation does to a clip: how much, where, and that the same draw does the same again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distillation.augment import augment_waveform, features
from streaming.job import SAMPLE_RATE, Waveform

SILENCE = np.zeros(0, np.float32)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(seconds: float = 2.0) -> Waveform:
    places = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * 440 * places)).astype(np.float32)


def test_the_same_draw_makes_the_same_clip() -> None:
    first, again = (augment_waveform(tone(), rng(), 1.0, [], SILENCE) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    first_mel, again_mel = (features([first], 4.0, 80, rng(), 1.0) for _ in range(2))
    torch.testing.assert_close(first_mel, again_mel, rtol=0, atol=0)


def test_an_uneven_pace_keeps_the_length_within_a_sixth() -> None:
    for seed in range(30):
        wave = augment_waveform(tone(), rng(seed), 1.0, [], SILENCE)
        assert 2.0 / 1.17 + 0.04 < wave.size / SAMPLE_RATE < 2.0 / 0.85 + 1.06
        assert np.isfinite(wave).all()


def test_unsteady_speakers_are_heard_from_stretch_to_stretch() -> None:
    """A steady tone stays in its band when nothing is done to it, and wanders near it when much is."""
    bands = {
        strength: {int(place) for seed in range(12) for place in _loudest(strength, seed)} for strength in (0.0, 1.0)
    }
    assert len(bands[0.0]) == 1
    assert len(bands[1.0]) > 1
    assert max(bands[1.0]) - min(bands[1.0]) < 12


def _loudest(strength: float, seed: int) -> torch.Tensor:
    """The loudest band of every tenth frame within the tone, but for those that were masked."""
    log = features([tone()], 2.0, 80, rng(seed), strength)[0, :, 10:190:10]
    return log.argmax(0)[log.amax(0) > log.max() - 0.5]


@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_next_to_nothing_can_be_augmented(seconds: float) -> None:
    wave = augment_waveform(tone(seconds), rng(), 1.0, [], SILENCE)
    assert torch.isfinite(features([wave], 2.0, 80, rng(), 1.0)).all()
