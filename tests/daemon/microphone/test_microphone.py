"""Microphones, with a real sound server whose inputs are pipes; no hardware is needed."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, client, scripted, service, speech, wait_until

from bench.sound_server import BLOCK, SoundServer
from daemon.commands import cli
from daemon.commands.output import OutputError
from daemon.commands.terminal import Live
from daemon.common.metrics import Metrics
from daemon.core import pipeline
from daemon.engines.thread import ThreadHost
from daemon.microphone import capture, source
from daemon.microphone.capture import MicrophoneError
from daemon.microphone.source import Microphone
from daemon.settings.schema import MicrophoneSettings, Settings
from streaming.events import Audio, Inbound, Start


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket may have 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def sound_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    server = SoundServer(home, "desk")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield server
    finally:
        server.stop()


async def test_the_service_hears_the_microphone(tokenizer_file: Path, sound_server: SoundServer) -> None:
    sections = {"microphone": {"enabled": True, "device": "pulse", "source": "desk"}}
    async with (
        service(scripted(tokenizer_file), sections) as daemon,
        client(daemon.server.url, "/v1/events?source=desk") as other,
    ):
        await wait_until(lambda: daemon.pipeline.sources.states().get("desk") == "listening")
        await sound_server.play(bytes(16000) + speech())
        final = await other.until("final")
        assert final["text"].startswith("turn on the")
        assert 0.5 < final["end"] - final["start"] < 2.5
        assert other.events[0]["type"] == "speech_started"
        assert other.of("partial")
        # What is said last is still heard when the service ends.
        await sound_server.play(bytes(6400) + speech()[: len(speech()) // 4 * 2])
        await other.until("speech_started")
        daemon.stop()
        assert await other.rest() == 1001
    assert [event["utterance"] for event in other.of("final")] == [1, 2]


async def test_a_microphone_that_is_unplugged_and_comes_back(
    tokenizer_file: Path, sound_server: SoundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_FIRST_PAUSE", 0.1)
    sections = {"microphone": {"enabled": True, "device": "desk", "source": "desk"}}
    async with (
        service(scripted(tokenizer_file), sections) as daemon,
        client(daemon.server.url, "/v1/events?source=desk") as other,
    ):

        def state() -> str | None:
            return daemon.pipeline.sources.states().get("desk")

        await wait_until(lambda: state() == "listening")
        await sound_server.play(bytes(16000) + speech())
        await other.until("final")
        # In the middle of a sentence: what was heard of it becomes final.
        await sound_server.play(speech()[: len(speech()) // 4 * 2])
        await other.until("speech_started")
        sound_server.unplug()
        await other.until("final")
        await wait_until(lambda: state() == "idle")
        await wait_until(lambda: "microphone desk: " in daemon._status())
        sound_server.plug()
        await wait_until(lambda: state() == "listening")
        assert "microphone desk: " not in daemon._status()
        await sound_server.play(bytes(16000) + speech())
        assert (await other.until("final"))["text"].startswith("turn on the")
        assert b"whisperd_microphones_open 1.0" in daemon.pipeline.metrics.text()


async def test_two_microphones_at_once(
    tokenizer_file: Path, home: Path, sound_server: SoundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_FIRST_PAUSE", 0.1)
    other_server = SoundServer(home, "usb")
    sections = {
        "microphone": {"enabled": True, "device": "desk", "source": "desk"},
        "microphones": [{"device": "usb", "source": "kitchen"}],
    }
    async with (
        service(scripted(tokenizer_file), sections) as daemon,
        client(daemon.server.url, "/v1/events?source=desk") as desk,
        client(daemon.server.url, "/v1/events?source=kitchen") as kitchen,
    ):
        states = daemon.pipeline.sources.states
        try:
            await wait_until(lambda: states() == {"desk": "listening", "kitchen": "listening"})
            await asyncio.gather(sound_server.play(bytes(16000) + speech()), other_server.play(bytes(32000) + speech()))
            assert (await desk.until("final"))["text"].startswith("turn on the")
            assert (await kitchen.until("final"))["text"].startswith("turn on the")
        finally:
            other_server.stop()
        # One goes and comes back, and the other hears every word meanwhile.
        await wait_until(lambda: states()["kitchen"] == "idle")
        for _ in range(2):
            await sound_server.play(bytes(16000) + speech())
            final = await desk.until("final")
            assert 0.5 < final["end"] - final["start"] < 2.5
        other_server.start()
        try:
            await wait_until(lambda: states()["kitchen"] == "listening")
            await other_server.play(bytes(16000) + speech())
            assert (await kitchen.until("final"))["utterance"] == 1
            assert [final["utterance"] for final in desk.of("final")] == [1, 2, 3]
        finally:
            other_server.stop()


async def test_listening_in_a_terminal(
    tokenizer_file: Path,
    sound_server: SoundServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline.Pipeline.__init__, "__defaults__", (scripted(tokenizer_file), ThreadHost))
    task = asyncio.create_task(cli._listen(pipeline.Pipeline(Settings()), argparse.Namespace(device="pulse")))
    told = ""

    def listening() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "listening with scripted; press Ctrl-C to stop" in told

    await wait_until(listening)
    await asyncio.sleep(0.5)  # PortAudio opens the device; nothing tells when the server has let it in
    await sound_server.play(speech())
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(task, PATIENCE) == 0
    assert capsys.readouterr().out.startswith("turn on the")


async def test_listening_ends_when_nothing_can_be_printed(
    tokenizer_file: Path, sound_server: SoundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*_: Any) -> None:
        raise OutputError(OSError(errno.EPIPE, "nobody reads"))

    monkeypatch.setattr(Live, "show", show)
    listening = cli._listen(pipeline.Pipeline(Settings(), scripted(tokenizer_file)), argparse.Namespace(device="pulse"))
    task = asyncio.create_task(listening)
    while not task.done():
        await sound_server.play(speech())
    with pytest.raises(OutputError):
        await task


async def test_listening_to_a_device_that_is_not_there(
    tokenizer_file: Path,
    sound_server: SoundServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline.Pipeline.__init__, "__defaults__", (scripted(tokenizer_file), ThreadHost))
    assert await cli._listen(pipeline.Pipeline(Settings()), argparse.Namespace(device="nowhere")) == 1
    assert "No input device matching 'nowhere': see `whisperd devices`" in capsys.readouterr().err


def test_it_is_among_the_devices(sound_server: SoundServer) -> None:
    # In a process of its own: PortAudio finds its devices once.
    done = subprocess.run(
        [sys.executable, "-m", "daemon.commands.cli", "devices"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert any("pulse" in line for line in done.stdout.splitlines())


def test_its_program_ends_after_its_reader(sound_server: SoundServer) -> None:
    """A stop reaches every process of the service at once; what was heard must come out all the same."""
    program = [sys.executable, "-P", capture.__file__, json.dumps({"device": "desk", "buffer": 10})]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as popen:
        assert popen.stdin is not None
        assert popen.stdout is not None
        header = json.loads(popen.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            popen.send_signal(number)
        frame = 4 + header["block"]
        assert len(popen.stdout.read(50 * frame)) == 50 * frame  # it hears on
        popen.stdin.close()
        assert len(popen.stdout.read()) % frame == 0
        assert popen.wait(PATIENCE) == 0


# --- a device that misbehaves ----------------------------------------------------------------------------------------
# No real device fails on request: the program that opens one is replaced, or the sound library in it.

PROGRAM = """
import json, sys, time
from pathlib import Path

lives = Path(sys.argv[1])
life, *rest = json.loads(lives.read_text())
lives.write_text(json.dumps(rest))
out = sys.stdout.buffer
if "error" in life or life.get("crash"):
    out.write(b"" if life.get("crash") else json.dumps(life).encode() + b"\\n")
    sys.exit(1)
out.write(json.dumps({"name": "fake", "sample_rate": 16000, "channels": 1, "block": 640}).encode() + b"\\n")
for lost, letter in life["blocks"]:
    out.write(lost.to_bytes(4, "little") + letter.encode() * 640)
out.flush()
if life["then"] == "silent":
    sys.stdin.read()
"""
"""Opens nothing; each time it is started it lives the next of the lives in a file."""


def blocks(*letters: str, lost: int = 0, then: str = "silent") -> dict[str, Any]:
    return {"blocks": [(lost, letter) for letter in letters], "then": then}


class Sink:
    """What a microphone's audio goes into."""

    def __init__(self, start: Start, enough: asyncio.Event, until: int) -> None:
        self.start = start
        self.heard = b""
        self.finished = self.closed = False
        self._enough = enough
        self._until = until

    async def receive(self, message: Inbound) -> None:
        assert isinstance(message, Audio)
        self.heard += message.data
        if len(self.heard) >= self._until:
            self._enough.set()

    async def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True


async def run(
    folder: Path, lives: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, *, until: int
) -> tuple[list[Sink], Metrics]:
    """Run a microphone until one of its streams has heard `until` bytes."""
    (folder / "lives").write_text(json.dumps(lives))
    monkeypatch.setattr(source, "_PROGRAM", (sys.executable, "-c", PROGRAM, str(folder / "lives")))
    monkeypatch.setattr(source, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(source, "_SILENT_DEVICE", 1.0)
    enough, sinks, metrics = asyncio.Event(), [], Metrics()
    ears = Microphone(MicrophoneSettings(source="desk"), metrics)

    def open_stream(start: Start) -> Sink:
        sinks.append(Sink(start, enough, until))
        return sinks[-1]

    task = asyncio.create_task(ears.run(open_stream))
    waiting = asyncio.create_task(enough.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
    waiting.cancel()
    ears.stop()
    await asyncio.wait_for(task, PATIENCE)
    assert all(sink.finished and sink.closed for sink in sinks)
    return sinks, metrics


async def test_a_device_that_fails_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lives = [
        {"error": "it is busy", "hopeless": False},
        blocks("a", "a"),
        {"crash": True},
        blocks("b", then="end"),
        blocks("c", "c", "c"),
    ]
    sinks, metrics = await run(tmp_path, lives, monkeypatch, until=3 * BLOCK)
    assert [sink.heard for sink in sinks] == [b"a" * 2 * BLOCK, b"b" * BLOCK, b"c" * 3 * BLOCK]
    assert sinks[0].start == Start(source="desk")
    for reason in (
        "it is busy",
        "has sent nothing for",
        "its driver ended the process",
        "disappeared: is it unplugged?",
    ):
        assert reason in caplog.text
    assert "whisperd_microphone_reopened_total 4.0" in metrics.text().decode()
    assert "whisperd_microphones_open 0.0" in metrics.text().decode()


async def test_a_device_that_never_opens_does_not_delay_the_end(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_PROGRAM", (sys.executable, "-c", "import sys; sys.stdin.read()"))
    monkeypatch.setattr(source, "_OPENING", 1000)
    # It would give up, with an error, after the drain's time.
    async with service(scripted(tokenizer_file), {"microphone": {"enabled": True}}) as daemon:
        assert "microphone microphone: not opened yet" in daemon._status()


async def test_what_nobody_took_in_time_is_silence_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sinks, metrics = await run(tmp_path, [blocks("a", lost=2)], monkeypatch, until=3 * BLOCK)
    assert sinks[0].heard == bytes(2 * BLOCK) + b"a" * BLOCK
    assert "0.04 s of audio were lost" in caplog.text
    assert "whisperd_microphone_lost_seconds_total 0.04" in metrics.text().decode()


async def test_no_pause_mends_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MicrophoneError, match="it is not installed"):
        await run(tmp_path, [{"error": "it is not installed", "hopeless": True}], monkeypatch, until=1)


def test_a_ring_keeps_the_oldest_and_counts_the_rest() -> None:
    ring = capture.Ring(3 * capture.BLOCK_SECONDS)
    for number in range(5):
        ring.put(bytes([number]))
    taken = iter(ring)
    assert [next(taken) for _ in range(3)] == [(0, b"\0"), (0, b"\1"), (0, b"\2")]
    ring.put(b"\x09")
    ring.end()
    assert list(taken) == [(2, b"\x09")]


class FakeLibrary:
    """What is used of `sounddevice`, for a device that takes some rates and numbers of channels and no other."""

    class PortAudioError(Exception):
        pass

    def _terminate(self) -> None: ...

    def _initialize(self) -> None: ...

    def __init__(self, rates: tuple[int, ...], channels: tuple[int, ...]) -> None:
        self.rates = rates
        self.channels = channels
        self.opened: dict[str, Any] = {}

    def check_input_settings(self, *, samplerate: int, channels: int, **_: Any) -> None:
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")
        if channels not in self.channels:
            raise self.PortAudioError("Invalid number of channels")

    def query_devices(self, *_: Any) -> dict[str, Any]:
        rate, channels = self.rates[0], max(self.channels)
        return {"name": "fake", "default_samplerate": float(rate), "max_input_channels": channels}

    def RawInputStream(self, **options: Any) -> Any:  # noqa: N802 - the library's name
        self.opened = options

        class Stream:
            def start(self) -> None: ...

        return Stream()


@pytest.mark.parametrize(
    ("rates", "channels", "rate", "count"),
    [
        ((48000, 16000), (1, 2), 16000, 1),
        ((48000, 44100), (1,), 48000, 1),
        ((48000, 16000), (2,), 16000, 2),
        ((44100,), (2,), 44100, 2),
        ((16000,), (6,), 16000, 6),
    ],
)
def test_hardware_with_a_format_of_its_own(
    rates: tuple[int, ...], channels: tuple[int, ...], rate: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary(rates, channels)
    monkeypatch.setattr(capture, "sound_library", lambda: library)
    device = capture.CaptureDevice("fake", capture.Ring(1.0))
    assert (library.opened["samplerate"], library.opened["channels"]) == (rate, count)
    assert device.header() == {"name": "fake", "sample_rate": rate, "channels": count, "block": rate // 50 * count * 2}


def test_hardware_with_a_format_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "sound_library", lambda: FakeLibrary((16000,), (32,)))
    with pytest.raises(MicrophoneError, match=r"fake cannot be opened \(Invalid number of channels\)"):
        capture.CaptureDevice("fake", capture.Ring(1.0))


async def test_without_the_library_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MicrophoneError, match=r"pip install 'whisperd\[mic\]'"):
        capture.input_devices()
    from daemon.common.errors import ServiceError

    # The process that would open the device finds none either.
    (tmp_path / "sounddevice.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ServiceError, match=r"microphone: .*pip install"):
        async with service(scripted(tokenizer_file), {"microphone": {"enabled": True}}) as daemon:
            await daemon.server.wait_closed()
