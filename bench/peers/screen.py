"""What a reader of one stream has before them, and since when.

Owns the writing down. Knows nothing of protocols, nor of what was said.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.harness.clients import Pacer


@dataclass(frozen=True, slots=True)
class Shown:
    """What is there from one moment on.

    Attributes:
        at: seconds since the stream began.
        settled: the text that will not change any more.
        whole: the same, and what may still change.
    """

    at: float
    settled: str
    whole: str


@dataclass(slots=True)
class Screen:
    """A reader's screen.

    Attributes:
        shown: every text that was there, in order; what came again unchanged is not noted.
        failure: why the stream did not come to its end; empty if it did.
    """

    shown: list[Shown] = field(default_factory=list)
    failure: str = ""
    _began: float = 0.0

    async def speak(self, pcm: bytes, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Play 16-bit mono samples at the pace of speech; the stream's time begins here.

        Args:
            pcm: the samples, 16 kHz.
            send: called with each frame when a microphone would have heard it.
        """
        self._began = time.monotonic()
        await Pacer(send).say(pcm)

    def show(self, settled: str, tail: str = "") -> None:
        """Note what is there now.

        Args:
            settled: all of the text that will not change any more.
            tail: what may still change, behind it.
        """
        now = settled.strip(), f"{settled} {tail}".strip()
        if now != ((self.shown[-1].settled, self.shown[-1].whole) if self.shown else ("", "")):
            self.shown.append(Shown(time.monotonic() - self._began, *now))

    def end(self) -> None:
        """Note that the stream is over: what is there will not change any more."""
        self.show(self.text)

    @property
    def text(self) -> str:
        return self.shown[-1].whole if self.shown else ""
