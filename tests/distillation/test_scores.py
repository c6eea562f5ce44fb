"""The arithmetic of a report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.label import normaliser
from distillation.scores import auroc, repeats, score, word_errors


def test_word_errors_are_counted_by_kind() -> None:
    counted = score(["turn on the light", "stop"], ["Turn off the the light.", ""], normaliser("english"))
    assert (counted.words, counted.substituted, counted.inserted, counted.deleted) == (5, 1, 1, 1)
    assert counted.wer == 0.6
    assert counted.insertion_rate == 0.2


@pytest.mark.parametrize(
    ("name", "said", "heard", "errors"),
    [
        ("basic", "Turn ON, please!", "turn on please", (0, 3)),
        ("basic", "Привет, мир!", "привет мир", (0, 2)),
        ("english", "It's 5 dollars.", "it is five dollars", (0, 3)),
    ],
)
def test_words_are_counted_in_the_form_that_was_asked_for(
    name: str, said: str, heard: str, errors: tuple[int, int]
) -> None:
    assert word_errors(said, heard, normaliser(name)) == errors


def test_a_reference_without_words_is_left_out() -> None:
    basic = normaliser("basic")
    counted = score(["...", "turn it on"], ["anything at all", "turn it off"], basic)
    assert (counted.clips, counted.words, counted.errors) == (1, 3, 1)
    assert score(["..."], ["anything"], basic).wer == 0
    assert score([], [], basic).clips == 0


def test_one_text_may_have_no_reference() -> None:
    basic = normaliser("basic")
    assert word_errors("", "two words", basic) == (2, 0)
    assert word_errors("", "", basic) == (0, 0)
    assert word_errors("turn on the light", "turn on a light", basic) == (1, 4)


def test_a_loop_is_counted_and_a_refrain_is_not() -> None:
    phrase = "one two three four five "
    basic = normaliser("basic")
    assert repeats(phrase, phrase, basic) == 0
    # The phrase twice more, and the four that cross its joints once more.
    assert repeats(phrase * 3, phrase, basic) == 2 + 4 * 1
    assert repeats(phrase * 3, phrase * 3, basic) == 0
    assert repeats("a b", "a b", basic) == 0


def test_a_signal_that_tells_all_or_nothing() -> None:
    wrong = [True, True, False, False]
    assert auroc([0.1, 0.2, 0.8, 0.9], wrong) == 1
    assert auroc([0.9, 0.8, 0.2, 0.1], wrong) == 0
    assert auroc([0.5, 0.5, 0.5, 0.5], wrong) == 0.5
    assert auroc([0.5], [True]) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2))
def test_turning_a_signal_round_turns_what_it_tells(pairs: list[tuple[float, bool]]) -> None:
    values, wrong = [value for value, _ in pairs], [bad for _, bad in pairs]
    there, back = auroc(values, wrong), auroc([-value for value in values], wrong)
    assert (there is None) == (back is None) == (len(set(wrong)) == 1)
    if there is not None and back is not None:
        assert there + back == pytest.approx(1)
