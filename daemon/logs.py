"""Where log lines go, and how they look: standard error, with a time for people or a priority for the journal.

Owns the root logger's handler and its level, and the secrets that no line may hold. Knows nothing of who logs.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from urllib.parse import quote

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""syslog's numbers, which the journal reads from the beginning of a line (sd-daemon(3))."""


_HIDDEN = "***"


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


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _secrets.struck_out(super().format(record))


class _JournalFormatter(_Formatter):
    """`<3>name: text`. The journal has the time, and takes each line of a traceback for a message of its own."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines() or [""])


def to_stderr(level: str, journal: str | None = None) -> None:
    """journal: the value of JOURNAL_STREAM, device and inode of the stream that leads into the journal."""
    handler = logging.StreamHandler(sys.stderr)
    if journal is not None and journal == _stream_of(sys.stderr.fileno()):
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    set_level(level)


def hide(secrets: Iterable[str]) -> None:
    """From now on no line holds one of these."""
    _secrets.hide(secrets)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def _stream_of(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"
