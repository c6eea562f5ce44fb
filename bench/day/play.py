"""The day itself: starts the parts, lets people speak and things break, and waits for what is still to come.

Owns the wiring and the command. What happens is in `schedule.py`, what came of it in `ledger.py` and `report.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import bench.day
from bench.broker import Broker, MissingError, mosquitto
from bench.day.book import Book, Clock, Speaker
from bench.day.daemon import Daemon
from bench.day.faults import Hands
from bench.day.people import AtTheMicrophone, Reader, Satellite, Say, WebsocketClient, say_until_heard
from bench.day.recorder import Recorder
from bench.day.recordings import sentences
from bench.day.report import Ending, broken_promises, report, verdicts
from bench.day.schedule import SPEAKERS, Day, Sentence, plan
from bench.sound_server import SoundServer, pulseaudio
from bench.table import circumstances
from bench.tasks import first_error

_PATIENCE = 180.0
"""Seconds that the finals of the last outage may take: the daemon's pauses grow to one minute."""

_TOPIC = "whisperd"


@dataclass(slots=True)
class House:
    """All that runs on the day."""

    broker: Broker
    sound: SoundServer
    daemon: Daemon
    recorder: Recorder
    book: Book


def play(day: Day, speed: float, *, scripted: bool = False) -> tuple[Book, Ending]:
    """Play the day and return what was noted, and how it ended.

    Raises:
        MissingError: a program is not installed.
        RuntimeError: a part does not start.
    """
    return asyncio.run(_play(day, speed, scripted))


async def _play(day: Day, speed: float, scripted: bool) -> tuple[Book, Ending]:
    with TemporaryDirectory(prefix="day") as folder:
        async with _house(Path(folder), scripted) as house:
            await _live(house, day, Clock(speed))
            await _wait_for_the_last(house.book)
            await house.daemon.terminate()
        daemon = house.daemon
        ending = Ending(daemon.lives, tuple(daemon.bad_ends), daemon.counted, house.recorder.connections)
        return house.book, ending


@contextlib.asynccontextmanager
async def _house(folder: Path, scripted: bool) -> AsyncIterator[House]:
    book = Book({name: Speaker(name) for name in SPEAKERS})
    with _broker(folder) as broker, _sound(folder) as sound:
        recorder = Recorder(broker.port, _TOPIC, book.arrive)
        await recorder.start()
        settings = {
            "mqtt": {"host": "127.0.0.1", "port": broker.port, "topic": _TOPIC, "keepalive": 5},
            "microphone": {"enabled": True, "device": "desk", "source": "desk"},
        }
        daemon = Daemon(folder, settings, sound.environment, scripted=scripted)
        try:
            await daemon.start()
            yield House(broker, sound, daemon, recorder, book)
        finally:
            daemon.end()
            await recorder.stop()


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[Broker]:
    broker = Broker(folder)
    broker.keep_sessions()
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@contextlib.contextmanager
def _sound(folder: Path) -> Iterator[SoundServer]:
    sound = SoundServer(folder, "desk")
    try:
        yield sound
    finally:
        sound.stop()


async def _live(house: House, day: Day, clock: Clock) -> None:
    """Until all is said, and all is mended."""
    daemon, book = house.daemon, house.book
    reader = Reader("desk", daemon, book)
    kitchen = WebsocketClient("kitchen", daemon, book, stays=False)
    hall = WebsocketClient("hall", daemon, book, stays=True)
    voices: dict[str, Say] = {
        "kitchen": kitchen.say,
        "hall": hall.say,
        "desk": AtTheMicrophone(house.sound, reader, daemon, book).say,
        "satellite": Satellite(daemon, book).say,
    }
    hands = Hands(clock, book, house.broker, house.recorder, house.sound, daemon)
    recordings = sentences()
    background = [asyncio.create_task(reader.run()), asyncio.create_task(daemon.watch())]
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hands.run(day.faults))
            for name, say in voices.items():
                mine = [each for each in day.sentences if each.speaker == name]
                tasks.create_task(_speak(book.speakers[name], say, mine, recordings, clock))
        await hall.leave()
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


async def _speak(me: Speaker, say: Say, mine: Sequence[Sentence], recordings: Sequence[bytes], clock: Clock) -> None:
    for sentence in mine:
        await clock.until(sentence.at)
        await say_until_heard(me, say, recordings[sentence.recording])


async def _wait_for_the_last(book: Book) -> None:
    """Until nothing is missing; or until it is clear that it will not come."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and _missing(book):  # noqa: ASYNC110 - below
        await asyncio.sleep(0.2)  # what is missed makes no event


def _missing(book: Book) -> bool:
    return any(verdict.lost for verdict in verdicts(book).values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="whisperd bench day",
        description=bench.day.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the day (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="another day for each (default 1)")
    parser.add_argument("--speed", type=float, default=6.0, help="how much faster pauses pass (default 6)")
    parser.add_argument("--scripted", action="store_true", help="without a model: an engine with written answers")
    options = parser.parse_args(arguments)
    try:
        mosquitto()
        pulseaudio()
        day = plan(options.minutes, options.seed, len(sentences()))
        began = time.monotonic()
        book, ending = play(day, options.speed, scripted=options.scripted)
    except (MissingError, RuntimeError, ExceptionGroup) as error:
        print(f"whisperd bench day: {first_error(error)}", file=sys.stderr)
        return 1
    said = (
        f"{circumstances()}\n\nA day of {options.minutes:g} minutes, seed {options.seed}, {options.speed:g} times as "
        f"fast: {(time.monotonic() - began) / 60:.1f} minutes of ours. {len(day.sentences)} sentences, "
        f"{len(day.faults)} faults. Engine: {'scripted' if options.scripted else 'tiny-en'}."
    )
    print(f"# A day at home\n\n{report(book, ending, said)}", end="")
    return 1 if broken_promises(book, ending) else 0
