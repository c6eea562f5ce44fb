"""The sound devices of this machine; run as a program, it writes what one of them hears to standard output.

Owns the sound library: finding devices, opening one, and the ring between the device's thread and the reader. Imports
nothing of the daemon, because a program in this folder would find the modules beside it under their plain names.

Each open device has a process of its own. PortAudio lists the devices once in a process. To see one that was plugged in
later it must be initialised again, which ends every open stream. And a driver that hangs or crashes takes its process
down. So a microphone that comes back disturbs no other, and none can stop the service.

    python capture.py '{"device": null, "buffer": 10}'
    -> a line of JSON: {"name", "sample_rate", "channels", "block"} or {"error", "hopeless"}
    -> blocks of 20 ms: four bytes, how many blocks were lost before this one (little-endian); `block` bytes of samples
       (16 bits, little-endian, channels interleaved)
    until its standard input ends; then what it has heard, and it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

_WANTED_RATE = 16000
"""What is asked of the device first: anything else has to be resampled."""

BLOCK_SECONDS = 0.02
_MOST_CHANNELS = 8


class MicrophoneError(Exception):
    """The device cannot be used; the message says why and what to do.

    Attributes:
        hopeless: whether trying again will not help.
    """

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


# --- finding ---------------------------------------------------------------------------------------------------------


def sound_library() -> Any:
    """Return the module `sounddevice`.

    Raises:
        MicrophoneError: it, or PortAudio beneath it, is not installed.
    """
    try:
        import sounddevice
    except ImportError:
        raise MicrophoneError("sounddevice is not installed: pip install 'whisperd[mic]'", hopeless=True) from None
    except OSError:
        raise MicrophoneError("PortAudio is not installed: apt-get install libportaudio2", hopeless=True) from None
    return sounddevice


def _devices_now() -> Any:
    """Return the library, with the devices that are there now.

    PortAudio lists them once, and sounddevice has no public name for initialising it again. That ends the streams of
    the process, but a device is opened only in a process of its own, after this.

    Raises:
        MicrophoneError: as `sound_library`.
    """
    library = sound_library()
    library._terminate()
    library._initialize()
    return library


def input_devices() -> list[str]:
    """Return a line for each device that can record: its number, name, channels and rate.

    Raises:
        MicrophoneError: as `sound_library`.
    """
    library = _devices_now()
    default = library.default.device[0]
    return [
        f"{'*' if number == default else ' '} {number:3d}  {device['name']}  "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:.0f} Hz)"
        for number, device in enumerate(library.query_devices())
        if device["max_input_channels"] > 0
    ]


def find_device(wanted: str | int | None) -> str:
    """Return the name of the input device `wanted`, or of the default one.

    Args:
        wanted: its number or a part of its name; None for the default.

    Raises:
        MicrophoneError: as `sound_library`, or there is no such device.
    """
    library = _devices_now()
    try:
        return str(library.query_devices(wanted, "input")["name"])
    except (library.PortAudioError, ValueError) as error:
        if wanted is None:
            raise MicrophoneError("there is no default input device: plug one in; see `whisperd devices`") from None
        raise MicrophoneError(f"{error}: see `whisperd devices` for those available") from None


# --- one device ------------------------------------------------------------------------------------------------------


class Ring:
    """Blocks on their way from the device's thread to the reader's.

    Those for which there is no room are lost, and counted.

    Args:
        seconds: how much audio it can hold.
    """

    def __init__(self, seconds: float) -> None:
        self._most = max(1, round(seconds / BLOCK_SECONDS))
        # Append and popleft of a deque are atomic, and each side uses only one of them.
        self._blocks: deque[tuple[int, bytes]] = deque()  # (blocks lost before it, block)
        self._lost = 0
        self._changed = threading.Event()
        self._ended = False

    def put(self, block: bytes) -> None:
        """Add a block. It never waits, because the device calls it."""
        if len(self._blocks) >= self._most:
            self._lost += 1
            return
        self._blocks.append((self._lost, block))
        self._lost = 0
        self._changed.set()

    def end(self) -> None:
        """Note that nothing more will be put."""
        self._ended = True
        self._changed.set()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield each block, with the number of blocks that were lost before it, until the end."""
        while True:
            while self._blocks:
                yield self._blocks.popleft()
            if self._ended:
                return
            self._changed.wait()
            self._changed.clear()


class CaptureDevice:
    """An open device that fills `ring`.

    Args:
        wanted: its number or a part of its name; None for the default.
        ring: where its blocks go.

    Raises:
        MicrophoneError: it cannot be opened.
    """

    def __init__(self, wanted: str | int | None, ring: Ring) -> None:
        library = sound_library()
        self.name = find_device(wanted)
        try:
            self.sample_rate, self.channels = _find_format(library, wanted)
            self._stream = library.RawInputStream(
                samplerate=self.sample_rate,
                blocksize=round(self.sample_rate * BLOCK_SECONDS),
                device=wanted,
                channels=self.channels,
                dtype="int16",
                latency="low",
                callback=lambda data, _frames, _time, _status: ring.put(bytes(data)),
                finished_callback=ring.end,
            )
            self._stream.start()
        except (library.PortAudioError, ValueError) as error:
            raise MicrophoneError(f"{self.name} cannot be opened ({error}): see `whisperd devices`") from None

    def header(self) -> dict[str, Any]:
        block = round(self.sample_rate * BLOCK_SECONDS) * self.channels * 2
        return {"name": self.name, "sample_rate": self.sample_rate, "channels": self.channels, "block": block}

    def stop(self) -> None:
        # Not stop(): it waits for the device, for ever when that is stalled.
        self._stream.abort()


def _find_format(library: Any, wanted: str | int | None) -> tuple[int, int]:
    """Return a rate and a number of channels that the device takes. Hardware without a converter takes only its own.

    Raises:
        PortAudioError: it takes none of those that were tried.
    """
    device = library.query_devices(wanted, "input")
    rates = (_WANTED_RATE, int(device["default_samplerate"]))
    channels = sorted({1, 2, device["max_input_channels"]})
    tries = [(rate, count) for count in channels for rate in rates if count <= _MOST_CHANNELS]
    for rate, count in tries:
        try:
            library.check_input_settings(device=wanted, channels=count, dtype="int16", samplerate=rate)
        except library.PortAudioError as error:
            failure = error
        else:
            return rate, count
    raise failure


# --- the program -----------------------------------------------------------------------------------------------------


def main(argument: str) -> int:
    wanted = json.loads(argument)
    # Whoever stops the service sends this to all of its processes; but this one ends after its reader has.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ring = Ring(wanted["buffer"])
    out = sys.stdout.buffer
    try:
        device = CaptureDevice(wanted["device"], ring)
    except MicrophoneError as error:
        _write(out, json.dumps({"error": str(error), "hopeless": error.hopeless}).encode() + b"\n")
        return 1
    _write(out, json.dumps(device.header()).encode() + b"\n")
    asked = threading.Event()

    def until_told() -> None:
        while os.read(0, 1):
            pass
        asked.set()
        ring.end()
        device.stop()

    threading.Thread(target=until_told, daemon=True).start()
    try:
        for lost, block in ring:
            _write(out, lost.to_bytes(4, "little") + block)
    except BrokenPipeError:
        return 1
    return 0 if asked.is_set() else 1


def _write(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()


if __name__ == "__main__":
    # At once: PortAudio's own farewell may wait for a device that does not answer.
    os._exit(main(sys.argv[1]))
