"""What the benchmarks that keep promises say at their end, and how they are called.

Owns the options that they share, the words for what the service may lose, the list of the promises that did not hold,
and the exit code. Knows no promise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from bench.broker import MissingError
from bench.tasks import first_error

T = TypeVar("T")

MQTT_LOSSES = {
    "whisperd_mqtt_dropped_finals_total": "finals dropped: too many waited for the broker",
    "whisperd_mqtt_expired_finals_total": "finals dropped: too old",
    "whisperd_mqtt_too_big_total": "messages that were larger than the broker takes",
    "whisperd_mqtt_spool_damaged_total": "rows of the spool that were damaged",
    "whisperd_mqtt_refused_total": "messages that the broker refused",
    "whisperd_mqtt_spool_errors_total": "times that the spool's file failed",
}
JOB_LOSSES = {"whisperd_job_failures_total": "jobs that failed"}
SUBSCRIBER_LOSSES = {"whisperd_subscribers_dropped_total": "subscribers disconnected as too slow"}
"""Counters of the service, and what each counts."""


def counters(counted: Mapping[str, float], names: Mapping[str, str]) -> list[str]:
    """Return a line for each counter.

    Args:
        counted: the counters, by name.
        names: what each of those that are wanted counts.
    """
    return [f"- {counted[name]:g} {what}" for name, what in names.items()]


def losses(counted: Mapping[str, float], names: Mapping[str, str]) -> list[str]:
    """Return a phrase for each counter that is not 0.

    Args:
        counted: the counters, by name.
        names: what each of those that are wanted counts.
    """
    return [f"{counted[name]:g} {what}" for name, what in names.items() if counted[name]]


def promises(broken: Sequence[str], kept: str) -> list[str]:
    """Return the last parts of a report.

    Args:
        broken: a sentence for each promise that did not hold.
        kept: what to say where none was broken.
    """
    return [
        "## Promises",
        "\n".join(f"- BROKEN: {each}" for each in broken) or "- none was broken",
        f"**{len(broken)} promises were broken.**" if broken else f"**Every promise held: {kept}**",
    ]


def options(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser that has the options that all of these benchmarks have.

    Args:
        name: of the benchmark.
        about: what its help says of it.
    """
    parser = argparse.ArgumentParser(
        prog=f"whisperd bench {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="other sentences, pauses and faults for each (default 1)")
    parser.add_argument("--scripted", action="store_true", help="without a model: an engine with written answers")
    return parser


def judged(name: str, run: Callable[[], T], tell: Callable[[T], Sequence[str]]) -> int:
    """Run a benchmark and judge it.

    Args:
        name: of the benchmark.
        run: what is judged.
        tell: called with what `run` returned; prints the report and returns the promises that did not hold.

    Returns:
        The exit code: 1 where nothing could be run, or a promise did not hold.
    """
    try:
        made = run()
    except (MissingError, RuntimeError, ValueError, ExceptionGroup) as error:
        print(f"whisperd bench {name}: {first_error(error)}", file=sys.stderr)
        return 1
    return 1 if tell(made) else 0
