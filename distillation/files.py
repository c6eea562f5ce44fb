"""Files that are whole or not there, and the sentence for a disk that is full; folders are `streaming/files.py`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillation.errors import DistillError
from streaming.files import digest_of_files as digest_of_files
from streaming.files import folder_written_whole as folder_written_whole
from streaming.files import to_disk as to_disk
from streaming.files import unfinished_folder as unfinished_folder


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
