"""What the benchmarks of the whole service share: each final that is lost, doubled or out of order is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import RATE, SLACK, Delivery, Final, MissingError, Outage, check, disordered, mosquitto, sentences


def test_the_recordings_are_cut_into_sentences() -> None:
    found = sentences()
    assert len(found) == 20  # twelve sentences, three of the demo, and four files, one with two
    assert all(1 < len(each) / 2 / RATE < 6 for each in found)


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MissingError, match="apt-get install mosquitto"):
        mosquitto()


# --- what was delivered ----------------------------------------------------------------------------------------------


def final(session: str, number: int, text: str, at: float, source: str = "kitchen") -> Final:
    return Final(source, text, f"{session}-{number}", published=at, received=at)


def finals(count: int) -> list[Final]:
    return [replace(final("stream", n, f"text {n}", float(n)), received=100.0 * n) for n in range(count)]


def told(arrivals: Sequence[Final]) -> list[Final]:
    return [Final(each.source, each.text, each.id) for each in arrivals]


@given(st.integers(0, 20))
def test_all_that_was_told_arrived(count: int) -> None:
    made = finals(count)
    assert check(told(made), made) == Delivery(count, count, 0, 0, 0, (), 0)


@given(st.integers(1, 20), st.data())
def test_each_loss_is_seen(count: int, data: st.DataObject) -> None:
    made = finals(count)
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    delivery = check(told(made), [each for n, each in enumerate(made) if n not in gone])
    assert {each.id for each in delivery.lost} == {made[n].id for n in gone}
    assert delivery.disordered == 0
    assert delivery.untold == 0


@given(st.integers(1, 20), st.data())
def test_each_text_that_is_another_is_lost(count: int, data: st.DataObject) -> None:
    made = finals(count)
    n = data.draw(st.integers(0, count - 1))
    delivery = check(told(made), [*made[:n], replace(made[n], text="?"), *made[n + 1 :]])
    assert [each.id for each in delivery.lost] == [made[n].id]


@given(st.integers(1, 20), st.data())
def test_what_nobody_was_told_is_no_loss(count: int, data: st.DataObject) -> None:
    made = finals(count)
    silent = data.draw(st.sets(st.integers(0, count - 1)))
    delivery = check(told([each for n, each in enumerate(made) if n not in silent]), made)
    assert (delivery.lost, delivery.untold, delivery.disordered) == ((), len(silent), 0)


@given(st.integers(2, 20), st.data())
def test_two_that_changed_places_are_seen(count: int, data: st.DataObject) -> None:
    made = finals(count)
    n = data.draw(st.integers(0, count - 2))
    swapped = [*made[:n], made[n + 1], made[n], *made[n + 2 :]]
    assert check(told(made), swapped).disordered > 0
    assert check([], swapped).disordered > 0  # each says when it was published
    assert disordered(swapped) > 0
    assert disordered(made) == 0


@given(st.integers(1, 20), st.data())
def test_each_repeat_is_seen_and_needs_an_outage(count: int, data: st.DataObject) -> None:
    made = finals(count)
    again = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=5))
    arrivals = [*made, *(replace(each, received=each.received + 1e6) for each in again)]
    delivery = check(told(made), arrivals)
    assert (delivery.repeated, delivery.unexplained) == (len(again), len(again))
    assert (delivery.told, delivery.arrived, delivery.lost, delivery.disordered) == (count, count, (), 0)
    always = [Outage(each.received, each.received) for each in arrivals]
    assert check(told(made), arrivals, always).unexplained == 0


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
def test_which_outage_accounts_for_a_repeat(began: float, ended: float, accounts: bool) -> None:
    once = replace(final("s", 1, "stop", 1.0), received=100.0)
    delivery = check(told([once]), [once, replace(once, received=130.0)], [Outage(began, ended)])
    assert delivery.unexplained == (0 if accounts else 1)


def test_answers_without_ids_are_found_by_their_words() -> None:
    """An answer is all finals of a stream, joined; streams that were cut off stand between."""
    arrivals = [
        final("a", 1, "stop", 1),
        final("b", 1, "turn on", 2),
        final("b", 2, "", 3),
        final("b", 3, "the light", 4),
        final("c", 1, "stop", 5),
    ]
    answers = [Final("kitchen", "turn on the light"), Final("kitchen", "stop")]
    assert check(answers, arrivals) == Delivery(4, 5, 1, 0, 0, (), 0)
    assert check(answers, arrivals[:4]).lost == (answers[1],)  # the stop before it is another
    assert check(answers[::-1], arrivals[1:]).lost == (answers[0],)  # in the wrong order
