"""Synthetic voices: text becomes a waveform, through two neural voices.

Owns the choice of a voice and its settings; `neural_voices.py` has the networks. Knows nothing of corpora or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillation.synthesis import neural_voices
from streaming.job import Waveform


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice with its settings.

    Attributes:
        program: "piper" or "kokoro".
        name: Piper's voice, or the first of Kokoro's speakers.
        other: the second of Kokoro's speakers.
        rate: 1 is the program's own speed, 1.2 is faster.
        blend: the share of Kokoro's second speaker, or the liveliness of Piper's voice.
        styles: the folder of Kokoro's speakers, as for `neural_voices.styles_of`.
    """

    program: str
    name: str
    other: str = ""
    rate: float = 1.0
    blend: float = 0.0
    styles: Path | None = None

    @property
    def speaker(self) -> str:
        return f"{self.program}/{self.name}"

    def speak(self, text: str) -> Waveform:
        """Speak one sentence.

        Returns:
            16 kHz mono, with its peak at 0.5.

        Raises:
            NeuralVoiceError: the voice cannot be used.
        """
        if self.program == "piper":
            wave = neural_voices.speak_piper(text, self.rate, self.blend)
        else:
            styles = neural_voices.styles_of(self.styles)
            wave = neural_voices.speak_kokoro(text, self.rate, styles[self.name], styles[self.other], self.blend)
        peak = float(np.abs(wave).max()) or 1.0
        return np.asarray(wave * (0.5 / peak), dtype=np.float32)


def choose_voice(rng: random.Random, styles: Path | None = None) -> Voice:
    """Choose a random voice.

    Args:
        rng: the generator that everything is drawn from.
        styles: the folder of Kokoro's speakers, as for `neural_voices.styles_of`.

    Raises:
        NeuralVoiceError: Kokoro's speakers cannot be used.
    """
    names = list(neural_voices.styles_of(styles))
    english = [name for name in names if name[0] in "ab"]
    # With English speakers at hand a tenth of joe is enough, and the others are a few accents.
    if rng.random() < (0.1 if english else 0.35):
        return Voice("piper", "joe", rate=rng.uniform(0.8, 1.25), blend=rng.uniform(0.4, 0.9))
    men = [name for name in names if name[1] == "m"]
    first, other = rng.sample(english if english and rng.random() < 0.85 else names, 2)
    # Women are most of the speakers: a man is in half of the blends at least.
    first = rng.choice([first, rng.choice(men)]) if other not in men else first
    return Voice("kokoro", first, other, rng.uniform(0.8, 1.2), blend=rng.uniform(0.0, 0.5), styles=styles)
