"""Recordings made of modulated noise: no speech, but as different from each other as a random model can tell."""

from __future__ import annotations

import numpy as np

from streaming.job import SAMPLE_RATE, Waveform


def murmur(seconds: float, seed: int = 0) -> Waveform:
    """A band of noise whose loudness and pitch wander, [samples]."""
    dice = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = dice.uniform(80, 400) * (1 + 0.3 * np.sin(2 * np.pi * dice.uniform(0.3, 3) * time))
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) + dice.normal(0, 0.3, len(time))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * dice.uniform(1, 6) * time + dice.uniform(0, 6))
    return np.asarray(0.2 * tone * loudness, np.float32)
