"""Microphones as sources.

Owns the life of a device as a source: the process of `capture.py` that opens it, the stream that its audio goes into,
and opening it again after growing pauses when it fails or is unplugged. Blocks that were not read in time are lost,
counted, and heard as silence, so that the stream's clock goes on. Knows nothing of what becomes of the audio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from daemon.common.logs import bind_log_context, log_context
from daemon.common.metrics import Metrics
from daemon.microphone import capture
from daemon.microphone.capture import BLOCK_SECONDS, MicrophoneError
from daemon.settings.schema import MicrophoneSettings
from streaming.events import Audio, Inbound, Start

_log = logging.getLogger(__name__)

# -P: it must not take the modules beside it for those of the same name elsewhere.
_PROGRAM = (sys.executable, "-P", capture.__file__)

_OPENING = 15.0
"""Seconds that opening a device may take: a sound server that has to start first takes some."""

_ENDING = 1.0
"""Seconds that its process has to end by itself. A driver that hangs does not let it."""

_SILENT_DEVICE = 3.0
"""Seconds without a block after which the device is taken for dead. One that works sends fifty a second."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class AudioConsumer(Protocol):
    async def receive(self, message: Inbound) -> None: ...

    async def finish(self) -> None: ...

    def close(self) -> None: ...


class Microphone:
    """One device, as the source that its settings name.

    Attributes:
        source: its name in events.
        trouble: why it does not hear now; None while it does.
    """

    def __init__(self, settings: MicrophoneSettings, metrics: Metrics) -> None:
        self.source = settings.source
        self.trouble: str | None = "not opened yet"
        self._settings = settings
        self._metrics = metrics
        self._stopped = asyncio.Event()
        self._device: _Device | None = None

    def stop(self) -> None:
        """Stop listening. `run` then finishes its stream and returns."""
        self._stopped.set()
        if self._device is not None:
            self._device.finish()

    async def run(self, open_stream: Callable[[Start], AudioConsumer]) -> None:
        """Listen until stopped; when the device fails, open it again after growing pauses.

        Args:
            open_stream: opens the stream that its audio goes into.

        Raises:
            MicrophoneError: there is no sound library, which no pause would change.
        """
        bind_log_context(source=self.source)
        pause = _FIRST_PAUSE
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                await self.listen(open_stream)
            except MicrophoneError as error:
                if error.hopeless:
                    raise
                if time.monotonic() - began > _LONGEST_PAUSE:
                    pause = _FIRST_PAUSE
                self.trouble = str(error)
                _log.warning("microphone %s: %s; trying again in %g s", self.source, error, pause)
                self._metrics.microphone_reopened.inc()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def listen(self, open_stream: Callable[[Start], AudioConsumer]) -> None:
        """Open the device and pump its audio into a stream of its own, until stopped.

        Args:
            open_stream: opens that stream.

        Raises:
            MicrophoneError: the device cannot be opened, or went away. What was heard has become final.
        """
        with log_context(source=self.source):
            async with self._opened() as device:
                await self._pump(device, open_stream)

    async def _pump(self, device: _Device, open_stream: Callable[[Start], AudioConsumer]) -> None:
        stream = open_stream(
            Start(
                source=self.source,
                sample_rate=device.sample_rate,
                channels=device.channels,
                language=self._settings.language,
            )
        )
        try:
            while (block := await device.read()) is not None:
                await stream.receive(Audio(block))
        finally:
            # Whatever ended it: what was heard becomes final.
            await stream.finish()
            stream.close()

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Device]:
        async with _open(self._settings, self._metrics) as device:
            _log.info(
                "microphone %s: listening to %s at %d Hz, %d channel(s)",
                self.source, device.name, device.sample_rate, device.channels,
            )  # fmt: skip
            self._device, self.trouble = device, None
            self._metrics.microphones_open.inc()
            if self._stopped.is_set():
                device.finish()
            try:
                yield device
            finally:
                self._device = None
                self._metrics.microphones_open.dec()


@contextlib.asynccontextmanager
async def _open(settings: MicrophoneSettings, metrics: Metrics) -> AsyncIterator[_Device]:
    """Open the device in a process of its own, for a block.

    Raises:
        MicrophoneError: the device cannot be opened.
    """
    wanted = json.dumps({"device": settings.device, "buffer": settings.buffer})
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, wanted,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # ALSA's library complains there of every device that it does not find
    )  # fmt: skip
    try:
        header = await _header(process, "the default device" if settings.device is None else str(settings.device))
        yield _Device(process, header, metrics)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None, "it was asked for"
    process.stdin.close()
    try:
        async with asyncio.timeout(_ENDING):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _header(process: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    assert process.stdout is not None, "it was asked for"
    try:
        async with asyncio.timeout(_OPENING):
            line = await process.stdout.readline()
    except TimeoutError:
        raise MicrophoneError(
            f"{name} could not be opened within {_OPENING:.0f} s: is its sound server running?"
        ) from None
    if not line:
        code = await process.wait()
        raise MicrophoneError(f"{name} cannot be opened: its driver ended the process that opened it (code {code})")
    header: dict[str, Any] = json.loads(line)
    if "error" in header:
        raise MicrophoneError(header["error"], hopeless=header["hopeless"])
    return header


class _Device:
    """An open device, at the other end of a pipe."""

    def __init__(self, process: asyncio.subprocess.Process, header: dict[str, Any], metrics: Metrics) -> None:
        self.name: str = header["name"]
        self.sample_rate: int = header["sample_rate"]
        self.channels: int = header["channels"]
        self._block: int = header["block"]
        self._process = process
        self._metrics = metrics
        self._finishing = False

    def finish(self) -> None:
        """Stop listening. What was heard can still be read."""
        assert self._process.stdin is not None, "it was asked for"
        self._finishing = True
        self._process.stdin.close()

    async def read(self) -> bytes | None:
        """Return the next block; None once it has finished and all was read.

        Raises:
            MicrophoneError: the device went silent, or away.
        """
        assert self._process.stdout is not None, "it was asked for"
        try:
            async with asyncio.timeout(_SILENT_DEVICE):
                frame = await self._process.stdout.readexactly(4 + self._block)
        except TimeoutError:
            if self._finishing:
                return None
            raise MicrophoneError(
                f"{self.name} has sent nothing for {_SILENT_DEVICE:.0f} s: is it unplugged?"
            ) from None
        except asyncio.IncompleteReadError:
            if self._finishing:
                return None
            raise MicrophoneError(f"{self.name} disappeared: is it unplugged?") from None
        lost, block = int.from_bytes(frame[:4], "little"), frame[4:]
        if lost:
            seconds = lost * BLOCK_SECONDS
            self._metrics.microphone_lost_seconds.inc(seconds)
            _log.warning("microphone: %.2f s of audio were lost: they were not read in time", seconds)
        return bytes(lost * len(block)) + block
