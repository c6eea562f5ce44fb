"""Timestamp tokens to spans."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from streaming.job import SAMPLE_RATE, Result
from streaming.stamps import STEP, Span, closed, parts_of, spans_of, within
from streaming.text import Text

ZERO = 100


def at(steps: int) -> int:
    return ZERO + steps


def test_a_pair_of_timestamps_ends_one_span_and_begins_the_next() -> None:
    assert spans_of([at(0), 1, 2, at(50), at(60), 3, at(100)], ZERO) == [
        Span(0, 50 * STEP, 1, 3),
        Span(60 * STEP, 100 * STEP, 5, 6),
    ]


def test_what_is_not_closed_is_open() -> None:
    assert spans_of([at(0), 1, at(50), at(50), 2, 3], ZERO)[-1] == Span(50 * STEP, None, 4, 6)
    assert spans_of([1, 2], ZERO) == [Span(0, None, 0, 2)]
    assert spans_of([at(0), at(50)], ZERO) == spans_of([], ZERO) == []


@given(tokens=st.lists(st.integers(0, 2 * ZERO), max_size=40))
def test_the_spans_of_any_tokens_have_all_the_text_once(tokens: list[int]) -> None:
    spans = spans_of(tokens, ZERO)
    inside = [token for span in spans for token in tokens[span.first : span.last]]
    assert inside == [token for token in tokens if token < ZERO]
    assert all(before.last <= after.first for before, after in pairwise(spans))
    assert all(span.end is not None for span in spans[:-1])


def test_spans_are_closed_within_their_audio() -> None:
    spans = within([Span(0, 50, 0, 1), Span(60, None, 1, 2)], 55)
    assert spans == [Span(0, 50, 0, 1), Span(55, None, 1, 2)]
    assert closed(spans, 54) == [Span(0, 50, 0, 1), Span(55, 55, 1, 2)]


def said(tokenizer: Tokenizer, sentence: str, pauses: dict[int, float]) -> Result:
    """A text of a second for each token, with a pause before some."""
    tokens = tuple(tokenizer.encode(" " + sentence, add_special_tokens=False).ids)
    times, now = [], 0.0
    for index in range(len(tokens)):
        now += pauses.get(index, 0.0)
        times.append((now, now + 1.0))
        now += 1.0
    return Result(1, tokens, (math.log(0.9),) * (len(tokens) + 1), times=tuple(times))


def whole(result: Result) -> Span:
    return Span(0, round(result.times[-1][1] * SAMPLE_RATE), 0, len(result.tokens))


def test_a_long_span_is_cut_behind_a_sentence_and_else_at_the_longest_pause(text: Text, tokenizer: Tokenizer) -> None:
    result = said(tokenizer, "stop the music. what time is it", {})
    first, second = parts_of(whole(result), result, text, round(0.9 * len(result.tokens) * SAMPLE_RATE))
    assert text.text(result.tokens[first.first : first.last]) == "stop the music."
    assert text.text(result.tokens[second.first : second.last]) == "what time is it"
    assert first.end == second.start == round(result.times[second.first][0] * SAMPLE_RATE)
    plain = said(tokenizer, "stop the music", {})
    (at,) = [word.first for word in text.words(plain.tokens) if word.text == "the"]
    paused = said(tokenizer, "stop the music", {at: 1.0})
    assert [part.first for part in parts_of(whole(paused), paused, text, whole(paused).end - 1)] == [0, at]  # type: ignore[operator]  # it is closed


@given(longest=st.floats(0.01, 30), pauses=st.dictionaries(st.integers(0, 20), st.floats(0, 9), max_size=5))
def test_the_parts_of_a_span_are_in_order_and_have_all_its_tokens(
    text: Text, tokenizer: Tokenizer, longest: float, pauses: dict[int, float]
) -> None:
    result = said(tokenizer, "turn on the kitchen light. what time is it", pauses)
    span = whole(result)
    parts = parts_of(span, result, text, round(longest * SAMPLE_RATE))
    assert (parts[0].start, parts[-1].end) == (span.start, span.end)
    assert [token for part in parts for token in range(part.first, part.last)] == list(range(len(result.tokens)))
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert all(part.end is not None and part.start <= part.end for part in parts)


def test_a_span_without_times_is_left_as_it_is(text: Text) -> None:
    span = Span(0, 30 * SAMPLE_RATE, 0, 2)
    assert parts_of(span, Result(1, (1, 2), (-0.1,) * 3), text, SAMPLE_RATE) == [span]
    with pytest.raises(AssertionError, match="closed"):
        parts_of(Span(0, None, 0, 2), Result(1, (1, 2), (-0.1,) * 3), text, SAMPLE_RATE)
