"""Sound files as a source like any other.

Owns reading them in blocks. Knows nothing of what becomes of the audio.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import soundfile

from streaming.events import Audio, Start

_BLOCK_SECONDS = 0.1


class FileError(Exception):
    """A file cannot be read; the message says why."""


class AudioFile:
    """An open file, of any format that libsndfile reads.

    path: its name in messages, and where it is, unless it is open already: `file`.

    Attributes:
        sample_rate, channels: as in the file. seconds: its length.

    Raises:
        FileError: there is no such file, or it holds no sound.
    """

    def __init__(self, path: str, file: IO[bytes] | None = None) -> None:
        if file is None and not Path(path).is_file():
            raise FileError(f"{path}: there is no such file")
        try:
            self._file = soundfile.SoundFile(path if file is None else file)
        except (soundfile.SoundFileError, OSError) as error:
            raise FileError(f"{path}: is no sound file that can be read: {error}") from None
        self.path = path
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.seconds: float = self._file.frames / self._file.samplerate

    def start(self, *, partials: bool, words: bool) -> Start:
        """The parameters of its stream. The source is the path, as given."""
        return Start(
            source=self.path,
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
            raise FileError(f"{self.path}: is damaged: {error}") from None

    def close(self) -> None:
        self._file.close()
