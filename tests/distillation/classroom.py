"""Fixtures of the tests that train: a small teacher, and batches of what it taught. Imported by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_school

from distillation.batches import Batches, Mixture
from distillation.model import layout_of
from distillation.noise import Noises
from streaming.whisper.checkpoint import Checkpoint

MIXTURE = Mixture(seconds=12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The teacher's."""
    return small_school.teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def batches(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Batches:
    lessons = small_school.lessons(checkpoint, tmp_path_factory.mktemp("lessons") / "labels.jsonl")
    return Batches(lessons, Noises(), layout_of(checkpoint, None), MIXTURE)


def curve(folder: Path) -> list[dict[str, Any]]:
    """Of a training in `folder`, row by row."""
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
