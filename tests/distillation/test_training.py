"""A student is a student: what it begins as, what of it learns, and what the losses say."""

from __future__ import annotations

import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from classroom import MIXTURE, batches, checkpoint, curve

from distillation.augment import features
from distillation.batches import IGNORED, Batch, Batches
from distillation.model import (
    ModelError,
    Whisper,
    continue_student,
    encode,
    greedy,
    layout_of,
    load_model,
    logits,
    make_student,
    shared_weights,
    student_layers,
)
from distillation.noise import Noises
from distillation.train import Progress, Schedule, StudentObjective, TrainingError, fit, save, trained
from streaming.whisper.checkpoint import Checkpoint

__all__ = ["batches", "checkpoint"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def teacher(checkpoint: Checkpoint) -> Whisper:
    return load_model(checkpoint).eval()


# --- what a student begins as ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "kept_layers"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_a_student_keeps_evenly_spaced_layers(layers: int, kept_layers: list[int]) -> None:
    assert student_layers(4, layers) == kept_layers


def test_a_student_cannot_have_more_layers() -> None:
    with pytest.raises(ModelError, match=r"1\.\.4"):
        student_layers(4, 5)


def test_a_student_of_all_layers_begins_as_its_teacher(teacher: Whisper, checkpoint: Checkpoint) -> None:
    student = make_student(teacher, 3).eval()
    sound, tokens = torch.randn(1, 80, 100), torch.tensor([layout_of(checkpoint, None).prompt])
    states = encode(teacher, sound)
    torch.testing.assert_close(encode(student, sound), states)
    torch.testing.assert_close(logits(student, tokens, states), logits(teacher, tokens, states))


def test_a_student_goes_on_with_all_that_it_learnt(teacher: Whisper) -> None:
    earlier, student = make_student(teacher, 2), make_student(teacher, 2)
    with torch.no_grad():
        for weight in earlier.parameters():
            weight.add_(0.01)
    continue_student(student, earlier)
    assert all(torch.equal(weight, earlier.state_dict()[name]) for name, weight in student.state_dict().items())
    with pytest.raises(ModelError, match="decoder_layers 2, this one 3"):
        continue_student(make_student(teacher, 3), earlier)


def test_the_encoder_is_transformers_own(teacher: Whisper) -> None:
    mel = torch.randn(2, 80, 3000)
    expected = teacher.model.encoder(mel).last_hidden_state
    torch.testing.assert_close(encode(teacher, mel), expected, atol=1e-4, rtol=1e-4)


def test_greedy_says_what_transformers_thinks_likeliest(teacher: Whisper, checkpoint: Checkpoint) -> None:
    mel, layout = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(2)), layout_of(checkpoint, None)
    with torch.no_grad():
        rows = greedy(teacher, encode(teacher, mel), layout.prompt, layout.end, limit=6)
        assert len({*map(tuple, rows)}) == 2
        for number, row in enumerate(rows):
            said = torch.tensor([[*layout.prompt, *row]])
            scores = teacher(input_features=mel[number : number + 1], decoder_input_ids=said).logits[0]
            likeliest = scores[len(layout.prompt) - 1 :].argmax(-1).tolist()
            assert likeliest[: len(row)] == row
            assert len(row) == 6 or likeliest[len(row)] == layout.end


# --- what of it learns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_encoder", [True, False])
def test_what_learns_and_what_stays(own_encoder: bool, teacher: Whisper, batches: Batches, tmp_path: Path) -> None:
    student = make_student(teacher, 2)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    objective = StudentObjective(student, 0.8, 1.0, own_encoder=own_encoder)
    fit(objective, batches, Schedule(3, 1e-3, warmup=1, cooldown=0, every=3), tmp_path)
    after = student.state_dict()
    stayed = {name.removeprefix("model.") for name in before if torch.equal(before[name], after[name])}
    assert stayed == {*shared_weights(student, own_encoder=own_encoder), "proj_out.weight"}  # tied to the embeddings
    assert ("encoder.conv1.weight" in stayed) is not own_encoder
    assert {"decoder.embed_tokens.weight", "decoder.embed_positions.weight", "encoder.embed_positions.weight"} <= stayed


def test_a_student_learns(teacher: Whisper, batches: Batches, tmp_path: Path) -> None:
    still = Batches(batches._source, Noises(), batches._layout, replace(MIXTURE, strength=0.0, empty_share=0.0))
    objective = StudentObjective(make_student(teacher, 1), 0.8, 1.0, own_encoder=True)
    fit(objective, still, Schedule(40, 3e-3, warmup=5, cooldown=0, every=10), tmp_path)
    rows = curve(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["cross_entropy"] < 0.8 * rows[0]["cross_entropy"]
    assert rows[-1]["kl"] < rows[0]["kl"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# --- losses ----------------------------------------------------------------------------------------------------------


def clean(batches: Batches) -> Batch:
    """The first clip alone, as its teacher heard it."""
    lesson = batches._source.all[0]
    window = next(seconds for seconds in batches._layout.contexts if seconds >= lesson.seconds)
    return batches._taught(features([batches._source.waveform(lesson)], window, 80), [(0,)])


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(teacher: Whisper, batches: Batches) -> None:
    batch = clean(batches)
    same = StudentObjective(make_student(teacher, 3).eval(), 0.0, 1.0, own_encoder=True)(batch)
    assert abs(float(same["kl"].detach())) < 2e-3  # kept in float16
    assert torch.equal(same["loss"], same["kl"])
    other = StudentObjective(make_student(teacher, 1).eval(), 0.0, 1.0, own_encoder=True)(batch)
    assert float(other["kl"].detach()) > 0.05


def test_the_divergence_is_that_of_the_tokens_that_were_kept(teacher: Whisper, batches: Batches) -> None:
    batch, student = clean(batches), make_student(teacher, 1).eval()
    losses = StudentObjective(student, 0.5, 2.0, own_encoder=True)(batch)
    with torch.no_grad():
        said = logits(student, batch.inputs, encode(student, batch.mel))[0].log_softmax(-1)
    places = [place for place in range(batch.labels.shape[1]) if batch.log_probs[0, place, 0] > -torch.inf]
    kl = sum(
        float((scores.exp() * (scores - said[place][batch.likeliest[0, place]])).sum())
        for place in places
        for scores in [batch.log_probs[0, place]]
    )
    counted = [place for place in range(batch.labels.shape[1]) if batch.labels[0, place] != IGNORED]
    cross_entropy = -sum(float(said[place, batch.labels[0, place]]) for place in counted)
    assert len(counted) == len(places) + 1  # the place of "no speech" has a label, and no distribution
    assert float(losses["kl"].detach()) == pytest.approx(kl / len(places), rel=1e-3)
    assert float(losses["cross_entropy"].detach()) == pytest.approx(cross_entropy / len(counted), rel=1e-3)
    both = 0.5 * losses["cross_entropy"] + 2.0 * losses["kl"]
    assert float(losses["loss"].detach()) == pytest.approx(float(both.detach()))


def test_a_batch_of_which_nothing_counts_teaches_nothing(teacher: Whisper, batches: Batches) -> None:
    batch = batches[0]
    objective = StudentObjective(make_student(teacher, 1), 0.8, 1.0, own_encoder=True)
    nothing = objective(replace(batch, labels=torch.full_like(batch.labels, IGNORED)))
    assert all(float(value.detach()) == 0 for value in nothing.values())
    assert float(objective(batch)["loss"].detach()) > 0


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_leaves_the_older_checkpoint(teacher: Whisper, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(teacher.parameters())
    save(tmp_path / "checkpoint.pt", teacher, optimizer, Progress(step=1), {})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    # No file may grow beyond 100 kB from here on: the kernel's own refusal, as of a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"step 2 cannot be written .*: make room"):
            save(tmp_path / "checkpoint.pt", teacher, optimizer, Progress(step=2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is not a complete checkpoint"):
        trained(tmp_path)
    with pytest.raises(TrainingError, match="distill train"):
        trained(tmp_path / "nowhere")
