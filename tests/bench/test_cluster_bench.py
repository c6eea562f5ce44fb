"""The benchmarks of a cluster run, and what they print was measured."""

from __future__ import annotations

import re

import pytest
from support import cells, run


@pytest.mark.timeout(600)  # raylets, replicas, a daemon, and its bridge again
def test_nothing_is_lost_when_parts_of_a_cluster_are_killed() -> None:
    name = "the daemon's bridge killed"
    ((fault, said, finals, lost, doubled, failed, disordered, *_),) = cells(
        run("cluster", "faults", "--streams", "3", "--calm", "0", "--only", name)
    )
    assert fault == name
    assert int(said) == int(finals) > 0
    assert (lost, doubled, failed, disordered) == ("0", "0", "0", "0")


@pytest.mark.timeout(300)
def test_the_way_to_a_cluster_costs_time() -> None:
    rows = cells(run("cluster", "hop", "--rounds", "3", "--seconds", "0.5", "2"))
    assert [row[:2] for row in rows] == [["1", "0.5"], ["1", "2"], ["8", "0.5"], ["8", "2"]]
    for _, _, process, replicas, *_ in rows:
        for overhead in (process, replicas):
            assert re.fullmatch(r"\d+\.\d / \d+\.\d", overhead)


@pytest.mark.timeout(300)
def test_replicas_carry_jobs_whoever_makes_the_batches() -> None:
    printed = run("cluster", "scale", "--replicas", "1", "2", "--seconds", "1")
    lines = cells(printed)
    assert [row[0] for row in lines[:2]] == ["1", "2"]
    assert [row[2] for row in lines[:2]] == ["1000", "2000"]
    assert [row[0] for row in lines[-2:]] == ["the daemon", "Ray Serve"]
    assert all(int(row[1]) > 0 for row in (*lines[:2], *lines[-2:]))
