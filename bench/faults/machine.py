"""What a machine does to a service: no descriptors, no disk, a clock that jumps, a broker that freezes, signals.

Owns the faults. Those with a broker have a real one, and a subscriber with a session that is not ours: a final has
arrived when it is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from bench.broker import Broker
from bench.day.book import Book
from bench.day.recorder import Recorder
from bench.faults.people import PCM, UTTERANCES, Witness, speak, stream, witness
from bench.faults.service import PATIENCE, Outcome, Service, running


async def exhausted(service: Service, times: int) -> Outcome:
    """No descriptor left to accept with: it is said once, and those who are in are served; then all are again."""
    before = resource.prlimit(service.popen.pid, resource.RLIMIT_NOFILE)
    recovered = 0
    async with witness(service) as listening, stream(service, "inside", max_queue=None) as inside:
        for _ in range(times):
            resource.prlimit(service.popen.pid, resource.RLIMIT_NOFILE, (service.descriptors() + 4, before[1]))
            waiting = [socket.create_connection(service.address) for _ in range(12)]
            while "a connection cannot be accepted" not in service.log.read_text():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
            for at in range(0, len(PCM), 32000):
                await inside.send(PCM[at : at + 32000])
            await inside.send('{"type":"flush"}')
            while json.loads(await inside.recv())["type"] != "flushed":
                pass
            for sock in waiting:
                sock.close()
            recovered += await speak(service, "after", PCM)
        arrived = await listening.arrived("inside", times * UTTERANCES)
        arrived += await listening.arrived("after", times * UTTERANCES)
    resource.prlimit(service.popen.pid, resource.RLIMIT_NOFILE, before)
    said = service.log.read_text().count("a connection cannot be accepted")
    return Outcome(times, recovered if said == 1 else 0, 2 * times * UTTERANCES, arrived, f"said {said} time(s)")


_FROZEN = 5.0
"""Seconds that the broker stands still, apart from what is said meanwhile: longer than its clients put up with."""

_FULL = 16384
"""Bytes that a file may have on a full disk: more than the log needs, less than the finals do."""


# --- with a broker ---------------------------------------------------------------------------------------------------


@dataclass
class Home:
    """A broker, and who listens there."""

    broker: Broker
    book: Book

    @property
    def settings(self) -> dict[str, object]:
        return {"mqtt": {"host": "127.0.0.1", "port": self.broker.port, "keepalive": 2, "discovery": False}}

    @property
    def ids(self) -> set[str]:
        return {each.id for each in self.book.arrivals}

    async def arrived(self, ids: set[str]) -> int:
        """How many of these: once it is all, or nothing comes any more."""
        deadline = time.monotonic() + PATIENCE
        while not ids <= self.ids and time.monotonic() < deadline:  # noqa: ASYNC110 - the library's thread has no event
            await asyncio.sleep(0.1)
        return len(ids & self.ids)

    async def count(self, finals: int) -> int:
        deadline = time.monotonic() + PATIENCE
        while len(self.ids) < finals and time.monotonic() < deadline:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)
        return len(self.ids)

    @property
    def doubled(self) -> int:
        return len(self.book.arrivals) - len(self.ids)


@asynccontextmanager
async def home(folder: Path, *, sessions: bool = False) -> AsyncIterator[Home]:
    """sessions: what waits for whoever listens outlives the broker."""
    broker = Broker(folder)
    if sessions:
        broker.keep_sessions()
    broker.start()
    made = Home(broker, Book({}))
    recorder = Recorder(broker.port, "whisperd", made.book.arrive)
    try:
        await recorder.start()
        yield made
        await recorder.stop()
    finally:
        broker.stop()


async def frozen_broker(folder: Path, times: int) -> Outcome:
    """The broker stands still while somebody speaks, and goes on afterwards."""
    return (await _with_the_broker_away(folder, times))[0]


async def jumping_clock(folder: Path, times: int) -> Outcome:
    """The time of day jumps by days and years, also while finals wait for the broker."""
    return (await _with_the_broker_away(folder, times, "clock"))[0]


async def full_disk(folder: Path, times: int) -> Outcome:
    """No byte more can be written where finals wait for the broker, who is away; then there is room again."""
    outcome, log = await _with_the_broker_away(folder, times, meanwhile=_no_room)
    said = log.count("cannot be used")
    return replace(outcome, survived=outcome.survived if said else 0, note=f"said {said} time(s)")


@contextlib.contextmanager
def _no_room(service: Service) -> Iterator[None]:
    soft, hard = resource.prlimit(service.popen.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.popen.pid, resource.RLIMIT_FSIZE, (_FULL, hard))
    yield
    resource.prlimit(service.popen.pid, resource.RLIMIT_FSIZE, (soft, hard))


async def _with_the_broker_away(
    folder: Path,
    times: int,
    trouble: str = "",
    meanwhile: Callable[[Service], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> tuple[Outcome, str]:
    """What came of it, and the service's log."""
    survived = 0
    async with home(folder) as made:
        with running(folder, made.settings, trouble) as service:
            for number in range(times):
                made.broker.signal(signal.SIGSTOP)
                with meanwhile(service):
                    survived += await speak(service, f"s{number}", PCM)
                    await asyncio.sleep(_FROZEN)
                made.broker.signal(signal.SIGCONT)
            arrived = await made.count(times * UTTERANCES)
        log = service.log.read_text()
    return Outcome(times, survived, times * UTTERANCES, arrived), log


# --- signals, at any moment ------------------------------------------------------------------------------------------


@dataclass
class Told:
    """Of all lives. began: utterances that began to be said. ids: finals that the streams' own clients read."""

    began: int = 0
    finals: int = 0
    seconds: float = 0.0
    ids: set[str] = field(default_factory=set)


async def terminated(folder: Path, times: int, streams: int = 6) -> Outcome:
    """SIGTERM while everybody speaks: what began to be said is told to its client and to MQTT before the end."""
    told, survived = Told(), 0
    async with home(folder) as made:
        for life in range(times):
            with running(folder, made.settings) as service:
                await _talk_until(service, signal.SIGTERM, life, streams, told)
                survived += await asyncio.to_thread(service.popen.wait, PATIENCE) == 0
        arrived = await made.arrived(told.ids)
        note = f"{told.seconds:.0f} s of audio sent; finals told {told.finals}; doubled {made.doubled}"
    return Outcome(times, survived, told.began, arrived, note)


async def killed(folder: Path, times: int, streams: int = 6) -> Outcome:
    """SIGKILL while everybody speaks: what anybody was told reaches MQTT, be it from the next life."""
    told, survived = Told(), 0
    async with home(folder) as made:
        for life in range(times):
            with running(folder, made.settings) as service:
                await _talk_until(service, signal.SIGKILL, life, streams, told)
                await asyncio.to_thread(service.popen.wait, PATIENCE)
        with running(folder, made.settings) as service:
            survived = times * await speak(service, "after", PCM)
            arrived = await made.arrived(told.ids)
            service.end()
        note = f"{told.seconds:.0f} s of audio sent, {told.began} utterances begun; counted are those that were told"
    return Outcome(times, survived, len(told.ids), arrived, f"{note}; doubled {made.doubled}")


async def _talk_until(service: Service, end: signal.Signals, life: int, streams: int, told: Told) -> None:
    dice = random.Random(life)
    async with contextlib.AsyncExitStack() as stack:
        listening: Witness = await stack.enter_async_context(witness(service))
        talks = [asyncio.create_task(_talk(service, f"s{number}", told)) for number in range(streams)]
        await asyncio.sleep(dice.uniform(0.5, 3.0))
        service.popen.send_signal(end)
        await asyncio.gather(*talks)
        await listening.over()
    told.ids |= listening.ids


async def _talk(service: Service, source: str, told: Told) -> None:
    """For ever, five times as fast as people do."""

    async def send(ws: ClientConnection) -> None:
        while True:
            for at in range(0, len(PCM), 3200):
                await ws.send(PCM[at : at + 3200])
                told.seconds += 0.1
                await asyncio.sleep(0.02)

    with contextlib.suppress(OSError, WebSocketException, EOFError):
        async with stream(service, source, max_queue=None) as ws:
            sending = asyncio.create_task(send(ws))
            try:
                async for message in ws:
                    event = json.loads(message)
                    told.began += event["type"] == "speech_started"
                    if event["type"] == "final":
                        told.finals += 1
                        told.ids.add(event["id"])
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
