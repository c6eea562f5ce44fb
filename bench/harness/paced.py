"""`whisperd run` with an engine of a stated pace: so many milliseconds a batch, and so many more for each row.

Owns the pace. The engine waits without the interpreter, as one does that waits for a GPU; its answers are written down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from bench.harness.scripted import load, serve
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import Job


def paced(batch_ms: float, row_ms: float, settings: Settings) -> ScriptedEngine:
    """Return an engine of this pace."""

    def wait(jobs: Sequence[Job]) -> None:
        time.sleep((batch_ms + row_ms * len(jobs)) / 1000)

    return load(settings, before=wait)


def main(arguments: Sequence[str]) -> int:
    batch_ms, row_ms, config = float(arguments[0]), float(arguments[1]), arguments[2]
    return serve(config, lambda settings: paced(batch_ms, row_ms, settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
