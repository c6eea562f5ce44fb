"""The short form of every attack, and the judge of the long one."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from . import rounds
from .rounds import GrowthError, Target, attack, attack_for
from .targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_round(name: str) -> None:
    target = TARGETS[name]
    attack(target, max(5, target.size // 4), seed=1)


def test_what_is_wrong_is_found() -> None:
    def dislike(number: int) -> None:
        assert number != 3

    with pytest.raises(AssertionError):
        attack(Target("numbers", st.integers(0, 5), dislike), 100, seed=1)


def test_memory_that_is_not_given_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_MOST_GROWTH", 16.0)
    kept: list[bytes] = []
    leaky = Target("leaky", st.binary(max_size=1), lambda _: kept.append(b"x" * 2**20), size=20)
    with pytest.raises(GrowthError, match="leaky: from"):
        attack_for(leaky, 10, say=lambda _: None)
    kept.clear()
