"""What the replicas of a measured cluster have loaded: engines that keep a stated pace, or a real one.

Owns how they are told apart. Replicas import this by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.harness.paced import paced
from daemon.engines.life import LoadEngine
from daemon.engines.load import load_engine, models_digest
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine


@dataclass(frozen=True, slots=True)
class Engines:
    """What replicas load.

    Attributes:
        load: loads it.
        digest: returns the digest of its weights.
        sections: of the replicas' settings.
        version: by which a cluster knows them again.
        words: what it is, for a reader.
    """

    load: LoadEngine
    digest: Callable[[Settings], str]
    sections: dict[str, Any]
    version: str
    words: str


def at_pace(batch_ms: float, row_ms: float, student: str = "scripted") -> Engines:
    """Return engines that take so many milliseconds a batch, and so many more for each row.

    Args:
        batch_ms: of each batch.
        row_ms: of each row in it.
        student: the name that it has for its student; another name is another digest.
    """
    words = f"The engine takes {batch_ms:g} ms a batch and {row_ms:g} ms a row."
    return Engines(partial(_named, student, batch_ms, row_ms), partial(_digest, student), {}, student, words)


def real(student: str, teacher: str | None) -> Engines:
    """Return engines that are the shipped kind, on a CPU."""
    models = {"student": student, "teacher": teacher, "device": "cpu"}
    named = f"{student}, teacher {teacher or 'none'}"
    return Engines(load_engine, models_digest, {"models": models}, named, f"The engine: {named}, on a CPU.")


def _named(student: str, batch_ms: float, row_ms: float, settings: Settings) -> ScriptedEngine:
    engine = paced(batch_ms, row_ms, settings)
    engine.student = student
    return engine


def _digest(student: str, _: Settings) -> str:
    return student.encode().hex().ljust(64, "0")[:64]
