"""The teacher's likeliest tokens at every place of its labels, with their log-probabilities, in one file.

Owns the file: one record a token, one label's after another, only ever appended. What lies behind the last label that
refers to it was torn, and is cut off. With it, a student learns without its teacher. Knows nothing of the labels'
texts.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEPT = 32
"""Tokens of a place. What they leave of the probability is mostly less than a thousandth."""

RECORD = np.dtype([("tokens", "<u4", (KEPT,)), ("log_probs", "<f2", (KEPT,))])


class Distributions:
    """The records of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size // RECORD.itemsize if path.is_file() else 0

    def begin(self, size: int) -> None:
        """Prepare the file for appending: only the first `size` records count, and those behind them are cut off."""
        self._path.touch()
        self._size = min(size, self._size)
        os.truncate(self._path, self._size * RECORD.itemsize)

    def __len__(self) -> int:
        return self._size

    def add(self, logits: Tensor) -> int:
        """Append the records of one label.

        Args:
            logits: `[places, vocabulary]`.

        Returns:
            The number of the label's first record.
        """
        log_probs, tokens = logits.float().log_softmax(-1).topk(KEPT)
        records = np.empty(len(tokens), RECORD)
        records["tokens"], records["log_probs"] = tokens.cpu().numpy(), log_probs.cpu().numpy()
        with self._path.open("ab") as file:
            file.write(records.tobytes())
        first, self._size = self._size, self._size + len(records)
        return first

    def read(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Read some records.

        Args:
            first: the number of the first record.
            count: how many records to read.

        Returns:
            Tokens and log-probabilities, `[count, KEPT]` each.
        """
        with self._path.open("rb") as file:
            file.seek(first * RECORD.itemsize)
            records: NDArray[np.void] = np.frombuffer(file.read(count * RECORD.itemsize), RECORD)
        tokens = torch.from_numpy(records["tokens"].astype(np.int64))
        return tokens, torch.from_numpy(records["log_probs"].astype(np.float32))
