"""wyoming-faster-whisper, by Wyoming: a turn for each utterance, and a transcript at its end."""

from __future__ import annotations

import asyncio
import os

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from bench.peers.judge import Talk
from bench.peers.screen import Screen
from bench.peers.system import Peer, Served
from streaming.job import SAMPLE_RATE


class WyomingWhisper(Peer):
    name = "wyoming-faster-whisper"
    says = (
        "3.8.1, faster-whisper with the weights' own type and a beam of 5 (its defaults), --cpu-threads as cores; its"
        " client ends each turn, 0.6 s after the last word"
    )
    partials = False
    environment = "wyoming-faster-whisper"
    installs = ("wyoming-faster-whisper==3.8.1",)

    def command(self, port: int) -> list[str]:
        return [
            "-m", "wyoming_faster_whisper", "--uri", f"tcp://127.0.0.1:{port}", "--data-dir",
            str(self._weights.ctranslate.parent), "--model", str(self._weights.ctranslate), "--language", "en",
            "--stt-library", "faster-whisper", "--cpu-threads", str(os.cpu_count() or 1), "--local-files-only",
        ]  # fmt: skip

    async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
        turns = _Turns(served.port, talk.closed, screen)
        async with asyncio.TaskGroup() as tasks:
            turns.tasks = tasks
            await screen.speak(talk.pcm, turns.send)
            await turns.close()


class _Turns:
    """One speaker's turns, with a connection each: the next may begin while the last is still being transcribed.

    Attributes:
        tasks: wait for transcripts.
    """

    tasks: asyncio.TaskGroup

    def __init__(self, port: int, closed: tuple[float, ...], screen: Screen) -> None:
        self._port = port
        self._closed = list(closed)
        self._screen = screen
        self._client: AsyncTcpClient | None = None
        self._seconds = 0.0
        self._texts: list[str] = []

    async def send(self, frame: bytes) -> None:
        if self._client is None:
            self._client = AsyncTcpClient("127.0.0.1", self._port)
            await self._client.connect()
            await self._client.write_event(Transcribe(language="en").event())
            await self._client.write_event(AudioStart(SAMPLE_RATE, 2, 1).event())
        await self._client.write_event(AudioChunk(SAMPLE_RATE, 2, 1, audio=frame).event())
        self._seconds += len(frame) / 2 / SAMPLE_RATE
        if self._closed and self._seconds >= self._closed[0]:
            del self._closed[0]
            await self.close()

    async def close(self) -> None:
        """End the turn, if there is one."""
        if self._client is not None:
            await self._client.write_event(AudioStop().event())
            self._texts.append("")
            self.tasks.create_task(self._transcript(self._client, len(self._texts) - 1))
            self._client = None

    async def _transcript(self, client: AsyncTcpClient, turn: int) -> None:
        try:
            while (event := await client.read_event()) is not None:
                if Transcript.is_type(event.type):
                    self._texts[turn] = Transcript.from_event(event).text
                    self._screen.show(" ".join(self._texts))
                    return
        finally:
            await client.disconnect()
        raise EOFError("the connection ended without a transcript")
