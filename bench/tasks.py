"""What became of tasks that ran at once."""

from __future__ import annotations


def first_error(error: BaseException) -> BaseException:
    """What went wrong in one of several tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
