"""A training that goes on is the one that was not stopped; where it cannot be, it says why."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from classroom import batches, checkpoint, curve
from torch import Tensor
from torch.utils.data import Dataset

from distillation.batches import Batch, Batches
from distillation.errors import DistillError
from distillation.model import load_model, make_student
from distillation.settings import SettingsError
from distillation.train import Curve, Schedule, StudentObjective, TrainingError, fit, trained
from streaming.whisper.checkpoint import Checkpoint

__all__ = ["batches", "checkpoint"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")


class Objective(StudentObjective):
    """Of a student whose dropout is random in every step. interrupted: as from the terminal, in the second step."""

    def __init__(self, teacher: Checkpoint, layers: int = 2, interrupted: bool = False) -> None:
        student = make_student(load_model(teacher), layers)
        for part in (student.model.encoder, student.model.decoder):
            for module in part.modules():
                if hasattr(module, "dropout"):
                    module.dropout = 0.1
        super().__init__(student, 0.8, 1.0, own_encoder=True)
        self._left = 2 if interrupted else 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(batch)


def schedule(steps: int) -> Schedule:
    return Schedule(steps, 1e-3, warmup=1, cooldown=0, every=3)


def test_an_interrupted_training_with_dropout_is_the_one_that_was_not(
    checkpoint: Checkpoint, batches: Batches, tmp_path: Path
) -> None:
    through = Objective(checkpoint)
    fit(through, batches, schedule(4), tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        fit(Objective(checkpoint, interrupted=True), batches, schedule(4), tmp_path / "stopped")
    assert trained(tmp_path / "stopped").step == 2
    assert not (tmp_path / "stopped" / "curve.jsonl").exists()
    onward = Objective(checkpoint)
    fit(onward, batches, schedule(4), tmp_path / "stopped")
    for name, weights in through.module.state_dict().items():
        assert torch.equal(weights, onward.module.state_dict()[name]), name
    # The curve too: its first row has what was learnt before the interrupt.
    for row, same in zip(curve(tmp_path / "through"), curve(tmp_path / "stopped"), strict=True):
        assert {**row, "seconds": 0} == {**same, "seconds": 0}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_dropout_is_random_and_follows_the_seed(checkpoint: Checkpoint, batches: Batches, tmp_path: Path) -> None:
    """Else the test above would say little."""
    losses = []
    for number, seed in enumerate((0, 0, 1)):
        fit(Objective(checkpoint), batches, Schedule(1, 1e-3, every=1, seed=seed), tmp_path / str(number))
        losses.append(curve(tmp_path / str(number))[0]["cross_entropy"])
    assert losses[0] == losses[1] != losses[2]


def test_the_curve_goes_on_when_the_end_is_put_off(checkpoint: Checkpoint, batches: Batches, tmp_path: Path) -> None:
    def figures(folder: Path, *ends: int) -> list[dict[str, Any]]:
        for end in ends:
            fit(Objective(checkpoint), batches, schedule(end), folder)
        return curve(folder)

    extended = figures(tmp_path / "extended", 4, 6)
    assert [row["step"] for row in extended] == [3, 4, 6]
    seconds = [row["seconds"] for row in extended]
    assert seconds == sorted(seconds)
    third, sixth = figures(tmp_path / "through", 6)
    assert extended[0]["kl"] == third["kl"]
    # Rows of one step and of two are the mean of three.
    assert (extended[1]["kl"] + 2 * extended[2]["kl"]) / 3 == pytest.approx(sixth["kl"], abs=2e-4)


def test_a_torn_curve_and_rows_beyond_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 3, "kl": 1.0}\n{"step": 6, "kl": 0.5}\n{"step": 9, "k')
    Curve(tmp_path, 3).add({"step": 6, "kl": 0.4, "wer_dev": 1.0})
    assert [row["kl"] for row in curve(tmp_path)] == [1.0, 0.4]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_another_training_in_the_same_folder_is_refused(
    checkpoint: Checkpoint, batches: Batches, tmp_path: Path
) -> None:
    fit(Objective(checkpoint), batches, schedule(2), tmp_path, settings={"--rate": 1e-3})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(SettingsError, match=r"--rate 0\.001, not 0\.002"):
        fit(Objective(checkpoint), batches, schedule(4), tmp_path, settings={"--rate": 2e-3})
    with pytest.raises(TrainingError, match="has trained for 2 steps: give --steps 2 or more"):
        fit(Objective(checkpoint), batches, schedule(1), tmp_path, settings={"--rate": 1e-3})
    with pytest.raises(TrainingError, match="of another shape"):
        fit(Objective(checkpoint, layers=3), batches, schedule(4), tmp_path, settings={"--rate": 1e-3})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Exploding(Objective):
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().__call__(batch)
        return {**losses, "loss": losses["loss"] * float("inf")}


def test_a_loss_that_is_no_number_stops_the_training(checkpoint: Checkpoint, batches: Batches, tmp_path: Path) -> None:
    fit(Objective(checkpoint), batches, schedule(2), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"loss of step 3 .* lower --rate"):
        fit(Exploding(checkpoint), batches, schedule(4), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Broken(Dataset[Batch]):
    def __getitem__(self, step: int) -> Batch:
        raise DistillError(f"batch {step} is missing")


def test_a_batch_that_cannot_be_made_says_so_in_its_own_words(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DistillError) as caught:
        fit(Objective(checkpoint), Broken(), schedule(2), tmp_path)
    assert str(caught.value) == "batch 0 is missing"


@pytest.mark.parametrize(
    ("steps", "asked", "warmup", "cooldown"),
    [(10000, None, 400, 3500), (1000, None, 100, 600), (1, None, 1, 0), (1000, 200, 100, 200), (5000, 0, 400, 0)],
)
def test_a_short_training_reaches_its_rate(steps: int, asked: int | None, warmup: int, cooldown: int) -> None:
    chosen = Schedule.of(steps, 1.0, 400, 3500, asked)
    assert (chosen.warmup, chosen.cooldown) == (warmup, cooldown)
    assert max(map(chosen.rate_at, range(steps))) == 1.0


def test_a_cooldown_of_more_than_all_steps_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Schedule.of(100, 1e-3, 400, 3500, cooldown=200)
    assert "--cooldown 200 is more than --steps 100" in capsys.readouterr().err
