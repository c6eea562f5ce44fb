"""What waits for the broker: a queue in memory, with a copy on disk that outlives the process.

Owns the order of finals, the limits on how many wait and for how long, and the file. Knows nothing of brokers, topics
or events: of a final it keeps the id, the source, two texts and how much of it was delivered. Beside the finals the
file remembers the sources and their switches, so that a source that was switched off stays so after a restart.

The queue in memory is the truth, and the file follows it. A thread of its own writes the file, so that a slow disk does
not stop the service; `saved` is told what is in the file, for those who wait for that a little. A file that cannot be
written (full, read-only, gone) is logged once and counted, and written anew, whole, when that is possible again.
Meanwhile the queue goes on without it.

What an earlier process left is judged row by row before it is believed: a disk flips bits. A wrong row is put aside, in
a table of its own, counted and named, and the others go on. A file whose pages do not fit together is put aside whole,
and what can still be read of it is rescued.

The file is an SQLite database that one process holds for itself. Its log is not synced to the disk at every final: that
is safe against the death of the process, spares a memory card, and may cost the last finals when the power fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from daemon.common.metrics import Metrics

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_RETRY = 30.0
"""Seconds between two attempts to use a file that failed."""

_PATIENCE = 5.0
"""Seconds that the start and the end of the service wait for the disk."""

_MOST_CHANGES = 10_000
"""Changes that may wait for a disk that hangs; beyond them the file is written anew, whole, once it answers."""

_MOST_SOURCES = 256

_MOST_ASIDE = 1000
"""Rows that are kept aside for whoever wants to look; beyond them the oldest goes."""

_MOST_NAMED = 5
"""Damaged rows that the log names, of however many."""

_LONGEST_NAME = 256
"""Of a source or an id in the file. Wider than the rule for names: an earlier version may have allowed more."""

_VERSION = 1
_TABLES = (
    "CREATE TABLE IF NOT EXISTS finals (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, "
    "source TEXT NOT NULL, at REAL NOT NULL, final TEXT NOT NULL, text TEXT NOT NULL, sent INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, listen INTEGER NOT NULL)",
    # Without types: what is put here is as it was found.
    "CREATE TABLE IF NOT EXISTS aside "
    "(number INTEGER PRIMARY KEY AUTOINCREMENT, why, id, source, at, final, text, sent)",
    f"PRAGMA user_version = {_VERSION}",
)


@dataclass(slots=True, eq=False)
class Entry:
    """One final.

    Attributes:
        at: Unix time.
        final: its JSON.
        text: its text alone.
        sent: how many of its two messages the broker has acknowledged.
        since: when it began to wait, by the steady clock of this process. The spool sets it.
    """

    id: str
    source: str
    at: float
    final: str
    text: str
    sent: int = 0
    since: float = 0.0

    @property
    def size(self) -> int:
        """The bytes of what will be sent."""
        return len(self.final.encode()) + len(self.text.encode())


Change = tuple[str, tuple[object, ...]]
"""An SQL statement and its values."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file held.

    Attributes:
        damaged: of the rows that were put aside, the number and what is wrong.
    """

    entries: Sequence[Entry] = ()
    sources: Mapping[str, bool] = field(default_factory=dict)
    damaged: Sequence[tuple[object, str]] = ()


class Spool:
    """The queue of finals, and the sources that were ever heard.

    How long a final has waited is measured by `steady`, which never jumps: a machine that learns the time only once it
    is on the network must not drop all that waits. Only for what an earlier process left is there nothing but `clock`.

    Args:
        path: the file; None keeps all in memory.
        limit: the finals that may wait.
        max_age: the seconds that a final may wait.
        metrics: count what waits and what is dropped.
        clock: returns Unix time.
        saved: called with the id of each final once it is in the file, or at once where there is no file to use.
        steady: returns the seconds of a clock that never jumps.

    Attributes:
        dropped: the finals that a limit cost, or that the broker did not accept.
    """

    def __init__(
        self,
        path: Path | None,
        limit: int,
        max_age: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        saved: Callable[[str], None] = lambda _: None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        self._limit = limit
        self._max_age = max_age
        self._metrics = metrics
        self._clock = clock
        self._steady = steady
        self._entries: dict[str, Entry] = {}  # in order
        self._sources: dict[str, bool] = {}
        self._saved = saved
        self._writer = _Writer(path, self._found, self._snapshot, metrics, saved) if path is not None else None
        self._full = False
        self._bytes = 0  # of those that wait
        metrics.mqtt_oldest.set_function(self._oldest)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def on_disk(self) -> bool:
        """Whether what waits would outlive the process."""
        return self._writer is not None and self._writer.on_disk

    # --- the queue -------------------------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        entry.since = self._steady()
        self._entries[entry.id] = entry
        self._bytes += entry.size
        self._note(_insert(entry))
        if not self.on_disk:
            self._saved(entry.id)
        self._limit_age()
        self._limit_count()
        self._count()

    def first(self) -> Entry | None:
        """Return the oldest final that is not too old."""
        self._limit_age()
        return next(iter(self._entries.values()), None)

    def delivered(self, entry: Entry) -> None:
        """Count one more delivered message of a final, which is forgotten after the last one."""
        entry.sent += 1
        if entry.sent < 2:
            self._note(("UPDATE finals SET sent = ? WHERE id = ?", (entry.sent, entry.id)))
        else:
            self._remove(entry)
            self._count()
        if not self._entries:
            self._full = False

    def put_aside(self, entry: Entry, why: str) -> None:
        """Keep a copy of a final that is given up, for people who look into the file."""
        self.dropped += 1
        self._note((_PUT_ASIDE, (why, entry.id, entry.source, entry.at, entry.final, entry.text, entry.sent)))
        self._note(_TRIM)

    # --- the sources -----------------------------------------------------------------------------------------------

    def sources(self) -> dict[str, bool]:
        """Return the sources that are remembered, and whether each is listened to."""
        return dict(self._sources)

    def remember(self, source: str, listen: bool) -> bool:
        """Remember a source and its switch, and return whether the source is new. No more than 256 are remembered."""
        known = self._sources.get(source)
        if known is listen or (known is None and len(self._sources) >= _MOST_SOURCES):
            return False
        self._sources[source] = listen
        self._note(_remember(source, listen))
        return known is None

    # --- the file --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read what an earlier process left. Whatever goes wrong is logged, and all stays in memory."""
        if self._writer is None:
            return
        await self._writer.open()
        if self._entries:
            _log.info("mqtt: %d finals from before the start wait for the broker", len(self))

    async def run(self) -> None:
        """Keep the file up to date, until cancelled."""
        if self._writer is not None:
            await self._writer.run()

    async def close(self) -> None:
        """Write the last changes to the file."""
        if self._writer is not None:
            await self._writer.close()

    def _found(self, found: _Found) -> None:
        """Put what the file held in front of what came since."""
        for entry in found.entries:
            entry.since = self._steady() - max(0.0, self._clock() - entry.at)
        self._entries = {**{entry.id: entry for entry in found.entries}, **self._entries}
        self._bytes = sum(entry.size for entry in self._entries.values())
        self._sources = {**found.sources, **self._sources}
        self._limit_age()
        self._limit_count()
        self._count()

    def _snapshot(self) -> list[Change]:
        finals = [_insert(entry) for entry in self._entries.values()]
        return finals + [_remember(source, listen) for source, listen in self._sources.items()]

    # --- limits ----------------------------------------------------------------------------------------------------

    def _limit_count(self) -> None:
        while len(self._entries) > self._limit:
            self._remove(next(iter(self._entries.values())))
            self._metrics.mqtt_dropped.inc()
            self.dropped += 1
            if not self._full:
                self._full = True
                _log.warning("mqtt: more than %d finals wait for the broker: dropping the oldest", self._limit)

    def _limit_age(self) -> None:
        oldest = self._steady() - self._max_age
        old = 0
        while (entry := next(iter(self._entries.values()), None)) is not None and entry.since < oldest:
            self._remove(entry)
            old += 1
        if old:
            self._metrics.mqtt_expired.inc(old)
            self.dropped += old
            self._count()
            _log.warning(
                "mqtt: %d finals had waited more than %g s for the broker and were dropped", old, self._max_age
            )

    def _remove(self, entry: Entry) -> None:
        # It may have been dropped by a limit while it was on its way.
        if (gone := self._entries.pop(entry.id, None)) is not None:
            self._bytes -= gone.size
            self._note(("DELETE FROM finals WHERE id = ?", (entry.id,)))

    def _count(self) -> None:
        self._metrics.mqtt_waiting.set(len(self._entries))
        self._metrics.mqtt_waiting_bytes.set(self._bytes)

    def _oldest(self) -> float:
        """Return the seconds that the first has waited; 0 where none waits."""
        entry = next(iter(self._entries.values()), None)
        return 0.0 if entry is None else max(0.0, self._steady() - entry.since)

    def _note(self, change: Change) -> None:
        if self._writer is not None:
            self._writer.note(change)


class _Writer:
    """Carries changes of the queue to the file, in order, in one thread.

    Args:
        path: the file.
        found: called once with what the file held.
        snapshot: returns the changes that make an empty file a full one.
        metrics: count the faults of the file.
        saved: called with the id of each final that the file holds now.
    """

    def __init__(
        self,
        path: Path,
        found: Callable[[_Found], None],
        snapshot: Callable[[], list[Change]],
        metrics: Metrics,
        saved: Callable[[str], None],
    ) -> None:
        self.on_disk = False
        self._saved = saved
        self._path = path
        self._found = found
        self._snapshot = snapshot
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "spool")
        self._saving = asyncio.Lock()
        self._file: sqlite3.Connection | None = None
        self._read = False  # what it held is known
        self._changes: list[Change] = []
        self._stale = False  # the file lacks something: it has to be written anew
        self._complained = False
        self._news = asyncio.Event()

    def note(self, change: Change) -> None:
        if self._stale:
            return
        self._changes.append(change)
        if len(self._changes) > _MOST_CHANGES:
            self._stale = True
            self._changes.clear()
        self._news.set()

    async def open(self) -> None:
        await self._patiently(self._save())

    async def run(self) -> None:
        while True:
            if self.on_disk:
                await self._news.wait()
            else:
                await asyncio.sleep(_RETRY)
            self._news.clear()
            # Shielded: a connection that is being opened when the service ends must not be lost, with the file locked.
            await asyncio.shield(self._save())

    async def close(self) -> None:
        await self._patiently(self._save_and_close())
        self._thread.shutdown(wait=False)

    async def _patiently(self, work: Coroutine[None, None, None]) -> None:
        """Wait for the disk, but not for one that hangs: what was begun goes on, and is taken note of when it ends."""
        task = asyncio.create_task(work)
        _, hanging = await asyncio.wait({task}, timeout=_PATIENCE)
        if hanging:
            self._failed(TimeoutError(f"the disk has not answered for {_PATIENCE:g} s"))

    async def _save(self) -> None:
        async with self._saving:
            try:
                if self._file is None:
                    await self._open()
                elif self._stale:
                    await self._rewrite(self._file)
                elif self._changes:
                    changes, self._changes = self._changes, []
                    await self._write(self._file, changes)
            except (OSError, sqlite3.Error) as error:
                self._failed(error)
                await self._close()

    async def _save_and_close(self) -> None:
        await self._save()
        async with self._saving:
            await self._close()

    async def _open(self) -> None:
        file, found = await self._in_thread(_open, self._path)
        self._file = file
        if found.damaged:
            self._say_damaged(found.damaged)
        if not self._read:
            self._found(found)
            self._read = True
            _log.info("mqtt: finals that wait for the broker are kept in %s", self._path)
        # What came before the file was there is not in it; and the limits may have dropped some of what it held.
        await self._rewrite(file)

    async def _rewrite(self, file: sqlite3.Connection) -> None:
        self._changes.clear()
        self._stale = False
        await self._write(file, [*_EMPTY, *self._snapshot()])
        if self._complained:
            _log.info("mqtt: %s is in use again", self._path)
        self._complained = False
        self._tell(True)

    async def _write(self, file: sqlite3.Connection, changes: Sequence[Change]) -> None:
        await self._in_thread(_apply, file, changes)
        for statement, values in changes:
            if statement == _INSERT:
                self._saved(str(values[0]))

    async def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(sqlite3.Error):
                await self._in_thread(file.close)

    def _failed(self, error: Exception) -> None:
        self._stale = True
        self._changes.clear()
        self._metrics.mqtt_spool_errors.inc()
        self._tell(False)
        if not self._complained:
            _log.error(
                "mqtt: %s cannot be used (%s): finals that wait for the broker stay in memory, and are lost if the "
                "process ends; make room there, or set mqtt.spool to a writable file",
                self._path,
                error,
            )
        self._complained = True

    def _say_damaged(self, damaged: Sequence[tuple[object, str]]) -> None:
        self._metrics.mqtt_spool_damaged.inc(len(damaged))
        named = [f"row {number}: {why}" for number, why in damaged[:_MOST_NAMED]]
        more = f"; and {len(damaged) - _MOST_NAMED} more" if len(damaged) > _MOST_NAMED else ""
        _log.error(
            "mqtt: %d rows of %s are damaged and were moved to its table `aside` (%s%s); the others are delivered: "
            "check the disk for errors",
            len(damaged),
            self._path,
            "; ".join(named),
            more,
        )

    def _tell(self, on_disk: bool) -> None:
        self.on_disk = on_disk
        self._metrics.mqtt_spool_on_disk.set(on_disk)

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


# --- the database: called in the writer's thread ---------------------------------------------------------------------

_EMPTY: tuple[Change, ...] = (("DELETE FROM finals", ()), ("DELETE FROM sources", ()))

_COLUMNS = "id, source, at, final, text, sent"

_INSERT = f"INSERT OR IGNORE INTO finals ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"

_PUT_ASIDE = f"INSERT INTO aside (why, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"

_TRIM: Change = ("DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - ?", (_MOST_ASIDE,))


def _insert(entry: Entry) -> Change:
    values = (entry.id, entry.source, entry.at, entry.final, entry.text, entry.sent)
    return _INSERT, values


def _remember(source: str, listen: bool) -> Change:
    return "INSERT OR REPLACE INTO sources (name, listen) VALUES (?, ?)", (source, int(listen))


def _open(path: Path) -> tuple[sqlite3.Connection, _Found]:
    """Open the database at `path`, or make it, and return it with what it holds.

    One that is damaged is put aside, and another is made of what can be read of it.

    Raises:
        OSError: it cannot be made.
        sqlite3.Error: likewise, or another process has it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        # Of the operational ones, which are the surroundings' fault, this alone says that our own tables are not so.
        if isinstance(error, sqlite3.OperationalError) and _code(error) != sqlite3.SQLITE_ERROR:
            raise
        aside = path.with_name(path.name + ".damaged")
        _log.error("mqtt: %s is damaged (%s) and was moved to %s", path, error, aside)
        for end in ("", "-wal", "-journal"):  # its log is a part of it
            with contextlib.suppress(FileNotFoundError):
                path.with_name(aside.name + end).unlink()
            with contextlib.suppress(FileNotFoundError):
                os.replace(path.with_name(path.name + end), path.with_name(aside.name + end))
        file, _ = _connect(path)
        try:
            rescued = _rescue(aside, file)
            if rescued:
                _log.info("mqtt: recovered %d rows from %s", rescued, aside)
            return file, _read(file)
        except BaseException:
            file.close()
            raise


def _code(error: sqlite3.Error) -> int | None:
    return getattr(error, "sqlite_errorcode", None)


def _connect(path: Path) -> tuple[sqlite3.Connection, _Found]:
    # What was said at home is nobody else's business.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    file = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        file.text_factory = _text
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        (version,) = file.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise sqlite3.OperationalError("it was written by a later version of whisperd")
        _apply(file, [(statement, ()) for statement in _TABLES])
        if file.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages do not fit together")
        return file, _read(file)
    except BaseException:
        file.close()
        raise


def _text(content: bytes) -> str:
    """Return the text of a value. Wrong UTF-8 is no reason not to read the rest: it is seen when the row is judged."""
    return content.decode("utf-8", "surrogateescape")


def _rescue(aside: Path, into: sqlite3.Connection) -> int:
    """Copy what can be read of a damaged file, and return how many rows that is."""
    rescued = 0
    with contextlib.suppress(OSError, sqlite3.Error), contextlib.closing(sqlite3.connect(aside, timeout=1.0)) as file:
        file.text_factory = bytes  # as it is
        for table, columns in (("sources", "name, listen"), ("finals", _COLUMNS)):
            order = " ORDER BY number" if table == "finals" else ""
            places = ", ".join("CAST(? AS TEXT)" if each in _TEXTS else "?" for each in columns.split(", "))
            for row in _until_unreadable(file.execute(f"SELECT {columns} FROM {table} NOT INDEXED{order}")):
                with contextlib.suppress(sqlite3.Error):
                    into.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})", row)
                    rescued += 1
    return rescued


_TEXTS = ("id", "source", "final", "text", "name")


def _until_unreadable(rows: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error):
        yield from rows


def _read(file: sqlite3.Connection) -> _Found:
    """Return what the file holds. Wrong rows are put aside."""
    entries: list[Entry] = []
    sources: dict[str, bool] = {}
    damaged: list[tuple[object, str]] = []
    moves: list[Change] = []
    for number, *row in file.execute(f"SELECT number, {_COLUMNS} FROM finals ORDER BY number"):
        try:
            entries.append(_judged(*row))
        except ValueError as error:
            damaged.append((number, str(error)))
            move = f"INSERT INTO aside (why, {_COLUMNS}) SELECT ?, {_COLUMNS} FROM finals WHERE number = ?"
            moves += [(move, (str(error), number)), ("DELETE FROM finals WHERE number = ?", (number,))]
    for number, name, listen in file.execute("SELECT rowid, name, listen FROM sources"):
        try:
            sources[_level("source", name)] = _one_of((0, 1), "switch", listen) == 1
        except ValueError as error:
            damaged.append((f"{number} of the switches", str(error)))
            move = "INSERT INTO aside (why, source, sent) SELECT ?, name, listen FROM sources WHERE rowid = ?"
            moves += [(move, (str(error), number)), ("DELETE FROM sources WHERE rowid = ?", (number,))]
    if moves:
        _apply(file, [*moves, _TRIM])
    return _Found(entries, sources, damaged)


def _judged(id: object, source: object, at: object, final: object, text: object, sent: object) -> Entry:
    """Return a row as an entry.

    Raises:
        ValueError: the row was not written so; says what is wrong with it.
    """
    if not isinstance(at, int | float) or not math.isfinite(at):
        raise ValueError("its time is invalid")
    entry = Entry(
        _name("id", id), _level("source", source), float(at), _whole("final", final), _whole("text", text),
        _one_of((0, 1), "count of what was delivered", sent),
    )  # fmt: skip
    try:
        content = json.loads(entry.final)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError("its final is not a JSON object")
    for key, value in (("id", entry.id), ("source", entry.source), ("text", entry.text)):
        if content.get(key, value) != value:
            raise ValueError(f"its final has a different {key}")
    return entry


def _whole(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {what} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"its {what} is not UTF-8") from None
    return value


def _name(what: str, value: object) -> str:
    name = _whole(what, value)
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"its {what} is not a valid name")
    return name


def _level(what: str, value: object) -> str:
    """Return a name that becomes one level of what finals are sent under."""
    name = _name(what, value)
    if set(name) & set("/+#"):
        raise ValueError(f"its {what} is not a valid name")
    return name


def _one_of(values: tuple[int, ...], what: str, value: object) -> int:
    if not isinstance(value, int) or value not in values:
        raise ValueError(f"its {what} is invalid")
    return value


def _apply(file: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Apply all changes, or none."""
    file.execute("BEGIN IMMEDIATE")
    try:
        for statement, values in changes:
            file.execute(statement, values)
        file.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            file.execute("ROLLBACK")
        raise
