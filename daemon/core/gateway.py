"""The core, as the ports see it.

A new stream waits for the engine, and is refused while finals wait too long. Owns that refusal (`busy`), and the list
of sources as clients read it. Knows no port and no protocol. Microphones are always heard, so they open their streams
at the pipeline itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from daemon.common.errors import Fault
from daemon.common.sources import check_name
from daemon.core.hub import Outbox
from daemon.core.neighbours import ModelInfo
from daemon.core.pipeline import Pipeline
from daemon.core.stream import Stream
from streaming.events import LongFormMethod, Start


class Gateway:
    """All that the listening ports ask the core for."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def open_stream(self, start: Start) -> Stream:
        if start.source is not None:
            start = replace(start, source=check_name(start.source))
        await self._pipeline.wait_model()
        self._admit()
        return self._pipeline.open_stream(start)

    @property
    def long_form(self) -> LongFormMethod:
        """How files are cut."""
        return self._pipeline.settings.files.long_form

    def _admit(self) -> None:
        """Refuse a new client while the others wait too long for their finals.

        One more would only make all of them wait longer. Microphones do not pass here: they are the machine's own, and
        are always heard.

        While models that were put away are loaded again, all wait for them, and no more because of one more.

        Raises:
            Fault: `busy`.
        """
        wait, limit = self._pipeline.scheduler.final_wait, self._pipeline.settings.scheduler.longest_wait
        if wait > limit and not self._pipeline.waking:
            raise Fault(
                "busy",
                f"finals have waited {wait:.1f} s (scheduler.longest_wait is {limit:g}): try again later",
                fatal=True,
            )

    async def wait_model(self) -> ModelInfo:
        return await self._pipeline.wait_model()

    def subscribe(self, source: str | None, since: int | None, may_read: Callable[[str], bool] | None = None) -> Outbox:
        return self._pipeline.hub.subscribe(source, since, may_read)

    def sources(self, may_read: Callable[[str], bool]) -> bytes:
        """Return the sources that a client may read, as JSON.

        It has what a subscriber needs to ask for the finals that it missed: the run, and the seq of each source's
        newest final; and whether the models were put away.
        """
        newest = self._pipeline.hub.newest_finals()
        states = dict.fromkeys(newest, "idle") | self._pipeline.sources.states()
        listed = [{"source": name, "state": state, "final": newest.get(name, 0)}
                  for name, state in states.items() if may_read(name)]  # fmt: skip
        asleep = {"asleep": True} if self._pipeline.asleep else {}
        return json.dumps({"run": self._pipeline.hub.run, **asleep, "sources": listed}).encode()
