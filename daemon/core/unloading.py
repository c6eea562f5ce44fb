"""Puts the models away when nobody has spoken for a while, and gives their memory back.

Owns the moment. Knows nothing of how models are put away, or loaded again: the first job after it does that.
"""

from __future__ import annotations

import asyncio
import logging
import time

from daemon.core.pipeline import Pipeline

_log = logging.getLogger(__name__)

_CHECKS = 20
"""How often it is looked at within the time that must pass."""


async def unload_when_idle(pipeline: Pipeline, after: float) -> None:
    """Put the models away whenever no speech was decoded for `after` seconds, until cancelled.

    Args:
        pipeline: has the models.
        after: seconds. A running batch counts as speech, the canary does not.
    """
    scheduler, began = pipeline.scheduler, time.monotonic()
    while True:
        await asyncio.sleep(after / _CHECKS)
        idle = time.monotonic() - max(began, scheduler.used_at or began)
        if idle >= after and scheduler.busy_since is None and not (pipeline.asleep or pipeline.waking):
            await pipeline.unload()
            _log.info("nobody has spoken for %.0f s: the models are put away until somebody does", idle)
