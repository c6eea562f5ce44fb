"""An interrupt from the terminal goes to every process of a command; only the first of them shall answer it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes begun within hear no interrupt, from their first moment on. For a moment, nor does this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupt:
    """asked: whether an interrupt came."""

    asked = False


@contextmanager
def interrupt_put_off() -> Iterator[Interrupt]:
    """An interrupt is noted, and raised at the end of the block: what must not be torn ends first. A second one is
    raised at once.
    """
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as in the background of a shell: it stays unheard
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt.asked:
        raise KeyboardInterrupt
