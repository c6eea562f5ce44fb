"""Where log lines go, and how they look: standard error, as text or as JSON, with a priority for the journal.

Owns the handler and the level of the root logger, the context of each task (the source and session of its stream, which
each of its lines names), the secrets that no line may contain, and the limits on the length and the number of lines.
Knows nothing of the modules that log.

The code that logs does not mention streams. `bind_log_context` is called once, where a stream begins. It holds for that
task, for the tasks that it starts, and for whatever runs in a copy of its context.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
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


def bind_log_context(*, source: str | None = None, session: str | None = None) -> None:
    """Name the source and the session in all later log lines of this task and of the tasks that it starts.

    None leaves what was bound before.
    """
    names = {"source": source, "session": session}
    _subject.set({**_subject.get(), **{name: value for name, value in names.items() if value is not None}})


@contextlib.contextmanager
def log_context(*, source: str | None = None) -> Iterator[None]:
    """Name the source in the log lines of a block, and return to the earlier context after it."""
    token = _subject.set(_subject.get())
    try:
        bind_log_context(source=source)
        yield
    finally:
        _subject.reset(token)


_LONG = 8
"""Characters of a secret that is struck out wherever it stands; a shorter one is also part of many words."""
_HEAD = 16
"""Characters from a secret's beginning that are struck out too: somebody may have cut it before it came here."""

CLIENT_SECRET = "ek_"
"""How secrets begin that the service hands out (see `client_secrets`). They are known by their form, not one by one.

OpenAI's begin so too: its client takes no others in a browser without being told that this is meant."""
_CLIENT_SECRETS = re.compile(rf"(?<![A-Za-z0-9]){CLIENT_SECRET}[\w-]{{8,}}", re.ASCII)


class _Secrets:
    """Removes secrets from every line, no matter where it comes from.

    That may be a library, a traceback, or a client that put a secret in the wrong place. This is the last safeguard:
    our own code never logs a secret on purpose, and never cuts a text that may contain one (see `shortened`).
    """

    def __init__(self) -> None:
        self._whole: re.Pattern[str] | None = None
        self._heads: re.Pattern[str] | None = None
        self._of: dict[str, list[str]] = {}  # by their heads

    def hide(self, secrets: Iterable[str]) -> None:
        forms = {form for each in secrets if each for form in _written(each)}
        longest_first = sorted(forms, key=len, reverse=True)
        found = [
            re.escape(form) if len(form) >= _LONG else rf"(?<!\w){re.escape(form)}(?!\w)" for form in longest_first
        ]
        self._whole = re.compile("|".join(found)) if found else None
        self._of = {}
        for form in longest_first:
            if len(form) > _HEAD:
                self._of.setdefault(form[:_HEAD], []).append(form)
        self._heads = re.compile("|".join(map(re.escape, self._of))) if self._of else None

    def struck_out(self, text: str) -> str:
        text = _CLIENT_SECRETS.sub(_HIDDEN, text)
        if self._whole is not None:
            text = self._whole.sub(_HIDDEN, text)
        if self._heads is not None:
            at = 0
            while (head := self._heads.search(text, at)) is not None:
                length = max(_in_common(form, text, head.start()) for form in self._of[head[0]])
                text = text[: head.start()] + _HIDDEN + text[head.start() + length :]
                at = head.start() + len(_HIDDEN)
        return text


def _written(secret: str) -> Iterator[str]:
    """Yield all forms in which a secret may appear."""
    yield from (secret, quote(secret, safe=""), quote(secret), ascii(secret)[1:-1], json.dumps(secret)[1:-1])


def _anywhere(form: str) -> str:
    found = re.escape(form)
    return found if len(form) >= _LONG else rf"(?<!\w){found}(?!\w)"


def _in_common(form: str, text: str, at: int) -> int:
    """Return how many characters of `form` are in `text` from `at` on."""
    return next((i for i, char in enumerate(form) if text[at + i : at + i + 1] != char), len(form))


_secrets = _Secrets()


def shortened(text: str, most: int) -> str:
    """Return `text`, cut to `most` characters, for an error or a log line.

    Everything that cuts a text cuts it with this: secrets are removed first, because half of one is not recognised any
    more.
    """
    # What is far behind is not looked at: it does not come near what is shown.
    text = _secrets.struck_out(text[: most + 4096])
    return text if len(text) <= most else text[: most - 3] + "..."


# --- how a line looks ------------------------------------------------------------------------------------------------

_LONGEST = 16384
"""Characters of a line, an exception with its traceback included."""


def _bounded(text: str) -> str:
    text = _secrets.struck_out(text)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters were left out) ...\n{text[-half:]}"


class _Text(logging.Formatter):
    """Formats lines for people: `... name: [source session] text`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        if subject := " ".join(_subject.get().values()):
            record.message = f"[{subject}] {record.message}"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return _bounded(super().format(record))


class _Json(logging.Formatter):
    """Formats lines for programs: an object a line. An exception with its traceback is one text in it."""

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
        return json.dumps({name: _bounded(str(value)) for name, value in fields.items()})


class _Prioritised(logging.Formatter):
    """Puts `<3>` before each line. The journal has the time, and takes each line for a message of its own."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self._formatter.format(record).split("\n"))


_BURST = 256 * 1024
_RATE = 4 * 1024
"""Bytes of lines from one place in the program, at once and each second from then on. Whatever somebody drives who has
all the time in the world fills no disk; and nobody else's lines are left out for it."""


class _Budgets:
    """What each place in the program may still log."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, int], _Budget] = {}  # as many as there are lines that log

    def of(self, record: logging.LogRecord) -> _Budget:
        return self._places.setdefault((record.pathname, record.lineno), _Budget())


class _Budget:
    def __init__(self) -> None:
        self.left_out = 0
        self._left = float(_BURST)
        self._at = time.monotonic()

    def take(self, size: int) -> bool:
        now = time.monotonic()
        self._left, self._at = min(_BURST, self._left + _RATE * (now - self._at)), now
        if self._left < size:
            self.left_out += 1
            return False
        self._left -= size
        return True


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg] # it is generic for checkers alone
    """Writes log lines to standard error.

    Args:
        journal: whether standard error leads into the journal.
    """

    def __init__(self, journal: bool) -> None:
        super().__init__(sys.stderr)
        self._journal = journal
        self._budgets = _Budgets()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            budget = self._budgets.of(record)
            if not budget.take(len(text)) and record.levelno < logging.CRITICAL:
                return
            if budget.left_out:
                text = f"{self.format(_left_out(record, budget.left_out))}{self.terminator}{text}"
                budget.left_out = 0
            self.stream.write(text + self.terminator)
            self.flush()
        except Exception:
            self.handleError(record)

    def use(self, format: Format) -> None:
        text = _Text("%(name)s: %(message)s" if self._journal else "%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        formatter = _Json() if format == "json" else text
        self.setFormatter(_Prioritised(formatter) if self._journal else formatter)


def _left_out(record: logging.LogRecord, number: int) -> logging.LogRecord:
    message = "%d lines like the next one were left out: there were too many"
    return logging.LogRecord(record.name, logging.WARNING, record.pathname, record.lineno, message, (number,), None)


def to_stderr(level: str, journal: str | None = None, format: Format = "text") -> None:
    """Log to standard error, with Python's warnings and uncaught exceptions.

    Args:
        level: the lowest level that is logged, such as `info`.
        journal: the value of JOURNAL_STREAM: device and inode of the stream that leads into the journal.
        format: how lines look.
    """
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
    """Log Python's warnings and uncaught exceptions too."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    exception = error if error is not None else kind()
    logging.getLogger("whisperd").critical("uncaught exception", exc_info=(kind, exception, trace))


def hide(secrets: Iterable[str]) -> None:
    """Remove these secrets from all later log lines, in place of those that were given before."""
    _secrets.hide(secrets)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def _stream_of(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"
