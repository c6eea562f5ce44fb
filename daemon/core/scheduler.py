"""Which jobs run next.

Owns the engines' threads and the order of jobs: finals first, then partials; each stream in turn; as many at once as a
batch may hold. Where there are several engines, the first that is free takes the next batch. A stream is with one of
them at a time, so that its results come in order. A stream waits at most once, and its job is made when an engine is
ready to take it. So a partial covers the newest audio, and lag cannot pile up: a job for which there is no time is
never made. An exception fails its own job alone; a batch that does not fit into memory is run in halves.

On a CPU a teacher's pass takes as long as many of its student's. There the student hears a batch first, and the texts
that it is unsure of go to the teacher one at a time, in turns with the other batches: no partial waits for more than
one pass of the teacher. Knows nothing of streams but their jobs, and of an engine only how a batch runs in its thread,
and whether its teacher takes turns.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from daemon.common.metrics import Metrics
from streaming.job import ALWAYS, NEVER, Job, Result, isolated, out_of_memory

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


class EngineThread:
    """The one thread that may touch an engine, which therefore needs no lock.

    It is a daemon thread: an engine that hangs must not keep the process from ending.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run `function(*arguments)` in the thread, and give its result or exception here."""
        return await self.submit(function, *arguments)

    def submit(self, function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
        """Let the thread run `function(*arguments)` from now on. The future has its result or exception."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(value: _T | None, error: BaseException | None) -> None:
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(value)  # type: ignore[arg-type] # _T may itself be None

        def work() -> None:
            value, error = None, None
            try:
                value = function(*arguments)
            except Exception as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:
                _log.debug("the event loop ended before the engine")

        self._calls.put(work)
        return outcome

    def close(self) -> None:
        """End the thread after what was called already."""
        self._calls.put(None)

    def ended(self, seconds: float) -> bool:
        """Wait at most `seconds` for the thread to end, and return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


@dataclass(frozen=True, slots=True, eq=False)
class Worker:
    """An engine, as the scheduler sees it.

    Attributes:
        thread: the engine's own.
        run: runs a batch in that thread (`WhisperEngine.run`).
        teacher_apart: returns whether it has a teacher whose passes are too long to come with its student's.
    """

    thread: EngineThread
    run: Callable[[Sequence[Job]], list[Result]]
    teacher_apart: Callable[[], bool] = lambda: False


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


_Decided = tuple[SchedulerClient, Job, Result]


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """What an engine does between two looks at who waits.

    Attributes:
        clients: whose jobs they are.
        jobs: what it runs; none where all is known already.
        decide: returns what of their results is for their streams.
        of_teacher: whether it is the teacher's.
    """

    clients: set[SchedulerClient]
    jobs: list[Job]
    decide: Callable[[list[Result]], list[_Decided]]
    of_teacher: bool = False


def _asked(unsure: _Unsure, results: Sequence[Result]) -> list[_Decided]:
    """Return what the teacher decided; what the student made of it where the teacher was not asked."""
    return [(unsure.client, unsure.job, unsure.decided(results[0]) if results else unsure.heard)]


_Timed = tuple[float, list[Result]]


def _timed(
    run: Callable[[Sequence[Job]], list[Result]],
    jobs: Sequence[Job],
    failed: Callable[[Sequence[Job], Exception], None],
) -> _Timed:
    """Return the seconds that a batch took in the engine's thread, and its results.

    What the event loop is late by is not the engine's work.
    """
    began = time.monotonic()
    results = isolated(run, jobs, failed)
    return time.monotonic() - began, results


class Scheduler:
    """Runs the jobs of all clients, a batch at a time on each engine.

    Args:
        workers: the engines.
        batch: the most jobs at once.
        metrics: count jobs, batches and tokens.

    Attributes:
        decoded_at: when a batch last succeeded (`time.monotonic`); None before the first.
        used_at: when a job of a stream was last taken (`time.monotonic`); None before the first.
    """

    def __init__(self, workers: Sequence[Worker], batch: int, metrics: Metrics) -> None:
        self.decoded_at: float | None = None
        self.used_at: float | None = None
        self._workers = workers
        self._batch = batch
        self._metrics = metrics
        self._busy: dict[Worker, float] = {}  # since when (`time.monotonic`)
        # Those in a batch that runs, in one whose results are not delivered, or unsure; and the engine that has them.
        self._away: dict[SchedulerClient, Worker] = {}
        self._unsure: deque[_Unsure] = deque()
        self._clients: dict[SchedulerClient, contextvars.Context] = {}
        self._background: set[SchedulerClient] = set()
        # Since when (`time.monotonic`) each waits for its turn; whoever waits longest is first.
        self._waiting: dict[Kind, dict[SchedulerClient, float]] = {kind: {} for kind in _KINDS}
        self._work = asyncio.Event()
        self._too_many: float = math.inf  # jobs at once that were seen not to fit into memory, the fewest
        self._worked = 0.0  # seconds, of batches that are over
        self._told = 0.0  # seconds that were told, with those of batches that ran
        metrics.engines.set(len(workers))
        metrics.engine_busy_seconds.set_function(lambda: self.busy_seconds)
        for kind in _KINDS:
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
            else:
                self._waiting[kind].pop(client, None)
        self._count_waiting()

    def remove(self, client: SchedulerClient) -> None:
        """Remove a client: nothing more is asked of it, nor told to it."""
        self._clients.pop(client, None)
        self._background.discard(client)
        for kind in _KINDS:
            self._waiting[kind].pop(client, None)
        self._count_waiting()

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until cancelled."""
        await asyncio.gather(*(self._serve(worker) for worker in self._workers))

    async def _serve(self, worker: Worker) -> None:
        """Run turn after turn. What a turn brought is delivered while the engine is at the next."""
        asked = False  # whether the teacher has just had its turn
        brought: list[_Decided] = []
        while True:
            turn = self._next_turn(worker, asked)
            if turn is None and not brought:
                self._work.clear()
                await self._work.wait()
                continue
            results = self._begin(worker, turn.jobs) if turn is not None and turn.jobs else None
            await self._deliver(brought, turn.clients if turn is not None else ())
            brought = []
            if turn is not None:
                asked = turn.of_teacher
                brought = turn.decide(await self._finish(results) if results is not None else [])

    def _next_turn(self, worker: Worker, asked: bool) -> _Turn | None:
        """Return what an engine does next: a batch, or one text of the teacher's, in turns."""
        batch = self._take(worker) if asked or not self._unsure else []
        if batch:
            apart = worker.teacher_apart()
            jobs = [replace(job, ask_teacher_below=NEVER) if apart else job for _, job in batch]
            return _Turn({client for client, _ in batch}, jobs, partial(self._heard, batch, apart))
        if not self._unsure:
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

    def _take(self, worker: Worker) -> list[tuple[SchedulerClient, Job]]:
        """Return the next batch, all of one kind, so that no final waits for a partial's decoding."""
        for kind in _KINDS:
            batch: list[tuple[SchedulerClient, Job]] = []
            while (client := self._next(kind, worker)) is not None and len(batch) < self._batch:
                del self._waiting[kind][client]
                job = self._guarded(client, client.next_job)
                if job is None:
                    continue
                batch.append((client, job))
                if client not in self._background:
                    self.used_at = time.monotonic()
                self._metrics.jobs.labels(kind).inc()
                self.schedule(client)  # behind the others, if it has more
            if batch:
                self._away.update((client, worker) for client, _ in batch)
                return batch
        return []

    def _next(self, kind: Kind, worker: Worker) -> SchedulerClient | None:
        """Return the client that waits longest and may be with this engine next.

        Another engine must not have it. What this one has brought is delivered before what it is asked now, so a client
        that waits only for that need not wait. One with a text for the teacher does: its results come in order.
        """
        unsure = {each.client for each in self._unsure}
        for client in self._waiting[kind]:
            if client not in self._away or (self._away[client] is worker and client not in unsure):
                return client
        return None

    def _begin(self, worker: Worker, jobs: list[Job]) -> asyncio.Future[_Timed]:
        """Let an engine run a batch from now on."""
        self._busy[worker] = time.monotonic()
        running = worker.thread.submit(_timed, worker.run, jobs, self._failed)
        running.add_done_callback(partial(self._ran, worker))
        return running

    def _ran(self, worker: Worker, running: asyncio.Future[_Timed]) -> None:
        self._busy.pop(worker, None)
        if not running.cancelled() and running.exception() is None:
            self._worked += running.result()[0]

    async def _finish(self, running: asyncio.Future[_Timed]) -> list[Result]:
        """Return a result for each job of a batch, whatever the engine does."""
        seconds, results = await running
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_size.observe(len(results))
        if any(result.error is None for result in results):
            self.decoded_at = time.monotonic()
        return results

    def _failed(self, jobs: Sequence[Job], error: Exception) -> None:
        """Log why a batch failed. It is called in an engine's thread."""
        if len(jobs) == 1 or not out_of_memory(error):
            _log.error("a batch of %d jobs failed", len(jobs), exc_info=error)
            return
        self._metrics.batches_halved.inc()
        if len(jobs) < self._too_many:  # said once; and again only where even less does not fit
            self._too_many = len(jobs)
            _log.warning(
                "a batch of %d jobs does not fit into memory and runs in halves; later ones are not logged: "
                "a lower scheduler.batch avoids the failed attempts (%s)",
                len(jobs),
                str(error).partition("\n")[0],
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

    def _count_waiting(self) -> None:
        for kind in _KINDS:
            self._metrics.jobs_waiting.labels(kind).set(len(self._waiting[kind]))
