"""The report measures what it says, on the shipped pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation.evaluate import SHARES, Effort, Heard, Pair, evaluate, finals, words_from_noise
from distillation.hearing import Transcriber, hear, waves_of
from distillation.noise import Noises
from distillation.report import as_markdown, write
from distillation.signals import SIGNALS
from streaming.job import ALWAYS, NEVER, Waveform

LITTLE = Effort(clips=8, noise_seconds=6, curve_clips=2, long_minutes=0.2, rounds=1, timed_clips=2)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.open("home-en", "home-en")


def noise(seconds: float) -> Waveform:
    return (np.random.default_rng(5).standard_normal(int(16000 * seconds)) * 0.05).astype(np.float32)


def test_the_cascade_takes_the_teachers_text_below_the_threshold() -> None:
    heard = Heard("s", "stop", student="top", teacher="stop", confidence=0.7, signals={})
    assert [heard.cascade(threshold) for threshold in (0.0, 0.7, 0.71)] == ["top", "top", "stop"]


def test_the_report_of_a_pair(pair: Pair, tmp_path: Path) -> None:
    noises = Noises([noise(3)], [noise(3)])
    figures = evaluate(pair, small_corpus.corpus(), noises, 0.8, ["held_out"], LITTLE)
    assert figures["speculation"]["differs"] == 0
    assert 0 < figures["speculation"]["acceptance"] <= 1
    assert figures["noise"]["seconds"] >= 6
    assert figures["noise"]["words"] == 0
    assert figures["size"]["student"]["decoder_layers"] < figures["size"]["teacher"]["decoder_layers"]
    cascade = figures["cascade"]
    asked = [row["asked"] for row in cascade["thresholds"].values()]
    assert asked == sorted(asked)
    assert (asked[0], asked[-1]) == (0, 1)
    for name in SIGNALS:
        wers = cascade["signals"][name]["wer"]
        assert len(wers) == len(SHARES)
        assert wers["0.0"] == pytest.approx(cascade["student"])
        assert wers["1.0"] == pytest.approx(cascade["teacher"])
    assert cascade["thresholds"]["0.0"]["cascade"] == cascade["student"]
    assert figures["noise_curve"]["white"].keys() == figures["noise_curve"]["recorded"].keys()

    write(figures, tmp_path / "report")
    told = (tmp_path / "report" / "REPORT.md").read_text()
    assert told.count("| held_out/") == len([name for name in figures["sets"] if "held_out" in name])
    assert json.loads((tmp_path / "report" / "report.json").read_text()).keys() == figures.keys()
    for picture in ("noise.png", "cascade.png"):
        assert f"]({picture})" in told
        assert (tmp_path / "report" / picture).read_bytes().startswith(b"\x89PNG")
    assert ".png" not in as_markdown(figures)


def test_the_signal_of_the_service_is_the_one_computed_here(pair: Pair) -> None:
    """By teacher forcing, and by the engine's own decoding: the same probabilities."""
    from distillation.model import layout_of, load_model
    from distillation.signals import signals

    corpus = small_corpus.corpus()
    (wave,) = waves_of(corpus, corpus.split("held_out")[:1])
    (result,) = pair.hear([wave], NEVER)
    found = signals(load_model(pair.student).eval(), layout_of(pair.student, None), wave, result.tokens)
    # The engine's encoder may compute in bfloat16 here.
    assert found["mean log-prob"] == pytest.approx(result.student_confidence, abs=0.02)
    assert found["least token probability"] <= found["mean log-prob"]


def test_clips_are_heard_in_their_order(pair: Pair) -> None:
    corpus = small_corpus.corpus()
    waves = waves_of(corpus, corpus.split("held_out"))
    transcriber = Transcriber(pair.engine)
    batched = [transcriber.text(result.tokens) for result in hear(waves, transcriber, batch=3)]
    assert batched == [transcriber.transcribe([wave])[0] for wave in waves]


def test_speech_in_noise_is_counted_as_words(pair: Pair) -> None:
    """That silence gives no words means something only if speech gives some."""
    corpus = small_corpus.corpus()
    spoken = next(corpus.waveform(clip) for clip in corpus.clips if clip.text == "turn on the light")
    seconds, words = words_from_noise(pair.engine, [np.pad(spoken, 16000)], 0.8, 2)
    assert seconds >= 2
    assert words >= 3
    assert any("light" in text for text in finals(pair.engine, np.pad(spoken, 16000), ALWAYS))
