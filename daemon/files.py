"""Sound files as a source like any other.

Owns reading them in blocks. Knows nothing of what becomes of the audio.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import soundfile

from streaming.events import Audio, Start

_BLOCK_SECONDS = 0.1
_IN_MEMORY = 1 << 24  # bytes of a pipe; what is more is kept on disk


class FileError(Exception):
    """A file cannot be read; the message says why."""


def printable(path: str) -> str:
    """`path` as text for messages and events: a path is bytes, and they need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


class AudioFile:
    """An open file, of any format that libsndfile reads.

    path: its name in messages, and where it is, unless it is open already: `file`. "-": standard input. What cannot be
        read twice, such as a pipe, is read to its end first.

    Attributes:
        name: the path, as it can be printed.
        sample_rate, channels: as in the file. seconds: its length.

    Raises:
        FileError: there is no such file, or it holds no sound.
    """

    def __init__(self, path: str, file: IO[bytes] | None = None) -> None:
        self.name = printable(path)
        self._kept: IO[bytes] | None = None  # of a pipe; ours to close
        try:
            if file is None and (pipe := _pipe(path)) is not None:
                with pipe:
                    file = self._kept = _whole(pipe)
            # As bytes: a text it would encode strictly. TypeError: one that is called .raw does not say what is in it.
            self._file = soundfile.SoundFile(os.fsencode(path) if file is None else file)
        except (soundfile.SoundFileError, OSError, TypeError) as error:
            self._forget()
            raise FileError(f"{self.name}: is no sound file that can be read: {_reason(error)}") from None
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.seconds: float = self._file.frames / self._file.samplerate

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

    def blocks(self) -> Iterator[tuple[Audio, float]]:
        """Its audio, and the seconds of each piece.

        Raises:
            FileError: it is damaged.
        """
        size = max(1, round(_BLOCK_SECONDS * self.sample_rate))
        try:
            while len(block := self._file.read(size, dtype="float32", always_2d=True)):
                yield Audio(block.astype("<f4").tobytes()), len(block) / self.sample_rate
        except soundfile.SoundFileError as error:
            raise FileError(f"{self.name}: is damaged: {_reason(error)}") from None

    def close(self) -> None:
        self._file.close()
        self._forget()

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.close()


def _reason(error: Exception) -> str:
    """Without the path, which is said before."""
    if isinstance(error, soundfile.LibsndfileError):
        return str(error.error_string)
    return str(getattr(error, "strerror", None) or error)


def _pipe(path: str) -> IO[bytes] | None:
    """What can only be read once; None where there is a file.

    Raises:
        FileError, OSError
    """
    if path == "-":
        return open(sys.stdin.fileno(), "rb", closefd=False)
    if not Path(path).exists():
        raise FileError(f"{printable(path)}: there is no such file")
    if Path(path).is_dir():
        raise FileError(f"{printable(path)}: is a directory; name the files in it")
    return None if Path(path).is_file() else Path(path).open("rb")


def _whole(pipe: IO[bytes]) -> IO[bytes]:
    """All of it, so that it can be gone through as a file can."""
    kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - it lives as long as the sound file
    shutil.copyfileobj(pipe, kept)
    kept.seek(0)
    return cast(IO[bytes], kept)
