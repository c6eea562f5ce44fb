"""The grammar: everything it says can be spoken, spelled and read again."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.synthesis.grammar import SLOTS, TEMPLATES, expand, normalise, sentences, spoken_number, spoken_ordinal


@given(st.integers(0, 2**31))
def test_every_sentence_is_in_the_style_that_it_teaches(seed: int) -> None:
    for sentence in islice(sentences(seed), 30):
        assert sentence == normalise(sentence)
        assert re.fullmatch(r"[a-z' ]+", sentence)


def test_every_template_and_slot_can_be_filled() -> None:
    import random

    rng = random.Random(0)
    for _, template in TEMPLATES:
        assert "{" not in expand(template, rng)
    phrases = [part for slot in SLOTS.values() if not callable(slot) for part in slot]
    texts = [*phrases, *(template for _, template in TEMPLATES)]
    assert {name for name in SLOTS if any(f"{{{name}}}" in text for text in texts)} == set(SLOTS)


def test_sentences_are_reproducible() -> None:
    assert list(islice(sentences(5), 50)) == list(islice(sentences(5), 50))
    assert list(islice(sentences(5), 50)) != list(islice(sentences(6), 50))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (212, "two hundred twelve"),
        (2700, "two thousand seven hundred"),
    ],
)
def test_numbers(value: int, words: str) -> None:
    assert spoken_number(value) == words


def test_ordinals() -> None:
    assert [spoken_ordinal(day) for day in (1, 12, 20, 21, 30, 31)] == [
        "first", "twelfth", "twentieth", "twenty first", "thirtieth", "thirty first",
    ]  # fmt: skip


@given(st.integers(0, 999_999), st.integers(0, 999_999))
def test_different_numbers_are_said_differently(one: int, other: int) -> None:
    assert (spoken_number(one) == spoken_number(other)) == (one == other)


def test_normalising_keeps_words_and_apostrophes() -> None:
    assert normalise("What\u2019s  the Time, Mr. Wolf?") == "what's the time mr wolf"
