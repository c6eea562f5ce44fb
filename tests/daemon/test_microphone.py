"""The microphone, with a real sound server whose input is a pipe; no hardware is needed."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, client, scripted, service, speech, wait_until

from daemon import app, cli, microphone
from daemon.config import Microphone as MicrophoneSettings
from daemon.config import Settings
from daemon.metrics import Metrics
from daemon.microphone import Microphone, MicrophoneError
from streaming.events import Audio, Inbound, Start

BLOCK = 640  # bytes in 20 ms


class SoundServer:
    """PulseAudio with one source, a FIFO. What is written into it is heard, at real-time pace."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("pulseaudio")
        assert program, "these tests need a sound server: apt-get install pulseaudio libasound2-plugins libportaudio2"
        self.fifo = folder / "mic.fifo"
        (folder / "pulse").mkdir(mode=0o700)
        # PulseAudio will not run as root's session without all of these being its own.
        self.environment = {
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder / "pulse"),
            "PULSE_SERVER": f"unix:{folder}/pulse/native",
            "HOME": str(folder),
        }
        source = f"module-pipe-source source_name=pipemic file={self.fifo} format=s16le rate=16000 channels=1"
        with open(folder / "pulse.log", "w") as log:
            self.popen = subprocess.Popen(
                [program, "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit", "--use-pid-file=no",
                 "-L", f"module-native-protocol-unix socket={folder}/pulse/native", "-L", source],
                env={**os.environ, **self.environment}, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while self._control("set-default-source", "pipemic") != 0:
            assert self.popen.poll() is None, (folder / "pulse.log").read_text()
            assert time.monotonic() < deadline, (folder / "pulse.log").read_text()
            time.sleep(0.02)  # a server that starts has no event to wait for

    def _control(self, *arguments: str) -> int:
        environment = {**os.environ, **self.environment}
        return subprocess.run(["pactl", *arguments], env=environment, capture_output=True, check=False).returncode

    def stop(self) -> None:
        self.popen.kill()
        self.popen.wait()

    async def play(self, audio: bytes) -> None:
        """At the pace of speech: the pipe would take more, and the server would hear it in a rush."""
        began = time.monotonic()
        pipe = os.open(self.fifo, os.O_RDWR)
        try:
            for number, at in enumerate(range(0, len(audio), BLOCK)):
                os.write(pipe, audio[at : at + BLOCK])
                await asyncio.sleep(began + (number + 1) * 0.02 - time.monotonic())
        finally:
            os.close(pipe)


@pytest.fixture
def sound_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    # Not tmp_path: the path of a unix socket may have 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        server = SoundServer(Path(folder))
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


async def test_listening_in_a_terminal(
    tokenizer_file: Path,
    sound_server: SoundServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(app.Pipeline.__init__, "__defaults__", (scripted(tokenizer_file),))
    task = asyncio.create_task(cli._listen(Settings(), argparse.Namespace(device="pulse")))
    told = ""

    def listening() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "listening with scripted; Ctrl-C ends it" in told

    await wait_until(listening)
    await asyncio.sleep(0.5)  # PortAudio opens the device; nothing tells when the server has let it in
    await sound_server.play(speech())
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(task, PATIENCE) == 0
    assert capsys.readouterr().out.startswith("turn on the")


async def test_listening_to_a_device_that_is_not_there(
    tokenizer_file: Path,
    sound_server: SoundServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(app.Pipeline.__init__, "__defaults__", (scripted(tokenizer_file),))
    assert await cli._listen(Settings(), argparse.Namespace(device="nowhere")) == 1
    assert "nowhere cannot be opened" in capsys.readouterr().err


def test_it_is_among_the_devices(sound_server: SoundServer) -> None:
    # In a process of its own: PortAudio finds its devices once.
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "devices"], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert any("pulse" in line for line in done.stdout.splitlines())


# --- a device that misbehaves ----------------------------------------------------------------------------------------
# The sound library is replaced: no real device fails on request.


class FakeLibrary:
    """What is used of `sounddevice`. Each stream that is opened gets the next life: blocks to send, or an error."""

    class PortAudioError(Exception):
        pass

    def __init__(self, lives: list[list[bytes] | str], rates: tuple[int, ...] = (16000,)) -> None:
        self.lives = lives
        self.rates = rates
        self.opened: list[int] = []
        self.aborted = 0

    def _terminate(self) -> None: ...

    def _initialize(self) -> None: ...

    def check_input_settings(self, *, samplerate: int, **_: Any) -> None:
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")

    def query_devices(self, *_: Any) -> dict[str, Any]:
        return {"name": "fake", "default_samplerate": float(self.rates[0]), "max_input_channels": 1}

    def RawInputStream(self, *, samplerate: int, callback: Any, **_: Any) -> Any:  # noqa: N802 - the library's name
        life = self.lives.pop(0)
        if isinstance(life, str):
            raise self.PortAudioError(life)
        self.opened.append(samplerate)
        library = self

        class Stream:
            def start(self) -> None:
                for block in life:
                    callback(block, len(block) // 2, None, None)

            def abort(self) -> None:
                library.aborted += 1

            def close(self) -> None: ...

        return Stream()


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
    library: FakeLibrary, monkeypatch: pytest.MonkeyPatch, *, until: int, buffer: float = 10.0
) -> tuple[list[Sink], Metrics]:
    """Run a microphone until one of its streams has heard `until` bytes."""
    monkeypatch.setattr(microphone, "sound_library", lambda: library)
    monkeypatch.setattr(microphone, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(microphone, "_SILENT_DEVICE", 0.05)
    enough, sinks, metrics = asyncio.Event(), [], Metrics()
    ears = Microphone(MicrophoneSettings(buffer=buffer), metrics)

    def open_stream(start: Start) -> Sink:
        sinks.append(Sink(start, enough, until))
        return sinks[-1]

    task = asyncio.create_task(ears.run(open_stream))
    await asyncio.wait_for(enough.wait(), PATIENCE)
    ears.stop()
    await asyncio.wait_for(task, PATIENCE)
    assert all(sink.finished and sink.closed for sink in sinks)
    return sinks, metrics


async def test_a_device_that_fails_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeLibrary(["it is busy", [b"\1" * BLOCK] * 2, "it is gone", [b"\2" * BLOCK] * 5])
    sinks, metrics = await run(library, monkeypatch, until=5 * BLOCK)
    assert [sink.heard for sink in sinks] == [b"\1" * 2 * BLOCK, b"\2" * 5 * BLOCK]
    assert library.aborted == 2
    assert "cannot be opened (it is busy)" in caplog.text
    assert "has sent nothing for" in caplog.text
    assert "whisperd_microphone_reopened_total 3.0" in metrics.text().decode()


async def test_what_nobody_took_in_time_is_silence_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # All blocks come before the loop turns; the ring holds three. Then one more comes, when there is room.
    library = FakeLibrary([[b"\1" * BLOCK] * 5])
    sinks, metrics = await run(library, monkeypatch, until=3 * BLOCK, buffer=0.06)
    assert sinks[0].heard == b"\1" * 3 * BLOCK

    device = microphone._Device(MicrophoneSettings(buffer=0.06), metrics)
    for number in range(5):
        device._keep(bytes([number]) * BLOCK, BLOCK // 2, None, None)
    never = asyncio.Event()
    heard = [await device.read(never) for _ in range(3)]
    device._keep(b"\x09" * BLOCK, BLOCK // 2, None, None)
    heard.append(await device.read(never))
    assert heard == [b"\0" * BLOCK, b"\1" * BLOCK, b"\2" * BLOCK, bytes(2 * BLOCK) + b"\x09" * BLOCK]
    assert "0.04 s were lost" in caplog.text
    assert "whisperd_microphone_lost_seconds_total 0.04" in metrics.text().decode()


async def test_hardware_with_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary([[bytes(1920)] * 3], rates=(48000, 44100))
    sinks, _ = await run(library, monkeypatch, until=1920)
    assert library.opened == [48000]
    assert sinks[0].start == Start(source="microphone", sample_rate=48000)


async def test_without_the_library_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MicrophoneError, match=r"pip install 'whisperd\[mic\]'"):
        microphone.input_devices()
    from daemon.app import ServiceError

    with pytest.raises(ServiceError, match=r"microphone: .*pip install"):
        async with service(scripted(tokenizer_file), {"microphone": {"enabled": True}}) as daemon:
            await daemon.server.wait_closed()
