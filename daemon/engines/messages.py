"""What the service and an engine's process say to each other, and the memory in which they share audio.

Owns the messages, how they are framed on a socket (a length, a pickle), and where a batch's audio lies. Both ends are
the same program, started by the same user: nobody else can write to that socket. Knows nothing of when something is
said.

Audio is most of a batch: 2 MB for 30 s. It lies in memory that both processes have, so that it is copied once and
neither pickled nor sent. What finds no room there is sent in the message.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from daemon.common.metrics import GpuMemory
from daemon.engines.life import LoadEngine
from daemon.settings.schema import Settings
from streaming.job import SAMPLE_RATE, Job, Waveform

LONGEST = 30.0
"""Seconds that any Whisper hears."""

IN_FLIGHT = 2
"""Batches of one engine: one that runs, and one that waits."""

_LENGTH = struct.Struct("!Q")
_NOTHING = np.zeros(0, np.float32)
_BYTES = np.dtype(np.float32).itemsize


# --- to the engine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Load the engine; the answer is `Loaded`."""

    settings: Settings
    load: LoadEngine


@dataclass(frozen=True, slots=True)
class Warm:
    """Warm it up; the answer is `Captured`."""


@dataclass(frozen=True, slots=True)
class PutAway:
    """Put it away; the answer is None."""


@dataclass(frozen=True, slots=True)
class Run:
    """Run a batch; the answer is `Ran`.

    Attributes:
        jobs: those whose audio lies in the shared memory have none of their own.
        places: where each job's audio begins there, and how many samples it has; None where the job has its own.
    """

    jobs: Sequence[Job]
    places: Sequence[tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class Request:
    """An order, pickled: one that cannot be read there is answered like any that fails."""

    number: int
    order: bytes

    @classmethod
    def of(cls, number: int, order: object) -> Request:
        return cls(number, pickle.dumps(order, protocol=pickle.HIGHEST_PROTOCOL))

    def read(self) -> Any:
        return pickle.loads(self.order)


# --- from the engine -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request.

    Attributes:
        number: the request's.
        value: what came of it.
        error: why nothing did; None otherwise.
        memory: of the GPUs, as it is now.
    """

    number: int
    value: Any = None
    error: Exception | None = None
    memory: Mapping[str, GpuMemory] = field(default_factory=dict)


# --- on a socket -----------------------------------------------------------------------------------------------------


def framed(message: object) -> bytes:
    """Return a message as it goes over the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Any:
    """Return the next message.

    Raises:
        asyncio.IncompleteReadError: the other end is gone.
        ConnectionError: likewise.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


def receive(connection: socket.socket) -> Any:
    """Return the next message; None when the other end is gone."""
    with connection.makefile("rb", buffering=0) as file:
        head = file.read(_LENGTH.size)
        if head is None or len(head) < _LENGTH.size:
            return None
        body = bytearray(_LENGTH.unpack(head)[0])
        view, got = memoryview(body), 0
        while got < len(body):
            count = file.readinto(view[got:])
            if not count:
                return None
            got += count
    return pickle.loads(body)


# --- the audio -------------------------------------------------------------------------------------------------------


class SharedAudio:
    """Memory for the audio of the batches in flight. Pages of it that were never used take no memory.

    Args:
        batch: the most jobs in a batch.
        places: for so many batches.
        descriptor: of the memory that the other process made; None to make it.
    """

    def __init__(self, batch: int, places: int = IN_FLIGHT, descriptor: int | None = None) -> None:
        self.batch, self.places = batch, places
        self.samples = batch * round(LONGEST * SAMPLE_RATE)
        size = places * self.samples * _BYTES
        self.descriptor = _memory(size) if descriptor is None else descriptor
        self._memory = np.frombuffer(mmap.mmap(self.descriptor, size), np.float32)
        self._free = list(range(places))

    def put(self, jobs: Sequence[Job]) -> tuple[Run, int | None]:
        """Write the audio of a batch down.

        Returns:
            The message, and the place that it takes until it is free again; None where there was no room.
        """
        sizes = [len(job.audio) for job in jobs]
        if not self._free or sum(sizes) > self.samples:
            return Run(list(jobs), [None] * len(jobs)), None
        place = self._free.pop()
        begin = place * self.samples
        places: list[tuple[int, int] | None] = []
        for job, size in zip(jobs, sizes, strict=True):
            self._memory[begin : begin + size] = job.audio
            places.append((begin, size))
            begin += size
        return Run([replace(job, audio=_NOTHING) for job in jobs], places), place

    def free(self, place: int | None) -> None:
        """Let another batch have a place."""
        if place is not None:
            self._free.append(place)

    def jobs(self, order: Run) -> list[Job]:
        """Return the jobs of a message, with their audio, which is theirs until the answer is sent."""
        return [
            job if place is None else replace(job, audio=self._at(*place))
            for job, place in zip(order.jobs, order.places, strict=True)
        ]

    def _at(self, begin: int, samples: int) -> Waveform:
        return self._memory[begin : begin + samples]


def _memory(size: int) -> int:
    """Return the descriptor of so many bytes of memory that another process may be given."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("whisperd-audio")
    else:  # systems other than Linux
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
