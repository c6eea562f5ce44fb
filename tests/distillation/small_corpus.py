"""A small corpus of real synthetic voices, made once in a run of the tests."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from tokenizers import Tokenizer

from distillation import corpus as corpus_module
from distillation.corpus import Corpus, Synthesis, gather, record, synthesise
from distillation.text import normalise
from distillation.tokenizer import train_tokenizer
from distillation.voices import Voice, speak
from streaming.job import SAMPLE_RATE

RECORDED = ["Turn on the light!", "stop", "What time is it?"]


@functools.cache
def _kept() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="whisperd-corpus-")  # goes with the process


@functools.cache
def manifest() -> Path:
    """A folder of recordings as a user would have one: a manifest beside files, one of them without a transcript."""
    folder = Path(_kept().name) / "recordings"
    folder.mkdir()
    rows: list[dict[str, str | None]] = []
    for number, text in enumerate(RECORDED):
        soundfile.write(folder / f"{number}.flac", speak(normalise(text), Voice("flite", "slt")), SAMPLE_RATE)
        rows.append({"path": f"{number}.flac", "text": text, "speaker": "me", "set": "mine"})
    soundfile.write(folder / "noise.flac", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    rows.append({"path": "noise.flac", "text": None, "speaker": "me", "set": "mine"})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@functools.cache
def folder() -> Path:
    """A corpus of 16 clips of training voices, 8 of held-out ones, and the recordings."""
    folder = Path(_kept().name) / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        # The worker is forked from here, so it sees the smaller blocks too.
        patch.setattr(corpus_module, "BLOCK_CLIPS", 8)
        patch.setattr(corpus_module, "HELD_OUT_BLOCKS", 1)
        record(folder, manifest(), "train")
        synthesise(folder, Synthesis(16), seed=3, workers=1, extra_texts=["an extra text"])
    gather(folder)
    return folder


@functools.cache
def corpus() -> Corpus:
    return Corpus(folder())


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([clip.text for clip in corpus().clips], tokens=300)
