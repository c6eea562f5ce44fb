"""A day at home: each promise that is broken is said, and a short day breaks none."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Final, benchmark, every_promise_held

from bench.day.history import History, Speaker
from bench.day.report import Ending, broken_promises, report
from bench.day.schedule import SPEAKERS, FaultKind, plan

# --- the schedule ----------------------------------------------------------------------------------------------------


@given(st.floats(1, 90), st.integers(0, 1000), st.integers(1, 30))
def test_a_day_has_everything_in_order(minutes: float, seed: int, recordings: int) -> None:
    day = plan(minutes, seed, recordings)
    assert day == plan(minutes, seed, recordings)
    assert {each.speaker for each in day.sentences} == set(SPEAKERS)
    assert {each.kind for each in day.faults} == set(FaultKind)
    assert all(0 <= each.recording < recordings for each in day.sentences)
    for times in ([each.at for each in day.sentences], [each.at for each in day.faults]):
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= 60 * minutes


def test_an_hour_is_a_busy_one() -> None:
    day = plan(60, 1, 10)
    assert len(day.sentences) == 180
    assert min(Counter(each.kind for each in day.faults).values()) >= 3


# --- the report ------------------------------------------------------------------------------------------------------

WELL = Ending(3, (), Counter(), 2)


def history() -> History:
    made = History({name: Speaker(name, sent=1, said=1) for name in SPEAKERS})
    for name, speaker in made.speakers.items():
        arrived = Final(name, "stop", f"{name}-1", published=1.0, received=1.0)
        speaker.told.append(arrived)
        made.arrivals.append(arrived)
    return made


def test_a_good_day_says_so() -> None:
    assert broken_promises(history(), WELL) == []
    assert "**Every promise held: 4 finals were told" in report(history(), WELL, "")


@pytest.mark.parametrize(
    ("spoil", "ending", "said"),
    [
        (lambda made: made.arrivals.clear(), WELL, "and MQTT was not"),
        (lambda made: made.arrivals.append(made.arrivals[0]), WELL, "came again without a fault"),
        (lambda made: made.arrivals.insert(0, Final("hall", "stop", "x-1", published=2.0)), WELL, "came before one"),
        (lambda made: setattr(made.speakers["desk"], "unheard", 1), WELL, "nothing came of them"),
        (lambda made: made.speakers["hall"].told.clear(), WELL, "hall: nobody was told anything"),
        (lambda made: None, replace(WELL, bad_ends=(1,)), "exit codes 1"),
        (lambda made: None, replace(WELL, counted=Counter({"whisperd_mqtt_expired_finals_total": 1})), "too old"),
    ],
)
def test_each_broken_promise_is_said(spoil: object, ending: Ending, said: str) -> None:
    made = history()
    assert callable(spoil)
    spoil(made)
    assert any(said in each for each in broken_promises(made, ending))
    assert "promises were broken.**" in report(made, ending, "")


# --- a short day -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)  # some 70 s on a quiet machine; each of its parts waits by itself
def test_a_short_day() -> None:
    printed = every_promise_held(benchmark("day", "--minutes", "3", "--speed", "4", "--seed", "1", "--scripted"))
    assert all(f"| {kind} |" in printed for kind in FaultKind)
