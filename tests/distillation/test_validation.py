"""The curve of a training counts words as the report does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import small_corpus
import small_school
import torch

from distillation.label import normaliser
from distillation.model import layout_of, load_model
from distillation.validation import longest_text, texts, validator
from streaming.whisper.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_school.teacher(tmp_path_factory.mktemp("teacher"))


def test_case_and_punctuation_are_no_word_errors(checkpoint: Checkpoint) -> None:
    model, layout = load_model(checkpoint).eval(), layout_of(checkpoint, None)
    corpus = copy.copy(small_corpus.corpus())
    plain = corpus.split("dev")[:3]
    corpus.clips = plain
    basic = normaliser("basic")
    wrong = validator(model, corpus, layout, basic)()
    assert wrong.keys() == {"wer_dev"}
    assert wrong["wer_dev"] > 0.5
    corpus.clips = [replace(clip, text=clip.text.upper() + "!") for clip in plain]
    assert validator(model, corpus, layout, basic)() == wrong
    corpus.clips = [replace(clip, text="...") for clip in plain]
    assert validator(model, corpus, layout, basic)() == {}


def test_a_text_may_be_as_long_as_its_audio_lets_it(checkpoint: Checkpoint) -> None:
    assert longest_text(1) == longest_text(5) == 40
    assert longest_text(30) == 240
    model, layout = load_model(checkpoint).eval(), layout_of(checkpoint, None)
    # Of an end that never comes, a text is as long as it may be: rows are heard in turns, and keep their order.
    layout = replace(layout, end=0)
    states = torch.randn(18, 400, model.config.d_model, generator=torch.Generator().manual_seed(1))
    rows = texts(model, states, layout, 80)
    assert len(rows) == 18
    assert len(set(rows)) > 1
    assert [texts(model, states[row : row + 1], layout, 80)[0] for row in (0, 17)] == [rows[0], rows[17]]
