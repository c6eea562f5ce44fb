"""The engine: who decides, whose fault it is, and that nothing else matters to a job."""

from __future__ import annotations

import itertools
import math
import pickle
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from checkpoints import Pair
from hypothesis import given, settings
from hypothesis import strategies as st
from waveforms import murmur

from streaming.job import (
    ALWAYS,
    NEVER,
    SAMPLE_RATE,
    Job,
    Result,
    isolated,
    out_of_memory,
    sureness,
)
from streaming.whisper import engine as engine_module
from streaming.whisper.cache_slots import Slots
from streaming.whisper.checkpoint import CheckpointError
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.half_precision import is_halved
from streaming.whisper.model import Memory
from streaming.whisper.precision import bfloat16_gain

EOT = 600


@cache
def load(student: Path, teacher: Path | None = None) -> WhisperEngine:
    # In float32: only there is exactness a promise.
    return WhisperEngine.load(str(student), None if teacher is None else str(teacher), "cpu", dtype="float32")


@pytest.fixture(params=["shared encoder", "own encoders"])
def pair(request: pytest.FixtureRequest, english: Pair, multilingual: Pair) -> Pair:
    return english if request.param == "shared encoder" else multilingual


def decided(result: Result) -> tuple[Any, ...]:
    """What must not depend on drafts or company; probabilities apart."""
    return result.error, result.tokens, result.model, result.language, len(result.log_probs)


# --- what a loaded engine says of itself -----------------------------------------------------------------------------


def test_attributes(english: Pair) -> None:
    engine = load(english.student, english.teacher)
    assert (engine.student, engine.teacher, engine.device) == ("english", "english-teacher", "cpu")
    assert engine.contexts == (1.0, 2.0, 5.0)
    assert (engine.multilingual, engine.languages, engine.eot) == (False, ("en",), EOT)
    assert engine.tokenizer_file == english.student / "tokenizer.json"


def test_attributes_of_a_pair_with_unequal_contexts(multilingual: Pair) -> None:
    engine = load(multilingual.student, multilingual.teacher)
    assert engine.contexts == (1.0, 5.0)
    assert (engine.multilingual, engine.languages) == (True, ("en", "de", "fr"))


def test_a_shared_encoder_is_one_in_memory_and_runs_once(english: Pair) -> None:
    engine = load(english.student, english.teacher)
    student, teacher = engine._student, engine._teacher
    assert teacher is not None
    pairs = zip(student.encoder.parameters(), teacher.encoder.parameters(), strict=True)
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    runs: list[int] = []
    hook = student.encoder.register_forward_hook(lambda *_: runs.append(1))
    engine.run([Job(murmur(1, seed), ask_teacher_below=ALWAYS) for seed in range(3)])
    hook.remove()
    assert runs == [1]


def test_an_encoder_of_its_own_is_not_shared(multilingual: Pair) -> None:
    engine = load(multilingual.student, multilingual.teacher)
    assert engine._teacher is not None
    assert engine._teacher.encoder is not engine._student.encoder


def test_a_pair_of_two_vocabularies_is_refused(english: Pair, multilingual: Pair) -> None:
    with pytest.raises(CheckpointError, match="do not match"):
        WhisperEngine.load(str(english.student), str(multilingual.teacher), "cpu")


@pytest.mark.parametrize(("device", "dtype"), [("tpu9", "auto"), ("nonsense", "auto"), ("cpu", "int8")])
def test_a_device_or_dtype_that_is_not_there(english: Pair, device: str, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"{'dtype' if dtype == 'int8' else 'device'}.*(must be|not available|int8)"):
        WhisperEngine.load(str(english.student), None, device, dtype=dtype)


def test_warm_runs_the_shortest_and_the_longest_context(english: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu", threads=1)
    seen: set[int] = set()
    run = engine.run

    def watched(jobs: list[Job]) -> list[Result]:
        seen.update(len(job.audio) for job in jobs)
        return run(jobs)

    monkeypatch.setattr(engine, "run", watched)
    engine.warm()
    assert seen == {SAMPLE_RATE, 5 * SAMPLE_RATE}


def test_an_engine_whose_canary_fails_is_not_warm(english: Pair) -> None:
    engine = WhisperEngine.load(str(english.student), None, "cpu")
    engine._student.decoder.layer_norm.weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"canary decode of 1 s failed: .*not finite"):
        engine.warm()


# --- who decides -----------------------------------------------------------------------------------------------------


def test_the_teacher_decides_below_the_threshold_alone(pair: Pair) -> None:
    engine = load(pair.student, pair.teacher)
    audios = [murmur(0.5 + 0.6 * seed, seed) for seed in range(6)]
    sure = engine.run([Job(audio, max_tokens=20) for audio in audios])
    assert {result.model for result in sure} == {"student"}
    assert {result.teacher_passes for result in sure} == {0}
    threshold = sorted(result.student_confidence for result in sure)[3]
    results = engine.run([Job(audio, ask_teacher_below=threshold, max_tokens=20) for audio in audios])
    alone = load(pair.teacher).run([Job(audio, max_tokens=20) for audio in audios])
    for before, result, teacher in zip(sure, results, alone, strict=True):
        assert result.student_tokens == before.tokens
        assert result.student_confidence == pytest.approx(before.student_confidence, abs=1e-4)
        if before.student_confidence < threshold:
            assert decided(result) == decided(replace(teacher, model="teacher"))
            assert result.log_probs == pytest.approx(teacher.log_probs, abs=1e-3)
            assert result.no_speech == pytest.approx(teacher.no_speech, rel=1e-3)
            assert result.teacher_passes >= 1
            agreed = np.cumprod([a == b for a, b in zip(result.student_tokens, teacher.tokens, strict=False)])
            assert result.teacher_accepted == agreed.sum()
        else:
            assert decided(result) == decided(before)
    assert [result.model for result in results].count("teacher") == 3


def test_without_a_teacher_the_student_decides(english: Pair) -> None:
    job = Job(murmur(1), ask_teacher_below=ALWAYS)
    (result,) = load(english.student).run([job])
    assert (result.model, result.error) == ("student", None)
    assert result.tokens == result.student_tokens
    assert result.student_confidence == sureness(result.log_probs)


def test_a_limit_cuts_the_text_before_its_end(english: Pair) -> None:
    engine = load(english.student)
    (whole,) = engine.run([Job(murmur(1, 3))])
    assert len(whole.tokens) > 3
    assert len(whole.log_probs) == len(whole.tokens) + 1
    (cut,) = engine.run([Job(murmur(1, 3), max_tokens=3)])
    assert cut.tokens == whole.tokens[:3]
    assert len(cut.log_probs) == 3


def test_what_a_draft_says_behind_an_end_of_text_is_no_part_of_it(english: Pair) -> None:
    engine = load(english.student)
    (whole,) = engine.run([Job(murmur(1, 3))])
    (result,) = engine.run([Job(murmur(1, 3), draft=(*whole.tokens[:2], EOT, *whole.tokens[2:]))])
    assert (result.tokens, result.accepted) == (whole.tokens, 2)


def test_languages_and_tasks(multilingual: Pair) -> None:
    """A given language is obeyed, a missing one detected, each row by itself, and both change the text."""
    engine = load(multilingual.student)
    audio = murmur(3, 1)
    jobs = [Job(audio, language=code, max_tokens=10) for code in ("de", None, "fr")]
    jobs.append(replace(jobs[0], task="translate"))
    results = engine.run(jobs)
    assert [result.language for result in results] == ["de", results[1].language, "fr", "de"]
    assert results[1].language in engine.languages
    assert (
        results[1].passes
        == 1 + load(multilingual.student).run([replace(jobs[0], language=results[1].language)])[0].passes
    )
    assert len({result.tokens for result in (results[0], results[2], results[3])}) == 3
    (given_the_detected,) = engine.run([Job(audio, language=results[1].language, max_tokens=10)])
    assert given_the_detected.tokens == results[1].tokens


# --- nothing else matters --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """A job but for its draft, in a form that can be looked up."""

    recording: int
    timestamps: bool
    times: bool
    ask_teacher_below: float

    def job(self, draft: tuple[int, ...] = ()) -> Job:
        audio = murmur(0.4 + 0.5 * self.recording, self.recording)
        return Job(audio, draft, None, "transcribe", self.timestamps, self.times, self.ask_teacher_below, 12)


@cache
def alone(pair: Pair, wish: Wish) -> Result:
    (result,) = load(pair.student, pair.teacher).run([wish.job()])
    return result


wishes = st.builds(
    Wish,
    recording=st.integers(0, 4),
    timestamps=st.booleans(),
    times=st.booleans(),
    ask_teacher_below=st.sampled_from([NEVER, ALWAYS]),
)
drafts = st.lists(st.integers(0, 2111), max_size=8).map(tuple)


@given(st.lists(st.tuples(wishes, drafts, st.booleans()), max_size=5))
@settings(max_examples=30)
def test_a_job_does_not_depend_on_its_draft_or_company(
    english: Pair, batch: list[tuple[Wish, tuple[int, ...], bool]]
) -> None:
    """Drafts may be garbage or, where the third says so, the right text; a bad job may stand in the middle."""
    jobs = [wish.job(alone(english, wish).tokens if right else draft) for wish, draft, right in batch]
    jobs.insert(len(jobs) // 2, Job(np.full(16000, np.nan, np.float32)))
    results = load(english.student, english.teacher).run(jobs)
    assert results.pop(len(batch) // 2).error is not None
    for (wish, _, _), result in zip(batch, results, strict=True):
        expected = alone(english, wish)
        assert expected.error is None
        assert decided(result) == decided(expected)
        assert result.log_probs == pytest.approx(expected.log_probs, abs=1e-3)
        assert len(result.times) == (len(result.tokens) if wish.times else 0)


def test_more_jobs_than_a_batch_holds(english: Pair) -> None:
    engine = load(english.student)
    many = [Job(murmur(0.5, seed % 5), max_tokens=3, revision=seed) for seed in range(70)]
    results = engine.run(many)
    assert [result.revision for result in results] == list(range(70))
    assert [result.tokens for result in results[:5]] * 14 == [result.tokens for result in results]
    assert engine.run([]) == []


def test_times(pair: Pair) -> None:
    engine = load(pair.student, pair.teacher)
    audio = murmur(1.7, 3)
    for threshold in (NEVER, ALWAYS):
        plain, timed = engine.run([Job(audio, ask_teacher_below=threshold, times=times) for times in (False, True)])
        assert decided(plain) == decided(timed)
        assert plain.times == ()
        assert len(timed.times) == len(timed.tokens) > 0
        flat = [moment for span in timed.times for moment in span]
        assert flat == sorted(flat)
        assert 0 <= flat[0] <= flat[-1] <= 1.7
        assert timed.passes + timed.teacher_passes == plain.passes + plain.teacher_passes + 1


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_times_copy_nothing_of_what_was_heard(
    english: Pair, graphs: Literal["off", "on"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a large model knows of one utterance, in all of its layers, is hundreds of megabytes."""
    engine = WhisperEngine.load(
        str(english.student), str(english.teacher), "cpu", dtype="float32", graphs=graphs, batch=2
    )
    copied: list[object] = []
    for owner, name in ((Memory, "select"), (Slots, "memory")):
        monkeypatch.setattr(owner, name, lambda self, *_: copied.append(self))
    jobs = [Job(murmur(1.7, seed), times=True, ask_teacher_below=below) for seed, below in ((3, NEVER), (4, ALWAYS))]
    results = engine.run(jobs)
    assert all(len(result.times) == len(result.tokens) > 0 for result in results)
    assert not copied


def test_how_many_threads_there_may_be_is_asked_before_each_batch(english: Pair) -> None:
    before = torch.get_num_threads()
    allowed, asked, used = [1, 2, 1], [], []

    def allow(most: int) -> int:
        asked.append(most)
        return allowed[min(len(asked), len(allowed)) - 1]

    try:
        engine = WhisperEngine.load(str(english.student), None, "cpu", dtype="float32", threads=allow)
        for _ in range(2):
            used.append(torch.get_num_threads())
            engine.run([Job(murmur(1), max_tokens=2)])
        used.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert used == allowed
    assert len(set(asked)) == 1


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_runs(english: Pair, dtype: str, graphs: Literal["off", "on"]) -> None:
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu", dtype=dtype, graphs=graphs, batch=2)
    (result,) = engine.run([Job(murmur(1, 3), ask_teacher_below=ALWAYS, times=True, max_tokens=8)])
    assert result.error is None
    assert result.tokens


@pytest.mark.parametrize(("gain", "dtype"), [(2.0, "mixed"), (1.0, "float32")])
def test_the_encoder_computes_in_what_is_faster_here(
    english: Pair, gain: float, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "bfloat16_gain", lambda encoder: gain)
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu")
    assert engine.dtype == dtype
    assert engine._teacher is not None
    assert engine._teacher.encoder is engine._student.encoder
    narrow = engine._student.encoder.conv1.weight.dtype == torch.bfloat16
    assert narrow == (dtype == "mixed")
    assert engine._student.decoder.embed_tokens.weight.dtype == torch.float32


@pytest.mark.parametrize("gain", [2.0, 1.0])
def test_a_decoder_has_the_weights_that_are_faster_here(
    english: Pair, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "bfloat16_gain", lambda encoder: 1.0)
    monkeypatch.setattr(engine_module, "half_gain", lambda weight, narrow: gain)
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu")
    student, teacher = engine.models
    halved = gain == 2.0
    assert [is_halved(model.decoder) for model in engine.models] == [halved, halved]
    assert engine.numbers == ("float32, decoder weights in float16" if halved else "float32")
    one_vocabulary = student.decoder.output_weight is teacher.decoder.output_weight
    assert one_vocabulary == (not halved or student.decoder.vocabulary is teacher.decoder.vocabulary)
    # Asked for by name, numbers are what they are called.
    named = WhisperEngine.load(str(english.student), str(english.teacher), "cpu", dtype="float32")
    assert not any(is_halved(model.decoder) for model in named.models)


def test_the_teacher_alone_says_what_it_says_of_a_draft(english: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same weights, in the same numbers, as in the pair."""
    monkeypatch.setattr(engine_module, "half_gain", lambda weight, narrow: 2.0)
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu")
    alone = engine.alone(engine.models[1])
    assert alone.teacher is None
    assert alone.numbers == engine.numbers
    for seed in range(4):
        (checked,) = engine.run([Job(murmur(1.5, seed), ask_teacher_below=ALWAYS)])
        (plain,) = alone.run([Job(murmur(1.5, seed), ask_teacher_below=NEVER)])
        assert (checked.model, plain.model) == ("teacher", "student")
        assert checked.tokens == plain.tokens
        assert checked.log_probs == pytest.approx(plain.log_probs, abs=1e-3)


def test_a_draft_changes_nothing_behind_a_narrow_encoder(english: Pair) -> None:
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu", dtype="mixed")
    audio = murmur(1.5, 3)
    for threshold in (NEVER, ALWAYS):
        (plain,) = engine.run([Job(audio, ask_teacher_below=threshold)])
        for draft in (plain.tokens, plain.tokens[:2], (5, 6, 7)):
            (drafted,) = engine.run([Job(audio, draft=draft, ask_teacher_below=threshold)])
            assert decided(drafted) == decided(plain)


def test_the_probe_measures(english: Pair) -> None:
    engine = load(english.student)
    assert 0.01 < bfloat16_gain(engine._student.encoder) < 100


def test_jobs_and_results_travel(english: Pair) -> None:
    engine = load(english.student)
    job = Job(murmur(1), draft=(1, 2), times=True, revision=5)
    (result,) = engine.run([pickle.loads(pickle.dumps(job))])
    (expected,) = engine.run([job])
    assert pickle.loads(pickle.dumps(result)) == result == expected


# --- whose fault -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Job(np.zeros((2, 100), np.float32)), "float32 array of shape"),
        (Job(np.zeros(100, np.float64)), "float32 array of shape"),
        (Job(np.zeros(0, np.float32)), "empty"),
        (Job(np.zeros(5 * SAMPLE_RATE + 1, np.float32)), "5.00 s long, but the longest context is 5 s"),
        (Job(np.array([0, np.inf], np.float32)), "not finite"),
        (Job(murmur(1), draft=(0, 2112)), r"outside the vocabulary \(0..2111\)"),
        (Job(murmur(1), draft=(-1,)), "outside the vocabulary"),
        (Job(murmur(1), max_tokens=0), "max_tokens must be at least 1"),
        (Job(murmur(1), language="de"), "English-only"),
        (Job(murmur(1), task="translate"), "English-only"),
        (Job(murmur(1), previous=(EOT,)), "the text before has tokens that are neither text nor timestamps"),
    ],
)
def test_a_bad_job_fails_alone(english: Pair, caplog: pytest.LogCaptureFixture, job: Job, error: str) -> None:
    engine = load(english.student, english.teacher)
    good = Job(murmur(1, 3), max_tokens=6)
    before, result, after = engine.run([good, replace(job, revision=7), good])
    (alone,) = engine.run([good])
    assert result.error is not None
    assert result == Result(revision=7, error=result.error)
    assert re.search(error, result.error)
    assert decided(before) == decided(after) == decided(alone)
    assert not caplog.records


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_language_is_detected_among_those_that_a_job_allows(multilingual: Pair, graphs: Literal["on", "off"]) -> None:
    engine = WhisperEngine.load(str(multilingual.student), None, "cpu", graphs=graphs)
    audios = [murmur(1 + 0.2 * seed, seed) for seed in range(3)]
    free = [result.language for result in engine.run([Job(audio, max_tokens=4) for audio in audios])]
    for allowed in itertools.combinations(engine.languages, 2):
        results = engine.run([Job(audio, languages=(*allowed, "xx"), max_tokens=4) for audio in audios])
        assert {result.language for result in results} <= set(allowed)
        for found, result in zip(free, results, strict=True):
            assert found == result.language or found not in allowed
    (alone, other) = engine.run([Job(audios[0], languages=(code,), max_tokens=4) for code in engine.languages[1:]])
    assert (alone.language, other.language) == engine.languages[1:]


def test_languages_of_which_none_is_known(english: Pair, multilingual: Pair) -> None:
    for pair, known in ((english, "en"), (multilingual, "en, de, fr")):
        (result,) = load(pair.student).run([Job(murmur(1), languages=("xx", "yy"))])
        assert result.error == f"none of the languages xx, yy is one of {known}"


def test_a_language_that_is_not_known(multilingual: Pair) -> None:
    (result,) = load(multilingual.student).run([Job(murmur(1), language="xx")])
    assert result.error == "the language 'xx' is not one of en, de, fr"


def test_an_exception_costs_the_culprit_alone(
    english: Pair,
) -> None:
    """Something that no check foresaw: the encoder refuses one recording."""
    engine = WhisperEngine.load(str(english.student), None, "cpu")
    audios = [murmur(0.9, seed) for seed in range(4)]
    expected = engine.run([Job(audio, max_tokens=6) for audio in audios])
    poison = engine._student.mel([audios[2]], 1.0)[0]

    def refuse(_: object, arguments: tuple[torch.Tensor]) -> None:
        if any(torch.allclose(row, poison, atol=1e-5) for row in arguments[0]):
            raise RuntimeError("out of luck")

    engine._student.encoder.register_forward_pre_hook(refuse)
    failed: list[int] = []
    jobs = [Job(audio, max_tokens=6) for audio in audios]
    results = isolated(engine.run, jobs, lambda batch, error: failed.append(len(batch)))
    assert results[2].error == "RuntimeError: out of luck"
    for index in (0, 1, 3):
        assert decided(results[index]) == decided(expected[index])
    assert failed == [4, 2, 1]


def test_a_batch_that_does_not_fit_into_memory_is_run_in_parts_that_do(english: Pair) -> None:
    """The encoder, on a device with room for two; the allocator's own error."""
    engine = WhisperEngine.load(str(english.student), None, "cpu")
    jobs = [Job(murmur(0.9, seed), max_tokens=6) for seed in range(5)]
    expected = engine.run(jobs)

    def refuse(_: object, arguments: tuple[torch.Tensor]) -> None:
        if len(arguments[0]) > 2:
            torch.empty(1 << 60, dtype=torch.uint8)

    engine._student.encoder.register_forward_pre_hook(refuse)
    errors: list[Exception] = []
    results = isolated(engine.run, jobs, lambda batch, error: errors.append(error))
    assert list(map(decided, results)) == list(map(decided, expected))
    assert len(errors) == 2  # five, and the three of its second half
    assert all(map(out_of_memory, errors))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    engine.warm()  # a device for which its largest canaries are too large is no broken one


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_text_that_is_no_number_any_more_ends_at_once(english: Pair, graphs: Literal["on", "off"]) -> None:
    """It has no end of its own, and would cost its batch all steps up to the limit."""
    engine = WhisperEngine.load(str(english.student), None, "cpu", graphs=graphs)
    engine.warm()
    engine._student.decoder.layer_norm.weight.fill_(math.nan)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    engine._student.decoder.register_forward_hook(count)
    (result,) = engine.run([Job(murmur(1))])
    assert result.error is not None
    assert 1 <= passes <= 4


def test_output_that_is_not_finite_is_an_error(english: Pair) -> None:
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu")
    assert engine._teacher is not None
    engine._teacher.decoder.layer_norm.weight.fill_(math.nan)
    checked, unchecked = engine.run([Job(murmur(1), ask_teacher_below=limit) for limit in (ALWAYS, NEVER)])
    assert checked.error is not None
    assert "not finite" in checked.error
    assert unchecked.error is None
