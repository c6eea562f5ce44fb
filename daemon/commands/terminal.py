"""Events as lines for people and pipes.

Owns what `transcribe` and `listen` print. Knows nothing of where the events come from.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import AsyncIterable, Callable
from typing import TextIO

from streaming.events import Error, Event, Final, Notice, Partial, SpeechStarted, to_json

Show = Callable[[Event], None]


class TerminalLines:
    """Prints one event a line: as JSON, or its text. Errors go to standard error.

    Args:
        write: prints one line. Where there is a progress bar, it is the bar's own way of printing.
        json: whether lines are JSON.
        partials: whether partials are printed too.

    Attributes:
        failed: whether an error was among the events.
    """

    def __init__(self, write: Callable[[str], None], *, json: bool, partials: bool) -> None:
        self.failed = False
        self._write = write
        self._json = json
        self._partials = partials

    def show(self, event: Event) -> None:
        if isinstance(event, Error):
            self.failed = True
            print(f"whisperd: {event.source or ''}: {event.message}", file=sys.stderr)
        elif isinstance(event, Notice):
            print(f"whisperd: {event.source}: {event.message}", file=sys.stderr)
        elif self._json:
            if isinstance(event, Final) or (self._partials and hasattr(event, "source")):
                self._write(to_json(event))
        elif isinstance(event, Final):
            self._write(event.text)
        elif isinstance(event, Partial) and self._partials:
            self._write(f"~ {event.stable}{event.tail}")


class Live:
    """Prints one line that grows while somebody speaks, and stays when it is final. The tail, which can change, is dim.

    Where the output is no terminal, only finals are printed.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()

    def show(self, event: Event) -> None:
        match event:
            case Final(text=text):
                self._print(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
            case Partial(stable=stable, tail=tail) if self._terminal:
                stable, tail = _fit(stable, tail, shutil.get_terminal_size().columns - 1)
                self._print(f"\r\x1b[K{stable}\x1b[2m{tail}\x1b[0m")
            case SpeechStarted() if self._terminal:
                self._print("\r\x1b[K")  # what was taken for speech and came to nothing may still stand there
            case Error(message=message) | Notice(message=message):
                print(f"whisperd: {message}", file=sys.stderr)

    def _print(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _fit(stable: str, tail: str, columns: int) -> tuple[str, str]:
    """Return both as they fit into one line: what does not fit loses its beginning."""
    text = stable + tail
    begin = len(text)
    while begin and (columns := columns - _columns(text[begin - 1])) >= 0:
        begin -= 1
    settled = max(begin, len(stable))
    return text[begin:settled], text[settled:]


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


async def show_all(events: AsyncIterable[Event], show: Show) -> None:
    """Show events until they end."""
    async for event in events:
        show(event)
