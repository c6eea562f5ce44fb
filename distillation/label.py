"""Pseudo-labels: the teacher's own transcripts of a corpus, and which of them a student may learn from.

Owns labelling, the file of labels, the filter, and its account (a table and a picture). Clips go through the service's
engine, so that a label is what the teacher says in service. Knows nothing of training.

The filter is Distil-Whisper's (Gandhi et al. 2023): a clip is kept when the word error rate between label and
reference, both normalised, is at most a threshold. Clips with an empty reference or label are dropped. Where nobody
wrote down what was said, the teacher must judge itself: a clip is kept when the teacher was confident and did not
repeat itself.

The first line of `labels.jsonl` says how its labels were made (`Manner`). One line a label follows, in any order. A
label belongs to a clip by its key, so a corpus may grow, and an interrupted labelling adds what is missing. What the
teacher might have said at each place lies in a file beside it (`distributions.py`).

The teacher hears in its own window, as it was trained, however short a clip is. Beginnings of clips are labelled too:
a partial is one, and what the teacher makes of it is not the beginning of what it makes of the whole.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, TypeVar

import jiwer
from tqdm import tqdm

from distillation.corpus import Clip, Corpus, evenly
from distillation.distributions import Distributions
from distillation.errors import DistillError
from distillation.files import digest_of_files
from distillation.hearing import Transcriber, with_margins
from distillation.tables import table
from streaming.confidence import ConfidenceSettings, find_loop
from streaming.job import SAMPLE_RATE, Waveform, utterance_confidence
from streaming.whisper.checkpoint import Checkpoint
from streaming.whisper.locate import weight_files

BATCH = 8
WINDOW = 8 * BATCH
"""Clips among which those of like length are heard together."""
SHORTEST_BEGUN, SHORTEST_BEGINNING, UNHEARD = 1.8, 0.8, 0.4
"""Seconds of a clip that has a beginning, of a beginning, and of what is at least missing behind it."""
SPLIT = "train"
"""What is labelled: a student is measured on transcripts."""

LabelVerdict = Literal["kept", "no label", "no reference", "word errors", "unsure", "repetition"]


class LabelsError(DistillError):
    """The labels cannot be used or continued; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Label:
    """The teacher's transcript of a clip, or of its beginning.

    Attributes:
        key: the clip's, as in the corpus.
        text: what the teacher said.
        wer: word errors of the label per word of the reference, both normalised; None without a reference.
        confidence: the teacher's own, 0 to 1.
        repeats: whether the teacher fell into a loop.
        samples: the length of the beginning that was heard; None for the whole clip.
        tokens: of the text.
        place: the number of the label's first record in the file of distributions, which has one for each token and one
            for the end of text.
    """

    key: str
    text: str
    wer: float | None
    confidence: float = 1.0
    repeats: bool = False
    samples: int | None = None
    tokens: Sequence[int] = ()
    place: int = 0

    @property
    def records(self) -> int:
        return len(self.tokens) + 1


@dataclass(frozen=True, slots=True)
class Manner:
    """How labels were made; labels of two manners are never in one file.

    Attributes:
        teacher: a digest of its weights and of what else decides its words (`digest`).
        normaliser: the name of what made texts comparable.
        language: the code that was given, if any.
    """

    teacher: str
    normaliser: str
    language: str | None


@dataclass(frozen=True, slots=True)
class Labelled:
    """What came of the clips that were asked for.

    Attributes:
        clips: those with a label.
        beginnings: the beginnings of clips with a label.
        too_long: clips that are too long for the teacher.
        speechless: by set, how many recordings gave no clip because they have no speech.
    """

    clips: Sequence[tuple[Label, Clip]]
    beginnings: Sequence[tuple[Label, Clip]] = ()
    too_long: Sequence[Clip] = ()
    speechless: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which labels a student learns from.

    Attributes:
        wer: most word errors of a label, per word of its reference.
        confidence: the least that a label without a reference must have.
    """

    wer: float = 0.1
    confidence: float = 0.7

    def judge(self, label: Label, reference: str) -> LabelVerdict:
        if not label.text:
            return "no label"
        if label.repeats:
            return "repetition"
        if label.wer is None:
            return "kept" if label.confidence >= self.confidence else "unsure"
        if not reference:
            return "no reference"
        return "kept" if label.wer <= self.wer else "word errors"


def normaliser(name: str, spelling: Path | None = None) -> Callable[[str], str]:
    """Return what makes two transcripts comparable.

    Args:
        name: "english" for Whisper's own normaliser of English (numbers, contractions, spelling); "basic" for its own
            for any language.
        spelling: a checkpoint's `normalizer.json`, from which "english" takes British spellings.
    """
    # Imported here: only these need it, and it takes long.
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if name == "basic":
        return lambda text: str(BasicTextNormalizer()(text)).strip()
    british = json.loads(spelling.read_text(encoding="utf-8")) if spelling and spelling.is_file() else {}
    english = EnglishTextNormalizer(british)
    return lambda text: str(english(text)).strip()


def digest(teacher: Checkpoint) -> str:
    """Return a digest that changes with what decides the teacher's words.

    That is its weights, its tokens, what may be said of them (with the prompt), and its spelling; not its name or
    place, or what a newer library writes into the configuration.
    """
    beside = (teacher.directory / name for name in ("generation_config.json", "normalizer.json"))
    files = (*weight_files(teacher.directory), teacher.tokenizer_file, *beside)
    return digest_of_files(file for file in files if file.is_file())


# --- labelling -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a corpus is labelled.

    Attributes:
        at_most: clips of a set, evenly chosen.
        sets: the same for some sets, by name.
        beginnings: the share of clips of which a beginning is labelled too.
    """

    at_most: int = 10**9
    sets: Mapping[str, int] = field(default_factory=dict)
    beginnings: float = 0.3

    def clips(self, corpus: Corpus) -> list[Clip]:
        by_set: dict[str, list[Clip]] = {}
        for clip in corpus.split(SPLIT):
            by_set.setdefault(clip.set, []).append(clip)
        return [clip for name, clips in by_set.items() for clip in evenly(clips, self.sets.get(name, self.at_most))]

    def beginning(self, key: str, clip: Clip) -> int | None:
        """Return how many samples of a clip's beginning are labelled; None for none.

        It is always the same for the same key.
        """
        rng = random.Random(key)
        if rng.random() >= self.beginnings or clip.seconds < SHORTEST_BEGUN:
            return None
        return int(rng.uniform(SHORTEST_BEGINNING, clip.seconds - UNHEARD) * SAMPLE_RATE)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A clip, or so many samples of its beginning, to be heard."""

    key: str
    clip: Clip
    samples: int | None

    @property
    def length(self) -> int:
        return self.samples or self.clip.samples

    def wave(self, corpus: Corpus) -> Waveform:
        wave = corpus.waveform(self.clip)
        return with_margins(wave) if self.samples is None else with_margins(wave[: self.samples], after=0.0)


def label(
    corpus: Corpus,
    transcriber: Transcriber,
    path: Path,
    manner: Manner,
    choice: Choice,
    comparable: Callable[[str], str],
) -> Labelled:
    """Add the labels that are missing, in an order that has some of everything from its start.

    Args:
        corpus: the clips.
        transcriber: the teacher.
        path: the file of labels, which is begun when it is not there.
        manner: how the labels are made.
        choice: what of the corpus is labelled.
        comparable: makes two texts comparable.

    Returns:
        The labels of all that `choice` asks for, those that were there already too.

    Raises:
        LabelsError: the labels that are there were made in another manner, or of another corpus.
    """
    done = _begun(path, manner)
    joined(corpus, done)
    store = Distributions(distributions_of(path))
    _begin(store, done, distributions_of(path))
    asked = choice.clips(corpus)
    longest = transcriber.engine.contexts[-1] - 0.5
    short = [clip for clip in asked if clip.seconds <= longest]
    wanted = _wanted(corpus, short, choice)
    there = {(each.key, each.samples) for each in done}
    missing = [each for each in wanted if (each.key, each.samples) not in there]
    with (
        path.open("a") as lines,
        tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="labels", unit="clip") as bar,
    ):
        for batch in _batches(missing):
            found = _label(corpus, transcriber, batch, store, comparable)
            lines.write("".join(json.dumps(asdict(each)) + "\n" for each in found))
            lines.flush()
            bar.update(len(batch))
    labels = {(each.key, each.samples): each for each in read_labels(path)}
    begun = [each for each in wanted if each.samples is not None]
    return Labelled(
        [(labels[corpus.key(clip), None], clip) for clip in short],
        [(labels[each.key, each.samples], _heard(labels[each.key, each.samples], each.clip)) for each in begun],
        [clip for clip in asked if clip.seconds > longest],
        corpus.speechless(SPLIT),
    )


def _begin(store: Distributions, done: Sequence[Label], path: Path) -> None:
    """A line of labels may have been taken out: those behind it have their records where they had them."""
    known = max((each.place + each.records for each in done), default=0)
    if known > len(store):
        raise LabelsError(f"{path} is shorter than its labels: label again, with another --out")
    store.begin(known)


def distributions_of(path: Path) -> Path:
    """Return the file of distributions that belongs to a file of labels."""
    return path.with_suffix(".distributions")


def _wanted(corpus: Corpus, clips: Sequence[Clip], choice: Choice) -> list[_Wanted]:
    """In an order that has some of everything from its beginning; what is in a corpus twice is heard once."""
    wanted: dict[str, list[_Wanted]] = {}
    for clip in clips:
        key = corpus.key(clip)
        samples = choice.beginning(key, clip)
        wanted[key] = [_Wanted(key, clip, None), *([_Wanted(key, clip, samples)] if samples else [])]
    ordered = [each for found in wanted.values() for each in found]
    random.Random(0).shuffle(ordered)
    return ordered


def _batches(missing: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    """Clips of similar length together, whose texts are of similar length.

    They are sorted only within a stretch: whatever stops the labelling, what is there is the beginning of the order but
    for a few clips.
    """
    for start in range(0, len(missing), WINDOW):
        window = sorted(missing[start : start + WINDOW], key=lambda each: each.length)
        yield from (window[place : place + BATCH] for place in range(0, len(window), BATCH))


def _label(
    corpus: Corpus,
    transcriber: Transcriber,
    batch: Sequence[_Wanted],
    store: Distributions,
    comparable: Callable[[str], str],
) -> list[Label]:
    heard = transcriber.tell([each.wave(corpus) for each in batch])
    found = []
    for each, told in zip(batch, heard, strict=True):
        text, clip = transcriber.text(told.tokens), each.clip
        known = clip.transcribed and each.samples is None
        wer = round(word_error_rate(comparable(clip.text), comparable(text)), 4) if known else None
        # What had no end when its limit was reached is taken for a loop too.
        repeats = not told.ended or find_loop(told.tokens, ConfidenceSettings()) is not None
        sure = round(utterance_confidence(told.log_probs), 4)
        place = store.add(told.logits)
        found.append(Label(each.key, text, wer, sure, repeats, each.samples, list(told.tokens), place))
    return found


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Return word errors per word of the reference; 1 for an empty reference that got words."""
    if not reference:
        return 1.0 if hypothesis else 0.0
    return float(jiwer.wer(reference, hypothesis))


# --- the file --------------------------------------------------------------------------------------------------------


def read_labels(path: Path) -> list[Label]:
    """Read the labels of a file, without a last line that is being written or was torn.

    Raises:
        LabelsError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise LabelsError(f"there is no {path}: make it with `whisperd distill label`")
    return _parsed(path)[1]


def joined(corpus: Corpus, labels: Sequence[Label]) -> list[tuple[Label, Clip]]:
    """Pair each label with its clip, or the beginning of one, in the corpus's order.

    Raises:
        LabelsError: some labels are of clips that the corpus does not have.
    """
    by_key: dict[str, list[Label]] = {}
    for each in labels:
        by_key.setdefault(each.key, []).append(each)
    clips = [(corpus.key(clip), clip) for clip in corpus.split(SPLIT)] if by_key else []
    strangers = len(by_key.keys() - {key for key, _ in clips})
    if strangers:
        raise LabelsError(
            f"{strangers} of {len(by_key)} labelled clips are not training clips in {corpus.folder}: give "
            "the corpus that they were made from, or label this one with another --out"
        )
    return [(each, _heard(each, clip)) for key, clip in clips for each in by_key.get(key, ())]


def _heard(label: Label, clip: Clip) -> Clip:
    """A beginning has no transcript: nobody wrote down where in it the words were."""
    if label.samples is None:
        return clip
    return replace(clip, samples=min(label.samples, clip.samples), text="", transcribed=False)


def _begun(path: Path, manner: Manner) -> list[Label]:
    """The labels that are there already; a torn last line is cut off, and a file without any line is begun."""
    size = _whole(path) if path.is_file() else 0
    if size:
        os.truncate(path, size)
        found, labels = _parsed(path)
        _require_same(path, found, manner)
        return labels
    path.write_text(json.dumps({"labels": 1, **asdict(manner)}) + "\n")
    return []


def _whole(path: Path) -> int:
    """Bytes of the lines that were written whole."""
    return path.read_bytes().rfind(b"\n") + 1


def _parsed(path: Path) -> tuple[Manner, list[Label]]:
    lines = path.read_bytes()[: _whole(path)].splitlines()
    if not lines:
        raise LabelsError(f"{path} is empty: make it with `whisperd distill label`")
    about = _row(path, 1, lines[0])
    if about.pop("labels", None) != 1:
        raise LabelsError(
            f"{path} does not say how its labels were made, nor from which clips: label again, with another --out"
        )
    manner = _made(Manner, path, 1, about)
    labels = [_made(Label, path, number, _row(path, number, line)) for number, line in enumerate(lines[1:], 2)]
    if any(each.text and not each.tokens for each in labels):
        raise LabelsError(
            f"{path} is from an earlier version, without the teacher's tokens: label again, with another --out"
        )
    return manner, labels


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _torn(path, number) from error
    if not isinstance(row, dict):
        raise _torn(path, number)
    return row


_Kind = TypeVar("_Kind", Manner, Label)


def _made(kind: type[_Kind], path: Path, number: int, row: Mapping[str, Any]) -> _Kind:
    try:
        return kind(**row)
    except TypeError as error:
        raise _torn(path, number) from error


def _torn(path: Path, number: int) -> LabelsError:
    return LabelsError(
        f"{path}, line {number}, is not a label: remove the line, and `whisperd distill label` adds it again"
    )


def _require_same(path: Path, found: Manner, wanted: Manner) -> None:
    differences = []
    if found.teacher != wanted.teacher:
        differences.append("by another teacher")
    for name in ("normaliser", "language"):
        before, now = getattr(found, name), getattr(wanted, name)
        if before != now:
            differences.append(f"with {f'--{name} {before}' if before else f'no --{name}'}")
    if differences:
        raise LabelsError(
            f"the labels in {path} were made {' and '.join(differences)}: continue with the same options, or choose "
            "another --out"
        )


# --- the account of the filter ---------------------------------------------------------------------------------------

REASONS: tuple[LabelVerdict, ...] = ("no label", "no reference", "word errors", "unsure", "repetition")
TOO_LONG, NO_SPEECH = "too long", "no speech"


def account(found: Labelled, choice: Filter) -> str:
    """Return what the filter keeps and why it drops the rest, by set, as a Markdown table with examples."""
    verdicts = [(each, clip, choice.judge(each, clip.text)) for each, clip in found.clips]
    judged = [*((clip, verdict) for _, clip, verdict in verdicts), *((clip, TOO_LONG) for clip in found.too_long)]
    silent = found.speechless
    rows = [
        _counted(name, [item for item in judged if item[0].set == name], silent.get(name, 0))
        for name in sorted({clip.set for clip, _ in judged} | silent.keys())
    ]
    rows.append(_counted("**all**", judged, sum(silent.values())))
    begun = [(each, clip, choice.judge(each, clip.text)) for each, clip in found.beginnings]
    if begun:
        rows.append(_counted("beginnings of clips", [(clip, verdict) for _, clip, verdict in begun], 0))
    examples = [
        [verdict, shorten(clip.text, 80) or "(none)", shorten(each.text, 80) or "(none)"]
        for reason in REASONS
        for each, clip, verdict in [item for item in verdicts if item[2] == reason][:3]
    ]
    lines = [
        f"Kept: at most {choice.wer:.0%} word errors; without a transcript, at least {choice.confidence:g} confidence.",
        "",
        table(["set", "clips", "hours", "kept", *REASONS, TOO_LONG, NO_SPEECH], rows),
    ]
    if begun:
        lines += ["", "Beginnings are labelled beside their clips, like partials, and not counted in the other rows."]
    if silent:
        lines += ["", "No speech: recordings, not clips, in which no speech was found."]
    if examples:
        lines += ["", "Dropped, for example:", "", table(["why", "reference", "label"], examples)]
    return "\n".join(lines) + "\n"


def _counted(name: str, clips: Sequence[tuple[Clip, str]], silent: int) -> list[str]:
    counts = Counter(verdict for _, verdict in clips)
    hours = sum(clip.samples for clip, _ in clips) / SAMPLE_RATE / 3600
    share = f"{counts['kept']} ({counts['kept'] / max(1, len(clips)):.1%})"
    dropped = [str(counts[reason]) for reason in (*REASONS, TOO_LONG)]
    return [name, str(len(clips)), f"{hours:.2f}", share, *dropped, str(silent)]


def picture(found: Labelled, choice: Filter, path: Path) -> None:
    """Draw how many labels each threshold would keep, and how many were dropped for each reason.

    Args:
        found: the labels.
        choice: the filter, whose thresholds are marked.
        path: the PNG file.
    """
    from distillation.charts import Curve, draw

    labels = [each for each, _ in found.clips]
    # A label can have more errors than its reference has words: all of those are at the end of the axis.
    errors = sorted(min(1.0, each.wer) for each in labels if each.wer is not None and each.text)
    sure = _confidences(labels)
    begun = _confidences([each for each, _ in found.beginnings])
    panels: dict[str, tuple[str, Mapping[str, Curve], float]] = {}
    if errors:
        panels["labels with a reference"] = ("most word errors", {"kept": _shares(errors)}, min(1.0, choice.wer))
    if sure or begun:
        curves = {"kept": sure, "kept of beginnings": begun}
        shown = {name: _shares(values) for name, values in curves.items() if values}
        panels["labels without one"] = ("least confidence", shown, choice.confidence)
    counts = Counter[str](choice.judge(each, clip.text) for each, clip in found.clips)
    counts.update({TOO_LONG: len(found.too_long), NO_SPEECH: sum(found.speechless.values())})
    dropped = {reason: counts[reason] for reason in (*REASONS, TOO_LONG, NO_SPEECH)}
    bars = {"dropped": dropped}
    if found.beginnings:
        judged = Counter[str](choice.judge(each, clip.text) for each, clip in found.beginnings)
        bars["dropped of beginnings"] = {reason: judged[reason] for reason in REASONS}
    draw(path, panels, "share kept", bars)


def _confidences(labels: Sequence[Label]) -> list[float]:
    """Of those without a reference, the surest first."""
    return sorted((each.confidence for each in labels if each.wer is None and each.text), reverse=True)


def _shares(ordered: Sequence[float]) -> tuple[list[float], list[float]]:
    return list(ordered), [(place + 1) / len(ordered) for place in range(len(ordered))]
