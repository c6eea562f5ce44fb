"""What a GPU computes in, as far as a machine without one can tell: with stand-ins for what only a GPU has."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Pair
from safetensors.torch import load_file, save_file

from streaming.whisper.checkpoint import Checkpoint, open_checkpoint
from streaming.whisper.engine import WhisperEngine, _dtype
from streaming.whisper.hearing import pinned_attention, prepare_for
from streaming.whisper.model import Decoder
from streaming.whisper.precision import WideLogits, usual_numbers, widen_logits
from streaming.whisper.weights import stored_numbers, weights_digest

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def decoder(pair: Pair, dtype: str) -> Decoder:
    return WhisperEngine.load(str(pair.student), None, "cpu", dtype=dtype, graphs="off").models[0].decoder


@pytest.mark.parametrize(
    ("stored", "on_a_gpu"),
    [
        ({"F16"}, torch.float16),
        ({"F16", "I8"}, torch.float16),  # as `write_weights` writes them
        ({"I8"}, torch.bfloat16),  # of what they were rounded, nothing tells
        ({"BF16"}, torch.bfloat16),
        ({"F32"}, torch.bfloat16),
        ({"F16", "F32"}, torch.bfloat16),  # one of a pair is enough
        ({"F16", "I8", "BF16"}, torch.bfloat16),
        (set(), torch.bfloat16),
    ],
)
def test_a_gpu_takes_float16_where_all_weights_are_of_it(stored: set[str], on_a_gpu: torch.dtype) -> None:
    assert usual_numbers("cuda", stored) is on_a_gpu
    assert usual_numbers("cpu", stored) is torch.float32


def stored_in(dtype: torch.dtype, pair: Pair, folder: Path) -> Checkpoint:
    """The student of a pair, its weights stored so."""
    shutil.copytree(pair.student, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, folder / "model.safetensors")
    return open_checkpoint(str(folder), "student")


def test_the_numbers_follow_from_the_files_unless_they_are_named(english: Pair, tmp_path: Path) -> None:
    half, brain, full = (
        stored_in(dtype, english, tmp_path / str(dtype)) for dtype in (torch.float16, torch.bfloat16, torch.float32)
    )
    shipped = [open_checkpoint("tiny-en", "student"), open_checkpoint("tiny-en", "teacher")]
    assert stored_numbers(shipped[0]) == {"F16", "I8"}
    expected = [
        ([half], torch.float16),
        ([brain], torch.bfloat16),
        ([full], torch.bfloat16),
        ([half, half], torch.float16),
        ([half, full], torch.bfloat16),
        ([full, half], torch.bfloat16),
        (shipped, torch.float16),
    ]
    for checkpoints, numbers in expected:
        assert _dtype("auto", CUDA, checkpoints) is numbers
        assert _dtype("auto", CPU, checkpoints) is torch.float32
        assert _dtype("bfloat16", CUDA, checkpoints) is torch.bfloat16


def test_a_student_that_borrows_computes_in_what_both_files_have(english: Pair, tmp_path: Path) -> None:
    """Its own weights are in float16; those that its teacher lends are not."""
    lender = stored_in(torch.float32, english, tmp_path / "lender")
    weights = load_file(lender.directory / "model.safetensors")
    own = {name: weight.half() for name, weight in weights.items() if name.startswith("model.decoder.layers.")}
    folder = tmp_path / "student"
    folder.mkdir()
    save_file(own, folder / "model.safetensors")
    shutil.copy(lender.directory / "config.json", folder)
    shares = {"teacher": str(lender.directory), "digest": weights_digest(lender.directory)}
    (folder / "whisperd.json").write_text(json.dumps({"contexts": [1, 2], "shares": shares}))
    student = open_checkpoint(str(folder), "student")
    assert stored_numbers(student) == {"F16", "F32"}
    assert _dtype("auto", CUDA, [student]) is torch.bfloat16


def product(off: float = 0.0) -> Any:
    """A GPU's product of half precision into float32."""

    def mm(left: torch.Tensor, right: torch.Tensor, *, out_dtype: torch.dtype) -> torch.Tensor:
        return left.to(out_dtype) @ right.to(out_dtype) + off

    return mm


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_are_not_rounded(english: Pair, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    made = decoder(english, dtype)
    states = torch.randn(2, 3, made.output_weight.shape[1]).to(made.output_weight.dtype)
    monkeypatch.setattr(torch, "mm", product())
    assert widen_logits(made)
    assert isinstance(made.vocabulary, WideLogits)
    found = made.vocabulary(states)
    assert found.dtype == torch.float32
    assert torch.equal(found, states.float() @ made.output_weight.float().t())
    assert widen_logits(made)  # again: it does already


def test_where_there_is_no_such_product_logits_are_as_they_were(english: Pair) -> None:
    made = decoder(english, "bfloat16")
    assert not widen_logits(made)  # a processor has none
    assert made.vocabulary is None
    assert not widen_logits(decoder(english, "float32"))


@pytest.mark.parametrize("off", [1e6, torch.nan])
def test_a_product_that_errs_is_not_used(english: Pair, monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    made = decoder(english, "bfloat16")
    monkeypatch.setattr(torch, "mm", product(off))
    assert not widen_logits(made)
    assert made.vocabulary is None


def allowed() -> tuple[bool, bool, bool]:
    """Whether kernels of cuDNN, flash and memory-efficient ones may be taken."""
    backends: Any = torch.backends.cuda
    return backends.cudnn_sdp_enabled(), backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()


def test_a_gpu_takes_no_other_kernels_of_attention() -> None:
    before = allowed()
    with pinned_attention(CUDA):
        assert allowed() == (False, True, True)
    assert allowed() == before
    with pinned_attention(CPU):
        assert allowed() == before


def test_what_a_gpu_computes_with_is_logged_once(english: Pair, caplog: pytest.LogCaptureFixture) -> None:
    engine = WhisperEngine.load(str(english.student), None, "cpu", dtype="bfloat16", graphs="off")
    with caplog.at_level(logging.INFO, "streaming.whisper.hearing"):
        prepare_for(CPU, engine.models)
        assert not caplog.messages
        prepare_for(CUDA, [*engine.models, None])
    logits, attention = caplog.messages
    assert logits == "the student's logits are as the weights are"
    assert attention == "attention by the first that can of flash_attention, efficient_attention, math"
