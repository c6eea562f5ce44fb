"""How many threads an engine may use: as many as find a core of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.engines import free_cores as cores
from daemon.engines.free_cores import FreeCores, busy_seconds


@dataclass
class Machine:
    """One of two cores, whose clock goes on when it is told to."""

    now: float = 0.0
    mine: float = 0.0
    others: float = 0.0
    cores: int = 2

    def passes(self, seconds: float, mine: float, others: float) -> None:
        """`mine` and `others`: cores that are kept busy meanwhile."""
        self.now += seconds
        self.mine += seconds * mine
        self.others += seconds * others

    def free(self) -> FreeCores:
        return FreeCores(lambda: (self.mine + self.others, self.cores), lambda: self.mine, lambda: self.now)


@pytest.mark.parametrize(("others", "threads"), [(0.0, 2), (0.4, 2), (0.6, 1), (1.0, 1), (2.0, 1), (-0.1, 2)])
def test_a_core_that_others_keep_busy_is_left_to_them(others: float, threads: int) -> None:
    machine = Machine()
    free = machine.free()
    machine.passes(1.0, mine=2.0 - max(0.0, others), others=others)
    assert free.threads(2) == threads


def test_what_others_leave_is_taken_again() -> None:
    machine = Machine()
    free = machine.free()
    machine.passes(1.0, mine=1.0, others=1.0)
    assert free.threads(2) == 1
    machine.passes(1.0, mine=1.0, others=0.0)
    assert free.threads(2) == 2


def test_more_cores_than_threads_are_room_for_others() -> None:
    machine = Machine(cores=16)
    free = machine.free()
    machine.passes(1.0, mine=8.0, others=6.0)
    assert free.threads(8) == 8
    machine.passes(1.0, mine=8.0, others=10.0)
    assert free.threads(8) == 6


def test_a_moment_says_nothing() -> None:
    """The times are told in hundredths of a second: over a few of them any share could come out."""
    machine = Machine()
    free = machine.free()
    machine.passes(0.1, mine=0.0, others=2.0)
    assert free.threads(2) == 2
    machine.passes(0.5, mine=0.0, others=2.0)
    assert free.threads(2) == 1


def test_this_machine_is_read() -> None:
    before, number = busy_seconds()
    assert number == len(os.sched_getaffinity(0))
    while busy_seconds()[0] == before:
        sum(range(10_000))
    assert busy_seconds()[0] > before


def test_only_cores_of_ones_own_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = tmp_path / "stat"
    statistics.write_text(
        "cpu  600 0 0 900 90 0 0 0 0 0\ncpu0 100 10 20 400 30 1 2 3 50 0\ncpu1 500 0 0 500 60 0 0 0 0 0\nintr 5 6\n"
    )
    monkeypatch.setattr(cores, "_STATISTICS", statistics)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    assert busy_seconds() == (1.36, 1)


def test_where_there_is_nothing_to_read_all_cores_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_STATISTICS", tmp_path / "nothing")
    machine = Machine()
    free = FreeCores(own=lambda: machine.mine, clock=lambda: machine.now)
    machine.passes(1.0, mine=0.0, others=2.0)
    assert free.threads(64) == min(64, len(os.sched_getaffinity(0)))
