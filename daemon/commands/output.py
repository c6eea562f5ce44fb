"""Standard output, as the commands print to it.

Owns its encoding, when it is flushed, and which errors are its own: a failure of another file must not pass for one of
them. Knows nothing of what is printed.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


class OutputError(Exception):
    """Standard output cannot be written to; the message says why.

    Attributes:
        unread: whether that is because the reader has seen enough, which is no news to anybody.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.unread = error.errno == errno.EPIPE


class _Output(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from None


@contextmanager
def standard_output() -> Iterator[None]:
    """Send what is printed within a block to standard output, a line at a time.

    It is UTF-8, as JSON must be, whatever the locale; a terminal has its own encoding. What that lacks is escaped.

    Raises:
        OutputError: from each print, if standard output cannot be written to.
    """
    if sys.stdout is None:  # it was closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
    out = _Output(sys.stdout.buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)
    try:
        with redirect_stdout(out):
            yield
    finally:
        out.detach()  # the file below is not ours to close


def give_up_output() -> None:
    """Drop what was not written: Python would fail once more when it closes standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
