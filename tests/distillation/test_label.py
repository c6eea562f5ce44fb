"""Labels are the teacher's, of the very clip that they are stored for; what is dropped is accounted for."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_corpus
import small_school
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_school import made

from distillation.cli import main
from distillation.corpus import Clip, Corpus, evenly
from distillation.distributions import Distributions
from distillation.files import only_writer
from distillation.hearing import Transcriber, with_margins
from distillation.label import (
    Choice,
    Filter,
    Label,
    Labelled,
    LabelsError,
    Manner,
    account,
    digest,
    distributions_of,
    joined,
    label,
    normaliser,
    picture,
    read_labels,
    word_error_rate,
)
from distillation.lessons import Lessons
from distillation.scores import Comparable
from streaming.job import SAMPLE_RATE
from streaming.whisper.checkpoint import Checkpoint, open_checkpoint
from streaming.whisper.engine import WhisperEngine

MANNER = Manner("a digest", "english", None)
WHOLE = Choice(beginnings=0)
HEADER = json.dumps({"labels": 1, **asdict(MANNER)}) + "\n"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_school.teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def transcriber(teacher: Checkpoint) -> Transcriber:
    return Transcriber(WhisperEngine.load(str(teacher.directory), None, "cpu", dtype="float32"))


@pytest.fixture(scope="module")
def comparable() -> Comparable:
    return normaliser("english")


@pytest.fixture
def corpus() -> Corpus:
    return small_corpus.corpus()


def of(corpus: Corpus, place: int, text: str, wer: float | None, confidence: float = 1.0) -> Label:
    return small_school.label(corpus.key(corpus.split("train")[place]), text, wer, confidence)


# --- whose label it is -----------------------------------------------------------------------------------------------


def test_labelling_goes_on_where_it_was_stopped(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    choice = Choice(beginnings=0.5)
    done = label(corpus, transcriber, whole, MANNER, choice, comparable)
    lines = whole.read_text().splitlines(keepends=True)
    assert [clip for _, clip in done.clips] == corpus.split("train")
    assert len(lines) - 1 == len(done.clips) + len(done.beginnings)
    broken.write_text("".join(lines[:9]) + lines[9][:9])
    # The teacher had thought further than its labels were written down.
    distributions_of(broken).write_bytes(distributions_of(whole).read_bytes()[:-7])
    label(corpus, transcriber, broken, MANNER, choice, comparable)
    assert broken.read_text().splitlines(keepends=True)[:9] == lines[:9]
    kept, same = Distributions(distributions_of(whole)), Distributions(distributions_of(broken))
    assert len(kept) == len(same)
    again = {(each.key, each.samples): each for each in read_labels(broken)}
    for each in read_labels(whole):
        other = again.pop((each.key, each.samples))
        assert (other.text, other.tokens, other.wer) == (each.text, each.tokens, each.wer)
        assert other.confidence == pytest.approx(each.confidence, abs=2e-4)
        (tokens, scores), (others, their) = kept.read(each.place, each.records), same.read(other.place, other.records)
        assert torch.equal(tokens[:, 0], others[:, 0])
        torch.testing.assert_close(scores, their, atol=0.01, rtol=0.01)
    assert not again


def test_the_likeliest_tokens_are_those_that_were_said(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    """What was said at each place is the likeliest of what may be said there."""
    path = tmp_path / "labels.jsonl"
    label(corpus, transcriber, path, MANNER, Choice(4, beginnings=0), comparable)
    kept = Distributions(distributions_of(path))
    grammar = transcriber.engine.models[0].checkpoint.grammar
    assert grammar.no_timestamps is not None
    spoken = {*range(grammar.no_timestamps)} - {*grammar.suppress}
    labels = read_labels(path)
    assert len({each.text for each in labels}) > 1
    assert len(kept) == sum(each.records for each in labels)
    for each in labels:
        tokens, _ = kept.read(each.place, each.records)
        for place, (said, likeliest) in enumerate(zip(each.tokens, tokens.tolist(), strict=False)):
            allowed = spoken if place else spoken - {*grammar.begin_suppress}
            assert said == next(token for token in likeliest if token in allowed)


def test_a_text_without_an_end_is_no_label(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    """It has as many records as any other of its length, and the filter leaves it out."""
    told = transcriber.tell([corpus.waveform(clip) for clip in corpus.split("train")])
    for each in told:
        assert len(each.logits) == len(each.tokens) + 1
        assert len(each.log_probs) == len(each.tokens) + each.ended
    assert {each.ended for each in told} == {True, False}
    path = tmp_path / "labels.jsonl"
    found = label(corpus, transcriber, path, MANNER, WHOLE, comparable)
    limit = max(len(each.tokens) for each in told)
    cut = [each for each, _ in found.clips if len(each.tokens) == limit]
    assert cut
    assert all(each.repeats for each in cut)


def test_labels_follow_their_clips(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    clips = [(corpus.waveform(clip), clip) for clip in corpus.split("train")[:4]]
    first = made(tmp_path / "first", clips[1:3])
    earlier = {each.key: each for each, _ in label(first, transcriber, path, MANNER, WHOLE, comparable).clips}
    held_back = (clips[0][0][::-1], replace(clips[0][1], split="dev"))
    grown = made(tmp_path / "grown", [held_back, clips[0], clips[2], clips[3], clips[1]])
    before = path.read_text()
    done = label(grown, transcriber, path, MANNER, WHOLE, comparable)
    assert path.read_text().startswith(before)
    assert len(done.clips) == 4
    by_key = {each.key: each for each, _ in done.clips}
    assert by_key.items() >= earlier.items()
    assert {clip.offset: each.text for each, clip in joined(grown, read_labels(path))} == {
        clip.offset: by_key[grown.key(clip)].text for clip in grown.split("train")
    }


def test_what_is_in_a_corpus_twice_is_labelled_once(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    one, other = [(corpus.waveform(clip), clip) for clip in corpus.split("train")[:2]]
    twice = made(tmp_path / "twice", [one, other, one])
    found = label(twice, transcriber, tmp_path / "labels.jsonl", MANNER, Choice(beginnings=0), comparable)
    assert len(found.clips) == 3
    assert len(read_labels(tmp_path / "labels.jsonl")) == 2


def test_a_label_that_is_taken_out_is_added_anew_and_no_other_loses_its_records(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    """As the message on a damaged line asks for."""
    path = tmp_path / "labels.jsonl"
    label(corpus, transcriber, path, MANNER, Choice(5, beginnings=0), comparable)
    before, known = read_labels(path), distributions_of(path).read_bytes()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    label(corpus, transcriber, path, MANNER, Choice(5, beginnings=0), comparable)
    assert distributions_of(path).read_bytes().startswith(known)
    *others, anew = read_labels(path)
    assert others == before[:1] + before[2:]
    assert (anew.key, anew.text, anew.place) == (before[1].key, before[1].text, sum(each.records for each in before))


def test_labels_that_lost_their_distributions_are_not_gone_on_with(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    label(corpus, transcriber, path, MANNER, Choice(2, beginnings=0), comparable)
    distributions_of(path).write_bytes(distributions_of(path).read_bytes()[:-1])
    before = path.read_bytes()
    with pytest.raises(LabelsError, match=r"labels\.distributions is shorter than its labels: label again"):
        label(corpus, transcriber, path, MANNER, WHOLE, comparable)
    assert path.read_bytes() == before


# --- beginnings ------------------------------------------------------------------------------------------------------


@given(st.text(), st.floats(0.1, 28), st.floats(0, 1), st.floats(0, 1))
def test_a_clip_has_one_beginning_or_none_whatever_the_share(
    key: str, seconds: float, share: float, more: float
) -> None:
    clip = Clip("go", "s", "mine", "train", 0, int(seconds * SAMPLE_RATE))
    few, many = (Choice(beginnings=each).beginning(key, clip) for each in sorted((share, more)))
    assert few in (None, many)
    assert Choice(beginnings=0).beginning(key, clip) is None
    every = Choice(beginnings=1).beginning(key, clip)
    assert (every is None) == (clip.seconds < 1.8)
    assert many in (None, every)
    if every is not None:
        assert 0.8 * SAMPLE_RATE - 1 <= every <= clip.samples - 0.4 * SAMPLE_RATE + 1


def test_a_beginning_is_what_the_teacher_says_of_it(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    found = label(corpus, transcriber, path, MANNER, Choice(beginnings=1), comparable)
    long = [clip for clip in corpus.split("train") if clip.seconds >= 1.8]
    assert len(found.beginnings) == len(long) > 1
    whole = {each.key: each for each, _ in found.clips}
    for each, clip in found.beginnings:
        assert (each.samples, each.wer) == (clip.samples, None)
        assert not clip.transcribed
        (told,) = transcriber.tell([with_margins(corpus.waveform(clip), after=0.0)])
        assert each.text == transcriber.text(told.tokens)
    assert any(each.text != whole[each.key].text for each, _ in found.beginnings)
    # Labelled anew with fewer, those that are there stay, and none is added.
    before = path.read_bytes()
    assert not label(corpus, transcriber, path, MANNER, WHOLE, comparable).beginnings
    assert path.read_bytes() == before


def test_a_key_is_of_samples_and_transcript(corpus: Corpus, tmp_path: Path) -> None:
    clip = corpus.clips[0]
    wave = corpus.waveform(clip)
    others = made(
        tmp_path / "others",
        [
            (wave[:-1], clip),
            (wave, replace(clip, text="another")),
            (wave, replace(clip, text="", transcribed=False)),
            (wave, replace(clip, text="")),
            (wave, replace(clip, speaker="renamed")),
        ],
    )
    keys = [others.key(each) for each in others.clips]
    assert len({*keys[:4], corpus.key(clip)}) == 5
    assert keys[4] == corpus.key(clip)


def test_labels_of_another_corpus_are_refused(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    clips = [(corpus.waveform(clip), clip) for clip in corpus.split("train")[:2]]
    first, other = made(tmp_path / "first", clips[:1]), made(tmp_path / "other", clips[1:])
    label(first, transcriber, path, MANNER, WHOLE, comparable)
    before = path.read_bytes()
    with pytest.raises(LabelsError, match=r"1 of 1 labelled clips are not training clips in .*other: give"):
        label(other, transcriber, path, MANNER, WHOLE, comparable)
    with pytest.raises(LabelsError, match="labelled clips are not training clips"):
        Lessons(other, read_labels(path), distributions_of(path), small_school.EVERYTHING)
    assert path.read_bytes() == before


def test_at_most_so_many_of_a_set_are_labelled_and_more_are_added(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    fewer = Choice(3, {"murmur": 4}, beginnings=0)
    few = label(corpus, transcriber, path, MANNER, fewer, comparable)
    sets = [[clip for clip in corpus.split("train") if clip.set == name] for name in ("mine", "murmur")]
    assert [clip for _, clip in few.clips] == [*sets[0][:3], *sets[1][::3]]
    before = path.read_text()
    assert len(label(corpus, transcriber, path, MANNER, WHOLE, comparable).clips) == len(corpus.split("train"))
    assert path.read_text().startswith(before)
    assert label(corpus, transcriber, path, MANNER, fewer, comparable) == few


@given(st.integers(1, 60), st.integers(1, 80))
def test_what_is_chosen_is_spreadevenly(count: int, at_most: int) -> None:
    clips = [Clip(str(number), "s", "mine", "train", number, 1) for number in range(count)]
    chosen = [clip.offset for clip in evenly(clips, at_most)]
    assert len(chosen) == min(count, at_most)
    gaps = {later - earlier for earlier, later in itertools.pairwise(chosen)}
    assert gaps <= {count // len(chosen), -(-count // len(chosen))}
    assert chosen[0] == 0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(MANNER, teacher="x"), "made by another teacher: "),
        (replace(MANNER, normaliser="basic"), "made with --normaliser english: "),
        (replace(MANNER, language="de", teacher="x"), "made by another teacher and with no --language: "),
    ],
)
def test_labels_of_another_manner_are_not_gone_on_with(
    other: Manner, says: str, corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(HEADER)
    with pytest.raises(LabelsError, match=says):
        label(corpus, transcriber, path, other, WHOLE, comparable)
    assert path.read_text() == HEADER


def test_a_teacher_is_known_by_its_weights_and_not_by_its_place(tmp_path: Path) -> None:
    import checkpoints

    first, same, other = (
        open_checkpoint(str(checkpoints.build_checkpoint(tmp_path / name, seed=seed)), "teacher")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert digest(first) == digest(same) != digest(other)
    rules = same.directory / "generation_config.json"
    rules.write_text(rules.read_text() + "\n")
    assert digest(first) != digest(same)


def test_a_language_that_the_teacher_does_not_know_is_refused_before_any_work(
    teacher: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--teacher", str(teacher.directory), "--corpus", str(tmp_path / "corpus")]
    recordings = ["--recordings", str(small_corpus.manifest()), "--out", str(tmp_path / "new" / "l.jsonl")]
    assert main(["label", *work, *recordings, "--language", "xx"]) == 1
    assert "cannot transcribe the language 'xx'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_that_another_program_writes_are_left_alone(
    teacher: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.jsonl"
    with only_writer(labels):
        work = ["--teacher", str(teacher.directory), "--corpus", str(tmp_path / "corpus"), "--out", str(labels)]
        assert main(["label", *work]) == 1
    assert "is being written by another program" in capsys.readouterr().err


def test_recordings_to_measure_on_may_come_later(teacher: Checkpoint, tmp_path: Path) -> None:
    recordings, out = str(small_corpus.manifest()), tmp_path / "new" / "folder" / "labels.jsonl"
    work = ["label", "--teacher", str(teacher.directory), "--corpus", str(tmp_path / "corpus"), "--out", str(out)]
    work += ["--device", "cpu", "--beginnings", "0", "--at-most", "3", "murmur=2", "--recordings", recordings]
    assert main([*work, str(small_corpus.murmurs())]) == 0
    before = out.read_bytes()
    assert main([*work, str(small_corpus.murmurs()), "--dev", recordings]) == 0
    assert out.read_bytes() == before
    assert before.count(b"\n") == 1 + 3 + 2
    assert len(Corpus(tmp_path / "corpus").split("dev")) == 4
    assert "| **all** | 5 |" in out.with_suffix(".md").read_text()


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_torn_last_label_is_forgotten_and_cut_off_by_the_writer_alone(
    corpus: Corpus, transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(HEADER + '{"key": "a", "text": "a", "wer": 0.0, "tokens": [5]}\n{"key": "b", "te')
    before = path.read_bytes()
    assert read_labels(path) == [Label("a", "a", 0.0, tokens=[5])]
    assert path.read_bytes() == before
    path.write_text(HEADER + '{"key": "b", "te')
    label(corpus, transcriber, path, MANNER, Choice(1, beginnings=0), comparable)
    assert len(read_labels(path)) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEADER + '{"key": "a", "te\n{"key": "b", "text": "b", "wer": 0.0}\n', "line 2, is not a label"),
        (HEADER + '{"key": "b", "text": "b", "wer": 0.0}\n', "from an earlier version, without .* tokens: label again"),
        (HEADER + "5\n", "line 2, is not a label"),
        (HEADER + '{"key": "a"}\n', "line 2, is not a label"),
        ('{"index": 0, "text": "a", "wer": 0.0}\n', "label again, with another --out"),
        ("", "is empty: make it with `whisperd distill label`"),
    ],
)
def test_what_is_wrong_with_labels_is_said(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(content)
    with pytest.raises(LabelsError, match=says):
        read_labels(path)


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"there is no .*none\.jsonl: make it with `whisperd distill label`"):
        read_labels(tmp_path / "none.jsonl")


# --- the filter and its account --------------------------------------------------------------------------------------


def test_the_filter_keeps_what_the_teacher_got_nearly_right(corpus: Corpus) -> None:
    labels = [of(corpus, *each) for each in ((1, "nearly", 0.1), (0, "right", 0.0), (2, "wrong", 0.4), (3, "", 0.0))]
    clips = corpus.split("train")
    kept = [each.text for each, clip in joined(corpus, labels) if Filter(wer=0.1).judge(each, clip.text) == "kept"]
    assert kept == ["right", "nearly"]
    assert [clip for _, clip in joined(corpus, labels)] == clips[:4]


@pytest.mark.parametrize(
    ("label", "reference", "verdict"),
    [
        (Label("", "stop", 0.0), "stop", "kept"),
        (Label("", "top", 1.0), "stop", "word errors"),
        (Label("", "", 1.0), "stop", "no label"),
        (Label("", "stop", 1.0), "", "no reference"),
        (Label("", "stop", None, confidence=0.8), "", "kept"),
        (Label("", "stop", None, confidence=0.6), "", "unsure"),
        (Label("", "stop stop", None, confidence=0.99, repeats=True), "", "repetition"),
        (Label("", "stop stop", 0.0, repeats=True), "stop stop", "repetition"),
        (Label("", "turn on the", None, confidence=0.8, samples=9), "", "kept"),
    ],
)
def test_why_a_label_stays_or_goes(label: Label, reference: str, verdict: str) -> None:
    assert Filter(wer=0.1, confidence=0.7).judge(label, reference) == verdict


def test_the_account_of_the_filter(corpus: Corpus, tmp_path: Path) -> None:
    labels = [of(corpus, 0, "right", 0.0), of(corpus, 1, "all | wrong", 7.0), of(corpus, 2, "who knows", None, 0.1)]
    clips = corpus.split("train")
    found = Labelled(list(zip(labels, clips[:3], strict=True)), too_long=clips[3:4], speechless={"street": 2})
    told = account(found, Filter())
    assert "| **all** | 4 |" in told
    assert "1 (25.0%) | 0 | 0 | 1 | 1 | 0 | 1 | 2 |" in told
    assert "| street | 0 | 0.00 | 0 (0.0%) | 0 | 0 | 0 | 0 | 0 | 0 | 2 |" in told
    assert "all \\| wrong" in told
    assert "eginnings" not in told
    picture(found, Filter(), tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_beginnings_are_accounted_for_apart(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = corpus.split("train")
    begun = [
        (replace(of(corpus, place, "turn", None, sure), samples=16000), replace(clips[place], samples=16000, text=""))
        for place, sure in ((0, 0.9), (2, 0.8), (4, 0.2))
    ]
    found = Labelled([(of(corpus, 0, "right", 0.0), clips[0])], begun)
    told = account(found, Filter())
    assert "| **all** | 1 | 0.00 | 1 (100.0%) |" in told
    assert "| beginnings of clips | 3 | 0.00 | 2 (66.7%) | 0 | 0 | 0 | 1 | 0 | 0 | 0 |" in told
    assert "Beginnings are labelled beside their clips, like partials" in told
    drawn: list[Any] = []
    monkeypatch.setattr("distillation.charts.draw", lambda *arguments: drawn.append(arguments))
    picture(found, Filter(), tmp_path / "labels.png")
    ((_, panels, _, bars),) = drawn
    assert panels["labels without one"][1] == {"kept of beginnings": ([0.9, 0.8, 0.2], [1 / 3, 2 / 3, 1.0])}
    assert sum(bars["dropped"].values()) == 0
    assert bars["dropped of beginnings"]["unsure"] == 1


def test_clips_too_long_for_the_teacher_are_told_of(
    transcriber: Transcriber, comparable: Comparable, tmp_path: Path
) -> None:
    clips = [
        (np.full(int(16000 * seconds), 0.1, np.float32), Clip("go", "s", "mine", "train", 0, 0)) for seconds in (1, 7.8)
    ]
    corpus = made(tmp_path / "corpus", clips)
    done = label(corpus, transcriber, tmp_path / "labels.jsonl", MANNER, Choice(beginnings=1), comparable)
    assert len(done.clips) == 1
    assert done.too_long == corpus.clips[1:]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("english", "I'm twenty-one, colour?", "i am 21 color"),
        ("basic", "Schalt das Licht an!", "schalt das licht an"),
    ],
)
def test_transcripts_are_made_comparable(name: str, one: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "normalizer.json").write_text('{"colour": "color"}')
    comparable = normaliser(name, tmp_path / "normalizer.json")
    assert comparable(one) == comparable(other)


def test_word_errors_of_labels() -> None:
    assert word_error_rate("turn on the light", "turn on a light") == 0.25
    assert word_error_rate("", "") == 0.0
    assert word_error_rate("", "you") == 1.0
