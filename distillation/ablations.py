"""What each part of the recipe is worth: students that differ in one thing, on the same data, for the same steps.

Owns the variants and their account. The variants are Distil-Whisper's own questions (Gandhi et al. 2023): labels alone
or with KL, the two published weightings, how strict the filter must be when labels are spoilt in a known share, how
many decoder layers. Knows nothing of how a corpus or a store of states is made.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillation.batches import IGNORED, laid_out
from distillation.corpus import Clip, Corpus
from distillation.errors import DistillError
from distillation.files import write_text_whole
from distillation.label import word_error_rate
from distillation.model import Layout, Whisper, encoding, make_student
from distillation.scores import score
from distillation.settings import Settings, require_same
from distillation.states import Heard, States
from distillation.tables import table
from distillation.train import Schedule, StudentObjective, fit
from distillation.watch import by_length, texts, windows


@dataclass(frozen=True, slots=True)
class Variant:
    """spoilt: share of labels that are made wrong. filter: most word errors of a label that is learnt; None for all."""

    group: str
    name: str
    ce: float = 0.8
    kl: float = 1.0
    temperature: float = 2.0
    layers: int = 2
    spoilt: float = 0.0
    filter: float | None = None


def variants(teacher_layers: int) -> list[Variant]:
    """Those for a teacher of so many decoder layers: its own number and every half of it."""
    counts = [1 << power for power in range(teacher_layers.bit_length()) if 1 << power <= teacher_layers]
    return [
        Variant("losses", "labels alone", ce=1.0, kl=0.0),
        Variant("losses", "1.0 CE + 0.8 KL (the paper)", ce=1.0, kl=0.8, temperature=1.0),
        Variant("losses", "0.8 CE + 1.0 KL, T = 2 (the code)"),
        *(Variant("filter, 30 % of the labels spoilt", name, ce=1.0, kl=0.0, spoilt=0.3, filter=most)
          for name, most in (("off", None), ("20 %", 0.2), ("10 %", 0.1), ("5 %", 0.05))),
        *(Variant("decoder layers", str(count), layers=count) for count in counts),
    ]  # fmt: skip


class Spoilt(Dataset[Heard]):
    """A store of states in which some labels are wrong, and those that a filter would see are left out.

    A third each: one word is another, half of the words are missing, the text is that of another clip.
    """

    def __init__(self, states: States, variant: Variant, layout: Layout) -> None:
        self._states, self._variant, self._layout = states, variant, layout

    def __getitem__(self, step: int) -> Heard:
        heard = self._states[step]
        if not self._variant.spoilt:
            return heard
        rng = np.random.default_rng((5, self._states.number(step)))  # a label is wrong whenever it comes
        true = [self._text(row) for row in heard.labels]
        wrong = [self._spoil(text, true, rng) if rng.random() < self._variant.spoilt else text for text in true]
        inputs, labels = laid_out(self._layout, wrong)
        for row, (one, other) in enumerate(zip(true, wrong, strict=True)):
            if self._variant.filter is not None and word_error_rate(one, other) > self._variant.filter:
                labels[row] = IGNORED
        return replace(heard, inputs=inputs, labels=labels)

    def _text(self, labels: Tensor) -> str:
        end = self._layout.end
        return str(self._layout.tokenizer.decode([token for token in labels.tolist() if 0 <= token < end])).strip()

    def _spoil(self, text: str, others: Sequence[str], rng: np.random.Generator) -> str:
        words = text.split()
        vocabulary = " ".join(others).split() or ["no"]
        kind = int(rng.integers(3))
        if kind == 0 and words:
            words[int(rng.integers(len(words)))] = vocabulary[int(rng.integers(len(vocabulary)))]
            return " ".join(words)
        if kind == 1 and len(words) > 1:
            return " ".join(word for word in words if rng.random() < 0.5)
        return others[int(rng.integers(len(others)))]


class Judge:
    """Word errors of students that share an encoder, which hears the clips once for all of them."""

    def __init__(self, teacher: Whisper, corpus: Corpus, clips: Sequence[Clip], layout: Layout, device: str) -> None:
        ordered = by_length(clips)
        self._layout = layout
        self._said = [clip.text for clip in ordered]
        encode = encoding(teacher, device)
        self._states = [encode(mel).float() for mel in windows(corpus, ordered, layout)]

    def __call__(self, student: Whisper) -> float:
        student.eval()
        heard = [text for states in self._states for text in texts(student, states, self._layout)]
        return score(self._said, heard).wer


@dataclass(frozen=True, slots=True)
class Outcome:
    variant: Variant
    seed: int
    wer: float


def ablate(
    teacher: Whisper, states: States, judge: Callable[[Whisper], float], layout: Layout, steps: int, seeds: int,
    folder: Path, device: str, settings: Settings,
) -> list[Outcome]:  # fmt: skip
    """Trains every variant with every seed; outcomes that are in `folder` already are taken from there.

    settings: how they are judged; what they learn from is the store's to say.

    Raises:
        SettingsError: an outcome that is there was found under other settings.
    """
    outcomes = []
    for variant in variants(teacher.config.decoder_layers):
        for seed in range(seeds):
            place = folder / f"{variant.group} {variant.name} {seed}".replace("/", "-")
            given = {"--steps": steps, **settings, **states.settings}
            done = _done(place, given)
            if done is None:
                done = _train(variant, seed, teacher, states, judge, layout, steps, place, device)
                found = {**asdict(variant), "seed": seed, "wer": done, "settings": given}
                write_text_whole(json.dumps(found) + "\n", place / "outcome.json")
                (place / "checkpoint.pt").unlink(missing_ok=True)  # what it was for is written down
            outcomes.append(Outcome(variant, seed, done))
    return outcomes


def _done(place: Path, settings: Settings) -> float | None:
    """The word errors that were found already."""
    path = place / "outcome.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        begun, wer = dict(found.get("settings", {})), float(found["wer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DistillError(f"{path} cannot be read: remove it, and the same command finds it again") from error
    require_same(place, begun, settings)
    return wer


def _train(
    variant: Variant, seed: int, teacher: Whisper, states: States, judge: Callable[[Whisper], float], layout: Layout,
    steps: int, folder: Path, device: str,
) -> float:  # fmt: skip
    torch.manual_seed(seed)
    student = make_student(teacher, variant.layers)
    objective = StudentObjective(student, teacher, variant.ce, variant.kl, variant.temperature)
    schedule = Schedule(steps, 8e-4, warmup=min(50, steps), cooldown=steps // 2, every=steps, seed=seed)
    learnt = {"--steps": steps, **states.settings}
    fit(objective, Spoilt(states.shuffled(seed), variant, layout), schedule, folder, device=device, settings=learnt)
    return judge(student)


def account(outcomes: Sequence[Outcome], teacher_wer: float, steps: int) -> str:
    """A Markdown table for each question."""
    lines = [f"{steps} steps each; word errors on held-out voices; the teacher: {100 * teacher_wer:.1f} %."]
    for group, rows in _grouped(outcomes).items():
        found = [
            [
                name,
                f"{100 * statistics.mean(wers):.2f} %",
                f"{100 * min(wers):.2f} to {100 * max(wers):.2f} %",
                len(wers),
            ]
            for name, wers in rows.items()
        ]
        lines += ["", f"**{group}**", "", table(["", "WER, mean", "least to most", "seeds"], found)]
    return "\n".join(lines) + "\n"


def _grouped(outcomes: Sequence[Outcome]) -> Mapping[str, Mapping[str, list[float]]]:
    grouped: dict[str, dict[str, list[float]]] = {}
    for each in outcomes:
        grouped.setdefault(each.variant.group, {}).setdefault(each.variant.name, []).append(each.wer)
    return grouped
