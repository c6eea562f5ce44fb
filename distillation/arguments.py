"""Types of the command line's values: what cannot be meant is refused before anything is loaded.

Knows nothing of any command.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

_N = TypeVar("_N", int, float)


def device(text: str) -> str:
    """`cpu`, a GPU that is here, or `auto`: a GPU where there is one."""
    if text == "cpu":
        return text
    import torch

    found = torch.cuda.device_count()
    if text == "auto":
        return "cuda" if found else "cpu"
    known = ["auto", "cpu", *(["cuda"] if found else []), *(f"cuda:{number}" for number in range(found))]
    if text not in known:
        raise argparse.ArgumentTypeError(f"there is no {text!r} here: choose one of {', '.join(known)}")
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
        raise argparse.ArgumentTypeError(f"{text} is not a number to reckon with")
    return number


def _type(read: Callable[[str], _N], meant: str, fits: Callable[[_N], bool]) -> Callable[[str], _N]:
    def checked(text: str) -> _N:
        if not fits(number := read(text)):
            raise argparse.ArgumentTypeError(f"{text} is not {meant}")
        return number

    return checked


count = _type(_whole, "a whole number above 0", lambda number: number > 0)
count_or_none = _type(_whole, "a whole number from 0 on", lambda number: number >= 0)
positive = _type(_finite, "a number above 0", lambda number: number > 0)
not_negative = _type(_finite, "a number from 0 on", lambda number: number >= 0)
share = _type(_finite, "a number from 0 to 1", lambda number: 0 <= number <= 1)


def count_of(text: str) -> tuple[str, int]:
    """`SET=N`, or `N` for all sets, whose name is then empty."""
    name, _, number = text.rpartition("=")
    return name, count(number)
