"""One text out of several finals, told piece by piece to clients that can only be told more of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.dialects.transcript import Transcript

WORDS = st.lists(st.sampled_from(["on", "off", "the", "light."]), max_size=4).map(" ".join)


def test_what_is_stable_is_told_once() -> None:
    said = Transcript()
    assert [said.partial(""), said.partial("Turn"), said.partial("Turn"), said.partial("Turn on")] == [
        "", "Turn", "", " on",
    ]  # fmt: skip
    assert said.text == ""
    assert said.final(" Turn on. ") == "."
    assert [said.partial("The"), said.final("The light.")] == [" The", " light."]
    assert said.text == "Turn on. The light."


def test_after_a_final_that_changes_it_no_more_is_told() -> None:
    said = Transcript()
    assert said.partial("Turn of") == "Turn of"
    assert said.final("Turn on.") == ""
    assert said.partial("The light") == said.final("The light.") == ""
    assert said.text == "Turn on. The light."


def test_a_shorter_partial_takes_nothing_back() -> None:
    said = Transcript()
    assert [said.partial("Turn on"), said.partial("Turn"), said.partial("Turn on the")] == ["Turn on", "", " the"]


def test_a_final_without_words_adds_nothing() -> None:
    said = Transcript()
    assert [said.final(" "), said.final("On."), said.final(""), said.final("Off.")] == ["", "On.", "", " Off."]


@given(st.lists(st.tuples(st.lists(WORDS, max_size=3), WORDS), max_size=5))
def test_what_was_told_is_the_text_or_the_beginning_of_another(utterances: list[tuple[list[str], str]]) -> None:
    said, told = Transcript(), ""
    for partials, final in utterances:
        told += "".join([*map(said.partial, partials), said.final(final)])
        changed = not said.text.startswith(told)
        assert changed or told == said.text
    assert said.text == " ".join(filter(None, (final for _, final in utterances)))
