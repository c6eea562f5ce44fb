"""What a reader sees while people speak: word errors of the live path, and how they fall with the delay.

Plays recordings, one utterance per stream, at the pace of speech into a real service, several at once. Prints two
tables. The first has the word errors of the finals, beside those of the same utterances heard whole. The second has
them by delay: of the words that were spoken so many seconds ago or earlier, how many are wrong or missing in the text
that is shown, and in its stable part; this is checked every half second of speech. The final's times say when a word
was spoken.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.harness.daemon import Daemon, running
from bench.player import play
from bench.table import circumstances, percentiles, table
from bench.word_errors import comparable
from daemon.settings.schema import Settings
from distillation.arguments import count
from distillation.corpus import evenly
from distillation.errors import DistillError
from distillation.evaluate import LONGEST
from distillation.hearing import Escalation, Transcriber, hear, with_margins
from distillation.recordings import find_recordings, read_mono
from distillation.scores import score
from streaming.job import SAMPLE_RATE, Waveform
from streaming.whisper.engine import WhisperEngine

DELAYS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
LOOKED = 0.5
"""Seconds between two looks at the text."""
QUIET = 1.0
"""Seconds around an utterance."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A word of the transcript.

    Attributes:
        text: in comparable form.
        end: when it ends, in seconds of the stream.
    """

    text: str
    end: float


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client sees from one moment on.

    Attributes:
        at: seconds since it began to connect.
        stable: the finals so far, and the stable text.
        whole: the same, and the tail.
    """

    at: float
    stable: str
    whole: str


@dataclass(slots=True)
class Viewer:
    """One stream as its client sees it.

    Attributes:
        began: when it began to connect.
        shown: every text that it was shown.
        finals: their texts.
        timed: the words of the finals.
    """

    began: float = field(default_factory=time.monotonic)
    shown: list[Shown] = field(default_factory=list)
    finals: list[str] = field(default_factory=list)
    timed: list[Spoken] = field(default_factory=list)

    def take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "partial":
                self._show([*self.finals, event["stable"]], [*self.finals, event["stable"] + event["tail"]])
            case "final":
                self.finals.append(event["text"])
                self.timed += [
                    Spoken(part, word["end"]) for word in event["words"] for part in comparable()(word["text"]).split()
                ]
                self._show(self.finals, self.finals)

    def _show(self, stable: Sequence[str], whole: Sequence[str]) -> None:
        self.shown.append(Shown(time.monotonic() - self.began, " ".join(stable), " ".join(whole)))


def spoken(said: str, timed: Sequence[Spoken]) -> list[Spoken]:
    """Return the transcript's words, each with the end of the word that was heard for it.

    A word that was not heard ends with the one before it.

    Args:
        said: the transcript.
        timed: the words that were heard.
    """
    reference = comparable()(said).split()
    if not reference or not timed:
        return []
    (chunks,) = jiwer.process_words([" ".join(reference)], [" ".join(word.text for word in timed)]).alignments
    ends = [0.0] * len(reference)
    for chunk in chunks:
        for place in range(chunk.ref_start_idx, chunk.ref_end_idx):
            heard = chunk.hyp_start_idx + place - chunk.ref_start_idx
            ends[place] = 0.0 if chunk.type == "delete" else timed[heard].end
    return [Spoken(text, float(end)) for text, end in zip(reference, np.maximum.accumulate(ends), strict=True)]


def errors_of_beginnings(reference: Sequence[str], text: Sequence[str]) -> NDArray[np.int64]:
    """Return the least word errors of each beginning of `reference` against any beginning of `text`.

    What comes later in the text belongs to words that are not asked about.

    Returns:
        Shape `[len(reference) + 1]`.
    """
    places = np.arange(len(text) + 1)
    row, least = places, [0]
    for word in reference:
        other = np.asarray([heard != word for heard in text], np.int64)
        row = np.concatenate([row[:1] + 1, np.minimum(row[:-1] + other, row[1:] + 1)])
        # A word too many costs one more than the place before it: the running minimum once that slope is taken out.
        row = np.minimum.accumulate(row - places) + places
        least.append(int(row.min()))
    return np.asarray(least)


@dataclass(slots=True)
class Curve:
    """The errors by delay, each of shape `[len(DELAYS)]`.

    Attributes:
        words: words asked about.
        stable: words that are wrong or missing in the stable text.
        whole: words that are wrong or missing in the whole text.
    """

    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(DELAYS), np.int64))
    stable: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(DELAYS), np.int64))
    whole: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(DELAYS), np.int64))

    def look(self, reference: Sequence[Spoken], now: float, shown: Shown) -> None:
        """Count the errors in the text that is there at one moment.

        Args:
            reference: the transcript's words.
            now: the moment, in seconds of the stream.
            shown: the text.
        """
        known = [word.text for word in reference]
        asked = np.asarray([sum(word.end <= now - delay for word in reference) for delay in DELAYS])
        self.words += asked
        for errors, text in ((self.stable, shown.stable), (self.whole, shown.whole)):
            errors += errors_of_beginnings(known, comparable()(text).split())[asked]


def looks(viewer: Viewer, until: float) -> Iterator[tuple[float, Shown]]:
    """Go through a stream in steps of half a second, up to its last word and the longest delay after it.

    Args:
        viewer: the stream.
        until: when the last word ends, in seconds.

    Yields:
        The moment, and what is shown then.
    """
    place, shown = 0, Shown(0.0, "", "")
    for now in np.arange(LOOKED, until + DELAYS[-1], LOOKED):
        while place < len(viewer.shown) and viewer.shown[place].at <= now:
            shown = viewer.shown[place]
            place += 1
        yield float(now), shown


def delays(viewer: Viewer, reference: Sequence[Spoken]) -> list[float]:
    """Return how long after the end of each word the stable text has as many words, in milliseconds.

    Words count whether they were shown right or not.
    """
    waited, shown = [], iter((len(comparable()(each.stable).split()), each.at) for each in viewer.shown)
    length, at = next(shown, (0, 0.0))
    for place, word in enumerate(reference):
        while length <= place:
            length, at = next(shown, (len(reference), viewer.shown[-1].at))
        waited.append(1000 * max(0.0, at - word.end))
    return waited


async def _watch(service: Daemon, waves: Sequence[Waveform], streams: int) -> list[Viewer]:
    """Each wave in a stream of its own, so many at a time."""
    viewers = [Viewer()] * len(waves)
    turn = asyncio.Semaphore(streams)
    with tqdm(total=len(waves), desc="live", unit="utterance", leave=False) as bar:

        async def one(number: int) -> None:
            pcm = (with_margins(waves[number], QUIET, QUIET) * 32767).astype("<i2").tobytes()
            async with turn:
                viewers[number] = Viewer()
                await play(service.url, f"live-{number}", pcm, SAMPLE_RATE, viewers[number].take, words=True)
            bar.update()

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(waves)):
                tasks.create_task(one(number))
    return viewers


def _whole(student: str, teacher: str, waves: Sequence[Waveform]) -> list[str]:
    """The same utterances, heard as files are: whole, by the same rule of whom to ask."""
    rule = Settings().escalate
    transcriber = Transcriber(WhisperEngine.load(student, teacher, "cpu"), Escalation(rule.threshold, rule.shortest))
    return [transcriber.text(result.tokens) for result in hear([with_margins(wave) for wave in waves], transcriber)]


def _utterances(folders: Sequence[Path], clips: int) -> tuple[list[str], list[Waveform]]:
    """What is said in evenly chosen utterances, and their sound.

    Raises:
        DistillError: there are none, or they cannot be read.
    """
    found = [each for folder in folders for each in find_recordings(folder, to_train=False)]
    told = [each for each in found if each.text and comparable()(each.text)]
    if not told:
        raise DistillError(f"nobody wrote down what is said in {', '.join(map(str, folders))}: see docs/models.md")
    said, waves = [], []
    for each in evenly(told, clips):
        wave = read_mono(each.path, each.start, each.end)
        if wave.size <= LONGEST * SAMPLE_RATE:
            said.append(each.text or "")
            waves.append(wave)
    return said, waves


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench live", description=__doc__)
    parser.add_argument("--recordings", type=Path, nargs="+", required=True, metavar="DIR", help="as of distill label")
    parser.add_argument("--clips", type=count, default=200, help="evenly chosen (default: %(default)s)")
    parser.add_argument("--streams", type=count, default=4, help="at once (default: %(default)s)")
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    options = parser.parse_args(arguments)
    said, waves = _utterances(options.recordings, options.clips)
    with running({"models": {"student": options.student, "teacher": options.teacher}}) as service:
        viewers = asyncio.run(_watch(service, waves, options.streams))
    whole = _whole(options.student, options.teacher, waves)
    print(f"{circumstances()}\n\n{len(waves)} utterances, {options.streams} at once.\n")
    print(_finals(said, viewers, whole))
    print(f"\n{_delayed(said, viewers)}")


def _finals(said: Sequence[str], viewers: Sequence[Viewer], whole: Sequence[str]) -> str:
    heard = {"live": [" ".join(viewer.finals) for viewer in viewers], "whole": whole}
    rows: list[list[object]] = []
    for name, texts in heard.items():
        one = score(said, texts, comparable())
        rows.append([name, f"{one.wer:.1%}", one.substituted, one.deleted, one.inserted])
    return table(["heard", "word errors", "other words", "missing", "too many"], rows)


def _delayed(said: Sequence[str], viewers: Sequence[Viewer]) -> str:
    curve, waited = Curve(), []
    for text, viewer in zip(said, viewers, strict=True):
        reference = spoken(text, viewer.timed)
        if not reference:
            continue
        waited += delays(viewer, reference)
        for now, shown in looks(viewer, reference[-1].end):
            curve.look(reference, now, shown)
    rows: list[list[object]] = [
        [f"{delay:g} s", f"{stable / max(1, asked):.1%}", f"{whole / max(1, asked):.1%}"]
        for delay, asked, stable, whole in zip(DELAYS, curve.words, curve.stable, curve.whole, strict=True)
    ]
    by_delay = table(["spoken so long ago", "wrong or missing, stable text", "with the tail"], rows)
    return f"{by_delay}\n\nUntil a word is stable, p50 / p95 / p99: {percentiles(waited)} ms."


if __name__ == "__main__":
    main()
