"""A person's own recordings: a folder of audio, with or without transcripts, as the clips of a corpus.

Owns what such a folder may look like, and every message about what is wrong with it. All of it is checked before the
first clip is given out, so that a fault shows at once and not after hours. Knows nothing of features or models.

There are two ways to say what was said: `manifest.jsonl` (a line a clip: `path`, and optionally `text`, `speaker`,
`set`, and `start` and `end`, in seconds, of a clip that is a part of its file), or a text file beside the audio file,
of the same name (`a.flac`, `a.txt`). Audio without either has no transcript; an empty transcript says that nothing was
said.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import soundfile
import soxr

from distillation.errors import DistillError
from streaming.job import SAMPLE_RATE, Waveform

AUDIO = frozenset(".flac .wav .ogg .oga .opus .mp3 .aiff .aif .au .w64 .caf".split())
WINDOW = 30.0
"""Seconds that a Whisper hears at once."""
LONGEST = 29.0
"""Seconds of a piece that is cut here: the window, with a margin around it."""
LONGEST_GAP = 1.0
"""Seconds between two parts of a file that follow one another."""
_SHOWN = 10


class RecordingsError(DistillError):
    """The recordings cannot be used; the message says which ones, and what to do."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording, or a part of one.

    Attributes:
        path: the audio file.
        text: None where nobody wrote down what was said; empty where nothing was said.
        speaker: who speaks, where that is known.
        set: what it is counted with in tables.
        start: where the part begins in the file, in seconds.
        end: where the part ends, in seconds; None for the end of the file.
    """

    path: Path
    text: str | None
    speaker: str
    set: str
    start: float = 0.0
    end: float | None = None


def find_recordings(source: Path, *, to_train: bool = True) -> list[Recording]:
    """Find the recordings of a folder or a manifest, and check them; the audio files are opened, but not read.

    Args:
        source: the folder or the manifest.
        to_train: whether a recording may be no longer than a window, unless it has no transcript and can be cut.

    Raises:
        RecordingsError: there are none, or some of them cannot be used.
    """
    manifest = _manifest(source)
    found = list(_listed(manifest)) if manifest else _scanned(source)
    if not found:
        raise RecordingsError(f"no audio in {source}: looked for {', '.join(sorted(AUDIO))} and manifest.jsonl")
    longest = WINDOW if to_train else math.inf
    _complain([fault for recording in found if (fault := _fault(recording, longest))])
    return found


def stamps(source: Path) -> dict[str, list[int]]:
    """Return size and time of change of each file that recordings come from, by which other recordings are noticed.

    Args:
        source: the folder or the manifest.

    Returns:
        Bytes and nanoseconds, by the file's path from the folder.

    Raises:
        RecordingsError: there is no such folder or manifest, or the manifest cannot be used.
    """
    if manifest := _manifest(source):
        folder, files = manifest.parent, [manifest, *(recording.path for recording in _listed(manifest))]
    else:
        folder, files = source, [path for path in source.rglob("*") if path.suffix.lower() in {*AUDIO, ".txt"}]
    states = {os.path.relpath(path, folder): path.stat() for path in sorted(files) if path.is_file()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def read_mono(path: Path, start: float = 0.0, end: float | None = None) -> Waveform:
    """Read any file that libsndfile reads, or a part of it.

    Args:
        path: the file.
        start: of the part, in seconds.
        end: of the part, in seconds; None for the end of the file.

    Returns:
        16 kHz mono.

    Raises:
        RecordingsError: the file is missing or unreadable.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(min(round(start * rate), file.frames))
            count = -1 if end is None else max(0, round(end * rate) - file.tell())
            wave = file.read(count, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise RecordingsError(f"{path} cannot be read: {error}") from error
    mono: Waveform = wave.mean(axis=1)
    return soxr.resample(mono, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else mono


def read_manifest(manifest: Path) -> list[dict[str, Any]]:
    """Read the lines of a manifest; each has a `path`.

    Raises:
        RecordingsError: the file has something else in it.
    """
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RecordingsError(f"{manifest} is not UTF-8 text") from error
    return [_row(manifest, number, line) for number, line in enumerate(lines, 1)]


def _manifest(source: Path) -> Path | None:
    """The one of a folder, or `source` itself; None for a folder without one."""
    manifest = source / "manifest.jsonl" if source.is_dir() else source
    if manifest.is_file():
        return manifest
    if source.is_dir():
        return None
    raise RecordingsError(f"there is no folder or manifest {source}")


def _listed(manifest: Path) -> Iterator[Recording]:
    for row in read_manifest(manifest):
        name = str(row.get("set") or manifest.parent.resolve().name)
        start, end = row.get("start") or 0.0, row.get("end")
        yield Recording(manifest.parent / row["path"], row.get("text"), str(row.get("speaker") or ""), name, start, end)


def neighbours_joined(found: Sequence[Recording], seconds: tuple[float, float], seed: int) -> list[Recording]:
    """Join parts of one file without a transcript that follow one another.

    People mostly say more than one line at a time.

    Args:
        found: recordings, in order.
        seconds: the limits between which the length of a joined recording is drawn.
        seed: of what is drawn.
    """
    rng = random.Random(seed)
    joined: list[Recording] = []
    longest = 0.0
    for recording in found:
        last = joined[-1] if joined else None
        if (
            last is not None and last.end is not None and recording.end is not None
            and last.path == recording.path and last.text is None and recording.text is None
            and last.end <= recording.start <= last.end + LONGEST_GAP
            and recording.end - last.start <= longest
        ):  # fmt: skip
            joined[-1] = replace(last, end=recording.end)
        else:
            joined.append(recording)
            longest = rng.uniform(*seconds)
    return joined


def _row(manifest: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RecordingsError(f"{manifest}, line {number}, is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise RecordingsError(f'{manifest}, line {number}: expected {{"path": "a.flac", "text": "..."}}')
    if not isinstance(row.get("text"), str | None):
        raise RecordingsError(
            f'{manifest}, line {number}: "text" is {row["text"]!r}, and must be text in quotes, or null'
        )
    start, end = row.get("start", 0.0), row.get("end")
    if not isinstance(start, int | float) or not isinstance(end, int | float | None) or not 0 <= start < (end or 1e9):
        raise RecordingsError(f'{manifest}, line {number}: "start" and "end" must be seconds, with start before end')
    return row


def _scanned(folder: Path) -> list[Recording]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    audio = [path for path in files if path.suffix.lower() in AUDIO]
    spoken = {path.with_suffix("") for path in audio}
    alone = [path for path in files if path.suffix.lower() == ".txt" and path.with_suffix("") not in spoken]
    if audio:
        _complain([f"{path} is a transcript without audio" for path in alone])
    return [Recording(path, _beside(path), path.parent.name, folder.resolve().name) for path in audio]


def _beside(path: Path) -> str | None:
    transcript = path.with_suffix(".txt")
    if not transcript.is_file():
        return None
    try:
        return " ".join(transcript.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise RecordingsError(f"{transcript} is not UTF-8 text") from error


def _fault(recording: Recording, longest: float) -> str | None:
    path = recording.path
    if not path.is_file():
        return f"{path} is missing" + (": a transcript without audio" if recording.text is not None else "")
    try:
        about = soundfile.info(path)
    except (OSError, soundfile.LibsndfileError) as error:
        return f"{path} cannot be read: {error}"
    if about.frames == 0:
        return f"{path} is empty"
    if recording.start >= about.duration:
        return f"{path} lasts {about.duration:.1f} s: there is nothing at {recording.start:g} s"
    duration = (about.duration if recording.end is None else recording.end) - recording.start
    if recording.text is not None and duration > longest:
        lasts = f"{path} lasts {duration:.0f} s"
        return f"{lasts}: with a transcript it may last at most {longest:g} s (cut it, or drop its text)"
    return None


def _complain(faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise RecordingsError("; ".join(faults[:_SHOWN]) + more)
