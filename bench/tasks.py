"""Tasks that run at once.

Owns running them beside something else, and the search for the cause of a failure.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Run all of it for as long as the block runs, however far it gets; whether it failed is not asked."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_until(condition: Callable[[], object | Awaitable[object]], seconds: float, every: float = 0.1) -> bool:
    """Wait for what has no event to wait for: in another process or thread. Return whether it came in time."""
    deadline = time.monotonic() + seconds
    while True:
        met = condition()
        if await met if inspect.isawaitable(met) else met:
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every)


def first_error(error: BaseException) -> BaseException:
    """Return what went wrong in one of several tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
