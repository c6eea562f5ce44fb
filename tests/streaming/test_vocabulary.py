"""A list of phrases, whoever gives it: what it may be, and what is said about one that it may not be."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.job import NO_VOCABULARY, Phrase, Vocabulary
from streaming.vocabulary import MOST_PHRASES, VocabularyError, joined, read_lines, read_vocabulary


def vocabulary(*phrases: tuple[str, float]) -> Vocabulary:
    return Vocabulary(tuple(Phrase(*each) for each in phrases))


def test_phrases_with_and_without_weights() -> None:
    found = read_vocabulary(["Kallax", {"text": " the  Kallax\tlamp "}, {"text": "Thibault", "weight": 2}])
    assert found == vocabulary(("Kallax", 1.0), ("the Kallax lamp", 1.0), ("Thibault", 2.0))
    assert read_vocabulary([]) is NO_VOCABULARY
    assert read_vocabulary(["a", {"text": "a", "weight": 3.0}, "a"]) == vocabulary(("a", 3.0))


def test_lines_of_a_file() -> None:
    text = "\ufeff# names\nKallax\r\n\nThibault\t1.5\nC#\nno\tweight\n"
    assert read_lines(text) == vocabulary(("Kallax", 1.0), ("Thibault", 1.5), ("C#", 1.0), ("no weight", 1.0))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("Kallax", "a vocabulary must be a list of phrases, such as"),
        ({"text": "a"}, "must be a list"),
        (["a", 3], "phrase 2 must be a string, or text and weight"),
        ([{"txt": "a"}], "phrase 1 must be"),
        ([{"text": "a", "boost": 1}], "phrase 1 must be"),
        ([""], "phrase 1: a phrase may not be empty"),
        (["x" * 101], "at most 100 characters; 'xxxxxxxxxxxxxxxxxxxx'... is longer"),
        (["a\0b"], "without control characters"),
        (["\ud800"], "without control characters"),
        (["<|endoftext|>"], "without control characters or <|"),
        ([{"text": "a", "weight": 0}], "phrase 1: a phrase's weight must be above 0 and at most 10"),
        ([{"text": "a", "weight": 11}], "at most 10"),
        ([{"text": "a", "weight": float("nan")}], "at most 10"),
        ([{"text": "a", "weight": 10**400}], "at most 10"),
        ([{"text": "a", "weight": "1"}], "its weight must be a number"),
        ([{"text": "a", "weight": True}], "its weight must be a number"),
        (["a"] * (MOST_PHRASES + 1), "at most 1000 phrases"),
        ([str(number) for number in range(MOST_PHRASES + 1)], "at most 1000 phrases: leave some out"),
    ],
)
def test_what_cannot_be_used_is_named(value: object, says: str) -> None:
    with pytest.raises(VocabularyError, match=r"^[^\n]{1,300}$") as caught:
        read_vocabulary(value)
    assert says in str(caught.value)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)))
def test_whatever_json_says_is_a_vocabulary_or_a_sentence(value: Any) -> None:
    found = None
    with contextlib.suppress(VocabularyError):
        found = read_vocabulary(value)
    if found is not None:
        again = read_vocabulary([{"text": each.text, "weight": each.weight} for each in found.phrases])
        assert again == found
        json.dumps([each.text for each in found.phrases], ensure_ascii=False).encode()


def test_lists_together() -> None:
    one, other = vocabulary(("a", 1.0), ("b", 2.0)), vocabulary(("b", 1.0), ("c", 1.0))
    assert joined(one, NO_VOCABULARY, other) == vocabulary(("a", 1.0), ("b", 2.0), ("c", 1.0))
    assert joined(one, NO_VOCABULARY) is one
    assert joined() is NO_VOCABULARY
    many = vocabulary(*((str(number), 1.0) for number in range(MOST_PHRASES)))
    assert joined(one, many).phrases[:3] == (*one.phrases, Phrase("0"))
    assert len(joined(one, many).phrases) == MOST_PHRASES


def test_a_vocabulary_is_the_same_in_every_process() -> None:
    """Its hash is kept, and strings hash differently in each: where it is unpickled it must be found all the same."""
    mine = vocabulary(("Kallax", 1.0))
    script = (
        "import pickle, sys; from streaming.job import Phrase, Vocabulary\n"
        "theirs = pickle.loads(sys.stdin.buffer.read()); own = Vocabulary((Phrase('Kallax', 1.0),))\n"
        "assert {own: 1}[theirs] == 1"
    )
    subprocess.run([sys.executable, "-c", script], input=pickle.dumps(mine), check=True)
