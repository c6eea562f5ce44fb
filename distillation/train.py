"""The training of a student.

Owns losses, schedule, checkpoints and the curve. Knows nothing of how a batch is made.

The losses are weighted as in Distil-Whisper's code (Gandhi et al. 2023): 0.8 times the cross-entropy on pseudo-labels,
plus KL(teacher || student).

The learning rate warms up, stays, and falls linearly over the last `cooldown` steps. Before these it does not depend on
the number of steps, so a training can be given more steps and continue from its checkpoint.

A training that was stopped and continued gives the same weights, to the bit, as one that was not: a step depends only
on the weights, the seed and its number, and the checkpoint keeps what belongs to a row of the curve.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from distillation.batches import IGNORED, Batch
from distillation.charts import Panel, draw
from distillation.errors import DistillError
from distillation.files import NotWritten, write_text_whole, write_whole
from distillation.interrupts import deaf_children, interrupt_put_off
from distillation.model import Whisper, attend_fast, decoded, encode
from distillation.precision import computing
from distillation.settings import Settings, require_same


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate over the steps of a training, and when checkpoints are written.

    Attributes:
        steps: of the whole training.
        rate: the learning rate between `warmup` and `cooldown`.
        warmup: the first steps, of rising rate.
        cooldown: the last steps, of falling rate.
        every: steps between checkpoints.
        seed: of what is random in a step, such as dropout.
    """

    steps: int
    rate: float
    warmup: int = 400
    cooldown: int = 1500
    every: int = 500
    seed: int = 0

    @classmethod
    def of(
        cls, steps: int, rate: float, warmup: int, usual_cooldown: int, cooldown: int | None = None,
        every: int = 500, seed: int = 0,
    ) -> Schedule:  # fmt: skip
        """Make a schedule that fits into any number of steps.

        Args:
            steps: of the whole training.
            rate: the learning rate between warm-up and cooldown.
            warmup: steps to warm up, a tenth of `steps` at most.
            usual_cooldown: steps of cooldown, six tenths of `steps` at most.
            cooldown: steps of cooldown to use instead.
            every: steps between checkpoints.
            seed: of what is random in a step.
        """
        chosen = min(usual_cooldown, steps * 6 // 10) if cooldown is None else cooldown
        if chosen > steps:
            print(
                f"--cooldown {chosen} is more than --steps {steps}: the learning rate never reaches --rate {rate:g}",
                file=sys.stderr,
            )
        return cls(steps, rate, max(1, min(warmup, steps // 10)), chosen, every, seed)

    def rate_at(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warmup)
        falling = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.rate * rising * falling


class TrainingError(DistillError):
    """The training cannot continue; the message says what to do."""


class StudentObjective:
    """Cross-entropy on the teacher's tokens, plus KL from the teacher's distributions, over the places of the text.

    Both come with the batch, so the teacher is not needed. What student and teacher share stays as it is: the
    embeddings and the positions, and the encoder too unless it is to learn.

    Args:
        student: the model to train.
        ce_weight: of the cross-entropy.
        kl_weight: of the KL divergence.
        own_encoder: whether the encoder is to learn.
    """

    def __init__(self, student: Whisper, ce_weight: float, kl_weight: float, *, own_encoder: bool) -> None:
        self.student = student
        self.ce_weight, self.kl_weight = ce_weight, kl_weight
        self.module = student
        self.width = int(student.config.d_model)
        freeze_shared(student, own_encoder=own_encoder)

    def to(self, device: str) -> None:
        attend_fast(self.student, device)
        self.student.to(device)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        states = encode(self.student, batch.mel)
        hidden = decoded(self.student, batch.inputs, states)
        counted = batch.labels != IGNORED
        scores = self.student.proj_out(hidden[counted]).float()
        labels = batch.labels[counted]
        log_probs = scores.log_softmax(-1)
        cross_entropy = -log_probs.gather(1, labels[:, None]).sum() / max(1, len(labels))
        taught = batch.log_probs[counted].exp()
        known = taught.sum(-1) > 0  # places of the prompt have labels, and no distribution
        kl = (taught * (taught.clamp(min=1e-9).log() - log_probs.gather(1, batch.likeliest[counted]))).sum()
        kl = kl / known.sum().clamp(min=1)
        agreed = (scores.argmax(-1) == labels).float().sum() / max(1, len(labels))
        return {
            "loss": self.ce_weight * cross_entropy + self.kl_weight * kl,
            "cross_entropy": cross_entropy,
            "kl": kl,
            "accuracy": agreed,
        }


def freeze_shared(student: Whisper, *, own_encoder: bool) -> None:
    """Keep what a student shares with its teacher from learning."""
    student.requires_grad_(True)
    decoder = student.model.decoder
    for shared in (decoder.embed_tokens, decoder.embed_positions, student.model.encoder.embed_positions):
        shared.requires_grad_(False)
    if not own_encoder:
        student.model.encoder.requires_grad_(False)


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Progress:
    """How far a training is.

    Attributes:
        step: how many steps are done.
        since: steps since the last row of the curve.
        totals: the sums of their figures, by name.
        seconds: of training, over all its runs.
    """

    step: int = 0
    since: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, figures: Mapping[str, float]) -> None:
        self.step += 1
        self.since += 1
        for name, value in figures.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def row(self, schedule: Schedule) -> dict[str, Any]:
        """Return the next row of the curve, with means since the last one, and begin anew."""
        row = {"step": self.step, "rate": schedule.rate_at(self.step - 1), "seconds": round(self.seconds, 1)}
        row |= {name: round(total / self.since, 4) for name, total in self.totals.items()}
        self.since, self.totals = 0, {}
        return row


def fit(
    objective: StudentObjective,
    batches: Dataset[Batch],
    schedule: Schedule,
    folder: Path,
    validate: Callable[[], dict[str, float]] | None = None,
    device: str = "cpu",
    settings: Settings | None = None,
) -> None:
    """Train up to `schedule.steps`, from the newest checkpoint in `folder` if there is one.

    Each checkpoint adds a line to `folder/curve.jsonl`. An interrupt lets the step end, and is raised once there is a
    checkpoint of it.

    Args:
        objective: the model and its losses.
        batches: the batch of each step.
        schedule: of the learning rate and the checkpoints.
        folder: where checkpoints and the curve go.
        validate: asked for more figures at every checkpoint.
        device: where to train.
        settings: whatever else decides the result; they must be those of the checkpoint.

    Raises:
        SettingsError: the checkpoint was made under other settings.
        TrainingError: the training cannot continue, or does not converge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _leave_a_core(device)
    objective.to(device)
    module = objective.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    progress = _resume(folder / "checkpoint.pt", module, optimizer, settings or {})
    if progress.step > schedule.steps:
        raise TrainingError(f"{folder} has trained for {progress.step} steps: give --steps {progress.step} or more")
    curve = Curve(folder, progress.step)
    began = time.monotonic() - progress.seconds
    bar = tqdm(total=schedule.steps, initial=progress.step, desc=folder.name, unit="step")
    with bar, interrupt_put_off() as interrupt:
        for step, batch in _from(batches, progress.step, schedule.steps):
            module.train()
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            torch.manual_seed(_seed(schedule.seed, step))
            progress.count(_learn(objective, _on(device, batch), trained, optimizer, step, device))
            progress.seconds = time.monotonic() - began
            bar.update()
            due = progress.step % schedule.every == 0 or progress.step == schedule.steps
            if due:
                row = progress.row(schedule)
                module.eval()
                row |= validate() if validate else {}
                progress.seconds = time.monotonic() - began
                # Before the checkpoint: what the curve has beyond it is cut off when the training goes on.
                curve.add(row)
                bar.write(json.dumps(row))
            if due or interrupt.asked:
                save(folder / "checkpoint.pt", module, optimizer, progress, settings or {})
            if interrupt.asked:
                break


def _learn(
    objective: StudentObjective, batch: Batch, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: int,
    device: str,
) -> dict[str, float]:  # fmt: skip
    """One step; the losses as numbers. What is no number never reaches the weights."""
    with computing(objective.width, device):
        losses = objective(batch)
    losses["loss"].backward()
    steepness = nn.utils.clip_grad_norm_(trained, 1.0)
    figures = {name: float(value.detach()) for name, value in losses.items()}
    if not math.isfinite(figures["loss"] + float(steepness)):
        raise TrainingError(
            f"the loss of step {step + 1} or its gradient is not a finite number; the previous checkpoint is intact: "
            "start in another --out with a lower --rate"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return figures


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


class _Delivered(Dataset[Batch | DistillError]):
    """Batches, or why there is none: an error that a worker raises would arrive as its traceback."""

    def __init__(self, batches: Dataset[Batch]) -> None:
        self._batches: Dataset[Batch] = batches

    def __getitem__(self, step: int) -> Batch | DistillError:
        try:
            batch: Batch = self._batches[step]
        except DistillError as error:
            return error
        return batch


def _from(batches: Dataset[Batch], begin: int, end: int) -> Iterator[tuple[int, Batch]]:
    loader = DataLoader(_Delivered(batches), batch_size=None, sampler=range(begin, end), num_workers=1,
                        prefetch_factor=8, worker_init_fn=_quiet_worker)  # fmt: skip
    with deaf_children():
        arriving = iter(loader)
    for step, batch in zip(range(begin, end), arriving, strict=True):
        if isinstance(batch, DistillError):
            raise batch
        yield step, batch


def _leave_a_core(device: str) -> None:
    """For the loader: threads that share a core with it wait for one another at every product."""
    if torch.device(device).type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores - 1)))


def _quiet_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Its errors travel to the parent. What is left to print is that the parent went while a batch was on its way.
    sys.excepthook = lambda *_: None


def _on(device: str, batch: Batch) -> Batch:
    return type(batch)(*(getattr(batch, name).to(device) for name in batch.__slots__))


# --- what is written -------------------------------------------------------------------------------------------------


class Curve:
    """The file `curve.jsonl`, a row a line, with a picture beside it.

    Rows beyond `step` come from a checkpoint that was never written; they and a torn line are cut off.

    Args:
        folder: where the file lies.
        step: the step of the newest checkpoint.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._path = folder, folder / "curve.jsonl"
        lines = self._path.read_text().splitlines(keepends=True) if self._path.is_file() else []
        self._rows = [row for row in map(_row, lines) if row and row["step"] <= step]
        if len(self._rows) < len(lines):
            write_text_whole("".join(json.dumps(row) + "\n" for row in self._rows), self._path)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and draw the picture anew.

        Raises:
            OSError: the disk is full.
        """
        self._rows.append(row)
        with self._path.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        self._draw()

    def _draw(self) -> None:
        """The losses, and the word errors; not every row has every figure."""
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        losses = [name for name in ("cross_entropy", "kl") if name in names]
        errors = [name for name in names if name.startswith("wer_")]
        panels: dict[str, Panel] = {
            title: ("step", {name: self._points(name) for name in shown}, None)
            for title, shown in (("losses", losses), ("word error rate", errors))
            if shown
        }
        draw(self._folder / "curve.png", panels, "")

    def _points(self, name: str) -> tuple[list[float], list[float]]:
        rows = [row for row in self._rows if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


def _row(line: str) -> dict[str, Any] | None:
    """None for a torn line."""
    try:
        row = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training.

    Attributes:
        weights: of the objective's module.
        step: after how many steps.
    """

    weights: Mapping[str, Tensor]
    step: int


def trained(folder: Path) -> Trained:
    """Read the newest checkpoint of a training.

    Raises:
        TrainingError: there is none.
    """
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise TrainingError(f"no checkpoint in {folder}: `distill train --out {folder}` writes the first")
    state = _read(path)
    return Trained(state["module"], int(state["step"]))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights into a module.

    Args:
        module: where they go.
        weights: by name.
        what: whose they are, for the message.

    Raises:
        TrainingError: they are of a model of another shape.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(
            f"{what} is of a model of another shape: give the model that it was begun with, or choose another --out"
        ) from error


def save(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, settings: Settings
) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        TrainingError: it cannot be written; the older one is as it was.
    """
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "settings": dict(settings)}
    try:
        write_whole(state | asdict(progress), path)
    except NotWritten as error:
        raise TrainingError(
            f"the checkpoint of step {progress.step} cannot be written to {path.parent} ({error.reason}): "
            "make room; the same command continues from the previous checkpoint"
        ) from error


def _resume(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings) -> Progress:
    if not path.is_file():
        return Progress()
    state = _read(path)
    require_same(path.parent, state["settings"], settings)
    load_weights(module, state["module"], str(path))
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise TrainingError(f"{path} is of a model of another shape: choose another --out") from error
    return Progress(int(state["step"]), int(state["since"]), dict(state["totals"]), float(state["seconds"]))


_KEPT = {"module", "optimizer", "settings", "step", "since", "totals", "seconds"}


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"{path} is not a complete checkpoint ({reason}): remove it") from error
    if not isinstance(state, dict) or not state.keys() >= _KEPT:
        raise TrainingError(f"{path} is not a checkpoint of this version: remove it, or choose another --out")
    return state
