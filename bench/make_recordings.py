"""Makes `bench/data`: the recordings that the demo and the benchmarks play. Synthetic voices; nobody was recorded.

Owns what is said in them. Run it again only to change them: `python -m bench.make_recordings` (needs flite, espeak-ng).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from distillation.corpus import trim
from distillation.voices import Voice, speak
from streaming.job import SAMPLE_RATE, Waveform

FOLDER = Path(__file__).parent / "data"
SLT, RMS, AWB = Voice("flite", "slt"), Voice("flite", "rms"), Voice("flite", "awb")
SPOKEN: dict[str, list[tuple[Voice, str]]] = {
    "demo": [
        (SLT, "turn off the lights in the living room"),
        (SLT, "set a timer for ten minutes"),
        (RMS, "what's the weather like"),
    ],
    "commands": [
        (SLT, "turn off all the lights in the living room"),
        (RMS, "stop"),
        (AWB, "set the bedroom temperature to twenty one degrees"),
        (SLT, "add milk and bread to the shopping list"),
        (RMS, "is the front door locked"),
        (AWB, "yes"),
        (SLT, "remind me to water the plants tomorrow at seven thirty in the evening"),
        (RMS, "open the blinds in the office"),
        (SLT, "play some music in the dining room"),
        (AWB, "volume up"),
    ],
    "talk/talk": [
        (SLT, "good morning, open the blinds in the bedroom, and turn on the radio in the kitchen"),
        (AWB, "what's the weather like today, will it rain this afternoon"),
        (
            RMS,
            "remind me to call my mother at six, add milk and eggs to the shopping list, "
            "and set a timer for ten minutes",
        ),
        (SLT, "we are leaving now, turn off all the lights downstairs, lock the front door, and arm the alarm"),
        (AWB, "it is too warm in here, set the living room temperature to nineteen degrees, and close the curtains"),
        (RMS, "i would like to hear some music, play something in the dining room, and turn the volume down"),
        (SLT, "how long is left on the timer, tell everyone that dinner is ready"),
    ],
}
BREATH = 0.25
"""Seconds at a comma, beside the 0.16 that `trim` leaves: speech goes on before an endpoint is called."""


def with_pauses(parts: list[Waveform], seconds: float) -> Waveform:
    """Spoken one after another, over a noise floor of -70 dB, for digital silence is not what a room sounds like."""
    pause = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    joined = np.concatenate([piece for part in parts for piece in (pause, part)] + [pause])
    floor = np.random.default_rng(1).standard_normal(joined.size) * 10 ** (-70 / 20)
    return (joined + floor).astype(np.float32)


def said_in_one_go(voice: Voice, text: str) -> Waveform:
    """The parts between commas, with a breath between them."""
    if ", " not in text:
        return speak(text, voice)
    breath = np.zeros(int(BREATH * SAMPLE_RATE), np.float32)
    pieces = [piece for part in text.split(", ") for piece in (breath, trim(speak(part, voice)))]
    return np.concatenate(pieces[1:])


def main() -> None:
    for name, lines in SPOKEN.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        wave = with_pauses([said_in_one_go(voice, text) for voice, text in lines], seconds=1.2)
        soundfile.write(FOLDER / f"{name}.flac", wave, SAMPLE_RATE)
        (FOLDER / f"{name}.txt").write_text("\n".join(text.replace(",", "") for _, text in lines) + "\n")
        print(f"{name}: {wave.size / SAMPLE_RATE:.1f} s")


if __name__ == "__main__":
    main()
