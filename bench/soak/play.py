"""The soak itself: starts the parts, lets people speak, samples, and waits for what is still to come.

Owns the wiring and the command.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench.soak
from bench.broker import Broker, MissingError, mosquitto
from bench.day.daemon import Daemon
from bench.day.recorder import Recorder
from bench.soak.book import Book, Kind, Note
from bench.soak.judge import End, broken_promises, verdicts
from bench.soak.people import People
from bench.soak.report import picture, report
from bench.soak.samples import Sampler
from bench.soak.sounds import Sounds, gather
from bench.table import circumstances
from bench.tasks import first_error

_TOPIC = "whisperd"
_PATIENCE = 120.0
_STAYING = 2  # subscribers: one of /v1/events, and MQTT
_KINDS = (Kind.SPEECH, Kind.VISITOR, Kind.NOISE, Kind.SPEECH, Kind.VISITOR, Kind.SILENCE)
"""Of the streams, in turn."""

_VISITED = "speech-0"


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds: how long. every: seconds between two samples. reload: seconds between two reloads."""

    seconds: float
    streams: int
    every: float
    reload: float
    scripted: bool


@dataclass(slots=True)
class House:
    """All that runs."""

    daemon: Daemon
    people: People
    book: Book
    sampler: Sampler


async def soak(plan: Plan, sounds: Sounds, dice: random.Random, warm_up: float, most: float) -> tuple[Book, End]:
    """Run the soak and return what was noted, and how it ended.

    Raises:
        MissingError: a program is not installed.
        RuntimeError: a part does not start.
    """
    with TemporaryDirectory(prefix="soak") as folder:
        async with _house(Path(folder), plan, sounds, dice) as house:
            idle = await _idle(house)
            await _live(house, plan, dice)
            seconds = house.book.now
            await _wait_for_the_last(house)
            left = await _left(house, idle)
            await house.daemon.terminate()
            bad = house.daemon.bad_ends
            end = End(bad[0] if bad else 0, house.daemon.counted, idle, left, seconds, warm_up, most)
            return house.book, end


@contextlib.asynccontextmanager
async def _house(folder: Path, plan: Plan, sounds: Sounds, dice: random.Random) -> AsyncIterator[House]:
    book = Book()
    broker = Broker(folder)
    broker.start()
    recorder = Recorder(broker.port, _TOPIC, lambda final: book.mqtt.append(Note.of(final)))
    daemon = Daemon(folder, _settings(broker.port), {}, scripted=plan.scripted)
    listening: asyncio.Task[None] | None = None
    try:
        await recorder.start()
        await daemon.start()
        people = People(daemon.url, daemon.wyoming_port, sounds, book, dice)
        ready = asyncio.Event()
        listening = asyncio.create_task(people.listen(ready))
        await asyncio.wait_for(ready.wait(), _PATIENCE)
        book.began = time.monotonic()
        yield House(daemon, people, book, Sampler(daemon, book))
    finally:
        if listening is not None:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        daemon.end()
        await recorder.stop()
        broker.stop()


def _settings(broker_port: int, **others: Any) -> dict[str, Any]:
    return {"mqtt": {"host": "127.0.0.1", "port": broker_port, "topic": _TOPIC}, **others}


async def _live(house: House, plan: Plan, dice: random.Random) -> None:
    people = house.people
    async with asyncio.TaskGroup() as tasks:
        endless = [
            tasks.create_task(house.sampler.run(plan.every)),
            tasks.create_task(_reload(house, plan.reload)),
            tasks.create_task(_tell(house, plan)),
        ]
        busy = [tasks.create_task(each) for each in _everybody(people, plan.streams)]
        await asyncio.wait(busy, timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
        people.over.set()
        await asyncio.wait(busy, return_when=asyncio.FIRST_EXCEPTION)
        for task in endless:
            task.cancel()


def _everybody(people: People, streams: int) -> list[Any]:
    kinds = [_KINDS[number % len(_KINDS)] for number in range(streams)]
    coming = [
        people.come_and_go(f"visitor-{number}")
        if kind is Kind.VISITOR
        else people.stay(kind, f"{kind.name.lower()}-{number}")
        for number, kind in enumerate(kinds)
    ]
    return [*coming, people.ask(), people.look_in(_VISITED)]


async def _reload(house: House, every: float) -> None:
    """For ever: partials come a little more seldom, and again as before."""
    while True:
        await asyncio.sleep(every)
        before = (await house.daemon.sample()).get("whisperd_reloads_total", 0.0)
        house.daemon.reload({"partials": {"interval": 0.6 if house.book.reloads % 2 == 0 else 0.5}})
        house.book.reloads += 1
        try:
            async with asyncio.timeout(_PATIENCE):
                while (await house.daemon.sample()).get("whisperd_reloads_total", 0.0) <= before:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)  # a counter of another process has no event to wait for
        except TimeoutError:
            house.book.broken.append("SIGHUP was not followed by a reload")


async def _tell(house: House, plan: Plan) -> None:
    """For ever: a line a minute for who waits for the end."""
    while True:
        await asyncio.sleep(60)
        book = house.book
        now = book.samples[-1]
        print(
            f"{book.now / 60:.0f} of {plan.seconds / 60:.0f} minutes: RSS {now.rss:.1f} MiB, PSS {now.pss:.1f} MiB, "
            f"{now.descriptors} descriptors, {len(book.events)} finals, {len(book.broken)} faults",
            file=sys.stderr, flush=True,
        )  # fmt: skip


async def _left(house: House, idle: tuple[int, int]) -> tuple[int, int]:
    """As `_idle`, when it is down to `idle`; or what is left, when it does not come down: a socket that was aborted, or
    a thread, may take its time.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        left = await _idle(house)
        if time.monotonic() > deadline or all(now <= before for now, before in zip(left, idle, strict=True)):
            return left


async def _idle(house: House) -> tuple[int, int]:
    """(descriptors, threads) once only those who stay are connected."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while True:
                counted = await house.daemon.sample()
                if counted.get("whisperd_subscribers") == _STAYING and not counted.get("whisperd_streams_open"):
                    break
                await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)  # sockets of those who left are closed a moment after
    sample = await house.sampler.take()
    return sample.descriptors, sample.threads


async def _wait_for_the_last(house: House) -> None:
    """Until nothing is missing, or it is clear that it will not come."""
    book = house.book
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        published = (await house.daemon.sample()).get("whisperd_finals_total", 0)
        unended = sum(each.unended for each in verdicts(book).values())
        if published == len(book.events) == len(book.mqtt) and not unended:
            break
        await asyncio.sleep(0.5)
    wanted = [note for note in book.events if note.source == _VISITED]
    if len(book.visits) < len(wanted):
        await house.people.visit(_VISITED, 2.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="whisperd bench soak",
        description=bench.soak.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--streams", type=int, default=6, help="at once, of all kinds (default 6)")
    parser.add_argument("--warm-up", type=float, metavar="MINUTES", help="default: a sixth of the time, 10 at most")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples (default 5)")
    parser.add_argument("--reload", type=float, metavar="MINUTES", help="between two reloads (default: a sixth)")
    parser.add_argument("--slope", type=float, default=1.0, help="MB an hour that RSS may grow (default 1)")
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="recordings to say instead of our own")
    parser.add_argument("--noise", type=Path, metavar="FOLDER", help="recordings of noise instead of random numbers")
    parser.add_argument("--seed", type=int, default=1, help="other sentences and pauses for each (default 1)")
    parser.add_argument("--scripted", action="store_true", help="without a model: an engine with written answers")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    options = parser.parse_args(arguments)
    dice = random.Random(options.seed)
    seconds = 60 * options.minutes
    warm_up = 60 * options.warm_up if options.warm_up is not None else min(600.0, seconds / 6)
    reload = 60 * options.reload if options.reload is not None else seconds / 6
    plan = Plan(seconds, options.streams, options.every, reload, options.scripted)
    try:
        mosquitto()
        sounds = gather(options.speech, options.noise, dice)
        book, end = asyncio.run(soak(plan, sounds, dice, warm_up, options.slope))
    except (MissingError, RuntimeError, ValueError, ExceptionGroup) as error:
        print(f"whisperd bench soak: {first_error(error)}", file=sys.stderr)
        return 1
    engine = "scripted" if options.scripted else "tiny-en"
    said = (
        f"{circumstances()}\n\n{options.streams} streams at the pace of speech, a Wyoming satellite and three "
        f"subscribers for {seconds / 60:g} minutes, seed {options.seed}. Engine: {engine}. "
        f"Sentences: {len(sounds.sentences)}, {'our own' if sounds.known else f'from {options.speech}'}."
    )
    print(report(book, end, said, known=sounds.known), end="")
    if options.picture:
        picture(options.picture, book, end)
    return 1 if broken_promises(book, end, known=sounds.known) else 0
