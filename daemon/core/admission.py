"""What clients find behind the listening ports: streams, subscriptions, and which sources there are.

Owns who is admitted: nobody before the engine is warm, and nobody while finals wait too long. Knows no port and no
protocol; microphones, which are always heard, open their streams at the pipeline itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from daemon.common.errors import Fault
from daemon.common.sources import check_name
from daemon.core.hub import Outbox
from daemon.core.pipeline import Pipeline
from daemon.core.stream import Model, Stream
from streaming.events import Start


class Gateway:
    """As `daemon.endpoints.websocket` and `daemon.endpoints.wyoming` ask for it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def open_stream(self, start: Start) -> Stream:
        if start.source is not None:
            start = replace(start, source=check_name(start.source))
        await self._pipeline.wait_model()
        self._admit()
        return self._pipeline.open_stream(start)

    def _admit(self) -> None:
        """Nobody new while those who are here wait too long for their finals: one more would only make all wait longer.

        For clients alone; microphones are the machine's own, and are always heard.

        Raises:
            Fault: `busy`.
        """
        wait, limit = self._pipeline.scheduler.final_wait, self._pipeline.settings.scheduler.longest_wait
        if wait > limit:
            raise Fault(
                "busy",
                f"finals wait for {wait:.1f} s (scheduler.longest_wait is {limit:g}): try again later",
                fatal=True,
            )

    async def wait_model(self) -> Model:
        return await self._pipeline.wait_model()

    def subscribe(self, source: str | None, since: int | None, may_read: Callable[[str], bool] | None = None) -> Outbox:
        return self._pipeline.hub.subscribe(source, since, may_read)

    def sources(self, may_read: Callable[[str], bool]) -> bytes:
        """Those that may be read, as JSON: what a subscriber must know to ask for the finals that it has not got."""
        newest = self._pipeline.hub.newest_finals()
        states = dict.fromkeys(newest, "idle") | self._pipeline.sources.states()
        listed = [{"source": name, "state": state, "final": newest.get(name, 0)}
                  for name, state in states.items() if may_read(name)]  # fmt: skip
        return json.dumps({"run": self._pipeline.hub.run, "sources": listed}).encode()
