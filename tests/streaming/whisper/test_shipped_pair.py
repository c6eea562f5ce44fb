"""The shipped pair: what the tests of random weights prove must hold on speech and trained weights as well.

Nothing here depends on how well the student hears: it learns on, and what the pair promises stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from test_parity import assert_same
from waveforms import murmur

from bench.hub_copy import write_hub_copy
from bench.player import DEMO, said_in
from bench.word_errors import comparable
from streaming.job import ALWAYS, SAMPLE_RATE, Job, Waveform
from streaming.offline import utterances
from streaming.text import Text
from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.locate import Role

LIMIT = 40
"""Tokens of a text: what is tested shows in as many, and an early student may not find an end."""


@pytest.fixture(scope="module")
def engine() -> WhisperEngine:
    return WhisperEngine.load("tiny-en", "tiny-en", "cpu", dtype="float32")


@pytest.fixture(scope="module")
def teacher() -> WhisperEngine:
    return WhisperEngine.load(str(open_checkpoint("tiny-en", "teacher").directory), None, "cpu", dtype="float32")


@pytest.fixture(scope="module")
def sentences() -> list[Waveform]:
    """A person's."""
    return list(utterances(soundfile.read(DEMO, dtype="float32")[0]))


@pytest.fixture(scope="module")
def audios(sentences: list[Waveform], recording: Callable[[str], Waveform]) -> list[Waveform]:
    return [sentences[1], recording("stop"), recording("two_sentences"), murmur(3.0)]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_parity_with_generate(audios: list[Waveform], tmp_path: Path, role: Role) -> None:
    """transformers knows neither 8 bits, nor sharing, nor shorter windows: the plain layout has none of them."""
    directory = write_hub_copy(open_checkpoint("tiny-en", role), tmp_path / role)
    kinds = [False, True, False, True]
    jobs = [Job(audio, timestamps=stamped, max_tokens=LIMIT) for audio, stamped in zip(audios, kinds, strict=True)]
    assert_same(directory, jobs, [{"return_timestamps": each, "max_new_tokens": LIMIT} for each in kinds])


def test_drafts_and_company_change_nothing(engine: WhisperEngine, audios: list[Waveform]) -> None:
    jobs = [Job(audio, max_tokens=LIMIT) for audio in audios]
    alone = [engine.run([job])[0] for job in jobs]
    drafted = [replace(job, draft=other.tokens) for job, other in zip(jobs, alone[::-1], strict=True)]
    assert [result.tokens for result in engine.run(drafted)] == [result.tokens for result in alone]


def test_the_teacher_checks_as_it_would_speak(
    engine: WhisperEngine, teacher: WhisperEngine, audios: list[Waveform]
) -> None:
    jobs = [Job(audio, max_tokens=LIMIT) for audio in audios]
    checked = engine.run([replace(job, ask_teacher_below=ALWAYS) for job in jobs])
    spoken = teacher.run(jobs)
    assert [result.tokens for result in checked] == [result.tokens for result in spoken]
    assert {result.model for result in checked} == {"teacher"}


def test_a_hypothesis_of_the_same_audio_is_confirmed_in_one_pass(
    teacher: WhisperEngine, audios: list[Waveform]
) -> None:
    jobs = [Job(audio, max_tokens=LIMIT) for audio in audios]
    first = teacher.run(jobs)
    again = teacher.run([replace(job, draft=result.tokens) for job, result in zip(jobs, first, strict=True)])
    assert [result.passes for result in again] == [1] * len(jobs)
    assert [result.accepted for result in again] == [len(result.tokens) for result in first]


def test_the_pair_shares_its_embeddings_and_has_its_names(engine: WhisperEngine) -> None:
    assert (engine.student, engine.teacher) == ("tiny-en", "tiny-en-teacher")
    assert engine.contexts == (2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
    assert engine._teacher is not None
    assert engine._teacher.checkpoint.contexts == (30.0,)
    assert engine._teacher.decoder.embed_tokens is engine._student.decoder.embed_tokens


def test_the_student_shares_what_lies_with_its_teacher() -> None:
    student, teacher = (open_checkpoint("tiny-en", role) for role in ("student", "teacher"))
    assert student.lender == teacher.directory
    assert student.tokenizer_file == teacher.tokenizer_file
    own = {file.name for file in student.directory.iterdir()}
    assert own == {"config.json", "generation_config.json", "model.safetensors", "whisperd.json"}
    names = load_file(student.directory / "model.safetensors").keys()
    assert not any("embed" in name for name in names)
    assert any(name.startswith("model.encoder.") for name in names)  # it learnt to hear short windows


def test_what_people_say_and_its_times(engine: WhisperEngine, sentences: list[Waveform]) -> None:
    """By the teacher, with the student's draft: capitals, punctuation, and words in the order of time."""
    results = engine.run([Job(wave, times=True, ask_teacher_below=ALWAYS) for wave in sentences])
    text = Text(engine.tokenizer_file, engine.eot)
    heard = [text.text(result.tokens).strip() for result in results]
    assert [comparable()(each) for each in heard] == [comparable()(each) for each in said_in(DEMO)]
    assert heard[0].startswith("Just ")
    assert heard[1].endswith(".")
    for wave, result in zip(sentences, results, strict=True):
        flat = [moment for span in result.times for moment in span]
        assert flat == sorted(flat)
        assert 0 <= flat[0] < 1.0
        assert flat[-1] <= len(wave) / SAMPLE_RATE


def test_8_bits_are_what_is_stored() -> None:
    for role in ("student", "teacher"):
        stored = load_file(open_checkpoint("tiny-en", role).directory / "model.safetensors")
        rounded = sum(each.numel() for each in stored.values() if each.dtype == torch.int8)
        assert rounded > 0.9 * sum(each.numel() for each in stored.values())
