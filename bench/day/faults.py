"""What breaks: the broker, the microphone and the daemon, each in a task of its own, so that faults overlap.

Owns breaking, mending, and noting from when to when. Knows nothing of who speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence

from bench.day.history import Clock, History
from bench.day.schedule import Fault, FaultKind
from bench.harness.daemon import Daemon
from bench.harness.mqtt_subscriber import Mqtt
from bench.sound_server import SoundServer
from bench.tasks import wait_until

_PATIENCE = 60.0

Inject = Callable[[Fault], Awaitable[None]]


class FaultInjector:
    def __init__(self, clock: Clock, history: History, mqtt: Mqtt, sound: SoundServer, daemon: Daemon) -> None:
        self._clock = clock
        self._history = history
        self._mqtt = mqtt
        self._sound = sound
        self._daemon = daemon

    async def run(self, faults: Sequence[Fault]) -> None:
        """Inject all faults, each at its time or, where the one before took longer, after it."""
        async with asyncio.TaskGroup() as tasks:
            for thing in ("broker", "microphone", "daemon"):
                tasks.create_task(self._one_by_one([fault for fault in faults if fault.kind.startswith(thing)]))

    async def _one_by_one(self, faults: Sequence[Fault]) -> None:
        injectors: dict[FaultKind, Inject] = {
            FaultKind.BROKER_KILLED: self._kill_broker,
            FaultKind.BROKER_FROZEN: self._freeze_broker,
            FaultKind.MICROPHONE_UNPLUGGED: self._unplug,
            FaultKind.DAEMON_STOPPED: self._stop_daemon,
            FaultKind.DAEMON_KILLED: self._kill_daemon,
            FaultKind.DAEMON_KILLED_TELLING: self._kill_telling_daemon,
        }
        for fault in faults:
            await self._clock.until(fault.at)
            await injectors[fault.kind](fault)

    def _incident(self, fault: Fault) -> contextlib.AbstractContextManager[None]:
        return self._history.incident(fault.kind, self._clock.now())

    # --- the broker ------------------------------------------------------------------------------------------------

    async def _kill_broker(self, fault: Fault) -> None:
        # A broker forgets what it acknowledged and had neither saved nor passed on when it was killed: that would be
        # its loss, not ours. It passes on before it acknowledges, so it must have somebody to pass it on to.
        await asyncio.wait_for(self._mqtt.subscriber.subscribed.wait(), _PATIENCE)
        with self._incident(fault):
            self._mqtt.broker.stop()
            await self._clock.sleep(fault.lasts)
            await asyncio.to_thread(self._mqtt.broker.start)

    async def _freeze_broker(self, fault: Fault) -> None:
        with self._incident(fault):
            self._mqtt.broker.signal(signal.SIGSTOP)
            await self._clock.sleep(fault.lasts)
            self._mqtt.broker.signal(signal.SIGCONT)

    # --- the microphone --------------------------------------------------------------------------------------------

    async def _unplug(self, fault: Fault) -> None:
        with self._incident(fault):
            await asyncio.to_thread(self._sound.unplug)
            await self._clock.sleep(fault.lasts)
            await self._microphones_open(0)  # else the daemon would not know that it was away
            await asyncio.to_thread(self._sound.plug)
            await self._microphones_open(1)

    async def _microphones_open(self, number: int) -> None:
        async def open_now() -> bool:
            return (await self._daemon.sample()).get("whisperd_microphones_open") == number

        if not await wait_until(open_now, 3 * _PATIENCE):
            raise RuntimeError(f"there were not {number} microphones open in {3 * _PATIENCE:.0f} s")

    # --- the daemon ------------------------------------------------------------------------------------------------

    async def _stop_daemon(self, fault: Fault) -> None:
        with self._incident(fault):
            await self._daemon.stop()
            await self._start_daemon(fault)

    async def _kill_daemon(self, fault: Fault) -> None:
        with self._incident(fault):
            self._daemon.signal(signal.SIGKILL)
            await asyncio.to_thread(self._daemon.wait)
            await self._start_daemon(fault)

    async def _kill_telling_daemon(self, fault: Fault) -> None:
        killed = asyncio.Event()

        def kill() -> None:
            self._daemon.signal(signal.SIGKILL)
            killed.set()

        self._history.when_told = kill
        with contextlib.suppress(TimeoutError):  # nobody speaks: then at any moment
            await asyncio.wait_for(killed.wait(), _PATIENCE)
        self._history.when_told = None
        await self._kill_daemon(fault)

    async def _start_daemon(self, fault: Fault) -> None:
        await self._clock.sleep(fault.lasts)
        await asyncio.to_thread(self._daemon.start)
