"""The faults of `bench.faults`, a little of each: all survived, nothing lost."""

from __future__ import annotations

import re

import pytest

from bench.faults import ATTACKS, FAULTS, attempt
from bench.faults.service import Outcome

A_LITTLE = {
    "gone in mid-word": 4,
    "reset in mid-word, and resumed": 4,
    "half-open, and resumed": 4,
    "stops reading its own stream": 3,
    "one byte in a message": 1,
    "many times the pace of speech": 6,
    "garbage": 10,
    "connect and leave": 200,
    "half of a handshake": 20,
    "handshakes byte by byte": 5,
    "subscribers that never read": 4,
    "a job of a batch raises": 6,
    "out of memory": 6,
    "a decode hangs": 1,
    "NaN in the logits (tiny-en)": 2,
    "twice the load": 10,
    "no descriptors left": 1,
    "the clock jumps": 1,
    "the broker freezes": 1,
    "the engine's process is killed": 2,
    "a full disk": 1,
    "SIGTERM": 2,
    "SIGKILL": 3,
}


def test_all_are_tried() -> None:
    assert A_LITTLE.keys() == FAULTS.keys()


@pytest.mark.timeout(900)  # a process for each: seconds of work, and a busy machine may take its time
@pytest.mark.parametrize("name", A_LITTLE)
async def test_nothing_is_lost(name: str) -> None:
    well(await attempt(name, A_LITTLE[name]))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ATTACKS)
async def test_others_are_served_meanwhile(name: str) -> None:
    outcome = await attempt(name, 1)
    well(outcome)
    assert outcome.tried
    assert re.search(r"[1-9]\d* answers, p95 .* s; descriptors \d.* memory .* MiB", outcome.note)


def well(outcome: Outcome) -> None:
    assert outcome.survived == outcome.tried, outcome
    assert outcome.lost == 0, outcome
