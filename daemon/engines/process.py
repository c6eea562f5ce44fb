"""One life of the process that an engine is in, as the service sees it.

Owns the process, the socket to it, and what was asked there and is not answered. Knows nothing of what is asked, or of
what comes after its end (`lives.py`).
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
from typing import Any

from daemon.common.metrics import GpuMemory
from daemon.engines.batch import Ran
from daemon.engines.messages import Answer, Request, SharedAudio, framed, read
from daemon.engines.persistence import LostBatchError
from daemon.settings.schema import Settings
from streaming.job import Job

_log = logging.getLogger(__name__)

_FAREWELL = 5.0
"""Seconds in which a process ends that has closed its socket."""


class EngineEndedError(LostBatchError):
    """The process ended before it answered. Blamed is what it was at, and not what waited behind it."""

    def __init__(self, *, blamed: bool) -> None:
        super().__init__("the engine's process ended", blamed=blamed)


class EngineProcess:
    """One life of the process.

    Args:
        process: it.
        streams: what it says, and what is said to it.
        connection: the socket to it.
        audio: the memory that it shares.
        told: called with what it says without being asked (its `Sleep`, for one).

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
        told: Callable[[Any], None],
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
    async def start(
        cls, program: str, settings: Settings, audio: SharedAudio, told: Callable[[Any], None]
    ) -> EngineProcess:
        """Start the process. Nothing is loaded yet.

        Args:
            program: the module that it runs (`child.py`, for one).
            settings: what its log is like.
            audio: the memory to share.
            told: see the class.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn(program, settings, theirs.fileno(), audio)
        return cls(process, await asyncio.open_unix_connection(sock=ours), ours, audio, told)

    async def run(self) -> None:
        """Take in what it says until it is gone."""
        try:
            while True:
                self._take(await read(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception:
            _log.exception("what a process said cannot be read: it is given up")
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

    def ask(self, order: object, place: int | None = None) -> asyncio.Future[Any]:
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

    def _take(self, message: Any) -> None:
        if not isinstance(message, Answer):
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
                answer.set_exception(EngineEndedError(blamed=at_work))
            at_work = False
        self._asked.clear()


def _spawn(program: str, settings: Settings, connection: int, audio: SharedAudio) -> subprocess.Popen[bytes]:
    arguments = [connection, audio.descriptor, audio.batch, audio.places, settings.log.level, settings.log.format]
    return subprocess.Popen(
        [sys.executable, "-m", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        pass_fds=(connection, audio.descriptor),
        # Its modules are where ours are, wherever it is started.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
