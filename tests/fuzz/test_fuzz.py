"""The short form of every attack, and the judge of the long one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from . import rounds
from .rounds import GrowthError, Target, attack, attack_for
from .targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_round(name: str) -> None:
    target = TARGETS[name]
    attack(target, max(5, target.size // 4), seed=1)


def test_properties_have_the_same_inputs_in_each_run_unless_new_ones_are_asked_for() -> None:
    ci, free = settings.get_profile("ci"), settings.get_profile("free")
    assert (ci.derandomize, free.derandomize) == (True, False)
    assert free.max_examples > ci.max_examples


def test_a_seed_decides_what_is_tried() -> None:
    def tried(seed: int) -> list[int]:
        numbers: list[int] = []
        attack(Target("numbers", st.integers(), numbers.append), 20, seed=seed)
        return numbers

    assert tried(1) == tried(1) != tried(2)


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
