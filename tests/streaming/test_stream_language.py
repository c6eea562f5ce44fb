"""When the language of a stream is held, and when it is detected again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streaming.job import SAMPLE_RATE
from streaming.stream_language import ENOUGH, HELD, StreamLanguage

CODES = st.sampled_from(["en", "de", None])


def samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def test_too_little_speech_leaves_it_open_and_enough_decides_it() -> None:
    language = StreamLanguage(None)
    language.heard("de", samples(ENOUGH) - 1)
    assert language.code is None
    language.heard("en", samples(ENOUGH))
    language.heard("de", samples(ENOUGH))
    assert language.code == "en"


def test_it_is_held_through_pauses_and_not_beyond_a_minute_of_silence() -> None:
    language = StreamLanguage(None)
    language.speech_began(0)
    language.heard("en", samples(3))
    language.speech_ended(samples(3))
    language.speech_began(samples(3 + HELD))
    assert language.code == "en"
    language.speech_ended(samples(4 + HELD))
    language.speech_began(samples(4 + 2 * HELD) + 1)
    assert language.code is None


@given(st.lists(st.tuples(CODES, st.integers(0, 2**32))))
def test_what_was_given_stands_whatever_is_heard(heard: list[tuple[str | None, int]]) -> None:
    language = StreamLanguage("fr")
    for code, count in heard:
        language.speech_began(count)
        language.heard(code, count)
        language.speech_ended(count)
        assert language.code == "fr"
