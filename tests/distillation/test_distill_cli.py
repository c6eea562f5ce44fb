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

from distillation.cli import main
from distillation.model import CONTEXTS
from streaming.job import Job
from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.engine import WhisperEngine


def any_label(labels: Path) -> list[dict[str, object]]:
    """What so random a teacher says is nothing that the filter would keep: as if it were sure, and in no loop."""
    about, *rows = [json.loads(line) for line in labels.read_text().splitlines()]
    sure = [row | {"confidence": 0.9, "repeats": False, "wer": row["wer"] and 0.0} for row in rows]
    labels.write_text("".join(json.dumps(row) + "\n" for row in [about, *sure]))
    return rows


@pytest.mark.timeout(300)  # the whole recipe, in small
def test_from_recordings_to_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(checkpoints.build_checkpoint(tmp_path / "teacher", max_length=30))
    corpus, labels = str(tmp_path / "corpus"), tmp_path / "labels.jsonl"
    recordings, murmurs = str(small_corpus.manifest()), str(small_corpus.murmurs())
    work = ["--teacher", teacher, "--corpus", corpus]
    labelling = ["label", *work, "--out", str(labels), "--dev", recordings, "--device", "cpu"]
    assert main([*labelling, "--recordings", recordings, murmurs, "--at-most", "murmur=5", "--beginnings", "1"]) == 0
    assert "| **all** | 9 |" in labels.with_suffix(".md").read_text()
    rows = any_label(labels)
    assert len([row for row in rows if row["samples"] is None]) == 4 + 5
    assert any(row["samples"] for row in rows)

    begun, trained, student = (str(tmp_path / name) for name in ("begun", "trained", "student"))
    pair = ["--teacher", teacher, "--student", begun]
    assert main(["init", "--teacher", teacher, "--decoder-layers", "1", "--out", begun]) == 0
    learning = ["train", *pair, "--corpus", corpus, "--labels", str(labels), "--out", trained, "--device", "cpu"]
    capsys.readouterr()
    assert main([*learning, "--steps", "1"]) == 0
    assert f"{len(rows)} of {len(rows)} labels pass the filter" in capsys.readouterr().out
    assert main([*learning, "--steps", "2"]) == 0  # and on
    curve = [json.loads(line) for line in Path(trained, "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [1, 2]
    assert {"cross_entropy", "kl", "wer_dev"} <= curve[-1].keys()
    assert main(["export", *pair, "--trained", trained, "--out", student, "--name", "small"]) == 0
    assert "the student after 2 steps" in capsys.readouterr().out
    engine = WhisperEngine.load(student, teacher, "cpu")
    assert engine.contexts == CONTEXTS
    assert engine.run([Job(small_corpus.recorded("stop"), max_tokens=4)])[0].error is None


@pytest.mark.timeout(300)  # the whole recipe again, and a report
def test_all_of_it_by_one_command_that_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(checkpoints.build_checkpoint(tmp_path / "teacher", max_length=20))
    work, recordings = tmp_path / "work", str(small_corpus.manifest())
    command = ["all", "--teacher", teacher, "--recordings", recordings, "--dev", recordings, "--out", str(work)]
    command += ["--decoder-layers", "1", "--steps", "1", "--device", "cpu", "--name", "small"]
    assert main(command) == 1
    assert "no label is within" in capsys.readouterr().err
    any_label(work / "labels.jsonl")
    assert main(command) == 0
    said = capsys.readouterr().err
    assert [line.split()[2] for line in said.splitlines() if line.startswith("whisperd distill ")] == [
        "label", "init", "train", "export", "evaluate"
    ]  # fmt: skip
    assert WhisperEngine.load(str(work / "student"), teacher, "cpu").contexts == CONTEXTS
    assert (work / "report" / "REPORT.md").read_text().startswith("# `student` and its teacher `teacher`")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--corpus", "NOWHERE", "--student", "x", "--teacher", "x", "--labels", "x", "--out", "x"],
         "no corpus in NOWHERE"),
        (["label", "--teacher", "TEACHER", "--corpus", "c", "--recordings", "NOWHERE.jsonl", "--out", "x"],
         "no folder or manifest NOWHERE.jsonl"),
        (["label", "--teacher", "NOWHERE/x/y", "--corpus", "c", "--out", "x"], "there is no directory 'NOWHERE/x/y'"),
        (["label", "--teacher", "TEACHER", "--corpus", "c", "--out", "x"], "no corpus in c"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "TEACHER" in arguments:
        checkpoints.build_checkpoint(tmp_path / "TEACHER")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


@pytest.mark.timeout(300)
def test_a_student_of_somebody_elses_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of recordings without transcripts, and a multilingual teacher with 128 bins that hears 30 s alone."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in range(2):
        wave = np.random.default_rng(number).standard_normal(16000).astype(np.float32) * 0.1
        soundfile.write(recordings / f"{number}.wav", wave, 16000)
    shape = replace(checkpoints.SMALL_MULTILINGUAL, mels=128, decoder_layers=4)
    teacher = checkpoints.build_checkpoint(tmp_path / "teacher", shape, alignment_heads=[(1, 0), (3, 1)], max_length=60)
    corpus, labels = str(tmp_path / "corpus"), tmp_path / "labels.jsonl"
    work = ["--teacher", str(teacher), "--corpus", corpus]
    # What nobody wrote down can be learnt from, and cannot be measured on: it must not stop the training either.
    assert main(["label", *work, "--recordings", str(recordings), "--dev", str(recordings), "--out", str(labels)]) == 0
    assert [row["wer"] for row in any_label(labels)] == [None, None]

    begun, trained, student = str(tmp_path / "begun"), str(tmp_path / "trained"), str(tmp_path / "student")
    assert main(["init", "--teacher", str(teacher), "--encoder", "shared", "--out", begun]) == 0
    learning = ["train", *work, "--student", begun, "--labels", str(labels), "--out", trained, "--steps", "1"]
    assert main([*learning, "--language", "xx"]) == 1
    assert "'xx' is not one of" in capsys.readouterr().err
    assert main([*learning, "--language", "de"]) == 0
    made = ["--teacher", str(teacher), "--student", begun, "--trained", trained, "--out", student]
    assert main(["export", *made]) == 0
    engine = WhisperEngine.load(student, str(teacher), "cpu")
    assert engine.contexts == (30.0,)
    assert engine._one_encoder
    assert engine.run([Job(np.zeros(16000, np.float32), language="de", max_tokens=4)])[0].error is None
    # The head in a layer that the student has not is gone; the other's layer has its number in the student.
    assert json.loads(Path(student, "generation_config.json").read_text())["alignment_heads"] == [[1, 1]]
    assert open_checkpoint(student, "student").alignment_heads == ((1, 1),)
