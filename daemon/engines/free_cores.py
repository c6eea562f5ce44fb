"""How many threads an engine may use now: as many as find a core of their own.

Owns the measurement of how busy the cores are. PyTorch's threads spin while they wait for one another, which is fastest
as long as each has a core. Where another program works on one of the cores, each wait lasts for as long as the system
lets that program run, and a pass of a small model has hundreds of waits: it takes many times as long as with one thread
less. Knows nothing of engines, and nothing of systems other than Linux: where nothing can be read, all cores count as
free.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

_STATISTICS = Path("/proc/stat")
_IDLE = (3, 4)
"""Of a core's times in that file: idle, and waiting for a disk. The last two are parts of the first."""
_COUNTED = 8
_LEAST_SECONDS = 0.5
"""Between two readings: they are told in hundredths of a second."""
_MOST_TAKEN = 0.5
"""Of a core, by others, for a thread to be well off there all the same."""


def busy_seconds() -> tuple[float, int]:
    """Return how busy the cores were that this process may use.

    Returns:
        The seconds of work so far, all cores together, and the number of cores.
    """
    mine = os.sched_getaffinity(0)
    try:
        lines = _STATISTICS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0, len(mine)
    ticks = os.sysconf("SC_CLK_TCK")
    times = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    busy = [
        sum(int(value) for place, value in enumerate(values[:_COUNTED]) if place not in _IDLE)
        for name, *values in times
        if int(name[3:]) in mine
    ]
    return sum(busy) / ticks, len(mine)


class FreeCores:
    """Measures how many cores are free.

    Args:
        busy: returns the seconds for which the cores have worked so far, for any program, and the number of cores.
        own: returns the seconds of that which were for this process.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        busy: Callable[[], tuple[float, int]] = busy_seconds,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._busy = busy
        self._own = own
        self._clock = clock
        self._free = math.inf
        self._look()

    def threads(self, most: int) -> int:
        """Return how many threads had a core to themselves of late, from 1 to `most`."""
        elapsed = self._clock() - self._looked
        if elapsed >= _LEAST_SECONDS:
            before = self._others
            cores = self._look()
            self._free = cores - (self._others - before) / elapsed
        return max(1, int(min(most, self._free + _MOST_TAKEN)))

    def _look(self) -> int:
        self._looked = self._clock()
        busy, cores = self._busy()
        self._others = busy - self._own()
        return cores
