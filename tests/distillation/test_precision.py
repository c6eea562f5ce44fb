"""The numbers in which training computes: measured where it may be slower, and said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from distillation import precision


@pytest.fixture(autouse=True)
def _chosen_anew() -> Iterator[None]:
    precision._in_bfloat16.cache_clear()
    yield
    precision._in_bfloat16.cache_clear()


@pytest.mark.parametrize(("gain", "dtype"), [(0.3, torch.float32), (1.0, torch.float32), (2.0, torch.bfloat16)])
def test_bfloat16_where_it_is_faster(
    gain: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "bfloat16_gain", lambda width: gain)
    for _ in range(2):
        with precision.computing(8, "cpu"):
            assert torch.nn.Linear(8, 8)(torch.zeros(1, 8)).dtype is dtype
    name = str(dtype).removeprefix("torch.")
    assert capsys.readouterr().err == f"computing in {name}: bfloat16 is {gain:.2f} times as fast here\n"


def test_the_probe_measures_and_leaves_chance_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with torch.no_grad():  # as where an encoder is frozen
        assert precision.bfloat16_gain(64) > 0
    assert torch.equal(torch.rand(1), expected)
