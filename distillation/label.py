"""Pseudo-labels: the teacher's own transcripts of the corpus, and which of them a student may learn from.

Owns labelling and the filter. Clips go through the service's engine, so that a label is what the teacher really says
there. The filter is Distil-Whisper's: a clip stays when the word error rate between label and reference, both
normalised, is at most the threshold; clips with an empty reference or label fall out.

`labels.jsonl` has a line a clip, in the corpus's order; an interrupted labelling goes on after its last whole line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jiwer
from tqdm import tqdm

from distillation.corpus import Clip, Corpus, CorpusError
from distillation.evaluate import Transcriber, with_margins

BATCH = 16


@dataclass(frozen=True, slots=True)
class Label:
    """index: of the clip in the corpus. wer: of the label against the reference, 0 for none wrong."""

    index: int
    text: str
    wer: float


def label(corpus: Corpus, transcriber: Transcriber, path: Path, split: str = "train", every: int = 1) -> None:
    """Writes the labels of every n-th clip of a split, going on where an earlier run was stopped."""
    done = len(_whole_lines(path))
    wanted = [index for index, clip in enumerate(corpus.clips) if clip.split == split][::every]
    with path.open("a") as lines, tqdm(total=len(wanted), initial=done, desc="labels", unit="clip") as bar:
        for start in range(done, len(wanted), BATCH):
            indices = wanted[start : start + BATCH]
            texts = transcriber.transcribe([with_margins(corpus.waveform(corpus.clips[index])) for index in indices])
            for index, text in zip(indices, texts, strict=True):
                error_rate = word_error_rate(corpus.clips[index].text, text)
                lines.write(json.dumps(asdict(Label(index, text, round(error_rate, 4)))) + "\n")
            lines.flush()
            bar.update(len(indices))


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


def kept(labels: Sequence[Label], threshold: float) -> Iterator[Label]:
    """The labels that a student may learn from."""
    return (label for label in labels if label.text and label.wer <= threshold)


def relabelled(corpus: Corpus, labels: Sequence[Label], threshold: float) -> list[Clip]:
    """The corpus's clips with the teacher's words in place of their own; filtered ones are left out.

    Raises:
        CorpusError: the filter left nothing.
    """
    clips = [replace(corpus.clips[label.index], text=label.text) for label in kept(labels, threshold)]
    if not clips:
        raise CorpusError(f"no label is within {threshold:.0%} word errors of its reference: is it the right teacher?")
    return clips
