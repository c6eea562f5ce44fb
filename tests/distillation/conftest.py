"""A small corpus of real synthetic voices, made once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer

from distillation import corpus as corpus_module
from distillation.corpus import Corpus, gather, record, synthesise
from distillation.text import normalise
from distillation.tokenizer import train_tokenizer
from distillation.voices import Voice, speak
from streaming.job import SAMPLE_RATE

RECORDED = ["Turn on the light!", "stop", "What time is it?"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings as a user would have one: a manifest beside files, one without a transcript."""
    folder = tmp_path_factory.mktemp("recordings")
    rows: list[dict[str, str | None]] = []
    for number, text in enumerate(RECORDED):
        soundfile.write(folder / f"{number}.flac", speak(normalise(text), Voice("flite", "slt")), SAMPLE_RATE)
        rows.append({"path": f"{number}.flac", "text": text, "speaker": "me", "set": "mine"})
    soundfile.write(folder / "noise.flac", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    rows.append({"path": "noise.flac", "text": None, "speaker": "me", "set": "mine"})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        # Two workers are forked from here, so they see the smaller blocks too.
        patch.setattr(corpus_module, "BLOCK_CLIPS", 8)
        patch.setattr(corpus_module, "HELD_OUT_BLOCKS", 1)
        record(folder, manifest, "train")
        synthesise(folder, clips=16, seed=3, workers=1, extra_texts=["an extra text"])
    gather(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus(corpus_folder)


@pytest.fixture(scope="session")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return train_tokenizer([clip.text for clip in corpus.clips], tokens=300)
