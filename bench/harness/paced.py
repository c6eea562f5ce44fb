"""`whisperd run` with an engine of a stated pace: so many milliseconds a batch, and so many more for each row.

Owns the pace. The engine waits without the interpreter, as one does that waits for a GPU; its answers are written down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial

from bench.harness.scripted import load, serve
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import Job


def paced(batch_ms: float, row_ms: float, settings: Settings) -> ScriptedEngine:
    """Return an engine of this pace, which the service takes for one on a GPU."""

    def wait(jobs: Sequence[Job]) -> None:
        time.sleep((batch_ms + row_ms * len(jobs)) / 1000)

    engine = load(settings, before=wait)
    engine.device = "paced"
    return engine


def main(arguments: Sequence[str]) -> int:
    batch_ms, row_ms, config = float(arguments[0]), float(arguments[1]), arguments[2]
    return serve(config, partial(paced, batch_ms, row_ms))


if __name__ == "__main__":
    # By its name, under which an engine's process finds what loads its engine.
    from bench.harness import paced as module

    sys.exit(module.main(sys.argv[1:]))
