"""The program of an engine's process: it does what it is told, one thing after another, and says what came of it.

Owns that program. It ends when whoever started it is gone, at once, whatever the engine does. Knows nothing of streams.

    python -m daemon.engines.child SOCKET AUDIO BATCH PLACES LEVEL FORMAT
        SOCKET, AUDIO: descriptors, of the socket and of the memory that is shared
        BATCH, PLACES: the most jobs in a batch, and batches in that memory; LEVEL, FORMAT: of the log
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, cast

from daemon.common.errors import ServiceError
from daemon.common.logs import Format, to_stderr
from daemon.engines import gpu_memory
from daemon.engines.batch import run_batch
from daemon.engines.life import EngineLife, Sleep
from daemon.engines.messages import Answer, Load, PutAway, Request, Run, SharedAudio, Warm, framed, receive
from daemon.settings.environment import service_environment


class Child:
    """An engine, at the end of a socket."""

    def __init__(self, connection: socket.socket, audio: SharedAudio) -> None:
        self._connection = connection
        self._audio = audio
        self._life: EngineLife | None = None
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def run(self) -> None:
        """Do what is asked for, for as long as somebody may ask."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        while True:
            self._obey(self._requests.get())

    def _listen(self) -> None:
        """Take requests in while the engine works: the next batch is here when it is done with one."""
        try:
            while (request := receive(self._connection)) is not None:
                self._requests.put(request)
        finally:
            os._exit(0)  # nobody is left to hear; a batch that runs is in nobody's interest, and may never end

    def _obey(self, request: Request) -> None:
        answer = Answer(request.number)
        try:
            value = self._done(request.read())
            answer = Answer(request.number, value, memory=gpu_memory.memory())
        except ServiceError as error:
            answer = Answer(request.number, error=error)
        except Exception as error:
            # Not the error itself: its parts may be what cannot be sent.
            answer = Answer(request.number, error=RuntimeError(f"{type(error).__name__}: {error}"))
        self._say(answer)

    def _done(self, order: Load | Warm | PutAway | Run) -> Any:
        if isinstance(order, Load):
            self._life = EngineLife(order.settings, order.load, self._say)
            return self._life.load()
        assert self._life is not None, "load it first"
        match order:
            case Run():
                return run_batch(self._life.run, self._audio.jobs(order))
            case Warm():
                return self._life.warm()
            case PutAway():
                return self._life.put_away()

    def _say(self, message: Answer | Sleep) -> None:
        self._connection.sendall(framed(message))


def begin(arguments: Sequence[str]) -> tuple[socket.socket, SharedAudio]:
    """Begin the life of such a process: its log, and what it leaves to its service.

    Args:
        arguments: as above.

    Returns:
        The socket, and the memory that is shared.
    """
    descriptor, audio, batch, places, level, form = arguments
    outlive_signals()
    to_stderr(level, service_environment().journal, cast(Format, form))
    return socket.socket(fileno=int(descriptor)), SharedAudio(int(batch), int(places), int(audio))


def outlive_signals() -> None:
    """Ignore what whoever stops the service sends to all of its processes: this one ends after its service has."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str]) -> None:
    child = Child(*begin(arguments))
    try:
        child.run()
    except ConnectionError:
        os._exit(0)  # as above


if __name__ == "__main__":
    main(sys.argv[1:])
