"""A model from elsewhere as a whole: its weights, and the tokenizer and the rules that belong to them.

Owns which format a file is in, what counts of the files beside it, and where a tokenizer is taken from. Writes nothing.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from streaming.whisper.checkpoint import Dimensions, Grammar
from streaming.whisper.formats import ctranslate2, ggml, openai, vocabulary
from streaming.whisper.formats.imported import FormatError, ImportedModel, dimensions
from streaming.whisper.locate import SHIPPED
from streaming.whisper.tokenizer import TokenizerError, load_tokenizer

FORMATS = "model.bin of CTranslate2 (faster-whisper), OpenAI's .pt, whisper.cpp's ggml-*.bin"

_LARGEST_CONFIG = 1 << 20
"""Bytes; CTranslate2's have some thousands."""

_OTHERS = {
    b"GGUF": "is in GGUF, which whisper.cpp does not write: use its ggml file",
    openai.OLD_MAGIC: "is in torch's format from before 2020: load it with torch, and save it again",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A model as it was read.

    Attributes:
        file: with the weights.
        model: the weights.
        dimensions: the model's sizes.
        grammar: its special tokens and restrictions.
        alignment_heads: as in `Checkpoint`.
        tokenizer: the text of a `tokenizer.json`.
    """

    file: Path
    model: ImportedModel
    dimensions: Dimensions
    grammar: Grammar
    alignment_heads: tuple[tuple[int, int], ...] | None
    tokenizer: str


def read(file: Path, tokenizer: Path | None = None) -> Found:
    """Read the model whose weights are in a file (`weights_file`).

    Args:
        file: with the weights.
        tokenizer: the model's, where neither the file nor its folder has it.

    Raises:
        FormatError: it cannot be read, or has no tokenizer.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
            model = openai.read(file) if start == openai.MAGIC else _mapped(file, stream.fileno(), start)
        sizes = dimensions(model, file.name)
        # The file is one among several that CTranslate2 writes; others may lie anywhere, with anything beside them.
        config = _config(file.with_name("config.json")) if model.form.startswith("CTranslate2") else {}
        tokens, text = _tokenizer(model, sizes, file, tokenizer)
        rules = vocabulary.grammar(tokens, sizes, config, file.name)
    except TokenizerError as error:
        raise FormatError(
            f"the tokenizer of {file.name} cannot be used ({error}): give another one (--tokenizer)"
        ) from error
    except OSError as error:
        raise FormatError(f"{error.filename or file} cannot be read: {error.strerror or error}") from error
    return Found(
        file=file,
        model=model,
        dimensions=sizes,
        grammar=rules,
        alignment_heads=vocabulary.alignment_heads(sizes, config),
        tokenizer=text,
    )


def weights_file(source: Path) -> Path:
    """Return the file with the weights: `source` itself, or CTranslate2's in the folder `source`.

    Raises:
        FormatError: there is none.
    """
    if source.is_file():
        return source
    if not source.exists():
        raise FormatError(f"there is no {source}: give a file or a folder with weights ({FORMATS})")
    if (source / "model.bin").is_file():
        return source / "model.bin"
    if any(source.glob("*.safetensors")):
        raise FormatError(f"{source} is already in the Hugging Face layout: set models.student or models.teacher to it")
    raise FormatError(f"{source} has no model.bin: give CTranslate2's folder, or a file ({FORMATS})")


def _mapped(file: Path, number: int, start: bytes) -> ImportedModel:
    for magic, sentence in _OTHERS.items():
        if start.startswith(magic):
            raise FormatError(f"{file.name} {sentence}")
    if not start:
        raise FormatError(f"{file.name} is empty: fetch it again")
    # Let go of with the last view of it: readers copy what they keep.
    data = memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_READ))
    if start == ggml.MAGIC:
        return ggml.read(data, file.name)
    if ctranslate2.is_one(data):
        return ctranslate2.read(data, file.name)
    raise FormatError(f"{file.name} is in an unknown format, or its beginning is damaged: give {FORMATS}")


def _config(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise FormatError(f"{file} has more than {_LARGEST_CONFIG} bytes: fetch it again")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} cannot be read ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise FormatError(f"{file} must hold a JSON object: fetch it again")
    return content


def _tokenizer(model: ImportedModel, sizes: Dimensions, file: Path, given: Path | None) -> tuple[Tokenizer, str]:
    """The tokenizer with its text.

    It is the one that was given; else the file's own; else the one beside it; else the one that all English-only models
    share, where a shipped pair has it.
    """
    if given is not None:
        return _loaded(given)
    if model.vocabulary is not None:
        built = vocabulary.build_tokenizer(model.vocabulary, sizes.vocabulary, file.name)
        return built, built.to_str()
    places = [file.with_name("tokenizer.json")]
    if sizes.vocabulary == vocabulary.ENGLISH_ONLY:
        places.append(SHIPPED / "tiny-en" / "teacher" / "tokenizer.json")
    for place in places:
        if place.is_file():
            return _loaded(place)
    raise FormatError(
        f"{file.name} contains no vocabulary, and there is no tokenizer.json beside it: put that of the same model "
        "there, or name it (--tokenizer FILE)"
    )


def _loaded(file: Path) -> tuple[Tokenizer, str]:
    try:
        return load_tokenizer(file), file.read_text(encoding="utf-8")
    except TokenizerError as error:
        raise FormatError(f"{file} is not a tokenizer.json that can be read ({error}): fetch it again") from error
