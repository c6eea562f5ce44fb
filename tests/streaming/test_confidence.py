"""Verdicts and confidences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.confidence import ConfidenceSettings, find_loop, verdict, without_loop, word_confidence
from streaming.job import Result

SETTINGS = ConfidenceSettings()


def result(tokens: list[int], probability: float = 0.9, no_speech: float = 0.0) -> Result:
    log_probs = (math.log(probability),) * (len(tokens) + 1)
    return Result(revision=1, tokens=tuple(tokens), log_probs=log_probs, no_speech=no_speech)


@pytest.mark.parametrize(
    ("text", "probability", "no_speech", "expected"),
    [
        ("stop", 0.9, 0.0, "ok"),
        ("", 0.9, 0.0, "silence"),
        (" ...", 0.9, 0.0, "silence"),
        ("stop", 0.1, 0.0, "silence"),
        ("stop", 0.3, 0.9, "silence"),
        ("stop", 0.3, 0.1, "ok"),
        ("stop", 0.9, 0.9, "ok"),
        ("日本", 0.9, 0.0, "ok"),
    ],
)
def test_silence_is_no_text_or_none_worth_believing(
    text: str, probability: float, no_speech: float, expected: str
) -> None:
    assert verdict(result([1, 2], probability, no_speech), text, SETTINGS) == expected


@given(
    before=st.lists(st.integers(100, 200), max_size=30, unique=True),
    phrase=st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True),
    copies=st.integers(4, 40),
    rest=st.integers(0, 19),
)
def test_a_loop_is_found_and_cut_after_its_first_copy(
    before: list[int], phrase: list[int], copies: int, rest: int
) -> None:
    copies = max(copies, math.ceil(SETTINGS.loop_tokens / len(phrase)))
    looped = result([*before, *phrase * copies, *phrase[: rest % len(phrase)]])
    assert verdict(looped, "text", SETTINGS) == "repetition"
    tokens, log_probs = without_loop(looped, SETTINGS)
    assert list(tokens) == [*before, *phrase]
    assert len(log_probs) == len(tokens)


@given(
    tokens=st.lists(st.integers(0, 5), max_size=60),
    copies=st.integers(2, 6),
    least=st.integers(2, 20),
)
def test_loops_are_exactly_those_of_the_definition(tokens: list[int], copies: int, least: int) -> None:
    found = find_loop(tokens, ConfidenceSettings(loop_copies=copies, loop_tokens=least))

    def is_loop(start: int, period: int, end: int) -> bool:
        long_enough = end - start >= max(copies * period, least)
        return long_enough and all(tokens[i] == tokens[i - period] for i in range(start + period, end))

    if found:
        assert is_loop(found.start, found.period, found.end)
    longest = found.end - found.start if found else 0
    for start in range(len(tokens)):
        for period in range(1, (len(tokens) - start) // copies + 1):
            end = start + max(copies * period, least, longest + 1)
            assert end > len(tokens) or not is_loop(start, period, end)


@pytest.mark.parametrize("tokens", [[], [1], [7] * 4, [1, 2, 3] * 3, list(range(100))])
def test_speech_is_no_loop(tokens: list[int]) -> None:
    assert find_loop(tokens, SETTINGS) is None


def test_a_word_is_as_likely_as_its_tokens_on_average() -> None:
    assert word_confidence([math.log(0.9), math.log(0.4)]) == pytest.approx(0.6)
    assert word_confidence([]) == 0


@pytest.mark.parametrize("arguments", [{"no_speech": 1.5}, {"doubtful": -0.1}, {"floor": float("nan")}])
def test_settings_that_cannot_be_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ConfidenceSettings(**arguments)  # type: ignore[arg-type]  # the floats are floats; the ints are not given


def test_fewer_than_two_copies_are_no_loop() -> None:
    with pytest.raises(ValueError, match="loop_copies"):
        ConfidenceSettings(loop_copies=1)
