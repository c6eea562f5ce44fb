"""`whisperd run` with an engine whose answers are written down: for benchmarks in which the text does not matter.

Owns no more than that: all else is the service's own. It starts without the seconds that a real engine takes to load.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from daemon.commands import cli
from daemon.engines.life import LoadEngine
from daemon.service import app
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import Job
from streaming.whisper.checkpoint import open_checkpoint


def load(settings: Settings, before: Callable[[Sequence[Job]], None] | None = None) -> ScriptedEngine:
    """Return the engine; `before` is called with every batch."""
    checkpoint = open_checkpoint(settings.models.student, "student")
    return ScriptedEngine(checkpoint.tokenizer_file, checkpoint.grammar.eot, before=before)


def serve(config: str, load: LoadEngine) -> int:
    """Run `whisperd run -c CONFIG` with another engine, and return its exit code.

    Args:
        config: the settings' file.
        load: loads the engine.
    """
    app.Service.__init__.__defaults__ = (load,)
    return cli.main(["run", "-c", config])


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], load))
