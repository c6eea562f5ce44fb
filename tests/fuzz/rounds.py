"""How a target is attacked: in rounds of examples, each with a time that it must end in, and memory that must not grow.

Owns the loop, the judgement on time and memory, and nothing of what is attacked.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given
from hypothesis.strategies import SearchStrategy

ROUND_TIMEOUT = 300.0
"""Seconds after which a round hangs: all stacks are printed, and the process ends."""

_WARM_UP = 2  # rounds: caches fill
_MOST_GROWTH = 64.0  # MiB after the warm-up


@dataclass(frozen=True)
class Target:
    """examples: of inputs. attack: one of them; it raises if something is wrong. open, close: around a round.

    size: examples in a round.
    """

    name: str
    examples: SearchStrategy[Any]
    attack: Callable[[Any], None]
    size: int = 200
    open: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


class GrowthError(AssertionError):
    """Memory that is not given back."""


@dataclass(frozen=True)
class Tally:
    """What was tried. before, after: MiB of memory, once caches were full and at the end."""

    rounds: int
    examples: int
    seconds: float
    before: float
    after: float


def attack(target: Target, examples: int, seed: int) -> int:
    """One round; how many examples were tried. An input that fails is made small, and shown."""
    tried = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(target.examples)
    def once(example: Any) -> None:
        nonlocal tried
        tried += 1
        target.attack(example)

    target.open()
    try:
        once()
    finally:
        target.close()
    return tried


def _say(line: str) -> None:
    print(line, flush=True)


def attack_for(target: Target, minutes: float, say: Callable[[str], None] = _say) -> Tally:
    """Rounds until the time is up.

    Raises:
        GrowthError: memory grew from round to round. And whatever an attack raises.
    """
    began, rounds, examples, floor, here = time.monotonic(), 0, 0, 0.0, 0.0
    while time.monotonic() < began + 60 * minutes:
        seed = random.SystemRandom().randrange(2**32)
        faulthandler.dump_traceback_later(ROUND_TIMEOUT, exit=True)
        try:
            examples += attack(target, target.size, seed)
        finally:
            faulthandler.cancel_dump_traceback_later()
        rounds += 1
        gc.collect()
        here = resident()
        floor = here if rounds <= _WARM_UP else floor
        say(f"{target.name}: round {rounds}, seed {seed}, {here:.0f} MiB")
        if here > floor + _MOST_GROWTH:
            raise GrowthError(f"{target.name}: from {floor:.0f} to {here:.0f} MiB in {rounds} rounds")
    return Tally(rounds, examples, time.monotonic() - began, floor, here)


def resident() -> float:
    """MiB of this process in memory (proc(5))."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
