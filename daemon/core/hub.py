"""Fan-out: the events of streams, to everybody who listens.

Owns the numbering of a source's partials and finals, the ids of finals, the finals kept for a reconnect, that a final
is told only once its keeper has kept it (`keep_first`), and the policy for slow subscribers. Every subscriber has a
bounded queue of its own. A newer partial of an utterance replaces the older, and its final replaces both. A full queue
gives up partials, and nothing else is ever dropped. A subscriber whose queue is full of other events is too far behind,
and its queue ends. Knows nothing of sockets, topics or audio.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from daemon.common.metrics import Metrics
from streaming.events import Error, Event, Final, Partial

_E = TypeVar("_E", Partial, Final)

_KEEPING = 0.5
"""Seconds that a final waits to be kept before others are told of it. A disk takes a thousandth of that; one that hangs
must not silence the house."""

_MOST_UNKEPT = 1024

_MOST_SOURCES = 1024
"""Sources whose finals are kept; beyond that the one that has been silent for the longest is forgotten."""


class Outbox:
    """One subscriber's queue: many put, one takes.

    Args:
        limit: the events that may wait.
        metrics: count the partials that are replaced.
        forget: called once, when it is closed.
        before: awaited with each event before it is given.

    Attributes:
        overflowed: whether it was full of what must not be dropped. Then it takes nothing more, and gives nothing more.
        closed: whether it takes nothing more. What is in it is still given.
    """

    def __init__(
        self,
        limit: int,
        metrics: Metrics,
        forget: Callable[[Outbox], None],
        before: Callable[[Event], Awaitable[None]] | None = None,
    ) -> None:
        self.overflowed = False
        self.closed = False
        self._limit = limit
        self._metrics = metrics
        self._forget = forget
        self._before = before
        self._items: OrderedDict[Hashable, Event] = (
            OrderedDict()
        )  # a partial under its utterance, others under a number
        self._count = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, event: Event, stream: str = "") -> None:
        """Add an event, unless the outbox is closed or has overflowed.

        Args:
            event: replaces the partial of its utterance, if it is a newer partial or the final.
            stream: the id of the stream, which tells apart the utterances of streams whose sources have one name.
        """
        if self.closed or self.overflowed:
            return
        if isinstance(event, Partial | Final):
            self._supersede(stream, event.utterance)
        if len(self._items) >= self._limit and not self._drop_a_partial():
            if isinstance(event, Partial):
                self._metrics.partials_thinned.inc()
                return
            self.overflowed = True
            self._items.clear()
        else:
            self._count += 1
            self._items[(stream, event.utterance) if isinstance(event, Partial) else self._count] = event
        self._changed.set()

    def close(self) -> None:
        """Take nothing more. What is in it is still given."""
        if not self.closed:
            self.closed = True
            self._forget(self)
            self._changed.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events in order, until the outbox is closed and empty, or overflows.

        The reader may be cancelled, and another may go on: an event that was not given is still here.
        """
        while True:
            while self._items:
                key, event = next(iter(self._items.items()))
                if self._before is not None:
                    await self._before(event)
                if self._items.pop(key, None) is not None:  # it did not overflow meanwhile
                    yield event
            if self.closed or self.overflowed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _supersede(self, stream: str, utterance: int) -> None:
        if self._items.pop((stream, utterance), None) is not None:
            self._metrics.partials_thinned.inc()

    def _drop_a_partial(self) -> bool:
        oldest = next((key for key, event in self._items.items() if isinstance(event, Partial)), None)
        if oldest is None:
            return False
        del self._items[oldest]
        self._metrics.partials_thinned.inc()
        return True


@dataclass(slots=True)
class _Past:
    """What is known of a source: how far it has counted, and its last finals."""

    finals: deque[Final]
    seq: int = 0
    forgotten: int = 0  # seq of the newest final that is not kept any more


@dataclass(slots=True, eq=False)
class _Subscription:
    outbox: Outbox
    source: str | None = None
    streams: tuple[str, ...] | None = None
    may_read: Callable[[str], bool] | None = None

    def wants(self, source: str | None, stream: str) -> bool:
        if self.streams is not None:
            return stream in self.streams
        if self.may_read is not None and not (source is not None and self.may_read(source)):
            return False
        return self.source is None or source == self.source


@dataclass(slots=True, eq=False)
class Hub:
    """Gives the events of streams to subscribers.

    Attributes:
        queue: the events that a subscriber may be behind.
        keep: the finals kept of each source.
        last_final_at: when a final was last published (`time.monotonic`); None before the first.
        on_final: called with each final as it is published.
        run: tells this numbering from that of another run of the service.
    """

    queue: int
    keep: int
    metrics: Metrics
    last_final_at: float | None = None
    on_final: Callable[[Final], None] = lambda _: None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    _subscriptions: dict[Outbox, _Subscription] = field(default_factory=dict)
    _past: OrderedDict[str, _Past] = field(default_factory=OrderedDict)
    _keeps: bool = False
    _unkept: OrderedDict[str, asyncio.Event] = field(default_factory=OrderedDict)

    def keep_first(self) -> Outbox:
        """Subscribe the keeper of finals, which receives all that is published.

        From now on the others are given a final only once it is `kept`, so that what anybody was told outlives a kill.
        None of them waits for longer than half a second.
        """
        self._keeps = True
        outbox = Outbox(self.queue, self.metrics, self._forget)
        self._attach(_Subscription(outbox))
        return outbox

    def kept(self, id: str) -> None:
        """Note that the final `id` will outlive this process, or that this is impossible."""
        if (waiting := self._unkept.pop(id, None)) is not None:
            waiting.set()

    def subscribe(
        self, source: str | None = None, since: int | None = None, may_read: Callable[[str], bool] | None = None
    ) -> Outbox:
        """Subscribe to all that is published from now on.

        A subscriber that reconnects with the last seq that it saw loses nothing and gets nothing twice, as long as its
        finals are kept. If some are not, an error event says so first.

        Args:
            source: the source to hear; None for all of them.
            since: the last seq that the subscriber saw of `source`: it gets the finals after it first. If the source
                has not reached it, it is from before a restart, and all finals that are kept are new.
            may_read: says which sources the subscriber may read; None if all.
        """
        outbox = self._outbox()
        if source is not None and since is not None:
            self._replay(outbox, source, since)
        self._attach(_Subscription(outbox, source=source, may_read=may_read))
        return outbox

    def follow(self, *streams: str) -> Outbox:
        """Subscribe a stream's own client to that stream alone, by the ids of its channels.

        What else is put into the outbox reaches it too.
        """
        outbox = self._outbox()
        self._attach(_Subscription(outbox, streams=streams))
        return outbox

    def newest_finals(self) -> dict[str, int]:
        """Return the seq of the newest final that is kept of each source, 0 for none."""
        return {source: past.finals[-1].seq if past.finals else 0 for source, past in self._past.items()}

    def close(self) -> None:
        """Close all outboxes: subscribers get what is in them, and nothing more."""
        for outbox in list(self._subscriptions):
            outbox.close()

    def publish(self, event: Event, stream: str) -> None:
        """Send an event to all who want it. A partial or final gets its seq here, a final also its id and its time.

        Args:
            event: what the stream says.
            stream: the id of the stream.
        """
        source: str | None = getattr(event, "source", None)
        if isinstance(event, Partial):
            event = self._numbered(event)
            self.metrics.partials.inc()
            self.metrics.partial_lag.observe(event.lag_ms / 1000)
        elif isinstance(event, Final):
            event = replace(self._numbered(event), id=f"{stream}-{event.utterance}", at=round(time.time(), 3))
            self._keep(event)
            self._await_keeping(event)
            self.last_final_at = time.monotonic()
            self.on_final(event)
            self.metrics.finals.labels(event.model).inc()
            self.metrics.final_latency.observe(event.latency_ms / 1000)
        elif isinstance(event, Error):
            self.metrics.errors.labels(event.code).inc()
        for subscription in list(self._subscriptions.values()):
            if subscription.wants(source, stream):
                subscription.outbox.put(event, stream)

    def _outbox(self) -> Outbox:
        return Outbox(self.queue, self.metrics, self._forget, self._wait_kept)

    def _await_keeping(self, final: Final) -> None:
        if self._keeps and final.id is not None:
            self._unkept[final.id] = asyncio.Event()
            if len(self._unkept) > _MOST_UNKEPT:
                self.kept(next(iter(self._unkept)))

    async def _wait_kept(self, event: Event) -> None:
        if not isinstance(event, Final) or event.id is None or (waiting := self._unkept.get(event.id)) is None:
            return
        try:
            async with asyncio.timeout(_KEEPING):
                await waiting.wait()
        except TimeoutError:
            self.kept(event.id)  # for the others too

    def _forget(self, outbox: Outbox) -> None:
        del self._subscriptions[outbox]
        self.metrics.subscribers.dec()

    def _attach(self, subscription: _Subscription) -> None:
        self._subscriptions[subscription.outbox] = subscription
        self.metrics.subscribers.inc()

    def _numbered(self, event: _E) -> _E:
        past = self._past_of(event.source)
        past.seq += 1
        return replace(event, seq=past.seq)

    def _keep(self, final: Final) -> None:
        past = self._past_of(final.source)
        past.finals.append(final)
        if len(past.finals) > self.keep:
            past.forgotten = past.finals.popleft().seq

    def _past_of(self, source: str) -> _Past:
        past = self._past.get(source)
        if past is None:
            if len(self._past) >= _MOST_SOURCES:
                self._past.popitem(last=False)
            past = self._past[source] = _Past(deque())
        self._past.move_to_end(source)
        return past

    def _replay(self, outbox: Outbox, source: str, since: int) -> None:
        past = self._past.get(source)
        if past is None:
            return
        if since > past.seq:
            since = 0
        if past.forgotten > since:
            outbox.put(
                Error(
                    "replay_incomplete",
                    f"finals up to seq {past.forgotten} are no longer kept; later ones follow",
                    fatal=False,
                    source=source,
                )
            )
        for final in past.finals:
            if final.seq > since:
                outbox.put(final)
