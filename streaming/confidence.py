"""Whether to believe a result, and how much.

Owns word confidence, utterance confidence and the verdicts. Knows nothing of audio, of streams, or of what a session
does about a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streaming.job import Result, utterance_confidence

ConfidenceVerdict = Literal["ok", "silence", "repetition"]


@dataclass(frozen=True, slots=True)
class ConfidenceSettings:
    """The limits of the verdicts.

    Attributes:
        no_speech: from this probability of no speech on, a text whose confidence is below `doubtful` is silence. The
            two together are Whisper's own rule: either alone is wrong too often.
        doubtful: exp(-1), Whisper's limit of -1 on the average log-probability.
        floor: a text below this confidence is silence in any case: its tokens are guesses.
        loop_copies: a phrase that comes this many times in succession is a loop, if it has `loop_tokens` too.
        loop_tokens: the tokens of a loop, at least. "no, no, no, no" has fewer; the shortest loops that decoders fall
            into do not.
    """

    no_speech: float = 0.6
    doubtful: float = 0.37
    floor: float = 0.2
    loop_copies: int = 4
    loop_tokens: int = 12

    def __post_init__(self) -> None:
        for name in ("no_speech", "doubtful", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0..1, got {getattr(self, name)}")
        if self.loop_copies < 2:
            raise ValueError(f"loop_copies must be at least 2, got {self.loop_copies}")


@dataclass(frozen=True, slots=True)
class Loop:
    """A phrase that repeats; the last copy may be cut.

    Attributes:
        start: its first token.
        period: the tokens of a copy.
        end: one past its last token.
    """

    start: int
    period: int
    end: int

    @property
    def first_copy_end(self) -> int:
        return self.start + self.period


def verdict(result: Result, text: str, settings: ConfidenceSettings) -> ConfidenceVerdict:
    """Judge a result.

    Args:
        result: what the model heard.
        text: the text of its tokens.
        settings: the limits.

    Returns:
        "silence" when nothing was said: there is no text, or none worth believing; "repetition" when the decoder fell
        into a loop; "ok" otherwise.
    """
    confidence = utterance_confidence(result.log_probs)
    if not any(letter.isalnum() for letter in text):
        return "silence"
    if confidence < settings.floor:
        return "silence"
    if result.no_speech >= settings.no_speech and confidence < settings.doubtful:
        return "silence"
    return "repetition" if find_loop(result.tokens, settings) else "ok"


def find_loop(tokens: Sequence[int], settings: ConfidenceSettings) -> Loop | None:
    """Find the longest loop of the tokens.

    Whisper looks for loops by how well the text compresses, which is inexact on short text: the compressor's header
    alone is a sentence long. The loop of a greedy decoder is exact, token for token, so it can be found directly: for
    each period, the longest stretch in which every token equals the one a period before it.
    """
    sequence = np.asarray(tokens)
    best: Loop | None = None
    for period in range(1, len(sequence) // settings.loop_copies + 1):
        start, matches = _longest_run(sequence[period:] == sequence[:-period])
        length = matches + period
        if length < max(settings.loop_copies * period, settings.loop_tokens):
            continue
        # A stretch of period 2 has period 4 too: the first found, which is the shortest, stands.
        if best is None or length > best.end - best.start:
            best = Loop(start, period, start + length)
    return best


def without_loop(result: Result, settings: ConfidenceSettings) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the tokens and log-probabilities up to the end of the loop's first copy.

    What comes before a loop, and its phrase once, was heard. The copies were not, nor was what follows them: a decoder
    that comes out of a loop at its end has lost its place in the audio.
    """
    loop = find_loop(result.tokens, settings)
    end = loop.first_copy_end if loop else len(result.tokens)
    return result.tokens[:end], result.log_probs[:end]


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest stretch of True; (0, 0) where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    if not edges.size:
        return 0, 0
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(starts[longest]), int(lengths[longest])


def word_confidence(log_probs: Sequence[float]) -> float:
    """Return the geometric mean of a word's token probabilities, 0 to 1.

    So long words are not doubted for their length.
    """
    return utterance_confidence(tuple(log_probs))
