"""The shipped pair: what the tests of random weights prove must hold on speech and trained weights as well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_parity import assert_same
from waveforms import murmur

from streaming.job import ALWAYS, SAMPLE_RATE, Job, Waveform
from streaming.text import Text
from streaming.whisper.engine import Engine
from streaming.whisper.locate import SHIPPED

RECORDINGS = ("on", "stop", "turn_on_the_kitchen_light", "two_sentences")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("home-en", "home-en", "cpu", dtype="float32")


@pytest.fixture(scope="module")
def audios(recording: Callable[[str], Waveform]) -> list[Waveform]:
    return [*map(recording, RECORDINGS), murmur(3.0)]


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_parity_with_generate(audios: list[Waveform], tmp_path: Path, role: str, timestamps: bool) -> None:
    """transformers knows the full context alone, so the checkpoint forgets its shorter ones here."""
    directory = Path(shutil.copytree(SHIPPED / "home-en" / role, tmp_path / role))
    (directory / "whisperd.json").unlink()
    jobs = [Job(audio, timestamps=timestamps, max_tokens=60) for audio in audios]
    options = [{"return_timestamps": timestamps, "max_new_tokens": 60} for _ in jobs]
    assert_same(directory, jobs, options)


def test_drafts_and_company_change_nothing(engine: Engine, audios: list[Waveform]) -> None:
    alone = [engine.run([Job(audio)])[0] for audio in audios]
    together = engine.run([Job(audio, draft=other.tokens) for audio, other in zip(audios, alone[::-1], strict=True)])
    assert [result.tokens for result in together] == [result.tokens for result in alone]


def test_the_teacher_checks_as_it_would_speak(engine: Engine, audios: list[Waveform]) -> None:
    teacher = Engine.load(str(SHIPPED / "home-en" / "teacher"), None, "cpu", dtype="float32")
    checked = engine.run([Job(audio, ask_teacher_below=ALWAYS) for audio in audios])
    spoken = teacher.run([Job(audio) for audio in audios])
    assert [result.tokens for result in checked] == [result.tokens for result in spoken]
    assert {result.model for result in checked} == {"teacher"}


def test_a_hypothesis_of_the_same_audio_is_confirmed_in_one_pass(engine: Engine, audios: list[Waveform]) -> None:
    jobs = [Job(audio) for audio in audios]
    first = engine.run(jobs)
    again = engine.run([replace(job, draft=result.tokens) for job, result in zip(jobs, first, strict=True)])
    assert [result.passes for result in again] == [1] * len(jobs)
    assert [result.accepted for result in again] == [len(result.tokens) for result in first]


def test_the_pair_shares_its_encoder_and_its_names(engine: Engine) -> None:
    assert (engine.student, engine.teacher) == ("home-en", "home-en-teacher")
    assert engine.contexts == (2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
    assert engine._teacher is not None
    assert engine._teacher.encoder is engine._student.encoder


def test_a_sentence_and_its_times(engine: Engine, recording: Callable[[str], Waveform]) -> None:
    audio = recording("turn_on_the_kitchen_light")
    (result,) = engine.run([Job(audio, times=True, ask_teacher_below=ALWAYS)])
    text = Text(engine.tokenizer_file, engine.eot)
    assert text.text(result.tokens).strip() == "turn on the kitchen light"
    flat = [moment for span in result.times for moment in span]
    assert flat == sorted(flat)
    assert flat[0] > 0.4  # half a second of silence leads, a whole one follows
    assert flat[-1] < len(audio) / SAMPLE_RATE - 0.7
