"""How late the event loop is: what everything that it does has to wait for.

Owns the measurement. Knows nothing of what the loop does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_EVERY = 0.1


async def watch_loop(late: Callable[[float], None]) -> None:
    """Call `late` ten times a second, with the seconds by which the loop woke this up too late, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _EVERY
        await asyncio.sleep(_EVERY)
        late(max(0.0, loop.time() - due))
