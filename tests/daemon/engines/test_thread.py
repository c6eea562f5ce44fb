"""The thread of an engine: what is asked of it, in order."""

from __future__ import annotations

import threading

from daemon.engines.thread import EngineThread


async def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    thread, free = EngineThread(), threading.Event()
    begun: list[int] = []
    thread.submit(free.wait)
    given_up, wanted = thread.submit(begun.append, 1), thread.submit(begun.append, 2)
    given_up.cancel()
    free.set()
    await wanted
    assert begun == [2]
    thread.close()
