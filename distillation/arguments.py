"""Types of the command line's values: what cannot be meant is refused before anything is loaded.

Knows nothing of any command.
"""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A whole number above 0."""
    if (number := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return number


def count_or_none(text: str) -> int:
    """A whole number, 0 too."""
    if (number := _whole(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    if not (number := _finite(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def not_negative(text: str) -> float:
    """A number, 0 too."""
    if (number := _finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (number := _finite(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return number


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
