"""Each counter moves when what it counts happens: real streams and real scrapes."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import SECOND, Client, broker, client, listener, scripted, service, speech, wait_until
from scrape import Scrape, read, scrape

from daemon.common.metrics import Metrics
from daemon.core.hub import Hub
from daemon.engines import gpu_memory
from daemon.mqtt.spool import Entry, Spool
from daemon.service.app import Service
from streaming.events import Partial
from streaming.job import Job


async def scraped(daemon: Service) -> Scrape:
    return await asyncio.to_thread(scrape, daemon.server.url)


async def converse(mine: Client, audio: bytes) -> None:
    await mine.play(audio)
    await mine.say(type="stop")
    await mine.rest()


async def test_a_conversation(tokenizer_file: Path) -> None:
    audio = speech() + SECOND + speech()
    sections = {"escalate": {"when": "always"}, "partials": {"interval": 0.2}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        before = await scraped(daemon)
        async with client(daemon.server.url, "/v1/stream?source=kitchen") as mine:
            await mine.until("ready")
            during = await scraped(daemon)
            await converse(mine, audio)
        await wait_until(lambda: read(daemon.pipeline.metrics.text().decode())("streams_open") == 0)
        after = await scraped(daemon)
    finals, partials = len(mine.of("final")), len(mine.of("partial"))
    assert finals >= 2
    assert partials >= 1

    def grew(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert [each("streams_open") for each in (before, during, after)] == [0, 1, 0]
    assert grew("streams_total") == 1
    assert grew("audio_seconds_total") == pytest.approx(len(audio) / 2 / 16000)
    assert 0.5 < grew("voiced_seconds_total") < grew("audio_seconds_total")
    assert grew("partial_lag_seconds_count") == grew("partials_total") >= partials
    assert grew("final_latency_seconds_count") == finals
    assert after("final_latency_seconds_sum") == pytest.approx(
        sum(each["latency_ms"] for each in mine.of("final")) / 1000
    )
    assert (grew("finals_total", model="teacher"), grew("finals_total", model="student")) == (finals, 0)
    # The canary sings too.
    assert grew("batch_size_sum") >= finals + partials
    # On a processor the teacher is asked in a batch of its own.
    assert grew("batch_size_sum") == grew("jobs_total", kind="final") + finals + grew("jobs_total", kind="partial")
    # Each partial but the first of an utterance has a draft, and so has its final; the teacher's is the student's text.
    assert 0 < grew("draft_tokens_accepted_total", model="student") <= grew("draft_tokens_total", model="student")
    assert 0 < grew("draft_tokens_total", model="teacher") == grew("draft_tokens_accepted_total", model="teacher")
    assert grew("engine_busy_seconds_total") > 0
    assert after("engine_busy_seconds_total") == pytest.approx(after("batch_seconds_sum"), abs=0.01 * finals)
    assert after("engines") == after("ready") == 1
    assert after("build_info", version="0.1.0", student="scripted", teacher="scripted-teacher", device="cpu") == 1
    assert after.series[("process_resident_memory_bytes", frozenset())] > 10e6


async def test_silence_is_heard_and_not_voiced(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await converse(mine, 3 * SECOND)
        seen = await scraped(daemon)
    assert (round(seen("audio_seconds_total"), 6), seen("voiced_seconds_total")) == (3, 0)


async def test_the_share_of_the_teacher(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"escalate": {"when": "never"}}) as daemon:
        async with client(daemon.server.url) as mine:
            await converse(mine, speech())
        seen = await scraped(daemon)
    assert seen("finals_total", model="student") == len(mine.of("final"))
    assert seen("finals_total", model="teacher") == seen("draft_tokens_total", model="teacher") == 0


async def test_ages_of_what_waits_while_the_engine_hangs(tokenizer_file: Path) -> None:
    let_go, hanging, hang = threading.Event(), threading.Event(), threading.Event()

    def before(jobs: Sequence[Job]) -> None:
        if hang.is_set():
            hanging.set()
            let_go.wait()

    sections = {"scheduler": {"batch": 1}}
    async with service(scripted(tokenizer_file, before=before), sections) as daemon:
        hang.set()
        try:
            async with client(daemon.server.url) as first, client(daemon.server.url) as second:
                for mine in (first, second):
                    await mine.say(type="start", partials=mine is second)
                    await mine.play(speech())
                    await mine.say(type="flush")
                await wait_until(hanging.is_set)
                await wait_until(lambda: daemon.pipeline.scheduler.final_wait > 0)
                early = await scraped(daemon)
                await asyncio.sleep(0.05)  # the passing of time is what is measured
                late = await scraped(daemon)
                assert late("jobs_waiting", kind="final") >= 1
                assert (
                    0 < early("jobs_oldest_seconds", kind="final") + 0.05 <= late("jobs_oldest_seconds", kind="final")
                )
                assert late("jobs_oldest_seconds", kind="partial") == 0
                # A batch that hangs is no idle engine.
                assert early("engine_busy_seconds_total") + 0.05 <= late("engine_busy_seconds_total")
                assert early("batch_seconds_count") == late("batch_seconds_count")
                let_go.set()
                await first.until("flushed")
                await second.until("flushed")
                assert (await scraped(daemon))("jobs_oldest_seconds", kind="final") == 0
        finally:
            let_go.set()


def test_a_partial_that_waits_has_an_age_of_its_own(tokenizer_file: Path) -> None:
    """Of a real scheduler that nobody runs."""
    from daemon.core.scheduler import Scheduler

    class Waits:
        def pending(self) -> Any:
            return "partial"

    metrics = Metrics()
    scheduler = Scheduler([], 1, metrics)
    waits: Any = Waits()
    scheduler.add(waits)
    scheduler.schedule(waits)
    seen = read(metrics.text().decode())
    assert seen("jobs_oldest_seconds", kind="partial") > 0 == seen("jobs_oldest_seconds", kind="final")


async def test_errors_by_their_code(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = threading.Event()

    def before(jobs: Sequence[Job]) -> None:
        if broken.is_set():
            raise RuntimeError("a kernel failed")

    async with service(scripted(tokenizer_file, before=before)) as daemon:
        async with client(daemon.server.url) as mine:
            await mine.ws.send("{not JSON")
            await mine.rest()
        async with client(daemon.server.url) as mine:
            await converse(mine, b"\0\0\0")
        broken.set()
        async with client(daemon.server.url) as mine:
            await mine.say(type="start", partials=False)
            await converse(mine, speech())
            failed = [each["code"] for each in mine.of("error")]
        broken.clear()

        def fails(*_: Any) -> None:
            raise RuntimeError("a fault of ours")

        async with client(daemon.server.url) as mine:
            await mine.until("ready")
            (stream,) = daemon.pipeline.scheduler._clients.keys() - {daemon.health}
            stream.next_job = fails  # type: ignore[method-assign] # what cannot happen, happens
            await mine.play(speech())
            await mine.until("error")
        seen = await scraped(daemon)
    assert failed == ["transcription_failed"] * len(failed) != []
    assert seen("client_errors_total", code="bad_json") == 1
    assert seen("client_errors_total", code="odd_bytes") == 1
    assert seen("errors_total", code="transcription_failed") == len(failed)
    assert seen("errors_total", code="internal") == 1
    assert seen("drops_total", what="job", cause="failed") == seen("job_failures_total") >= len(failed)


async def test_drops_by_their_cause(tmp_path: Path) -> None:
    metrics = Metrics()
    now = 0.0
    spool = Spool(None, 2, 100.0, metrics, steady=lambda: now)
    for number in range(5):
        spool.add(Entry(str(number), "kitchen", 0.0, "{}", "x"))
    now = 200.0
    assert spool.first() is None
    outbox = Hub(16, 4, metrics).subscribe()
    for _ in range(3):
        outbox.put(Partial("kitchen", 1, 0, 1, "", "", 0), "stream")
    metrics.mqtt_refused.inc()
    metrics.subscribers_dropped.inc()
    metrics.connections_refused.labels("address").inc()
    metrics.connections_refused.labels("handshakes").inc()
    seen = read(metrics.text().decode())
    assert seen("drops_total", what="final", cause="mqtt_queue_full") == 3
    assert seen("drops_total", what="final", cause="mqtt_too_old") == 2
    assert seen("drops_total", what="partial", cause="newer_came_first") == 2
    assert seen("drops_total", what="message", cause="mqtt_refused") == 1
    assert seen("drops_total", what="subscriber", cause="too_slow") == 1
    assert seen("drops_total", what="connection", cause="refused") == 2
    assert seen("drops_total", what="job", cause="failed") == 0


async def test_what_waits_for_a_broker_that_is_away(tmp_path: Path, tokenizer_file: Path) -> None:
    with broker(tmp_path, started=False) as mosquitto:
        mqtt = {"host": "127.0.0.1", "port": mosquitto.port}
        async with service(scripted(tokenizer_file), {"mqtt": mqtt}) as daemon:
            async with client(daemon.server.url, "/v1/stream?source=kitchen") as mine:
                await converse(mine, speech())
            finals = len(mine.of("final"))
            await wait_until(lambda: daemon.pipeline.metrics.mqtt_waiting._value.get() == finals)
            early = await scraped(daemon)
            late = await scraped(daemon)
            mosquitto.start()
            async with listener(mosquitto.port) as says:
                await says.until("whisperd/kitchen/text")
            await wait_until(lambda: daemon.pipeline.metrics.mqtt_waiting._value.get() == 0)
            empty = await scraped(daemon)
    told = [payload for kind in ("final", "text") for payload in says.payloads(f"whisperd/kitchen/{kind}")]
    assert early("mqtt_waiting_finals") == finals >= 1
    assert early("mqtt_waiting_bytes") == sum(len(payload.encode()) for payload in told)
    assert 0 < early("mqtt_oldest_final_seconds") < late("mqtt_oldest_final_seconds")
    assert [empty(f"mqtt_{name}") for name in ("waiting_finals", "waiting_bytes", "oldest_final_seconds")] == [0, 0, 0]


async def test_a_spool_counts_the_bytes_of_what_an_earlier_process_left(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = Metrics()
        spool = Spool(tmp_path / "spool.sqlite", 10, 1e6, metrics)
        await spool.open()
        spool.add(Entry("one", "kitchen", 0.0, '{"text":"ö"}', "ö"))
        assert read(metrics.text().decode())("mqtt_waiting_bytes") == len('{"text":"ö"}'.encode()) + 2
        await spool.close()


# --- GPUs ------------------------------------------------------------------------------------------------------------


def gpu_series(metrics: Metrics) -> dict[tuple[str, str], float]:
    seen = read(metrics.text().decode()).series.items()
    return {
        (dict(labels)["device"], dict(labels)["kind"]): value
        for (name, labels), value in seen
        if name == "whisperd_gpu_memory_bytes"
    }


def test_without_a_gpu_nothing_is_told_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    metrics.gpus.read = gpu_memory.memory
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert gpu_series(metrics) == {}
    assert "torch" not in sys.modules, "to ask loads nothing"


def test_the_books_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own questions, answered by hand: two devices, of which one is in use."""
    held = {0: 300, 1: 0}
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_allocated=lambda index: held[index] // 2,
        memory_reserved=lambda index: held[index],
        get_device_properties=lambda index: SimpleNamespace(total_memory=1000),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    metrics = Metrics()
    metrics.gpus.read = gpu_memory.memory
    assert gpu_series(metrics) == {("cuda:0", "used"): 150, ("cuda:0", "held"): 300, ("cuda:0", "total"): 1000}
    held[1] = 400
    assert gpu_series(metrics)[("cuda:1", "used")] == 200


def test_the_books_of_a_real_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        assert gpu_memory.memory() == {}
        pytest.skip("no GPU here")
    metrics = Metrics()
    metrics.gpus.read = gpu_memory.memory
    kept = torch.zeros(1 << 20, device="cuda:0")
    before = gpu_series(metrics)[("cuda:0", "used")]
    more = torch.zeros(1 << 20, device="cuda:0")
    assert gpu_series(metrics)[("cuda:0", "used")] >= before + more.nbytes >= 2 * kept.nbytes
