"""What the tests of the model half share: small checkpoints, built once, and recordings that sound different."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import checkpoints
import pytest
import torch

# One thread: the tests' models are too small for more, and results must not depend on how work is split.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Pair:
    student: Path
    teacher: Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def english(folder: Path) -> Pair:
    """An English-only teacher with short contexts, and a student with its encoder that often errs."""
    teacher = checkpoints.build_checkpoint(folder / "english-teacher", seed=2, contexts=[1, 2, 5])
    return Pair(checkpoints.build_student(teacher, folder / "english", (0, 1), noise=0.02), teacher)


@pytest.fixture(scope="session")
def multilingual(folder: Path) -> Pair:
    """The same with languages; the student has an encoder of its own, and other contexts."""
    shape = checkpoints.SMALL_MULTILINGUAL
    teacher = checkpoints.build_checkpoint(folder / "multilingual-teacher", shape, contexts=[2, 5])
    student = checkpoints.build_checkpoint(folder / "multilingual", shape, seed=1, contexts=[1, 5])
    return Pair(student, teacher)
