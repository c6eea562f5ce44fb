"""The soak itself: starts the parts, lets people speak, samples, and waits for what is still to come.

Owns the wiring and the command.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench.soak
from bench.broker import mosquitto
from bench.harness.daemon import SCRIPTED, WHISPERD, Daemon
from bench.harness.home import home
from bench.harness.report import judged, options
from bench.soak.clients import PATIENCE, Clients
from bench.soak.history import ClientKind, History, Sampler
from bench.soak.judge import End, broken_promises, tallies
from bench.soak.report import picture, report
from bench.soak.sounds import Sounds, gather
from bench.table import circumstances
from bench.tasks import background, wait_until

_STAYING = 2  # subscribers: one of /v1/events, and MQTT
_KINDS = (
    ClientKind.SPEECH, ClientKind.VISITOR, ClientKind.NOISE, ClientKind.SPEECH, ClientKind.VISITOR, ClientKind.SILENCE
)  # fmt: skip
"""Of the streams, in turn."""

_VISITED = "speech-0"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        seconds: how long.
        streams: how many at once.
        every: seconds between two samples.
        reload: seconds between two reloads.
        warm_up: seconds in which memory may grow.
        most: MB an hour that RSS may grow afterwards.
        scripted: whether the answers of the engine are written down.
    """

    seconds: float
    streams: int
    every: float
    reload: float
    warm_up: float
    most: float
    scripted: bool


@dataclass(slots=True)
class Run:
    """All that runs in a soak."""

    daemon: Daemon
    clients: Clients
    history: History
    sampler: Sampler


async def soak(plan: Plan, sounds: Sounds, dice: random.Random) -> tuple[History, End]:
    """Run a soak.

    Args:
        plan: what is to be done.
        sounds: what is sent.
        dice: decides what is left to chance.

    Returns:
        What was noted, and how it ended.

    Raises:
        MissingError: a program is not installed.
        RuntimeError: a part does not start.
    """
    with TemporaryDirectory(prefix="soak") as folder:
        async with home(Path(folder), {}, SCRIPTED if plan.scripted else WHISPERD) as house:
            history = History(mqtt=house.mqtt.subscriber.finals)
            clients = Clients(house.daemon, sounds, history, dice)
            ready = asyncio.Event()
            async with background(clients.listen(ready)):
                await asyncio.wait_for(ready.wait(), PATIENCE)
                history.began = time.monotonic()
                run = Run(house.daemon, clients, history, Sampler(house.daemon, history))
                idle = await _idle(run)
                await _live(run, plan)
                seconds = history.now
                await _wait_for_the_last(run)
                left = await _left(run, idle)
                code = await house.daemon.stop()
            return history, End(code, house.daemon.counted, idle, left, seconds, plan.warm_up, plan.most)


async def _live(run: Run, plan: Plan) -> None:
    async with asyncio.TaskGroup() as tasks:
        endless = [
            tasks.create_task(run.sampler.run(plan.every)),
            tasks.create_task(_reload(run, plan.reload)),
            tasks.create_task(_tell(run, plan)),
        ]
        busy = [tasks.create_task(each) for each in _everybody(run.clients, plan.streams)]
        await asyncio.wait(busy, timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
        run.clients.over.set()
        await asyncio.wait(busy, return_when=asyncio.FIRST_EXCEPTION)
        for task in endless:
            task.cancel()


def _everybody(clients: Clients, streams: int) -> list[Any]:
    kinds = [_KINDS[number % len(_KINDS)] for number in range(streams)]
    coming = [
        clients.come_and_go(f"visitor-{number}")
        if kind is ClientKind.VISITOR
        else clients.stay(kind, f"{kind.name.lower()}-{number}")
        for number, kind in enumerate(kinds)
    ]
    return [*coming, clients.ask(), clients.look_in(_VISITED)]


async def _reload(run: Run, every: float) -> None:
    """Reload for ever: partials come a little more seldom, and again as before."""
    while True:
        await asyncio.sleep(every)
        before = (await run.daemon.sample()).get("whisperd_reloads_total", 0.0)
        run.daemon.reload({"partials": {"interval": 0.6 if run.history.reloads % 2 == 0 else 0.5}})
        run.history.reloads += 1
        if not await wait_until(partial(_reloaded, run, before), PATIENCE):
            run.history.broken.append("SIGHUP was not followed by a reload")


async def _reloaded(run: Run, before: float) -> bool:
    return (await run.daemon.sample()).get("whisperd_reloads_total", 0.0) > before


async def _tell(run: Run, plan: Plan) -> None:
    """Print a line a minute, for ever, for whoever waits for the end."""
    while True:
        await asyncio.sleep(60)
        history = run.history
        now = history.samples[-1]
        print(
            f"{history.now / 60:.0f} of {plan.seconds / 60:.0f} minutes: RSS {now.rss:.1f} MiB, PSS {now.pss:.1f} MiB, "
            f"{now.descriptors} descriptors, {len(history.events)} finals, {len(history.broken)} faults",
            file=sys.stderr, flush=True,
        )  # fmt: skip


async def _left(run: Run, idle: tuple[int, int]) -> tuple[int, int]:
    """Wait until descriptors and threads are down to `idle`.

    A socket that was aborted, or a thread, may take its time.

    Returns:
        How many there are when they are down, or when they do not come down.
    """
    left = idle

    async def down() -> bool:
        nonlocal left
        left = await _idle(run)
        return all(now <= before for now, before in zip(left, idle, strict=True))

    await wait_until(down, PATIENCE)
    return left


async def _idle(run: Run) -> tuple[int, int]:
    """Return the number of descriptors and of threads once only those who stay are connected."""

    async def alone() -> bool:
        counted = await run.daemon.sample()
        return counted.get("whisperd_subscribers") == _STAYING and not counted.get("whisperd_streams_open")

    await wait_until(alone, PATIENCE)
    await asyncio.sleep(1.0)  # sockets of those who left are closed a moment after
    sample = await run.sampler.take()
    return sample.descriptors, sample.threads


async def _wait_for_the_last(run: Run) -> None:
    """Wait until nothing is missing, or it is clear that it will not come."""
    history = run.history

    async def all_there() -> bool:
        published = (await run.daemon.sample()).get("whisperd_finals_total", 0)
        unended = sum(each.unended for each in tallies(history).values())
        return published == len(history.events) == len(history.mqtt) and not unended

    await wait_until(all_there, PATIENCE)
    if len(history.visits) < sum(each.source == _VISITED for each in history.events):
        await run.clients.visit(_VISITED, 2.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak, print its report, and return the exit code."""
    parser = options("soak", bench.soak.__doc__)
    parser.add_argument("--streams", type=int, default=6, help="at once, of all kinds (default 6)")
    parser.add_argument("--warm-up", type=float, metavar="MINUTES", help="default: a sixth of the time, 10 at most")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples (default 5)")
    parser.add_argument("--reload", type=float, metavar="MINUTES", help="between two reloads (default: a sixth)")
    parser.add_argument("--slope", type=float, default=1.0, help="MB an hour that RSS may grow (default 1)")
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="recordings to say instead of our own")
    parser.add_argument("--noise", type=Path, metavar="FOLDER", help="recordings of noise instead of random numbers")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    asked = parser.parse_args(arguments)
    dice = random.Random(asked.seed)
    seconds = 60 * asked.minutes
    warm_up = 60 * asked.warm_up if asked.warm_up is not None else min(600.0, seconds / 6)
    reload = 60 * asked.reload if asked.reload is not None else seconds / 6
    plan = Plan(seconds, asked.streams, asked.every, reload, warm_up, asked.slope, asked.scripted)

    def run() -> tuple[Sounds, History, End]:
        mosquitto()
        sounds = gather(asked.speech, asked.noise, dice)
        return sounds, *asyncio.run(soak(plan, sounds, dice))

    def tell(made: tuple[Sounds, History, End]) -> list[str]:
        sounds, history, end = made
        said = (
            f"{circumstances()}\n\n{asked.streams} streams at the pace of speech, a Wyoming satellite and three "
            f"subscribers for {asked.minutes:g} minutes, seed {asked.seed}. "
            f"Engine: {'scripted' if asked.scripted else 'tiny-en'}. "
            f"Sentences: {len(sounds.sentences)}, {'our own' if sounds.known else f'from {asked.speech}'}."
        )
        print(report(history, end, said, known=sounds.known), end="")
        if asked.picture:
            picture(asked.picture, history, end)
        return broken_promises(history, end, known=sounds.known)

    return judged("soak", run, tell)
