"""What was measured: from a talk, and from what a reader had before them, to figures.

Pure: owns the definitions. Knows nothing of servers, protocols or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jiwer
import numpy as np

from bench.live import Spoken
from bench.peers.screen import Screen
from bench.word_errors import comparable


@dataclass(frozen=True, slots=True)
class Talk:
    """What one stream says.

    Attributes:
        pcm: 16-bit mono samples, 16 kHz.
        words: all that is said, with the ends of the words in seconds of the stream.
        ends: of each utterance, one past the place of its last word in `words`, ascending; none is empty.
        closed: seconds at which each utterance is over for one who waits for it to be: after its last sound.
    """

    pcm: bytes
    words: tuple[Spoken, ...] = ()
    ends: tuple[int, ...] = ()
    closed: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / 16000

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(slots=True)
class Figures:
    """What was measured of one or more streams, in seconds; infinite where it never came.

    Attributes:
        first: of the first word of each utterance, until it was shown.
        lags: of each word, until it was shown.
        finals: of each utterance, from the end of its last word until it was settled.
        never: words that were never shown.
        failures: why streams did not come to their end.
    """

    first: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    never: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, talk: Talk, screen: Screen) -> None:
        """Count one stream in."""
        if screen.failure:
            self.failures.append(screen.failure)
        shown = first_shown(talk, screen)
        never = len(talk.words) - len(shown)
        waited = [max(0.0, at - word.end) for at, word in zip([*shown, *[math.inf] * never], talk.words, strict=True)]
        self.first += [waited[begin] for begin in (0, *talk.ends[:-1])]
        self.lags += waited
        self.never += never
        self.finals += settled_after(talk, screen)


def first_shown(talk: Talk, screen: Screen) -> list[float]:
    """Return when each word of a talk was first covered by a text, as far as words ever were, in order."""
    known = [word.text for word in talk.words]
    found: list[float] = []
    for each in screen.shown:
        if len(found) == len(known):
            break
        now = covered(known, comparable()(each.whole).split())
        found += [each.at] * (now - len(found))
    return found


def covered(said: Sequence[str], text: Sequence[str]) -> int:
    """Return how many of the words of `said` a text covers: those of the beginning that has the least word errors.

    Of beginnings that fit as well as each other it is the longest, so a last word that is heard as another counts.
    """
    places = np.arange(len(said) + 1)
    row = places
    for word in text:
        other = np.asarray([known != word for known in said], np.int64)
        row = np.concatenate([row[:1] + 1, np.minimum(row[:-1] + other, row[1:] + 1)])
        # A word that is missing costs one more than the place before it: the running minimum without that slope.
        row = np.minimum.accumulate(row - places) + places
    return int(len(said) - np.argmin(row[::-1]))


def settled_after(talk: Talk, screen: Screen) -> list[float]:
    """Return how long after the end of each utterance its share of the text was settled, in seconds.

    The last text says how many words the share of each utterance has; then they are only counted, as what is settled
    does not change.
    """
    final = comparable()(screen.text).split()
    if not final:
        return [math.inf] * len(talk.ends)
    shares = _shares([word.text for word in talk.words], final)
    counts = [(each.at, len(comparable()(each.settled).split())) for each in screen.shown]
    waited = []
    for end in talk.ends:
        at = next((at for at, count in counts if count >= shares[end]), math.inf)
        waited.append(max(0.0, at - talk.words[end - 1].end))
    return waited


def _shares(said: Sequence[str], heard: Sequence[str]) -> list[int]:
    """How many words of `heard` belong to each beginning of `said`: `[len(said) + 1]`."""
    (chunks,) = jiwer.process_words([" ".join(said)], [" ".join(heard)]).alignments
    shares = [0] * (len(said) + 1)
    for chunk in chunks:
        for place in range(chunk.ref_start_idx, chunk.ref_end_idx):
            missing = chunk.type == "delete"
            shares[place + 1] = chunk.hyp_start_idx + (0 if missing else place - chunk.ref_start_idx + 1)
    return shares


def quantile(values: Sequence[float], share: float) -> float:
    """Return the least value that so large a share of the values does not exceed; infinite if there are none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.inf
