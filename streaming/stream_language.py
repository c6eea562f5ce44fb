"""The language of one stream, once it is known.

Owns what is held of what a multilingual model detected: asked anew of each partial, it would cost a pass each time, and
a text could turn into another language in its middle. It is held from the first result that heard enough of somebody,
and let go of after a minute without speech, as the next who speaks may be somebody else. Where the language was given,
there is nothing to hold. Knows nothing of models, and reads no clock: places are samples of the stream.
"""

from __future__ import annotations

from streaming.job import SAMPLE_RATE

ENOUGH = 2.0
"""Seconds of an utterance by which its language is known: of less, a model often takes it for another."""

HELD = 60.0
"""Seconds without speech after which it is detected again."""


class StreamLanguage:
    """Which language a stream is in.

    Args:
        given: the code that its client gave; None for what is detected.

    Attributes:
        code: of the language; None while it is to be detected.
    """

    def __init__(self, given: str | None) -> None:
        self.code = given
        self._given = given
        self._silent_from = 0

    def heard(self, language: str | None, samples: int) -> None:
        """Take what a believed result found in so many samples of an utterance."""
        if self.code is None and samples >= ENOUGH * SAMPLE_RATE:
            self.code = language

    def speech_began(self, at: int) -> None:
        if at - self._silent_from > HELD * SAMPLE_RATE:
            self.code = self._given

    def speech_ended(self, at: int) -> None:
        self._silent_from = at
