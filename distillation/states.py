"""What the frozen encoder makes of every batch, computed once and kept on disk.

Owns the store: a file a batch, each whole or not there, so that an interrupt costs one batch. A student's encoder is
its teacher's and never changes, so a clip needs to be heard once (once for each version of its augmentation), not once
an epoch: training then costs what the decoders cost. Knows nothing of losses.
"""

from __future__ import annotations

import copy
import json
import pickle
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
from distillation.files import NotWritten, write_text_whole, write_whole
from distillation.settings import DIGEST, Settings, require_same


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

    settings: whatever else decides what is in the store; other ones than it was begun with are refused.

    Raises:
        SettingsError: the folder holds the states of other batches.
        StatesError: it is not known what it holds.
    """

    def __init__(self, folder: Path, batches: Batches, versions: int, seed: int, settings: Settings) -> None:
        self._folder = folder
        self._batches = batches
        self._seed = seed
        self.count = sum(batches.epoch_steps(epoch) for epoch in range(versions))
        # The batches come last: where they differ, an option that is named before them is mostly why.
        self.settings = {**settings, "--versions": versions, "corpus or set of labels": DIGEST + batches.fingerprint}
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "about.json"
        if about.is_file():
            require_same(folder, _begun(about), self.settings)
        else:
            write_text_whole(json.dumps({"settings": self.settings, "batches": self.count}) + "\n", about)

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
        path = self._path(self.number(step))
        try:
            stored = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise StatesError(f"{path} cannot be read: remove it, and the same command hears it again") from error
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
                f"batch {number} of {self.count} cannot be written to {self._folder} ({error.reason}): "
                f"all take about {whole:.1f} GB; make room, or give --versions 1; the same command goes on from here"
            ) from error


def _begun(about: Path) -> Settings:
    try:
        return dict(json.loads(about.read_text(encoding="utf-8"))["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise StatesError(f"{about} does not say from what its folder was made: remove {about.parent}") from error
