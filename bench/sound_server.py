"""A microphone without hardware, for the benchmarks and the tests: PulseAudio, whose input is a pipe.

Owns the sound server, plugging its one source in and out, and the voice that speaks into it at the pace of speech.
Knows nothing of who listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import subprocess
import threading
import time
from pathlib import Path

from bench.broker import PATIENCE, MissingError

BLOCK = 640
"""Bytes in 20 ms of 16-bit samples at 16 kHz."""


class Voice:
    """What comes into a FIFO at the pace of speech: what it is given to say, and otherwise silence."""

    def __init__(self, fifo: Path) -> None:
        self._pipe = os.open(fifo, os.O_RDWR)  # a pipe without a reader would end us
        self._blocks: queue.SimpleQueue[bytes | asyncio.Future[None]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def say(self, audio: bytes) -> None:
        """Say something, and return when all of it is said.

        Raises:
            TimeoutError: the voice was stopped meanwhile.
        """
        said = asyncio.get_running_loop().create_future()
        for at in range(0, len(audio), BLOCK):
            self._blocks.put(audio[at : at + BLOCK])
        self._blocks.put(said)
        await asyncio.wait_for(said, PATIENCE)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        os.close(self._pipe)

    def _run(self) -> None:
        os.set_blocking(self._pipe, False)
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due += 0.02
            with contextlib.suppress(BlockingIOError):  # nobody listens now
                os.write(self._pipe, self._next())

    def _next(self) -> bytes:
        try:
            block = self._blocks.get_nowait()
        except queue.Empty:
            return bytes(BLOCK)
        if isinstance(block, bytes):
            return block
        block.get_loop().call_soon_threadsafe(_settle, block)
        return self._next()


def _settle(said: asyncio.Future[None]) -> None:
    if not said.done():  # whoever waited may have given up
        said.set_result(None)


def pulseaudio() -> str:
    """Return the path of the program.

    Raises:
        MissingError: it is not installed.
    """
    program = shutil.which("pulseaudio")
    if program is None or shutil.which("pactl") is None:
        raise MissingError(
            "there is no sound server: apt-get install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"
        )
    return program


class SoundServer:
    """PulseAudio with one source, a FIFO, which PortAudio also sees as the ALSA device `name`.

    Args:
        home: a folder with a short path: the path of a unix socket may have 107 characters.
        name: of the device, and of its folder in `home`.

    Attributes:
        environment: variables with which a process finds it.
    """

    def __init__(self, home: Path, name: str) -> None:
        folder = self.folder = home / name
        folder.mkdir()
        self.fifo = folder / "fifo"
        # PulseAudio will not run as root's session without all of these being its own.
        self.environment = {
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder / "pulse"),
            "PULSE_SERVER": f"unix:{folder}/pulse/native",
            "HOME": str(home),
        }
        with open(home / ".asoundrc", "a") as config:
            config.write(f'pcm.{name} {{ type pulse server "unix:{folder}/pulse/native" }}\n')
        self.start()

    def start(self) -> None:
        """Start PulseAudio, wait until it answers, and plug in the source.

        Raises:
            MissingError: it is not installed.
            RuntimeError: it does not start; its log is in the message.
        """
        program = pulseaudio()
        (self.folder / "pulse").mkdir(mode=0o700)
        with open(self.folder / "log", "w") as log:
            self.popen = subprocess.Popen(
                [program, "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit", "--use-pid-file=no",
                 "-L", f"module-native-protocol-unix socket={self.folder}/pulse/native"],
                env={**os.environ, **self.environment}, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while self._control("info").returncode != 0:
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)  # a server that starts has no event to wait for
        self.plug()

    def plug(self) -> None:
        source = ["source_name=pipe", f"file={self.fifo}", "format=s16le", "rate=16000", "channels=1"]
        self._must("load-module", "module-pipe-source", *source)
        self._control("set-default-source", "pipe")
        self.voice = Voice(self.fifo)

    def unplug(self) -> None:
        """Remove only the source."""
        self.voice.stop()
        self._must("unload-module", "module-pipe-source")

    def stop(self) -> None:
        """Kill the server, without a warning to anybody."""
        self.popen.kill()
        self.popen.wait()
        self.voice.stop()
        shutil.rmtree(self.folder / "pulse")
        self.fifo.unlink(missing_ok=True)

    async def play(self, audio: bytes) -> None:
        await self.voice.say(audio)

    def _must(self, *arguments: str) -> None:
        done = self._control(*arguments)
        if done.returncode != 0:
            raise RuntimeError(f"pactl {' '.join(arguments)}: {done.stderr}")

    def _control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(["pactl", *arguments], env=environment, capture_output=True, text=True, check=False)
