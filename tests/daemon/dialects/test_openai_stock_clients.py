"""Programs that speak OpenAI's protocols, as they are published and with their own defaults, against the service.

Only the address is told to them, and what a test is about. Each ends by itself, or is ended as its users end it.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import PATIENCE, SECOND, scripted, service, speech, wait_until
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, omit
from test_openai_realtime import at_24khz
from test_uploads import file_of

from streaming.job import Job

CLIENTS = Path(sys.prefix) / "clients"
"""Where `make test` has put those that do not fit the service's environment: see clients.txt."""


@pytest.fixture(autouse=True)
def clients_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(CLIENTS)])


def module(name: str) -> Any:
    """A client. Not imported by its name, or mypy would read it too, and it is large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they import is theirs
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            raise AssertionError(f"{missing}: `make test` installs the stock clients") from missing


@asynccontextmanager
async def house(tokenizer_file: Path) -> AsyncIterator[tuple[str, list[Job]]]:
    """A service: its address for clients, and the jobs that its engine gets."""
    jobs: list[Job] = []
    async with service(scripted(tokenizer_file, before=jobs.extend)) as daemon:
        jobs.clear()  # of those that warmed it up
        yield daemon.server.url.replace("ws", "http", 1) + "/v1", jobs


def phrases(jobs: list[Job]) -> set[tuple[str, ...]]:
    """What the jobs were to hear."""
    return {tuple(phrase.text for phrase in job.vocabulary.phrases) for job in jobs}


def samples() -> Any:
    return np.frombuffer(at_24khz(speech()), "<i2")


# --- openai-agents ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def agents_model(base_url: str) -> AsyncIterator[tuple[Any, Any]]:
    """Its transcription, and the module."""
    agents = module("agents")
    agents.set_tracing_disabled(True)  # it would send what it heard to OpenAI
    voice = module("agents.voice")
    async with AsyncOpenAI(api_key="any", base_url=base_url) as client:
        yield voice.OpenAIVoiceModelProvider(openai_client=client).get_stt_model(None), voice


@pytest.mark.parametrize("settings", [{}, {"language": "en", "prompt": "Be exact with names.", "temperature": 0.2}])
async def test_openai_agents(settings: dict[str, Any], tokenizer_file: Path) -> None:
    async with house(tokenizer_file) as (url, _), agents_model(url) as (model, voice):
        made = voice.STTModelSettings(**settings)
        assert (await model.transcribe(voice.AudioInput(samples()), made, False, False)).startswith("turn on")


@pytest.mark.parametrize("silence", [0, 3], ids=["it ends in a word", "it ends in silence"])
@pytest.mark.parametrize(
    ("settings", "heard"),
    [
        ({}, ()),
        (
            {"languages": ["en", "de"], "keywords": ["Kallax"], "prompt": "Thibault, Björn"},
            ("Kallax", "Thibault", "Björn"),
        ),
    ],
)
async def test_openai_agents_streamed(
    settings: dict[str, Any], heard: tuple[str, ...], silence: int, tokenizer_file: Path
) -> None:
    """At its end it commits what may be nothing, and clears; the last turn comes all the same, and no error."""
    async with house(tokenizer_file) as (url, jobs), agents_model(url) as (model, voice):
        audio = voice.StreamedAudioInput()
        session = await model.create_session(audio, voice.STTModelSettings(**settings), False, False)
        said = samples()
        whole = np.concatenate([said, said[: -12000 if silence == 0 else None], np.zeros(24000 * silence, np.int16)])
        for at in range(0, whole.size, 4800):
            await audio.add_audio(whole[at : at + 4800])
        await audio.add_audio(None)
        async with asyncio.timeout(PATIENCE):
            turns = [turn async for turn in session.transcribe_turns()]
    assert len(turns) == 2
    assert all(turn.startswith("turn") for turn in turns)
    assert phrases(jobs) == {heard}


async def test_openai_agents_that_hears_nothing(tokenizer_file: Path) -> None:
    async with house(tokenizer_file) as (url, _), agents_model(url) as (model, voice):
        audio = voice.StreamedAudioInput()
        session = await model.create_session(audio, voice.STTModelSettings(), False, False)
        await audio.add_audio(np.zeros(24000, np.int16))
        await audio.add_audio(None)
        async with asyncio.timeout(PATIENCE):
            assert [turn async for turn in session.transcribe_turns()] == []


# --- pipecat ---------------------------------------------------------------------------------------------------------


async def pipecat(stt: Any, *, ready: Any = lambda: True) -> list[Any]:
    """The frames that a pipeline with this service brings, of one sentence, up to its text."""
    frames, pipeline = module("pipecat.frames.frames"), module("pipecat.pipeline.pipeline")
    worker_of, runner_of = module("pipecat.pipeline.worker"), module("pipecat.workers.runner")
    processor = module("pipecat.processors.frame_processor")
    brought: list[Any] = []
    done = asyncio.Event()

    class Sink(processor.FrameProcessor):  # type: ignore[misc, name-defined]  # their base class is not read
        async def process_frame(self, frame: Any, direction: Any) -> None:
            await super().process_frame(frame, direction)
            brought.append(frame)
            if isinstance(frame, frames.TranscriptionFrame):
                done.set()
            await self.push_frame(frame, direction)

    worker = worker_of.PipelineWorker(pipeline.Pipeline([stt, Sink()]), cancel_on_idle_timeout=False)
    errors: list[Any] = []

    @worker.event_handler("on_pipeline_error")  # type: ignore[untyped-decorator]
    async def failed(_: Any, frame: Any) -> None:
        errors.append(frame)
        done.set()

    runner = runner_of.WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await wait_until(ready)
        audio = speech() + SECOND
        await worker.queue_frame(frames.VADUserStartedSpeakingFrame())
        for at in range(0, len(audio), 640):
            await worker.queue_frame(frames.InputAudioRawFrame(audio[at : at + 640], 16000, 1))
        await worker.queue_frame(frames.VADUserStoppedSpeakingFrame())
        async with asyncio.timeout(PATIENCE):
            await done.wait()
    finally:
        await worker.queue_frame(frames.EndFrame())
        async with asyncio.timeout(PATIENCE):
            await running
    assert errors == []
    return [frame for frame in brought if isinstance(frame, frames.TranscriptionFrame)]


@pytest.mark.parametrize(
    "settings", [{}, {"keywords": ["Kallax", "Björn"], "prompt": "We talk of furniture all day.", "temperature": 0.3}]
)
async def test_pipecat(settings: dict[str, Any], tokenizer_file: Path) -> None:
    kind = module("pipecat.services.openai.stt").OpenAISTTService
    async with house(tokenizer_file) as (url, jobs), DefaultAsyncHttpxClient() as http:  # it closes none of its own
        stt = kind(api_key="any", base_url=url, http_client=http, settings=kind.Settings(**settings))
        (text,) = await pipecat(stt)
        assert text.text.startswith("turn on")
        assert phrases(jobs) == {tuple(settings.get("keywords", ()))}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        ({}, {"noise_reduction": "near_field", "delay": "low"}),
        ({"turn_detection": {"type": "semantic_vad"}}, {"model": "gpt-transcribe", "prompt": "Kallax; Björn"}),
    ],
)
async def test_pipecat_realtime(options: dict[str, Any], settings: dict[str, Any], tokenizer_file: Path) -> None:
    kind = module("pipecat.services.openai.stt").OpenAIRealtimeSTTService
    async with house(tokenizer_file) as (url, jobs):
        address = url.replace("http", "ws", 1) + "/realtime"
        stt = kind(api_key="any", base_url=address, settings=kind.Settings(**settings), **options)
        texts = await pipecat(stt, ready=lambda: stt._session_ready)
        assert texts[0].text.startswith("turn on")
        assert phrases(jobs) == {("Kallax", "Björn") if "prompt" in settings else ()}


# --- livekit ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def livekit(url: str, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Its transcription, and a frame of the sentence."""
    utils = module("livekit.agents.utils")
    async with utils.http_context.open(), AsyncOpenAI(api_key="any", base_url=url, max_retries=0) as client:
        stt = module("livekit.plugins.openai").STT(client=client, **options)
        audio = at_24khz(speech() + SECOND)
        frame = module("livekit.rtc").AudioFrame(audio, 24000, 1, len(audio) // 2)
        yield stt, frame
        await stt.aclose()


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({}, ()),
        ({"model": "whisper-1"}, ()),
        ({"model": "gpt-transcribe"}, ()),
        (
            {"model": "gpt-transcribe", "language": ["en", "de"], "keywords": ["Kallax"], "prompt": "Björn, Thibault"},
            ("Kallax", "Björn", "Thibault"),
        ),
        ({"temperature": 0.4, "prompt": "Somebody orders shelves in a shop."}, ()),
    ],
)
async def test_livekit(options: dict[str, Any], heard: tuple[str, ...], tokenizer_file: Path) -> None:
    async with house(tokenizer_file) as (url, jobs), livekit(url, **options) as (stt, frame):
        event = await stt.recognize(frame)
    assert event.alternatives[0].text.startswith("turn on")
    assert phrases(jobs) == {heard}


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({"use_realtime": True}, ()),
        ({"use_realtime": True, "model": "gpt-transcribe"}, ()),
        ({"model": "gpt-live-transcribe", "keywords": ["Kallax"], "noise_reduction_type": "near_field"}, ("Kallax",)),
        ({"model": "gpt-realtime-whisper"}, ()),
        ({"use_realtime": True, "prompt": "Thibault, Björn", "turn_detection": {"type": "semantic_vad"}},
         ("Thibault", "Björn")),
    ],
)  # fmt: skip
async def test_livekit_realtime(options: dict[str, Any], heard: tuple[str, ...], tokenizer_file: Path) -> None:
    """Two sentences: with a model that has no turn detection, its own voice detection commits each."""
    kinds = module("livekit.agents.stt").SpeechEventType
    finals: list[str] = []
    async with (
        house(tokenizer_file) as (url, jobs),
        livekit(url, **options) as (stt, frame),
        stt.stream() as stream,
        asyncio.timeout(PATIENCE),
    ):
        stream.push_frame(frame)
        async for event in stream:
            if event.type == kinds.FINAL_TRANSCRIPT:
                finals.append(event.alternatives[0].text)
                if len(finals) == 2:
                    break
                stream.push_frame(frame)
    assert all(text.startswith("turn") for text in finals)
    assert phrases(jobs) == {heard}


# --- SpeechRecognition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({}, ()),
        ({"prompt": "Kallax, Björn", "language": "en"}, ("Kallax", "Björn")),
        ({"prompt": "What somebody says in a kitchen at night.", "temperature": 0.5, "model": "gpt-4o-transcribe"}, ()),
    ],
)
async def test_speech_recognition(
    options: dict[str, Any], heard: tuple[str, ...], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = module("speech_recognition")
    async with house(tokenizer_file) as (url, jobs):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        audio = library.AudioData(speech(), 16000, 2)
        text = await asyncio.to_thread(library.Recognizer().recognize_openai, audio, **options)
    assert text.startswith("turn on")
    assert phrases(jobs) == {heard}


# --- Home Assistant --------------------------------------------------------------------------------------------------
# Its package is too large for a test. These are the forms that its integrations make (2026.11), with the same client of
# OpenAI's: components/openai_conversation/stt.py, and components/litellm/stt.py with and without its templates.

FORMS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {
            "model": "gpt-4o-mini-transcribe",
            "response_format": "json",
            "language": "en",
            "prompt": "The following conversation is a smart home user talking to Home Assistant.",
        },
        (),
    ),
    ({"model": "tiny-en", "language": "en", "prompt": omit, "keywords": omit}, ()),
    (
        {
            "model": "tiny-en",
            "language": "en",
            "prompt": "Kitchen, Living Room, Björn's Room",
            "keywords": ["Floor Lamp", "Kallax"],
        },
        ("Floor Lamp", "Kallax", "Kitchen", "Living Room", "Björn's Room"),
    ),
]


@pytest.mark.parametrize(("form", "heard"), FORMS)
async def test_home_assistant(form: dict[str, Any], heard: tuple[str, ...], tokenizer_file: Path) -> None:
    recording = ("audio.wav", file_of())
    async with (
        house(tokenizer_file) as (url, jobs),
        AsyncOpenAI(api_key="sk-no-key-required", base_url=url, max_retries=0) as client,
    ):
        assert (await client.audio.transcriptions.create(file=recording, **form)).text.startswith("turn on")
    assert phrases(jobs) == {heard}
