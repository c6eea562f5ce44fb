"""Whether the service is alive, ready, and making progress.

Owns the canary, a small decode that runs when nothing else has run for a while, and the judgement of the engine's
progress, on which `/readyz` and the watchdog depend. Knows the clocks of the scheduler, and nothing of what is decoded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np

from daemon.common.metrics import Metrics
from daemon.core.scheduler import Kind, Scheduler
from streaming.job import SAMPLE_RATE, Job, Result

_log = logging.getLogger(__name__)


class Health:
    """Judges the progress of the engine, with the help of a canary.

    It is a client of the scheduler, like any stream. Its jobs are as urgent as partials.

    Args:
        scheduler: runs the canary.
        interval: seconds without a decode after which the canary is decoded.
        stall: seconds that a batch may take.
        metrics: count the canaries that failed.
        resting: returns whether the models were put away, or are being loaded again: nothing is decoded then.
        away: returns why there is no engine to decode anything, or None if there is one.
        elsewhere: whether other processes run batches, who watch for one that hangs: then it is the engine that hangs
            only if nothing else is decoded meanwhile.

    Attributes:
        warm: whether the service has started; the service sets it.
        first: set when the first canary came back.
        trouble: what is wrong with the latest canary; None if it was decoded.
        stopping: whether the service is shutting down; the service sets it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        interval: float,
        stall: float,
        metrics: Metrics,
        resting: Callable[[], bool] = lambda: False,
        away: Callable[[], str | None] = lambda: None,
        elsewhere: bool = False,
    ) -> None:
        self.warm = False
        self.first = asyncio.Event()
        self.trouble: str | None = None
        self.stopping = False
        self._scheduler = scheduler
        self._interval = interval
        self._stall = stall
        self._metrics = metrics
        self._asleep = resting
        self._away = away
        self._elsewhere = elsewhere
        self._rested = 0.0  # when it was last seen to rest (`time.monotonic`)
        self._due = False
        self._since = time.monotonic()
        # A faint hiss: the shape of a job, and nothing to find in it.
        noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
        self._audio = (0.001 * noise).astype(np.float32)

    def unready(self) -> str | None:
        """Return why no stream should be sent here, or None when ready."""
        if self.stopping:
            return "shutting down"
        if (trouble := self._away()) is not None:
            return trouble
        if not self.warm:
            return "warming up"
        if not self.getting_on:
            return f"nothing has been decoded for {self._silence():.0f} s"
        return None

    @property
    def getting_on(self) -> bool:
        """Whether the engine decodes: no batch takes too long, and something was decoded not too long ago."""
        if self._resting():
            self._rested = time.monotonic()
            return True
        since = self._scheduler.busy_since
        silence = self._silence()
        # A batch that loaded the models first has only worked since then.
        overdue = since is not None and time.monotonic() - max(since, self._rested) > self._stall
        hangs = overdue and not (self._elsewhere and silence <= self._stall)
        return not hangs and silence <= self._interval + self._stall

    def _resting(self) -> bool:
        """Return whether there is nothing that could decode."""
        return self._asleep() or self._away() is not None

    async def run(self) -> None:
        """Decode the canary at once, and then whenever nothing was decoded for the interval; until cancelled."""
        self._since = time.monotonic()
        self._scheduler.add(self, background=True)
        self._sing()
        while True:
            await asyncio.sleep(max(self._interval - self._silence(), self._interval / 10))
            if self._resting():
                self._rested = time.monotonic()
            elif self._silence() >= self._interval and (self._elsewhere or self._scheduler.busy_since is None):
                self._sing()

    def _sing(self) -> None:
        self._due = True
        self._scheduler.schedule(self)

    def _silence(self) -> float:
        """Return the seconds since something was decoded, since the models were loaded, or since `run` began."""
        return time.monotonic() - max(self._scheduler.decoded_at or self._since, self._rested)

    # --- a client of the scheduler ---------------------------------------------------------------------------------

    def pending(self) -> Kind | None:
        return "partial" if self._due else None

    def next_job(self) -> Job | None:
        self._due = False
        return Job(audio=self._audio)

    def receive_result(self, result: Result) -> None:
        self.first.set()
        self.trouble = result.error
        if result.error is not None:
            self._metrics.canary_failures.inc()
            _log.error("the canary decode failed: %s", result.error)

    def broke(self, error: Exception) -> None:
        _log.error("the canary stopped: %s", error)
