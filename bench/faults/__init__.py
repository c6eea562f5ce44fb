"""What clients, engines and machines do to a service, tried on a real `whisperd run`, and what was lost: a table.

Owns the list of the faults, how often each is tried or how long it lasts, and the table. What each does is in the file
of those who do it: `clients.py`, `engine.py`, `machine.py`, `attacks.py`. `tests/bench/test_faults.py` does the same, a
little.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from bench.faults import attacks, clients, engine, machine
from bench.faults.service import Outcome, running
from bench.harness.daemon import Daemon
from bench.table import circumstances, table

Fault = Callable[[Path, int], Awaitable[Outcome]]
"""In an empty folder, so often."""


def on(
    act: Callable[[Daemon, int], Awaitable[Outcome]], settings: dict[str, Any] | None = None, trouble: str = ""
) -> Fault:
    """Make a fault of `act`: it gets a service of its own.

    Args:
        act: what is done to the service, so many times.
        settings: those that differ from the usual ones.
        trouble: see `served.py`.

    Returns:
        The fault.
    """

    async def fault(folder: Path, times: int) -> Outcome:
        with running(folder, settings, trouble) as service:
            return await act(service, times)

    return fault


FAULTS: dict[str, tuple[Fault, int]] = {
    "gone in mid-word": (on(clients.vanish), 50),
    "reset in mid-word, and resumed": (on(clients.dropped), 20),
    "half-open, and resumed": (on(clients.fallen_silent), 20),
    "stops reading its own stream": (on(clients.stalled), 20),
    "one byte in a message": (on(clients.trickle), 1),
    "many times the pace of speech": (on(clients.hurry), 16),
    "garbage": (on(clients.garbage), 100),
    "connect and leave": (on(clients.come_and_go), 5000),
    "half of a handshake": (on(clients.half_open), 100),
    "handshakes byte by byte": (on(clients.slow_handshakes), 30),
    "subscribers that never read": (on(clients.deaf), 10),
    "a job of a batch raises": (on(engine.together, trouble="raises"), 16),
    "out of memory": (on(engine.together, trouble="out of memory"), 16),
    "a decode hangs": (on(engine.wedged, {"health": {"stall": 5.0}}, "wedged"), 3),
    "the engine's process is killed": (on(engine.killed, {"engine": {"backend": "process"}}, "slow"), 5),
    "NaN in the logits (tiny-en)": (on(engine.together, {"escalate": {"when": "never"}}, "nan"), 4),
    "twice the load": (on(engine.overload, {"scheduler": {"longest_wait": 0.3, "batch": 1}}, "slow"), 12),
    "no descriptors left": (on(machine.exhausted), 2),
    "the clock jumps": (machine.jumping_clock, 3),
    "the broker freezes": (machine.frozen_broker, 3),
    "a full disk": (machine.full_disk, 3),
    "SIGTERM": (machine.terminated, 10),
    "SIGKILL": (machine.killed, 10),
}
"""Name -> what does it, and how often by default."""

ATTACKS: dict[str, attacks.Attack] = {
    "forms that unpack to much": attacks.strangers("packed forms"),
    "forms that never begin": attacks.strangers("endless forms"),
    "uploads of chunk extensions": attacks.strangers("chunk extensions"),
    "pings, pongs and empty frames": attacks.strangers("empty frames"),
    "silence on the TLS port": attacks.strangers("silence", tls=True),
    "refused, and stays": attacks.strangers("refused"),
    "half a request line": attacks.strangers("half a line"),
    "names that nearly fit a pattern": attacks.strangers("names"),
    "a broker of small packets": attacks.small_packets,
}
"""Name -> what does it, for so many seconds."""

COLUMNS = ["fault", "tried", "survived", "utterances said", "finals arrived", "told as failed", "lost", "note"]


async def attempt(name: str, amount: int) -> Outcome:
    """Try a fault or an attack in an empty folder.

    Args:
        name: of the fault or attack.
        amount: how often the fault is tried, or for how many seconds the attack lasts.

    Returns:
        What came of it.
    """
    fault = ATTACKS[name] if name in ATTACKS else FAULTS[name][0]
    with tempfile.TemporaryDirectory() as folder:
        return await fault(Path(folder), amount)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the faults and print the table.

    Returns:
        The exit code: 1 where something was lost, or not survived.
    """
    parser = argparse.ArgumentParser(prog="whisperd bench faults", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="how often, by the default (1)")
    parser.add_argument("--seconds", type=int, default=5, help="how long each attack lasts (5)")
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=sorted([*FAULTS, *ATTACKS]), help="these")
    options = parser.parse_args(arguments)
    rows, well = [], True
    for name in options.only or [*FAULTS, *ATTACKS]:
        amount = options.seconds if name in ATTACKS else max(1, round(FAULTS[name][1] * options.scale))
        made = asyncio.run(attempt(name, amount))
        well &= made.survived == made.tried and made.lost == 0
        cells = [name, made.tried, made.survived, made.said, made.arrived, made.failed, made.lost, made.note]
        rows.append([str(cell) for cell in cells])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(circumstances() + "\n")
    print(table(COLUMNS, rows))
    return 0 if well else 1
