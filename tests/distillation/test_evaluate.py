"""The report measures what it says, on the shipped pair."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation.corpus import Clip, Corpus
from distillation.evaluate import (
    SHARES,
    Effort,
    EvaluationError,
    Heard,
    Material,
    Pair,
    Terms,
    choose,
    digest,
    evaluate,
    finals,
    words_from_noise,
)
from distillation.hearing import Transcriber, hear, waves_of
from distillation.label import normaliser
from distillation.noise import Noises
from distillation.parts import Parts
from distillation.report import as_markdown, write
from distillation.signals import SIGNALS
from distillation.text import normalise
from streaming.job import ALWAYS, NEVER, Waveform

LITTLE = Effort(clips=8, noise_seconds=6, curve_clips=2, long_minutes=0.2, rounds=1, timed_clips=2)
TERMS = Terms(0.8, ["held_out"], "corpus", LITTLE)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.open("home-en", "home-en")


def noise(seconds: float) -> Waveform:
    return (np.random.default_rng(5).standard_normal(int(16000 * seconds)) * 0.05).astype(np.float32)


def test_the_cascade_takes_the_teachers_text_below_the_threshold() -> None:
    heard = Heard("s", "stop", student="top", teacher="stop", confidence=0.7, signals={})
    assert [heard.cascade(threshold) for threshold in (0.0, 0.7, 0.71)] == ["top", "top", "stop"]


def test_the_report_of_a_pair(pair: Pair, tmp_path: Path) -> None:
    material = choose(small_corpus.corpus(), Noises([noise(3)], [noise(3)]), normalise, TERMS)
    of = digest(pair, small_corpus.folder(), material.noises, TERMS)
    kept = tmp_path / "report" / "parts"
    figures = evaluate(pair, material, TERMS, Parts(kept, of))
    assert len(list(kept.iterdir())) == len(material.sets) + 1 + 2 + 2 + 4 + 1
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

    # Everything is there, so nothing is measured: the times too are the same.
    assert evaluate(pair, material, TERMS, Parts(kept, of)) == figures
    Parts(kept, of).forget()
    assert not kept.exists()


def dev_corpus(clips: Sequence[tuple[str, float]]) -> Corpus:
    """Recordings to measure on, told by their texts and seconds; nothing can be heard in them."""
    corpus = copy.copy(small_corpus.corpus())
    corpus.clips = [Clip(text, "me", "mine", "dev", 0, round(16000 * seconds)) for text, seconds in clips]
    return corpus


def chosen(clips: Sequence[tuple[str, float]], name: str = "corpus", domain: Sequence[str] = ()) -> Material:
    return choose(dev_corpus(clips), Noises(), normaliser(name), Terms(0.8, domain, name, LITTLE))


def test_what_cannot_be_measured_on_is_left_out_and_counted() -> None:
    material = chosen([("stop", 2), ("stop it", 30), ("5", 1)])
    assert [clip.text for clip in material.sets["dev/mine"]] == ["stop"]
    assert (material.too_long, material.wordless) == (1, 1)
    assert chosen([("stop", 2), ("5", 1)], "english").wordless == 0


@pytest.mark.parametrize(
    ("clips", "domain", "says"),
    [
        ([], [], "no held-out voices and no transcribed recordings"),
        ([("stop", 28), ("Привет!", 2)], [], "1 clips last 28 s or more .*1 have no words by --normaliser corpus"),
        ([("stop", 2)], ["dev/mine", "nonsense"], "no set begins with 'nonsense'.*dev/mine"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    clips: list[tuple[str, float]], domain: list[str], says: str
) -> None:
    with pytest.raises(EvaluationError, match=says):
        chosen(clips, domain=domain)


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(name: str) -> dict[str, float]:
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {name: len(measured)}

    measures = {name: partial(measure, name) for name in ("heard dev/ä b", "heard dev/ä c")}
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path / "parts", "one").all(measures)
    figures = Parts(tmp_path / "parts", "one").all(measures)
    assert measured == ["heard dev/ä b", "heard dev/ä c", "heard dev/ä c"]
    assert figures == {"heard dev/ä b": {"heard dev/ä b": 1}, "heard dev/ä c": {"heard dev/ä c": 3}}
    Parts(tmp_path / "parts", "another").all(measures)
    assert len(measured) == 5


def test_other_measurements_are_told_apart(pair: Pair) -> None:
    def of(terms: Terms, noises: Noises | None = None) -> str:
        return digest(pair, small_corpus.folder(), noises or Noises(), terms)

    assert of(TERMS) == of(replace(TERMS, domain=[]))
    others = [replace(TERMS, threshold=0.7), replace(TERMS, normaliser="basic"), replace(TERMS, effort=Effort())]
    assert len({of(TERMS), *map(of, others), of(TERMS, Noises([], [noise(1)]))}) == 5


def test_a_report_of_a_pair_that_makes_no_mistake_is_json(pair: Pair, tmp_path: Path) -> None:
    corpus = copy.copy(small_corpus.corpus())
    # Only what both get right: no signal can tell right from wrong, and there is no gap to close.
    corpus.clips = [clip for clip in corpus.clips if clip.text == "turn on the light"]
    corpus.clips = [replace(clip, split="dev") for clip in corpus.clips[:1]]
    terms = replace(TERMS, domain=[])
    figures = evaluate(pair, choose(corpus, Noises(), normalise, terms), terms, Parts(None, ""))
    assert figures["cascade"]["student"] == 0
    write(figures, tmp_path)
    told = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert told["cascade"]["signals"]["entropy"]["auroc_wrong"] is None
    assert "| entropy | - | - | 0.0 % | 0.0 % | 0.0 % | - |" in (tmp_path / "REPORT.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["REPORT.md", "cascade.png", "noise.png", "report.json"]


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
