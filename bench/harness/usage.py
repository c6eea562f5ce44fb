"""What a process uses, as the kernel says.

Owns reading it. Knows nothing of what the process is.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses at one moment.

    Attributes:
        rss: MiB.
        descriptors: how many are open.
        threads: how many there are.
        cpu: seconds of a core, since it began.
    """

    rss: float
    descriptors: int
    threads: int
    cpu: float


def usage(pid: int) -> Usage:
    process = psutil.Process(pid)
    cpu = process.cpu_times()
    return Usage(process.memory_info().rss / _MIB, process.num_fds(), process.num_threads(), cpu.user + cpu.system)


def proportional(pid: int) -> float:
    """Return the PSS of a process in MiB, which takes the kernel milliseconds to add up."""
    return float(psutil.Process(pid).memory_full_info().pss / _MIB)
