"""Types of the command line's values.

Owns what a value may be: a value that makes no sense is refused before anything is loaded. Knows nothing of any
command.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

_N = TypeVar("_N", int, float)


def device(text: str) -> str:
    """Return the device that a value names: `cpu`, a GPU that is here, or for `auto` a GPU where there is one.

    Raises:
        argparse.ArgumentTypeError: there is no such device here.
    """
    if text == "cpu":
        return text
    import torch

    found = torch.cuda.device_count()
    if text == "auto":
        return "cuda" if found else "cpu"
    known = ["auto", "cpu", *(["cuda"] if found else []), *(f"cuda:{number}" for number in range(found))]
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not available: choose one of {', '.join(known)}")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def _type(read: Callable[[str], _N], meant: str, fits: Callable[[_N], bool]) -> Callable[[str], _N]:
    def checked(text: str) -> _N:
        if not fits(number := read(text)):
            raise argparse.ArgumentTypeError(f"{text} is not {meant}")
        return number

    return checked


count = _type(_whole, "a whole number above 0", lambda number: number > 0)
count_or_none = _type(_whole, "a whole number of 0 or more", lambda number: number >= 0)
positive = _type(_finite, "a number above 0", lambda number: number > 0)
not_negative = _type(_finite, "a number of 0 or more", lambda number: number >= 0)
share = _type(_finite, "a number from 0 to 1", lambda number: 0 <= number <= 1)


def count_of(text: str) -> tuple[str, int]:
    """Return the name of the set and the count of `SET=N`; the name of `N` alone, which is for all sets, is empty."""
    name, _, number = text.rpartition("=")
    return name, count(number)
