"""The commands of the recipe, one after another, as a user gives them: small, but nothing is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import small_corpus
import soundfile
import torch
from transformers import WhisperForConditionalGeneration

from distillation import corpus as corpus_module
from distillation.cli import main
from distillation.model import CONTEXTS
from streaming.job import Job
from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.weights import read_weights
from streaming.whisper.engine import Engine


@pytest.mark.timeout(300)  # the whole recipe, in small
def test_from_voices_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK_CLIPS", 8)
    monkeypatch.setattr(corpus_module, "HELD_OUT_BLOCKS", 1)
    corpus, recordings = str(tmp_path / "corpus"), str(small_corpus.manifest())
    assert main(["corpus", "--out", corpus, "--clips", "8", "--recordings", recordings, "--dev", recordings]) == 0

    teacher, small = str(tmp_path / "teacher"), ["--vocabulary", "300", "--width", "64", "--encoder-layers", "1"]
    assert main(["teacher", "--corpus", corpus, "--out", teacher, "--steps", "2", *small]) == 0
    assert main(["teacher", "--corpus", corpus, "--out", teacher, "--steps", "3", *small]) == 0  # and on
    curve = [json.loads(line) for line in Path(teacher, "run", "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [2, 3]
    assert {"wer_held_out", "wer_dev"} <= curve[-1].keys()

    checkpoint, labels = f"{teacher}/checkpoint", str(tmp_path / "labels.jsonl")
    further = tmp_path / "further"
    assert main(["teacher", "--corpus", corpus, "--start", checkpoint, "--out", str(further), "--steps", "1"]) == 0
    assert [json.loads(line)["step"] for line in (further / "head" / "curve.jsonl").read_text().splitlines()] == [1]
    assert main(["label", "--corpus", corpus, "--teacher", checkpoint, "--out", labels]) == 0
    assert "| **all** | 11 |" in (tmp_path / "labels.md").read_text()
    # So young a teacher gets nothing right, and the filter would leave nothing: labels of a better one stand in.
    about, *rows = [json.loads(line) for line in Path(labels).read_text().splitlines()]
    assert len(rows) == 8 + 3
    right = {"text": "Stop!", "wer": 0.0, "repeats": False}
    Path(labels).write_text("".join(json.dumps(row) + "\n" for row in [about, *(row | right for row in rows)]))
    begun, trained, student = str(tmp_path / "begun"), str(tmp_path / "trained"), str(tmp_path / "student")
    pair = ["--teacher", checkpoint, "--student", begun]
    assert main(["init", "--teacher", checkpoint, "--decoder-layers", "1", "--out", begun]) == 0
    learning = [*pair, "--corpus", corpus, "--labels", labels, "--out", trained]
    assert main(["train", *learning, "--steps", "1"]) == 0
    assert main(["train", *learning, "--steps", "2"]) == 0  # and on
    capsys.readouterr()
    assert main(["train", *learning, "--teacher", "home-en"]) == 1
    assert "vocabularies of the student" in capsys.readouterr().err
    assert main(["export", *pair, "--trained", trained, "--out", student, "--name", "small"]) == 0
    again = ["init", "--teacher", checkpoint, "--decoder-layers", "1", "--start", student, "--out", begun]
    assert main(again) == 0
    assert f"the decoder of {student}" in capsys.readouterr().out

    report = tmp_path / "report"  # of the shipped pair: this one babbles
    assert main(["evaluate", "--corpus", corpus, "--out", str(report), "--clips", "3", "--noise-seconds", "1"]) == 0
    assert json.loads((report / "report.json").read_text())["speculation"]["differs"] == 0
    engine = Engine.load(student, checkpoint, "cpu")
    assert engine.contexts == CONTEXTS
    assert (
        engine.run([Job(small_corpus.corpus().waveform(small_corpus.corpus().clips[0]), max_tokens=4)])[0].error is None
    )


def test_checkpoints_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, small = str(small_corpus.folder()), ["--vocabulary", "300", "--encoder-layers", "1", "--steps", "1"]
    for name, more in (("a", ["--width", "64"]), ("b", ["--width", "64", "--seed", "5"]), ("wide", ["--width", "128"])):
        assert main(["teacher", "--corpus", corpus, "--out", str(tmp_path / name), *small, *more]) == 0
    a, b, wide = (str(tmp_path / name / "checkpoint") for name in ("a", "b", "wide"))
    mean = str(tmp_path / "mean")
    assert main(["average", f"{a}:3", b, "--out", mean, "--name", "mean"]) == 0
    first, second, third = (read_weights(open_checkpoint(path, "teacher"), torch.float32) for path in (a, b, mean))
    for key, value in third.items():
        torch.testing.assert_close(value, 0.75 * first[key] + 0.25 * second[key], rtol=2e-3, atol=1e-4)
    assert any(not torch.equal(value, second[key]) for key, value in first.items())
    assert open_checkpoint(mean, "teacher").name == "mean"
    capsys.readouterr()
    assert main(["average", a, wide, "--out", mean]) == 1
    assert "only checkpoints of one shape" in capsys.readouterr().err
    for share in ("none", "nan", "inf", "0"):
        assert main(["average", f"{a}:{share}", b, "--out", mean]) == 1
    assert "a share above 0" in capsys.readouterr().err


def test_a_teacher_can_begin_as_another(tmp_path: Path) -> None:
    folder = small_corpus.folder()
    fresh, begun = tmp_path / "fresh", tmp_path / "begun"
    small = ["--vocabulary", "300", "--width", "64", "--encoder-layers", "1", "--steps", "1"]
    assert main(["teacher", "--corpus", str(folder), "--out", str(fresh), *small]) == 0
    still = ["--steps", "1", "--rate", "0"]
    assert (
        main(["teacher", "--corpus", str(folder), "--out", str(begun), "--start", str(fresh / "checkpoint"), *still])
        == 0
    )
    weights = [
        WhisperForConditionalGeneration.from_pretrained(path / "checkpoint", dtype="float32").state_dict()
        for path in (fresh, begun)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["teacher", "--corpus", "NOWHERE", "--out", "x"], "no corpus in NOWHERE"),
        (["corpus", "--out", "x", "--recordings", "NOWHERE.jsonl"], "no folder or manifest NOWHERE.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_student_of_somebody_elses_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of recordings without transcripts, and a multilingual teacher with 128 bins that hears 30 s alone."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in range(2):
        wave = np.random.default_rng(number).standard_normal(16000).astype(np.float32) * 0.1
        soundfile.write(recordings / f"{number}.wav", wave, 16000)
    shape = replace(checkpoints.SMALL_MULTILINGUAL, mels=128, decoder_layers=4)
    teacher = checkpoints.build_checkpoint(tmp_path / "teacher", shape, alignment_heads=[(1, 0), (3, 1)], max_length=60)
    corpus, labels = str(tmp_path / "corpus"), str(tmp_path / "labels.jsonl")
    work = ["--teacher", str(teacher), "--corpus", corpus]
    # What nobody wrote down can be learnt from, and cannot be measured on: it must not stop the training either.
    assert main(["label", *work, "--recordings", str(recordings), "--dev", str(recordings), "--out", labels]) == 0
    about, *rows = [json.loads(line) for line in Path(labels).read_text().splitlines()]
    assert [row["wer"] for row in rows] == [None, None]
    good = {"text": "Guten Morgen.", "confidence": 0.9, "repeats": False}
    Path(labels).write_text("".join(json.dumps(row) + "\n" for row in [about, *(row | good for row in rows)]))

    begun, trained, student = str(tmp_path / "begun"), str(tmp_path / "trained"), str(tmp_path / "student")
    assert main(["init", "--teacher", str(teacher), "--decoder-layers", "2", "--out", begun]) == 0
    learning = ["train", *work, "--student", begun, "--labels", labels, "--out", trained, "--steps", "1"]
    assert main([*learning, "--language", "xx"]) == 1
    assert "'xx' is not one of" in capsys.readouterr().err
    assert main([*learning, "--language", "de"]) == 0
    made = ["--teacher", str(teacher), "--student", begun, "--trained", trained, "--out", student]
    assert main(["export", *made]) == 0
    engine = Engine.load(student, str(teacher), "cpu")
    assert engine.contexts == (30.0,)
    assert engine._one_encoder
    assert engine.run([Job(np.zeros(16000, np.float32), language="de", max_tokens=4)])[0].error is None
    # The head in a layer that the student has not is gone; the other's layer has its number in the student.
    assert json.loads(Path(student, "generation_config.json").read_text())["alignment_heads"] == [[1, 1]]
