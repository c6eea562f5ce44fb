"""`whisperd bench peers`: its definitions, its clients on real sockets, and a short run of the real service.

The clients of the others are checked against whisperd itself, which speaks their protocols too.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from support import RATE, benchmark, sentences

from bench.broker import free_port
from bench.harness.daemon import SCRIPTED, Daemon, ServiceError
from bench.live import Spoken
from bench.peers import play
from bench.peers.judge import Figures, Talk, covered, first_shown, quantile, settled_after
from bench.peers.loop import Loop
from bench.peers.report import holds
from bench.peers.screen import Screen, Shown
from bench.peers.server import serving
from bench.peers.system import Served, System, Weights
from bench.peers.talks import LENGTHS, Clock, noise, talks
from bench.peers.whisper_live import WhisperLive
from bench.peers.whisperd import Whisperd
from bench.peers.whisperlivekit import WhisperLiveKit
from bench.peers.wyoming_whisper import WyomingWhisper
from bench.player import DEMO, RecordingError, said_in

NOWHERE = Path("nowhere")
NO_WEIGHTS = Weights(NOWHERE, NOWHERE)


def talk(*ends: float) -> Talk:
    """Two utterances: "turn it on", and "stop"."""
    words = ("turn", "it", "on", "stop")
    spoken = tuple(Spoken(text, end) for text, end in zip(words, ends, strict=True))
    return Talk(bytes(2 * RATE), spoken, (3, 4), ())


TALK = talk(1.0, 2.0, 3.0, 5.0)


def screen(*shown: tuple[float, str, str]) -> Screen:
    return Screen([Shown(*each) for each in shown])


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("turn", 1),
        ("turn it", 2),
        ("turn it off", 3),  # heard as another, and heard
        ("turn on", 3),  # one is missing
        ("turn it on please stop", 4),
        ("on", 1),  # as well one word wrong as two missing
    ],
)
def test_a_text_covers_the_beginning_that_fits_it_best(text: str, words: int) -> None:
    assert covered(["turn", "it", "on", "stop"], text.split()) == words


def test_each_word_lags_until_a_text_covers_it() -> None:
    seen = screen((1.5, "", "Turn"), (4.0, "", "Turn it on."), (4.5, "Turn it on.", "Turn it on."))
    figures = Figures()
    figures.add(TALK, seen)
    assert first_shown(TALK, seen) == [1.5, 4.0, 4.0]
    assert figures.lags == [0.5, 2.0, 1.0, math.inf]  # the last one was never shown
    assert figures.first == [0.5, math.inf]
    assert figures.never == 1


def test_an_utterance_is_final_when_its_share_is_settled() -> None:
    seen = screen(
        (3.5, "", "Turn it on"), (4.0, "Turn it on", "Turn it on"), (7.0, "Turn it on. Stop!", "Turn it on. Stop!")
    )
    assert settled_after(TALK, seen) == [1.0, 2.0]
    dropped = screen((4.0, "Turn it", "Turn it"), (7.0, "Turn it stop", "Turn it stop"))
    assert settled_after(TALK, dropped) == [1.0, 2.0]  # of what was heard of it nothing can change any more
    assert settled_after(TALK, screen()) == [math.inf, math.inf]


def test_what_never_came_is_more_than_any_other() -> None:
    assert quantile([3.0, 1.0, 2.0, math.inf], 0.5) == 2.0
    assert quantile([1.0, math.inf], 0.95) == math.inf
    assert quantile([], 0.5) == math.inf


def test_streams_are_held_if_none_failed_and_their_words_come_in_time() -> None:
    system = Whisperd("tiny-en", "tiny-en")
    assert holds(system, Figures(lags=[0.5] * 19 + [9.0]), 1.0)
    assert not holds(system, Figures(lags=[0.5] * 18 + [9.0] * 2), 1.0)
    assert not holds(system, Figures(lags=[0.5], failures=["refused"]), 1.0)
    assert not holds(system, Figures(), 1.0)
    without = WyomingWhisper(NOWHERE, NO_WEIGHTS)
    assert holds(without, Figures(lags=[9.0], finals=[1.5]), 1.0)  # 0.6 of them is its client's hangover
    assert not holds(without, Figures(lags=[0.5], finals=[1.7]), 1.0)


def test_a_screen_notes_what_changes() -> None:
    seen = Screen()
    for settled, tail in (("", ""), ("", "tur"), ("", "turn"), ("", "turn"), ("turn", ""), ("turn", "")):
        seen.show(settled, tail)
    seen.end()
    assert [(each.settled, each.whole) for each in seen.shown] == [("", "tur"), ("", "turn"), ("turn", "turn")]
    unsettled = Screen()
    unsettled.show("", "turn")
    unsettled.end()
    assert unsettled.shown[-1].settled == "turn"


# --- the clients -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A service that says "turn on the kitchen light" over and over."""
    settings = {
        "dialects": {"whisperlive": free_port()}, "wyoming": {"host": "127.0.0.1", "port": free_port()},
        "server": {"max_streams": 1},
    }  # fmt: skip
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), settings, program=SCRIPTED)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


def heard(system: System, daemon: Daemon, port: int, said: Talk) -> Screen:
    served = Served(psutil.Process(daemon.pid), port)
    (seen,) = asyncio.run(play.hear(system, served, [said]))
    return seen


def two() -> Talk:
    """Two sentences, each over half a second after its last sound."""
    first, second = sentences()[:2]
    over = len(first) / 2 / RATE
    return Talk(first + second, closed=(over - 0.1, over + len(second) / 2 / RATE - 0.1))


def test_whisperd_is_heard_by_its_own_protocol(daemon: Daemon) -> None:
    seen = heard(Whisperd("tiny-en", "tiny-en"), daemon, daemon.port, two())
    assert seen.failure == ""
    assert seen.text.startswith("turn on the kitchen light")
    assert any(each.whole != each.settled for each in seen.shown[:-1])  # partials
    assert len({each.settled for each in seen.shown if each.settled}) >= 2


def test_whisper_live_is_heard_by_its_protocol(daemon: Daemon) -> None:
    port = json.loads((daemon.log_file.parent / "whisperd.yaml").read_text())["dialects"]["whisperlive"]
    seen = heard(WhisperLive(NOWHERE, NO_WEIGHTS), daemon, port, two())
    assert seen.failure == ""
    assert seen.text.startswith("turn on the kitchen light")
    assert len({each.settled for each in seen.shown if each.settled}) >= 2  # completed, each once
    assert seen.text.split().count("light") <= 4


def test_wyoming_is_heard_in_turns(daemon: Daemon) -> None:
    seen = heard(WyomingWhisper(NOWHERE, NO_WEIGHTS), daemon, daemon.wyoming_port, two())
    assert seen.failure == ""
    assert len(seen.shown) >= 2  # a transcript for each turn
    assert all(each.whole == each.settled for each in seen.shown)


def test_a_stream_that_is_refused_or_cut_off_is_a_result(daemon: Daemon) -> None:
    served = Served(psutil.Process(daemon.pid), daemon.port)
    short = Talk(sentences()[0])
    one, other = asyncio.run(play.hear(Whisperd("tiny-en", "tiny-en"), served, [short, short]))
    assert sorted([bool(one.failure), bool(other.failure)]) in ([False, False], [False, True])  # it has one place
    nobody = Served(psutil.Process(daemon.pid), free_port())
    (lost,) = asyncio.run(play.hear(Whisperd("tiny-en", "tiny-en"), nobody, [short]))
    assert "Connect call failed" in lost.failure


def test_a_stream_has_a_limit_of_time(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(Whisperd):
        async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
            await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(play, "DRAIN", 0.1)
    seen = heard(Never("tiny-en", "tiny-en"), daemon, daemon.port, Talk(b""))
    assert seen.failure == "was not done 0.1 s after the end"


# --- the parts around them -------------------------------------------------------------------------------------------


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with pytest.raises(ServiceError, match="no model here"), serving(command, free_port(), tmp_path / "log", {}):
        pass


def test_noise_is_as_long_as_wanted_and_made_of_what_has_no_speech(tmp_path: Path) -> None:
    assert len(noise([], 2.0).pcm) == 2 * 2 * RATE
    soundfile.write(tmp_path / "quiet.wav", np.full(RATE, 0.25, np.float32), RATE)
    rows = [{"path": "quiet.wav", "contains_speech": False}, {"path": "nothere.wav", "contains_speech": True}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples = np.frombuffer(noise([tmp_path], 2.5).pcm, np.int16)
    assert samples.size == 2.5 * RATE
    assert set(samples.tolist()) == {8191}


def test_whisperlivekit_gets_the_alignment_heads_of_the_checkpoint(tmp_path: Path) -> None:
    """As OpenAI publishes those of tiny.en: a mask of layers and heads."""
    (tmp_path / "config.json").write_text(json.dumps({"decoder_layers": 2, "decoder_attention_heads": 3}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"alignment_heads": [[0, 1], [1, 2]]}))
    command = WhisperLiveKit(NOWHERE, Weights(NOWHERE, tmp_path)).command(1)
    told = command[command.index("--custom-alignment-heads") + 1]
    mask = np.frombuffer(gzip.decompress(base64.b85decode(told)), bool).reshape(2, 3)
    assert np.argwhere(mask).tolist() == [[0, 1], [1, 2]]


def test_environments_are_made_as_it_is_said(tmp_path: Path) -> None:
    loop = Loop(tmp_path, NO_WEIGHTS)
    assert loop.missing.startswith(f"python -m venv {tmp_path}/faster-whisper && {tmp_path}/faster-whisper/bin/pip")
    assert all(re.search(r"[\w-]+==\d", each.missing) for each in (peer(tmp_path, NO_WEIGHTS) for peer in play.PEERS))
    loop.python.parent.mkdir(parents=True)
    loop.python.touch()
    assert loop.missing == ""


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """The demo's first two sentences, by two people as far as anybody knows."""
    samples, rate = soundfile.read(DEMO, dtype="float32")
    for number, (begin, end) in enumerate(((0.0, 5.6), (5.6, 10.0))):
        folder = tmp_path / f"speaker-{number}"
        folder.mkdir()
        soundfile.write(folder / "a.flac", samples[int(begin * rate) : int(end * rate)], rate)
        (folder / "a.txt").write_text(said_in(DEMO)[number])
    return tmp_path


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock(play.PAIR)


def test_recordings_that_are_too_short_are_refused(clock: Clock, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "a.txt").write_text("stop")
    with pytest.raises(RecordingError, match=f"no recording of {LENGTHS[0]:g} to {LENGTHS[1]:g} s"):
        talks([tmp_path], clock, [5.0])


def test_talks_are_of_different_speakers_and_say_when_words_end(clock: Clock, recordings: Path) -> None:
    (said,) = talks([recordings], clock, [7.0])
    assert len(said.ends) == len(said.closed) == 2
    assert sorted(said.text.split()) == sorted(" ".join(said_in(DEMO)[:2]).split())
    ends = [word.end for word in said.words]
    assert ends == sorted(ends)
    assert ends[-1] < said.closed[-1] < said.seconds


@pytest.mark.timeout(600)  # a real service, and a talk at the pace of speech
def test_a_run_has_a_row_for_each_and_says_how_to_install_what_is_missing(recordings: Path, tmp_path: Path) -> None:
    done = benchmark(
        "peers", "--recordings", str(recordings), "--environments", str(tmp_path / "none"), "--systems", "whisperd",
        "WhisperLive", "--streams", "1", "--seconds", "5", "--quiet-seconds", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| whisperd |")]
    ours = [cell.strip() for cell in rows[0].strip("|").split("|")]
    _, first, lag, final, wrong, invented, held, memory = ours
    assert float(first) >= 0
    for both in (lag, final):
        assert all(float(each) >= 0 for each in both.split(" / "))
    assert re.fullmatch(r"\d+\.\d%", wrong)
    assert invented == "0"
    assert held in ("0", "1 or more")  # the machine may be busy
    assert float(memory) > 100
    assert "| WhisperLive | not installed: `python -m venv" in done.stdout
    assert "No stream failed." in done.stdout


def test_what_is_wrong_in_the_options_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--streams", "0"], ["--seconds", "-1"], ["--systems", "nobody"]):
        with pytest.raises(SystemExit) as ended:
            play.main(["--recordings", ".", *wrong])
        assert ended.value.code == 2
        assert f"argument {wrong[0]}: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        play.main(["--help"])
    assert "pip install --no-deps whisper-live==0.10.0" in capsys.readouterr().out
