"""`whisperd run` as a process of its own: real models, real signals, a real broker; and how it ends when it must."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, ROOT, broker, client, listener, process, speech, unfinished_speech

if TYPE_CHECKING:
    from checkpoints import Pair


def models(pair: Pair) -> dict[str, Any]:
    """Settings for models that were never trained: whatever they say is believed."""
    return {
        "models": {"student": str(pair.student), "teacher": str(pair.teacher), "device": "cpu", "threads": 1},
        "segment": {"longest": 5.0, "cut_window": 1.0},
        "confidence": {"floor": 0.0, "doubtful": 0.0, "loop_copies": 1000},
        "escalate": {"shortest": 0.0},
    }


def whisperd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon.commands.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )


async def test_the_end_by_a_signal(tmp_path: Path, english: Pair) -> None:
    """SIGTERM: finals out, clients told, broker told, manager told, exit 0."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE)
    with manager, broker(tmp_path) as mosquitto:
        sections = {**models(english), "mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
        async with listener(mosquitto.port) as broker_says:
            with process(tmp_path, sections, NOTIFY_SOCKET=str(tmp_path / "notify")) as daemon:
                await broker_says.until("whisperd/status", "online")
                async with (
                    client(daemon.url, "/v1/stream?source=kitchen") as mine,
                    client(daemon.url, "/v1/events") as other,
                ):
                    await mine.play(speech())
                    await mine.say(type="flush", id="a")
                    await mine.until("flushed")
                    await mine.play(unfinished_speech())
                    while len(mine.of("speech_started")) < 2:
                        await mine.next()
                    daemon.popen.send_signal(signal.SIGTERM)
                    assert await mine.rest() == 1001
                    assert await other.rest() == 1001
                assert await asyncio.to_thread(daemon.popen.wait, PATIENCE) == 0
                await broker_says.until("whisperd/status", "offline")
        told: list[str] = []
        while not (told and told[-1].startswith("STOPPING=1")):
            told.append(manager.recv(1000).decode())
    assert mine.events[0]["student"] == english.student.name
    assert mine.events[-1]["type"] == "stopped"
    assert [event["utterance"] for event in mine.of("final")] == [1, 2]
    assert mine.of("final") == other.of("final")
    assert [json.loads(payload) for payload in broker_says.payloads("whisperd/kitchen/final")] == mine.of("final")
    assert [line.partition("\n")[0] for line in told if not line.startswith(("EXTEND", "STATUS"))] == [
        "READY=1",
        "STOPPING=1",
    ]
    assert "Traceback" not in daemon.log


async def test_a_death_without_warning_is_told_by_the_broker(tmp_path: Path, english: Pair) -> None:
    with broker(tmp_path) as mosquitto:
        sections = {**models(english), "mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
        async with listener(mosquitto.port) as broker_says:
            with process(tmp_path, sections) as daemon:
                await broker_says.until("whisperd/status", "online")
                daemon.popen.kill()
                await broker_says.until("whisperd/status", "offline")


HANGING = """
import sys, threading
import harness
from pathlib import Path
from daemon.service import app
from daemon.commands import cli

def hang(jobs):
    if any(job.audio.size > 16000 for job in jobs):
        threading.Event().wait()

app.Service.__init__.__defaults__ = (harness.scripted(Path(sys.argv[1]), before=hang),)
sys.exit(cli.main(["run"]))
"""
"""`whisperd run` with an engine that never comes back from the first real job."""


async def run_hanging(tokenizer_file: Path, drain: float, signals: int) -> tuple[int, str]:
    """Exit code and log, after `signals` SIGTERMs while a final is stuck in the engine."""
    popen = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HANGING, str(tokenizer_file),
        cwd=ROOT, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}",
             "WHISPERD_SERVER__PORT": "0", "WHISPERD_SHUTDOWN__DRAIN": str(drain)},
    )  # fmt: skip
    stderr = popen.stderr
    assert stderr is not None
    log = ""

    async def until(mark: str) -> str:
        nonlocal log
        while True:
            line = (await asyncio.wait_for(stderr.readline(), PATIENCE)).decode()
            assert line, log
            log += line
            if mark in line:
                return line.partition(mark)[2].strip()

    url = await until("listening on ")
    await until("ready: ")
    async with client(url) as mine:
        await mine.say(type="start", partials=False)
        await mine.play(speech())
        await mine.until("speech_stopped")
        for _ in range(signals):
            popen.send_signal(signal.SIGTERM)
            await until("SIGTERM")
        code = await asyncio.wait_for(popen.wait(), PATIENCE)
    log += (await stderr.read()).decode()
    return code, log


async def test_a_second_signal_does_not_wait(tokenizer_file: Path) -> None:
    code, log = await run_hanging(tokenizer_file, drain=1000, signals=2)
    assert code == 1
    assert "SIGTERM again: exiting at once" in log


async def test_the_drain_is_bounded_even_when_the_engine_hangs(tokenizer_file: Path) -> None:
    code, log = await run_hanging(tokenizer_file, drain=0.5, signals=1)
    assert code == 1
    assert "gave up after 0.5 s with unfinished finals" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {prot: 1}", "whisperd: server.prot: unknown key; did you mean server.port?"),
        ("server: {port: none}", "whisperd: server.port: must be a valid integer, got 'none'"),
        ("mqtt: {host: h, password_file: /nowhere}", "whisperd: mqtt.password_file: /nowhere: No such file"),
        ("mqtt: {host: h, tls: true, ca_file: /nowhere}", "whisperd: mqtt.ca_file: /nowhere: No such file"),
    ],
)
def test_a_bad_configuration_is_a_sentence_and_exit_code_2(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "whisperd.yaml"
    path.write_text(text)
    done = whisperd("run", "-c", str(path), WHISPERD_SERVER__HOST="127.0.0.1")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(sentence)


@pytest.mark.parametrize("arguments", [[], ["walk"], ["transcribe"], ["run", "--fast"]])
def test_bad_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = whisperd(*arguments)
    assert done.returncode == 2
    assert "usage: whisperd" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_a_sentence_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = whisperd("run", "-c", os.devnull, WHISPERD_SERVER__PORT=port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_a_sentence_and_exit_code_1() -> None:
    environment = {"WHISPERD_SERVER__PORT": "0", "WHISPERD_MODELS__STUDENT": "./no such model", "HF_HUB_OFFLINE": "1"}
    done = whisperd("run", "-c", os.devnull, **environment)
    assert done.returncode == 1
    assert "there is no directory './no such model'" in done.stderr
    assert "Traceback" not in done.stderr
