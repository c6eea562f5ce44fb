"""Which jobs run next.

Owns the order of jobs: finals first, then partials; each stream in turn; as many at once as a batch may hold. Where
there are several engines, the first that is free takes the next batch. A stream is with one of them at a time, so that
its results come in order. A stream waits at most once, and its job is made when an engine is ready to take it. So a
partial covers the newest audio, and lag cannot pile up: a job for which there is no time is never made.

On a CPU a teacher's pass takes as long as many of its student's. There the student hears a batch first, and the texts
that it is unsure of go to the teacher one at a time, in turns with the other batches: no partial waits for more than
one pass of the teacher. A GPU would wait for the service between two batches: there a full batch is taken while another
runs. Knows nothing of streams but their jobs, and of an engine only what `Worker` has.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from daemon.common.metrics import Metrics
from daemon.core.spacing import Spacing
from daemon.engines.batch import Failure, RaisedThereError, Ran
from daemon.engines.worker import Worker
from streaming.job import ALWAYS, NEVER, Job, Result

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

Kind = Literal["final", "partial"]
_KINDS: tuple[Kind, ...] = ("final", "partial")

_DELIVERING = 0.005
"""Seconds of results that are delivered between two turns of the loop: whoever reads what came of them must not find
too many on top, and a turn for each result would hold up the next batch."""


class SchedulerClient(Protocol):
    """Something that has jobs. It is called in the event loop, never from a thread."""

    def pending(self) -> Kind | None: ...

    def next_job(self) -> Job | None: ...

    def receive_result(self, result: Result) -> None:
        """Take in the result of one of its jobs. If it has another job now, it says so (`Scheduler.schedule`)."""

    def broke(self, error: Exception) -> None:
        """Note that one of the other methods raised, which is a fault of the service.

        Nothing more is asked of this client.
        """


@dataclass(frozen=True, slots=True, eq=False)
class _Unsure:
    """A job that the teacher is to decide, or that waits behind one of the same stream.

    Attributes:
        heard: what the student made of it.
        settled: whether that is the result.
    """

    client: SchedulerClient
    job: Job
    heard: Result
    settled: bool

    def again(self) -> Job:
        """Return the job for the teacher. The student's text is its own draft now, which it checks in one pass."""
        return replace(self.job, draft=self.heard.tokens, ask_teacher_below=ALWAYS)

    def decided(self, result: Result) -> Result:
        """Return the result as if it had been one run: the first run tells how the stream's draft fared."""
        if result.error is not None:
            return result
        return replace(result, accepted=self.heard.accepted, passes=self.heard.passes + result.passes)


_IN_FLIGHT = 2
"""Batches at an engine that takes one ahead."""

_Decided = tuple[SchedulerClient, Job, Result]


class _Batch(NamedTuple):
    """Jobs of one kind that an engine is to run together.

    Attributes:
        jobs: with whose they are.
        due: since when (`time.monotonic`) the oldest of them waits, if they are partials.
    """

    jobs: Sequence[tuple[SchedulerClient, Job]]
    due: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """What an engine does between two looks at who waits.

    Attributes:
        clients: whose jobs they are.
        jobs: what it runs; none where all is known already.
        decide: returns what of their results is for their streams.
        of_teacher: whether it is the teacher's.
        due: see `_Batch`.
    """

    clients: set[SchedulerClient]
    jobs: list[Job]
    decide: Callable[[list[Result]], list[_Decided]]
    of_teacher: bool = False
    due: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A turn that was begun, and what its batch comes to; None for a turn without jobs."""

    turn: _Turn
    ran: asyncio.Future[Ran] | None


def _asked(unsure: _Unsure, results: Sequence[Result]) -> list[_Decided]:
    """Return what the teacher decided; what the student made of it where the teacher was not asked."""
    return [(unsure.client, unsure.job, unsure.decided(results[0]) if results else unsure.heard)]


class Scheduler:
    """Runs the jobs of all clients, a batch at a time on each engine.

    Args:
        workers: the engines.
        batch: the most jobs at once.
        metrics: count jobs, batches and tokens.
        spacing: is told how long partials take; None if nobody wants to know.

    Attributes:
        decoded_at: when a batch last succeeded (`time.monotonic`); None before the first.
        used_at: when a job of a stream was last taken (`time.monotonic`); None before the first.
    """

    def __init__(self, workers: Sequence[Worker], batch: int, metrics: Metrics, spacing: Spacing | None = None) -> None:
        self.decoded_at: float | None = None
        self.used_at: float | None = None
        self._workers = workers
        self._batch = batch
        self._metrics = metrics
        self._spacing = spacing
        self._busy: dict[Worker, float] = {}  # since when (`time.monotonic`)
        self._in_flight: Counter[Worker] = Counter()  # batches
        # Those in a batch that runs, in one whose results are not delivered, or unsure; and the engine that has them.
        self._away: dict[SchedulerClient, Worker] = {}
        self._unsure: deque[_Unsure] = deque()
        self._clients: dict[SchedulerClient, contextvars.Context] = {}
        self._background: set[SchedulerClient] = set()
        # Since when (`time.monotonic`) each waits for its turn; whoever waits longest is first.
        self._waiting: dict[Kind, dict[SchedulerClient, float]] = {kind: {} for kind in _KINDS}
        self._work = asyncio.Event()
        self._crowded = asyncio.Event()  # a full batch waits, or nearly one
        self._too_many: float = math.inf  # jobs at once that were seen not to fit into memory, the fewest
        self._worked = 0.0  # seconds, of batches that are over
        self._told = 0.0  # seconds that were told, with those of batches that ran
        metrics.engines.set_function(lambda: sum(worker.open for worker in workers))
        metrics.engine_busy_seconds.set_function(lambda: self.busy_seconds)
        for kind in _KINDS:
            metrics.jobs_waiting.labels(kind).set_function(partial(len, self._waiting[kind]))
            metrics.jobs_oldest.labels(kind).set_function(partial(self._waited, kind))

    @property
    def busy_since(self) -> float | None:
        """When the oldest of the running batches began (`time.monotonic`); None while all engines are idle."""
        return min(self._busy.values(), default=None)

    @property
    def final_wait(self) -> float:
        """The longest time, in seconds, that a stream has waited for its turn with a final; 0 where none waits.

        A stream that comes now would have to wait as long. One that has much to catch up with waits no longer than
        others for each of its turns, and so keeps nobody out.
        """
        return self._waited("final")

    @property
    def busy_seconds(self) -> float:
        """The seconds that all engines together have worked.

        Running batches count too: an engine that hangs is not idle. They count until the loop knows of their end, which
        may be late, and what was told once is not taken back.
        """
        now = time.monotonic()
        self._told = max(self._told, self._worked + sum(now - since for since in self._busy.values()))
        return self._told

    def _waited(self, kind: Kind) -> float:
        """Return the longest time, in seconds, that a stream has waited for its turn with a job of this kind."""
        since = next(iter(self._waiting[kind].values()), None)
        return 0.0 if since is None else time.monotonic() - since

    # --- the clients -----------------------------------------------------------------------------------------------

    def add(self, client: SchedulerClient, *, background: bool = False) -> None:
        """Add a client. Whatever it is asked for from now on runs in the log context of the caller.

        Args:
            client: the client.
            background: whether its jobs are no use of the service.
        """
        self._clients[client] = contextvars.copy_context()
        if background:
            self._background.add(client)

    def schedule(self, client: SchedulerClient) -> None:
        """Put a client into the queue if it has a job. It keeps its place if it waits already."""
        if client not in self._clients:
            return
        pending = self._guarded(client, client.pending)
        for kind in _KINDS:
            if kind == pending:
                self._waiting[kind].setdefault(client, time.monotonic())
                self._work.set()
                if len(self._waiting[kind]) >= self._batch:
                    self._crowded.set()
            else:
                self._waiting[kind].pop(client, None)

    def remove(self, client: SchedulerClient) -> None:
        """Remove a client: nothing more is asked of it, nor told to it."""
        self._clients.pop(client, None)
        self._background.discard(client)
        for kind in _KINDS:
            self._waiting[kind].pop(client, None)

    def look_again(self) -> None:
        """Look at who waits: an engine may be open that was not."""
        self._work.set()

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until cancelled."""
        await asyncio.gather(*(self._serve(worker) for worker in self._workers))

    async def _serve(self, worker: Worker) -> None:
        """Run turn after turn. What a turn brought is delivered while the engine is at the next."""
        asked = False  # whether the teacher has just had its turn
        running: deque[_Running] = deque()
        brought: list[_Decided] = []
        while True:
            turn = self._next_turn(worker, asked, running)
            if turn is not None:
                asked = turn.of_teacher
                running.append(_Running(turn, self._begin(worker, turn.jobs) if turn.jobs else None))
            elif not running and not brought:
                self._work.clear()
                await self._work.wait()
                continue
            await self._deliver(brought, {client for each in running for client in each.turn.clients})
            brought = []
            if running and await self._over(worker, running):
                first = running.popleft()
                brought = first.turn.decide(await self._finish(first.ran) if first.ran is not None else [])
                if self._spacing is not None and first.turn.due is not None:
                    self._spacing.took(time.monotonic() - first.turn.due)

    async def _over(self, worker: Worker, running: Sequence[_Running]) -> bool:
        """Wait until the first turn that runs is over, or another may be begun, and return whether it is over."""
        ran = running[0].ran
        if ran is None or not worker.ahead or len(running) == _IN_FLIGHT:
            return True  # whoever wants its results waits for them
        self._crowded.clear()
        crowded = asyncio.create_task(self._crowded.wait())
        either: set[asyncio.Future[Any]] = {ran, crowded}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            crowded.cancel()
        return ran.done()

    def _next_turn(self, worker: Worker, asked: bool, running: Sequence[_Running]) -> _Turn | None:
        """Return what an engine does next: a batch, or one text of the teacher's, in turns.

        While it runs something, that is a full batch or nothing: whoever comes meanwhile would rather be in a batch
        that is begun when this one is over than behind another.
        """
        if not worker.open or (running and not (worker.ahead and len(running) < _IN_FLIGHT)):
            return None
        batch = self._take(worker, ahead=bool(running)) if asked or not self._unsure else None
        if batch is not None:
            apart = worker.teacher_apart()
            jobs = [replace(job, ask_teacher_below=NEVER) if apart else job for _, job in batch.jobs]
            clients = {client for client, _ in batch.jobs}
            return _Turn(clients, jobs, partial(self._heard, batch.jobs, apart), due=batch.due)
        if not self._unsure or running:
            return None
        unsure = self._unsure.popleft()
        gone = unsure.client not in self._clients  # it may have left meanwhile
        jobs = [] if unsure.settled or gone else [unsure.again()]
        return _Turn({unsure.client}, jobs, partial(_asked, unsure), of_teacher=not unsure.settled)

    def _heard(
        self, batch: Sequence[tuple[SchedulerClient, Job]], apart: bool, results: Sequence[Result]
    ) -> list[_Decided]:
        """Return what is decided of a batch that the student heard; the rest is for the teacher."""
        decided: list[_Decided] = []
        waiting: set[SchedulerClient] = set()
        for (client, job), result in zip(batch, results, strict=True):
            sure = not apart or result.error is not None or result.student_confidence >= job.ask_teacher_below
            if sure and client not in waiting:
                decided.append((client, job, result))
            else:
                waiting.add(client)
                self._unsure.append(_Unsure(client, job, result, settled=sure))
        return decided

    async def _deliver(self, decided: Sequence[_Decided], still_away: Collection[SchedulerClient]) -> None:
        """Give each client its result, and others a turn of the loop every few milliseconds.

        Args:
            decided: the results.
            still_away: clients that the engine has taken again meanwhile.
        """
        until = time.monotonic() + _DELIVERING
        for client, job, result in decided:
            self._count(job, result)
            if client in self._clients:
                self._guarded(client, client.receive_result, result)
            if time.monotonic() >= until:
                await asyncio.sleep(0)
                until = time.monotonic() + _DELIVERING
        unsure = {each.client for each in self._unsure}
        for client, _, _ in decided:
            if client not in unsure and client not in still_away:
                self._away.pop(client, None)
        self._work.set()  # what these wait for may be taken now

    def _take(self, worker: Worker, *, ahead: bool) -> _Batch | None:
        """Return the next batch, all of one kind, so that no final waits for a partial's decoding.

        Args:
            worker: the engine.
            ahead: whether it runs something. Then the batch is full, or none.
        """
        for kind in _KINDS:
            if ahead:
                free = sum(1 for client in self._waiting[kind] if client not in self._away)
                if 0 < free < self._batch:
                    return None
            batch: list[tuple[SchedulerClient, Job]] = []
            due: float | None = None
            while (client := self._next(kind, worker, ahead)) is not None and len(batch) < self._batch:
                since = self._waiting[kind].pop(client)
                job = self._guarded(client, client.next_job)
                if job is None:
                    continue
                batch.append((client, job))
                if kind == "partial" and due is None:  # whoever waits longest is first
                    due = since
                if client not in self._background:
                    self.used_at = time.monotonic()
                self._metrics.jobs.labels(kind).inc()
                self.schedule(client)  # behind the others, if it has more
            if batch:
                self._away.update((client, worker) for client, _ in batch)
                return _Batch(batch, due)
        return None

    def _next(self, kind: Kind, worker: Worker, ahead: bool) -> SchedulerClient | None:
        """Return the client that waits longest and may be with this engine next.

        Another engine must not have it. What this one has brought is delivered before what it is asked now, so a client
        that waits only for that need not wait. One whose job still runs does, and one with a text for the teacher: its
        results come in order.
        """
        unsure = {each.client for each in self._unsure}
        for client in self._waiting[kind]:
            if client not in self._away:
                return client
            if self._away[client] is worker and client not in unsure and not ahead:
                return client
        return None

    def _begin(self, worker: Worker, jobs: list[Job]) -> asyncio.Future[Ran]:
        """Let an engine run a batch from now on."""
        self._busy.setdefault(worker, time.monotonic())
        self._in_flight[worker] += 1
        running = worker.submit(jobs)
        running.add_done_callback(partial(self._ran, worker))
        return running

    def _ran(self, worker: Worker, running: asyncio.Future[Ran]) -> None:
        self._in_flight[worker] -= 1
        if self._in_flight[worker]:
            self._busy[worker] = time.monotonic()  # the next began now
        else:
            self._busy.pop(worker, None)
        if not running.cancelled() and running.exception() is None:
            self._worked += running.result().seconds

    async def _finish(self, running: asyncio.Future[Ran]) -> list[Result]:
        """Return a result for each job of a batch, whatever the engine does."""
        ran = await running
        for failure in ran.failures:
            self._failed(failure)
        self._metrics.batch_seconds.observe(ran.seconds)
        self._metrics.batch_size.observe(len(ran.results))
        if any(result.error is None for result in ran.results):
            self.decoded_at = time.monotonic()
        return ran.results

    def _failed(self, failure: Failure) -> None:
        """Log why a batch failed."""
        if failure.jobs == 1 or not failure.no_memory:
            _log.error("a batch of %d jobs failed", failure.jobs, exc_info=RaisedThereError(failure.trace))
            return
        self._metrics.batches_halved.inc()
        if failure.jobs < self._too_many:  # said once; and again only where even less does not fit
            self._too_many = failure.jobs
            _log.warning(
                "a batch of %d jobs does not fit into memory and runs in halves; later ones are not logged: "
                "a lower scheduler.batch avoids the failed attempts (%s)",
                failure.jobs,
                failure.reason,
            )

    def _guarded(self, client: SchedulerClient, call: Callable[..., _T], *arguments: Any) -> _T | None:
        """Make a call so that a client that raises harms only itself."""
        # A copy, for it may ask for its next turn meanwhile, and a context cannot be entered twice.
        context = self._clients[client].copy()
        try:
            return context.run(call, *arguments)
        except Exception as error:
            context.run(_log.exception, "a stream failed")
            self.remove(client)
            client.broke(error)
            return None

    def _count(self, job: Job, result: Result) -> None:
        if result.error is not None:
            self._metrics.job_failures.inc()
            return
        self._metrics.tokens.inc(len(result.tokens))
        self._metrics.draft_tokens.labels("student").inc(len(job.draft))
        self._metrics.draft_tokens_accepted.labels("student").inc(result.accepted)
        if result.teacher_passes:  # its draft is what the student heard
            self._metrics.draft_tokens.labels("teacher").inc(len(result.student_tokens))
            self._metrics.draft_tokens_accepted.labels("teacher").inc(result.teacher_accepted)
        self._metrics.passes.labels("student").inc(result.passes)
        self._metrics.passes.labels("teacher").inc(result.teacher_passes)
