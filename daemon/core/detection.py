"""Voice detection of all streams, in one step: whoever has frames waiting shares a pass over the network's weights.

Owns which channels wait, and when they are looked at: at once where nobody was looked at lately, and otherwise every
few milliseconds, so that the more streams there are, the more of them share a step. Knows nothing of what a channel
makes of a probability.

A channel that must know at once (it is flushed or stopped) looks at its own frames first, and leaves the row.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from streaming.job import Waveform
from streaming.vad import Detector, judge

_log = logging.getLogger(__name__)

_EVERY = 0.01
"""Seconds from one look to the next: a sixtieth of the silence that closes an utterance."""

_AT_MOST_EVERY = 0.04
"""Seconds, where looks take long: the more frames wait, the less each of them costs."""

_SHARE = 4
"""How many times as long as a look takes it is until the next, within these bounds."""

_AT_PACE = 4
"""Steps of a look after which nobody waits who sends at the pace of speech. Whoever sends faster need not be slowed."""

_TOGETHER = 64
"""Channels in one step: a few milliseconds."""


class DetectionClient(Protocol):
    """A channel, as voice detection sees it. It is called in the event loop."""

    @property
    def detector(self) -> Detector: ...

    def next_frame(self) -> Waveform | None:
        """Return the next frame that was not looked at yet, and take it from those that wait; None if none does."""

    def judged(self, frame: Waveform, probability: float) -> None:
        """Take the probability that the frame holds speech."""

    def broke(self, error: Exception) -> None:
        """Note that its frame could not be looked at, which is a fault of the service."""


class SpeechDetection:
    """Looks at the frames of all channels."""

    def __init__(self) -> None:
        self._waiting: dict[DetectionClient, None] = {}  # in the order in which they came
        self._work = asyncio.Event()

    def add(self, client: DetectionClient) -> None:
        """Let a client's frames be looked at soon. It may wait already."""
        self._waiting[client] = None
        self._work.set()

    def remove(self, client: DetectionClient) -> None:
        self._waiting.pop(client, None)

    async def run(self) -> None:
        """Look at frames until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            began, steps, spent = time.monotonic(), 0, 0.0
            while self._waiting:
                looked = time.monotonic()
                self._step()
                spent += time.monotonic() - looked
                steps += 1
                await asyncio.sleep(0)
            if steps <= _AT_PACE:
                every = min(max(_EVERY, _SHARE * spent), _AT_MOST_EVERY)
                await asyncio.sleep(max(0.0, began + every - time.monotonic()))

    def _step(self) -> None:
        """Look at one frame of each of those that have waited longest."""
        clients, frames = [], []
        for client in list(self._waiting)[:_TOGETHER]:
            del self._waiting[client]
            if (frame := client.next_frame()) is not None:
                clients.append(client)
                frames.append(frame)
                self._waiting[client] = None  # behind the others: it may have more
        if not clients:
            return
        for client, frame, probability in zip(clients, frames, self._judged(clients, frames), strict=True):
            if probability is not None:
                self._tell(client, frame, probability)

    def _tell(self, client: DetectionClient, frame: Waveform, probability: float) -> None:
        try:
            client.judged(frame, probability)
        except Exception as error:
            self._end(client, error)

    def _end(self, client: DetectionClient, error: Exception) -> None:
        """Give up a client, and nobody else."""
        _log.error("voice detection of a stream failed", exc_info=error)
        self.remove(client)
        client.broke(error)

    def _judged(self, clients: Sequence[DetectionClient], frames: Sequence[Waveform]) -> list[float | None]:
        """Return the probabilities; None for a client whose frame could not be judged, and which has been told."""
        try:
            return list(judge([client.detector for client in clients], frames))
        except Exception as error:
            if len(clients) > 1:  # one's fault is nobody else's
                pairs = zip(clients, frames, strict=True)
                return [found for client, frame in pairs for found in self._judged([client], [frame])]
            self._end(clients[0], error)
            return [None]
