"""Who is transcribed next, and what one failure costs."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.common.metrics import Metrics
from daemon.core.scheduler import Kind, Scheduler
from daemon.engines.batch import Ran
from daemon.engines.thread import EngineThread, ThreadWorker
from streaming.job import ALWAYS, NEVER, Job, Result

Run = Callable[[Sequence[Job]], list[Result]]


def echo(jobs: Sequence[Job]) -> list[Result]:
    return [Result(revision=job.revision) for job in jobs]


@dataclass(eq=False)
class Client:
    """Has so many finals and partials to offer; its jobs' revisions are the first number, counted up."""

    first: int
    finals: int = 0
    partials: int = 0
    raises: str = ""
    made: int = 0
    results: list[Result] = field(default_factory=list)
    broken: list[Exception] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def pending(self) -> Kind | None:
        if self.finals:
            return "final"
        return "partial" if self.partials else None

    def next_job(self) -> Job | None:
        if self.raises == "next_job":
            raise ValueError("no job")
        if self.finals:
            self.finals -= 1
        elif self.partials:
            self.partials -= 1
        else:
            return None
        self.made += 1
        return Job(np.zeros(1, np.float32), revision=self.first + self.made - 1)

    def receive_result(self, result: Result) -> None:
        self.results.append(result)
        if self.raises == "receive_result":
            raise ValueError("no result")
        if not self.finals and not self.partials and len(self.results) == self.made:
            self.done.set()

    def broke(self, error: Exception) -> None:
        self.broken.append(error)
        self.done.set()


@asynccontextmanager
async def scheduling(*runs: Run, batch: int = 4, teacher_apart: bool = False) -> AsyncIterator[Scheduler]:
    """With an engine for each of `runs`."""
    workers = [ThreadWorker(EngineThread(), run, lambda: teacher_apart) for run in runs]
    scheduler = Scheduler(workers, batch, Metrics())
    task = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for worker in workers:
            worker.thread.close()
            assert worker.thread.ended(30)


async def serve(scheduler: Scheduler, *clients: Client) -> None:
    busy = [client for client in clients if client.pending()]
    for client in clients:
        scheduler.add(client)
        scheduler.schedule(client)
    for client in busy:
        await asyncio.wait_for(client.done.wait(), 30)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6), st.integers(1, 5))
def test_every_job_runs_once_and_finals_run_first(wanted: list[tuple[int, int]], batch: int) -> None:
    async def check() -> None:
        batches: list[list[int]] = []

        def run(jobs: Sequence[Job]) -> list[Result]:
            batches.append([job.revision for job in jobs])
            return echo(jobs)

        clients = [Client(1000 * at, finals, partials) for at, (finals, partials) in enumerate(wanted)]
        async with scheduling(run, batch=batch) as scheduler:
            await serve(scheduler, *clients)
        for client in clients:
            assert sorted(result.revision for result in client.results) == [
                client.first + at for at in range(client.made)
            ]
        assert all(1 <= len(each) <= batch for each in batches)
        # All clients are there from the start: every final runs before any partial, and none shares its batch.
        finals = {1000 * at + number for at, (count, _) in enumerate(wanted) for number in range(count)}
        kinds = [{revision in finals for revision in each} for each in batches]
        assert all(len(kind) == 1 for kind in kinds)
        assert kinds == sorted(kinds, key=lambda kind: False in kind)

    asyncio.run(check())


async def test_streams_take_turns() -> None:
    order: list[int] = []

    def run(jobs: Sequence[Job]) -> list[Result]:
        order.extend(job.revision // 1000 for job in jobs)
        return echo(jobs)

    async with scheduling(run, batch=1) as scheduler:
        await serve(scheduler, Client(0, finals=3), Client(1000, finals=3), Client(2000, finals=3))
    assert order == [0, 1, 2] * 3


class Gated:
    """An engine that takes a batch, says so, and gives results only once its gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, jobs: Sequence[Job]) -> list[Result]:
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self.gate.wait(30)
        return echo(jobs)


async def test_a_job_is_made_when_the_engine_is_ready_not_before() -> None:
    run = Gated()
    async with scheduling(run) as scheduler:
        first, second = Client(0, partials=1), Client(1000, partials=1)
        scheduler.add(first)
        scheduler.schedule(first)
        await run.entered.wait()
        scheduler.add(second)
        for _ in range(5):  # audio that keeps coming in makes nothing more wait
            scheduler.schedule(second)
            await asyncio.sleep(0)
        assert second.made == 0
        assert scheduler.busy_since is not None
        run.gate.set()
        await second.done.wait()
        assert second.made == 1
    assert scheduler.decoded_at is not None


async def test_an_exception_costs_its_job_alone(caplog: pytest.LogCaptureFixture) -> None:
    def run(jobs: Sequence[Job]) -> list[Result]:
        if any(job.revision == 1000 for job in jobs):
            raise RuntimeError("out of luck")
        return echo(jobs)

    clients = [Client(0, finals=1), Client(1000, finals=2), Client(2000, finals=1)]
    async with scheduling(run, batch=8) as scheduler:
        await serve(scheduler, *clients)
    errors = {result.revision: result.error for client in clients for result in client.results}
    assert errors == {0: None, 1000: "RuntimeError: out of luck", 1001: None, 2000: None}
    assert "a batch of 4 jobs failed" in caplog.text


async def test_a_batch_that_does_not_fit_into_memory_is_halved_and_the_operator_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran: list[int] = []

    def run(jobs: Sequence[Job]) -> list[Result]:
        if len(jobs) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        ran.append(len(jobs))
        return echo(jobs)

    clients = [Client(1000 * at, finals=3) for at in range(8)]
    async with scheduling(run, batch=8) as scheduler:
        await serve(scheduler, *clients)
        counted = scheduler._metrics.text().decode()
    assert not any(result.error for client in clients for result in client.results)
    assert ran == [2] * 12
    assert "whisperd_batches_halved_total 9.0" in counted  # three batches: each of eight, and its two of four
    assert "whisperd_job_failures_total 0.0" in counted
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" jobs")[0] for line in told] == ["a batch of 8", "a batch of 4"]
    assert all("scheduler.batch" in line for line in told)


async def test_a_job_that_fits_into_no_memory_fails_alone_and_its_stream_goes_on() -> None:
    def run(jobs: Sequence[Job]) -> list[Result]:
        if any(job.revision == 1000 for job in jobs):
            raise MemoryError
        return echo(jobs)

    clients = [Client(0, finals=2), Client(1000, finals=2)]
    async with scheduling(run, batch=8) as scheduler:
        await serve(scheduler, *clients)
    errors = [(result.revision, result.error) for client in clients for result in client.results]
    assert sorted(errors) == [(0, None), (1, None), (1000, "MemoryError: "), (1001, None)]


async def test_a_wrong_number_of_results_is_an_error_too() -> None:
    client = Client(0, finals=2)
    async with scheduling(lambda jobs: []) as scheduler:
        await serve(scheduler, client)
    assert all("0 results for 1 jobs" in (result.error or "") for result in client.results)


@pytest.mark.parametrize("raises", ["next_job", "receive_result"])
async def test_a_client_that_raises_harms_only_itself(raises: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Client(0, finals=3, raises=raises), Client(1000, finals=3)
    async with scheduling(echo) as scheduler:
        await serve(scheduler, bad, good)
    assert [str(error) for error in bad.broken] == [f"no {raises.removeprefix('next_').removeprefix('receive_')}"]
    assert len(good.results) == 3
    assert "a stream failed" in caplog.text


async def test_who_left_hears_nothing_more() -> None:
    run = Gated()
    async with scheduling(run) as scheduler:
        gone, stays = Client(0, finals=1), Client(1000, finals=1)
        for client in (gone, stays):
            scheduler.add(client)
            scheduler.schedule(client)
        await run.entered.wait()
        scheduler.remove(gone)
        scheduler.schedule(gone)
        run.gate.set()
        await stays.done.wait()
    assert gone.results == []


async def test_the_engine_is_touched_by_one_thread_only() -> None:
    seen: set[str] = set()

    def run(jobs: Sequence[Job]) -> list[Result]:
        seen.add(threading.current_thread().name)
        return echo(jobs)

    async with scheduling(run, batch=1) as scheduler:
        await serve(scheduler, *[Client(1000 * at, finals=2, partials=2) for at in range(4)])
    assert seen == {"engine"}


# --- several engines -------------------------------------------------------------------------------------------------


async def test_an_engine_that_hangs_holds_up_only_what_it_has() -> None:
    hangs = Gated()
    async with scheduling(hangs, batch=1) as scheduler:
        caught, waits = Client(0, finals=1), Client(1000, finals=1)
        for client in (caught, waits):
            scheduler.add(client)
            scheduler.schedule(client)
        await hangs.entered.wait()
        assert waits.made == 0  # with one engine there is nobody else
        hangs.gate.set()
        await waits.done.wait()
    hangs = Gated()
    async with scheduling(hangs, echo, batch=1) as scheduler:
        caught, *others = [Client(1000 * at, finals=1) for at in range(4)]
        scheduler.add(caught)
        scheduler.schedule(caught)
        await hangs.entered.wait()
        since = scheduler.busy_since
        await serve(scheduler, *others)
        assert [len(client.results) for client in others] == [1, 1, 1]
        assert caught.results == []
        assert scheduler.busy_since == since  # the oldest: that an engine hangs must show
        hangs.gate.set()
        await caught.done.wait()
    assert scheduler.busy_since is None


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(2, 3),
    st.integers(0, 2**32),
)
def test_on_several_engines_each_stream_hears_its_results_in_order(
    wanted: list[tuple[int, int]], batch: int, engines: int, seed: int
) -> None:
    async def check() -> None:
        running: set[int] = set()
        chance = random.Random(seed)
        lock = threading.Lock()

        def run(jobs: Sequence[Job]) -> list[Result]:
            streams = {job.revision // 1000 for job in jobs}
            with lock:
                assert not streams & running, "a stream is with two engines"
                running.update(streams)
                pause = chance.random() / 1000
            time.sleep(pause)  # another engine may be faster: that is what is tested
            with lock:
                running.difference_update(streams)
            return echo(jobs)

        clients = [Client(1000 * at, finals, partials) for at, (finals, partials) in enumerate(wanted)]
        async with scheduling(*[run] * engines, batch=batch) as scheduler:
            await serve(scheduler, *clients)
        for client in clients:
            assert [result.revision for result in client.results] == [client.first + at for at in range(client.made)]
            assert not any(result.error for result in client.results)

    asyncio.run(check())


# --- a teacher whose passes are long --------------------------------------------------------------------------------


@dataclass
class Pair:
    """An engine's student and teacher. Odd revisions make the student unsure. runs: what each run was asked."""

    runs: list[list[Job]] = field(default_factory=list)

    def __call__(self, jobs: Sequence[Job]) -> list[Result]:
        self.runs.append(list(jobs))
        return [self._one(job) for job in jobs]

    @staticmethod
    def _one(job: Job) -> Result:
        confidence = 0.5 if job.revision % 2 else 0.9
        heard = Result(job.revision, tokens=(1,), accepted=len(job.draft), student_confidence=confidence, passes=2)
        return replace(heard, model="teacher", teacher_passes=1) if confidence < job.ask_teacher_below else heard


@dataclass(eq=False)
class Asking(Client):
    """Finals are the teacher's below a confidence, partials the student's."""

    def next_job(self) -> Job | None:
        below = 0.75 if self.finals else NEVER
        job = super().next_job()
        return job and replace(job, ask_teacher_below=below)


async def test_the_teacher_is_asked_one_text_at_a_time_and_others_come_between() -> None:
    pair = Pair()
    clients = [Asking(1001, finals=1), Asking(2001, finals=1), Asking(3001, finals=1)]
    clients += [Asking(4000 + at, partials=2) for at in range(0, 100, 10)]
    async with scheduling(pair, teacher_apart=True) as scheduler:
        await serve(scheduler, *clients)
    asked = [[job.ask_teacher_below == ALWAYS for job in jobs] for jobs in pair.runs]
    assert asked[0] == [False] * 3, "finals first, and the student alone"
    assert [each for each in asked if any(each)] == [[True]] * 3
    turns = [each == [True] for each in asked]
    assert not any(one and other for one, other in itertools.pairwise(turns)), "partials waited for two passes"
    for client in clients[:3]:
        (result,) = client.results
        assert result.model == "teacher"
        assert result.passes == 4, "of both runs"
    assert {result.model for client in clients[3:] for result in client.results} == {"student"}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5), st.integers(1, 4))
def test_with_the_teacher_apart_every_job_has_one_result_in_its_streams_order(
    wanted: list[tuple[int, int]], batch: int
) -> None:
    async def check() -> None:
        clients = [Asking(1000 * at, finals, partials) for at, (finals, partials) in enumerate(wanted)]
        async with scheduling(Pair(), batch=batch, teacher_apart=True) as scheduler:
            await serve(scheduler, *clients)
        for client in clients:
            revisions = [result.revision for result in client.results]
            assert revisions == [client.first + at for at in range(client.made)]

    asyncio.run(check())


async def test_whoever_left_before_the_teacher_had_time_costs_it_nothing() -> None:
    pair = Pair()
    leaving, staying = Asking(1001, finals=1), Asking(2001, finals=1)
    async with scheduling(pair, teacher_apart=True) as scheduler:
        run, removed = pair.__call__, threading.Event()

        def first(jobs: Sequence[Job]) -> list[Result]:
            if not removed.is_set():
                asyncio.run_coroutine_threadsafe(leave(), loop).result(30)
            return run(jobs)

        async def leave() -> None:
            scheduler.remove(leaving)
            removed.set()

        loop = asyncio.get_running_loop()
        (worker,) = scheduler._workers
        assert isinstance(worker, ThreadWorker)
        scheduler._workers = [ThreadWorker(worker.thread, first, lambda: True)]
        await asyncio.sleep(0)
        scheduler.add(leaving)
        scheduler.schedule(leaving)
        await serve(scheduler, staying)
    assert leaving.results == []
    assert [result.model for result in staying.results] == ["teacher"]


async def test_the_time_that_engines_worked_is_never_taken_back() -> None:
    """Not where the loop learns late that a batch is over, nor while its results are delivered."""
    told: list[float] = []

    class Slow(Client):
        def receive_result(self, result: Result) -> None:
            time.sleep(0.006)  # others have their turn in the middle of the delivery
            super().receive_result(result)

    async with scheduling(echo, batch=4) as scheduler:

        async def watch() -> None:
            while True:
                told.append(scheduler.busy_seconds)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await serve(scheduler, *(Slow(1000 * at, finals=3) for at in range(4)))
        watching.cancel()
    assert len(told) > 10
    assert told == sorted(told)


# --- an engine that takes a batch ahead -----------------------------------------------------------------------------


class Ahead:
    """A worker like that of a GPU's engine: batches are over when the test says so, in their order."""

    ahead = True
    open = True

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._over: list[tuple[Sequence[Job], asyncio.Future[Ran]]] = []

    def teacher_apart(self) -> bool:
        return False

    def submit(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        self.batches.append([job.revision for job in jobs])
        ran: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        self._over.append((jobs, ran))
        return ran

    def finish(self) -> None:
        jobs, ran = self._over.pop(0)
        ran.set_result(Ran(0.0, echo(jobs)))

    @property
    def in_flight(self) -> int:
        return len(self._over)


@asynccontextmanager
async def scheduling_ahead(batch: int) -> AsyncIterator[tuple[Scheduler, Ahead]]:
    worker = Ahead()
    scheduler = Scheduler([worker], batch, Metrics())
    task = asyncio.create_task(scheduler.run())
    try:
        yield scheduler, worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settled() -> None:
    """Give everybody their turns; nothing that is waited for here takes time."""
    for _ in range(20):
        await asyncio.sleep(0)


def come(scheduler: Scheduler, *clients: Client) -> None:
    for each in clients:
        scheduler.add(each)
        scheduler.schedule(each)


async def test_a_full_batch_waits_at_the_engine_and_no_other() -> None:
    clients = [Client(100 * number, partials=1) for number in range(7)]
    async with scheduling_ahead(batch=2) as (scheduler, worker):
        come(scheduler, clients[0])
        await settled()
        come(scheduler, clients[1])
        await settled()
        assert worker.batches == [[0]]  # one alone would rather be in a larger batch
        come(scheduler, clients[2])
        await settled()
        assert worker.batches == [[0], [100, 200]]
        come(scheduler, *clients[3:])
        await settled()
        assert worker.in_flight == 2  # the others' jobs are not made yet
        worker.finish()
        await settled()
        assert worker.batches[2:] == [[300, 400]]
        assert [result.revision for result in clients[0].results] == [0]
        while worker.in_flight:
            worker.finish()
            await settled()
    assert worker.batches[3:] == [[500, 600]]
    assert all(len(each.results) == 1 for each in clients)


async def test_whose_job_still_runs_is_not_taken_ahead() -> None:
    """Its results come in order, and its next job knows of the last."""
    clients = [Client(100 * number, partials=3) for number in range(2)]
    async with scheduling_ahead(batch=2) as (scheduler, worker):
        come(scheduler, *clients)
        await settled()
        assert worker.batches == [[0, 100]]
        worker.finish()
        await settled()
        assert worker.batches == [[0, 100], [1, 101]]
        worker.finish()
        await settled()
        worker.finish()
        await settled()
    assert [result.revision for result in clients[0].results] == [0, 1, 2]


async def test_no_batch_of_partials_is_taken_ahead_of_a_final() -> None:
    partials = [Client(100 * number, partials=1) for number in range(4)]
    async with scheduling_ahead(batch=2) as (scheduler, worker):
        come(scheduler, partials[0], partials[1])
        await settled()
        come(scheduler, Client(900, finals=1), partials[2], partials[3])
        await settled()
        assert worker.batches == [[0, 100]]
        worker.finish()
        await settled()
        assert worker.batches[1] == [900]
        while worker.in_flight:
            worker.finish()
            await settled()
