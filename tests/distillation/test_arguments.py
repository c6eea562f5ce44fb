"""What cannot be meant is refused at once, by a sentence that says what could be."""

from __future__ import annotations

import pytest

from distillation.cli import main


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("label --every 0", "--every: 0 is not a whole number above 0"),
        ("label --every two", "--every: 'two' is not a whole number"),
        ("label --confidence 1.5", "--confidence: 1.5 is not a number from 0 to 1"),
        ("train --temperature 0", "--temperature: 0 is not a number above 0"),
        ("train --rate nan", "--rate: nan is not a number to reckon with"),
        ("train --seed -3", "--seed: -3 is not a whole number from 0 on"),
        ("train --kl-weight -1", "--kl-weight: -1 is not a number from 0 on"),
        ("train --device abacus", "--device: there is no 'abacus' here: choose one of auto, cpu"),
        ("corpus --workers 0", "--workers: 0 is not a whole number above 0"),
        ("evaluate --noise-seconds x", "--noise-seconds: 'x' is not a number"),
    ],
)
def test_a_value_that_cannot_be_meant(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert left.value.code == 2
    assert told in capsys.readouterr().err
