"""The recent past of one stream: its last samples by absolute offset, and when each frame of them arrived.

Owns the memory of a stream, which is limited to what its reader asks it to keep. Knows nothing of speech.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np

from streaming.audio import FRAME
from streaming.job import Waveform


class RecentAudio:
    """Samples in, whole frames out, and any stretch that is kept on request.

    Attributes:
        received: samples so far.
    """

    def __init__(self) -> None:
        self.received = 0
        self._frames: deque[Waveform] = deque()  # whole frames, the oldest first
        self._arrivals: deque[float] = deque()  # of each frame's last sample
        self._origin = 0  # offset of the oldest frame
        self._rest = np.empty(0, np.float32)  # of the frame that is not complete yet
        self._newest = 0.0

    def append(self, samples: Waveform, now: float) -> list[Waveform]:
        """Keep samples that arrived at `now`, and return the frames that they completed, in order."""
        self._newest = now
        data = np.concatenate([self._rest, samples])
        whole = len(data) - len(data) % FRAME
        self._rest = data[whole:].copy()
        self.received += len(samples)
        # Copies: a frame that is kept must not keep a whole message alive, nor change with its sender's
        # buffer.
        frames = [data[at : at + FRAME].copy() for at in range(0, whole, FRAME)]
        self._frames.extend(frames)
        self._arrivals.extend([now] * len(frames))
        return frames

    def slice(self, start: int, end: int) -> Waveform:
        """Return a copy of the samples from `start` up to `end`.

        Raises:
            IndexError: they are forgotten, or have not come yet.
        """
        if not self._origin <= start <= end <= self.received:
            raise IndexError(f"samples {start}..{end} are not kept; kept are {self._origin}..{self.received}")
        first, last = (start - self._origin) // FRAME, -(-(end - self._origin) // FRAME)
        frames = islice(self._frames, first, last)
        skip = start - self._origin - first * FRAME
        return np.concatenate([*frames, self._rest])[skip : skip + end - start].copy()

    def arrival(self, offset: int) -> float:
        """Return when the sample before `offset` arrived, to a frame, by the clock reading that came with it.

        An offset from before what is kept gets the oldest arrival that is kept.
        """
        frame = max(0, (offset - 1 - self._origin) // FRAME)
        return self._arrivals[frame] if frame < len(self._arrivals) else self._newest

    def forget_before(self, offset: int) -> None:
        """Drop the frames that end before `offset`."""
        while self._frames and self._origin + FRAME <= offset:
            self._frames.popleft()
            self._arrivals.popleft()
            self._origin += FRAME
