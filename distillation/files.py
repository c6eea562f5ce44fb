"""Files of tensors that are whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class NotWritten(Exception):  # noqa: N818 - it says what did not happen
    """A file could not be written, as on a full disk; the message is the system's. An older one is as it was."""


def write_whole(stored: Mapping[str, Any], path: Path) -> None:
    """Writes beside `path` and renames at once, so that neither an interrupt nor a full disk tears it.

    Raises:
        NotWritten: it cannot be written.
    """
    unfinished = path.with_suffix(".part")
    try:
        torch.save(stored, unfinished)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError of its own
        unfinished.unlink(missing_ok=True)
        raise NotWritten(str(error).splitlines()[0]) from error
    unfinished.rename(path)
