"""What a GPU computes in, as far as a machine without one can tell: with stand-ins for what only a GPU has."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from checkpoints import Pair

from streaming.whisper.engine import WhisperEngine
from streaming.whisper.hearing import pinned_attention, prepare_for
from streaming.whisper.model import Decoder
from streaming.whisper.precision import WideLogits, widen_logits

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def decoder(pair: Pair, dtype: str) -> Decoder:
    return WhisperEngine.load(str(pair.student), None, "cpu", dtype=dtype, graphs="off").models[0].decoder


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
