"""The curve of a training counts words as the report does."""

from __future__ import annotations

import copy
from dataclasses import replace

import small_corpus
import torch

from distillation.label import normaliser
from distillation.model import layout_of, load_model
from distillation.watch import longest_text, texts, watching
from streaming.whisper.checkpoint import open_checkpoint


def test_case_and_punctuation_are_no_word_errors() -> None:
    checkpoint = open_checkpoint("home-en", "teacher")
    model, layout = load_model(checkpoint).eval(), layout_of(checkpoint, None)
    corpus = copy.copy(small_corpus.corpus())
    plain = corpus.split("held_out")[:3]
    corpus.clips = plain
    as_heard = watching(model, corpus, layout)()
    assert as_heard["wer_held_out"] < 1
    corpus.clips = [replace(clip, text=clip.text.upper() + "!") for clip in plain]
    assert watching(model, corpus, layout, normaliser("basic"))() == as_heard
    corpus.clips = [replace(clip, text="...") for clip in plain]
    assert watching(model, corpus, layout, normaliser("basic"))() == {}


def test_a_text_may_be_as_long_as_its_audio_lets_it() -> None:
    assert longest_text(1) == longest_text(5) == 40
    assert longest_text(30) == 240
    checkpoint = open_checkpoint("home-en", "student")
    model, layout = load_model(checkpoint).eval(), layout_of(checkpoint, None)
    # Of an end that never comes, a text is as long as it may be: rows are heard in turns, and keep their order.
    layout = replace(layout, end=0)
    states = torch.randn(9, 400, model.config.d_model, generator=torch.Generator().manual_seed(1))
    rows = texts(model, states, layout, 200)
    assert len(rows) == 9
    assert [texts(model, states[row : row + 1], layout, 200)[0] for row in (0, 8)] == [rows[0], rows[8]]
