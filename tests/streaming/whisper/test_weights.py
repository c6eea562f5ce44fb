"""Weights in 8 bits and weights that are shared: read as they were written, and no teacher taken for another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streaming.whisper.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.locate import CheckpointError as LocateError
from streaming.whisper.quantized import expand, quantize
from streaming.whisper.weights import (
    SCALE,
    count_parameters,
    own_names,
    read_weights,
    same_encoder,
    weights_digest,
    write_weights,
)

SHAPE = replace(checkpoints.SMALL, d_model=128, decoder_layers=3)
"""Wide enough for some of its weights to be rounded."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = checkpoints.build_checkpoint(tmp_path_factory.mktemp("own") / "whole", SHAPE, contexts=[2, 5])
    return open_checkpoint(str(directory), "teacher")


def lend(teacher: Checkpoint, folder: Path, own: dict[str, Tensor], layers: int = 3, name: str = "") -> Checkpoint:
    """A student in a folder, whose file has `own` alone."""
    folder.mkdir()
    write_weights(own, folder / "model.safetensors")
    config = json.loads((teacher.directory / "config.json").read_text()) | {"decoder_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    shares = {"teacher": name or str(teacher.directory), "digest": weights_digest(teacher.directory)}
    (folder / "whisperd.json").write_text(json.dumps({"contexts": [1, 2], "shares": shares}))
    return open_checkpoint(str(folder), "student")


def some(weights: dict[str, Tensor], *begin: str) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if name.startswith(begin)}


def test_what_is_written_in_8_bits_is_read_rounded(teacher: Checkpoint, tmp_path: Path) -> None:
    whole = read_weights(teacher, torch.float32)
    shutil.copytree(teacher.directory, tmp_path / "small")
    write_weights(whole, tmp_path / "small" / "model.safetensors")
    small = open_checkpoint(str(tmp_path / "small"), "teacher")
    found = read_weights(small, torch.float32)
    assert found.keys() == whole.keys()
    stored = load_file(tmp_path / "small" / "model.safetensors")
    rounded = {name.removeprefix("model.") for name, weight in stored.items() if weight.dtype == torch.int8}
    assert {"decoder.embed_tokens.weight", "encoder.layers.0.fc1.weight"} <= rounded
    assert not any("embed_positions" in name or "norm" in name for name in rounded)
    for name, weight in whole.items():
        expected = expand(*quantize(weight)) if name in rounded else weight.half().float()
        assert torch.equal(found[name], expected), name
    assert count_parameters(small) == count_parameters(teacher)
    # Written again, nothing is rounded further.
    write_weights(found, tmp_path / "again.safetensors")
    for name, weight in load_file(tmp_path / "again.safetensors").items():
        torch.testing.assert_close(weight, stored[name], rtol=1e-6, atol=0, msg=name)
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert size < 0.5 * (teacher.directory / "model.safetensors").stat().st_size


@pytest.mark.parametrize("spoil", ["missing", "of another shape"])
def test_8_bits_without_their_scales_are_refused(spoil: str, teacher: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher.directory, tmp_path / "broken"))
    write_weights(read_weights(teacher, torch.float32), folder / "model.safetensors")
    stored = load_file(folder / "model.safetensors")
    scale = stored.pop(f"model.decoder.embed_tokens.weight{SCALE}")
    if spoil != "missing":
        stored[f"model.decoder.embed_tokens.weight{SCALE}"] = scale[:-1].clone()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="in 8 bits without a scale for each of its rows: export it again"):
        read_weights(open_checkpoint(str(folder), "student"), torch.float32)


def test_a_student_has_what_is_its_own_and_the_rest_of_its_teacher(teacher: Checkpoint, tmp_path: Path) -> None:
    theirs = read_weights(teacher, torch.float32)
    own = {name: weight + 1 for name, weight in some(theirs, "decoder.layers.0.", "decoder.layer_norm.").items()}
    student = lend(teacher, tmp_path / "student", own, layers=1)
    assert own_names(student.directory) == own.keys()
    assert (student.grammar, student.tokenizer_file) == (teacher.grammar, teacher.tokenizer_file)
    found = read_weights(student, torch.float32)
    # Of layers all are its own or none: those of the teacher's that it has no place for are not lent.
    assert found.keys() == {name for name in theirs if not name.startswith(("decoder.layers.1.", "decoder.layers.2."))}
    for name, weight in found.items():
        torch.testing.assert_close(weight, own.get(name, theirs[name]), rtol=0.01, atol=0.02, msg=name)
        assert name in own or torch.equal(weight, theirs[name])
    assert count_parameters(student) == sum(weight.numel() for weight in found.values())
    assert count_parameters(student, own=True) == sum(weight.numel() for weight in own.values())
    assert same_encoder(student, teacher)
    assert same_encoder(teacher, student)


def test_an_encoder_of_its_own_is_another(teacher: Checkpoint, tmp_path: Path) -> None:
    theirs = read_weights(teacher, torch.float32)
    own = {name: weight + 1 for name, weight in some(theirs, "encoder.layers.", "encoder.conv").items()}
    student = lend(teacher, tmp_path / "student", own)
    assert not same_encoder(student, teacher)
    found = read_weights(student, torch.float32)
    assert found.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) == (name not in own) for name, weight in found.items())


@pytest.mark.parametrize("own_encoder", [True, False])
def test_what_is_shared_lies_in_memory_once(own_encoder: bool, teacher: Checkpoint, tmp_path: Path) -> None:
    theirs = read_weights(teacher, torch.float32)
    own = some(theirs, "decoder.layers.0.")
    if own_encoder:
        own |= {name: weight * 1.5 for name, weight in some(theirs, "encoder.layers.").items()}
    student = lend(teacher, tmp_path / "student", own, layers=1)
    engine = WhisperEngine.load(str(student.directory), str(teacher.directory), "cpu", dtype="float32")
    first, second = engine.models
    assert first.decoder.embed_tokens is second.decoder.embed_tokens
    assert first.decoder.output_weight is second.decoder.output_weight
    assert (first.encoder is second.encoder) is not own_encoder


def test_another_teacher_in_its_place_is_refused(teacher: Checkpoint, tmp_path: Path) -> None:
    place = Path(shutil.copytree(teacher.directory, tmp_path / "lender"))
    lender = open_checkpoint(str(place), "teacher")
    student = lend(lender, tmp_path / "student", some(read_weights(lender, torch.float32), "decoder.layers."))
    read_weights(student, torch.float32)
    checkpoints.build_checkpoint(place, SHAPE, seed=5, contexts=[2, 5])
    with pytest.raises(
        CheckpointError, match=r"student shares the weights of another teacher than the one in .*lender"
    ):
        read_weights(student, torch.float32)


def test_a_teacher_that_is_not_there_is_named(teacher: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(LocateError, match=r"student shares the weights of its teacher, but there is no directory"):
        lend(teacher, tmp_path / "student", {}, name=str(tmp_path / "gone"))


def test_a_pair_in_one_folder_finds_each_other_wherever_it_lies(teacher: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(teacher.directory, tmp_path / "teacher")
    own = some(read_weights(teacher, torch.float32), "decoder.layers.")
    student = lend(teacher, tmp_path / "student", own, name="nobody/has-it")
    assert student.lender == tmp_path / "teacher"
    assert read_weights(student, torch.float32).keys() == read_weights(teacher, torch.float32).keys()


@pytest.mark.parametrize("shares", ["a teacher", {"teacher": "x"}, {"teacher": 5, "digest": "x"}])
def test_shares_that_say_nothing_are_refused(shares: object, teacher: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher.directory, tmp_path / "broken"))
    (folder / "whisperd.json").write_text(json.dumps({"shares": shares}))
    with pytest.raises(CheckpointError, match=r'shares must be \{"teacher": NAME, "digest": SHA-256\}'):
        open_checkpoint(str(folder), "student")


def test_weights_are_known_by_what_is_in_their_files(teacher: Checkpoint, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(teacher.directory, tmp_path / "copy"))
    assert weights_digest(copy) == weights_digest(teacher.directory)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert weights_digest(copy) != weights_digest(teacher.directory)
