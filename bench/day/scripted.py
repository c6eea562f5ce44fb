"""`whisperd run` with an engine whose answers are written down: for a day on which the text does not matter.

Owns no more than that: all else is the service's own. It starts without the seconds that a real engine loads.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from daemon.common.logs import to_stderr
from daemon.core.pipeline import Engine
from daemon.service.app import Service
from daemon.service.signals import reload_on_signal, stop_on_signals
from daemon.settings.load import load
from daemon.settings.schema import Settings
from daemon.settings.surroundings import surroundings
from streaming.fake import ScriptedEngine
from streaming.whisper.checkpoint import open_checkpoint


def _engine(settings: Settings) -> Engine:
    checkpoint = open_checkpoint(settings.models.student, "student")
    return ScriptedEngine(checkpoint.tokenizer_file, checkpoint.grammar.eot)


def main(config: str) -> None:
    settings, around = load(Path(config)), surroundings()
    to_stderr(settings.log.level, around.journal)

    async def serve() -> None:
        service = Service(settings, around, _engine)
        stop_on_signals(service.stop)
        reload_on_signal(lambda: service.reload(lambda: load(Path(config))))
        await service.run()

    asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1])
