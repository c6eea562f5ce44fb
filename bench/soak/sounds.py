"""What is sent: sentences, noise, and a quiet room.

Owns finding and making them: 16-bit mono samples at 16 kHz. Knows nothing of who sends them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from bench.harness.recordings import RATE, sentences

_SILENCE = np.zeros(RATE, np.int16).tobytes()
"""After each sentence, so that it ends: longer than the service's hangover of 0.6 s."""

_NOISES = 6
_NOISE_SECONDS = 10
_MOST = 500
"""Recordings taken of a folder, by chance: they are kept in memory."""


@dataclass(frozen=True, slots=True)
class Sounds:
    """What may be sent.

    Attributes:
        sentences: each with silence behind it.
        noises: noise without speech.
        known: whether the sentences are the project's own, each known to be taken for speech.
    """

    sentences: list[bytes]
    noises: list[bytes]
    known: bool


def gather(speech: Path | None, noise: Path | None, dice: random.Random) -> Sounds:
    """Collect the sounds of the project, or of folders.

    Args:
        speech: a folder of recordings to say; None: the project's sentences.
        noise: a folder of recordings of noise; None: noise is made.
        dice: decides what is left to chance.

    Returns:
        The sounds.

    Raises:
        ValueError: there are no recordings in a folder.
    """
    said = sentences() if speech is None else [each + _SILENCE for each in _recordings(speech, dice)]
    noises = _made_up(said, dice) if noise is None else _recordings(noise, dice)
    return Sounds(said, noises, known=speech is None)


def quiet(seconds: float, dice: random.Random) -> bytes:
    """Make a room in which nobody speaks: a microphone is never digitally silent."""
    samples = np.random.default_rng(dice.getrandbits(32)).normal(0, 8, round(seconds * RATE))
    return samples.astype("<i2").tobytes()


def _recordings(folder: Path, dice: random.Random) -> list[bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".flac", ".wav", ".ogg")]
    if not files:
        raise ValueError(f"there are no recordings (.flac, .wav, .ogg) in {folder}")
    return [_read(path) for path in dice.sample(files, min(_MOST, len(files)))]


def _read(path: Path) -> bytes:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return _pcm(soxr.resample(samples[:, 0], rate, RATE))


def _made_up(said: list[bytes], dice: random.Random) -> list[bytes]:
    """Make noise: half of it pink, at several levels; half the murmur of many people at once."""
    numbers = np.random.default_rng(dice.getrandbits(32))
    pink = [_pcm(_pink(numbers) * level) for level in (0.01, 0.05, 0.2)]
    murmur = [_pcm(_murmur(said, dice) * level) for level in (0.02, 0.05, 0.2)]
    return pink + murmur


def _pink(numbers: np.random.Generator) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(numbers.normal(size=_NOISE_SECONDS * RATE))
    samples: NDArray[np.float64] = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)))
    return samples / float(np.abs(samples).max())


def _murmur(said: list[bytes], dice: random.Random) -> NDArray[np.float64]:
    room = np.zeros(_NOISE_SECONDS * RATE)
    for _ in range(12 * _NOISES):
        voice = np.frombuffer(dice.choice(said), "<i2")[: len(room)]
        at = dice.randrange(len(room) - len(voice) + 1)
        room[at : at + len(voice)] += voice
    return room / max(1.0, float(np.abs(room).max()))


def _pcm(samples: NDArray[np.floating]) -> bytes:
    clipped: NDArray[np.floating] = np.clip(samples, -1, 1)
    return (clipped * 32767).astype("<i2").tobytes()
