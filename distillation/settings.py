"""The settings with which a folder of work was begun: under other settings, something else would come out.

Owns the comparison, and the digests of what is too large to keep. A setting has the name of the option that gives it.
Knows nothing of what is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from distillation.corpus import Clip
from distillation.errors import DistillError
from distillation.files import digest_of_files
from streaming.whisper.checkpoint import Checkpoint
from streaming.whisper.locate import weight_files

Settings = Mapping[str, str | float]
"""Option to value: a number, a word, or a digest."""

DIGEST = "sha256:"
"""With which a digest begins; nobody needs to read the rest."""


class SettingsError(DistillError):
    """The folder was begun with other settings; the message names the option."""


def require_same(folder: Path, begun: Settings, given: Settings) -> None:
    """Require that the settings given now are those with which a folder was begun.

    Raises:
        SettingsError: they differ.
    """
    for option in [*given, *(begun.keys() - given.keys())]:
        was, now = begun.get(option), given.get(option)
        if was == now:
            continue
        shown = not any(value is None or str(value).startswith(DIGEST) for value in (was, now))
        how = f"{option} {was}, not {now}" if shown else f"another {option}"
        raise SettingsError(f"{folder} was begun with {how}: use the same again, or choose another --out")


def digest_of_weights(checkpoint: Checkpoint) -> str:
    """Return a digest of the weights alone.

    It is the same under another name, and another after more training in the same folder.
    """
    return DIGEST + digest_of_files(sorted(weight_files(checkpoint.directory)))


def digest_of_noises(folder: Path | None) -> str:
    """Return a digest of the names and sizes of noises."""
    paths = sorted(folder.iterdir()) if folder and folder.is_dir() else []
    return _digest(f"{path.name} {path.stat().st_size}" for path in paths)


def digest_of_clips(clips: Iterable[Clip]) -> str:
    return _digest(f"{clip.offset} {clip.samples} {clip.text}" for clip in clips)


def _digest(lines: Iterable[str]) -> str:
    return DIGEST + hashlib.sha256("\n".join(lines).encode()).hexdigest()
