"""The demo and the benchmarks run, and what they print was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.table import percentiles, table

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "bench" / "data" / "demo"


def run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"bench.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(output: str) -> list[list[str]]:
    """The rows of the printed table, without its header."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_demo_hears_every_word() -> None:
    printed = run("demo")
    assert " partial " in printed
    for text in DEMO.with_suffix(".txt").read_text().splitlines():
        assert f" final    {text}   (" in printed
    assert printed.endswith("Every word was right.\n")


def test_live_streams() -> None:
    (row,) = cells(run("streams", "--streams", "2", "--recording", str(DEMO.with_suffix(".flac"))))
    streams, partials, _, finals, _, thinned, errors, _ = row
    assert (streams, finals, thinned, errors) == ("2", "6", "0", "0.0%")
    assert int(partials) >= 6


def test_drafts_save_passes() -> None:
    printed = run("offline", "--rounds", "1", "--recording", str(DEMO.with_suffix(".flac")))
    drafted, alone, finals = cells(printed)
    assert drafted[1:3] == alone[1:3]  # the same jobs and the same tokens
    assert int(drafted[3]) < int(alone[3])
    assert int(finals[1]) == 3


def test_percentiles_and_tables() -> None:
    assert percentiles([]) == "none"
    assert percentiles([10, 20, 30]) == "20 / 29"
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


@pytest.mark.parametrize("name", ["demo", "commands"])
def test_each_recording_says_what_is_in_it(name: str) -> None:
    folder = ROOT / "bench" / "data"
    assert (folder / f"{name}.flac").is_file()
    assert len((folder / f"{name}.txt").read_text().splitlines()) >= 3
