"""Tokens to text and words, with a real byte-level BPE."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from streaming.text import Text

SENTENCES = st.sampled_from(
    ["turn on the kitchen light", "café, naïve résumé", "日本語 を 話す", "\N{WAVING HAND SIGN} hello!", ""]
)


def encode(tokenizer: Tokenizer, sentence: str) -> list[int]:
    return list(tokenizer.encode(sentence, add_special_tokens=False).ids)


@given(sentence=st.one_of(SENTENCES, st.text(max_size=40)))
def test_text_is_what_was_encoded(text: Text, tokenizer: Tokenizer, sentence: str) -> None:
    assert text.text(encode(tokenizer, " " + sentence)) == (" " + sentence).lstrip()


@given(tokens=st.lists(st.integers(0, 340), max_size=30), cut=st.integers(0, 30))
def test_the_text_of_more_tokens_begins_with_the_text_of_fewer(text: Text, tokens: list[int], cut: int) -> None:
    head, tail = text.split(tokens, cut)
    assert head == text.text(tokens[:cut])
    assert head + tail == text.text(tokens)


def test_a_character_that_is_cut_is_held_back(text: Text, tokenizer: Tokenizer) -> None:
    tokens = [token for byte in "né".encode() for token in [_byte_token(tokenizer, byte)]]
    assert [text.text(tokens[:count]) for count in range(4)] == ["", "n", "n", "né"]


def test_broken_bytes_inside_are_marked_and_do_no_harm(text: Text, tokenizer: Tokenizer) -> None:
    tokens = [_byte_token(tokenizer, byte) for byte in b"a\xffb"]
    assert text.text(tokens) == "a\N{REPLACEMENT CHARACTER}b"


def test_special_tokens_have_no_text(text: Text, tokenizer: Tokenizer) -> None:
    word = encode(tokenizer, " light")
    assert text.text([text.eot, *word, text.eot + 2, *word]) == "light light"


def test_words_begin_at_spaces_and_keep_their_punctuation(text: Text, tokenizer: Tokenizer) -> None:
    tokens = encode(tokenizer, " turn off the lamp, please")
    words = text.words(tokens)
    assert [word.text for word in words] == ["turn", "off", "the", "lamp,", "please"]
    assert words[0].first == 0
    assert [word.last for word in words[:-1]] == [word.first for word in words[1:]]
    assert words[-1].last == len(tokens)
    for word in words:
        assert text.text(tokens[word.first : word.last]) == word.text


def test_words_know_their_tokens_around_special_ones(text: Text, tokenizer: Tokenizer) -> None:
    stop = encode(tokenizer, " stop")
    tokens = [text.eot + 2, *stop, text.eot + 2]
    assert [(word.text, word.first, word.last) for word in text.words(tokens)] == [("stop", 1, 1 + len(stop))]


def test_a_language_without_spaces_has_characters_for_words(text: Text, tokenizer: Tokenizer) -> None:
    tokens = [_byte_token(tokenizer, byte) for byte in "日本".encode()]
    assert [word.text for word in text.words(tokens, "ja")] == ["日", "本"]
    assert [word.text for word in text.words(tokens, "en")] == ["日本"]


def test_signs_at_the_end(text: Text, tokenizer: Tokenizer) -> None:
    for said, signs in (("stop the music", 0), ("stop the music!?", 2), ("stop, it", 0), ("...", 3), ("café", 0)):
        tokens = tokenizer.encode(said, add_special_tokens=False).ids
        assert text.text(tokens[text.last_signs(tokens) :]) == said[len(said) - signs :]
    assert text.last_signs([]) == 0
    assert text.last_signs([text.eot]) == 1


@given(sentence=SENTENCES, index=st.integers(0, 40))
def test_a_word_boundary_parts_no_word(text: Text, tokenizer: Tokenizer, sentence: str, index: int) -> None:
    tokens = encode(tokenizer, " " + sentence)
    boundary = text.word_boundary(tokens, index)
    assert boundary <= max(index, 0)
    assert boundary in {0, len(tokens), *(word.first for word in text.words(tokens))}
    both = [*text.words(tokens[:boundary]), *text.words(tokens[boundary:])]
    assert [word.text for word in both] == [word.text for word in text.words(tokens)]


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Text(path, 10)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    Tokenizer(WordLevel({"two words": 0}, unk_token="two words")).save(str(path))
    with pytest.raises(ValueError, match="not byte-level BPE"):
        Text(path, 1)


def _byte_token(tokenizer: Tokenizer, byte: int) -> int:
    """The token of one byte alone: the tokenizer's alphabet holds them all."""
    token = tokenizer.token_to_id(_letter(byte))
    assert token is not None
    return int(token)


def _letter(byte: int) -> str:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(0x100 + [b for b in range(256) if b not in printable].index(byte))
