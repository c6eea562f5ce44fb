"""How fast something grows, and how sure that is: a straight line through block means.

Pure. Knows nothing of what is measured. The method is stated in the package's docstring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 20

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101)  # fmt: skip
"""Student's t for 95 %, by degrees of freedom from 1 on."""


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope per unit of time.

    Attributes:
        value: the slope.
        low: the lower end of its 95 % confidence interval.
        high: the upper end.
        autocorrelation: of neighbouring blocks' residuals.
        start: the line's value at the first time.
    """

    value: float
    low: float
    high: float
    autocorrelation: float
    start: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} (95 % confidence: {self.low:+.2f} to {self.high:+.2f})"


def slope(times: Sequence[float], values: Sequence[float]) -> Slope | None:
    """Fit a straight line through block means.

    Args:
        times: ascending.
        values: one for each time.

    Returns:
        Its slope; None where there are fewer samples than two a block, or too few blocks with a sample.
    """
    if len(times) < 2 * BLOCKS or times[-1] <= times[0]:
        return None
    x, y = _block_means(np.asarray(times, float), np.asarray(values, float))
    count = len(x)
    if count < 4:
        return None
    gradient, offset = np.polyfit(x, y, 1)
    residuals = y - (gradient * x + offset)
    together = _autocorrelation(residuals)
    inflation = (1 + max(0.0, together)) / (1 - max(0.0, together))
    error = math.sqrt(float((residuals**2).sum()) / (count - 2) / float(((x - x.mean()) ** 2).sum()) * inflation)
    margin = _T[max(1, min(len(_T), int(count / inflation) - 2)) - 1] * error
    return Slope(
        float(gradient), float(gradient) - margin, float(gradient) + margin, together,
        float(gradient * times[0] + offset),
    )  # fmt: skip


def _block_means(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the means of blocks of equal length in time; a block without a sample is left out.

    Returns:
        The means of the times, and of the values.
    """
    edges = np.linspace(times[0], times[-1], BLOCKS + 1)
    block = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, BLOCKS - 1)
    there = [number for number in range(BLOCKS) if (block == number).any()]
    return (
        np.array([times[block == number].mean() for number in there]),
        np.array([values[block == number].mean() for number in there]),
    )


def _autocorrelation(residuals: np.ndarray) -> float:
    """Return the autocorrelation of neighbours, at most 0.9; 0 where there is no scatter."""
    power = float((residuals**2).sum())
    if power < 1e-12:
        return 0.0
    return min(0.9, float((residuals[1:] * residuals[:-1]).sum()) / power)
