"""Sound files as a source like any other.

Owns where they come from (a path, a pipe, an upload), reading them in pieces, and that nobody on the event loop waits
for it: a decoder has its time in a thread. Knows nothing of what becomes of the audio.
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

from streaming.events import Audio, Start
from streaming.recording import Recording, RecordingError, Samples

_BLOCK_SECONDS = 0.1
_TURN_SECONDS = 1.0  # that are decoded at a time
_IN_MEMORY = 1 << 24  # bytes of a pipe; what is more is kept on disk


class FileError(Exception):
    """A file cannot be read; the message says why."""


def printable(path: str) -> str:
    """`path` as text for messages and events: a path is bytes, and they need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


class AudioFile:
    """An open file, of any kind that `Recording` decodes.

    path: its name in messages, and where it is, unless it is open already: `file`. "-": standard input. What cannot be
        read twice, such as a pipe, is read to its end first.

    Attributes:
        name: the path, as it can be printed.
        sample_rate, channels: as in the file.
        announced: seconds that it says it has, if it does.

    Raises:
        FileError: there is no such file, or it holds no sound.
    """

    def __init__(self, path: str, file: IO[bytes] | None = None) -> None:
        self.name = printable(path)
        self._decoding = threading.Lock()  # what a thread still reads is not closed
        self._kept = _file(path) if file is None else None  # ours to close
        try:
            self._recording = Recording(cast(IO[bytes], self._kept or file))
        except (RecordingError, OSError, ValueError) as error:  # ValueError: it was closed meanwhile
            self._forget()
            raise FileError(f"{self.name}: is no sound file that can be read: {_reason(error)}") from None
        self.sample_rate = self._recording.sample_rate
        self.channels = self._recording.channels
        self.announced = self._recording.announced

    @classmethod
    async def opened(cls, path: str, file: IO[bytes] | None = None) -> AudioFile:
        """One that nobody waits for while it is looked at. Raises: FileError."""
        return await asyncio.to_thread(cls, path, file)

    @property
    def seconds(self) -> float:
        """Of it that were decoded so far."""
        return self._recording.seconds

    @property
    def missing(self) -> str | None:
        """After its end: what of it was not heard, and why, in words."""
        return self._recording.missing()

    def start(self, *, partials: bool, words: bool) -> Start:
        """The parameters of its stream. The source is its name."""
        return Start(
            source=self.name,
            encoding="pcm_f32le",
            sample_rate=self.sample_rate,
            channels=self.channels,
            partials=partials,
            words=words,
        )

    async def blocks(self) -> AsyncIterator[tuple[Audio, float]]:
        """Its audio, and the seconds of each piece. Whatever is damaged is left out: see `missing`."""
        size = max(1, round(_BLOCK_SECONDS * self.sample_rate))
        while (turn := await asyncio.to_thread(self._turn)) is not None:
            for at in range(0, len(turn), size):
                block = turn[at : at + size]
                yield Audio(block.astype("<f4").tobytes()), len(block) / self.sample_rate

    def _turn(self) -> Samples | None:
        """About as much as is decoded at a time; None at the end."""
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


def _reason(error: Exception) -> str:
    """Without the path, which is said before."""
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
        raise FileError(f"{printable(path)}: is no sound file that can be read: {_reason(error)}") from None


def _whole(pipe: IO[bytes]) -> IO[bytes]:
    """All of it, so that it can be gone through as a file can."""
    kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - it lives as long as the sound file
    shutil.copyfileobj(pipe, kept)
    return cast(IO[bytes], kept)
