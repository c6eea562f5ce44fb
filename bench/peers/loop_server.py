"""A plain loop around faster-whisper: every half second the growing buffer of each stream is transcribed again.

A program of its own, for an environment that has only faster-whisper and websockets: `loop_server.py PORT MODEL
THREADS`. Binary frames are 16-bit mono samples at 16 kHz, the text frame `stop` ends a stream, and each answer has all
of its text: `settled`, and the `tail` that may still change. A buffer ends where its speech does, once 0.6 s without
speech have followed, by the voice detection that faster-whisper brings; and in any case after 28 s.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.vad import VadOptions, get_speech_timestamps
from websockets.asyncio.server import ServerConnection, serve

RATE = 16000
INTERVAL = 0.5
HANGOVER = round(0.6 * RATE)
AROUND = round(0.2 * RATE)
"""Samples behind speech that belong to it."""
KEPT = RATE
"""Samples that are kept while nobody speaks: the beginning of a word may be among them."""
LONGEST = 28 * RATE

_detection = VadOptions(min_silence_duration_ms=100, speech_pad_ms=100)


class Stream:
    """One stream.

    Attributes:
        buffer: 16-bit samples that are not settled.
        settled: the text of all before.
        over: whether no more comes.
    """

    def __init__(self, model: WhisperModel) -> None:
        self.buffer = bytearray()
        self.settled = ""
        self.over = False
        self._model = model

    def look(self) -> str:
        """Hear the buffer, settle what has ended, and return the text of the rest."""
        audio = np.frombuffer(bytes(self.buffer), "<i2").astype(np.float32) / 32768
        speech = get_speech_timestamps(audio, _detection)
        if not speech:
            del self.buffer[: max(0, 2 * (audio.size - KEPT))]
            return ""
        end = min(audio.size, speech[-1]["end"] + AROUND)
        if self.over or audio.size - speech[-1]["end"] >= HANGOVER or audio.size >= LONGEST:
            self.settled = f"{self.settled} {self._text(audio[:end])}".strip()
            del self.buffer[: 2 * end]
            return ""
        return self._text(audio)

    def _text(self, audio: np.ndarray) -> str:
        segments, _ = self._model.transcribe(audio, language="en", beam_size=1, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)


async def answer(socket: ServerConnection, stream: Stream, worker: ThreadPoolExecutor) -> None:
    while True:
        began, over = time.monotonic(), stream.over
        tail = await asyncio.get_running_loop().run_in_executor(worker, stream.look)
        await socket.send(json.dumps({"settled": stream.settled, "tail": tail}))
        if over:
            return
        await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))


async def main(port: int, model: str, threads: int) -> None:
    whisper = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)
    worker = ThreadPoolExecutor(1)  # one call at a time has all threads

    async def hear(socket: ServerConnection) -> None:
        stream = Stream(whisper)
        answering = asyncio.create_task(answer(socket, stream, worker))
        async for message in socket:
            if message == "stop":
                stream.over = True
                break
            assert isinstance(message, bytes), "the only text frame is `stop`"
            stream.buffer += message
        await answering

    async with serve(hear, "127.0.0.1", port, compression=None):
        await asyncio.get_running_loop().create_future()


asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
