"""Batches: what is in them lines up, fits into their windows, and comes again exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_corpus
import small_school
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.augment import features, warped_filters
from distillation.batches import IGNORED, Batches, Mixture, laid_out
from distillation.corpus import Corpus
from distillation.distributions import KEPT
from distillation.label import LabelsError
from distillation.lessons import Lessons, certain
from distillation.model import Layout, layout_of
from distillation.noise import Noises
from streaming.job import SAMPLE_RATE
from streaming.whisper.checkpoint import Checkpoint

MIXTURE = Mixture(seconds=12)
NOISES = Noises(*[[np.ones(8000, np.float32)]] * 3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_school.teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def layout(teacher: Checkpoint) -> Layout:
    return layout_of(teacher, None)


@pytest.fixture(scope="module")
def lessons(teacher: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    return small_school.lessons(teacher, tmp_path_factory.mktemp("lessons") / "labels.jsonl")


@pytest.fixture(scope="module")
def batches(lessons: Lessons, layout: Layout) -> Batches:
    return Batches(lessons, NOISES, layout, MIXTURE)


def test_a_step_has_the_same_batch_whenever_it_is_asked_for(batches: Batches, lessons: Lessons, layout: Layout) -> None:
    steps = (0, 5, 2, batches.epoch_steps(0) + 1)
    once = [batches[step] for step in steps]
    anew = Batches(lessons, NOISES, layout, MIXTURE)
    for one, step in zip(once, steps, strict=True):
        for name in one.__slots__:
            assert torch.equal(getattr(one, name), getattr(anew[step], name)), name
    other = Batches(lessons, NOISES, layout, replace(MIXTURE, seed=2))
    assert any(not torch.equal(one.mel, other[step].mel) for one, step in zip(once, steps, strict=True))


def test_a_fingerprint_changes_with_lessons_and_mixture(batches: Batches, lessons: Lessons, layout: Layout) -> None:
    assert Batches(lessons, NOISES, layout, MIXTURE).fingerprint == batches.fingerprint
    fewer = Batches(lessons, NOISES, layout, replace(MIXTURE, longest=2.0))
    assert batches.fingerprint != fewer.fingerprint
    assert fewer.fingerprint != Batches(lessons, NOISES, layout, replace(MIXTURE, longest=2.1, seed=2)).fingerprint


def test_an_epoch_holds_every_lesson_once_alone(batches: Batches, lessons: Lessons) -> None:
    for epoch in (0, 1):
        single = Counter(
            each.utterance[0] for batch in batches._plan(epoch) for each in batch if len(each.utterance) == 1
        )
        assert single == Counter(range(len(lessons.all)))


@given(
    seed=st.integers(0, 999),
    strength=st.sampled_from([0.0, 0.5, 1.0]),
    joined=st.sampled_from([0.0, 1.0]),
    roomy=st.floats(0, 1),
)
@settings(max_examples=30)
def test_every_example_fits_into_the_window_of_its_batch(
    lessons: Lessons, layout: Layout, seed: int, strength: float, joined: float, roomy: float
) -> None:
    mixture = replace(
        MIXTURE, seed=seed, strength=strength, joined_share=joined, roomy_share=roomy, empty_share=0.2, seconds=16
    )
    batches = Batches(lessons, Noises(), layout, mixture)
    for examples in batches._plan(0):
        (window,) = {each.window for each in examples}
        assert window in layout.contexts
        assert 1 <= len(examples) <= max(1, mixture.seconds // window)
        for each in examples:
            # What was said, slower and with the longest pauses, ends before the window does.
            assert batches._room(batches._lessons_of(each.utterance)) <= window or not each.utterance
    rng = np.random.default_rng(seed)
    for examples in batches._plan(0)[:2]:
        whole = [batches._wave(each, rng).size for each in examples]
        # Cut where the window ends: none was, unless all of it is speech that goes on behind it.
        assert all(
            size < each.window * SAMPLE_RATE for size, each in zip(whole, examples, strict=True) if each.utterance
        )


def test_a_clip_is_heard_in_several_windows(lessons: Lessons, layout: Layout) -> None:
    def windows(roomy: float) -> dict[int, set[float]]:
        batches = Batches(lessons, NOISES, layout, replace(MIXTURE, roomy_share=roomy))
        heard: dict[int, set[float]] = {}
        for epoch in range(12):
            for each in (each for batch in batches._plan(epoch) for each in batch):
                if len(each.utterance) == 1:
                    heard.setdefault(each.utterance[0], set()).add(each.window)
        return heard

    assert {len(each) for each in windows(0.0).values()} == {1}
    often = windows(0.5)
    stop = next(index for index, lesson in enumerate(lessons.all) if lesson.clip.text == "stop")
    assert often[stop] == {2.0, 3.0, 5.0}  # the smallest and the next two, of four
    longest = max(range(len(lessons.all)), key=lambda index: lessons.all[index].seconds)
    assert often[longest] == {8.0}


@given(st.lists(st.integers(0, 16), max_size=5))
def test_what_is_joined_lines_up(lessons: Lessons, layout: Layout, batches: Batches, joined: list[int]) -> None:
    """Each label's place has the distribution that the teacher gave when it said that very token."""
    utterance = tuple(joined)
    tokens = [token for index in utterance for token in lessons.all[index].tokens]
    batch = batches._taught(torch.zeros(1, 80, 100), [utterance])
    first = len(layout.prompt) - 1
    said = [token for token in batch.labels[0, first:].tolist() if token != IGNORED]
    assert said == [*tokens, layout.end]
    assert batch.inputs[0].tolist() == [*layout.prompt, *tokens][: batch.inputs.shape[1]]
    place = first
    for number, index in enumerate(utterance):
        kept, scores = lessons.distributions(lessons.all[index])
        count = len(lessons.all[index].tokens) + (number == len(utterance) - 1)
        assert torch.equal(batch.likeliest[0, place : place + count], kept[:count])
        assert torch.equal(batch.log_probs[0, place : place + count], scores[:count])
        place += count
    assert place - first == len(said) or not utterance
    known = batch.log_probs[0].exp().sum(-1) > 0
    assert known.tolist() == [number >= first for number in range(len(known))]


def test_rows_of_unlike_length_line_up_too(batches: Batches, layout: Layout, lessons: Lessons) -> None:
    batch = batches._taught(torch.zeros(2, 80, 100), [(1,), (0, 2), ()])
    assert batch.likeliest.shape == (*batch.labels.shape, KEPT) == batch.log_probs.shape
    first = len(layout.prompt) - 1
    for row, utterance in zip(range(3), [(1,), (0, 2), ()], strict=True):
        count = sum(len(lessons.all[index].tokens) for index in utterance) + 1
        assert (batch.labels[row] != IGNORED).tolist() == [
            number == 0 or first <= number < first + count for number in range(batch.labels.shape[1])
        ]
        known = batch.log_probs[row].exp().sum(-1) > 0
        assert known.tolist() == [first <= number < first + count for number in range(batch.labels.shape[1])]


def test_noise_alone_is_nothing_said(lessons: Lessons, layout: Layout) -> None:
    noisy = Batches(lessons, NOISES, layout, replace(MIXTURE, empty_share=1.0, joined_share=0.0))
    plan = noisy._plan(0)
    empty = [each for batch in plan for each in batch if not each.utterance]
    assert len(empty) == len(lessons.all)
    windows = {
        each.window for epoch in range(6) for batch in noisy._plan(epoch) for each in batch if not each.utterance
    }
    assert windows == set(layout.contexts)
    step = next(number for number, batch in enumerate(plan) if any(not each.utterance for each in batch))
    row = next(number for number, each in enumerate(plan[step]) if not each.utterance)
    batch = noisy[step]
    first = len(layout.prompt) - 1
    assert batch.labels[row, 0] == layout.no_speech
    assert batch.labels[row, first] == layout.end
    assert set(batch.labels[row].tolist()) <= {layout.no_speech, layout.end, IGNORED}
    tokens, scores = certain(layout.end)
    assert torch.equal(batch.likeliest[row, first], tokens[0])
    assert torch.equal(batch.log_probs[row, first], scores[0])


def test_a_prompt_of_one_token_leaves_no_place_for_no_speech(layout: Layout) -> None:
    _, labels = laid_out(replace(layout, prompt=layout.prompt[:1]), [[], [5, 6]])
    assert labels.tolist() == [[layout.end, IGNORED, IGNORED], [5, 6, layout.end]]


def test_a_beginning_goes_on_behind_its_end(lessons: Lessons, layout: Layout) -> None:
    """It is heard up to its end, with no silence behind, and is never joined to what it did not come before."""
    batches = Batches(lessons, Noises(), layout, replace(MIXTURE, joined_share=3.0, empty_share=0.0, strength=0.0))
    begun = {index for index, lesson in enumerate(lessons.all) if lesson.begins}
    assert begun
    examples = [each for batch in batches._plan(0) for each in batch]
    assert begun == {index for each in examples for index in each.utterance if lessons.all[index].begins}
    assert all(len(each.utterance) == 1 for each in examples if begun & {*each.utterance})
    assert any(len(each.utterance) > 1 for each in examples)
    for each in examples:
        if len(each.utterance) == 1:
            loud = np.flatnonzero(np.abs(batches._wave(each, np.random.default_rng(1))) > 0.004)
            size = batches._wave(each, np.random.default_rng(1)).size
            assert (size - loud[-1] < 0.05 * SAMPLE_RATE) == (each.utterance[0] in begun)


def test_what_fits_into_no_window_is_left_out_and_nothing_at_all_is_refused(lessons: Lessons, layout: Layout) -> None:
    short = Batches(lessons, NOISES, replace(layout, contexts=(2.5,)), MIXTURE)
    assert 0 < len(short._lessons) < len(lessons.all)
    assert short[0].mel.shape[2] == 250
    with pytest.raises(LabelsError, match=r"no clip fits.* into 1 s"):
        Batches(lessons, NOISES, replace(layout, contexts=(1.0,)), MIXTURE)
    with pytest.raises(LabelsError, match="--longest"):
        Batches(lessons, NOISES, layout, replace(MIXTURE, longest=0.1))


def test_labels_without_distributions_are_refused(teacher: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    labels = small_school.teach(teacher, path)
    kept = path.with_suffix(".distributions")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(LabelsError, match="is shorter than its labels"):
        Lessons(small_corpus.corpus(), labels, kept, small_school.EVERYTHING)


def test_lessons_are_what_the_filter_leaves(lessons: Lessons, teacher: Checkpoint, tmp_path: Path) -> None:
    corpus: Corpus = small_corpus.corpus()
    begun = [lesson for lesson in lessons.all if lesson.begins]
    assert {lesson.clip.samples for lesson in begun} == {SAMPLE_RATE}
    assert all(not lesson.clip.transcribed for lesson in begun)
    for lesson in lessons.all:
        whole = next(clip for clip in corpus.clips if clip.offset == lesson.clip.offset)
        np.testing.assert_array_equal(
            lessons.waveform(lesson), corpus.waveform(whole)[: SAMPLE_RATE if lesson.begins else None]
        )
    labels = small_school.teach(teacher, tmp_path / "labels.jsonl")
    doubted = [replace(each, confidence=0.5) if each.samples else replace(each, wer=0.2) for each in labels]
    kept = tmp_path / "labels.distributions"
    unsure = Lessons(corpus, doubted, kept, replace(small_school.EVERYTHING, wer=0.1))
    assert len(unsure.all) == len(begun)
    with pytest.raises(LabelsError, match="right teacher"):
        Lessons(corpus, doubted, kept, replace(small_school.EVERYTHING, wer=0.1, confidence=0.7))


def test_features_are_whispers() -> None:
    from transformers import WhisperFeatureExtractor

    wave = np.random.default_rng(0).standard_normal(16000 * 30).astype(np.float32) * 0.1
    theirs = WhisperFeatureExtractor(feature_size=80)(wave, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(features([wave], 30.0, 80)[0].numpy(), theirs, atol=2e-4)
    assert not torch.equal(warped_filters(80, 0.9), warped_filters(80))
