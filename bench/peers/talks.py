"""What the streams say: utterances of recordings, joined with pauses, and when each of their words ends.

Owns the choice, the pauses, and the noise in which nobody speaks. Knows nothing of servers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.live import Spoken, spoken
from bench.peers.judge import Talk
from bench.player import RecordingError
from bench.soak.sounds import quiet
from bench.word_errors import comparable
from distillation.recordings import Recording, find_recordings, read_manifest, read_mono
from streaming.job import SAMPLE_RATE, Job, Waveform, isolated
from streaming.segment import SegmentSettings
from streaming.text import Text
from streaming.whisper.engine import WhisperEngine

LENGTHS = (2.0, 12.0)
"""Seconds of an utterance: shorter ones are single words, and longer ones would be half of a talk."""
PAUSES = (1.2, 2.0)
"""Seconds between two utterances, of which each is drawn."""
LEAD, REST = 0.5, 2.0
"""Seconds of a quiet room before the first utterance and after the last one."""
SEED = 1


@dataclass(frozen=True, slots=True)
class Utterance:
    """An utterance of a recording.

    Attributes:
        wave: 16 kHz mono.
        words: what is said, with the ends of the words in seconds of the utterance.
    """

    wave: Waveform
    words: tuple[Spoken, ...]


class Clock:
    """Says when words end: tiny.en that hears an utterance whole.

    Args:
        model: the pair whose teacher it is.
    """

    def __init__(self, model: str) -> None:
        pair = WhisperEngine.load(model, model, "cpu")
        self._teacher = pair.alone(pair.models[1])
        self._text = Text(pair.tokenizer_file, pair.eot)

    def words(self, said: str, wave: Waveform) -> tuple[Spoken, ...]:
        """Return the words of a transcript, with their ends in seconds; none if nothing was heard."""
        (result,) = isolated(self._teacher.run, [Job(wave, times=True)])
        timed = [
            Spoken(part, result.times[word.last - 1][1])
            for word in self._text.words(result.tokens)
            for part in comparable()(word.text).split()
        ]
        return tuple(spoken(said, timed))


def talks(folders: Sequence[Path], clock: Clock, lengths: Sequence[float]) -> list[Talk]:
    """Make talks of the recordings of folders, each of utterances of different speakers.

    Args:
        folders: with recordings, as of `distill label`.
        clock: says when words end.
        lengths: about how many seconds each talk lasts.

    Raises:
        RecordingError: no recording with a transcript has a fitting length.
    """
    dice = random.Random(SEED)
    found = _by_turns([each for folder in folders for each in find_recordings(folder, to_train=False)], dice)
    left = _utterances(found, clock)
    return [_talk(left, seconds, dice) for seconds in lengths]


def _by_turns(found: Sequence[Recording], dice: random.Random) -> list[Recording]:
    """Those with a transcript, so that neighbours have different speakers."""
    by_speaker: dict[tuple[str, str], list[Recording]] = {}
    for each in found:
        if each.text and comparable()(each.text):
            by_speaker.setdefault((each.set, each.speaker), []).append(each)
    for own in by_speaker.values():
        dice.shuffle(own)
    speakers = list(by_speaker.values())
    dice.shuffle(speakers)
    return [each for turn in zip_longest(*speakers) for each in turn if each is not None]


def _utterances(found: Sequence[Recording], clock: Clock) -> Iterator[Utterance]:
    """Those of fitting length, and from the first one again when they are used up."""
    fitting = []
    for each in found:
        wave = read_mono(each.path, each.start, each.end)
        if LENGTHS[0] <= wave.size / SAMPLE_RATE <= LENGTHS[1] and (words := clock.words(each.text or "", wave)):
            fitting.append(Utterance(wave, words))
            yield fitting[-1]
    if not fitting:
        raise RecordingError(
            f"no recording of {LENGTHS[0]:g} to {LENGTHS[1]:g} s says what is said in it: see docs/models.md"
        )
    yield from cycle(fitting)


def _talk(left: Iterator[Utterance], seconds: float, dice: random.Random) -> Talk:
    parts, words, ends = [quiet(LEAD, dice)], list[Spoken](), list[int]()
    at = LEAD
    while at < seconds:
        each = next(left)
        words += [Spoken(word.text, at + word.end) for word in each.words]
        ends.append(len(words))
        pause = quiet(dice.uniform(*PAUSES), dice)
        parts += [_pcm(each.wave), pause]
        at = sum(map(len, parts)) / 2 / SAMPLE_RATE
    hangover = SegmentSettings().hangover
    closed = tuple(words[end - 1].end + hangover for end in ends)
    return Talk(b"".join([*parts, quiet(REST, dice)]), tuple(words), tuple(ends), closed)


def noise(folders: Sequence[Path], seconds: float) -> Talk:
    """Make a stretch in which nobody speaks.

    Args:
        folders: with recordings of noise, those that hold speech told so by `contains_speech`; none: a quiet room, then
            hiss, then a louder hum.
        seconds: how long.
    """
    waves = list(chain.from_iterable(map(_noises, folders))) or list(_made_up(seconds))
    samples = np.concatenate(waves)
    wanted = round(seconds * SAMPLE_RATE)
    return Talk(_pcm(np.resize(samples, wanted)))


def _noises(folder: Path) -> Iterator[Waveform]:
    for row in read_manifest(folder / "manifest.jsonl"):
        if row.get("contains_speech") is False:
            yield read_mono(folder / row["path"])


def _made_up(seconds: float) -> Iterator[Waveform]:
    third = round(seconds * SAMPLE_RATE / 3)
    chance = np.random.default_rng(SEED)
    yield chance.normal(0, 0.0003, third).astype(np.float32)
    yield chance.normal(0, 0.01, third).astype(np.float32)
    yield (0.05 * np.sin(2 * np.pi * 50 / SAMPLE_RATE * np.arange(third))).astype(np.float32)


def _pcm(wave: NDArray[np.float32]) -> bytes:
    return (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
