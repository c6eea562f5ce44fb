"""What is said: sentences cut out of the recordings that come with the project.

Owns finding them. Knows nothing of who says them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from bench.player import DEMO, SENTENCES

RATE = 16000
_OF_TESTS = Path(__file__).parent.parent.parent / "tests" / "data"  # in a checkout only
_FRAME = RATE // 50
_LOUD = 0.01
_PAUSE = 30
"""Frames without a voice that end a sentence: the daemon closes an utterance after as many."""

_AROUND = 15
"""Frames around a sentence that belong to it."""

_SILENCE = bytes(2 * RATE * 8 // 10)
"""After each sentence, so that it ends for whoever listens: longer than the daemon's hangover of 0.6 s."""


def sentences() -> list[bytes]:
    """Return the sentences: 16-bit mono samples at 16 kHz, with a second of silence or so behind each."""
    files = [DEMO, SENTENCES, *sorted(_OF_TESTS.glob("*.flac"))]
    return [sentence for path in files for sentence in _cut(path)]


def _cut(path: Path) -> list[bytes]:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE, f"{path} has {rate} samples a second"
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    loud = np.flatnonzero(np.sqrt((frames**2).mean(1)) > _LOUD)
    return [
        (frames[max(0, first - _AROUND) : last + 1 + _AROUND] * 32767).astype("<i2").tobytes() + _SILENCE
        for first, last in _groups(loud.tolist())
    ]


def _groups(loud: list[int]) -> list[tuple[int, int]]:
    """Find the first and last of frames between which there is no pause.

    Args:
        loud: the numbers of the frames with a voice, ascending.
    """
    groups: list[tuple[int, int]] = []
    for frame in loud:
        if groups and frame - groups[-1][1] <= _PAUSE:
            groups[-1] = (groups[-1][0], frame)
        else:
            groups.append((frame, frame))
    return groups
