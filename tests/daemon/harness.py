"""What the daemon's tests stand on: a service in this process or in its own, a broker, and a client.

The engine is scripted where only the plumbing is tested; everything else is real: sockets, broker, signals, voices. The
client speaks from the protocol's text alone and knows nothing of the service's code.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tokenizers import Tokenizer
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as library_connect
from websockets.exceptions import ConnectionClosed

from bench.broker import Broker as Broker
from bench.broker import free_port as free_port
from bench.certificate import certificate as certificate
from bench.player import DEMO, said_in
from bench.word_errors import comparable
from daemon.engines.life import LoadEngine
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import Waveform

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data"
PATIENCE = 60.0
"""Seconds after which a test stops waiting: never asserted on, only to fail with a message instead of hanging."""
connect = partial(library_connect, open_timeout=PATIENCE, ping_timeout=PATIENCE)
"""The library's client, which does not give up before a test does."""


# --- audio -----------------------------------------------------------------------------------------------------------

SECOND = bytes(2 * 16000)


def pcm(samples: Waveform) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def speech(name: str = "turn_on_the_kitchen_light") -> bytes:
    """A recording of a voice as 16-bit samples at 16 kHz, with silence around it."""
    return pcm(soundfile.read(DATA / f"{name}.flac", dtype="float32")[0])


def packed(audio: bytes) -> bytes:
    """16-bit samples at 16 kHz as Opus in Ogg."""
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(audio, "<i2"), 16000, format="OGG", subtype="OPUS")
    return file.getvalue()


SAID = said_in(DEMO)[1]
"""What `sentence` says."""
TEACHER: dict[str, Any] = {"escalate": {"when": "always"}}
"""Settings for tests of words: of the shipped pair the teacher is OpenAI's, and hears them right; students learn on."""


def sentence() -> bytes:
    """A person's voice: the second sentence of the demo, with a second of silence behind it."""
    return pcm(soundfile.read(DEMO, dtype="float32")[0][int(5.6 * 16000) : 9 * 16000]) + SECOND


def plain(text: str) -> str:
    """Without what a model may write so or otherwise: capitals, punctuation, figures for numbers."""
    return comparable()(text)


def unfinished_speech() -> bytes:
    """That of `speech`, broken off inside the last word: no endpoint is in it."""
    whole = speech()
    return whole[: len(whole) // 2 // 2 * 2]


async def wait_until(condition: Callable[[], object]) -> None:
    """For what has no event to wait for: the passing of time, a counter."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


# --- the service -----------------------------------------------------------------------------------------------------


def scripted(tokenizer_file: Path, **options: Any) -> LoadEngine:
    """A loader of a `ScriptedEngine`. Its `before` is called in the engine's thread."""
    eot = Tokenizer.from_file(str(tokenizer_file)).get_vocab()["<|endoftext|>"]
    return lambda _: ScriptedEngine(tokenizer_file, eot, **options)


@asynccontextmanager
async def service(
    load: LoadEngine, sections: dict[str, Any] | None = None, environment: ServiceEnvironment | None = None
) -> AsyncIterator[Service]:
    """A service in this loop, ready, on a port of its own; drained at the end."""
    # A process of its own for the engine is for those who ask for one: it would have to import torch first.
    sections = {"engine": {"backend": "thread"}, **(sections or {})}
    sections["server"] = {"port": 0, **sections.get("server", {})}
    made = Service(Settings.model_validate(sections), environment or ServiceEnvironment(), load)
    task = asyncio.create_task(made.run())
    ready = asyncio.create_task(made.wait_ready())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield made
    finally:
        ready.cancel()
        made.stop()
        await task


# --- a client, from the protocol's text ------------------------------------------------------------------------------


Event = dict[str, Any]


@dataclass
class Client:
    """What came is kept; `until` waits for more."""

    ws: ClientConnection
    events: list[Event] = field(default_factory=list)

    async def say(self, **message: Any) -> None:
        await self.ws.send(json.dumps(message))

    async def play(self, audio: bytes, frame: int = 6400) -> None:
        for at in range(0, len(audio), frame):
            await self.ws.send(audio[at : at + frame])

    async def next(self) -> Event:
        async with asyncio.timeout(PATIENCE):
            event: Event = json.loads(await self.ws.recv())
        self.events.append(event)
        return event

    async def until(self, kind: str) -> Event:
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def rest(self) -> int | None:
        """All that still comes; then the close code."""
        try:
            while True:
                await self.next()
        except ConnectionClosed:
            return self.ws.close_code

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event["type"] in kinds]


@asynccontextmanager
async def client(url: str, path: str = "/v1/stream", **options: Any) -> AsyncIterator[Client]:
    async with connect(url + path, compression=None, **options) as ws:
        yield Client(ws)


@dataclass
class Turns:
    """How often others had their turn of the loop."""

    count: int = 0


@asynccontextmanager
async def others_turns() -> AsyncIterator[Turns]:
    turns = Turns()

    async def others() -> None:
        while True:
            turns.count += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(others())
    try:
        yield turns
    finally:
        counting.cancel()


# --- a service in a process of its own -------------------------------------------------------------------------------


@dataclass
class Process:
    """`whisperd run` as a supervisor would run it."""

    popen: subprocess.Popen[str]
    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(PATIENCE)


WHISPERD = ("-m", "daemon.commands.cli")


@contextmanager
def process(
    tmp_path: Path,
    sections: dict[str, Any],
    program: Sequence[str] = WHISPERD,
    *,
    ready: bool = True,
    **environment: str,
) -> Iterator[Process]:
    """Once it is ready, or listens. Killed at the end, if the test has not ended it.

    program: what Python runs as `whisperd`."""
    log_file = tmp_path / "log"
    config = tmp_path / "whisperd.yaml"
    config.write_text(json.dumps({**sections, "server": {"port": 0, **sections.get("server", {})}}))  # JSON is YAML
    with open(log_file, "w") as log:
        popen = subprocess.Popen(
            [sys.executable, *program, "run", "-c", str(config)],
            stderr=log,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "STATE_DIRECTORY": str(tmp_path / "state"), **environment},
            text=True,
        )
    try:
        address = _wait_for_line(popen, log_file, "listening on ")
        if ready:
            _wait_for_line(popen, log_file, "ready: ")
        yield Process(popen, address, log_file)
    finally:
        popen.kill()
        popen.wait()


def _wait_for_line(popen: subprocess.Popen[str], log_file: Path, mark: str) -> str:
    deadline = time.monotonic() + 3 * PATIENCE
    while True:
        for line in log_file.read_text().splitlines():
            if mark in line:
                return line.partition(mark)[2].strip()
        assert popen.poll() is None, f"whisperd ended: {log_file.read_text()}"
        assert time.monotonic() < deadline, f"no {mark!r} in {log_file.read_text()}"
        time.sleep(0.02)  # a file has no event to wait for


# --- a broker --------------------------------------------------------------------------------------------------------


@contextmanager
def broker(folder: Path, *, started: bool = True) -> Iterator[Broker]:
    made = Broker(folder)
    if started:
        made.start()
    try:
        yield made
    finally:
        made.stop()


@dataclass
class Message:
    topic: str
    payload: str
    retain: bool


class Listener:
    """`mosquitto_sub`, a subscriber that is not ours."""

    def __init__(self, popen: asyncio.subprocess.Process) -> None:
        self.messages: list[Message] = []
        self._popen = popen

    async def next(self) -> Message:
        assert self._popen.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await self._popen.stdout.readline()).decode().rstrip("\n")
        assert line, "mosquitto_sub ended"
        retain, topic, payload = line.split(" ", 2)
        message = Message(topic, payload, retain == "1")
        self.messages.append(message)
        return message

    async def until(self, topic: str, payload: str | None = None) -> Message:
        while True:
            message = await self.next()
            if message.topic == topic and payload in (None, message.payload):
                return message

    def payloads(self, topic: str) -> list[str]:
        return [message.payload for message in self.messages if message.topic == topic]


@asynccontextmanager
async def listener(port: int, topics: Sequence[str] = ("whisperd/#",), *options: str) -> AsyncIterator[Listener]:
    """Subscribed: the broker has said so, by way of a retained message of our own. options: of `mosquitto_sub`."""
    popen = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-p", str(port), "-F", "%r %t %p", "-q", "1", *options,
        *[word for topic in (*topics, "test/mark") for word in ("-t", topic)],
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        made = Listener(popen)
        await publish(port, "test/mark", "here", retain=True)
        await made.until("test/mark")
        yield made
    finally:
        if popen.returncode is None:
            popen.kill()
        await popen.wait()


async def publish(port: int, topic: str, payload: str, *, retain: bool = False) -> None:
    arguments = ["-p", str(port), "-t", topic, "-m", payload, "-q", "1", *(["-r"] if retain else [])]
    popen = await asyncio.create_subprocess_exec("mosquitto_pub", *arguments)
    assert await popen.wait() == 0
