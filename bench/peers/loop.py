"""A plain loop around faster-whisper, as one writes it oneself (`loop_server.py`), by a protocol that is as plain."""

from __future__ import annotations

import json
import os
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from bench.peers.judge import Talk
from bench.peers.screen import Screen
from bench.peers.system import Peer, Served
from bench.tasks import background

_SERVER = Path(__file__).parent / "loop_server.py"


class Loop(Peer):
    name = "faster-whisper-loop"
    says = (
        "faster-whisper 1.2.1 in 8 bits, greedy, threads as cores; each stream's buffer every 0.5 s, cut after 0.6 s"
        " without speech"
    )
    environment = "faster-whisper"
    installs = ("faster-whisper==1.2.1 requests websockets",)

    def command(self, port: int) -> list[str]:
        return [str(_SERVER), str(port), str(self._weights.ctranslate), str(os.cpu_count() or 1)]

    async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
        address = f"ws://127.0.0.1:{served.port}"
        async with connect(address, compression=None) as socket, background(_say(socket, talk, screen)):
            async for message in socket:
                event = json.loads(message)
                screen.show(event["settled"], event["tail"])


async def _say(socket: ClientConnection, talk: Talk, screen: Screen) -> None:
    await screen.speak(talk.pcm, socket.send)
    await socket.send("stop")
