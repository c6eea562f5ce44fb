"""Engines on a cluster: what is lost when a part of it dies, and what is not. Cluster, replicas and links are real."""

from __future__ import annotations

import asyncio
import filecmp
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import PATIENCE, client, process, speech, wait_until
from hypothesis import given
from hypothesis import strategies as st
from test_websocket import fetch
from tokenizers import Tokenizer

from bench.cluster.local import LocalCluster, kill, until
from daemon.common.errors import ServiceError
from daemon.engines.batch import Ran
from daemon.engines.cluster.application import DEPLOYMENT, build
from daemon.engines.cluster.host import _LOSSES, ClusterHost, look_at_cluster
from daemon.engines.cluster.wire import Models
from daemon.engines.persistence import LostBatchError, run_to_the_end
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import Job, Result

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own code warns of what libraries will drop

ROOT = Path(__file__).parents[3]


class Echo(ScriptedEngine):
    """An engine that answers a voice as it is written down, and anything louder with what came: then it waits while a
    file in its folder says so."""

    def __init__(self, tokenizer_file: Path, folder: Path, student: str) -> None:
        eot = Tokenizer.from_file(str(tokenizer_file)).get_vocab()["<|endoftext|>"]
        super().__init__(tokenizer_file, eot)
        self.student = student
        self._folder = folder

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        if jobs[0].audio[0] < 1:  # a voice, or the canary
            return super().run(jobs)
        (self._folder / "running").touch()
        while (self._folder / "hang").exists():
            time.sleep(0.01)
        return [Result(each.revision, (len(each.audio), int(each.audio.sum()))) for each in jobs]


def echo(tokenizer_file: Path, folder: Path, student: str, settings: Settings) -> Echo:
    return Echo(tokenizer_file, folder, student)


def digest(of: str, settings: Settings) -> str:
    return of


@dataclass
class Rack:
    """A cluster that has two replicas of an engine, and whether they are at a batch and stay there."""

    cluster: LocalCluster
    folder: Path
    tokenizer_file: Path
    student: str = ""
    replicas: int = 2

    def deploy(self, student: str, tokenizer_file: Path | None = None) -> None:
        self.student = student
        load = partial(echo, tokenizer_file or self.tokenizer_file, self.folder, student)
        quick: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.1, "health_check_period_s": 1}
        self.cluster.deploy(load, partial(digest, student), self.replicas, **quick)

    def hold(self) -> None:
        self.running.unlink(missing_ok=True)
        (self.folder / "hang").touch()

    def let_go(self) -> None:
        (self.folder / "hang").unlink(missing_ok=True)

    @property
    def running(self) -> Path:
        return self.folder / "running"


@pytest.fixture(scope="module")
def empty(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """One for all tests: replicas take seconds to start."""
    cluster = LocalCluster(2, 4)
    try:
        yield Rack(cluster, tmp_path_factory.mktemp("rack"), tokenizer_file)
    finally:
        cluster.shutdown()


@pytest.fixture
def rack(empty: Rack) -> Rack:
    """With its engines, whatever the test before it left there."""
    if empty.student != "one" or empty.cluster.running() != 2:
        empty.deploy("one")
        until(lambda: empty.cluster.running() == 2)
    return empty


@pytest.fixture
def held(rack: Rack) -> Iterator[Rack]:
    """Its replicas stay at the batches that come, until they are let go."""
    rack.hold()
    yield rack
    rack.let_go()


def settings(rack: Rack, **engine: Any) -> Settings:
    return Settings.model_validate({"engine": of(rack, **engine)})


def of(rack: Rack, **engine: Any) -> dict[str, Any]:
    return {"backend": "ray", "address": rack.cluster.address, "replicas": 2, **engine}


@asynccontextmanager
async def hosting(rack: Rack, **engine: Any) -> AsyncIterator[ClusterHost]:
    host = ClusterHost(settings(rack, **engine))
    try:
        await host.load()
        await wait_until(lambda: host.replicas == rack.replicas)
        yield host
    finally:
        host.close()
        assert await asyncio.to_thread(host.ended, PATIENCE)


def job(value: float, revision: int, samples: int = 1000) -> Job:
    return Job(np.full(samples, value, np.float32), revision=revision)


async def ran(host: ClusterHost, *jobs: Job) -> Ran:
    return await asyncio.wait_for(host.run(jobs), PATIENCE)


def expected(*jobs: Job) -> list[tuple[int, tuple[int, ...]]]:
    return [(each.revision, (len(each.audio), int(each.audio.sum()))) for each in jobs]


def brought(result: Ran) -> list[tuple[int, tuple[int, ...]]]:
    return [(each.revision, each.tokens) for each in result.results]


# --- the whole service -----------------------------------------------------------------------------------------------


async def test_a_service_starts_without_a_cluster_and_what_is_said_meanwhile_is_heard(
    empty: Rack, tmp_path: Path
) -> None:
    with process(tmp_path, {"engine": of(empty)}, ready=False) as daemon:
        await wait_until(lambda: "has no application 'whisperd'" in daemon.log)
        said = await asyncio.to_thread(readyz, daemon.url)
        assert said.startswith("not ready: ")
        assert "deploy it with `serve deploy" in said
        async with client(daemon.url, "/v1/stream?source=kitchen") as mine:
            await mine.play(speech())
            await asyncio.to_thread(empty.deploy, "one")
            await mine.say(type="stop")
            await mine.rest()
            assert mine.of("final")
        assert (await asyncio.to_thread(readyz, daemon.url)).startswith("ready")


def readyz(url: str) -> str:
    return fetch(url, "/readyz")[1]


# --- what it carries -------------------------------------------------------------------------------------------------


async def test_batches_go_to_several_replicas_and_come_back(rack: Rack) -> None:
    async with hosting(rack) as host:
        batches = [[job(each, 10 * each + row, 16000) for row in range(3)] for each in range(1, 9)]
        results = await asyncio.gather(*(ran(host, *batch) for batch in batches))
        assert [brought(each) for each in results] == [expected(*batch) for batch in batches]
        use = host.cluster()
        assert sum(each.jobs for each in use.replicas.values()) == 24
        assert use.lost == 0
        assert [worker.open for worker in host.workers] == [True] * 2 + [False] * 6
        assert (host.trouble, host.remark) == (None, None)


@contextmanager
def another_application(name: str) -> Iterator[None]:
    """One of somebody else, as ours is while it is deployed: without our deployment."""
    from ray import serve

    make: Any = serve.deployment(name="theirs")  # Ray does not say what becomes of a function
    other = make(lambda: None).bind()
    serve.run_many([serve.RunTarget(target=other, name=name, route_prefix=None)], wait_for_applications_running=False)
    try:
        yield
    finally:
        serve.delete(name)


async def test_it_says_what_the_replicas_have_loaded(rack: Rack) -> None:
    joined = await look_at_cluster(settings(rack))
    assert joined.replicas.running == 2
    assert joined.description.models.student == "one"
    with pytest.raises(ServiceError, match="no application 'other'"):
        await look_at_cluster(settings(rack, application="other"))
    with another_application("other"), pytest.raises(ServiceError, match="other has no engines yet"):
        await look_at_cluster(settings(rack, application="other"))
    async with hosting(rack, replicas=3) as host:
        assert host.loaded is not None
        assert (host.loaded.student, host.loaded.device) == ("one", "cpu")
        assert filecmp.cmp(host.loaded.tokenizer_file, rack.tokenizer_file, shallow=False)
        assert host.remark == "degraded: 2 of 3 replicas run"


# --- what dies -------------------------------------------------------------------------------------------------------


async def test_a_batch_whose_replica_is_killed_runs_on_another(held: Rack) -> None:
    async with hosting(held) as host:
        running = asyncio.create_task(ran(host, job(1, 7)))
        await wait_until(held.running.exists)
        for replica in held.cluster.replicas():
            kill(replica)
        await wait_until(lambda: host.cluster().lost == 1)
        held.let_go()
        assert brought(await running) == expected(job(1, 7))
        await wait_until(lambda: host.replicas == 2)


async def test_a_batch_whose_link_is_killed_runs_again(held: Rack) -> None:
    async with hosting(held) as host:
        running = asyncio.create_task(ran(host, job(2, 8)))
        await wait_until(held.running.exists)
        process = host._lives.process
        assert process is not None
        kill(process.pid)
        await wait_until(lambda: host.replicas == 0)
        assert host.trouble is not None
        held.let_go()
        assert brought(await running) == expected(job(2, 8))
        await wait_until(lambda: host.restarts == 1)


async def test_a_batch_that_hangs_is_given_up_and_runs_again(held: Rack) -> None:
    async with hosting(held, timeout=1.0) as host:
        running = asyncio.create_task(ran(host, job(1, 5)))
        await wait_until(lambda: host.cluster().lost == 1)
        held.let_go()
        assert brought(await running) == expected(job(1, 5))


async def test_batches_that_all_wait_too_long_are_nobodys_fault(held: Rack) -> None:
    """There are too few replicas: finals come late, and none fails."""
    async with hosting(held, timeout=0.5) as host:
        running = asyncio.create_task(ran(host, job(1, 5)))
        await wait_until(lambda: host.cluster().lost > 2 * _LOSSES)
        held.let_go()
        assert brought(await running) == expected(job(1, 5))


def test_models_that_may_stand_in_for_others() -> None:
    models = Models("one", None, "cpu", 7, (5.0, 30.0), ("en", "de"), "1f", "2e")
    assert replace(models, student="two", digest="3d").stand_in_for(models)
    assert replace(models, contexts=(30.0,), languages=("de", "en", "fr")).stand_in_for(models)
    for worse in ({"vocabulary": "4c"}, {"contexts": (5.0, 20.0)}, {"languages": ("en",)}):
        assert not replace(models, **worse).stand_in_for(models)


async def test_without_the_controller_batches_go_on(rack: Rack) -> None:
    async with hosting(rack) as host:
        (controller,) = rack.cluster.controllers()
        kill(controller)
        assert brought(await ran(host, job(4, 4))) == expected(job(4, 4))
        await asyncio.to_thread(until, lambda: rack.cluster.controllers() not in ([], [controller]))


# --- what changes ----------------------------------------------------------------------------------------------------


async def test_an_update_to_another_student_loses_nothing_and_is_told(rack: Rack) -> None:
    async with hosting(rack) as host:
        told: list[str] = []
        host.watch(lambda: told.append(host.loaded.student if host.loaded else ""))
        over = asyncio.Event()

        async def load() -> int:
            number = 0
            while not over.is_set():
                number += 1
                assert brought(await ran(host, job(1, number))) == expected(job(1, number))
                await asyncio.sleep(0.02)  # replicas that start want to have the processor too
            return number

        loading = [asyncio.create_task(load()) for _ in range(2)]
        await asyncio.to_thread(rack.deploy, "two")
        await wait_until(lambda: "two" in told)
        over.set()
        assert all(await asyncio.gather(*loading))


async def test_replicas_whose_tokens_mean_something_else_are_not_used(rack: Rack) -> None:
    rack.replicas = 1
    await asyncio.to_thread(rack.deploy, "one")
    await wait_until(lambda: rack.cluster.running() == 1)
    async with hosting(rack, replicas=1) as host:
        assert host.loaded is not None
        await asyncio.to_thread(rack.deploy, "foreign", with_a_blank(rack))
        running = asyncio.create_task(host.run([job(1, 1)]))
        await wait_until(lambda: "restart this daemon" in (host.remark or ""))
        assert host.loaded.student == "one"
        assert not running.done()
        await asyncio.to_thread(rack.deploy, "back")
        assert brought(await asyncio.wait_for(running, PATIENCE)) == expected(job(1, 1))
        assert host.loaded.student == "back"
        await wait_until(lambda: host.remark is None)


def with_a_blank(rack: Rack) -> Path:
    """The tokenizer's file, and what is no other tokenizer but another file."""
    other = rack.folder / "tokenizer.json"
    other.write_bytes(rack.tokenizer_file.read_bytes() + b" ")
    return other


# --- without it ------------------------------------------------------------------------------------------------------


async def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "ray"
    missing.mkdir()
    (missing / "__init__.py").write_text("raise ImportError(\"No module named 'ray'\")")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServiceError, match=r"pip install 'whisperd\[ray\]'"):
        await look_at_cluster(Settings.model_validate({"engine": {"backend": "ray"}}))


def test_nothing_of_it_is_imported_that_is_not_asked_for() -> None:
    code = "import sys, daemon.commands.cli, daemon.commands.check, daemon.service.app; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_shipped_application_can_be_built() -> None:
    from ray.serve.schema import ServeDeploySchema

    written = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(written).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert [each.name for each in application.deployments] == [DEPLOYMENT]
    assert build(application.args) is not None


# --- persistence -----------------------------------------------------------------------------------------------------


def test_a_loss_goes_over_a_socket() -> None:
    lost = pickle.loads(pickle.dumps(LostBatchError("gone", blamed=True)))
    assert (str(lost), lost.blamed) == ("gone", True)


@given(
    deadly=st.sets(st.integers(0, 9), max_size=3),
    jobs=st.integers(1, 10),
    losses=st.lists(st.booleans(), max_size=8),
    tries=st.integers(1, 3),
)
def test_each_job_has_one_result_and_only_the_guilty_fail(
    deadly: set[int], jobs: int, losses: list[bool], tries: int
) -> None:
    """However often batches are lost without their fault, and whichever jobs are deadly."""
    innocent = iter([not each for each in losses])

    async def attempt(batch: Sequence[Job]) -> Ran:
        if any(each.revision in deadly for each in batch):
            raise LostBatchError("it died", blamed=True)
        if not next(innocent, True):
            raise LostBatchError("the way broke", blamed=False)
        return Ran(1.0, [Result(each.revision) for each in batch])

    batch = [job(0, number, 1) for number in range(jobs)]
    result = asyncio.run(run_to_the_end(batch, attempt, tries))
    assert [each.revision for each in result.results] == list(range(jobs))
    assert {each.revision for each in result.results if each.error is not None} == deadly & set(range(jobs))
