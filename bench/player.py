"""A websocket client that plays a recording at the pace of speech.

Owns the pace, and hands over what comes back. Speaks only the documented protocol; knows nothing of the service's code.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from websockets.asyncio.client import connect

FRAME_SECONDS = 0.02

_DATA = Path(__file__).parent / "data"

DEMO = _DATA / "demo.flac"
"""A few sentences of one reader, with pauses between them; beside it, a line an utterance, what is said."""

SENTENCES = _DATA / "sentences.ogg"
"""Short sentences of different readers, with pauses between them; likewise."""

TALK = _DATA / "talk.ogg"
"""Two minutes of one reader, who goes on reading; likewise."""


class RecordingError(Exception):
    """A recording cannot be played; the message says what to do."""


def said_in(recording: Path) -> list[str]:
    """Return what is said in a recording, an utterance each.

    Raises:
        RecordingError: nobody wrote it down.
    """
    text = recording.with_suffix(".txt")
    if not text.is_file():
        raise RecordingError(f"there is no {text}: write into it, a line an utterance, what {recording.name} says")
    return text.read_text(encoding="utf-8").splitlines()


def read_pcm(path: str) -> tuple[bytes, int]:
    """Return the 16-bit mono samples of a file, and its samples per second."""
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    first: NDArray[np.int16] = samples[:, 0]
    return first.tobytes(), int(rate)


async def play(
    url: str, source: str, pcm: bytes, rate: int, heard: Callable[[dict[str, Any]], None], *, words: bool = False
) -> None:
    """Stream a recording in frames of 20 ms, each at its time, until `stopped` comes.

    Args:
        url: of the service.
        source: the name of the stream.
        pcm: 16-bit mono samples.
        rate: samples per second.
        heard: called with every event as it comes.
        words: whether finals have the times of their words.
    """
    async with connect(f"{url}/v1/stream?source={source}", compression=None) as socket:
        await socket.send(json.dumps({"type": "start", "sample_rate": rate, "words": words}))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_send(socket, pcm, int(rate * FRAME_SECONDS) * 2))
            async for message in socket:
                heard(json.loads(message))


async def _send(socket: Any, pcm: bytes, frame_bytes: int) -> None:
    began = time.monotonic()
    for number, start in enumerate(range(0, len(pcm), frame_bytes)):
        # A sample is sent when a microphone would have heard it, so that lag is measured from there.
        await asyncio.sleep(max(0.0, began + (number + 1) * FRAME_SECONDS - time.monotonic()))
        await socket.send(pcm[start : start + frame_bytes])
    await socket.send(json.dumps({"type": "stop"}))
