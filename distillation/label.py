"""Pseudo-labels: the teacher's own transcripts of a corpus, and which of them a student may learn from.

Owns labelling, the filter, and its account (a table and a picture). Clips go through the service's engine, so that a
label is what the teacher really says there. Knows nothing of training.

The filter is Distil-Whisper's (Gandhi et al. 2023): a clip stays when the word error rate between label and reference,
both normalised, is at most a threshold; clips with an empty reference or label fall out. Where nobody wrote down what
was said, the teacher must judge itself: a clip stays when the teacher was confident and did not repeat itself.

`labels.jsonl` has a line a clip, in the corpus's order; an interrupted labelling goes on after its last whole line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Literal

import jiwer
from tqdm import tqdm

from distillation.corpus import Clip, Corpus, CorpusError
from distillation.hearing import Transcriber, with_margins
from distillation.tables import table
from distillation.text import normalise
from streaming.confidence import ConfidenceSettings, find_loop
from streaming.job import SAMPLE_RATE, utterance_confidence

BATCH = 16

Verdict = Literal["kept", "no label", "no reference", "word errors", "unsure", "repetition"]


@dataclass(frozen=True, slots=True)
class Label:
    """index: of the clip in the corpus. wer: of the label against the reference, both normalised, 0 for none wrong;
    None where there is no reference. confidence: the teacher's own, 0..1. repeats: whether it fell into a loop.
    """

    index: int
    text: str
    wer: float | None
    confidence: float = 1.0
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """wer: most word errors of a label, per word of its reference. confidence: the least that a label without a
    reference must have.
    """

    wer: float = 0.1
    confidence: float = 0.7

    def judge(self, label: Label, reference: str) -> Verdict:
        if not label.text:
            return "no label"
        if label.repeats:
            return "repetition"
        if label.wer is None:
            return "kept" if label.confidence >= self.confidence else "unsure"
        if not reference:
            return "no reference"
        return "kept" if label.wer <= self.wer else "word errors"


NORMALISERS = ("corpus", "english", "basic")


def normaliser(name: str, spelling: Path | None = None) -> Callable[[str], str]:
    """What makes two transcripts comparable.

    "corpus": lower case, letters and apostrophes. "english": Whisper's own for English (numbers, contractions,
    spelling; `spelling`: a checkpoint's normalizer.json). "basic": Whisper's own for any language.
    """
    if name == "corpus":
        return normalise
    # Imported here: only these need it, and it takes long.
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if name == "basic":
        return lambda text: str(BasicTextNormalizer()(text)).strip()
    british = json.loads(spelling.read_text(encoding="utf-8")) if spelling and spelling.is_file() else {}
    english = EnglishTextNormalizer(british)
    return lambda text: str(english(text)).strip()


def label(
    corpus: Corpus,
    transcriber: Transcriber,
    path: Path,
    split: str = "train",
    every: int = 1,
    comparable: Callable[[str], str] = normalise,
) -> None:
    """Writes the labels of every n-th clip of a split, going on where an earlier run was stopped.

    Raises:
        CorpusError: the labels that are there belong to other clips.
    """
    done = read_labels(path)
    longest = transcriber.engine.contexts[-1] - 0.5
    wanted = [i for i, clip in enumerate(corpus.clips) if clip.split == split and clip.seconds <= longest][::every]
    if [each.index for each in done] != wanted[: len(done)]:
        raise CorpusError(f"{path} labels other clips than these: remove it, or give the options it was begun with")
    with path.open("a") as lines, tqdm(total=len(wanted), initial=len(done), desc="labels", unit="clip") as bar:
        for start in range(len(done), len(wanted), BATCH):
            indices = wanted[start : start + BATCH]
            for each in _label(corpus, transcriber, indices, comparable):
                lines.write(json.dumps(asdict(each)) + "\n")
            lines.flush()
            bar.update(len(indices))


def _label(
    corpus: Corpus, transcriber: Transcriber, indices: Sequence[int], comparable: Callable[[str], str]
) -> Iterator[Label]:
    results = transcriber.results([with_margins(corpus.waveform(corpus.clips[index])) for index in indices])
    for index, result in zip(indices, results, strict=True):
        clip, text = corpus.clips[index], transcriber.text(result.tokens)
        wer = round(word_error_rate(comparable(clip.text), comparable(text)), 4) if clip.transcribed else None
        repeats = find_loop(result.tokens, ConfidenceSettings()) is not None
        yield Label(index, text, wer, round(utterance_confidence(result.log_probs), 4), repeats)


def _whole_lines(path: Path) -> list[str]:
    """The lines that were written whole; a torn last one is cut off the file."""
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return whole.splitlines()


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Word errors / words of the reference; 1 for an empty reference that got words."""
    if not reference:
        return 1.0 if hypothesis else 0.0
    return float(jiwer.wer(reference, hypothesis))


def read_labels(path: Path) -> list[Label]:
    return [Label(**json.loads(line)) for line in _whole_lines(path)]


def relabelled(corpus: Corpus, labels: Sequence[Label], choice: Filter) -> list[Clip]:
    """The corpus's clips with the teacher's words in place of their own; filtered ones are left out.

    Raises:
        CorpusError: the filter left nothing.
    """
    kept = [each for each in labels if choice.judge(each, corpus.clips[each.index].text) == "kept"]
    if not kept:
        raise CorpusError(
            f"no label is within {choice.wer:.0%} word errors of its reference, or confident enough without one: "
            "is it the right teacher?"
        )
    return [replace(corpus.clips[each.index], text=each.text) for each in kept]


# --- the account of the filter ---------------------------------------------------------------------------------------

REASONS: tuple[Verdict, ...] = ("no label", "no reference", "word errors", "unsure", "repetition")


def account(corpus: Corpus, labels: Sequence[Label], choice: Filter) -> str:
    """What the filter keeps and why it drops the rest, by set, as a Markdown table with examples."""
    verdicts = [(each, corpus.clips[each.index], choice.judge(each, corpus.clips[each.index].text)) for each in labels]
    sets = sorted({clip.set for _, clip, _ in verdicts})
    rows = [_counted(name, [(clip, verdict) for _, clip, verdict in verdicts if clip.set == name]) for name in sets]
    rows.append(_counted("**all**", [(clip, verdict) for _, clip, verdict in verdicts]))
    examples = [
        [verdict, shorten(clip.text, 80) or "(none)", shorten(each.text, 80) or "(none)"]
        for reason in REASONS
        for each, clip, verdict in [item for item in verdicts if item[2] == reason][:3]
    ]
    lines = [
        f"Kept: at most {choice.wer:.0%} word errors; without a transcript, a confidence of {choice.confidence:g}.",
        "",
        table(["set", "clips", "hours", "kept", *REASONS], rows),
    ]
    if examples:
        lines += ["", "Dropped, for example:", "", table(["why", "reference", "label"], examples)]
    return "\n".join(lines) + "\n"


def _counted(name: str, clips: Sequence[tuple[Clip, Verdict]]) -> list[str]:
    counts = Counter(verdict for _, verdict in clips)
    hours = sum(clip.samples for clip, _ in clips) / SAMPLE_RATE / 3600
    share = f"{counts['kept']} ({counts['kept'] / max(1, len(clips)):.1%})"
    return [name, str(len(clips)), f"{hours:.2f}", share, *(str(counts[reason]) for reason in REASONS)]


def picture(labels: Iterable[Label], choice: Filter, path: Path) -> None:
    """How many labels each threshold would keep, with and without references."""
    from distillation.pictures import Curve, draw

    found = list(labels)
    errors = sorted(each.wer for each in found if each.wer is not None and each.text)
    sure = sorted((each.confidence for each in found if each.wer is None and each.text), reverse=True)
    panels: dict[str, tuple[str, Mapping[str, Curve], float]] = {}
    if errors:
        panels["labels with a reference"] = ("most word errors", {"kept": _shares(errors)}, choice.wer)
    if sure:
        panels["labels without one"] = ("least confidence", {"kept": _shares(sure)}, choice.confidence)
    draw(path, panels, "share kept")


def _shares(ordered: Sequence[float]) -> tuple[list[float], list[float]]:
    return list(ordered), [(place + 1) / len(ordered) for place in range(len(ordered))]
