"""The day itself: starts the parts, lets people speak and things break, and waits for what is still to come.

Owns the wiring and the command. What happens is in `schedule.py`, what is promised in `report.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import bench.day
from bench.broker import mosquitto
from bench.day.clients import AtTheMicrophone, Reader, Satellite, Say, WebsocketClient, say_all
from bench.day.faults import FaultInjector
from bench.day.history import Clock, History, Speaker
from bench.day.report import Ending, broken_promises, deliveries, report
from bench.day.schedule import SPEAKERS, Day, plan
from bench.harness.daemon import SCRIPTED, WHISPERD
from bench.harness.home import Home, home
from bench.harness.recordings import sentences
from bench.harness.report import judged, options
from bench.sound_server import SoundServer, pulseaudio
from bench.table import circumstances
from bench.tasks import background, wait_until

_PATIENCE = 180.0
"""Seconds that the finals of the last outage may take: the daemon's pauses grow to one minute."""


async def play(day: Day, speed: float, *, scripted: bool = False) -> tuple[History, Ending]:
    """Play a day.

    Args:
        day: what happens on it.
        speed: how many times as fast as ours its clock goes.
        scripted: whether the answers of the engine are written down.

    Returns:
        What was noted, and how it ended.

    Raises:
        MissingError: a program is not installed.
        RuntimeError: a part does not start.
    """
    with TemporaryDirectory(prefix="day") as folder, contextlib.ExitStack() as stack:
        sound = SoundServer(Path(folder), "desk")
        stack.callback(sound.stop)
        settings = {
            "mqtt": {"keepalive": 5},
            "microphone": {"enabled": True, "device": "desk", "source": "desk"},
        }
        program = SCRIPTED if scripted else WHISPERD
        async with home(Path(folder), settings, program, sessions=True, environment=sound.environment) as house:
            history = History({name: Speaker(name) for name in SPEAKERS}, house.mqtt.subscriber.finals)
            await _live(house, sound, history, day, Clock(speed))
            await wait_until(lambda: not any(each.lost for each in deliveries(history).values()), _PATIENCE)
            await house.daemon.stop()
        daemon = house.daemon
        connections = house.mqtt.subscriber.connections
        return history, Ending(daemon.lives, tuple(daemon.bad_ends), daemon.counted, connections)


async def _live(house: Home, sound: SoundServer, history: History, day: Day, clock: Clock) -> None:
    """Let everybody speak and everything break, and return when all is said and all is mended."""
    daemon = house.daemon
    reader = Reader("desk", daemon, history)
    kitchen = WebsocketClient("kitchen", daemon, history, stays=False)
    hall = WebsocketClient("hall", daemon, history, stays=True)
    voices: dict[str, Say] = {
        "kitchen": kitchen.say,
        "hall": hall.say,
        "desk": AtTheMicrophone(sound, reader, daemon, history).say,
        "satellite": Satellite(daemon, history).say,
    }
    recordings = sentences()
    async with background(reader.run(), daemon.watch()), asyncio.TaskGroup() as tasks:
        tasks.create_task(FaultInjector(clock, history, house.mqtt, sound, daemon).run(day.faults))
        for name, say in voices.items():
            mine = [each for each in day.sentences if each.speaker == name]
            tasks.create_task(say_all(history.speakers[name], say, mine, recordings, clock))
    await hall.leave()


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a day, print its report, and return the exit code."""
    parser = options("day", bench.day.__doc__)
    parser.add_argument("--speed", type=float, default=6.0, help="how much faster pauses pass (default 6)")
    asked = parser.parse_args(arguments)

    began = time.monotonic()

    def run() -> tuple[Day, History, Ending]:
        mosquitto()
        pulseaudio()
        day = plan(asked.minutes, asked.seed, len(sentences()))
        return day, *asyncio.run(play(day, asked.speed, scripted=asked.scripted))

    def tell(made: tuple[Day, History, Ending]) -> list[str]:
        day, history, ending = made
        said = (
            f"{circumstances()}\n\nA day of {asked.minutes:g} minutes, seed {asked.seed}, {asked.speed:g} times as "
            f"fast: {(time.monotonic() - began) / 60:.1f} minutes of ours. {len(day.sentences)} sentences, "
            f"{len(day.faults)} faults. Engine: {'scripted' if asked.scripted else 'tiny-en'}."
        )
        print(f"# A day at home\n\n{report(history, ending, said)}", end="")
        return broken_promises(history, ending)

    return judged("day", run, tell)
