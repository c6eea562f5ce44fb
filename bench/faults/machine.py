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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.faults.people import PCM, UTTERANCES, speak, stream, witness
from bench.faults.service import MQTT, Outcome, running
from bench.harness.clients import DISCONNECTS, Pacer, tell
from bench.harness.daemon import PATIENCE, Daemon
from bench.harness.mqtt_subscriber import mqtt
from bench.harness.usage import usage
from bench.tasks import background, wait_until


async def exhausted(service: Daemon, times: int) -> Outcome:
    """Leave no descriptor to accept with, then give them back.

    It is said once, and those who are in are served; afterwards everybody is.
    """
    before = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    recovered = 0
    async with witness(service) as listening, stream(service, "inside") as inside:
        for _ in range(times):
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (usage(service.pid).descriptors + 4, before[1]))
            waiting = [socket.create_connection(service.address) for _ in range(12)]
            await wait_until(lambda: "a connection cannot be accepted" in service.log, PATIENCE)
            for at in range(0, len(PCM), 32000):
                await inside.send(PCM[at : at + 32000])
            await tell(inside, "flush")
            while json.loads(await inside.recv())["type"] != "flushed":
                pass
            for sock in waiting:
                sock.close()
            recovered += await speak(service, "after", PCM)
        arrived = await listening.arrived("inside", times * UTTERANCES)
        arrived += await listening.arrived("after", times * UTTERANCES)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, before)
    said = service.log.count("a connection cannot be accepted")
    return Outcome(times, recovered if said == 1 else 0, 2 * times * UTTERANCES, arrived, f"said {said} time(s)")


# --- with a broker ---------------------------------------------------------------------------------------------------

_FROZEN = 5.0
"""Seconds that the broker stands still, apart from what is said meanwhile: longer than its clients put up with."""

_FULL = 16384
"""Bytes that a file may have on a full disk: more than the log needs, less than the finals do."""


async def frozen_broker(folder: Path, times: int) -> Outcome:
    """Let the broker stand still while somebody speaks, and go on afterwards."""
    return (await _with_the_broker_away(folder, times))[0]


async def jumping_clock(folder: Path, times: int) -> Outcome:
    """Let the time of day jump by days and years, also while finals wait for the broker."""
    return (await _with_the_broker_away(folder, times, "clock"))[0]


async def full_disk(folder: Path, times: int) -> Outcome:
    """Leave no room where finals wait for the broker, who is away; then there is room again."""
    outcome, log = await _with_the_broker_away(folder, times, meanwhile=_no_room)
    said = log.count("cannot be used")
    return replace(outcome, survived=outcome.survived if said else 0, note=f"said {said} time(s)")


@contextlib.contextmanager
def _no_room(service: Daemon) -> Iterator[None]:
    soft, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (_FULL, hard))
    yield
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (soft, hard))


async def _with_the_broker_away(
    folder: Path,
    times: int,
    trouble: str = "",
    meanwhile: Callable[[Daemon], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> tuple[Outcome, str]:
    """Freeze the broker while somebody speaks, and a while longer.

    Args:
        folder: an empty one.
        times: how often.
        trouble: of the service, see `served.py`.
        meanwhile: what else is wrong while the broker is away.

    Returns:
        What came of it, and the service's log.
    """
    survived = 0
    async with mqtt(folder) as home, contextlib.AsyncExitStack() as stack:
        service = stack.enter_context(running(folder, home.settings(**MQTT), trouble))
        for number in range(times):
            home.broker.signal(signal.SIGSTOP)
            with meanwhile(service):
                survived += await speak(service, f"s{number}", PCM)
                await asyncio.sleep(_FROZEN)
            home.broker.signal(signal.SIGCONT)
        arrived = len(await home.subscriber.ids_once(lambda ids: len(ids) >= times * UTTERANCES))
        return Outcome(times, survived, times * UTTERANCES, arrived), service.log


# --- signals, at any moment ------------------------------------------------------------------------------------------


@dataclass
class _Talk:
    """What was said and told in all lives of a service.

    Attributes:
        began: utterances that began to be said.
        finals: those that the streams' own clients read.
        seconds: of audio sent.
        ids: the finals that anybody read.
    """

    began: int = 0
    finals: int = 0
    seconds: float = 0.0
    ids: set[str] = field(default_factory=set)


async def terminated(folder: Path, times: int, streams: int = 6) -> Outcome:
    """Send SIGTERM while everybody speaks: what began to be said is told to its client and to MQTT before the end."""
    talk, survived = _Talk(), 0
    async with mqtt(folder) as home:
        for life in range(times):
            with running(folder, home.settings(**MQTT)) as service:
                survived += await _talk_until(service, signal.SIGTERM, life, streams, talk) == 0
        arrived = len(talk.ids & await home.subscriber.ids_once(talk.ids.issubset))
        doubled = home.subscriber.repeated
    note = f"{talk.seconds:.0f} s of audio sent; finals told {talk.finals}; doubled {doubled}"
    return Outcome(times, survived, talk.began, arrived, note)


async def killed(folder: Path, times: int, streams: int = 6) -> Outcome:
    """Send SIGKILL while everybody speaks: what anybody was told reaches MQTT, be it from the next life."""
    talk = _Talk()
    async with mqtt(folder) as home:
        for life in range(times):
            with running(folder, home.settings(**MQTT)) as service:
                await _talk_until(service, signal.SIGKILL, life, streams, talk)
        with running(folder, home.settings(**MQTT)) as service:
            survived = times * await speak(service, "after", PCM)
            arrived = len(talk.ids & await home.subscriber.ids_once(talk.ids.issubset))
            service.terminate()
        doubled = home.subscriber.repeated
    note = f"{talk.seconds:.0f} s of audio sent, {talk.began} utterances begun; counted are those that were told"
    return Outcome(times, survived, len(talk.ids), arrived, f"{note}; doubled {doubled}")


async def _talk_until(service: Daemon, end: signal.Signals, life: int, streams: int, talk: _Talk) -> int:
    """End a service at any moment while streams talk to it.

    Args:
        service: the service.
        end: the signal that ends it.
        life: the number of its life, which chooses the moment.
        streams: how many talk.
        talk: what was said and told; it is added to.

    Returns:
        Its exit code, once all connections have ended.
    """
    dice = random.Random(life)
    async with asyncio.timeout(PATIENCE), witness(service) as listening:
        async with asyncio.TaskGroup() as talks:
            for number in range(streams):
                talks.create_task(_talk(service, f"s{number}", talk))
            await asyncio.sleep(dice.uniform(0.5, 3.0))
            service.signal(end)
        await listening.over.wait()
    talk.ids |= {each.id for each in listening.finals}
    return await asyncio.to_thread(service.wait)


async def _talk(service: Daemon, source: str, talk: _Talk) -> None:
    """Talk until the connection ends, five times as fast as people do."""

    async def say(pacer: Pacer) -> None:
        try:
            while True:
                await pacer.say(PCM)
        finally:
            talk.seconds += pacer.seconds

    with contextlib.suppress(*DISCONNECTS):
        async with stream(service, source) as ws, background(say(Pacer(ws.send, 5))):
            async for message in ws:
                event = json.loads(message)
                talk.began += event["type"] == "speech_started"
                if event["type"] == "final":
                    talk.finals += 1
                    talk.ids.add(event["id"])
