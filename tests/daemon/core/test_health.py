"""When an engine counts as hanging. In a service: `test_websocket.py`, `test_sd_notify.py`."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.common.metrics import Metrics
from daemon.core.health import Health

INTERVAL, STALL = 30.0, 60.0


@pytest.mark.parametrize(
    ("busy", "silent", "elsewhere", "well"),
    [
        (50.0, 50.0, False, True),
        (70.0, 1.0, False, False),  # one of several engines of its own hangs
        (70.0, 1.0, True, True),  # a batch waits for a cluster, which decodes others
        (70.0, 70.0, True, False),  # nothing comes back from it
        (None, 70.0, True, True),  # nothing was asked for, until the canary is due
        (None, 100.0, True, False),
    ],
)
def test_what_hangs(busy: float | None, silent: float, elsewhere: bool, well: bool) -> None:
    """busy: seconds since the oldest batch began that runs. silent: seconds since anything was decoded."""
    now = time.monotonic()
    scheduler: Any = SimpleNamespace(busy_since=busy and now - busy, decoded_at=now - silent)
    health = Health(scheduler, INTERVAL, STALL, Metrics(), elsewhere=elsewhere)
    assert health.getting_on is well
