"""Texts with timestamps: cut into spans, and judged by their words.

Owns what a timestamp token means, and what of a result is text and what is time. Knows nothing of files, of windows, or
of what becomes of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from streaming.confidence import ConfidenceSettings, ConfidenceVerdict, verdict, without_loop
from streaming.job import SAMPLE_RATE, Result
from streaming.text import Text

STEP = SAMPLE_RATE // 50
"""Samples from one timestamp to the next: all Whispers count in steps of 20 ms."""


_SENTENCE_ENDS = frozenset(".?!\u3002\uff1f\uff01")
"""The last three are the full-width signs of Chinese and Japanese."""


@dataclass(frozen=True, slots=True)
class Span:
    """Text between two timestamps.

    Attributes:
        start: its first sample, from the first of the audio.
        end: one past its last sample; None where the text ended before it was closed.
        first: the index of its first token.
        last: one past that of its last.
    """

    start: int
    end: int | None
    first: int
    last: int


def spans_of(tokens: Sequence[int], first_timestamp: int) -> list[Span]:
    """Return the spans of a text, in order. Only the last one can be open.

    Args:
        tokens: of the text.
        first_timestamp: the token of 0 s; it and all above it are timestamps.
    """
    spans: list[Span] = []
    stamp, first = 0, None
    for index, token in enumerate(tokens):
        if token < first_timestamp:
            first = index if first is None else first
            continue
        at = (token - first_timestamp) * STEP
        if first is not None:
            spans.append(Span(stamp, at, first, index))
            first = None
        stamp = at
    if first is not None:
        spans.append(Span(stamp, None, first, len(tokens)))
    return spans


def within(spans: Sequence[Span], samples: int) -> list[Span]:
    """Return spans, none of which leaves audio of so many samples: models write any time up to what they hear."""
    return [
        replace(span, start=min(span.start, samples), end=None if span.end is None else min(span.end, samples))
        for span in spans
    ]


def closed(spans: Sequence[Span], end: int) -> list[Span]:
    """Return spans, the last of which ends at `end` if it is open, or where it begins if that is later."""
    return [replace(span, end=max(end, span.start)) if span.end is None else span for span in spans]


def parts_of(span: Span, result: Result, text: Text, longest: int) -> list[Span]:
    """Cut a closed span into parts that are not much longer than so many samples, between words.

    A cut is behind the end of a sentence, if one ends in the middle half, and where the pause between two words is
    longest. A span whose tokens have no times is left as it is.
    """
    assert span.end is not None, "it is closed"
    length = span.end - span.start
    if length <= longest or not result.times:
        return [span]
    best: tuple[bool, float, int, int] | None = None
    words = text.words(result.tokens[span.first : span.last], result.language)
    for before, word in pairwise(words):
        first = span.first + word.first
        paused, begins = result.times[first - 1][1], result.times[first][0]
        at = round(begins * SAMPLE_RATE)
        if span.start + length // 4 <= at <= span.end - length // 4:
            best = max(best or (False, -1.0, 0, 0), (before.text[-1] in _SENTENCE_ENDS, begins - paused, at, first))
    if best is None:
        return [span]
    *_, at, first = best
    halves = replace(span, end=at, last=first), replace(span, start=at, first=first)
    return [part for half in halves for part in parts_of(half, result, text, longest)]


def part_of(result: Result, places: Sequence[int]) -> Result:
    """Return a result of only the tokens at some places."""
    return replace(
        result,
        tokens=tuple(result.tokens[place] for place in places),
        log_probs=tuple(result.log_probs[place] for place in places),
        times=tuple(result.times[place] for place in places) if result.times else (),
    )


def words_verdict(result: Result, text: Text, first_timestamp: int, settings: ConfidenceSettings) -> ConfidenceVerdict:
    """Judge a result by its words: in a loop they come again, and their times do not. See `verdict`."""
    words = part_of(result, _text_places(result, first_timestamp))
    # How sure it is counts all that it says, times too.
    return verdict(replace(words, log_probs=result.log_probs), text.text(words.tokens), settings)


def without_word_loop(result: Result, first_timestamp: int, settings: ConfidenceSettings) -> Result:
    """Return a result up to the end of its loop's first copy, with the timestamps before it. See `without_loop`."""
    places = _text_places(result, first_timestamp)
    kept, _ = without_loop(part_of(result, places), settings)
    return part_of(result, range(places[len(kept) - 1] + 1))


def _text_places(result: Result, first_timestamp: int) -> list[int]:
    return [index for index, token in enumerate(result.tokens) if token < first_timestamp]
