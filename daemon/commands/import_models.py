"""`whisperd models import` and `export`: models from elsewhere become checkpoints here, and checkpoints plain ones.

Owns the names of imports and where they lie, that nothing is half-written, and the summaries. Knows how files of other
programs are read, and how a checkpoint is read and written.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.commands.pull import megabytes
from streaming.files import digest_of_file, folder_written_whole
from streaming.whisper.locate import HUB_FILES, CheckpointError, imports, is_imported_name, is_shipped

if TYPE_CHECKING:
    from streaming.whisper.layout import Contents

DTYPES = ("float16", "float32", "bfloat16")

_STORED = "float16"
"""As OpenAI published the weights; what was in fewer bits gains nothing by more."""


class ImportFailed(Exception):  # noqa: N818 - it says what did not happen
    """Nothing was written; the message says why and what to do."""


def bring(source: Path, name: str | None, tokenizer: Path | None, *, force: bool = False) -> str:
    """Make the weights in `source` a checkpoint of this machine, and return what it is, in a line.

    Args:
        source: a folder with weights, or the file.
        name: its name from then on; None for what `source` is called.
        tokenizer: its `tokenizer.json`, where that is not found by itself.
        force: whether it takes the place of an earlier import of this name.

    Raises:
        ImportFailed: the weights cannot be read or written, or the name is taken or wrong.
    """
    from streaming.whisper.checkpoint import POSITIONS_PER_SECOND
    from streaming.whisper.formats.imported import FormatError
    from streaming.whisper.formats.read import read, weights_file
    from streaming.whisper.layout import Contents

    try:
        file = weights_file(source)
        name = _free_name(_called(source) if name is None else name, force=force)
        found = read(file, tokenizer)
        size, digest = file.stat().st_size, digest_of_file(file)
    except FormatError as error:
        raise ImportFailed(str(error)) from error
    except OSError as error:
        raise ImportFailed(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    sizes, languages = found.dimensions, len(found.grammar.languages)
    _write(
        Contents(
            dimensions=sizes,
            grammar=found.grammar,
            alignment_heads=found.alignment_heads,
            contexts=(sizes.source_positions / POSITIONS_PER_SECOND,),
            weights=found.model.weights,
            tokenizer=found.tokenizer,
            source={"format": found.model.form, "file": file.name, "bytes": size, "sha256": digest},
        ),
        imports() / name,
        _STORED,
    )
    return (
        f"{name}: {found.model.form}, {megabytes(size)}, {sizes.encoder_layers} + {sizes.decoder_layers} layers, "
        f"{f'{languages} languages' if languages else 'English'}, SHA-256 {digest}, in {imports() / name}"
    )


def take_out(name: str, dtype: str, folder: Path, *, force: bool = False) -> str:
    """Write a checkpoint in the plain Hugging Face layout, and return what was written, in a line.

    Args:
        name: that of any checkpoint, with "/teacher" behind a shipped name for its teacher.
        dtype: the type of the weights, one of `DTYPES`.
        folder: where it is written.
        force: whether there may be something in the folder.

    Raises:
        ImportFailed: the checkpoint cannot be read, or the folder is not empty or cannot be written.
    """
    import torch

    from streaming.whisper.checkpoint import open_checkpoint
    from streaming.whisper.layout import Contents
    from streaming.whisper.weights import read_weights

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise ImportFailed(f"{folder} already exists and is not empty: choose another, or use --force")
    shipped, _, role = name.partition("/")
    try:
        if is_shipped(shipped) and role in ("student", "teacher"):
            checkpoint = open_checkpoint(shipped, "teacher" if role == "teacher" else "student")
        else:
            checkpoint = open_checkpoint(name, "student")
        weights = read_weights(checkpoint, torch.float32)
    except CheckpointError as error:
        raise ImportFailed(str(error)) from error
    contents = Contents(
        dimensions=checkpoint.dimensions,
        grammar=checkpoint.grammar,
        alignment_heads=checkpoint.alignment_heads,
        contexts=checkpoint.contexts,
        weights=weights,
        tokenizer=checkpoint.tokenizer_file.read_text(encoding="utf-8"),
    )
    _write(contents, folder, dtype)
    size = (folder / "model.safetensors").stat().st_size
    return f"{checkpoint.name}: {dtype}, {megabytes(size)}, in {folder}"


def _write(contents: Contents, folder: Path, dtype: str) -> None:
    import torch

    from streaming.whisper.checkpoint import open_checkpoint
    from streaming.whisper.layout import LAST, write

    try:
        with (
            _explained(folder),
            folder_written_whole(folder, LAST, HUB_FILES) as unfinished,
        ):
            write(contents, unfinished, getattr(torch, dtype))
            open_checkpoint(str(unfinished), "student")  # what cannot be read again is not put there
    except CheckpointError as error:
        raise ImportFailed(str(error)) from error


def _called(source: Path) -> str:
    """Return the name of a file or folder, without what it shares with all others of its format."""
    place = source.resolve() if source.name in ("", ".", "..") else source
    if place.name == "model.bin":
        place = place.absolute().parent
    for folder in (place, *place.absolute().parents):
        # A snapshot in the hub's cache is called by a number, and the folder above by its name.
        if folder.name.startswith("models--"):
            return folder.name.rpartition("--")[2]
    return re.sub(r"^ggml-|\.(pt|bin)$", "", place.name)


def _free_name(name: str, *, force: bool) -> str:
    """Return `name`, if a model may have it.

    Raises:
        ImportFailed: it may not.
    """
    if not is_imported_name(name):
        raise ImportFailed(f"{name!r} is not a name for a model: use letters, digits, dots and dashes (--name NAME)")
    if is_shipped(name):
        raise ImportFailed(f"{name} is the name of a shipped model: choose another (--name NAME)")
    if (imports() / name).exists() and not force:
        raise ImportFailed(f"{name} was imported before: choose another name (--name NAME), or replace it with --force")
    return name


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what a disk raises into ImportFailed."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise ImportFailed(
                f"the disk of {folder.parent} is full, and nothing was written: make room, then run the command again"
            ) from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImportFailed(f"{folder} cannot be written ({reason})") from error
