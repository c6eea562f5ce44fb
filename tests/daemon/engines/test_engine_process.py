"""An engine in a process of its own: what is lost when it crashes, and what is not. The processes are real."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from harness import PATIENCE, SECOND, client, scripted, service, speech, wait_until

from daemon.common.errors import ServiceError
from daemon.engines.batch import Ran
from daemon.engines.host import as_set
from daemon.engines.life import LoadEngine
from daemon.engines.messages import IN_FLIGHT, SharedAudio
from daemon.engines.process_host import ProcessHost
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import Job, Phrase, Result, Vocabulary

DEADLY = 13.0
"""The first sample of a job that ends its process."""


GARBLED = 14.0
"""That of one whose result cannot be read."""


class Unreadable(str):
    """What can be sent, and not be received."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class Echo(ScriptedEngine):
    """An engine whose results tell what audio came; it does what files in a folder say."""

    def __init__(self, tokenizer_file: Path, folder: Path) -> None:
        super().__init__(tokenizer_file, 0)
        self._folder = folder

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        (self._folder / "running").touch()
        while (self._folder / "hang").exists():
            time.sleep(0.01)
        return [self._echo(job) for job in jobs]

    def _echo(self, job: Job) -> Result:
        if job.audio.size and job.audio[0] == DEADLY:
            os._exit(3)
        if job.audio.size and job.audio[0] == -DEADLY:
            raise ValueError("not this one")
        if job.audio.size and job.audio[0] == GARBLED:
            return Result(job.revision, language=Unreadable())
        phrases = len(job.vocabulary.phrases)
        return Result(job.revision, (len(job.audio), int(job.audio.sum())), language=str(phrases))


def echo(tokenizer_file: Path, folder: Path, settings: Settings) -> Echo:
    if (folder / "broken").exists():
        raise ServiceError("the model is away")
    if (folder / "deadly").exists():
        os._exit(4)
    return Echo(tokenizer_file, folder)


@pytest.fixture
def load(tokenizer_file: Path, tmp_path: Path) -> LoadEngine:
    return partial(echo, tokenizer_file, tmp_path)


def settings(**sections: Any) -> Settings:
    return Settings.model_validate({"engine": {"backend": "process"}, **sections})


@asynccontextmanager
async def hosting(load: LoadEngine) -> AsyncIterator[ProcessHost]:
    host = ProcessHost(settings(), load)
    try:
        await host.load()
        await host.warm()
        yield host
    finally:
        host.close()
        assert await asyncio.to_thread(host.ended, PATIENCE)


def job(value: float, revision: int, samples: int = 1000) -> Job:
    return Job(np.full(samples, value, np.float32), revision=revision)


def pid(host: ProcessHost) -> int:
    assert host._lives.process is not None
    return host._lives.process.pid


async def ran(host: ProcessHost, *jobs: Job) -> Ran:
    return await asyncio.wait_for(host.submit(jobs), PATIENCE)


async def test_jobs_arrive_with_their_audio_and_their_vocabulary(load: LoadEngine) -> None:
    names = Vocabulary((Phrase("Ada"), Phrase("Grace")))
    async with hosting(load) as host:
        batches = [[job(number, number), Job(np.zeros(7, np.float32), vocabulary=names)] for number in range(9)]
        done = await asyncio.gather(*(host.submit(batch) for batch in batches))
    for number, each in enumerate(done):
        assert [result.tokens for result in each.results] == [(1000, 1000 * number), (7, 0)]
        assert [result.revision for result in each.results] == [number, 0]
        assert [result.language for result in each.results] == ["0", "2"]


async def test_what_finds_no_room_in_the_shared_memory_is_sent(load: LoadEngine) -> None:
    async with hosting(load) as host:
        longer = host._audio.samples + 1
        assert (await ran(host, job(1, 5, longer))).results[0].tokens == (longer, longer)
        assert host._audio._free == list(range(IN_FLIGHT))


def test_audio_of_two_batches_lies_apart() -> None:
    audio = SharedAudio(2)
    first, place = audio.put([job(1, 0), job(2, 1)])
    second, other = audio.put([job(3, 2)])
    third, none = audio.put([job(4, 3)])
    assert none is None
    again = SharedAudio(2, descriptor=audio.descriptor)
    sums = [[float(each.audio.sum()) for each in again.jobs(run)] for run in (first, second, third)]
    assert sums == [[1000, 2000], [3000], [4000]]
    audio.free(place)
    audio.free(other)
    assert audio.put([job(5, 4)])[1] is not None


async def test_a_process_that_is_killed_at_work_is_started_again_and_its_batches_run_again(
    load: LoadEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(load) as host:
        (tmp_path / "hang").touch()
        batches = [host.submit([job(1, 1), job(2, 2)]), host.submit([job(3, 3)])]
        await wait_until((tmp_path / "running").exists)
        os.kill(pid(host), signal.SIGKILL)
        (tmp_path / "hang").unlink()
        done = await asyncio.wait_for(asyncio.gather(*batches), PATIENCE)
        assert host.restarts == 1
    assert [[result.tokens[1] for result in each.results] for each in done] == [[1000, 2000], [3000]]
    assert [each.failures for each in done] == [[], []]
    assert "ended (signal 9): it is started again" in caplog.text


async def test_a_process_that_is_killed_while_idle_is_started_again(load: LoadEngine) -> None:
    async with hosting(load) as host:
        before = pid(host)
        os.kill(before, signal.SIGKILL)
        await wait_until(lambda: host.restarts == 1)
        assert (await ran(host, job(1, 7))).results[0].revision == 7
        assert pid(host) != before


async def test_a_job_that_ends_the_process_fails_alone(load: LoadEngine) -> None:
    async with hosting(load) as host:
        batches = [host.submit([job(1, 1), job(DEADLY, 2), job(2, 3)]), host.submit([job(3, 4)])]
        first, second = await asyncio.wait_for(asyncio.gather(*batches), PATIENCE)
    assert [bool(result.error) for result in first.results] == [False, True, False]
    assert first.results[1].error == "the engine's process ended (2 times during this job)"
    assert [result.revision for result in first.results] == [1, 2, 3]
    assert [failure.jobs for failure in first.failures] == [1]
    assert second.results[0].error is None


async def test_a_result_that_cannot_be_read_costs_the_process(
    load: LoadEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(load) as host:
        done = await ran(host, job(1, 1), job(GARBLED, 2))
        assert host.restarts > 0
    assert [bool(result.error) for result in done.results] == [False, True]
    assert "what a process said cannot be read" in caplog.text


async def test_a_job_that_raises_fails_alone(load: LoadEngine) -> None:
    async with hosting(load) as host:
        done = await ran(host, job(1, 1), job(-DEADLY, 2))
        assert host.restarts == 0
    assert [result.error for result in done.results] == [None, "ValueError: not this one"]
    assert [failure.jobs for failure in done.failures] == [2, 1]
    assert "in _echo" in done.failures[0].trace


@pytest.mark.parametrize(("file", "says"), [("broken", "the model is away"), ("deadly", "ended while it loaded")])
async def test_what_cannot_be_loaded_is_told(load: LoadEngine, tmp_path: Path, file: str, says: str) -> None:
    (tmp_path / file).touch()
    host = ProcessHost(settings(), load)
    with pytest.raises(ServiceError, match=says):
        await asyncio.wait_for(host.load(), PATIENCE)
    host.close()
    assert await asyncio.to_thread(host.ended, PATIENCE)


@pytest.mark.parametrize("file", ["broken", "deadly"])
async def test_it_is_tried_until_it_can_be_started_again(
    load: LoadEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    async with hosting(load) as host:
        (tmp_path / file).touch()
        os.kill(pid(host), signal.SIGKILL)
        await wait_until(lambda: "cannot be started" in caplog.text)
        waiting = host.submit([job(1, 7)])
        (tmp_path / file).unlink()
        assert (await asyncio.wait_for(waiting, PATIENCE)).results[0].revision == 7


async def test_an_engine_that_hangs_does_not_outlive_its_service(load: LoadEngine, tmp_path: Path) -> None:
    async with hosting(load) as host:
        (tmp_path / "hang").touch()
        waiting = host.submit([job(1, 1)])
        await wait_until((tmp_path / "running").exists)
        process = psutil.Process(pid(host))
    assert not process.is_running()
    waiting.cancel()


async def test_it_sleeps_and_wakes_also_in_another_life(load: LoadEngine) -> None:
    async with hosting(load) as host:
        await host.unload()
        assert host.sleep.asleep
        await ran(host, job(1, 1))
        assert (host.sleep.asleep, host.sleep.times) == (False, 1)
        await host.unload()
        os.kill(pid(host), signal.SIGKILL)
        await wait_until(lambda: host.restarts == 1)
        await ran(host, job(1, 1))
        assert (host.sleep.asleep, host.sleep.times) == (False, 1)


def test_its_settings_hold_no_secret(load: LoadEngine) -> None:
    secret = "a-token-that-nobody-else-has"
    host = ProcessHost(settings(server={"tokens": [secret]}, mqtt={"host": "broker", "password": secret}), load)
    assert secret not in host._settings.model_dump_json()
    assert host._settings.models == Settings().models


# --- in the service --------------------------------------------------------------------------------------------------


def _scripted(tokenizer_file: Path, folder: Path, settings: Settings) -> Any:
    def hang(_: Sequence[Job]) -> None:
        (folder / "running").touch()
        while (folder / "hang").exists():
            time.sleep(0.01)

    return scripted(tokenizer_file, before=hang)(settings)


async def test_a_client_is_told_each_final_once_although_the_engine_is_killed(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    load = partial(_scripted, tokenizer_file, tmp_path)
    async with service(load, {"engine": {"backend": "process"}}) as daemon:
        async with client(daemon.server.url) as mine:
            for _ in range(3):
                (tmp_path / "running").unlink(missing_ok=True)
                (tmp_path / "hang").touch()
                await mine.play(speech() + SECOND)
                await wait_until((tmp_path / "running").exists)
                (child,) = psutil.Process().children()
                child.kill()
                (tmp_path / "hang").unlink()
            await mine.say(type="stop")
            assert await mine.rest() == 1000
        finals = mine.of("final")
        assert len(finals) == 3
        assert len({final["id"] for final in finals}) == 3
        assert not mine.of("error")
        assert "whisperd_engine_restarts_total 3.0" in daemon.pipeline.metrics.text().decode()
    assert await asyncio.to_thread(daemon.pipeline.ended)


def test_where_an_engine_lives(load: LoadEngine, tokenizer_file: Path) -> None:
    def there(backend: str, load: LoadEngine) -> str:
        host = as_set(Settings.model_validate({"engine": {"backend": backend}}), load)
        host.close()
        return type(host).__name__

    assert there("auto", load) == there("process", load) == "ProcessHost"
    assert there("thread", load) == there("auto", scripted(tokenizer_file)) == "ThreadHost"


def nowhere(settings: Settings) -> Any:
    raise AssertionError("it is not called")


async def test_a_loader_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # Under a name of this module that it has only here.
    monkeypatch.setattr(nowhere, "__qualname__", "elsewhere")
    monkeypatch.setitem(globals(), "elsewhere", nowhere)
    host = ProcessHost(settings(), nowhere)
    with pytest.raises(ServiceError, match=r"cannot be loaded: AttributeError: .*elsewhere"):
        await asyncio.wait_for(host.load(), PATIENCE)
    host.close()
    assert await asyncio.to_thread(host.ended, PATIENCE)
