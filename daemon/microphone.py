"""A microphone as a source like any other.

Owns the sound device: finding it, opening it, and opening it again when it fails. The device's own thread puts blocks
into a bounded ring; the event loop takes them out. Blocks that nobody took in time are lost, counted, and heard as
silence, so that the stream's clock goes on. Knows nothing of what becomes of the audio.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from daemon.config import Microphone as MicrophoneSettings
from daemon.metrics import Metrics
from streaming.events import Audio, Inbound, Start

_log = logging.getLogger(__name__)

_RATE = Start().sample_rate
"""What is asked of the device first: anything else has to be resampled."""

_BLOCK_SECONDS = 0.02
_SILENT_DEVICE = 3.0
"""Seconds without a block after which the device is taken for dead. One that works sends fifty a second."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class MicrophoneError(Exception):
    """The device cannot be used; the message says why and what to do."""


class Stream(Protocol):
    async def receive(self, message: Inbound) -> None: ...

    async def finish(self) -> None: ...

    def close(self) -> None: ...


def sound_library() -> Any:
    """The module `sounddevice`.

    Raises:
        MicrophoneError: it, or PortAudio beneath it, is not installed.
    """
    try:
        import sounddevice
    except ImportError:
        raise MicrophoneError("sounddevice is not installed: pip install 'whisperd[mic]'") from None
    except OSError:
        raise MicrophoneError("PortAudio is not installed: apt-get install libportaudio2") from None
    return sounddevice


def input_devices() -> list[str]:
    """A line for each device that can record: its number, name, channels and rate.

    Raises:
        MicrophoneError: as `sound_library`.
    """
    library = sound_library()
    default = library.default.device[0]
    return [
        f"{'*' if number == default else ' '} {number:3d}  {device['name']}  "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz)"
        for number, device in enumerate(library.query_devices())
        if device["max_input_channels"] > 0
    ]


def find_device(wanted: str | int | None) -> str:
    """The name of the input device `wanted`, or of the default one.

    Raises:
        MicrophoneError: as `sound_library`, or there is no such device.
    """
    library = sound_library()
    try:
        return str(library.query_devices(wanted, "input")["name"])
    except (library.PortAudioError, ValueError) as error:
        raise MicrophoneError(f"{error}: see `whisperd devices`, and set microphone.device") from None


class Microphone:
    """One device, as the source that its settings name."""

    def __init__(self, settings: MicrophoneSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Hear no more; `run` then finishes its stream and returns."""
        self._stopped.set()

    async def run(self, open_stream: Callable[[Start], Stream]) -> None:
        """`listen`, and again after growing pauses when the device fails, until stopped.

        Raises:
            MicrophoneError: there is no sound library: no pause would mend that.
        """
        sound_library()
        pause = _FIRST_PAUSE
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                await self.listen(open_stream)
            except MicrophoneError as error:
                if time.monotonic() - began > _LONGEST_PAUSE:
                    pause = _FIRST_PAUSE
                _log.warning("microphone: %s; trying again in %.0f s", error, pause)
                self._metrics.microphone_reopened.inc()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def listen(self, open_stream: Callable[[Start], Stream]) -> None:
        """Open the device and pump it into a stream of its own, until stopped.

        Raises:
            MicrophoneError: the device cannot be opened, or went silent. What was heard has become final.
        """
        async with self._device() as device:
            await self._pump(device, open_stream)

    async def _pump(self, device: _Device, open_stream: Callable[[Start], Stream]) -> None:
        start = Start(source=self._settings.source, sample_rate=device.sample_rate, language=self._settings.language)
        stream = open_stream(start)
        try:
            while (block := await device.read(self._stopped)) is not None:
                await stream.receive(Audio(block))
        finally:
            # Whatever ended it: what was heard becomes final.
            await stream.finish()
            stream.close()

    @contextlib.asynccontextmanager
    async def _device(self) -> AsyncIterator[_Device]:
        device = _Device(self._settings, self._metrics)
        await asyncio.to_thread(device.open)
        _log.info("microphone: listening to %s at %d Hz", device.name, device.sample_rate)
        try:
            yield device
        finally:
            await asyncio.to_thread(device.close)


class _Device:
    """An open device and its ring. Made in the event loop."""

    def __init__(self, settings: MicrophoneSettings, metrics: Metrics) -> None:
        self.name = "the default device" if settings.device is None else str(settings.device)
        self.sample_rate = _RATE
        self._wanted = settings.device
        self._most = max(1, round(settings.buffer / _BLOCK_SECONDS))
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        # Between the two threads: append and popleft of a deque are atomic, and each side uses only one of them.
        self._ring: deque[tuple[int, bytes]] = deque()  # (blocks lost before it, block)
        self._lost = 0
        self._stream: Any = None

    def open(self) -> None:
        """Blocks for as long as the sound system takes."""
        library = sound_library()
        # PortAudio lists the devices once; one that was plugged in later is found only by beginning anew, for which
        # sounddevice has no public name.
        library._terminate()
        library._initialize()
        try:
            self.sample_rate = self._find_rate(library)
            self._stream = library.RawInputStream(
                samplerate=self.sample_rate,
                blocksize=round(self.sample_rate * _BLOCK_SECONDS),
                device=self._wanted,
                channels=1,
                dtype="int16",
                latency="low",
                callback=self._keep,
            )
            self._stream.start()
        except (library.PortAudioError, ValueError) as error:
            self.close()
            raise MicrophoneError(f"{self.name} cannot be opened ({error}): see `whisperd devices`") from None

    def close(self) -> None:
        if self._stream is not None:
            # Not stop(): it waits for the device, for ever when that is stalled.
            self._stream.abort()
            self._stream.close()
            self._stream = None

    async def read(self, stopped: asyncio.Event) -> bytes | None:
        """The next block; None once stopped and empty.

        Raises:
            MicrophoneError: the device went silent.
        """
        while not self._ring:
            if stopped.is_set():
                return None
            self._filled.clear()
            if not await _first_of(self._filled, stopped, _SILENT_DEVICE):
                raise MicrophoneError(f"{self.name} has sent nothing for {_SILENT_DEVICE:.0f} s")
        lost, block = self._ring.popleft()
        if lost:
            seconds = lost * _BLOCK_SECONDS
            self._metrics.microphone_lost_seconds.inc(seconds)
            _log.warning("microphone: %.2f s were lost: nobody took them in time", seconds)
        return bytes(lost * len(block)) + block

    def _find_rate(self, library: Any) -> int:
        try:
            library.check_input_settings(device=self._wanted, channels=1, dtype="int16", samplerate=_RATE)
        except library.PortAudioError:
            # Hardware without a converter in between has rates of its own.
            return int(library.query_devices(self._wanted, "input")["default_samplerate"])
        return _RATE

    def _keep(self, data: Any, _frames: int, _time: Any, _status: Any) -> None:
        """PortAudio's callback, in its thread."""
        if len(self._ring) >= self._most:
            self._lost += 1
            return
        self._ring.append((self._lost, bytes(data)))
        self._lost = 0
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so will the device
            self._loop.call_soon_threadsafe(self._filled.set)


async def _first_of(one: asyncio.Event, other: asyncio.Event, seconds: float) -> bool:
    """Whether one of the two was set in time."""
    tasks = {asyncio.create_task(one.wait()), asyncio.create_task(other.wait())}
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)
