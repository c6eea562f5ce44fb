"""Files, and folders of files, that are either whole or not there.

Owns writing beside the place and moving there at once, and digests. Knows nothing of what is in the files, and leaves
the handling of a full disk to whoever writes.
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
    """Give a new folder beside `folder`, whose files take their places once all are written.

    Until then `folder` is as it was. While the files move, `last` is missing: without that file the folder counts for
    nothing, so old and new files never pass for one work.

    Args:
        folder: where the files go. Other files in it stay as they are.
        last: the name of the file that comes last.
        replaced: patterns of the other files that are removed.

    Yields:
        The folder to write to.
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
    """Return where `folder_written_whole` writes; it is there afterwards only if the process was killed."""
    folder = folder.resolve()
    return folder.with_name(folder.name + UNFINISHED)


def to_disk(path: Path) -> None:
    """Flush a file to disk, since its name must not reach the disk before its contents."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the digests of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
