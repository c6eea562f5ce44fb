"""What putting the models away costs and saves: the first final after waking beside one of models that are awake.

Runs a real service with a short `models.unload_after`. In each round the same sentence is played twice at the pace of
speech: once to models that were put away, and once right after it. Prints a table with the latency of the finals, from
the end of speech to sending, and the memory of the process when it is asleep and when it is awake.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence
from typing import Any

import psutil

from bench.harness.daemon import PATIENCE, Daemon, running
from bench.player import DEMO, play, read_pcm
from bench.table import circumstances, table
from distillation.arguments import count

UNLOAD_AFTER = 2.0
"""Seconds without speech: short, so that a round is."""

_BEGIN, _END = 5.6, 10.0
"""The seconds of the demo's second sentence, with a second of silence behind it."""


def sentence() -> tuple[bytes, int]:
    """Return the 16-bit samples of one sentence, and their rate."""
    pcm, rate = read_pcm(str(DEMO))
    return pcm[2 * round(_BEGIN * rate) : 2 * round(_END * rate)], rate


async def measure(service: Daemon, rounds: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return the latencies asleep and awake (ms), and the memory asleep and awake (MiB), of each round."""
    pcm, rate = sentence()
    process = psutil.Process(service.pid)
    asleep, awake, small, large = [], [], [], []
    for _ in range(rounds):
        await _until_asleep(service)
        small.append(process.memory_info().rss / 2**20)
        asleep.append(await _latency(service, pcm, rate))
        awake.append(await _latency(service, pcm, rate))
        large.append(process.memory_info().rss / 2**20)
    return asleep, awake, small, large


async def _until_asleep(service: Daemon) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await service.sample()).get("whisperd_models_asleep") != 1:  # noqa: ASYNC110 - it tells of it only so
            await asyncio.sleep(0.1)


async def _latency(service: Daemon, pcm: bytes, rate: int) -> float:
    """Return the milliseconds from the end of the sentence to its final."""
    heard: list[dict[str, Any]] = []
    await play(service.url, "waking", pcm, rate, heard.append)
    return float(next(event["latency_ms"] for event in heard if event["type"] == "final"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench waking", description=__doc__)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    models = {
        "student": options.student, "teacher": options.teacher, "device": options.device,
        "unload_after": UNLOAD_AFTER,
    }  # fmt: skip
    print(f"{circumstances()}\n\nOne sentence, {options.rounds} rounds. Median (least to most).\n")
    with running({"models": models}) as service:
        asleep, awake, small, large = asyncio.run(measure(service, options.rounds))
    rows = [
        ["asleep", _spread(asleep), _spread(small)],
        ["awake", _spread(awake), _spread(large)],
    ]
    print(table(["the models are", "final latency ms", "memory of the process MiB"], rows))


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
