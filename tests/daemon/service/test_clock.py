"""Clocks that jump: nothing depends on the time of day but the stamps that tell it."""

from __future__ import annotations

import ast
import itertools
import time
from pathlib import Path

import pytest
from harness import ROOT, client, scripted, service, speech

STAMPS = {
    "daemon/core/hub.py", "daemon/mqtt/spool.py", "daemon/service/app.py", "daemon/dialects/deepgram.py",
    "daemon/endpoints/uploads.py",
}  # fmt: skip
"""A final's `at`; how old that is of one that an earlier process left; `created`, of OpenAI's models and of Deepgram's
streams and files; when OpenAI's clients are told that a secret ends (it ends by a clock that does not jump)."""


def tells_the_time_of_day(source: str) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns", "now", "today", "utcnow")
        and isinstance(node.value, ast.Name) and node.value.id in ("time", "datetime", "date")
        for node in ast.walk(ast.parse(source))
    )  # fmt: skip


def test_only_stamps_are_of_the_time_of_day() -> None:
    files = itertools.chain(*((ROOT / tree).rglob("*.py") for tree in ("daemon", "streaming")))
    found = {str(path.relative_to(ROOT)) for path in files if tells_the_time_of_day(path.read_text())}
    assert found == STAMPS


async def test_a_conversation_while_the_clock_jumps(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 4e9, 1.0, 1.8e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        for _ in range(3):
            await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    finals = mine.of("final")
    assert [final["utterance"] for final in finals] == [1, 2, 3]
    assert all(0 <= final["latency_ms"] < 1e6 for final in finals)
    assert all(0 <= partial["lag_ms"] < 1e6 for partial in mine.of("partial"))
    assert {final["at"] for final in finals} <= {0.0, 4e9, 1.0, 1.8e9}
