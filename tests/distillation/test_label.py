"""Labels are the teacher's, of the very clip that they are stored for; what is dropped is accounted for."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation.cli import main
from distillation.corpus import Clip, Corpus
from distillation.hearing import Transcriber
from distillation.label import (
    Filter,
    Label,
    Labelled,
    LabelsError,
    Manner,
    account,
    digest,
    label,
    normaliser,
    picture,
    read_labels,
    relabelled,
    word_error_rate,
)
from streaming.job import Waveform
from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.engine import Engine

MANNER = Manner("a digest", "corpus", None)
HEADER = json.dumps({"labels": 1, **asdict(MANNER)}) + "\n"


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(Engine.load(str(open_checkpoint("home-en", "teacher").directory), None, "cpu"))


@pytest.fixture
def corpus() -> Corpus:
    return small_corpus.corpus()


def made(folder: Path, clips: list[tuple[Waveform, Clip]]) -> Corpus:
    """A corpus of the clips, laid one after another."""
    folder.mkdir(parents=True)
    offset = 0
    with (folder / "audio.i16").open("wb") as audio, (folder / "index.jsonl").open("w") as index:
        for wave, clip in clips:
            audio.write((wave * 32768).astype(np.int16).tobytes())
            index.write(json.dumps(asdict(replace(clip, offset=offset, samples=wave.size))) + "\n")
            offset += wave.size
    return Corpus(folder)


def of(corpus: Corpus, place: int, text: str, wer: float | None, confidence: float = 1.0) -> Label:
    return Label(corpus.key(corpus.split("train")[place]), text, wer, confidence)


# --- whose label it is -----------------------------------------------------------------------------------------------


def test_labelling_goes_on_where_it_was_stopped(corpus: Corpus, transcriber: Transcriber, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    done = label(corpus, transcriber, whole, MANNER)
    lines = whole.read_text().splitlines(keepends=True)
    assert [clip for _, clip in done.clips] == corpus.split("train")
    keys = {corpus.key(clip) for clip in corpus.split("train")}
    assert len(lines) - 1 == len(keys)  # some voices say the same thing twice in the same way: one label for both
    assert len(lines) > 16
    broken.write_text("".join(lines[:16]) + lines[16][:9])
    assert label(corpus, transcriber, broken, MANNER) == done
    assert broken.read_text() == whole.read_text()


def test_labels_follow_their_clips(corpus: Corpus, transcriber: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    clips = [(corpus.waveform(clip), clip) for clip in corpus.split("train")[:4]]
    first = made(tmp_path / "first", clips[1:3])
    earlier = {each.key: each for each, _ in label(first, transcriber, path, MANNER).clips}
    held_back = (clips[0][0][::-1], replace(clips[0][1], split="dev"))
    grown = made(tmp_path / "grown", [held_back, clips[0], clips[2], clips[3], clips[1]])
    before = path.read_text()
    done = label(grown, transcriber, path, MANNER)
    assert path.read_text().startswith(before)
    assert len(done.clips) == 4
    everything = Filter(wer=99, confidence=0)
    by_key = {each.key: each for each, _ in done.clips}
    assert by_key.items() >= earlier.items()
    assert {clip.offset: clip.text for clip in relabelled(grown, read_labels(path), everything)} == {
        clip.offset: by_key[grown.key(clip)].text for clip in grown.split("train")
    }


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


def test_labels_of_another_corpus_are_refused(corpus: Corpus, transcriber: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    clips = [(corpus.waveform(clip), clip) for clip in corpus.split("train")[:2]]
    first, other = made(tmp_path / "first", clips[:1]), made(tmp_path / "other", clips[1:])
    label(first, transcriber, path, MANNER)
    before = path.read_bytes()
    with pytest.raises(LabelsError, match=r"1 of 1 labels are of other clips than the corpus in .*other"):
        label(other, transcriber, path, MANNER)
    with pytest.raises(LabelsError, match="other clips"):
        relabelled(other, read_labels(path), Filter())
    assert path.read_bytes() == before


def test_every_nth_adds_only_what_is_missing(corpus: Corpus, transcriber: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    few = label(corpus, transcriber, path, MANNER, every=4)
    assert [clip for _, clip in few.clips] == corpus.split("train")[::4]
    before = path.read_text()
    assert len(label(corpus, transcriber, path, MANNER).clips) == 19
    assert path.read_text().startswith(before)
    assert label(corpus, transcriber, path, MANNER, every=4) == few


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(MANNER, teacher="x"), "made by another teacher: "),
        (replace(MANNER, normaliser="basic"), "made with --normaliser corpus: "),
        (replace(MANNER, language="de", teacher="x"), "made by another teacher and with no --language: "),
    ],
)
def test_labels_of_another_manner_are_not_gone_on_with(
    other: Manner, says: str, corpus: Corpus, transcriber: Transcriber, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(HEADER)
    with pytest.raises(LabelsError, match=says):
        label(corpus, transcriber, path, other)
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--teacher", "home-en", "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "new" / "l.jsonl")]
    recordings = ["--recordings", str(small_corpus.manifest())]
    assert main(["label", *work, *recordings, "--language", "xx"]) == 1
    assert "cannot transcribe the language 'xx'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_recordings_to_measure_on_may_come_later(tmp_path: Path) -> None:
    recordings, out = str(small_corpus.manifest()), tmp_path / "new" / "folder" / "labels.jsonl"
    work = ["label", "--teacher", "home-en", "--corpus", str(tmp_path / "corpus"), "--out", str(out), "--device", "cpu"]
    assert main([*work, "--recordings", recordings]) == 0
    before = out.read_bytes()
    assert main([*work, "--dev", recordings]) == 0
    assert out.read_bytes() == before
    assert before.count(b"\n") == 1 + 4
    assert len(Corpus(tmp_path / "corpus").split("dev")) == 4
    assert "| **all** | 4 |" in out.with_suffix(".md").read_text()


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_torn_last_label_is_forgotten_and_cut_off_by_the_writer_alone(
    corpus: Corpus, transcriber: Transcriber, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(HEADER + '{"key": "a", "text": "a", "wer": 0.0}\n{"key": "b", "te')
    before = path.read_bytes()
    assert read_labels(path) == [Label("a", "a", 0.0)]
    assert path.read_bytes() == before
    path.write_text(HEADER + '{"key": "b", "te')
    label(corpus, transcriber, path, MANNER, every=10)
    assert len(read_labels(path)) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEADER + '{"key": "a", "te\n{"key": "b", "text": "b", "wer": 0.0}\n', "line 2, is no label"),
        (HEADER + "5\n", "line 2, is no label"),
        (HEADER + '{"key": "a"}\n', "line 2, is no label"),
        ('{"index": 0, "text": "a", "wer": 0.0}\n', "label anew, to another --out"),
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
    clips = relabelled(corpus, labels, Filter(wer=0.1))
    assert [clip.text for clip in clips] == ["right", "nearly"]
    assert [clip.offset for clip in clips] == [clip.offset for clip in corpus.split("train")[:2]]
    with pytest.raises(LabelsError, match="right teacher"):
        relabelled(corpus, labels[2:], Filter(wer=0.1))


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
    picture(found, Filter(), tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_clips_too_long_for_the_teacher_are_told_of(transcriber: Transcriber, tmp_path: Path) -> None:
    clips = [
        (np.full(int(16000 * seconds), 0.1, np.float32), Clip("go", "s", "mine", "train", 0, 0))
        for seconds in (1, 29.8)
    ]
    corpus = made(tmp_path / "corpus", clips)
    done = label(corpus, transcriber, tmp_path / "labels.jsonl", MANNER)
    assert len(done.clips) == 1
    assert done.too_long == corpus.clips[1:]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("corpus", "Turn ON the light!", "turn on the light"),
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
