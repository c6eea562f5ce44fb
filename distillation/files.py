"""Files that are either whole or not there.

Owns how such a file is written, that one program writes it, and the message about a full disk. Knows nothing of what is
in a file.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillation.errors import DistillError
from streaming.files import digest_of_files as digest_of_files
from streaming.files import folder_written_whole as folder_written_whole
from streaming.files import to_disk as to_disk
from streaming.files import unfinished_folder as unfinished_folder


class InUseError(DistillError):
    """Another program is writing the same files."""


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Be the only program that writes a file or a folder, for a block: what two append is of use to neither.

    Raises:
        InUseError: another one is writing it.
    """
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"{path} is being written by another program: let it finish, or end it") from None
        yield


class NotWritten(DistillError):  # noqa: N818 - it says what did not happen
    """A file could not be written, for example because the disk is full; an older one is as it was.

    Attributes:
        reason: what the system says.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written ({reason}): make room, and run the command again")
        self.reason = reason


def write_whole(stored: Mapping[str, Any], path: Path) -> None:
    """Write tensors to a file, whole or not at all.

    They are written beside `path` and renamed at once, so that neither an interrupt nor a full disk tears the file.

    Raises:
        NotWritten: the file cannot be written.
    """
    import torch  # heavy, and text needs none of it

    with _beside(path) as unfinished:
        torch.save(stored, unfinished)


def write_text_whole(text: str, path: Path) -> None:
    """Write text to a file as `write_whole` does.

    Raises:
        NotWritten: the file cannot be written.
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
