"""The report measures what it says, on the shipped pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation import evaluate
from distillation.evaluate import Heard, Transcriber, as_markdown, hear, report, score, words_from_noise
from distillation.label import label, read_labels
from streaming.job import Waveform
from streaming.whisper.checkpoint import SHIPPED
from streaming.whisper.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("home-en", "home-en", "cpu")


@pytest.fixture(scope="module")
def alone() -> Engine:
    return Engine.load(str(SHIPPED / "home-en" / "teacher"), None, "cpu")


def noise(seconds: float) -> Waveform:
    return (np.random.default_rng(5).standard_normal(int(16000 * seconds)) * 0.05).astype(np.float32)


def test_word_errors_are_counted_by_kind() -> None:
    counted = score(["turn on the light", "stop"], ["Turn off the the light.", ""])
    assert (counted.words, counted.substituted, counted.inserted, counted.deleted) == (5, 1, 1, 1)
    assert counted.wer == 0.6


def test_the_cascade_takes_the_teachers_text_below_the_threshold() -> None:
    heard = Heard("s", "stop", student="top", teacher="stop", confidence=0.7)
    assert [heard.cascade(threshold) for threshold in (0.0, 0.7, 0.71)] == ["top", "top", "stop"]


def test_the_report_of_a_pair(engine: Engine, alone: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "NOISE_SECONDS", 6)
    figures = report(engine, alone, small_corpus.corpus(), [noise(3)], threshold=0.8)
    assert figures["speculative_differs"] == 0
    assert figures["noise"]["seconds"] >= 6
    assert figures["noise"]["words"] == 0
    shares = [row["asked"] for row in figures["thresholds"].values()]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    never, always = (figures["thresholds"][name] for name in ("0.0", "inf"))
    assert never["cascade"] == never["student"]
    assert always["cascade"] == always["teacher"]
    assert json.loads(json.dumps(figures)) == figures
    assert as_markdown(figures).count("| held_out/") == len([name for name in figures["sets"] if "held_out" in name])


def test_clips_are_heard_in_their_order(engine: Engine) -> None:
    corpus = small_corpus.corpus()
    clips = corpus.split("held_out")
    transcriber = Transcriber(engine)
    batched = [transcriber.text(result.tokens) for result in hear(corpus, clips, transcriber, batch=3)]
    single = [transcriber.transcribe([evaluate.with_margins(corpus.waveform(clip))])[0] for clip in clips]
    assert batched == single


def test_speech_in_noise_is_counted_as_words(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That silence gives no words means something only if speech gives some."""
    monkeypatch.setattr(evaluate, "NOISE_SECONDS", 2)
    corpus = small_corpus.corpus()
    spoken = next(corpus.waveform(clip) for clip in corpus.clips if clip.text == "turn on the light")
    _, words = words_from_noise(engine, [np.pad(spoken, 16000)], threshold=0.8)
    assert words >= 3


def test_labelling_goes_on_where_it_was_stopped(alone: Engine, tmp_path: Path) -> None:
    corpus, transcriber = small_corpus.corpus(), Transcriber(alone)
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    label(corpus, transcriber, whole)
    lines = whole.read_text().splitlines(keepends=True)
    assert len(lines) == len(corpus.split("train"))
    broken.write_text("".join(lines[:16]) + lines[16][:9])
    label(corpus, transcriber, broken)
    assert read_labels(broken) == read_labels(whole)
