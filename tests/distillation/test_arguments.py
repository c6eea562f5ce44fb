"""What cannot be meant is refused at once, by a sentence that says what could be."""

from __future__ import annotations

import pytest

from distillation.arguments import count_of
from distillation.cli import main


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("label --at-most 0", "--at-most: 0 is not a whole number above 0"),
        ("label --at-most mine=two", "--at-most: 'two' is not a whole number"),
        ("label --beginnings 2", "--beginnings: 2 is not a number from 0 to 1"),
        ("init --encoder none", "--encoder: invalid choice: 'none'"),
        ("init --contexts 0", "--contexts: 0 is not a number above 0"),
        ("label --confidence 1.5", "--confidence: 1.5 is not a number from 0 to 1"),
        ("train --batch-seconds 0", "--batch-seconds: 0 is not a number above 0"),
        ("train --rate nan", "--rate: nan is not a finite number"),
        ("train --seed -3", "--seed: -3 is not a whole number of 0 or more"),
        ("train --kl-weight -1", "--kl-weight: -1 is not a number of 0 or more"),
        ("train --device abacus", "--device: 'abacus' is not available: choose one of auto, cpu"),
        ("corpus --workers 0", "--workers: 0 is not a whole number above 0"),
        ("evaluate --noise-seconds x", "--noise-seconds: 'x' is not a number"),
    ],
)
def test_a_value_that_cannot_be_meant(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_a_count_may_be_of_a_set() -> None:
    assert count_of("5") == ("", 5)
    assert count_of("talk=5") == ("talk", 5)
    assert count_of("a=b=5") == ("a=b", 5)
