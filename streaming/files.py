"""Files, and folders of files, that are whole or not there.

Owns writing beside the place and taking it at once, and digests. Knows nothing of what is in the files, and leaves a
full disk to whoever writes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".part"
"""The end of the name of what is not all there yet."""


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
    return folder.with_name(folder.name + UNFINISHED)


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


def digest_of_file(path: Path) -> str:
    """SHA-256 of what is in it, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
