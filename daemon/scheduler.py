"""Who is transcribed next.

Owns the engine's thread and the order of jobs: finals first, then partials, each stream in turn, as many at once as a
batch may hold. A stream waits at most once, and its job is made when the engine is ready to take it, so that a
partial covers the newest audio and lag cannot pile up: what has no time is simply never made. An exception fails its
job alone. Knows nothing of streams but their jobs, and nothing of the engine but `run`.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

from daemon.metrics import Metrics
from streaming.job import Job, Result

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

Kind = Literal["final", "partial"]
_KINDS: tuple[Kind, ...] = ("final", "partial")


class Client(Protocol):
    """Whoever has jobs. Called in the event loop, never from a thread."""

    def pending(self) -> Kind | None: ...

    def next_job(self) -> Job | None: ...

    def receive_result(self, result: Result) -> None: ...

    def broke(self, error: Exception) -> None:
        """One of the others raised: an error of ours. Nothing more will be asked of this client."""


class EngineThread:
    """The one thread that may touch the engine: an engine is never locked, it is owned.

    A daemon thread: an engine that hangs must not keep the process from ending.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """`function(*arguments)`, in the thread; its result or exception, here."""
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
                _log.debug("the loop ended before the engine did")

        self._calls.put(work)
        return await outcome

    def close(self) -> None:
        """End after what was called already."""
        self._calls.put(None)

    def ended(self, seconds: float) -> bool:
        """Whether it has, at the latest `seconds` from now."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class Scheduler:
    """Runs the jobs of all clients, one batch at a time.

    thread, run: where, and what: `Engine.run`.
    batch: jobs at once.

    Attributes:
        decoded_at: when a batch last succeeded (`time.monotonic`); None before the first.
        busy_since: when the batch that runs now began; None while idle.
    """

    def __init__(
        self,
        thread: EngineThread,
        run: Callable[[Sequence[Job]], list[Result]],
        batch: int,
        metrics: Metrics,
    ) -> None:
        self.decoded_at: float | None = None
        self.busy_since: float | None = None
        self._thread = thread
        self._run_jobs = run
        self._batch = batch
        self._metrics = metrics
        self._clients: set[Client] = set()
        self._waiting: dict[Kind, dict[Client, None]] = {kind: {} for kind in _KINDS}  # dicts: ordered, no doubles
        self._work = asyncio.Event()

    # --- the three verbs -------------------------------------------------------------------------------------------

    def add(self, client: Client) -> None:
        self._clients.add(client)

    def schedule(self, client: Client) -> None:
        """`client` may have a job now. It keeps its place if it waits already."""
        if client not in self._clients:
            return
        pending = self._guarded(client, client.pending)
        for kind in _KINDS:
            if kind == pending:
                self._waiting[kind].setdefault(client)
                self._work.set()
            else:
                self._waiting[kind].pop(client, None)
        self._count_waiting()

    async def deliver(self, batch: Sequence[tuple[Client, Job]], results: Sequence[Result]) -> None:
        for (client, _), result in zip(batch, results, strict=True):
            if result.error is not None:
                self._metrics.job_failures.inc()
            self._count(result)
            if client in self._clients:
                self._guarded(client, client.receive_result, result)
                self.schedule(client)
            await asyncio.sleep(0)  # whoever reads what came of it must not find the next twenty on top

    def remove(self, client: Client) -> None:
        """Nothing more is asked of `client`, nor told to it."""
        self._clients.discard(client)
        for kind in _KINDS:
            self._waiting[kind].pop(client, None)
        self._count_waiting()

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._work.wait()
            batch = self._take()
            if not batch:
                self._work.clear()
                continue
            started = self.busy_since = time.monotonic()
            try:
                results = await self._execute([job for _, job in batch])
            finally:
                self.busy_since = None
            self._metrics.batch_seconds.observe(time.monotonic() - started)
            self._metrics.batch_size.observe(len(batch))
            if any(result.error is None for result in results):
                self.decoded_at = time.monotonic()
            await self.deliver(batch, results)

    def _take(self) -> list[tuple[Client, Job]]:
        """The next batch: all of one kind, so that no final waits for a partial's decoding."""
        for kind in _KINDS:
            batch: list[tuple[Client, Job]] = []
            while self._waiting[kind] and len(batch) < self._batch:
                client = next(iter(self._waiting[kind]))
                del self._waiting[kind][client]
                job = self._guarded(client, client.next_job)
                if job is None:
                    continue
                batch.append((client, job))
                self._metrics.jobs.labels(kind).inc()
                self.schedule(client)  # behind the others, if it has more
            if batch:
                return batch
        return []

    async def _execute(self, jobs: list[Job]) -> list[Result]:
        """A result for each job. If the engine raised for a batch, each job gets a run of its own."""
        try:
            results = await self._thread.call(self._run_jobs, jobs)
            if len(results) != len(jobs):
                raise RuntimeError(f"the engine gave {len(results)} results for {len(jobs)} jobs")
        except Exception as error:
            _log.exception("a batch of %d jobs failed", len(jobs))
            if len(jobs) == 1:
                return [Result(revision=jobs[0].revision, error=f"{type(error).__name__}: {error}")]
            return [result for job in jobs for result in await self._execute([job])]
        return results

    def _guarded(self, client: Client, call: Callable[..., _T], *arguments: Any) -> _T | None:
        """`call`, so that a client that raises harms nobody but itself."""
        try:
            return call(*arguments)
        except Exception as error:
            _log.exception("a stream broke")
            self.remove(client)
            client.broke(error)
            return None

    def _count(self, result: Result) -> None:
        self._metrics.tokens.inc(len(result.tokens))
        self._metrics.draft_tokens_accepted.inc(result.accepted)
        self._metrics.passes.labels("student").inc(result.passes)
        self._metrics.passes.labels("teacher").inc(result.teacher_passes)

    def _count_waiting(self) -> None:
        for kind in _KINDS:
            self._metrics.jobs_waiting.labels(kind).set(len(self._waiting[kind]))
