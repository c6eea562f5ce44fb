"""What waits for the broker: its order and limits, the file, and a disk that fails."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, wait_until
from hypothesis import given
from hypothesis import strategies as st

from daemon.common.metrics import Metrics
from daemon.mqtt import spool
from daemon.mqtt.spool import Entry, Spool


def entry(number: int, at: float = 0.0) -> Entry:
    return Entry(f"id{number}", "kitchen", at, f'{{"text":"{number}"}}', str(number))


def spooled(path: Path | None, limit: int = 100, metrics: Metrics | None = None, now: float = 0.0) -> Spool:
    return Spool(path, limit, 3600.0, metrics or Metrics(), lambda: now)


@asynccontextmanager
async def opened(
    path: Path | None, limit: int = 100, metrics: Metrics | None = None, now: float = 0.0
) -> AsyncIterator[Spool]:
    made = spooled(path, limit, metrics, now)
    await made.open()
    saving = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        saving.cancel()
        await made.close()


def waiting(which: Spool) -> list[tuple[str, int]]:
    """Take all out: the ids in order, and how much of each had been delivered."""
    found = []
    while (first := which.first()) is not None:
        found.append((first.id, first.sent))
        while which.first() is first:
            which.delivered(first)
    return found


def on_disk(path: Path) -> list[str]:
    """What another program reads there once the spool is closed."""
    with sqlite3.connect(path) as file:
        found = [row[0] for row in file.execute("SELECT id FROM finals ORDER BY number")]
    file.close()
    return found


# --- order and limits ------------------------------------------------------------------------------------------------

STEPS = st.lists(st.sampled_from(["add", "deliver", "restart"]), max_size=40)


async def play(steps: list[str], path: Path, limit: int) -> None:
    expected: list[tuple[str, int]] = []
    count = dropped = 0
    metrics = Metrics()
    made = spooled(path, limit, metrics)
    await made.open()
    for step in steps:
        match step:
            case "add":
                made.add(entry(count))
                expected.append((f"id{count}", 0))
                count += 1
                if len(expected) > limit:
                    del expected[0]
                    dropped += 1
            case "deliver":
                if (first := made.first()) is not None:
                    made.delivered(first)
                    id, sent = expected[0]
                    expected[0:1] = [(id, 1)] if sent == 0 else []
            case "restart":
                await made.close()
                made = spooled(path, limit, metrics)
                await made.open()
        assert len(made) == len(expected)
    await made.close()
    assert on_disk(path) == [id for id, _ in expected]
    made = spooled(path, limit, metrics)
    await made.open()
    assert waiting(made) == expected
    await made.close()
    assert f"whisperd_mqtt_dropped_finals_total {float(dropped)}" in metrics.text().decode()


@given(steps=STEPS, limit=st.integers(1, 5))
def test_whatever_happens_the_newest_come_out_in_order_and_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], limit: int
) -> None:
    asyncio.run(play(steps, tmp_path_factory.mktemp("spool") / "deep" / "spool.sqlite", limit))


async def test_what_is_too_old_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, metrics = tmp_path / "spool.sqlite", Metrics()
    async with opened(path) as made:
        for number, at in enumerate((0.0, 10.0, 5000.0)):
            made.add(entry(number, at))
    async with opened(path, metrics=metrics, now=5000.0) as made:
        assert waiting(made) == [("id2", 0)]
    assert "whisperd_mqtt_expired_finals_total 2.0" in metrics.text().decode()
    assert "2 finals had waited more than 3600 s" in caplog.text


def test_a_clock_that_jumps_drops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A machine without a clock of its own starts in 1970, and then learns better; or somebody sets it back."""
    wall, steady = [0.0], [100.0]
    made = Spool(None, 10, 3600.0, Metrics(), lambda: wall[0], steady=lambda: steady[0])
    for number, now in enumerate((0.0, 1.8e9, 5.0)):
        wall[0] = now
        made.add(entry(number, now))
        steady[0] += 1000.0
    assert made.first() is not None
    assert len(made) == 3
    steady[0] += 1000.0
    assert waiting(made) == [("id1", 0), ("id2", 0)]  # the first has waited for 4000 s, whatever the clocks say


async def test_an_entry_that_a_limit_drops_on_its_way_does_not_come_back() -> None:
    made = spooled(None, limit=1)
    made.add(entry(1))
    first = made.first()
    assert first is not None
    made.delivered(first)
    made.add(entry(2))
    made.delivered(first)
    assert waiting(made) == [("id2", 0)]


async def test_sources_and_switches_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    async with opened(path) as made:
        assert made.remember("kitchen", True)
        assert made.remember("hall", True)
        assert not made.remember("kitchen", False)
    async with opened(path) as made:
        assert made.sources() == {"kitchen": False, "hall": True}
        for number in range(1000):
            made.remember(f"s{number}", True)
        assert len(made.sources()) == 256


# --- the death of the process ----------------------------------------------------------------------------------------

DYING = """
import asyncio, sys
from pathlib import Path
from daemon.common.metrics import Metrics
from daemon.mqtt.spool import Entry, Spool

async def main():
    made = Spool(Path(sys.argv[1]), 10_000, 3600.0, Metrics(), lambda: 0.0)
    await made.open()
    saving = asyncio.create_task(made.run())
    number = 0
    while True:
        made.add(Entry(f"id{number}", "kitchen", 0.0, "{}", "x"))
        if number % 3 == 0:
            first = made.first()
            made.delivered(first)
            made.delivered(first)
        number += 1
        await asyncio.sleep(0)

asyncio.run(main())
"""


async def test_a_process_that_is_killed_leaves_a_queue_without_holes(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    log = tmp_path / "spool.sqlite-wal"
    popen = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, str(path), cwd=ROOT)
    await wait_until(lambda: log.exists() and log.stat().st_size > 200_000)
    popen.kill()
    await popen.wait()
    async with opened(path, limit=10_000) as made:
        found = [int(id.removeprefix("id")) for id, _ in waiting(made)]
    assert len(found) > 1
    assert found == list(range(found[0], found[0] + len(found)))


# --- a disk that fails -----------------------------------------------------------------------------------------------


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file of this process grows beyond `most` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_stops_nothing_and_is_used_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "_RETRY", 0.05)
    caplog.set_level(logging.INFO)
    path, metrics = tmp_path / "spool.sqlite", Metrics()
    async with opened(path, metrics=metrics) as made:
        made.add(entry(0))
        with full_disk(path.stat().st_size):
            made.add(Entry("big", "kitchen", 0.0, "x" * 300_000, "x"))
            await wait_until(lambda: not made.on_disk)
            made.add(entry(1))
            gone = made.first()
            assert gone is not None
            assert gone.id == "id0"
            made.delivered(gone)
            made.delivered(gone)
        await wait_until(lambda: made.on_disk)
        made.add(entry(2))
    assert on_disk(path) == ["big", "id1", "id2"]
    assert caplog.text.count("cannot be used") == 1
    assert "is in use again" in caplog.text
    assert "whisperd_mqtt_spool_errors_total 0.0" not in metrics.text().decode()


@pytest.mark.parametrize("where", ["/proc/nowhere/spool.sqlite", "/dev/full/spool.sqlite", "."])
async def test_a_place_that_cannot_be_written_is_said_once(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "_RETRY", 0.01)
    monkeypatch.chdir(tmp_path)
    metrics = Metrics()
    async with opened(Path(where), metrics=metrics) as made:
        made.add(entry(1))
        await wait_until(lambda: "whisperd_mqtt_spool_errors_total 3.0" in metrics.text().decode())
        assert waiting(made) == [("id1", 0)]
    assert caplog.text.count("cannot be used") == 1


async def test_what_a_place_held_that_was_away_comes_first_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_RETRY", 0.05)
    path = tmp_path / "mount" / "spool.sqlite"
    async with opened(path) as made:
        made.add(entry(1))
    away = tmp_path / "away"
    path.parent.rename(away)
    path.parent.write_text("not mounted")
    async with opened(path) as made:
        made.add(entry(2))
        path.parent.unlink()
        away.rename(path.parent)
        await wait_until(lambda: made.on_disk)
        made.add(entry(3))
        assert [id for id, _ in waiting(made)] == ["id1", "id2", "id3"]
    assert on_disk(path) == []


async def test_a_damaged_file_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"no database at all, " * 1000)
    async with opened(path) as made:
        made.add(entry(1))
    assert on_disk(path) == ["id1"]
    assert (tmp_path / "spool.sqlite.damaged").read_bytes().startswith(b"no database")
    assert "and was moved to" in caplog.text


# --- rows and pages that are damaged ----------------------------------------------------------------------------------

DAMAGES = {
    "source = CAST(X'6B697423' AS TEXT)": "its source is not a valid name",  # kit#
    "source = ''": "its source is not a valid name",
    "source = 'a/b'": "its source is not a valid name",
    "source = X'6B6974'": "its source is not text",
    "source = 'hall'": "its final has a different source",
    "id = X'FF'": "its id is not text",
    "id = CAST(X'FF' AS TEXT)": "its id is not UTF-8",
    "at = 'soon'": "its time is invalid",
    "at = 9e999": "its time is invalid",
    "at = X'00'": "its time is invalid",
    "sent = 5": "its count of what was delivered is invalid",
    "sent = -1": "its count of what was delivered is invalid",
    "sent = 'x'": "its count of what was delivered is invalid",
    "final = CAST(X'7B22FF227D' AS TEXT)": "its final is not UTF-8",
    "final = X'7B7D'": "its final is not text",
    "final = '{'": "its final is not a JSON object",
    "final = replace(hex(zeroblob(50000)), '0', '[')": "its final is not a JSON object",
    "text = X'31'": "its text is not text",
    "text = CAST(X'FF' AS TEXT)": "its text is not UTF-8",
    "text = 'other'": "its final has a different text",
}


async def damaged(path: Path, *statements: str) -> None:
    """A spool with three finals and two sources, the way that a disk spoils it."""
    async with opened(path) as made:
        for number in range(3):
            each = entry(number)
            each.final = json.dumps({"id": each.id, "source": each.source, "text": each.text})
            made.add(each)
        made.remember("hall", False)
        made.remember("kitchen", False)
    with sqlite3.connect(path) as file:
        for statement in statements:
            file.execute(statement)
    file.close()


def aside(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as file:
        file.text_factory = bytes
        found = file.execute("SELECT why, id, source, at, final, text, sent FROM aside ORDER BY number").fetchall()
    file.close()
    return found


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_row_is_put_aside_and_the_others_go_on(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, metrics = tmp_path / "spool.sqlite", Metrics()
    await damaged(path, f"UPDATE finals SET {damage} WHERE id = 'id1'")
    async with opened(path, metrics=metrics) as made:
        assert waiting(made) == [("id0", 0), ("id2", 0)]
        assert made.on_disk
    assert [row[0] for row in aside(path)] == [DAMAGES[damage].encode()]
    assert "whisperd_mqtt_spool_damaged_total 1.0" in metrics.text().decode()
    assert f"row 2: {DAMAGES[damage]}" in caplog.text
    async with opened(path, metrics=metrics) as made:  # once
        assert waiting(made) == []
    assert "whisperd_mqtt_spool_damaged_total 1.0" in metrics.text().decode()


@pytest.mark.parametrize("damage", ["name = 'a/#'", "name = X'00'", "listen = 7", "listen = 'x'"])
async def test_a_damaged_switch_is_put_aside_and_the_others_hold(damage: str, tmp_path: Path) -> None:
    path, metrics = tmp_path / "spool.sqlite", Metrics()
    await damaged(path, f"UPDATE sources SET {damage} WHERE name = 'hall'")
    async with opened(path, metrics=metrics) as made:
        assert made.sources() == {"kitchen": False}
        assert len(made) == 3
    assert "whisperd_mqtt_spool_damaged_total 1.0" in metrics.text().decode()


async def test_damaged_rows_are_named_up_to_a_few_and_kept_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "_TRIM", (spool._TRIM[0], (4,)))
    path = tmp_path / "spool.sqlite"
    async with opened(path) as made:
        for number in range(20):
            made.add(entry(number))
    with sqlite3.connect(path) as file:
        file.execute("UPDATE finals SET sent = 2 WHERE number < 20")
    file.close()
    async with opened(path) as made:
        assert waiting(made) == [("id19", 0)]
    assert [row[1] for row in aside(path)] == [b"id15", b"id16", b"id17", b"id18"]
    assert caplog.text.count("row ") == 5
    assert "and 14 more" in caplog.text


async def test_what_can_be_read_of_a_damaged_file_is_rescued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is spoilt is no row, but the tree of the ids."""
    path = tmp_path / "spool.sqlite"
    await damaged(path)
    with sqlite3.connect(path) as file:
        (size,) = file.execute("PRAGMA page_size").fetchone()
        (page,) = file.execute("SELECT rootpage FROM sqlite_master WHERE name LIKE '%autoindex_finals%'").fetchone()
    file.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size] = 0
    path.write_bytes(content)
    async with opened(path) as made:
        assert made.sources() == {"kitchen": False, "hall": False}
        assert waiting(made) == [("id0", 0), ("id1", 0), ("id2", 0)]
        assert made.on_disk
    assert "and was moved to" in caplog.text


async def test_a_flipped_bit_anywhere_ends_neither_the_service_nor_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    await damaged(path)
    content = path.read_bytes()
    places = [at for at, byte in enumerate(content) if byte]  # the rest is empty pages
    for at in places[:: max(1, len(places) // 150)]:
        spoilt = bytearray(content)
        spoilt[at] ^= 1 << (at % 8)
        path.write_bytes(spoilt)
        async with opened(path) as made:
            made.add(entry(9))
            assert all(sent in (0, 1) for _, sent in waiting(made))
        for each in tmp_path.iterdir():  # noqa: ASYNC240 - small, in a test
            each.unlink()


async def test_two_processes_do_not_share_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool.sqlite"
    async with opened(path) as mine, opened(path) as other:
        mine.add(entry(1))
        other.add(entry(2))
        assert (mine.on_disk, other.on_disk) == (True, False)
        assert "database is locked" in caplog.text
        # So that it is not written by the other when this one has ended.
        assert waiting(other) == [("id2", 0)]
    assert on_disk(path) == ["id1"]


async def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool.sqlite"
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    async with opened(path) as made:
        assert not made.on_disk
    assert "written by a later version" in caplog.text


async def test_a_disk_that_hangs_holds_up_neither_start_nor_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()
    real = spool._connect

    def hang(path: Path) -> tuple[sqlite3.Connection, Any]:
        answers.wait()
        return real(path)

    monkeypatch.setattr(spool, "_connect", hang)
    monkeypatch.setattr(spool, "_PATIENCE", 0.05)
    path = tmp_path / "spool.sqlite"
    made = spooled(path)
    await made.open()
    made.add(entry(1))
    assert not made.on_disk
    answers.set()
    await wait_until(lambda: made.on_disk)
    monkeypatch.setattr(spool, "_PATIENCE", 30.0)
    await made.close()
    assert "the disk has not answered" in caplog.text
    assert on_disk(path) == ["id1"]


async def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "spool.sqlite"
    async with opened(path):
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
