"""Every row of `docs/pitfalls.md` has a promise, and tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "pitfalls.md"


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def functions_of(path: str) -> frozenset[str]:
    """Names of the test functions of a file, those of its classes included; empty where there is no such file."""
    if not (ROOT / path).is_file():
        return frozenset()
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return frozenset(functions) | {
        target.id
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, ast.Assign)  # a state machine's TestCase
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def missing(cell: str) -> list[str]:
    """Of the tests that a cell names, those that there are not."""
    named = re.findall(r"`([^`:]+)::(\w+)`", cell)
    return [f"{path}::{test}" for path, test in named if test not in functions_of(path)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0])[:40])
def test_every_promise_has_a_test(row: list[str]) -> None:
    wrong, promise, tests = row
    assert wrong
    assert promise
    assert "::" in tests
    assert missing(tests) == []


def test_a_test_that_is_not_there_would_be_seen() -> None:
    assert missing("`tests/test_pitfalls.py::test_nothing` `tests/nowhere.py::test_x`") == [
        "tests/test_pitfalls.py::test_nothing",
        "tests/nowhere.py::test_x",
    ]
