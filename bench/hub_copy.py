"""A checkpoint as other programs read it: the hub layout, whole, in single precision.

Owns how such a copy is made: ours may keep its weights in 8 bits and share those of its teacher, which no other program
understands.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from distillation.model import load_model
from streaming.whisper.checkpoint import Checkpoint

_BESIDE = ("generation_config.json", "preprocessor_config.json", "normalizer.json")


def write_hub_copy(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the copy into a folder, which is made, and return the folder."""
    load_model(checkpoint).save_pretrained(folder)
    for name in _BESIDE:
        sources = (directory / name for directory in (checkpoint.directory, checkpoint.lender) if directory)
        if (source := next(filter(Path.is_file, sources), None)) is not None:
            shutil.copyfile(source, folder / name)
    shutil.copyfile(checkpoint.tokenizer_file, folder / "tokenizer.json")
    return folder
