"""Sound files as sources.

Owns where they come from (a path, a pipe, an upload), reading them in pieces, with a header or without one, and that
the event loop does not wait for a decoder, which runs in a thread. Knows nothing of what becomes of the audio.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from streaming.audio import AudioFormat, AudioFormatError
from streaming.events import Audio, Encoding, Start
from streaming.recording import RecordingError, RecordingReader, Samples

_BLOCK_SECONDS = 0.1
_TURN_SECONDS = 1.0  # that are decoded at a time
_IN_MEMORY = 1 << 24  # bytes of a pipe; what is more is kept on disk


class FileError(Exception):
    """A file cannot be read; the message says why."""


def printable(path: str) -> str:
    """Return `path` as text for messages and events: a path is bytes, which need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


class AudioFile:
    """An open file, of any kind that `RecordingReader` decodes.

    Args:
        path: its name in messages, and where it is, unless `file` is given. "-" is standard input. What cannot be read
            twice, such as a pipe, is read to its end first.
        file: the file, if it is already open.

    Raises:
        FileError: there is no such file, or it holds no sound.

    Attributes:
        name: the path as printable text.
        sample_rate: as in the file, in Hz.
        channels: as in the file.
        announced: the length that the file says it has, in seconds; None if it does not say.
    """

    def __init__(self, path: str, file: IO[bytes] | None = None) -> None:
        self.name = printable(path)
        self._decoding = threading.Lock()  # what a thread still reads is not closed
        self._kept = _file(path) if file is None else None  # ours to close
        try:
            self._recording = RecordingReader(cast(IO[bytes], self._kept or file))
        except (RecordingError, OSError, ValueError) as error:  # ValueError: it was closed meanwhile
            self._forget()
            raise FileError(f"{self.name}: is not a sound file that can be read: {_reason(error)}") from None
        self.sample_rate = self._recording.sample_rate
        self.channels = self._recording.channels
        self.announced = self._recording.announced

    @classmethod
    async def opened(cls, path: str, file: IO[bytes] | None = None) -> AudioFile:
        """Open a file in a thread, because its beginning may take long to read. See the class for the arguments.

        Raises:
            FileError: there is no such file, or it holds no sound.
        """
        return await asyncio.to_thread(cls, path, file)

    @property
    def seconds(self) -> float:
        """The seconds that were decoded so far."""
        return self._recording.seconds

    @property
    def missing(self) -> str | None:
        """What could not be heard, and why, in words. It is known after the end."""
        return self._recording.missing()

    def start(self, *, partials: bool, words: bool) -> Start:
        """Return the `Start` of its stream. The source is the file's name."""
        return Start(
            source=self.name,
            encoding="pcm_f32le",
            sample_rate=self.sample_rate,
            channels=self.channels,
            partials=partials,
            words=words,
        )

    async def blocks(self) -> AsyncIterator[tuple[Audio, float]]:
        """Yield the audio in pieces, each with its length in seconds. What is damaged is left out: see `missing`."""
        size = max(1, round(_BLOCK_SECONDS * self.sample_rate))
        while (turn := await asyncio.to_thread(self._turn)) is not None:
            for at in range(0, len(turn), size):
                block = turn[at : at + size]
                yield Audio(block.astype("<f4").tobytes()), len(block) / self.sample_rate

    def _turn(self) -> Samples | None:
        """Return about as much as is decoded at a time; None at the end."""
        pieces: list[Samples] = []
        count = 0
        with self._decoding:
            while count < _TURN_SECONDS * self.sample_rate:
                piece = self._recording.read()
                if piece is None:
                    break
                pieces.append(piece)
                count += len(piece)
                if not len(piece):
                    break  # a long way without sound
        return np.concatenate(pieces) if pieces else None

    def close(self) -> None:
        with self._decoding:
            self._recording.close()
            self._forget()

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.close()


class RawFile:
    """An open file of samples without a header, whose form somebody else knows.

    Args:
        name: its name in messages.
        file: the file.
        start: says the encoding, the rate and the channels.

    Raises:
        FileError: there are no such samples.

    Attributes:
        name: as above.
        channels: how many there are.
    """

    def __init__(self, name: str, file: IO[bytes], start: Start) -> None:
        self.name = name
        self.channels = start.channels
        self._file = file
        try:
            self._form = AudioFormat(cast(Encoding, start.encoding), start.sample_rate, start.channels)
        except AudioFormatError as error:
            raise FileError(f"{name}: {error}") from None
        self._frames = 0  # read so far
        self._rest = 0  # bytes at the end that are no frame

    @property
    def seconds(self) -> float:
        """The seconds that were read so far."""
        return self._frames / self._form.sample_rate

    @property
    def missing(self) -> str | None:
        """What could not be heard, and why, in words. It is known after the end."""
        if not self._rest:
            return None
        return f"it ends in the middle of a sample, with {self._rest} of {self._form.frame_bytes} bytes"

    def start(self, *, partials: bool, words: bool) -> Start:
        """Return the `Start` of its stream. The source is the file's name."""
        return Start(
            source=self.name,
            encoding=self._form.encoding,
            sample_rate=self._form.sample_rate,
            channels=self.channels,
            partials=partials,
            words=words,
        )

    async def blocks(self) -> AsyncIterator[tuple[Audio, float]]:
        """Yield the audio in pieces, each with its length in seconds."""
        width, rate = self._form.frame_bytes, self._form.sample_rate
        size = width * max(1, round(_BLOCK_SECONDS * rate))
        while turn := await asyncio.to_thread(self._file.read, width * round(_TURN_SECONDS * rate)):
            self._rest = len(turn) % width
            whole = turn[: len(turn) - self._rest]
            self._frames += len(whole) // width
            for at in range(0, len(whole), size):
                block = whole[at : at + size]
                yield Audio(block), len(block) / width / rate

    def close(self) -> None:
        """Do nothing: the file is closed by whoever opened it."""


def _reason(error: Exception) -> str:
    """Return what is wrong, without the path, which is named before."""
    return str(getattr(error, "strerror", None) or error)


def _file(path: str) -> IO[bytes]:
    """Open a sound file for reading; `-` is standard input.

    Raises:
        FileError: there is no such file, or it cannot be read.
    """
    try:
        if path == "-":
            with open(sys.stdin.fileno(), "rb", closefd=False) as pipe:
                return _whole(pipe)
        if not Path(path).exists():
            raise FileError(f"{printable(path)}: there is no such file")
        if Path(path).is_dir():
            raise FileError(f"{printable(path)}: is a directory; name the files in it")
        if Path(path).is_file():
            return Path(path).open("rb")
        with Path(path).open("rb") as pipe:
            return _whole(pipe)
    except OSError as error:
        raise FileError(f"{printable(path)}: is not a sound file that can be read: {_reason(error)}") from None


def _whole(pipe: IO[bytes]) -> IO[bytes]:
    """Return all of a pipe as a file that can be read in any order."""
    kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - it lives as long as the sound file
    shutil.copyfileobj(pipe, kept)
    return cast(IO[bytes], kept)
