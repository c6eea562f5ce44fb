"""The table of clients that were run: each version is the one that is pinned, and each pinned client has its row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "dialects.md"
PINS = [ROOT / "constraints.txt", ROOT / "tests" / "daemon" / "dialects" / "clients.txt"]
NO_CLIENTS = {"torch"}


@dataclass(frozen=True)
class Row:
    client: str
    version: str
    by: str


def rows() -> list[Row]:
    section = PAGE.read_text(encoding="utf-8").partition("\n## What was run\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [Row(re.sub(r"[` ].*", "", client.lstrip("`")), version, by) for client, version, _, by in lines[1:]]


def pins() -> dict[str, str]:
    """Every pin; what a client needs beside itself too."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PINS)
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def clients() -> set[str]:
    """Those that are run: of clients.txt, the first line of each paragraph."""
    constraints, apart = (path.read_text(encoding="utf-8") for path in PINS)
    first = re.findall(r"(?:^|\n\n|# .*\n)([\w.-]+)==", apart)
    return {*re.findall(r"^([\w.-]+)==", constraints, re.MULTILINE), *first} - NO_CLIENTS


def run_by_tests() -> list[Row]:
    return [row for row in rows() if row.by != "hand"]


def test_there_is_a_table() -> None:
    assert len(rows()) > len(run_by_tests()) > 5
    assert {"openai-agents", "pipecat-ai", "wyoming"} <= clients()


@pytest.mark.parametrize("row", run_by_tests(), ids=lambda row: row.client)
def test_a_version_is_the_pinned_one(row: Row) -> None:
    assert row.version == pins()[row.client]


@pytest.mark.parametrize("client", sorted(clients()))
def test_a_client_that_is_pinned_has_its_row(client: str) -> None:
    assert client in {row.client for row in run_by_tests()}, (
        f"{client} is pinned: say in {PAGE.name} what is run with it"
    )


def test_every_row_says_who_ran_it_and_a_test_that_is_named_is_there() -> None:
    for row in rows():
        named = re.findall(r"\]\(\.\./(\S+?)\)", row.by)
        assert row.by in ("hand", "the same") or named, row.client
        assert all((ROOT / name).is_file() for name in named), row.client
