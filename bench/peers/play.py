"""The comparison itself: each system has its turn, with more and more streams, and the tables at the end.

Owns the wiring and the command. What is measured is in `judge.py`, what is printed in `report.py`, and how
each system is spoken to in the file with its name.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import psutil

import bench.peers
from bench.harness.daemon import ServiceError
from bench.hub_copy import write_hub_copy
from bench.peers.judge import Figures, Talk
from bench.peers.loop import Loop
from bench.peers.report import Measured, both, holds, lags, report
from bench.peers.screen import Screen
from bench.peers.server import memory
from bench.peers.system import Peer, Served, System, Weights
from bench.peers.talks import Clock, noise, talks
from bench.peers.whisper_live import WhisperLive
from bench.peers.whisperd import TeacherAlone, Whisperd
from bench.peers.whisperlivekit import LocalAgreement, WhisperLiveKit
from bench.peers.wyoming_whisper import WyomingWhisper
from bench.table import circumstances
from bench.tasks import background, first_error
from distillation.arguments import count, positive
from streaming.whisper.checkpoint import open_checkpoint

PAIR = "tiny-en"
TINY = "tiny.en"
"""Its teacher, by the name that others know it under: folders must be called so."""
OWN: tuple[type[Whisperd], ...] = (Whisperd, TeacherAlone)
PEERS: tuple[type[Peer], ...] = (WhisperLive, WhisperLiveKit, LocalAgreement, WyomingWhisper, Loop)
FEW = 2
"""Streams up to which talks are long, and count for the word errors: every system has these runs."""
DRAIN = 20.0
"""Seconds that a server has for what it still owes when a talk is over."""
SHOWN = 200
"""Characters that are shown of what a server says of a failure."""
SPREAD = 2.0
"""Seconds over which streams begin: people do not begin to speak in the same millisecond."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every system hears.

    Attributes:
        nobody: a stretch in which nobody speaks.
        runs: the talks of each run, fewest streams first.
        held: seconds of lag up to which streams are held.
    """

    nobody: Talk
    runs: Sequence[Sequence[Talk]]
    held: float


async def hear(system: System, served: Served, run: Sequence[Talk]) -> list[Screen]:
    """Play talks at once, a stream each; one that fails does not stop the others."""
    screens = [Screen() for _ in run]

    async def one(number: int) -> None:
        talk, screen = run[number], screens[number]
        await asyncio.sleep(SPREAD * number / len(run))
        try:
            async with asyncio.timeout(talk.seconds + DRAIN):
                await system.hear(served, f"peers-{len(run)}-{number}", talk, screen)
        except TimeoutError:
            screen.failure = f"was not done {DRAIN:g} s after the end"
        except Exception as error:  # whatever a server does to one of its clients is a result
            screen.failure = (str(first_error(error)) or type(first_error(error)).__name__)[:SHOWN]
        screen.end()

    await asyncio.gather(*(one(number) for number in range(len(run))))
    return screens


async def measure(system: System, served: Served, plan: Plan) -> Measured:
    """Play the silence, and then to more and more streams until they are too many."""
    measured = Measured()
    async with background(_watch(served.process, measured)):
        # First, so that what a server does for its first client only is done.
        (nothing,) = await hear(system, served, [plan.nobody])
        measured.invented = nothing.text
        for run in plan.runs:
            screens = await hear(system, served, run)
            figures = measured.by_streams[len(run)] = Figures()
            for talk, screen in zip(run, screens, strict=True):
                figures.add(talk, screen)
            print(f"  {len(run)} streams: {both(lags(system, figures))} s", file=sys.stderr)
            if len(run) <= FEW:
                measured.said += [talk.text for talk in run]
                measured.heard += [screen.text for screen in screens]
            if len(run) >= FEW and not holds(system, figures, plan.held):
                break
    return measured


async def _watch(server: psutil.Process, measured: Measured) -> NoReturn:
    while True:
        measured.memory = max(measured.memory, memory(server))
        await asyncio.sleep(0.5)


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    levels = sorted(set(options.streams))
    lengths = [options.seconds if level <= FEW else options.crowd_seconds for level in levels for _ in range(level)]
    began = time.monotonic()
    with TemporaryDirectory() as folder, weights(options.weights, Path(folder)) as shared:
        plan = _plan(options, levels, lengths)
        chosen = [each for each in _systems(options.environments, shared) if each.name in options.systems]
        all_measured = {system: _turn(system, Path(folder), plan) for system in chosen}
    said = sum(len(talk.words) for run in plan.runs if len(run) <= FEW for talk in run)
    print(
        f"{circumstances()}\n\n{(time.monotonic() - began) / 60:.0f} minutes. {said} words count for the word errors.\n"
    )
    print(report(all_measured, levels, options.held))


def _turn(system: System, folder: Path, plan: Plan) -> Measured:
    print(system.name, file=sys.stderr)
    if system.missing:
        return Measured(stopped=f"not installed: `{system.missing}`")
    try:
        with system.serving(folder) as served:
            return asyncio.run(measure(system, served, plan))
    except ServiceError as error:
        print(error, file=sys.stderr)
        return Measured(stopped=f"did not start: {str(error).splitlines()[-1][:SHOWN]}")


def _plan(options: argparse.Namespace, levels: Sequence[int], lengths: Sequence[float]) -> Plan:
    made = iter(talks(options.recordings, Clock(PAIR), lengths))
    runs = [[next(made) for _ in range(level)] for level in levels]
    return Plan(noise(options.noise, options.quiet_seconds), runs, options.held)


def _systems(environments: Path, shared: Weights) -> list[System]:
    teacher = str(open_checkpoint(PAIR, "teacher").directory)
    return [Whisperd(PAIR, PAIR), TeacherAlone(teacher, None), *(peer(environments, shared) for peer in PEERS)]


@contextmanager
def weights(given: Path | None, folder: Path) -> Iterator[Weights]:
    """Provide tiny.en for the others: as given, or else our teacher, converted by CTranslate2's own converter.

    Args:
        given: a folder in the layout of CTranslate2.
        folder: where copies go.
    """
    hub = write_hub_copy(open_checkpoint(PAIR, "teacher"), folder / "hub" / TINY)
    if given is None:
        from ctranslate2.converters import TransformersConverter

        given = folder / TINY
        beside = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(hub), copy_files=beside).convert(str(given), quantization="float16")
    yield Weights(given.resolve(), hub)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [each.name for each in (*OWN, *PEERS)]
    made = dict.fromkeys(each.recipe(f"DIR/{each.environment}") for each in PEERS)  # two may share one
    recipes = "\n".join(f"  {each}" for each in made)
    parser = argparse.ArgumentParser(
        prog="whisperd bench peers", description=bench.peers.__doc__,
        epilog=f"The environments:\n{recipes}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    seconds = partial(parser.add_argument, type=positive, metavar="S")
    parser.add_argument("--recordings", type=Path, nargs="+", required=True, metavar="DIR", help="as of distill label")
    parser.add_argument(
        "--noise", type=Path, nargs="+", default=[], metavar="DIR",
        help="with manifest.jsonl, where `contains_speech` is false nobody speaks (default: noise is made)",
    )  # fmt: skip
    parser.add_argument(
        "--environments", type=Path, default=Path("peers"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR",
        help="tiny.en in the layout of CTranslate2 (default: our teacher, converted)",
    )  # fmt: skip
    usual = [name for name in names if name != LocalAgreement.name]
    parser.add_argument(
        "--systems", nargs="+", choices=names, default=usual, metavar="NAME",
        help=f"of {', '.join(names)} (default: all but {LocalAgreement.name})",
    )  # fmt: skip
    parser.add_argument("--streams", type=count, nargs="+", default=[1, 2, 4, 8, 12, 16], metavar="N")
    seconds(
        "--seconds",
        default=25.0,
        help="of a talk or a little more, with one and with two streams (default: %(default)g)",
    )
    seconds("--crowd-seconds", default=10.0, help="likewise, with more streams (default: %(default)g)")
    seconds("--quiet-seconds", default=10.0, help="in which nobody speaks (default: %(default)g)")
    seconds("--held", default=1.0, help="of lag of 95 in 100 words up to which streams are held (default: %(default)g)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
