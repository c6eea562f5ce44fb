"""What clients only advise: how prompts and keywords become phrases, and what is said of the rest."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.dialects.advice import (
    LONGEST_PROMPT,
    WITHOUT_EFFECT,
    AdviceLog,
    names_in,
    read_keywords,
    without_effect,
)
from streaming.vocabulary import MOST_PHRASES, VocabularyError


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("Kallax, Björn", ["Kallax", "Björn"]),
        ("Kallax;Björn Borg ;\n Thibault", ["Kallax", "Björn Borg", "Thibault"]),
        ("Kallax\r\nBjörn\r\n", ["Kallax", "Björn"]),
        ("Kallax", ["Kallax"]),
        ("Living  Room Lamp", ["Living Room Lamp"]),
        ("Kallax, Björn.", ["Kallax", "Björn"]),
        ("DALL·E, B.R.I.C.K., Q.U.A.R.T.Z.", ["DALL·E", "B.R.I.C.K.", "Q.U.A.R.T.Z."]),
        ("Kallax, Kallax", ["Kallax"]),
        ("one two three four, five", ["one two three four", "five"]),
        ("東京、スカイツリー", ["東京", "スカイツリー"]),
    ],
)
def test_a_prompt_that_lists_names(prompt: str, names: list[str]) -> None:
    found = names_in(prompt)
    assert found is not None
    assert [phrase.text for phrase in found.phrases] == names


@pytest.mark.parametrize(
    "prompt",
    [
        "The following conversation is a smart home user talking to Home Assistant.",
        "Write down everything exactly",
        "turn on the light",
        "Be exact.",
        "Kallax, a shelf that is sold in Sweden",
        "以下是普通话的句子。",
        "これは台所の照明をつけるための会話です",
        "",
        " ,; ",
        ".",
        "..., ...",
        "<|endoftext|>, Kallax",
        "x" * 101,
        ",".join(f"n{number}" for number in range(MOST_PHRASES + 1)),
    ],
)
def test_a_prompt_that_is_no_list(prompt: str) -> None:
    assert names_in(prompt) is None


@given(st.text(max_size=LONGEST_PROMPT))
def test_any_prompt_is_a_list_or_none(prompt: str) -> None:
    found = names_in(prompt)
    assert found is None or found.phrases


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        (["Kallax", 5], "keyword 2 must be a string on one line"),
        (["<Kallax"], "keyword 1 must be a string on one line, without < and >"),
        (["a\rb"], "on one line"),
        (["a\n"], "on one line"),
        ([" "], "keyword 1: a phrase may not be empty"),
        (["x" * 101], "keyword 1: a phrase may have at most 100 characters"),
        (["\x00"], "keyword 1: a phrase must be text that can be spoken"),
        ([f"n{number}" for number in range(MOST_PHRASES + 1)], f"at most {MOST_PHRASES} phrases"),
    ],
)
def test_keywords_that_cannot_be_used(keywords: list[Any], why: str) -> None:
    with pytest.raises(VocabularyError, match=why):
        read_keywords(keywords)


def test_keywords() -> None:
    assert [phrase.text for phrase in read_keywords(["Kallax", "Floor  Lamp", "Kallax"]).phrases] == [
        "Kallax", "Floor Lamp",
    ]  # fmt: skip
    assert read_keywords([]).phrases == ()


def test_the_log_has_each_field_once_for_each_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daemon.dialects.advice")
    one, other = AdviceLog("openai"), AdviceLog("openai")
    one.say(["delay", "prompt"])
    one.say(["prompt"])
    one.say(["temperature", "delay"])
    one.say([])
    other.say(["prompt"])
    assert [record.getMessage().partition(": taken without effect: ")[2] for record in caplog.records] == [
        "delay, prompt", "temperature", "prompt",
    ]  # fmt: skip


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_each_field_says_what_holds_instead(field: str) -> None:
    assert without_effect(field).startswith(f"{field} has no effect here: ")
