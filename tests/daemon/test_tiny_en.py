"""The service as it is shipped: its own models, from a person's voice to text on every edge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from harness import ROOT, SAID, TEACHER, broker, client, listener, plain, process, sentence

from bench.player import DEMO, said_in


async def test_a_sentence_on_every_edge(tmp_path: Path) -> None:
    with broker(tmp_path) as mosquitto:
        async with listener(mosquitto.port) as broker_says:
            sections = TEACHER | {"mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
            with process(tmp_path, sections) as daemon:
                async with (
                    client(daemon.url, "/v1/events?source=kitchen") as other,
                    client(daemon.url, "/v1/stream?source=kitchen") as mine,
                ):
                    await mine.say(type="start", words=True)
                    await mine.play(sentence(), frame=640)
                    await mine.say(type="stop")
                    assert await mine.rest() == 1000
                    final = await other.until("final")
                    await broker_says.until("whisperd/kitchen/text")
                assert daemon.terminate() == 0
    assert (mine.events[0]["student"], mine.events[0]["teacher"]) == ("tiny-en", "tiny-en-teacher")
    assert final["model"] == "teacher"
    assert final["text"] == "We never had so many of them in here before."  # as Whisper writes, on every edge
    assert [plain(word["text"]) for word in final["words"]] == SAID.split()
    assert mine.of("final") == [final]
    assert [json.loads(payload) for payload in broker_says.payloads("whisperd/kitchen/final")] == [final]
    assert broker_says.payloads("whisperd/kitchen/text") == [final["text"]]
    assert "Traceback" not in daemon.log


def transcribed(*arguments: str) -> str:
    """What the command prints of files, where the teacher decides."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon.commands.cli", "transcribe", *arguments],
        cwd=ROOT,
        env={**os.environ, "WHISPERD_ESCALATE__WHEN": "always"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_files_by_their_timestamps(tmp_path: Path) -> None:
    """Four recordings of a demonstration in a row are more than a window, and each is heard once."""
    samples, rate = soundfile.read(DEMO, dtype="float32")
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate([samples] * 4), rate)
    found = [json.loads(line) for line in transcribed("--json", "--words", "--long-form", "timestamps", str(path))
             .splitlines()]  # fmt: skip
    once = plain(" ".join(said_in(DEMO)))
    assert plain(" ".join(final["text"] for final in found)) == " ".join([once] * 4)
    seconds = len(samples) * 4 / rate
    times = [time for final in found for time in (final["start"], final["end"])]
    assert times == sorted(times)
    assert seconds - 3 < times[-1] <= seconds
    assert [word["text"] for final in found for word in final["words"]] == " ".join(f["text"] for f in found).split()


def test_files_through_the_same_path() -> None:
    printed = transcribed(str(DEMO))
    assert [plain(line) for line in printed.splitlines()] == [plain(text) for text in said_in(DEMO)]
