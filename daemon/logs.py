"""Where log lines go, and how they look: standard error, with a time for people or a priority for the journal.

Owns the root logger's handler and its level. Knows nothing of who logs.
"""

from __future__ import annotations

import logging
import os
import sys

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""syslog's numbers, which the journal reads from the beginning of a line (sd-daemon(3))."""


class _JournalFormatter(logging.Formatter):
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
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    set_level(level)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


def _stream_of(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"
