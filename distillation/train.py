"""The training loop: of a teacher from scratch, and of a student from its teacher.

Owns losses, schedule, checkpoints and the curve. Knows nothing of how a batch comes about. The loop is one; teacher and
student differ in their objective.

Teacher: cross-entropy, and a character CTC head on the encoder that is thrown away afterwards: without it the decoder
stays a language model for a long time (measured). Student: the published weighting of Distil-Whisper's code (Gandhi et
al. 2023), 0.8 cross-entropy on pseudo-labels + KL(teacher || student) T^2 at temperature T = 2, encoder frozen.

The student learns from encoder states (`states.py`), the teacher from features.

The learning rate warms up, stays, and falls linearly over the last `cooldown` steps: a training whose end was put off
goes on from its checkpoint without having been cooled.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from distillation.batches import CHARACTERS, IGNORED, Batch
from distillation.errors import DistillError
from distillation.files import NotWritten, write_whole
from distillation.interrupts import deaf_children
from distillation.model import Whisper, attend_fast, encode, logits
from distillation.pictures import Panel, draw
from distillation.states import Heard


@dataclass(frozen=True, slots=True)
class Schedule:
    """rate: the learning rate between `warmup` and the last `cooldown` steps. every: steps between checkpoints."""

    steps: int
    rate: float
    warmup: int = 400
    cooldown: int = 1500
    every: int = 500

    def rate_at(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warmup)
        falling = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.rate * rising * falling


_T = TypeVar("_T", Batch, Heard)


class TrainingError(DistillError):
    """The training cannot go on; the message says what to do."""


_B = TypeVar("_B", Batch, Heard, contravariant=True)


class Objective(Protocol[_B]):
    """What is trained, and how far it is from its aim on a batch: named losses, of which "loss" is minimised."""

    @property
    def module(self) -> nn.Module: ...

    def to(self, device: str) -> None: ...

    def __call__(self, batch: _B) -> dict[str, Tensor]: ...


class TeacherObjective:
    """Cross-entropy of the next token + `ctc_weight` x CTC of the characters."""

    def __init__(self, model: Whisper, ctc_weight: float) -> None:
        self.model = model
        self.ctc_weight = ctc_weight
        self.head = nn.Linear(model.config.d_model, len(CHARACTERS) + 1)
        self.module = nn.ModuleDict({"model": model, "head": self.head})

    def take_head(self, weights: Mapping[str, Tensor]) -> None:
        """From an earlier training's weights (`trained_weights`)."""
        self.head.load_state_dict({name: weights[f"head.{name}"] for name in self.head.state_dict()})

    def to(self, device: str) -> None:
        attend_fast(self.model, device)
        self.module.to(device)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        states = encode(self.model, batch.mel)
        scores = logits(self.model, batch.inputs, states)
        cross_entropy = _cross_entropy(scores, batch.labels)
        ctc = self.spelling(states, batch)
        loss = cross_entropy + self.ctc_weight * ctc
        return {
            "loss": loss,
            "cross_entropy": cross_entropy,
            "ctc": ctc,
            "accuracy": _accuracy(scores, batch.labels),
        }

    def spelling(self, states: Tensor, batch: Batch) -> Tensor:
        """CTC loss of the characters, from encoder states [rows, positions, width]."""
        spelled = self.head(states).float().log_softmax(-1).transpose(0, 1)
        lengths = torch.full((spelled.shape[1],), spelled.shape[0])
        return nn.functional.ctc_loss(spelled, batch.characters, lengths, batch.character_counts, zero_infinity=True)


class HeadObjective:
    """The CTC head alone, before a teacher goes on whose head is lost: a new head would first teach the encoder
    nonsense.
    """

    def __init__(self, teacher: TeacherObjective) -> None:
        self._teacher = teacher
        self.module = teacher.head

    def to(self, device: str) -> None:
        self._teacher.to(device)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            states = encode(self._teacher.model, batch.mel)
        ctc = self._teacher.spelling(states, batch)
        return {"loss": ctc, "ctc": ctc}


class StudentObjective:
    """Cross-entropy on the labels + KL from the teacher's distribution, over the text's positions only.

    The encoder is the teacher's, and frozen: batches come from behind it.

    Raises:
        TrainingError: the student has another encoder than the teacher.
    """

    def __init__(
        self, student: Whisper, teacher: Whisper, ce_weight: float, kl_weight: float, temperature: float
    ) -> None:
        theirs = teacher.model.encoder.state_dict()
        if not all(torch.equal(weights, theirs[name]) for name, weights in student.model.encoder.state_dict().items()):
            raise TrainingError("the student's encoder is not this teacher's: make the student with `distill init`")
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        student.model.encoder = teacher.model.encoder
        self.ce_weight, self.kl_weight, self.temperature = ce_weight, kl_weight, temperature
        self.module = student

    def to(self, device: str) -> None:
        for model in (self.student, self.teacher):
            attend_fast(model, device)
            model.to(device)

    def __call__(self, batch: Heard) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = logits(self.teacher, batch.inputs, batch.states)
        scores = logits(self.student, batch.inputs, batch.states)
        cross_entropy = _cross_entropy(scores, batch.labels)
        counted = batch.labels != IGNORED
        counted[:, 0] = False  # the prompt's own position is not text
        kl = nn.functional.kl_div(
            (scores[counted].float() / self.temperature).log_softmax(-1),
            (taught[counted].float() / self.temperature).log_softmax(-1),
            reduction="batchmean", log_target=True,
        ) * self.temperature**2  # fmt: skip
        loss = self.ce_weight * cross_entropy + self.kl_weight * kl
        return {
            "loss": loss,
            "cross_entropy": cross_entropy,
            "kl": kl,
            "accuracy": _accuracy(scores, batch.labels),
        }


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def _accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    counted = labels != IGNORED
    return (scores.argmax(-1)[counted] == labels[counted]).float().mean()


def fit(
    objective: Objective[_T],
    batches: Dataset[_T],
    schedule: Schedule,
    folder: Path,
    watch: Callable[[], dict[str, float]] | None = None,
    device: str = "cpu",
) -> None:
    """Trains up to `schedule.steps`, going on from the newest checkpoint in `folder` where there is one.

    `watch` is asked for figures at every checkpoint; everything goes to `folder/curve.jsonl`, a line a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    objective.to(device)
    module = objective.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    begin = _resume(folder / "checkpoint.pt", module, optimizer)
    totals: dict[str, float] = {}
    started = time.monotonic()
    bar = tqdm(total=schedule.steps, initial=begin, desc=folder.name, unit="step")
    for step, batch in _from(batches, begin, schedule.steps):
        module.train()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        batch = _on(device, batch)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            losses = objective(batch)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach())
        bar.update()
        if (step + 1) % schedule.every == 0 or step + 1 == schedule.steps:
            since = schedule.every if (step + 1) % schedule.every == 0 else schedule.steps % schedule.every
            row: dict[str, Any] = {"step": step + 1, "rate": schedule.rate_at(step),
                                   "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
            row |= {name: round(total / since, 4) for name, total in totals.items()}
            totals = {}
            module.eval()
            row |= watch() if watch else {}
            save(folder / "checkpoint.pt", module, optimizer, step + 1)
            with (folder / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(row) + "\n")
            draw_curves(folder)
            bar.write(json.dumps(row))
    bar.close()


def _from(batches: Dataset[_T], begin: int, end: int) -> Iterator[tuple[int, _T]]:
    loader = DataLoader(batches, batch_size=None, sampler=range(begin, end), num_workers=1, prefetch_factor=8,
                        worker_init_fn=_quiet_worker)  # fmt: skip
    with deaf_children():
        arriving = iter(loader)
    return zip(range(begin, end), arriving, strict=True)


def _quiet_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Its errors travel to the parent. What is left to print is that the parent went while a batch was on its way.
    sys.excepthook = lambda *_: None


def _on(device: str, batch: _T) -> _T:
    return type(batch)(*(getattr(batch, name).to(device) for name in batch.__slots__))


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Of the newest checkpoint of a training.

    Raises:
        TrainingError: there is none.
    """
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise TrainingError(f"no checkpoint in {folder}: `distill train --out {folder}` writes the first")
    return dict(_read(path)["module"])


def draw_curves(folder: Path) -> None:
    """`curve.jsonl` as a picture beside it: the losses, and the word errors."""
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    losses = [name for name in ("cross_entropy", "ctc", "kl") if name in rows[-1]]
    errors = [name for name in rows[-1] if name.startswith("wer_")]
    panels: dict[str, Panel] = {
        title: ("step", {name: (steps, [row[name] for row in rows]) for name in names}, None)
        for title, names in (("losses", losses), ("word error rate", errors))
        if names
    }
    draw(folder / "curve.png", panels, "")


def save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        TrainingError: it cannot be written; the older one is as it was.
    """
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    try:
        write_whole(state, path)
    except NotWritten as error:
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {path.parent} ({error}): "
            "make room; the same command goes on from the checkpoint before"
        ) from error


def _resume(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = _read(path)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is no whole checkpoint ({str(error).splitlines()[0]}): remove it") from error
