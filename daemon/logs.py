"""Where log lines go, and how they look: standard error, as text or as JSON, with a priority for the journal.

Owns the root logger's handler and its level, what a task speaks of (its stream's session and source, which each of its
lines then names), and the secrets that no line may hold. Knows nothing of who logs.

Who logs says nothing of streams: `speak_of` is called once, where a stream begins, and holds for the task that began
it, for tasks that this one begins, and for what the scheduler does on the stream's behalf.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Literal
from urllib.parse import quote

Format = Literal["text", "json"]

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""syslog's numbers, which the journal reads from the beginning of a line (sd-daemon(3))."""

_HIDDEN = "***"

_subject: ContextVar[Mapping[str, str]] = ContextVar("subject", default=MappingProxyType({}))


def speak_of(*, source: str | None = None, session: str | None = None) -> None:
    """From now on each line of this task names these, and so do the lines of tasks that it begins."""
    names = {"source": source, "session": session}
    _subject.set({**_subject.get(), **{name: value for name, value in names.items() if value is not None}})


@contextlib.contextmanager
def speaking_of(*, source: str | None = None) -> Iterator[None]:
    """The same within a block; behind it the task speaks of what it spoke of before."""
    token = _subject.set(_subject.get())
    try:
        speak_of(source=source)
        yield
    finally:
        _subject.reset(token)


class _Secrets:
    """What is struck out of every line, whoever wrote it: a library, a traceback, a client that put it in the wrong
    place. It is a last net: nothing of ours writes one on purpose."""

    def __init__(self) -> None:
        self._pattern: re.Pattern[str] | None = None

    def hide(self, secrets: Iterable[str]) -> None:
        forms = {form for each in secrets if each for form in (each, quote(each, safe=""), ascii(each)[1:-1])}
        # As a word of its own: a short one is also part of many words.
        found = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{found})(?!\w)") if found else None

    def struck_out(self, text: str) -> str:
        return self._pattern.sub(_HIDDEN, text) if self._pattern is not None else text


_secrets = _Secrets()


class _Text(logging.Formatter):
    """`... name: [source session] text`, for people."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        if subject := " ".join(_subject.get().values()):
            record.message = f"[{subject}] {record.message}"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return _secrets.struck_out(super().format(record))


class _Json(logging.Formatter):
    """One object a line, for programs; an exception with its traceback is one text in it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_subject.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        # Before it is JSON, in which a secret may be written in other ways. In ASCII: whatever the terminal's encoding,
        # and whatever a reader takes for the end of a line, it parses.
        return json.dumps({name: _secrets.struck_out(value) for name, value in fields.items()})


class _Prioritised(logging.Formatter):
    """`<3>...` before each line. The journal has the time, and takes each line for a message of its own."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self._formatter.format(record).split("\n"))


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg] # it is generic for checkers alone
    """journal: whether it leads into the journal."""

    def __init__(self, journal: bool) -> None:
        super().__init__(sys.stderr)
        self._journal = journal

    def use(self, format: Format) -> None:
        text = _Text("%(name)s: %(message)s" if self._journal else "%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        formatter = _Json() if format == "json" else text
        self.setFormatter(_Prioritised(formatter) if self._journal else formatter)


def to_stderr(level: str, journal: str | None = None, format: Format = "text") -> None:
    """journal: the value of JOURNAL_STREAM, device and inode of the stream that leads into the journal."""
    handler = _Stderr(journal is not None and journal == _stream_of(sys.stderr.fileno()))
    handler.use(format)
    logging.basicConfig(handlers=[handler])
    set_level(level)
    _catch_what_others_print()


def set_format(format: Format) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stderr):
            handler.use(format)


def _catch_what_others_print() -> None:
    """Python's warnings, and the exceptions that nobody caught, are lines of the log as well."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda told: _log_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    exception = error if error is not None else kind()
    logging.getLogger("whisperd").critical("an error that nobody caught", exc_info=(kind, exception, trace))


def hide(secrets: Iterable[str]) -> None:
    """From now on no line holds one of these."""
    _secrets.hide(secrets)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def _stream_of(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"
