"""Files, and folders of files, that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillation.errors import DistillError


class NotWritten(DistillError):  # noqa: N818 - it says what did not happen
    """A file could not be written, as on a full disk; an older one is as it was. reason: the system's."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written ({reason}): make room, and give the command again")
        self.reason = reason


def write_whole(stored: Mapping[str, Any], path: Path) -> None:
    """Tensors: written beside `path` and renamed at once, so that neither an interrupt nor a full disk tears the file.

    Raises:
        NotWritten: it cannot be written.
    """
    import torch  # heavy, and text needs none of it

    with _beside(path) as unfinished:
        torch.save(stored, unfinished)


def write_text_whole(text: str, path: Path) -> None:
    """As `write_whole`, of text.

    Raises:
        NotWritten: it cannot be written.
    """
    with _beside(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    unfinished = path.with_suffix(".part")
    try:
        yield unfinished
        to_disk(unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError of its own
        unfinished.unlink(missing_ok=True)
        raise NotWritten(path, str(error).splitlines()[0]) from error


@contextmanager
def folder_written_whole(folder: Path, last: str, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A new folder beside `folder` to write files to, which take their places once all are written.

    Until then `folder` is as it was. While they do, `last` is missing from it: the file without which it counts for
    nothing, so that old and new files never pass for one work. Other files of the folder stay as they are, but for
    those that a pattern of `replaced` fits.
    """
    folder = folder.resolve()
    unfinished = unfinished_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in unfinished.iterdir():
            path.chmod(0o644)  # weights are written for their owner alone, but a service runs as somebody else
            to_disk(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    folder.mkdir(exist_ok=True)
    (folder / last).unlink(missing_ok=True)
    for path in [path for pattern in replaced for path in folder.glob(pattern)]:
        path.unlink(missing_ok=True)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == last):
        path.replace(folder / path.name)
    unfinished.rmdir()


def unfinished_folder(folder: Path) -> Path:
    """Where `folder_written_whole` writes; it is there afterwards only if the process was killed."""
    folder = folder.resolve()
    return folder.with_name(folder.name + ".part")


def to_disk(path: Path) -> None:
    """A name must not reach the disk before what it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def digest_of_files(paths: Iterable[Path]) -> str:
    """Of what is in them, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
