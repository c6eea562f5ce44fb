"""Where a checkpoint lies: a name becomes a directory of this machine.

Owns the four kinds of names (shipped, a directory, imported, a hub name), where imported checkpoints lie, which of a
hub's files are a checkpoint, and the message that says how to get what is not here. Never fetches anything. Knows
nothing of what is in the files, and loads no torch.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

Role = Literal["student", "teacher"]

UNFINISHED = ".part"
"""The end of the name of a folder that is not all there yet."""

SHIPPED = Path(__file__).parent.parent / "pretrained"

HUB_FILES = (
    "config.json",
    "generation_config.json",
    "whisperd.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "normalizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""What is fetched of a hub's model: the rest is the same weights in other forms."""

_IMPORTED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says why and what to do."""


def is_shipped(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None and "/" not in name and (SHIPPED / name).is_dir()


def is_hub_name(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None


def is_imported_name(name: str) -> bool:
    """Return whether a checkpoint may be imported under a name: no path, and not the name of an unfinished one."""
    return _IMPORTED_NAME.fullmatch(name) is not None and not name.endswith(UNFINISHED)


def is_imported(name: str) -> bool:
    return is_imported_name(name) and (imports() / name / "config.json").is_file()


def imported() -> list[str]:
    return sorted(file.parent.name for file in imports().glob("*/config.json") if is_imported(file.parent.name))


def imports() -> Path:
    """Return the folder of imported checkpoints.

    It is beside the hub's cache, so that each process that finds the one finds the other.
    """
    from huggingface_hub import constants  # it reads its environment when it is imported

    return Path(constants.HF_HOME) / "whisperd"


def shipped() -> list[str]:
    return sorted(directory.name for directory in SHIPPED.iterdir() if (directory / "student").is_dir())


def locate(name: str, role: Role) -> tuple[str, Path]:
    """Return the title and the directory of a checkpoint.

    Args:
        name: of one that is shipped, a directory, one that was imported, or one of the hub's that is in its cache.
        role: which of a shipped pair is meant.

    Raises:
        CheckpointError: it is not here, or not whole.
    """
    if is_shipped(name):
        directory = SHIPPED / name / role
        if not (directory / "config.json").exists():
            raise CheckpointError(f"{directory} is incomplete: install the package again")
        return (name if role == "student" else f"{name}-{role}"), directory
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory.resolve().name, directory
    if is_imported(name):
        return name, imports() / name
    if not is_hub_name(name):
        raise CheckpointError(f"there is no directory {name!r}: give a Whisper checkpoint's directory or hub name")
    return name, cached(name)


def cached(name: str) -> Path:
    """Return the directory of a hub's model in the hub's cache on this machine.

    Raises:
        CheckpointError: it is not there, or not whole.
    """
    # Imported here: only a hub name needs it, and it takes long.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
    except LocalEntryNotFoundError as error:
        if hasattr(error, "snapshot_path"):  # a subclass that not every release has: files are missing
            raise CheckpointError(_in_part(name)) from None
        raise CheckpointError(
            f"{name!r} is not on this machine (not in {constants.HF_HUB_CACHE}): fetch it with "
            f"`whisperd models pull {name}`, or give a directory"
        ) from None
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a directory nor a name on the model hub: {error}") from None
    if not _whole(directory):
        raise CheckpointError(_in_part(name))
    return directory


def weight_files(directory: Path) -> list[Path]:
    """Return the files of the weights: one, or the shards that an index names, whether they are there or not.

    Raises:
        CheckpointError: there is neither.
    """
    whole = directory / "model.safetensors"
    if whole.exists():
        return [whole]
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        raise CheckpointError(
            f"{directory} has no model.safetensors: convert its weights "
            "(transformers: from_pretrained, then save_pretrained)"
        )
    try:
        shards = {Path(shard).name for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error
    return [directory / shard for shard in sorted(shards)]


def wanted(file: str) -> bool:
    """Return whether a hub's file belongs to a checkpoint."""
    return any(fnmatch(file, pattern) for pattern in HUB_FILES)


def _whole(directory: Path) -> bool:
    try:
        return (directory / "config.json").exists() and all(file.exists() for file in weight_files(directory))
    except CheckpointError:
        return False


def _in_part(name: str) -> str:
    return f"{name!r} is only partly on this machine: `whisperd models pull {name}` fetches the rest"
