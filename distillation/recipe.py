"""The whole recipe as one: the commands that make a student of a teacher, one after another, in one folder.

Owns which commands these are, where each finds what the one before it made, and the rate and augmentation of the
shipped student. Knows nothing of what a command does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# A low rate and little augmentation keep a student near what its teacher knows.
RATE = 5e-5
AUGMENT = 0.15


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a student is made of.

    Attributes:
        folder: where everything is kept; the student will be in its `student`, the report in its `report`.
        teacher: a checkpoint's name or directory.
        recordings: folders to learn from.
        dev: folders to measure on.
        noise: a folder of noises, or None.
        decoder_layers: of the student.
        encoder: "own" or "shared".
        steps: of training.
        language: of the recordings, for a multilingual teacher.
        normaliser: "english" or "basic".
        device: "cpu", "cuda" or "auto".
        name: the student's.
    """

    folder: Path
    teacher: str
    recordings: Sequence[Path]
    dev: Sequence[Path]
    noise: Path | None
    decoder_layers: int
    encoder: str
    steps: int
    language: str | None
    normaliser: str
    device: str
    name: str

    def commands(self) -> Iterator[list[str]]:
        """Yield the arguments of each command of `whisperd distill`, in order."""
        corpus, labels, begun, trained, student, report = (
            str(self.folder / each) for each in ("corpus", "labels.jsonl", "begun", "trained", "student", "report")
        )
        teacher, heard = ["--teacher", self.teacher], ["--corpus", corpus]
        manner = [*self._language(), "--normaliser", self.normaliser, "--device", self.device]
        noise = ["--noise", str(self.noise)] if self.noise else []
        dev, recordings = ["--dev", *map(str, self.dev)], ["--recordings", *map(str, self.recordings)]
        yield ["label", *teacher, *recordings, *dev, *heard, *manner, "--out", labels]
        shape = ["--decoder-layers", str(self.decoder_layers), "--encoder", self.encoder]
        yield ["init", *teacher, *shape, "--name", self.name, "--out", begun]
        learning = ["--steps", str(self.steps), "--rate", str(RATE), "--augment", str(AUGMENT), *noise]
        yield [
            "train", *teacher, "--student", begun, *heard, "--labels", labels, *learning, *manner, "--out", trained
        ]  # fmt: skip
        yield [
            "export", *teacher, "--student", begun, "--trained", trained, "--name", self.name, "--out", student
        ]  # fmt: skip
        yield ["evaluate", *teacher, "--student", student, *heard, *noise, *manner, "--out", report]

    def _language(self) -> list[str]:
        return ["--language", self.language] if self.language else []
