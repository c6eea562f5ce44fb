"""The faults of `bench.faults`, a little of each: all survived, nothing lost."""

from __future__ import annotations

import pytest

from bench.faults import FAULTS, attempt

A_LITTLE = {
    "gone in mid-word": 4,
    "one byte in a message": 1,
    "many times the pace of speech": 6,
    "garbage": 10,
    "connect and leave": 200,
    "half-open connections": 20,
    "subscribers that never read": 4,
    "no descriptors left": 1,
    "SIGTERM": 2,
}


def test_all_are_tried() -> None:
    assert A_LITTLE.keys() == {*FAULTS, "SIGTERM"}


@pytest.mark.timeout(600)  # a process for each: seconds of work, and a busy machine may take its time
@pytest.mark.parametrize("name", A_LITTLE)
async def test_nothing_is_lost(name: str) -> None:
    outcome = await attempt(name, A_LITTLE[name])
    assert outcome.survived == outcome.tried, outcome
    assert outcome.arrived == outcome.said, outcome
