"""A day at home: its ledger sees what is lost, doubled or out of order, and a short day loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.broker import MissingError, mosquitto
from bench.day.book import Book, Speaker
from bench.day.ledger import SLACK, Arrived, Outage, Told, Verdict, descents_over_all, judge
from bench.day.recordings import RATE, sentences
from bench.day.report import Ending, broken_promises, report
from bench.day.schedule import SPEAKERS, Kind, plan

ROOT = Path(__file__).parent.parent.parent

# --- the schedule ----------------------------------------------------------------------------------------------------


@given(st.floats(1, 90), st.integers(0, 1000), st.integers(1, 30))
def test_a_day_has_everything_in_order(minutes: float, seed: int, recordings: int) -> None:
    day = plan(minutes, seed, recordings)
    assert day == plan(minutes, seed, recordings)
    assert {each.speaker for each in day.sentences} == set(SPEAKERS)
    assert {each.kind for each in day.faults} == set(Kind)
    assert all(0 <= each.recording < recordings for each in day.sentences)
    for times in ([each.at for each in day.sentences], [each.at for each in day.faults]):
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= 60 * minutes


def test_an_hour_is_a_busy_one() -> None:
    day = plan(60, 1, 10)
    assert len(day.sentences) == 180
    assert min(Counter(each.kind for each in day.faults).values()) >= 3


def test_the_recordings_are_cut_into_sentences() -> None:
    found = sentences()
    assert len(found) == 20  # twelve sentences, three of the demo, and four files, one with two
    assert all(1 < len(each) / 2 / RATE < 6 for each in found)


# --- the ledger ------------------------------------------------------------------------------------------------------

NONE: tuple[Outage, ...] = ()


def finals(count: int, source: str = "kitchen") -> list[Arrived]:
    return [Arrived(source, f"stream-{n}", f"text {n}", float(n), 100.0 * n) for n in range(count)]


def told(arrivals: Sequence[Arrived]) -> list[Told]:
    return [Told(each.source, each.text, each.id) for each in arrivals]


@given(st.integers(0, 20))
def test_all_that_was_told_arrived(count: int) -> None:
    made = finals(count)
    assert judge(told(made), made, NONE) == Verdict(count, count, 0, 0, 0, (), 0)


@given(st.integers(1, 20), st.data())
def test_each_loss_is_seen(count: int, data: st.DataObject) -> None:
    made = finals(count)
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    verdict = judge(told(made), [each for n, each in enumerate(made) if n not in gone], NONE)
    assert {each.id for each in verdict.lost} == {made[n].id for n in gone}
    assert verdict.disordered == 0
    assert verdict.untold == 0


@given(st.integers(1, 20), st.data())
def test_what_nobody_was_told_is_no_loss(count: int, data: st.DataObject) -> None:
    made = finals(count)
    silent = data.draw(st.sets(st.integers(0, count - 1)))
    verdict = judge(told([each for n, each in enumerate(made) if n not in silent]), made, NONE)
    assert (verdict.lost, verdict.untold, verdict.disordered) == ((), len(silent), 0)


@given(st.integers(2, 20), st.data())
def test_two_that_changed_places_are_seen(count: int, data: st.DataObject) -> None:
    made = finals(count)
    n = data.draw(st.integers(0, count - 2))
    swapped = [*made[:n], made[n + 1], made[n], *made[n + 2 :]]
    assert judge(told(made), swapped, NONE).disordered > 0
    assert judge([], swapped, NONE).disordered > 0  # each says when it was published
    assert descents_over_all(swapped) > 0
    assert descents_over_all(made) == 0


@given(st.integers(1, 20), st.data())
def test_each_repeat_is_seen_and_needs_a_fault(count: int, data: st.DataObject) -> None:
    made = finals(count)
    again = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=5))
    arrivals = [*made, *(replace(each, when=each.when + 1e6) for each in again)]
    verdict = judge(told(made), arrivals, NONE)
    assert (verdict.repeated, verdict.unexplained) == (len(again), len(again))
    assert (verdict.told, verdict.arrived, verdict.lost, verdict.disordered) == (count, count, (), 0)
    always = [Outage(each.when, each.when) for each in arrivals]
    assert judge(told(made), arrivals, always).unexplained == 0


@pytest.mark.parametrize(
    ("began", "ended", "accounts"),
    [
        (100.0, 120.0, True),  # while it lasted
        (100.0 + SLACK / 2, 120.0, True),  # its acknowledgement was under way
        (80.0, 100.0 - SLACK / 2, True),  # it was on its way in a frozen broker
        (100.0 + 2 * SLACK, 120.0, False),  # it had long been acknowledged
        (0.0, 100.0 - 2 * SLACK, False),  # all was well again
        (500.0, 600.0, False),  # afterwards
    ],
)
def test_which_fault_accounts_for_a_repeat(began: float, ended: float, accounts: bool) -> None:
    once = Arrived("kitchen", "s-1", "stop", 1.0, 100.0)
    verdict = judge(told([once]), [once, replace(once, when=130.0)], [Outage(began, ended)])
    assert verdict.unexplained == (0 if accounts else 1)


def test_answers_without_ids_are_found_by_their_words() -> None:
    """An answer is all finals of a stream, joined; streams that were cut off stand between."""
    arrivals = [
        Arrived("satellite", "a-1", "stop", 1, 1),
        Arrived("satellite", "b-1", "turn on", 2, 2),
        Arrived("satellite", "b-2", "", 3, 3),
        Arrived("satellite", "b-3", "the light", 4, 4),
        Arrived("satellite", "c-1", "stop", 5, 5),
    ]
    answers = [Told("satellite", "turn on the light"), Told("satellite", "stop")]
    assert judge(answers, arrivals, NONE) == Verdict(4, 5, 1, 0, 0, (), 0)
    assert judge(answers, arrivals[:4], NONE).lost == (answers[1],)  # the stop before it is another
    assert judge(answers[::-1], arrivals[1:], NONE).lost == (answers[0],)  # in the wrong order


# --- the report ------------------------------------------------------------------------------------------------------

WELL = Ending(3, (), Counter(), 2)


def book() -> Book:
    made = Book({name: Speaker(name, sent=1, said=1) for name in SPEAKERS})
    for name, speaker in made.speakers.items():
        arrived = Arrived(name, f"{name}-1", "stop", 1.0, 1.0)
        speaker.told.append(Told(name, "stop", arrived.id))
        made.arrivals.append(arrived)
    return made


def test_a_good_day_says_so() -> None:
    assert broken_promises(book(), WELL) == []
    assert "**Every promise held: 4 finals were told" in report(book(), WELL, "")


@pytest.mark.parametrize(
    ("spoil", "ending", "said"),
    [
        (lambda made: made.arrivals.clear(), WELL, "and MQTT was not"),
        (lambda made: made.arrivals.append(made.arrivals[0]), WELL, "came again without a fault"),
        (lambda made: made.arrivals.insert(0, Arrived("hall", "x-1", "stop", 2.0, 0.0)), WELL, "came before one"),
        (lambda made: setattr(made.speakers["desk"], "unheard", 1), WELL, "nothing came of them"),
        (lambda made: made.speakers["hall"].told.clear(), WELL, "hall: nobody was told anything"),
        (lambda made: None, replace(WELL, bad_ends=(1,)), "exit codes 1"),
        (lambda made: None, replace(WELL, counted=Counter({"whisperd_mqtt_expired_finals_total": 1})), "too old"),
    ],
)
def test_each_broken_promise_is_said(spoil: object, ending: Ending, said: str) -> None:
    made = book()
    assert callable(spoil)
    spoil(made)
    assert any(said in each for each in broken_promises(made, ending))
    assert "promises were broken.**" in report(made, ending, "")


# --- a short day -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)  # some 70 s on a quiet machine; each of its parts waits by itself
def test_a_short_day() -> None:
    command = [sys.executable, "-m", "bench.day", "--minutes", "3", "--speed", "4", "--seed", "1", "--scripted"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("**Every promise held: ")
    assert all(f"| {kind} |" in done.stdout for kind in Kind)


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MissingError, match="apt-get install mosquitto"):
        mosquitto()
