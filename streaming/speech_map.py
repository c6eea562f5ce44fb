"""Where there is speech in the audio of one stream that waits to be transcribed.

Owns which of the last frames were voiced, and how loud they were, by absolute sample offset. Its memory is limited to
what its reader asks it to keep. Knows neither samples nor models.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from streaming.audio import FRAME
from streaming.job import SAMPLE_RATE
from streaming.segment import SegmentSettings


class SpeechMap:
    """Frames in, places out.

    Args:
        settings: from which probability a frame is voiced, and how much speech is more than a click.

    Attributes:
        judged: samples so far, in whole frames.
        voiced: how many of them were speech.
    """

    def __init__(self, settings: SegmentSettings) -> None:
        self.judged = 0
        self.voiced = 0
        self._settings = settings
        self._onset = max(FRAME, round(settings.onset * SAMPLE_RATE))
        self._frames: deque[tuple[bool, float]] = deque()  # voiced, and level
        self._origin = 0  # of the oldest frame that is kept
        self._goes_on = False  # whether the frame before it was voiced

    def push(self, probability: float, level: float) -> None:
        """Take one more frame.

        Args:
            probability: of speech, 0 to 1.
            level: the mean square of the samples.
        """
        within = bool(self._frames) and self._frames[-1][0]
        voiced = probability >= (self._settings.release if within else self._settings.threshold)
        self._frames.append((voiced, level))
        self.judged += FRAME
        self.voiced += FRAME if voiced else 0

    def forget_before(self, offset: int) -> None:
        """Drop the frames that end before `offset`."""
        while self._frames and self._origin + FRAME <= offset:
            self._goes_on = self._frames.popleft()[0]
            self._origin += FRAME

    def first(self, start: int, *, ended: bool) -> int | None:
        """Return where speech begins, at `start` or after it; None if there is none.

        Args:
            start: the place.
            ended: whether no more frames are looked for. Otherwise what is voiced up to the newest may become speech,
                and counts.
        """
        run, speaks = max(start, self._origin), self._goes_on and start < self._origin + FRAME
        for end, voiced in self._within(start, self.judged):
            if not voiced:
                run, speaks = end, False
            elif speaks or end - run >= self._onset or (end == self.judged and not ended):
                return run
        return None

    def last(self, start: int, end: int) -> int:
        """Return where speech ends between two places; `start` if there is none."""
        ends = [at for at, voiced in self._within(start, end) if voiced]
        return min(ends[-1], end) if ends else start

    def amount(self, start: int, end: int) -> int:
        """Return the samples of speech between two places, to a frame."""
        return sum(FRAME for _, voiced in self._within(start, end) if voiced)

    def quietest(self, start: int, end: int) -> int:
        """Return the place between two others, one of which it is where no frame fits, with the lowest level around it.

        The level is that of three frames, as where a long segment is cut; the latest of equals.
        """
        first, last = -(-(start - self._origin) // FRAME), (end - self._origin) // FRAME
        levels = [level for _, level in islice(self._frames, max(0, first - 1), last + 2)]
        base = max(0, first - 1)
        inner = range(1, len(levels) - 1)
        places = [each for each in inner if first <= each + base <= last]
        if not places:
            return end
        best = min(reversed(places), key=lambda each: levels[each - 1] + levels[each] + levels[each + 1])
        return self._origin + (best + base) * FRAME

    def _within(self, start: int, end: int) -> list[tuple[int, bool]]:
        """(end, voiced) of each frame that lies between two places, in part or whole."""
        first = max(0, (start - self._origin) // FRAME)
        last = -(-(end - self._origin) // FRAME)
        frames = islice(self._frames, first, max(first, last))
        return [(self._origin + (first + index + 1) * FRAME, voiced) for index, (voiced, _) in enumerate(frames)]
