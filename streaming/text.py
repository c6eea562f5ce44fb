"""Tokens to text and words.

Owns the tokenizer of a checkpoint, in one direction. Whisper's vocabularies are byte-level BPE: a token is some bytes,
not always whole characters, and a space belongs to the word that follows it. Text is therefore made from bytes, so that
the text of a longer sequence of tokens always begins with the text of a shorter one. Knows nothing of streams, or of
which tokens are likely.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Written without spaces: here every character stands as a word."""


@dataclass(frozen=True, slots=True)
class WordTokens:
    """A word and which tokens it is made of, as a range of indices into the sequence it came from."""

    text: str
    first: int
    last: int  # one past the word's last token


class Text:
    """A checkpoint's tokens as text; immutable, so all streams may share one.

    Args:
        tokenizer_file: a `tokenizer.json`.
        eot: the end-of-text token. It and all above it (language, task, timestamps) have no text.

    Raises:
        ValueError: the file is no tokenizer, or its tokens are not byte-level BPE.

    Attributes:
        eot: as above.
        first_timestamp: the token of 0 s, behind which those of later times follow; None where there are none.
        previous: the token in front of a text that was before; None where there is none.
    """

    def __init__(self, tokenizer_file: Path, eot: int) -> None:
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{tokenizer_file} is not a tokenizer: {error}") from error
        alphabet = _byte_of_letter()
        self.eot = eot
        self.first_timestamp = _first_timestamp(tokenizer)
        self.previous: int | None = tokenizer.token_to_id("<|startofprev|>")
        self._bytes: list[bytes] = []
        for token in range(eot):
            letters = tokenizer.id_to_token(token) or ""
            try:
                self._bytes.append(bytes(alphabet[letter] for letter in letters))
            except KeyError:
                raise ValueError(
                    f"token {token} of {tokenizer_file} is {letters!r}, which is not byte-level BPE"
                ) from None

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without leading white space.

        A character that is cut at the end is held back, and one that is broken inside becomes U+FFFD. If `b` begins
        with the tokens of `a`, `text(b)` begins with `text(a)`.
        """
        return _decode(b"".join(self._bytes_of(tokens))).lstrip()

    def split(self, tokens: Sequence[int], stable: int) -> tuple[str, str]:
        """Return the text of the first `stable` tokens, and how the text of all of them continues after it."""
        head = self.text(tokens[:stable])
        return head, self.text(tokens)[len(head) :]

    def words(self, tokens: Sequence[int], language: str | None = None) -> list[WordTokens]:
        """Return the words of `tokens`, in order; punctuation belongs to the word before it, special tokens to none."""
        every_character = language in UNSPACED_LANGUAGES
        words = []
        for first, last, data in self._groups(tokens, every_character):
            text = _decode(data).strip()
            if text:
                words.append(WordTokens(text, first, last))
        return words

    def word_boundary(self, tokens: Sequence[int], index: int, language: str | None = None) -> int:
        """Return the last place up to `index` where one word of `tokens` has ended and the next has not begun."""
        if index >= len(tokens):
            return len(tokens)
        return max((word.first for word in self.words(tokens, language) if word.first <= index), default=0)

    def last_signs(self, tokens: Sequence[int]) -> int:
        """Return where the punctuation at the very end of `tokens` begins; their number where there is none."""
        end = len(tokens)
        while end and self._is_sign(tokens[end - 1]):
            end -= 1
        return end

    def _is_sign(self, token: int) -> bool:
        try:
            text = b"".join(self._bytes_of([token])).decode().strip()
        except UnicodeDecodeError:
            return False  # a part of a character
        return bool(text) and all(unicodedata.category(letter).startswith("P") for letter in text)

    def _groups(self, tokens: Sequence[int], every_character: bool) -> Iterator[tuple[int, int, bytes]]:
        """(first index, one past the last, bytes) of each run of tokens that makes a word."""
        first, last, data = 0, 0, b""
        for index, token in enumerate(tokens):
            piece = self._bytes[token] if token < self.eot else b""
            if not piece:
                continue
            if data and (piece.startswith(b" ") or (every_character and _is_whole(data))):
                yield first, last, data
                data = b""
            if not data:
                first = index
            data += piece
            last = index + 1
        if data:
            yield first, last, data

    def _bytes_of(self, tokens: Sequence[int]) -> Iterator[bytes]:
        return (self._bytes[token] for token in tokens if token < self.eot)


def _first_timestamp(tokenizer: Tokenizer) -> int | None:
    """Return the token of 0 s. Tokenizers may leave the timestamps out, which follow upon the last of its tokens."""
    none: int | None = tokenizer.token_to_id("<|notimestamps|>")
    zero: int | None = tokenizer.token_to_id("<|0.00|>")
    return zero if none is None else none + 1


def _decode(data: bytes) -> str:
    # Not final: an incomplete character at the end is held back rather than replaced.
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def _is_whole(data: bytes) -> bool:
    """Whether no character is cut at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return not decoder.getstate()[0]


@cache
def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable letter (GPT-2).

    It is the byte itself where that is printable Latin-1; the others, in order, are the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
