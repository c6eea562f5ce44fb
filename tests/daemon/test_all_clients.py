"""One daemon as it is shipped, and everybody's clients at once: each reads what was said, to the last word."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soxr
from foreign import deepgram, deepgram_play, deepgram_rest, deepgram_text, vosk, whisperlive
from harness import PATIENCE, SAID, TEACHER, Process, client, plain, process, sentence, unfinished_speech
from openai import AsyncOpenAI
from websockets.exceptions import ConnectionClosed
from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

# Each loads the real models, and has six clients talk to them at once: a busy machine takes a minute.
pytestmark = pytest.mark.timeout(400)

SECTIONS = TEACHER | {
    "dialects": {"vosk": 0, "whisperlive": 0},
    "wyoming": {"host": "127.0.0.1", "port": 0, "requires_external_vad": True},
}


@dataclass
class Party:
    """What all have in common.

    open_end: nobody says that it has ended; the service does.
    """

    daemon: Process
    audio: bytes
    open_end: bool = False
    _together: asyncio.Barrier = field(default_factory=lambda: asyncio.Barrier(len(GUESTS)))

    def url(self, name: str) -> str:
        """Of a port that is not for all."""
        mark = f"{name}: listening on "
        return next(line.partition(mark)[2].strip() for line in self.daemon.log.splitlines() if mark in line)

    async def all_here(self) -> None:
        """Nobody speaks before all are connected."""
        async with asyncio.timeout(PATIENCE):
            await self._together.wait()


async def native_guest(party: Party) -> str:
    async with client(party.daemon.url, "/v1/stream?source=stream") as mine:
        await party.all_here()
        await mine.play(party.audio)
        if not party.open_end:
            await mine.say(type="stop")
        assert await mine.rest() == (1001 if party.open_end else 1000)
    return " ".join(final["text"] for final in mine.of("final"))


async def deepgram_guest(party: Party) -> str:
    async with deepgram(party.daemon.url, interim_results="true") as mine:
        await party.all_here()
        await deepgram_play(mine, party.audio)
        if not party.open_end:
            await mine.send_close_stream()
        messages = await deepgram_rest(mine)
    assert messages[-1].type == "Metadata"
    return deepgram_text(messages)


async def vosk_guest(party: Party) -> str:
    async with vosk(party.url("vosk")) as mine:
        await party.all_here()
        await mine.play(party.audio)
        if not party.open_end:
            await mine.eof()
        async with asyncio.timeout(PATIENCE):
            mine.answers += [json.loads(message) async for message in mine.ws]
    return mine.text


async def whisperlive_guest(party: Party) -> str:
    async with whisperlive(party.url("whisperlive")) as mine:
        await mine.introduce()
        await mine.until_ready()
        await party.all_here()
        await mine.play(party.audio)
        if not party.open_end:
            await mine.end()
        assert await mine.rest() == (1001 if party.open_end else 1000)
    assert mine.disconnected is party.open_end
    return mine.text


async def openai_guest(party: Party) -> str:
    samples = np.frombuffer(party.audio, "<i2").astype(np.float32) / 32768
    audio = (np.clip(soxr.resample(samples, 16000, 24000), -1, 1) * 32767).astype("<i2").tobytes()
    base = party.daemon.url.replace("ws", "http", 1) + "/v1"
    said: list[str] = []
    async with (
        AsyncOpenAI(api_key="none is needed", base_url=base) as stock,
        stock.realtime.connect(model="gpt-4o-transcribe", extra_query={"intent": "transcription"}) as mine,
    ):
        await party.all_here()
        for at in range(0, len(audio), 9600):
            await mine.input_audio_buffer.append(audio=base64.b64encode(audio[at : at + 9600]).decode())
        with contextlib.suppress(ConnectionClosed):
            while party.open_end or not said:
                async with asyncio.timeout(PATIENCE):
                    event = await mine.recv()
                if event.type == "conversation.item.input_audio_transcription.completed":
                    said.append(event.transcript)
    return " ".join(said)


async def wyoming_guest(party: Party) -> str:
    host, _, port = party.url("wyoming").removeprefix("tcp://").rpartition(":")
    async with AsyncTcpClient(host, int(port), read_timeout=PATIENCE) as mine:
        await party.all_here()
        await mine.write_event(AudioStart(16000, 2, 1).event())
        for at in range(0, len(party.audio), 2048):
            await mine.write_event(AudioChunk(16000, 2, 1, audio=party.audio[at : at + 2048]).event())
        if not party.open_end:
            await mine.write_event(AudioStop().event())
        while True:
            event = await mine.read_event()
            assert event is not None, "hung up without a transcript"
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text


GUESTS: dict[str, Callable[[Party], Awaitable[str]]] = {
    # By the names of their sources.
    "stream": native_guest,
    "deepgram": deepgram_guest,
    "vosk": vosk_guest,
    "whisperlive": whisperlive_guest,
    "openai": openai_guest,
    "wyoming": wyoming_guest,
}


async def everybody(party: Party) -> dict[str, str]:
    texts = await asyncio.gather(*(guest(party) for guest in GUESTS.values()))
    return dict(zip(GUESTS, texts, strict=True))


async def test_everybody_reads_what_was_said(tmp_path: Path) -> None:
    with process(tmp_path, SECTIONS) as daemon:
        texts = await everybody(Party(daemon, sentence()))
        assert daemon.terminate() == 0
    assert {name: plain(text) for name, text in texts.items()} == dict.fromkeys(GUESTS, SAID)
    assert "Traceback" not in daemon.log


async def test_everybody_reads_the_last_words_before_the_service_ends(tmp_path: Path) -> None:
    """SIGTERM while all of them speak: what each is told is what the others were told of it, and it is not nothing."""
    with process(tmp_path, SECTIONS) as daemon:
        async with client(daemon.url, "/v1/events") as other:
            party = asyncio.create_task(everybody(Party(daemon, unfinished_speech(), open_end=True)))
            speaking: set[str] = set()
            while speaking != set(GUESTS):
                speaking.add((await other.until("speech_started"))["source"])
            daemon.popen.send_signal(signal.SIGTERM)
            texts = await party
            assert await other.rest() == 1001
        assert await asyncio.to_thread(daemon.popen.wait, PATIENCE) == 0
    heard = {name: " ".join(each["text"] for each in other.of("final") if each["source"] == name) for name in GUESTS}
    # Some dialects have bare words in small letters.
    assert {name: plain(text) for name, text in texts.items()} == {name: plain(text) for name, text in heard.items()}
    assert all(plain(text).startswith("turn") for text in texts.values())
    assert "Traceback" not in daemon.log
