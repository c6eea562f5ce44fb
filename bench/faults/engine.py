"""What an engine does to a service: an exception, a wedge, no memory, numbers that are none, too much to do.

Owns the faults; the engines that have them are in `served.py`. Counts as `clients.py` does; an utterance whose client
was told that there will be no final of it has failed, and is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from functools import partial

import psutil
from websockets.exceptions import ConnectionClosed

from bench.faults.people import PCM, UTTERANCES, speak, stream, witness
from bench.faults.service import COST, Outcome
from bench.harness.clients import tell
from bench.harness.daemon import PATIENCE, Daemon
from bench.tasks import wait_until


async def together(service: Daemon, times: int) -> Outcome:
    """Let so many speak at once that batches have many jobs, with an engine whose trouble must be seen."""
    async with witness(service) as listening:
        served = await asyncio.gather(*(speak(service, f"s{number}", PCM[640 * number :]) for number in range(times)))
        arrived = sum([await listening.arrived(f"s{number}", UTTERANCES) for number in range(times)])
        failed = sum(listening.failed.values())
    sizes = [int(size) for size in re.findall(r"a batch of (\d+) jobs does not fit into memory", service.log)]
    note = f"the operator was told {len(sizes)} time(s)" if sizes else ""
    # Said once, and again only where even less does not fit.
    told = bool(sizes) and sizes == sorted(set(sizes), reverse=True)
    return Outcome(times, sum(served) if failed or told else 0, times * UTTERANCES, arrived, note, failed)


async def wedged(service: Daemon, times: int) -> Outcome:
    """Let the decode hang while everybody speaks.

    It is noticed, and the service no longer vouches for itself. Then it goes on by itself, and all finals come.
    """
    wedge = service.log_file.parent / "wedge"
    noticed = 0
    async with witness(service) as listening:
        for number in range(times):
            wedge.touch()
            speaking = asyncio.create_task(speak(service, f"w{number}", PCM))
            await _until(service, 503)
            noticed += not speaking.done()
            wedge.unlink()
            await speaking
            await _until(service, 200)
        arrived = sum([await listening.arrived(f"w{number}", UTTERANCES) for number in range(times)])
    return Outcome(times, noticed, times * UTTERANCES, arrived, f"noticed {noticed} time(s)")


async def killed(service: Daemon, times: int) -> Outcome:
    """Kill the engine's process while everybody speaks, so many times. It comes back, and nobody notices."""
    came_back = 0
    people = 8
    async with witness(service) as listening:
        speaking = [asyncio.create_task(speak(service, f"s{at}", PCM, 3200, 0.1)) for at in range(people)]
        for number in range(1, times + 1):
            (engine,) = psutil.Process(service.pid).children()
            engine.kill()
            came_back += await wait_until(partial(_restarted, service, number), PATIENCE)
        served = await asyncio.gather(*speaking)
        arrived = sum([await listening.arrived(f"s{at}", UTTERANCES) for at in range(people)])
        failed = sum(listening.failed.values())
    well = came_back if all(served) else 0
    return Outcome(times, well, people * UTTERANCES, arrived, f"{people} speak; back {came_back} time(s)", failed)


async def _restarted(service: Daemon, times: int) -> bool:
    """Return whether the engine's process was started again so often."""
    _, metrics = await asyncio.to_thread(service.get, "/metrics")
    return f"whisperd_engine_restarts_total {times}.0" in metrics


async def _until(service: Daemon, status: int) -> None:
    """Wait until the service vouches for itself, or does not: until /readyz answers with `status`."""

    async def answers() -> bool:
        return (await asyncio.to_thread(service.get, "/readyz"))[0] == status

    assert await wait_until(answers, PATIENCE)


async def overload(service: Daemon, times: int) -> Outcome:
    """Let `times` streams come at the pace of speech, more than twice what an engine of this cost can do.

    Each asks for partials twice a second, and for finals. Partials thin, a new stream is told to come later, all finals
    come, and then the service recovers.
    """
    frame, pause = 3200, 0.1

    async def alone(name: str) -> bool:
        return await speak(service, name, PCM, frame, pause)

    async with witness(service) as listening:
        await alone("calm")
        refused = asyncio.create_task(_refused(service))
        served = await asyncio.gather(*(alone(f"s{number}") for number in range(times)))
        arrived = sum([await listening.arrived(f"s{number}", UTTERANCES) for number in range(times)])
        slowest = max(each.latency for each in listening.finals) / 1000
        turned_away = await refused
        await alone("after")
        arrived += await listening.arrived("calm", UTTERANCES) + await listening.arrived("after", UTTERANCES)
        crowded = sum(listening.partials[f"s{number}"] for number in range(times)) / times
    calm, after = listening.partials["calm"], listening.partials["after"]
    well = all(served) and turned_away and crowded < calm and after > crowded
    note = (
        f"partials of a stream {calm} -> {crowded:.1f} -> {after}; slowest final {slowest:.1f} s; 1013: {turned_away}"
    )
    capacity = f"{1 / COST:.0f} jobs a second; "
    return Outcome(times, times if well else 0, (times + 2) * UTTERANCES, arrived, capacity + note)


async def _refused(service: Daemon) -> bool:
    """Return whether, within the patience, somebody new is told to come later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE / 10):
            while True:
                async with stream(service, "late") as ws:
                    with contextlib.suppress(ConnectionClosed):
                        await tell(ws, "start")
                        if json.loads(await ws.recv()).get("code") == "busy":
                            await ws.wait_closed()
                            return ws.close_code == 1013
                await asyncio.sleep(0.05)
    return False
