"""whisperd itself: the pair as it is shipped, and its teacher alone, which is the very model that the others run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
from websockets.asyncio.client import ClientConnection, connect

from bench.harness.daemon import Daemon
from bench.peers.judge import Talk
from bench.peers.screen import Screen
from bench.peers.system import Served, System
from bench.tasks import background
from streaming.job import SAMPLE_RATE


class Whisperd(System):
    """The shipped pair.

    Args:
        student: a name or folder, as of `models.student`.
        teacher: likewise.
    """

    name = "whisperd"
    says = "the shipped pair, with its settings"

    def __init__(self, student: str, teacher: str | None) -> None:
        self._models = {"student": student, "teacher": teacher}

    @contextmanager
    def serving(self, folder: Path) -> Iterator[Served]:
        settings = {"models": self._models, "server": {"max_streams": 64}}
        daemon = Daemon(Path(mkdtemp(dir=folder)), settings)
        try:
            daemon.start()
            yield Served(psutil.Process(daemon.pid), daemon.port)
        finally:
            daemon.end()  # after too many streams it may owe finals that nobody waits for

    async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
        address = f"ws://127.0.0.1:{served.port}/v1/stream?source={name}"
        finals: list[str] = []
        async with connect(address, compression=None) as socket:
            await socket.send(json.dumps({"type": "start", "sample_rate": SAMPLE_RATE, "language": "en"}))
            async with background(_say(socket, talk, screen)):
                async for message in socket:
                    _take(json.loads(message), finals, screen)


async def _say(socket: ClientConnection, talk: Talk, screen: Screen) -> None:
    await screen.speak(talk.pcm, socket.send)
    await socket.send(json.dumps({"type": "stop"}))


def _take(event: dict[str, Any], finals: list[str], screen: Screen) -> None:
    match event["type"]:
        case "partial":
            # Stable text may still be another in the final, where the teacher decides it.
            screen.show(" ".join(finals), event["stable"] + event["tail"])
        case "final":
            finals.append(event["text"])
            screen.show(" ".join(finals))


class TeacherAlone(Whisperd):
    """tiny.en alone, without a student."""

    name = "whisperd-tiny.en"
    says = "tiny.en alone as the student, which is what the others run"
