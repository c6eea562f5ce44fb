"""Clients of other services: Deepgram's stock one, and those of Vosk and WhisperLive, in the shape of the published.

Vosk's is no package, and WhisperLive's brings a server and PortAudio. None knows whisperd, and each does what its
maker's does: no more, and in that order.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deepgram import AsyncDeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v1.socket_client import AsyncV1SocketClient
from harness import PATIENCE, connect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

RATE = 16000
Told = dict[str, Any]


# --- Deepgram --------------------------------------------------------------------------------------------------------


def deepgram_client(url: str, **credentials: Any) -> AsyncDeepgramClient:
    environment = DeepgramClientEnvironment(base=url, production=url, agent=url, agent_rest=url)
    return AsyncDeepgramClient(environment=environment, **(credentials or {"api_key": "none is needed"}))


@asynccontextmanager
async def deepgram(url: str, credentials: Told | None = None, **parameters: Any) -> AsyncIterator[AsyncV1SocketClient]:
    asked = {"model": "nova-3", "encoding": "linear16", "sample_rate": RATE, **parameters}
    async with deepgram_client(url, **(credentials or {})).listen.v1.connect(**asked) as connection:
        yield connection


async def deepgram_play(connection: AsyncV1SocketClient, audio: bytes, frame: int = 6400) -> None:
    for at in range(0, len(audio), frame):
        await connection.send_media(audio[at : at + frame])


async def deepgram_rest(connection: AsyncV1SocketClient) -> list[Any]:
    """All that still comes."""
    async with asyncio.timeout(PATIENCE):
        return [message async for message in connection]


async def deepgram_until(connection: AsyncV1SocketClient, kind: str) -> list[Any]:
    """All that comes, up to the first of that type."""
    messages: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        while not messages or messages[-1].type != kind:
            messages.append(await connection.recv())
    return messages


def deepgram_text(messages: list[Any]) -> str:
    """As their examples put it together."""
    finals = [each for each in messages if each.type == "Results" and each.is_final]
    return " ".join(filter(None, (each.channel.alternatives[0].transcript for each in finals)))


# --- Vosk ------------------------------------------------------------------------------------------------------------


@dataclass
class Vosk:
    """One question, one answer."""

    ws: ClientConnection
    answers: list[Told] = field(default_factory=list)

    async def ask(self, message: str | bytes) -> Told:
        await self.ws.send(message)
        async with asyncio.timeout(PATIENCE):
            answer: Told = json.loads(await self.ws.recv())
        self.answers.append(answer)
        return answer

    async def play(self, audio: bytes, seconds: float = 0.2) -> None:
        frame = 2 * int(RATE * seconds)
        for at in range(0, len(audio), frame):
            await self.ask(audio[at : at + frame])

    async def eof(self) -> Told:
        return await self.ask('{"eof" : 1}')

    @property
    def text(self) -> str:
        return " ".join(filter(None, (each.get("text") for each in self.answers)))


@asynccontextmanager
async def vosk(url: str, config: str | None = '{ "config" : { "sample_rate" : 16000 } }') -> AsyncIterator[Vosk]:
    async with connect(url) as ws:
        if config is not None:
            await ws.send(config)
        yield Vosk(ws)


# --- WhisperLive -----------------------------------------------------------------------------------------------------


@dataclass
class WhisperLive:
    """What theirs keeps of what it is told; a message that is not its own is passed over."""

    ws: ClientConnection
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    recording: bool = False
    waiting: bool = False
    server_error: bool = False
    backend: str = ""
    language: str | None = None
    statuses: list[Told] = field(default_factory=list)
    transcript: list[Told] = field(default_factory=list)
    last_segment: Told | None = None
    disconnected: bool = False

    async def introduce(self, **options: Any) -> None:
        hello = {
            "uid": self.uid, "language": "en", "task": "transcribe", "model": "small", "use_vad": True,
            "max_clients": 4, "max_connection_time": 600, "send_last_n_segments": 10, "no_speech_thresh": 0.45,
            "clip_audio": False, "same_output_threshold": 10, **options,
        }  # fmt: skip
        await self.ws.send(json.dumps(hello))

    async def until_ready(self) -> None:
        """It sends no audio before, and gives up when it is told to wait, or of an error."""
        while not (self.recording or self.waiting or self.server_error):
            await self.listen()

    async def play(self, audio: bytes, samples: int = 4096) -> None:
        floats = (np.frombuffer(audio, "<i2").astype("<f4") / 32768).tobytes()
        for at in range(0, len(floats), 4 * samples):
            await self.ws.send(floats[at : at + 4 * samples])

    async def end(self) -> None:
        await self.ws.send(b"END_OF_AUDIO")

    async def rest(self) -> int | None:
        """All that still comes; then the close code."""
        try:
            while True:
                await self.listen()
        except ConnectionClosed:
            return self.ws.close_code

    async def listen(self) -> None:
        async with asyncio.timeout(PATIENCE):
            message = json.loads(await self.ws.recv())
        if message.get("uid") != self.uid:
            return
        if "status" in message:
            self.statuses.append(message)
            self.waiting = self.waiting or message["status"] == "WAIT"
            self.server_error = self.server_error or message["status"] == "ERROR"
        elif message.get("message") == "DISCONNECT":
            self.recording, self.disconnected = False, True
        elif message.get("message") == "SERVER_READY":
            self.recording, self.backend = True, message["backend"]
        elif "language" in message:
            self.language = message["language"]
        elif "segments" in message:
            self._take(message["segments"])

    def _take(self, segments: list[Told]) -> None:
        for number, segment in enumerate(segments, 1):
            if number == len(segments) and not segment.get("completed", False):
                self.last_segment = segment
            elif (
                self.backend == "faster_whisper"
                and segment.get("completed", False)
                and (not self.transcript or float(segment["start"]) >= float(self.transcript[-1]["end"]))
            ):
                self.transcript.append(segment)

    @property
    def text(self) -> str:
        return "".join(segment["text"] for segment in self.transcript).strip()


@asynccontextmanager
async def whisperlive(url: str) -> AsyncIterator[WhisperLive]:
    async with connect(url) as ws:
        yield WhisperLive(ws)
