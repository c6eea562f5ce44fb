"""A training that goes on is the one that was not stopped; where it cannot be, it says why."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_corpus
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillation.batches import IGNORED, Batch, Batches, Mixture
from distillation.errors import DistillError
from distillation.model import encoding, make_student, make_teacher, own_layout
from distillation.noise import Noises
from distillation.recipe import REFINING, WEIGHTS, from_scratch, refining, student_mixture
from distillation.settings import SettingsError
from distillation.states import Heard, States, StatesError
from distillation.train import Curve, Schedule, StudentObjective, TeacherObjective, TrainingError, fit, trained

MIXTURE = Mixture({}, seconds=12, clean_until=0, full_from=1, exact_from=3)


pytestmark = pytest.mark.usefixtures("one_thread")


def objective(width: int = 64) -> TeacherObjective:
    torch.manual_seed(0)
    return TeacherObjective(make_teacher(small_corpus.tokenizer(), width, 1, 1, dropout=0.1), ctc_weight=1.0)


def batches() -> Batches:
    corpus = small_corpus.corpus()
    return Batches(corpus, corpus.split("train"), Noises(), own_layout(small_corpus.tokenizer()), MIXTURE)


def schedule(steps: int) -> Schedule:
    return Schedule(steps, 1e-3, warmup=1, cooldown=0, every=3)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


class Interrupted(TeacherObjective):
    """As from the terminal, in the middle of the second step."""

    calls = 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 2:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(batch)


def test_an_interrupted_training_with_dropout_is_the_one_that_was_not(tmp_path: Path) -> None:
    through, one = objective(), objective()
    fit(through, batches(), schedule(4), tmp_path / "through")
    stopped = Interrupted(one.model, ctc_weight=1.0)
    stopped.head.load_state_dict(objective().head.state_dict())
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, batches(), schedule(4), tmp_path / "stopped")
    assert trained(tmp_path / "stopped").step == 2
    assert not (tmp_path / "stopped" / "curve.jsonl").exists()
    onward = objective()
    fit(onward, batches(), schedule(4), tmp_path / "stopped")
    for name, weights in through.module.state_dict().items():
        assert torch.equal(weights, onward.module.state_dict()[name]), name
    # The curve too: its first row has what was learnt before the interrupt.
    for row, same in zip(rows(tmp_path / "through"), rows(tmp_path / "stopped"), strict=True):
        assert {**row, "seconds": 0} == {**same, "seconds": 0}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_curve_goes_on_when_the_end_is_put_off(tmp_path: Path) -> None:
    def figures(folder: Path, *ends: int) -> list[dict[str, Any]]:
        for end in ends:
            fit(objective(), batches(), schedule(end), folder)
        return rows(folder)

    extended = figures(tmp_path / "extended", 4, 6)
    assert [row["step"] for row in extended] == [3, 4, 6]
    seconds = [row["seconds"] for row in extended]
    assert seconds == sorted(seconds)
    third, sixth = figures(tmp_path / "through", 6)
    assert extended[0]["ctc"] == third["ctc"]
    # Rows of one step and of two are the mean of three.
    assert (extended[1]["ctc"] + 2 * extended[2]["ctc"]) / 3 == pytest.approx(sixth["ctc"], abs=2e-4)


def test_a_torn_curve_and_rows_beyond_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 3, "ctc": 1.0}\n{"step": 6, "ctc": 0.5}\n{"step": 9, "ct')
    Curve(tmp_path, 3).add({"step": 6, "ctc": 0.4, "wer_dev": 1.0})
    assert [row["ctc"] for row in rows(tmp_path)] == [1.0, 0.4]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_another_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    fit(objective(), batches(), schedule(2), tmp_path, settings={"--rate": 1e-3})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(SettingsError, match=r"--rate 0\.001, not 0\.002"):
        fit(objective(), batches(), schedule(4), tmp_path, settings={"--rate": 2e-3})
    with pytest.raises(TrainingError, match="has learnt for 2 steps: give --steps 2 or more"):
        fit(objective(), batches(), schedule(1), tmp_path, settings={"--rate": 1e-3})
    with pytest.raises(TrainingError, match="of another shape"):
        fit(objective(width=128), batches(), schedule(4), tmp_path, settings={"--rate": 1e-3})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Exploding(TeacherObjective):
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().__call__(batch)
        return {**losses, "loss": losses["loss"] * float("inf")}


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    fit(objective(), batches(), schedule(2), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"loss of step 3 .* lower --rate"):
        fit(Exploding(objective().model, 1.0), batches(), schedule(4), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


class Broken(Dataset[Batch]):
    def __getitem__(self, step: int) -> Batch:
        raise DistillError(f"batch {step} is missing")


def test_a_batch_that_cannot_be_made_says_so_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(DistillError) as caught:
        fit(objective(), Broken(), schedule(2), tmp_path)
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


def test_the_mixtures_follow_the_seed_of_the_training() -> None:
    for stages in (from_scratch, refining):
        numbers = [mixture.seed for seed in range(3) for _, mixture in stages(100, seed)]
        assert len(set(numbers)) == len(numbers)
    assert [mixture.seed for _, mixture in [*from_scratch(100), *refining(100)]] == [1, 3, 12]


def test_sets_weigh_alike_unless_home_ens_weights_are_asked_for() -> None:
    assert student_mixture(60, 26, 0.4, 0, WEIGHTS["none"]).repeats == {}
    assert student_mixture(60, 26, 0.4, 0, WEIGHTS["home-en"]).repeats == REFINING


# --- a student's store -----------------------------------------------------------------------------------------------


@pytest.fixture
def heard(tmp_path: Path) -> Callable[[], States]:
    model = objective().model

    def store() -> States:
        states = States(tmp_path / "states", batches(), 1, seed=1, settings={"--teacher": "tiny"})
        states.prepare(encoding(model, "cpu"))
        return states

    return store


def test_a_torn_batch_of_the_store_is_named(heard: Callable[[], States], tmp_path: Path) -> None:
    states = heard()
    for path in (tmp_path / "states").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StatesError, match=r"\d+\.pt cannot be read: remove it"):
        states[0]
    student = make_student(objective().model, 1)
    with pytest.raises(StatesError, match=r"\d+\.pt cannot be read: remove it"):
        fit(StudentObjective(student, objective().model, 0.8, 1.0, 2.0), states, schedule(2), tmp_path / "trained")


def test_a_store_that_does_not_say_what_it_is_is_refused(heard: Callable[[], States], tmp_path: Path) -> None:
    heard()
    (tmp_path / "states" / "about.json").write_text('{"settings"')
    with pytest.raises(StatesError, match=r"does not say .*: remove"):
        heard()


def test_a_batch_of_which_the_filter_leaves_nothing_teaches_nothing(heard: Callable[[], States]) -> None:
    states, teacher = heard(), objective().model
    student = StudentObjective(make_student(teacher, 1), teacher, 0.8, 1.0, 2.0)
    batch: Heard = states[0]
    nothing = student(replace(batch, labels=torch.full_like(batch.labels, IGNORED)))
    assert all(float(value.detach()) == 0 for value in nothing.values())
    assert np.isfinite(float(student(batch)["loss"].detach()))
