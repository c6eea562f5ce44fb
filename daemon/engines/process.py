"""An engine in a process of its own.

Owns that process through all its lives, and the batches that are with it. What the engine computes takes no turn from
the event loop, nor the loop from it; and an engine that crashes, or is killed, takes nobody along: it is started again
at once, and what it was at runs again. Jobs are pure, so nothing is lost by it, and nothing comes twice. A job during
which the process ended twice fails, alone.

Knows nothing of what an engine does, or of who waits for its results. The process is `child.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from daemon.common.errors import ServiceError
from daemon.common.metrics import GpuMemory
from daemon.engines.batch import Failure, Ran
from daemon.engines.life import Loaded, LoadEngine, Sleep
from daemon.engines.messages import Answer, Load, Order, PutAway, Request, SharedAudio, Warm, framed, read
from daemon.settings.schema import Settings
from streaming.job import Captured, Job, Result

_log = logging.getLogger(__name__)

_DEATHS = 2
"""Ends of the process after which it is a job's fault."""

_FAREWELL = 5.0
"""Seconds in which a process ends that has closed its socket."""

_LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start it again, where it cannot be started."""


class EngineEndedError(Exception):
    """The process ended before it answered.

    Attributes:
        busy_with_it: whether it was at this request, and not at one before it.
    """

    def __init__(self, *, busy_with_it: bool) -> None:
        super().__init__("the engine's process ended")
        self.busy_with_it = busy_with_it


class EngineProcess:
    """One life of the process.

    Args:
        process: it.
        reader: what it says.
        connection: the socket to it.
        audio: the memory that it shares.
        told: called with what it says of its sleep.

    Attributes:
        pid: its number.
        memory: of the GPUs that it uses, as it was after its last answer.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        connection: socket.socket,
        audio: SharedAudio,
        told: Callable[[Sleep], None],
    ) -> None:
        self.memory: Mapping[str, GpuMemory] = {}
        self.pid = process.pid
        self._process = process
        self._reader, self._writer = streams
        self._connection = connection
        self._audio = audio
        self._told = told
        self._gone = False
        self._numbers = itertools.count()
        # In the order in which they were asked, which is that in which they are answered.
        self._asked: dict[int, tuple[asyncio.Future[Any], int | None]] = {}

    @classmethod
    async def start(cls, settings: Settings, audio: SharedAudio, told: Callable[[Sleep], None]) -> EngineProcess:
        """Start the process. Nothing is loaded yet.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn(settings, theirs.fileno(), audio.descriptor)
        return cls(process, await asyncio.open_unix_connection(sock=ours), ours, audio, told)

    async def run(self) -> None:
        """Take in what it says until it is gone."""
        try:
            while True:
                self._take(await read(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._gone = True
            self._forsake(at_work=True)
            self._writer.transport.abort()

    async def ending(self) -> str:
        """Return how it ended. One that says nothing any more, and does not end, is killed."""
        if not await asyncio.to_thread(self.ended, _FAREWELL):
            self.kill()
            await asyncio.to_thread(self._process.wait)
        code = self._process.returncode
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def ask(self, order: Order, place: int | None = None) -> asyncio.Future[Any]:
        """Let it do something, after all that it was asked before.

        Args:
            order: what.
            place: of the audio that it needs, which is free afterwards.

        Returns:
            What comes of it. It may raise `EngineEndedError`, or what it raised there.
        """
        number = next(self._numbers)
        data = framed(Request.of(number, order))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer, place
        if self._gone:
            self._forsake(at_work=False)
        else:
            self._writer.write(data)
        return answer

    def run_batch(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        """Let it run a batch."""
        return self.ask(*self._audio.put(jobs))

    def close(self) -> None:
        """Let it end: it does when nobody is at the other end of its socket."""
        with contextlib.suppress(OSError):  # it is gone already
            self._connection.shutdown(socket.SHUT_RDWR)

    def ended(self, seconds: float) -> bool:
        """Wait at most `seconds` for it to end, and return whether it has."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self._process.kill()

    def _take(self, message: Answer | Sleep) -> None:
        if isinstance(message, Sleep):
            self._told(message)
            return
        self.memory = message.memory
        answer, place = self._asked.pop(message.number)
        self._audio.free(place)
        if answer.cancelled():
            return
        if message.error is not None:
            answer.set_exception(message.error)
        else:
            answer.set_result(message.value)

    def _forsake(self, *, at_work: bool) -> None:
        """Tell whoever waits for an answer that there will be none.

        Args:
            at_work: whether it ended while it was at the first of them.
        """
        for answer, place in self._asked.values():
            self._audio.free(place)
            if not answer.cancelled():
                answer.set_exception(EngineEndedError(busy_with_it=at_work))
            at_work = False
        self._asked.clear()


def _spawn(settings: Settings, connection: int, audio: int) -> subprocess.Popen[bytes]:
    arguments = [connection, audio, settings.scheduler.batch, settings.log.level, settings.log.format]
    return subprocess.Popen(
        [sys.executable, "-m", "daemon.engines.child", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        pass_fds=(connection, audio),
        # Its modules are where ours are, wherever it is started.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


class ProcessHost:
    """An engine that lives in a process of its own. It is its own worker.

    Attributes:
        sleep: how the engine sleeps.
        restarts: how often it ended by itself, and was started again.
    """

    def __init__(self, settings: Settings, load: LoadEngine) -> None:
        self.sleep = Sleep()
        self.restarts = 0
        self._settings = _of_an_engine(settings)
        self._load = load
        self._audio = SharedAudio(settings.scheduler.batch)
        self._process: EngineProcess | None = None
        self._processes: list[EngineProcess] = []  # of all lives whose end nobody has seen yet
        self._lives: set[asyncio.Task[None]] = set()
        self._slept = Sleep()  # in earlier lives
        self._up = asyncio.Event()  # it is loaded and warm, and can be given batches
        self._loaded: Loaded | None = None
        self._closed = False

    # --- its life --------------------------------------------------------------------------------------------------

    async def load(self) -> Loaded:
        process = await self._started()
        try:
            self._loaded = await process.ask(Load(self._settings, self._load))
        except RuntimeError as error:
            raise ServiceError(f"the models cannot be loaded: {error}") from None
        except EngineEndedError:
            raise ServiceError(
                "the engine's process ended while it loaded the models: see the lines above this one; "
                "if there are none, the system may have killed it for want of memory"
            ) from None
        assert self._loaded is not None, "it has answered"
        return self._loaded

    async def warm(self) -> Captured:
        assert self._process is not None, "load it first"
        captured: Captured = await self._process.ask(Warm())
        self._up.set()
        return captured

    async def unload(self) -> None:
        await self._up.wait()
        assert self._process is not None, "it is up"
        with contextlib.suppress(EngineEndedError):  # then it is not loaded either
            await self._process.ask(PutAway())

    def close(self) -> None:
        self._closed = True
        for process in self._processes:
            process.close()

    def ended(self, seconds: float) -> bool:
        here = list(self._processes)  # the loop may go on, and see one end meanwhile
        for process in here:
            if not process.ended(seconds):
                process.kill()  # it hangs, and holds nothing that is not ours
        return all(process.ended(seconds) for process in here)

    def gpu_memory(self) -> Mapping[str, GpuMemory]:
        return self._process.memory if self._process is not None else {}

    async def _started(self) -> EngineProcess:
        """Start the process, and see to it that it is started again when it ends."""
        self._process = process = await EngineProcess.start(self._settings, self._audio, self._told)
        self._processes.append(process)
        self._slept = self.sleep
        life = asyncio.create_task(self._live(process), name="engine's process")
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return process

    async def _live(self, process: EngineProcess) -> None:
        await process.run()
        was_up = self._up.is_set()
        self._up.clear()  # before anybody whose batch was with it asks again
        how = await process.ending()
        self._processes.remove(process)
        if self._closed or not was_up:  # whoever is starting it sees that it failed
            return
        _log.error("the engine's process ended (%s): it is started again, and what it was at runs again", how)
        await self._start_again()

    async def _start_again(self) -> None:
        pause = 1.0
        while not self._closed:
            try:
                process = await self._started()
                await process.ask(Load(self._settings, self._load))
                await process.ask(Warm())
            except (ServiceError, EngineEndedError, RuntimeError, OSError) as error:
                _log.error("the engine cannot be started again (%s): the next attempt is in %.0f s", error, pause)
                if self._process is not None:
                    self._process.close()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._told(Sleep())
                self.restarts += 1
                self._up.set()
                return

    def _told(self, sleep: Sleep) -> None:
        before = self._slept
        self.sleep = replace(sleep, seconds=before.seconds + sleep.seconds, times=before.times + sleep.times)

    # --- its batches -----------------------------------------------------------------------------------------------

    @property
    def worker(self) -> ProcessHost:
        return self

    @property
    def ahead(self) -> bool:
        """Whether a full batch may wait there while another runs.

        A GPU would wait for the service otherwise. On a CPU a batch lasts so long that the next may as well be taken
        when it is done, with whoever is most urgent then.
        """
        return self._loaded is not None and self._loaded.device != "cpu"

    def teacher_apart(self) -> bool:
        return self._loaded is not None and self._loaded.teacher_apart

    def submit(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        # Sent at once: the loop may be busy with results before another task has its turn.
        sent = self._process.run_batch(jobs) if self._process is not None and self._up.is_set() else None
        return asyncio.ensure_future(self._ran(jobs, sent))

    async def _ran(self, jobs: Sequence[Job], sent: asyncio.Future[Ran] | None = None) -> Ran:
        """Return what came of a batch, however often the process ends."""
        deaths = 0
        while deaths < _DEATHS:
            if sent is None:
                await self._up.wait()
                assert self._process is not None, "it is up"
                sent = self._process.run_batch(jobs)
            try:
                return await sent
            except EngineEndedError as end:
                deaths += end.busy_with_it
                sent = None
        return await self._apart(jobs)

    async def _apart(self, jobs: Sequence[Job]) -> Ran:
        """Run a batch during which the process ended in halves, so that the job whose fault it is fails alone."""
        if len(jobs) == 1:
            reason = f"the engine's process ended {_DEATHS} times during this job"
            failed = Result(revision=jobs[0].revision, error=reason)
            return Ran(0.0, [failed], [Failure(1, no_memory=False, reason=reason, trace=reason)])
        half = len(jobs) // 2
        first, second = await self._ran(jobs[:half]), await self._ran(jobs[half:])
        return Ran(
            first.seconds + second.seconds,
            [*first.results, *second.results],
            [*first.failures, *second.failures],
        )


def _of_an_engine(settings: Settings) -> Settings:
    """Return the settings that an engine needs: tokens and passwords stay where they are."""
    own = {name: getattr(settings, name) for name in ("models", "escalate", "scheduler", "log")}
    return Settings().model_copy(update=own)
