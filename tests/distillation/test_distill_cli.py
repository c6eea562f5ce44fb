"""The commands of the recipe, one after another, as a user gives them: small, but nothing is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_corpus
import torch
from transformers import WhisperForConditionalGeneration

from distillation import corpus as corpus_module
from distillation import evaluate
from distillation.cli import main
from streaming.job import Job
from streaming.whisper.engine import Engine


def test_from_voices_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK_CLIPS", 8)
    monkeypatch.setattr(corpus_module, "HELD_OUT_BLOCKS", 1)
    monkeypatch.setattr(evaluate, "NOISE_SECONDS", 3)
    corpus, recordings = str(tmp_path / "corpus"), str(small_corpus.manifest())
    assert main(["corpus", "--out", corpus, "--clips", "8", "--recordings", recordings, "--dev", recordings]) == 0

    teacher, small = str(tmp_path / "teacher"), ["--vocabulary", "300", "--width", "64", "--encoder-layers", "1"]
    assert main(["teacher", "--corpus", corpus, "--out", teacher, "--steps", "2", *small]) == 0
    assert main(["teacher", "--corpus", corpus, "--out", teacher, "--steps", "3", *small]) == 0  # and on
    curve = [json.loads(line) for line in Path(teacher, "run", "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [2, 3]
    assert {"wer_held_out", "wer_dev"} <= curve[-1].keys()

    checkpoint, labels = f"{teacher}/checkpoint", str(tmp_path / "labels.jsonl")
    assert main(["label", "--corpus", corpus, "--teacher", checkpoint, "--out", labels]) == 0
    # So young a teacher gets nothing right, and the filter would leave nothing: labels of a better one stand in.
    rows = [json.loads(line) for line in Path(labels).read_text().splitlines()]
    assert len(rows) == 8 + 3
    Path(labels).write_text("".join(json.dumps(row | {"text": "Stop!", "wer": 0.0}) + "\n" for row in rows))
    student = str(tmp_path / "student")
    made = ["--labels", labels, "--out", student, "--steps", "2", "--decoder-layers", "1"]
    assert main(["student", "--corpus", corpus, "--teacher", checkpoint, *made]) == 0

    report = tmp_path / "report.json"
    assert main(["evaluate", "--corpus", corpus, "--out", str(report)]) == 0  # of the shipped pair: this one babbles
    assert json.loads(report.read_text())["speculative_differs"] == 0
    engine = Engine.load(f"{student}/checkpoint", checkpoint, "cpu")
    assert engine.contexts == (2, 5, 10, 15, 30)
    assert (
        engine.run([Job(small_corpus.corpus().waveform(small_corpus.corpus().clips[0]), max_tokens=4)])[0].error is None
    )


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
        (["corpus", "--out", "x", "--recordings", "NOWHERE.jsonl"], "NOWHERE.jsonl: No such file"),
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
