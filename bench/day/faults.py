"""What breaks: the broker, the microphone and the daemon, each by a hand of its own, so that faults overlap.

Owns doing it, mending it, and noting from when to when. Knows nothing of who speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.broker import Broker
from bench.day.book import Book, Clock
from bench.day.daemon import Daemon
from bench.day.recorder import Recorder
from bench.day.schedule import Fault, Kind
from bench.sound_server import SoundServer

_PATIENCE = 60.0

Break = Callable[[Fault], Awaitable[None]]


class Hands:
    def __init__(
        self, clock: Clock, book: Book, broker: Broker, recorder: Recorder, sound: SoundServer, daemon: Daemon
    ) -> None:
        self._clock = clock
        self._book = book
        self._broker = broker
        self._recorder = recorder
        self._sound = sound
        self._daemon = daemon

    async def run(self, faults: Sequence[Fault]) -> None:
        """All of them, each in its time or, where the one before took longer, after it."""
        do: dict[Kind, Break] = {
            Kind.BROKER_KILLED: self._kill_broker,
            Kind.BROKER_FROZEN: self._freeze_broker,
            Kind.MICROPHONE_UNPLUGGED: self._unplug,
            Kind.DAEMON_STOPPED: self._stop_daemon,
            Kind.DAEMON_KILLED: self._kill_daemon,
            Kind.DAEMON_KILLED_TELLING: self._kill_telling_daemon,
        }
        async with asyncio.TaskGroup() as tasks:
            for thing in ("broker", "microphone", "daemon"):
                mine = [fault for fault in faults if fault.kind.startswith(thing)]
                tasks.create_task(self._one_by_one(mine, do))

    async def _one_by_one(self, faults: Sequence[Fault], do: dict[Kind, Break]) -> None:
        for fault in faults:
            await self._clock.until(fault.at)
            await do[fault.kind](fault)

    # --- the broker ------------------------------------------------------------------------------------------------

    async def _kill_broker(self, fault: Fault) -> None:
        # A broker forgets what it acknowledged and had neither saved nor passed on when it was killed: that would be
        # its loss, not ours. It passes on before it acknowledges, so it must have somebody to pass it on to.
        await asyncio.wait_for(self._recorder.subscribed.wait(), _PATIENCE)
        happened = self._begin(fault)
        self._broker.stop()
        await self._clock.sleep(fault.lasts)
        await asyncio.to_thread(self._broker.start)
        happened()

    async def _freeze_broker(self, fault: Fault) -> None:
        happened = self._begin(fault)
        self._broker.signal(signal.SIGSTOP)
        await self._clock.sleep(fault.lasts)
        self._broker.signal(signal.SIGCONT)
        happened()

    # --- the microphone --------------------------------------------------------------------------------------------

    async def _unplug(self, fault: Fault) -> None:
        happened = self._begin(fault)
        await asyncio.to_thread(self._sound.unplug)
        await self._clock.sleep(fault.lasts)
        await self._microphones_open(0)  # else the daemon would not know that it was away
        await asyncio.to_thread(self._sound.plug)
        await self._microphones_open(1)
        happened()

    async def _microphones_open(self, number: int) -> None:
        async with asyncio.timeout(3 * _PATIENCE):
            while (await self._daemon.sample()).get("whisperd_microphones_open") != number:  # noqa: ASYNC110 - below
                await asyncio.sleep(0.1)  # a gauge has no event to wait for

    # --- the daemon ------------------------------------------------------------------------------------------------

    async def _stop_daemon(self, fault: Fault) -> None:
        happened = self._begin(fault)
        await self._daemon.terminate()
        await self._start_daemon(fault)
        happened()

    async def _kill_daemon(self, fault: Fault) -> None:
        happened = self._begin(fault)
        self._daemon.kill()
        await self._daemon.wait_killed()
        await self._start_daemon(fault)
        happened()

    async def _kill_telling_daemon(self, fault: Fault) -> None:
        killed = asyncio.Event()

        def kill() -> None:
            self._daemon.kill()
            killed.set()

        self._book.when_told = kill
        with contextlib.suppress(TimeoutError):  # nobody speaks: then at any moment
            await asyncio.wait_for(killed.wait(), _PATIENCE)
        self._book.when_told = None
        await self._kill_daemon(fault)

    async def _start_daemon(self, fault: Fault) -> None:
        await self._clock.sleep(fault.lasts)
        await self._daemon.start()

    def _begin(self, fault: Fault) -> Callable[[], None]:
        """Notes the fault; call what it returns when it is mended."""
        happened = self._book.begin(fault.kind, self._clock.now())

        def mended() -> None:
            happened.ended = time.monotonic()

        return mended
