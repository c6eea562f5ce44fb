"""`whisperd run` with an engine whose answers are written down: for a day on which the text does not matter.

Owns no more than that: all else is the service's own. It starts without the seconds that a real engine loads.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tokenizers import Tokenizer

from daemon.app import Service
from daemon.config import Settings, load, surroundings
from daemon.logs import to_stderr
from daemon.pipeline import Engine
from daemon.signals import reload_on_signal, stop_on_signals
from streaming.fake import ScriptedEngine
from streaming.whisper.locate import locate


def _engine(settings: Settings) -> Engine:
    tokenizer_file = locate(settings.models.student, "student")[1] / "tokenizer.json"
    return ScriptedEngine(tokenizer_file, Tokenizer.from_file(str(tokenizer_file)).get_vocab()["<|endoftext|>"])


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
