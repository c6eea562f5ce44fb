"""WhisperLive, by its own websocket protocol: segments, of which those that are completed stay."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bench.harness.daemon import ServiceError
from bench.peers.judge import Talk
from bench.peers.screen import Screen
from bench.peers.system import Peer, Served
from bench.tasks import background

_RUN = """
import sys
from whisper_live.server import TranscriptionServer
TranscriptionServer().run(
    "127.0.0.1", port=int(sys.argv[1]), backend="faster_whisper", faster_whisper_custom_model_path=sys.argv[2],
    single_model=True, max_clients=64, max_connection_time=3600,
)
"""
"""What its `run_server.py` does, which its package does not hold, with more clients than the usual four."""

_QUIET = 5.0
"""Seconds without a message after which nothing more comes: its server never says that it is done."""
_MUTE = 15.0
"""Likewise, where it said nothing yet: as long as its own client waits."""


class WhisperLive(Peer):
    name = "WhisperLive"
    says = (
        "0.10.0, faster-whisper in 8 bits, one model for all clients, OMP threads as cores, VAD on (as its own client"
        " asks)"
    )
    environment = "whisper-live"
    installs = (
        "--no-deps whisper-live==0.10.0",  # its requirements are gigabytes of what the backend does not use
        "faster-whisper==1.2.0 tokenizers==0.20.3 torch==2.13.0 'huggingface-hub<1' requests scipy fastapi uvicorn "
        "python-multipart websockets",
    )

    def command(self, port: int) -> list[str]:
        return ["-c", _RUN, str(port), str(self._weights.ctranslate)]

    async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
        async with connect(f"ws://127.0.0.1:{served.port}", compression=None, max_size=None) as socket:
            hello = {
                "uid": name, "language": "en", "task": "transcribe", "model": "tiny.en", "use_vad": True,
                "send_last_n_segments": 10, "no_speech_thresh": 0.45, "clip_audio": False,
                "same_output_threshold": 10,
            }  # fmt: skip
            await socket.send(json.dumps(hello))
            await _ready(socket)
            news = asyncio.Event()
            async with background(_read(socket, screen, news)):
                await screen.speak(talk.pcm, lambda frame: socket.send(_floats(frame)))
                while await _within(news, _QUIET if screen.shown else _MUTE):
                    news.clear()
                await socket.send(b"END_OF_AUDIO")


async def _ready(socket: ClientConnection) -> None:
    async for text in socket:
        message = json.loads(text)
        if message.get("message") == "SERVER_READY":
            return
        if message.get("status") != "WARNING":
            raise ServiceError(f"WhisperLive refused a stream: {message}")
    raise ServiceError("WhisperLive ended a stream before it began")


async def _read(socket: ClientConnection, screen: Screen, news: asyncio.Event) -> None:
    completed: list[dict[str, Any]] = []
    async for message in socket:
        segments = json.loads(message).get("segments", [])
        for each in segments:
            # It sends the last ten again and again; its own client knows new ones in this way.
            new = not completed or float(each["start"]) >= float(completed[-1]["end"])
            if each["completed"] and new:
                completed.append(each)
        tail = segments[-1]["text"] if segments and not segments[-1]["completed"] else ""
        screen.show(" ".join(each["text"].strip() for each in completed), tail)
        news.set()


async def _within(news: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await news.wait()
    except TimeoutError:
        return False


def _floats(frame: bytes) -> bytes:
    return (np.frombuffer(frame, "<i2").astype("<f4") / 32768).tobytes()
