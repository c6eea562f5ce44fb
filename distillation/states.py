"""What the frozen encoder makes of every batch, computed once and kept on disk.

Owns the store: a file a batch, each whole or not there, so that an interrupt costs one batch. A student's encoder is
its teacher's and never changes, so a clip needs to be heard once (once for each version of its augmentation), not once
an epoch: training then costs what the decoders cost. Knows nothing of losses.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from distillation.batches import Batch, Batches
from distillation.errors import DistillError
from distillation.files import NotWritten, write_whole


class StatesError(DistillError):
    """The store cannot be used or written; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A batch behind the encoder. states: [rows, positions, width]; inputs, labels: as in `Batch`."""

    states: Tensor
    inputs: Tensor
    labels: Tensor


class States(Dataset[Heard]):
    """`states[step]`: the batches of the first `versions` epochs, over and over, in another order each time.

    made_from: whatever else decides what is in the store; another value than the one it was begun with is refused.

    Raises:
        StatesError: the folder holds the states of other batches.
    """

    def __init__(self, folder: Path, batches: Batches, versions: int, seed: int, made_from: str) -> None:
        self._folder = folder
        self._batches = batches
        self._seed = seed
        self.count = sum(batches.epoch_steps(epoch) for epoch in range(versions))
        folder.mkdir(parents=True, exist_ok=True)
        mark = hashlib.sha256(f"{made_from} {batches.fingerprint} {self.count}".encode()).hexdigest()
        about = folder / "about.json"
        if not about.is_file():
            about.write_text(json.dumps({"made_from": mark, "batches": self.count}) + "\n")
        elif json.loads(about.read_text())["made_from"] != mark:
            raise StatesError(f"{folder} was begun with other clips or options: remove it, or give the same ones")

    def prepare(self, encode: Callable[[Tensor], Tensor]) -> None:
        """Hears what was not heard yet. encode: features [rows, bins, frames] -> states.

        Raises:
            StatesError: the disk is full.
        """
        missing = [number for number in range(self.count) if not self._path(number).is_file()]
        done = self.count - len(missing)
        for number in tqdm(missing, desc="hear", unit="batch", initial=done, total=self.count):
            batch = self._batches[number]
            self._write(number, batch, encode(batch.mel))

    def shuffled(self, seed: int) -> States:
        """The same store in another order."""
        other = copy.copy(self)
        other._seed = seed
        return other

    def number(self, step: int) -> int:
        """Which of the store's batches a step has."""
        epoch, place = divmod(step, self.count)
        return int(np.random.default_rng((self._seed, 3, epoch)).permutation(self.count)[place])

    def __getitem__(self, step: int) -> Heard:
        stored = torch.load(self._path(self.number(step)), weights_only=True)
        return Heard(stored["states"], stored["inputs"], stored["labels"])

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.pt"

    def _write(self, number: int, batch: Batch, states: Tensor) -> None:
        stored = {"states": states.to(torch.bfloat16).cpu(), "inputs": batch.inputs, "labels": batch.labels}
        try:
            write_whole(stored, self._path(number))
        except NotWritten as error:
            whole = self.count * stored["states"].nbytes / 1e9
            raise StatesError(
                f"batch {number} of {self.count} cannot be written to {self._folder} ({error}): "
                f"all take about {whole:.1f} GB; make room, or give --versions 1; the same command goes on from here"
            ) from error
