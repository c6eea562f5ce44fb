"""What an interrupt from the terminal does to a command that has several processes.

Owns the handling of the signal. It reaches every process of a command, and only the first of them is to answer it.
Knows nothing of what is interrupted.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deaf_children() -> Iterator[None]:
    """Make processes that start within the block ignore interrupts, from their first moment on.

    Until the block ends, this process ignores them too.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupt:
    """An interrupt that was put off.

    Attributes:
        asked: whether an interrupt came.
    """

    asked = False


@contextmanager
def interrupt_put_off() -> Iterator[Interrupt]:
    """Note an interrupt and raise it at the end of the block, so that what must not be torn ends first.

    A second interrupt is raised at once.

    Yields:
        An object that tells within the block whether an interrupt came.

    Raises:
        KeyboardInterrupt: an interrupt came.
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
