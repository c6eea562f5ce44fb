"""The report measures what it says, on the shipped pair."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from distillation.corpus import Clip, Corpus, gather, record
from distillation.evaluate import (
    SHARES,
    Effort,
    EvaluationError,
    Heard,
    Pair,
    Terms,
    choose,
    digest,
    evaluate,
    finals,
    hear_set,
    hear_whole,
    joined,
    words_from_noise,
)
from distillation.hearing import ALONE, Escalation, Transcriber, hear, waves_of
from distillation.label import normaliser
from distillation.noise import Noises
from distillation.report import as_markdown, write
from distillation.saved_parts import Parts
from streaming.job import ALWAYS, SAMPLE_RATE, Result, Waveform
from streaming.whisper.checkpoint import open_checkpoint

LITTLE = Effort(
    clips=8, noise_seconds=6, curve_clips=1, long_minutes=0.1, live_clips=1, checked_clips=2, rounds=1, timed_clips=2
)
TERMS = Terms(Escalation(0.8), ["said"], "english", LITTLE)
SAID = {"turn_on_the_kitchen_light": "Turn on the kitchen light.", "stop": "Stop."}
DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.open("tiny-en", "tiny-en")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(open_checkpoint("tiny-en", "teacher").tokenizer_file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two recordings to measure on."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"path": str(DATA / f"{name}.flac"), "text": text, "set": "said"} for name, text in SAID.items()]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record(folder / "corpus", manifest, "dev")
    gather(folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus(folder)


def noise(seconds: float) -> Waveform:
    return (np.random.default_rng(5).standard_normal(int(16000 * seconds)) * 0.05).astype(np.float32)


def test_the_cascade_takes_the_teachers_text_below_the_threshold() -> None:
    heard = Heard("s", "stop", student="top", teacher="stop", confidence=0.7, teacher_silenced=True)
    assert [heard.cascade(threshold) for threshold in (0.0, 0.7, 0.71)] == ["top", "top", "stop"]
    assert [heard.sent(threshold) for threshold in (0.0, 0.71)] == ["top", ""]


@pytest.mark.timeout(600)
def test_the_report_of_a_pair(pair: Pair, folder: Path, corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    material = choose(corpus, Noises([noise(3)], [noise(3)]), normaliser("english"), TERMS, tokenizer)
    kept = tmp_path / "report" / "parts"

    def parts() -> tuple[Parts, Parts]:
        of = [digest(models, pair, folder, material.noises, TERMS) for models in ([pair.student], [pair.teacher])]
        return Parts(kept, of[0]), Parts(kept, of[1])

    figures = evaluate(pair, material, TERMS, *parts())
    assert len(list(kept.iterdir())) == 2 * len(material.sets) + 1 + 1 + 2 + 2 + 4 + 1
    assert figures["speculation"]["differs"] == 0
    assert 0 < figures["speculation"]["acceptance"] <= 1
    assert figures["noise"]["seconds"] >= 6
    size = figures["size"]
    assert size["student"]["own_parameters"] < size["student"]["parameters"], "the embeddings are the teacher's"
    assert size["teacher"]["own_parameters"] == size["teacher"]["parameters"]
    cascade = figures["cascade"]
    asked = [row["asked"] for row in cascade["thresholds"].values()]
    assert asked == sorted(asked)
    assert (asked[0], asked[-1]) == (0, 1)
    assert len(cascade["wer"]) == len(SHARES)
    assert cascade["wer"]["0.0"] == pytest.approx(cascade["student"])
    assert cascade["wer"]["1.0"] == pytest.approx(cascade["teacher"])
    assert cascade["thresholds"]["0.0"]["cascade"] == cascade["student"]
    assert figures["noise_curve"]["white"].keys() == figures["noise_curve"]["recorded"].keys()

    write(figures, tmp_path / "report")
    told = (tmp_path / "report" / "REPORT.md").read_text()
    assert told.count("| said |") == 1
    assert json.loads((tmp_path / "report" / "report.json").read_text()).keys() == figures.keys()
    for picture in ("noise.png", "cascade.png"):
        assert f"]({picture})" in told
        assert (tmp_path / "report" / picture).read_bytes().startswith(b"\x89PNG")
    assert ".png" not in as_markdown(figures)

    # Everything is there, so nothing is measured: the times too are the same.
    assert evaluate(pair, material, TERMS, *parts()) == figures
    parts()[0].forget()
    assert not kept.exists()


def test_another_students_report_takes_the_teachers_part_over(
    pair: Pair, folder: Path, corpus: Corpus, tmp_path: Path
) -> None:
    def of(student: Pair) -> tuple[str, str]:
        both, alone = ([student.student, student.teacher], [student.teacher])
        return tuple(digest(models, student, folder, Noises(), TERMS) for models in (both, alone))  # type: ignore[return-value] # of two

    other = replace(pair, student=replace(pair.student, directory=pair.teacher.directory))
    assert of(pair)[1] == of(other)[1]
    assert of(pair)[0] != of(other)[0]


def dev_corpus(corpus: Corpus, clips: Sequence[tuple[str, float]]) -> Corpus:
    """Recordings to measure on, told by their texts and seconds; nothing can be heard in them."""
    corpus = copy.copy(corpus)
    corpus.clips = [Clip(text, "me", "mine", "dev", 0, round(SAMPLE_RATE * seconds)) for text, seconds in clips]
    return corpus


def test_what_cannot_be_measured_on_is_left_out_and_counted(corpus: Corpus, tokenizer: Tokenizer) -> None:
    said = dev_corpus(corpus, [("stop", 2), ("stop it", 40), ("(laughs)", 1)])
    material = choose(said, Noises(), normaliser("english"), Terms(Escalation(0.8), [], "english", LITTLE), tokenizer)
    assert [clip.text for clip in material.sets["mine"]] == ["stop", "stop it"]
    assert material.wordless == 1


@pytest.mark.parametrize(
    ("clips", "domain", "says"),
    [
        ([], [], "no transcribed recordings"),
        ([("(laughs)", 2)], [], "1 clips have no words by --normaliser english"),
        ([("stop", 2)], ["mine", "nonsense"], "no set begins with 'nonsense'.*mine"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    clips: list[tuple[str, float]], domain: list[str], says: str, corpus: Corpus, tokenizer: Tokenizer
) -> None:
    terms = Terms(Escalation(0.8), domain, "english", LITTLE)
    with pytest.raises(EvaluationError, match=says):
        choose(dev_corpus(corpus, clips), Noises(), normaliser("english"), terms, tokenizer)


def test_what_no_window_holds_is_heard_in_pieces(corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Cut where nobody speaks, and the texts joined: nothing of it is left out."""
    said = corpus.waveform(next(clip for clip in corpus.clips if clip.text.startswith("Turn")))
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    long = np.concatenate([part for _ in range(16) for part in (said, quiet)])
    assert long.size > 30 * SAMPLE_RATE
    other = copy.copy(corpus)
    other.clips = [Clip("said", "me", "mine", "dev", 0, long.size)]
    other._audio = (long * 32767).astype(np.int16)
    material = choose(other, Noises(), normaliser("english"), replace(TERMS, domain=[]), tokenizer)
    pieces: list[Waveform] = []

    def count(waves: Sequence[Waveform]) -> list[Result]:
        pieces.extend(waves)
        return [Result(0, tokens=tuple(tokenizer.encode(" here").ids[2:-1]), log_probs=(0.0,)) for _ in waves]

    ((text, results),) = hear_whole(count, material, material.clips)
    assert len(results) == len(pieces) > 1
    assert all(piece.size <= 30 * SAMPLE_RATE for piece in pieces)
    assert text == " ".join(["here"] * len(pieces))


def test_a_loop_is_cut_and_the_teacher_asked_about_it(corpus: Corpus, tokenizer: Tokenizer) -> None:
    """As the service does, however sure the student is of it, and however short the clip."""
    material = choose(corpus, Noises(), normaliser("english"), replace(TERMS, domain=[]), tokenizer)
    (name,) = material.sets
    phrase = tuple(tokenizer.encode(" what a day").ids[2:-1])

    def turning(waves: Sequence[Waveform]) -> list[Result]:
        return [Result(0, tokens=phrase * (9 if number == 0 else 1), log_probs=(0.0,)) for number in range(len(waves))]

    student = hear_set(turning, material, name)
    assert [each["text"] for each in student] == ["what a day"] * len(student)
    heard = list(joined({f"heard {name}": student}, {f"teacher heard {name}": student}, material, name, math.inf))
    assert [one.confidence for one in heard] == [0.0] + [1.0] * (len(heard) - 1)


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


def test_other_measurements_are_told_apart(pair: Pair, folder: Path) -> None:
    def of(terms: Terms, noises: Noises | None = None) -> str:
        return digest([pair.student], pair, folder, noises or Noises(), terms)

    assert of(TERMS) == of(replace(TERMS, domain=[]))
    others = [
        replace(TERMS, escalation=Escalation(0.7)),
        replace(TERMS, normaliser="basic"),
        replace(TERMS, effort=Effort()),
    ]
    assert len({of(TERMS), *map(of, others), of(TERMS, Noises([], [noise(1)]))}) == 5


def test_clips_are_heard_in_their_order(pair: Pair, corpus: Corpus) -> None:
    waves = waves_of(corpus, corpus.clips)
    transcriber = Transcriber(pair.engine)
    batched = [transcriber.text(result.tokens) for result in hear(waves, transcriber, batch=2)]
    assert batched == [transcriber.transcribe([wave])[0] for wave in waves]


def test_speech_in_noise_is_counted_as_words(pair: Pair, corpus: Corpus) -> None:
    """That silence gives no words means something only if speech gives some."""
    spoken = corpus.waveform(next(clip for clip in corpus.clips if clip.text.startswith("Turn")))
    seconds, words = words_from_noise(pair.engine, [np.pad(spoken, SAMPLE_RATE)], Escalation(ALWAYS), 2)
    assert seconds >= 2
    assert words >= 3
    assert any("light" in text.lower() for text in finals(pair.engine, np.pad(spoken, SAMPLE_RATE), Escalation(ALWAYS)))
    assert pair.hear([spoken], ALONE)[0].model == "student"
