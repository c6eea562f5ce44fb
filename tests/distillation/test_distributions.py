"""What a teacher might have said comes back as it was kept, and a torn file is cut back to what is known of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillation.distributions import KEPT, RECORD, Distributions


def logits(places: int, seed: int, vocabulary: int = 200) -> torch.Tensor:
    return torch.randn(places, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_what_is_read_is_what_was_added(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("kept") / "labels.distributions"
    store = Distributions(path)
    store.begin(0)
    added = [logits(places, seed + number) for number, places in enumerate(lengths)]
    firsts = [store.add(scores) for scores in added]
    assert firsts == [sum(lengths[:number]) for number in range(len(lengths))]
    again = Distributions(path)
    assert len(again) == len(store) == sum(lengths)
    for first, scores in zip(firsts, added, strict=True):
        tokens, log_probs = again.read(first, len(scores))
        assert tokens.shape == log_probs.shape == (len(scores), KEPT)
        # The likeliest of all, the likeliest first, with their log-probabilities to the precision of float16.
        assert torch.equal(tokens, scores.topk(KEPT).indices)
        torch.testing.assert_close(log_probs, scores.log_softmax(-1).gather(1, tokens), rtol=1e-3, atol=1e-3)


def test_a_torn_file_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "labels.distributions"
    store = Distributions(path)
    store.begin(0)
    store.add(logits(3, 1))
    store.add(logits(2, 2))
    whole = path.read_bytes()
    assert len(whole) == 5 * RECORD.itemsize
    with path.open("ab") as file:
        file.write(whole[: RECORD.itemsize + 7])  # a label that was being written, torn within its second record
    torn = Distributions(path)
    torn.begin(5)
    assert path.read_bytes() == whole
    assert torn.add(logits(1, 3)) == 5
    assert path.read_bytes()[: len(whole)] == whole
    assert len(Distributions(path)) == 6


def test_a_file_that_is_not_there_is_begun(tmp_path: Path) -> None:
    store = Distributions(tmp_path / "labels.distributions")
    assert len(store) == 0
    store.begin(0)
    assert (tmp_path / "labels.distributions").read_bytes() == b""
