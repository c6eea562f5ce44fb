"""Makes `bench/data`: the recordings that the demo and the benchmarks play, joined from utterances of LibriSpeech.

Owns which utterances they are, and the credits beside them. Run it again only to change them, with a folder that holds
LibriSpeech's test-clean (openslr.org/12) as published: `python -m bench.make_recordings FOLDER`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from bench.player import DEMO, SENTENCES, TALK
from streaming.job import SAMPLE_RATE, Waveform


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording to make.

    Attributes:
        file: where it goes.
        what: what it is, for the credits.
        pause: seconds around each utterance, beside those that the reader left.
        utterances: READER-CHAPTER-UTTERANCE, as LibriSpeech names them.
    """

    file: Path
    what: str
    pause: float
    utterances: Sequence[str]


RECORDINGS = (
    Recording(DEMO, "three sentences of one reader", 0.9, [f"237-134500-{number:04}" for number in (6, 7, 8)]),
    Recording(
        SENTENCES, "twelve short sentences of as many readers", 0.9,
        ["672-122797-0000", "1089-134686-0003", "2300-131720-0039", "4446-2271-0002", "7729-102255-0001",
         "6829-68769-0002", "4970-29093-0015", "7021-79740-0009", "1995-1826-0003", "3729-6852-0013",
         "8463-287645-0001", "8555-284447-0012"],
    ),
    Recording(TALK, "two minutes of one reader, who goes on reading", 0.1, [f"1284-1180-{n:04}" for n in range(18)]),
)  # fmt: skip
"""The sentences and the talk are chosen by what is said and how long it takes, not by who understands it, for word
errors are counted on them; those of the demo are easy to understand."""

README = """# Recordings

Read by volunteers of LibriVox, from [LibriSpeech](https://www.openslr.org/12) (V. Panayotov, G. Chen, D. Povey and
S. Khudanpur, 2015; CC BY 4.0), set test-clean, which no model here has learnt from. `python -m bench.make_recordings`
joined them, with pauses between. Beside each recording, a line an utterance, is what is said.

| file | what it is | seconds | reader-chapter-utterance |
|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.make_recordings", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with test-clean in it, at any depth")
    folder: Path = parser.parse_args(arguments).folder
    said = transcripts(folder)
    sounds = {path.stem: path for path in folder.rglob("*.flac")}
    page = README
    for each in RECORDINGS:
        wave = with_pauses([_read(sounds[name]) for name in each.utterances], each.pause)
        write(each.file, wave)
        each.file.with_suffix(".txt").write_text("".join(f"{said[name]}\n" for name in each.utterances))
        page += f"| {each.file.name} | {each.what} | {wave.size / SAMPLE_RATE:.1f} | {', '.join(each.utterances)} |\n"
    (DEMO.parent / "README.md").write_text(page)


def transcripts(folder: Path) -> dict[str, str]:
    """Return what is said in each utterance, in lower case: LibriSpeech has only capitals, and no punctuation."""
    lines = [line for path in folder.rglob("*.trans.txt") for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: text.lower() for name, _, text in (line.partition(" ") for line in lines)}


def with_pauses(parts: Sequence[Waveform], seconds: float) -> Waveform:
    """Join parts with pauses, over a noise floor of -70 dB: digital silence is not what a room sounds like."""
    pause = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    joined = np.concatenate([piece for part in parts for piece in (pause, part)] + [pause])
    floor = np.random.default_rng(1).standard_normal(joined.size) * 10 ** (-70 / 20)
    return (joined + floor).astype(np.float32)


def write(file: Path, wave: Waveform) -> None:
    """Write FLAC, or Opus in Ogg where that would be large."""
    if file.suffix == ".flac":
        soundfile.write(file, wave, SAMPLE_RATE)
    else:
        soundfile.write(file, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=0.94)


def _read(path: Path) -> Waveform:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == SAMPLE_RATE, f"{path} has {rate} samples a second"
    return np.asarray(samples, np.float32)


if __name__ == "__main__":
    main()
