"""A command of the recipe that is interrupted, or killed, says so and goes on where it was: real processes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_corpus
import small_school

from distillation.cli import main
from distillation.train import trained


def begin(*arguments: str) -> subprocess.Popen[str]:
    """In a process group of its own, so that a signal reaches its workers too, as from a terminal."""
    command = [sys.executable, "-m", "daemon.commands.cli", "distill", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Reads the process's errors, where its progress is, until `words` are in them."""
    assert process.stderr is not None
    read = ""
    while words not in read:
        piece = process.stderr.read(1)
        assert piece, f"ended before {words!r}: {read}"
        read += piece
    return read


@pytest.fixture
def train(tmp_path: Path) -> list[str]:
    """The command, but for its steps."""
    teacher = small_school.teacher(tmp_path / "teacher")
    small_school.teach(teacher, tmp_path / "labels.jsonl")
    pair = ["--teacher", str(teacher.directory)]
    assert main(["init", *pair, "--out", str(tmp_path / "begun")]) == 0
    pair += ["--student", str(tmp_path / "begun"), "--corpus", str(small_corpus.folder())]
    return ["train", *pair, "--labels", str(tmp_path / "labels.jsonl"), "--out", str(tmp_path / "run"), "--steps"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_training(how: signal.Signals, train: list[str], tmp_path: Path) -> None:
    process = begin(*train, "100000")
    wait_for(process, "1/100000")
    os.killpg(process.pid, how)
    _, said = process.communicate(timeout=60)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; run the same command to continue" in said
        assert "Traceback" not in said
        assert trained(tmp_path / "run").step >= 1
    curve = tmp_path / "run" / "curve.jsonl"
    # A kill that comes late, on a busy machine, may find the first checkpoint written.
    kept = how is signal.SIGINT or (tmp_path / "run" / "checkpoint.pt").exists()
    end = (trained(tmp_path / "run").step if kept else 0) + 2
    assert main([*train, str(end)]) == 0
    assert json.loads(curve.read_text().splitlines()[-1])["step"] == end


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_corpus(how: signal.Signals, tmp_path: Path) -> None:
    process = begin("corpus", "--out", str(tmp_path), "--clips", "4000", "--workers", "2")
    wait_for(process, "voices:")
    os.killpg(process.pid, how)
    _, said = process.communicate(timeout=60)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in said
    # What was being spoken does not count: every index that is there has all of its audio.
    assert not (tmp_path / "index.jsonl").exists()
    for index in tmp_path.glob("block-*.jsonl"):
        last = json.loads(index.read_text().splitlines()[-1])
        assert index.with_suffix(".i16").stat().st_size == 2 * (last["offset"] + last["samples"])
