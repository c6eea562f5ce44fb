"""The stable prefix and the tail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from streaming.hypothesis import Hypothesis
from streaming.text import Text


def agreement(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the longest common prefix: what a `Result.accepted` is."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def hear(hypothesis: Hypothesis, tokens: list[int]) -> tuple[str, str]:
    new = tuple(tokens)
    hypothesis.update(new, agreement(hypothesis.latest, new))
    return hypothesis.shown()


def encode(tokenizer: Tokenizer, sentence: str) -> list[int]:
    return list(tokenizer.encode(" " + sentence, add_special_tokens=False).ids)


# Few tokens, so that hypotheses agree, disagree and come back; all tokens, so that words and characters are cut.
heard = st.lists(
    st.one_of(
        st.lists(st.integers(0, 340), max_size=6),
        st.lists(st.sampled_from([5, 90, 200, 256, 260, 280, 300]), max_size=12),
    ),
    max_size=10,
)


@given(heard=heard)
def test_stable_text_never_shrinks(text: Text, heard: list[list[int]]) -> None:
    hypothesis, before = Hypothesis(text), ""
    for tokens in heard:
        stable, tail = hear(hypothesis, tokens)
        assert stable.startswith(before)
        assert stable + tail == text.text(hypothesis.stable + hypothesis.tail)
        before = stable


@given(heard=heard)
def test_until_it_is_contradicted_the_whole_hypothesis_is_shown(text: Text, heard: list[list[int]]) -> None:
    hypothesis = Hypothesis(text)
    for tokens in heard:
        stable, tail = hear(hypothesis, tokens)
        if tuple(tokens[: len(hypothesis.stable)]) == hypothesis.stable:
            assert stable + tail == text.text(tokens)


def test_what_two_in_a_row_agree_on_is_stable(text: Text, tokenizer: Tokenizer) -> None:
    hypothesis = Hypothesis(text)
    assert hear(hypothesis, encode(tokenizer, "turn on")) == ("", "turn on")
    assert hear(hypothesis, encode(tokenizer, "turn on the light")) == ("turn on", " the light")
    assert hear(hypothesis, encode(tokenizer, "turn on the lamp")) == ("turn on the", " lamp")


def test_a_full_stop_at_the_end_is_not_stable_before_more_follows(text: Text, tokenizer: Tokenizer) -> None:
    hypothesis = Hypothesis(text)
    hear(hypothesis, encode(tokenizer, "turn on."))
    assert hear(hypothesis, encode(tokenizer, "turn on.")) == ("turn on", ".")
    assert hear(hypothesis, encode(tokenizer, "turn on the light.")) == ("turn on", " the light.")
    hear(hypothesis, encode(tokenizer, "turn on the light. stop"))
    assert hear(hypothesis, encode(tokenizer, "turn on the light. stop?!")) == ("turn on the light.", " stop?!")


def test_half_a_word_is_not_stable(text: Text, tokenizer: Tokenizer) -> None:
    hypothesis = Hypothesis(text)
    kit = encode(tokenizer, "the kit")
    hear(hypothesis, kit)
    assert hear(hypothesis, [*kit, *encode(tokenizer, "n")[1:]]) == ("the", " kitn")


def test_what_is_taken_back_stays_as_it_was_shown_and_the_rest_goes_on(text: Text, tokenizer: Tokenizer) -> None:
    hypothesis = Hypothesis(text)
    for sentence in ("turn of the", "turn of the"):
        hear(hypothesis, encode(tokenizer, sentence))
    assert hear(hypothesis, encode(tokenizer, "turn off the lamp")) == ("turn of the", " lamp")
    assert hear(hypothesis, encode(tokenizer, "turn off the lamp please")) == ("turn of the lamp", " please")


def test_a_hypothesis_that_shrinks_leaves_what_is_stable(text: Text, tokenizer: Tokenizer) -> None:
    hypothesis = Hypothesis(text)
    for sentence in ("stop the music", "stop the music", "stop"):
        shown = hear(hypothesis, encode(tokenizer, sentence))
    assert shown == ("stop the music", "")
