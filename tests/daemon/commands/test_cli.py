"""The commands that end by themselves: `transcribe`, `check`, `devices`, `distill`; and how they end when they must."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import soundfile
import sounds
from harness import DATA, PATIENCE, ROOT, broker, scripted, service

from daemon.commands import check as checks
from daemon.commands import cli
from daemon.core import pipeline
from daemon.microphone.capture import MicrophoneError

KITCHEN = str(DATA / "turn_on_the_kitchen_light.flac")
Whisperd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def whisperd(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Whisperd:
    """The command line in this process, with a scripted engine: (exit code, standard output, standard error)."""
    defaults = pipeline.Pipeline.__init__.__defaults__ or ()
    monkeypatch.setattr(pipeline.Pipeline.__init__, "__defaults__", (scripted(tokenizer_file), *defaults[1:]))
    config = tmp_path / "whisperd.yaml"
    config.write_text("")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments[:1], "-c", str(config), *arguments[1:]])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"whisperd {version('whisperd')}\n"


def test_a_file_as_text(whisperd: Whisperd) -> None:
    assert whisperd("transcribe", KITCHEN) == (0, "turn on the kitchen\n", "")


def test_files_as_json_one_final_a_line(whisperd: Whisperd) -> None:
    two = str(DATA / "two_sentences.flac")
    code, out, err = whisperd("transcribe", "--json", KITCHEN, two)
    assert (code, err) == (0, "")
    found = lines(out)
    assert [event["type"] for event in found] == ["final"] * 3
    assert [event["source"] for event in found] == [KITCHEN, two, two]
    assert [event["utterance"] for event in found] == [1, 1, 2]
    assert "words" not in found[0]


def test_all_events_and_words(whisperd: Whisperd) -> None:
    code, out, _ = whisperd("transcribe", "--json", "--partials", "--words", "--realtime", KITCHEN)
    assert code == 0
    found = lines(out)
    kinds = [event["type"] for event in found]
    assert kinds[0] == "speech_started"
    assert kinds[-2:] == ["speech_stopped", "final"]
    assert set(kinds[1:-2]) == {"partial"}
    assert [word["text"] for word in found[-1]["words"]] == found[-1]["text"].split()
    # At the pace of speech: each partial covers what was new.
    ends = [event["end"] for event in found if event["type"] == "partial"]
    assert ends == sorted(set(ends))


def test_a_file_by_its_timestamps(whisperd: Whisperd, tmp_path: Path) -> None:
    """One window has both sentences, which the other way are two segments."""
    two = str(DATA / "two_sentences.flac")
    code, out, err = whisperd("transcribe", "--json", "--words", "--long-form", "timestamps", two)
    assert (code, err) == (0, "")
    found = lines(out)
    assert {event["type"] for event in found} == {"final"}
    assert [event["text"] for event in found[:-1]] == ["turn on the kitchen light"] * (len(found) - 1)
    for first, second in itertools.pairwise(found):
        assert second["start"] == pytest.approx(first["end"])  # one span ends where the next begins
    assert [word["text"] for word in found[0]["words"]] == found[0]["text"].split()
    (tmp_path / "whisperd.yaml").write_text("files: {long_form: timestamps}")
    assert lines(whisperd("transcribe", "--json", two)[1])[0]["text"] == "turn on the kitchen light"
    cut = ["turn on the kitchen", "turn on the"]
    assert whisperd("transcribe", "--long-form", "vad", two)[1].splitlines() == cut
    assert whisperd("transcribe", "--partials", two)[1].splitlines()[-1] == cut[-1]  # partials need utterances


def test_partials_are_not_of_windows(whisperd: Whisperd, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        whisperd("transcribe", "--partials", "--long-form", "timestamps", KITCHEN)
    assert left.value.code == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_partials_as_text(whisperd: Whisperd) -> None:
    code, out, _ = whisperd("transcribe", "--partials", "--realtime", KITCHEN)
    *partials, final = out.splitlines()
    assert (code, final) == (0, "turn on the kitchen")
    assert partials
    assert all(line.startswith("~ turn") for line in partials)


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"), [(8000, 1, "ULAW"), (44100, 2, "PCM_16"), (48000, 2, "FLOAT")]
)
def test_files_of_other_kinds(whisperd: Whisperd, tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    import soxr

    samples, at = soundfile.read(KITCHEN, dtype="float32")
    path = str(tmp_path / "other.wav")
    soundfile.write(path, np.stack([soxr.resample(samples, at, rate)] * channels, axis=1), rate, subtype=subtype)
    code, out, _ = whisperd("transcribe", "--json", path)
    assert code == 0
    (final,) = lines(out)
    (reference,) = lines(whisperd("transcribe", "--json", KITCHEN)[1])
    assert abs(final["start"] - reference["start"]) <= 0.1
    assert abs(final["end"] - reference["end"]) <= 0.1


def test_what_telephones_and_dead_recorders_leave(whisperd: Whisperd, tmp_path: Path) -> None:
    said, rate = soundfile.read(KITCHEN, dtype="int16")
    assert rate == 16000
    kinds = {
        "voice.m4a": sounds.encoded("m4a", said),
        "browser.webm": sounds.encoded("webm, live", said),
        "no-sizes.wav": sounds.with_data_size(sounds.written("WAV", said), 0),
        "pipe.flac": sounds.of_unknown_length(sounds.written("FLAC", said)),
        "chain.ogg": sounds.written("OGG", said) * 2,
    }
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    code, out, err = whisperd("transcribe", "--json", *(str(tmp_path / name) for name in kinds))
    assert (code, err) == (0, "")
    heard = [Path(event["source"]).name for event in lines(out)]
    assert heard == [*kinds, "chain.ogg"]


def test_one_bad_file_does_not_cost_the_others(whisperd: Whisperd, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no sound")
    many = tmp_path / "many.wav"
    soundfile.write(many, np.zeros((100, 9), np.float32), 16000)
    low = tmp_path / "low.wav"
    soundfile.write(low, np.zeros(100, np.float32), 4000)
    raw = tmp_path / "samples.raw"
    raw.write_bytes(bytes(100))
    bad = [tmp_path / "nowhere.wav", text, many, low, raw, tmp_path]
    code, out, err = whisperd("transcribe", *map(str, bad), KITCHEN)
    assert code == 1
    assert out == "turn on the kitchen\n"
    said = [
        "there is no such file",
        "is not a sound file that can be read: ",
        "channels must be 1..8, got 9",
        "sample_rate must be 8000..192000, got 4000",
        "is not a sound file that can be read: ",
        "is a directory; name the files in it",
    ]
    for line, path, why in zip(err.splitlines(), bad, said, strict=True):
        assert line.startswith(f"whisperd: {path}: {why}")


def test_a_path_need_not_be_utf_8(whisperd: Whisperd, tmp_path: Path) -> None:
    odd = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/b\xff.flac", b"/c\xff.flac")]
    shutil.copyfile(KITCHEN, odd[0])
    code, out, err = whisperd("transcribe", "--json", *odd, KITCHEN)
    assert code == 1
    assert [event["source"] for event in lines(out)] == [f"{tmp_path}/b\N{REPLACEMENT CHARACTER}.flac", KITCHEN]
    assert err == f"whisperd: {tmp_path}/c\N{REPLACEMENT CHARACTER}.flac: there is no such file\n"


def test_what_came_before_a_damaged_place_is_told(whisperd: Whisperd, tmp_path: Path) -> None:
    samples, rate = soundfile.read(KITCHEN, dtype="float32")
    path = tmp_path / "damaged.flac"
    soundfile.write(path, np.tile(samples, 10), rate)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    code, out, err = whisperd("transcribe", str(path))
    assert code == 1
    assert 3 <= len(out.splitlines()) < 10
    assert f"{path}: is damaged" in err


def test_a_pipe_and_standard_input_are_read_like_files(
    whisperd: Whisperd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(Path(KITCHEN).read_bytes()))
    writer.start()
    with open(KITCHEN, encoding="latin-1") as standard_input:
        monkeypatch.setattr("sys.stdin", standard_input)
        code, out, err = whisperd("transcribe", "--json", str(pipe), "-")
    writer.join()
    assert (code, err) == (0, "")
    assert [(event["source"], event["text"]) for event in lines(out)] == [
        (str(pipe), "turn on the kitchen"),
        ("-", "turn on the kitchen"),
    ]


def test_a_long_file_keeps_its_clock_and_its_order(whisperd: Whisperd, tmp_path: Path) -> None:
    samples, rate = soundfile.read(KITCHEN, dtype="float32")
    path = str(tmp_path / "long.flac")
    soundfile.write(path, np.tile(samples, 25), rate)
    code, out, _ = whisperd("transcribe", "--json", path)
    assert code == 0
    found = lines(out)
    assert [event["utterance"] for event in found] == list(range(1, 26))
    starts = [event["start"] for event in found]
    assert np.allclose(np.diff(starts), len(samples) / rate, atol=0.1)


def test_silence_is_no_text(whisperd: Whisperd, tmp_path: Path) -> None:
    path = str(tmp_path / "silence.wav")
    murmur = 0.001 * np.random.default_rng(1).standard_normal(5 * 16000)
    soundfile.write(path, murmur, 16000)
    assert whisperd("transcribe", path) == (0, "", "")


def test_nothing_at_all_is_said_to_be_nothing(whisperd: Whisperd, tmp_path: Path) -> None:
    path = str(tmp_path / "zeros.wav")
    soundfile.write(path, np.zeros(5 * 16000, np.float32), 16000)
    code, out, err = whisperd("transcribe", path)
    assert (code, out) == (0, "")
    assert err.startswith(f"whisperd: {path}: all samples were zero for 5 s: ")
    assert err.count("\n") == 1


# --- in a process of its own -----------------------------------------------------------------------------------------

SCRIPTED = """
import os, sys
from pathlib import Path

import harness
from daemon.commands import cli
from daemon.core import pipeline
from daemon.engines.thread import ThreadHost
from daemon.microphone import capture as sound

tokenizer_file, busy, *arguments = sys.argv[1:]

def work(*_):
    import torch

    ones = torch.ones(64, 64)
    print("busy", file=sys.stderr)
    while True:
        ones @ ones

load = harness.scripted(Path(tokenizer_file), before=work if busy == "decoding" else None)
pipeline.Pipeline.__init__.__defaults__ = (work if busy == "loading" else load, ThreadHost)
sound.find_device = lambda device: "there is one"
sys.exit(cli.main([arguments[0], "-c", os.devnull, *arguments[1:]]))
"""
"""A command with a scripted engine, or one that never ends what it is busy with, in torch."""


@asynccontextmanager
async def command(
    tokenizer_file: Path,
    *arguments: str,
    busy: str = "",
    stdout: int = asyncio.subprocess.PIPE,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Killed at the end, if it has not ended. Nobody has asked Python to flush its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    popen = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPTED, str(tokenizer_file), busy, *arguments,
        stdout=stdout, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}", **environment},
    )  # fmt: skip
    try:
        async with asyncio.timeout(2 * PATIENCE):
            yield popen
    finally:
        if popen.returncode is None:
            popen.kill()
        await popen.wait()


@pytest.mark.parametrize(
    ("arguments", "busy"),
    [(["transcribe", KITCHEN], "loading"), (["transcribe", KITCHEN], "decoding"), (["listen"], "loading")],
)
async def test_an_interrupt_while_an_engine_is_busy(tokenizer_file: Path, arguments: list[str], busy: str) -> None:
    """The interpreter may not end under torch: it would abort."""
    async with command(tokenizer_file, *arguments, busy=busy) as popen:
        assert popen.stderr is not None
        assert await popen.stderr.readline() == b"busy\n"
        popen.send_signal(signal.SIGINT)
        assert await popen.communicate() == (b"", b"")
        assert popen.returncode == 130


async def test_a_line_goes_out_when_it_is_printed(tokenizer_file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with command(tokenizer_file, "transcribe", "--json", KITCHEN, str(pipe)) as popen:
        assert popen.stdout is not None
        first = json.loads(await popen.stdout.readline())
        # It still waits for the second file.
        await asyncio.to_thread(lambda: pipe.write_bytes(Path(KITCHEN).read_bytes()))
        rest, err = await popen.communicate()
    assert (popen.returncode, err) == (0, b"")
    assert [event["source"] for event in (first, *lines(rest.decode()))] == [KITCHEN, str(pipe)]


@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_an_output_that_takes_nothing(tokenizer_file: Path, options: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with command(tokenizer_file, "transcribe", *options, KITCHEN, stdout=full) as popen:
            _, err = await popen.communicate()
    finally:
        os.close(full)
    assert (popen.returncode, err) == (1, b"whisperd: standard output: No space left on device\n")


async def test_nothing_is_heard_for_a_reader_who_has_left(tokenizer_file: Path, tmp_path: Path) -> None:
    samples, rate = soundfile.read(KITCHEN, dtype="float32")
    path = str(tmp_path / "minutes.flac")
    soundfile.write(path, np.tile(samples, 200), rate)
    read, write = os.pipe()
    os.close(read)
    try:
        async with command(tokenizer_file, "transcribe", "--realtime", path, stdout=write) as popen:
            _, err = await popen.communicate()
    finally:
        os.close(write)
    assert (popen.returncode, err) == (1, b"")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["output", "locale"],
)
async def test_events_are_utf_8_in_any_locale(
    tokenizer_file: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "é.flac"
    shutil.copyfile(KITCHEN, path)
    async with command(tokenizer_file, "transcribe", "--json", str(path), environment=environment) as popen:
        out, err = await popen.communicate()
    assert (popen.returncode, err) == (0, b"")
    (final,) = lines(out.decode())
    assert final["source"] == str(path)


def test_no_output_at_all() -> None:
    """Standard output may be closed, as `>&-` does."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m daemon.commands.cli models >&-', sys.executable],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_failure_elsewhere_does_not_pass_for_one_of_the_output(
    whisperd: Whisperd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise BrokenPipeError("of something else")

    monkeypatch.setitem(cli._COMMANDS, "models", fail)
    with pytest.raises(BrokenPipeError, match="of something else"):
        whisperd("models")


# --- check -----------------------------------------------------------------------------------------------------------


def answers(out: str) -> dict[str, tuple[str, str]]:
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    return {what: (verdict, detail) for verdict, what, detail in rows}


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Whisperd:
    monkeypatch.setattr("daemon.engines.load.describe_models", lambda settings: "student scripted")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the command sets it: it shall not outlive the test
    monkeypatch.setattr("logging.disable", lambda level: None)  # it would silence the tests after this one

    def run(*options: str, **sections: Any) -> tuple[int, str, str]:
        config = tmp_path / "whisperd.yaml"
        config.write_text(json.dumps(sections))
        code = cli.main(["check", "-c", str(config), *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_all_is_there(check: Whisperd, tmp_path: Path) -> None:
    with broker(tmp_path) as mosquitto:
        code, out, _ = check(server={"port": 0}, mqtt={"host": "127.0.0.1", "port": mosquitto.port})
    found = answers(out)
    assert code == 0
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert found["models"] == ("ok", "student scripted")
    assert found["configuration"][1].endswith("whisperd.yaml")
    assert f"127.0.0.1:{mosquitto.port}" in found["MQTT"][1]


def test_each_failure_names_its_mend(check: Whisperd, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, _ = check(
            server={"port": port, "certificate": "/nowhere.pem", "key": "/nowhere.key"},
            models={"device": "cuda:7"},
            mqtt={"host": "127.0.0.1", "port": 1},
            microphone={"enabled": True, "device": "no such device"},
        )
    found = answers(out)
    assert code == 1
    assert {what for what, (verdict, _) in found.items() if verdict == "FAIL"} == {
        "address", "device", "TLS", "MQTT", "microphone", "secrets",
    }  # fmt: skip
    assert f"process {os.getpid()})" in found["address"][1]
    assert found["secrets"][1] == "server.key: /nowhere.key: No such file or directory: create it, or correct the path"
    assert "stop the program that listens there, or set server.host and server.port" in found["address"][1]
    assert "set models.device to auto or cpu" in found["device"][1]
    assert "give readable PEM files" in found["TLS"][1]
    assert "start the broker, or correct the mqtt section" in found["MQTT"][1]
    assert "whisperd devices" in found["microphone"][1] or "apt-get install" in found["microphone"][1]


def test_what_has_no_effect_is_named(check: Whisperd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    monkeypatch.setenv("WHISPERD_PORT", "tcp://10.0.0.1:8765")
    monkeypatch.setenv("WHISPERD_SERVICE_HOST", "10.0.0.1")
    code, out, _ = check(server={"port": 0}, mqtt={"password": "secret", "password_file": str(file)})
    verdict, detail = answers(out)["configuration"]
    assert (code, verdict) == (0, "ok"), out
    assert detail.split("; ") == [
        str(tmp_path / "whisperd.yaml"),
        "ignored, because Kubernetes and Docker set such variables: WHISPERD_PORT, WHISPERD_SERVICE_HOST",
        "mqtt.password_file is not used: mqtt.password takes precedence",
    ]


def test_what_could_record_is_said_where_nothing_shall(check: Whisperd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.microphone.capture.input_devices", lambda: ["*   0  default"])
    assert answers(check()[1])["microphone"] == ("ok", "off; 1 device could record")

    def missing() -> list[str]:
        raise MicrophoneError("PortAudio is not installed: apt-get install libportaudio2")

    monkeypatch.setattr("daemon.microphone.capture.input_devices", missing)
    expected = "off; PortAudio is not installed: apt-get install libportaudio2, to use one"
    assert answers(check()[1])["microphone"] == ("ok", expected)


def test_a_port_open_to_all_is_remarked_on(check: Whisperd) -> None:
    _, out, _ = check(server={"host": "0.0.0.0", "port": 0})
    assert "set server.tokens" in answers(out)["address"][1]
    _, out, _ = check(server={"host": "0.0.0.0", "port": 0, "open": True})
    assert "anybody who reaches it may listen" in answers(out)["address"][1]
    _, out, _ = check(server={"host": "0.0.0.0", "port": 0, "tokens": ["t"]})
    assert "set server.tokens" not in answers(out)["address"][1]


def test_a_whisperd_that_runs_is_no_fault(check: Whisperd, tokenizer_file: Path) -> None:
    async def ask() -> tuple[int, str, str]:
        async with service(scripted(tokenizer_file), {"wyoming": {"host": "127.0.0.1", "port": 0}}) as daemon:
            assert daemon.wyoming is not None
            host, wyoming = daemon.wyoming.address
            port = int(daemon.server.url.rpartition(":")[2])
            return await asyncio.to_thread(check, server={"port": port}, wyoming={"host": host, "port": wyoming})

    code, out, _ = asyncio.run(ask())
    assert code == 0, out
    for what in ("address", "Wyoming"):
        assert "a whisperd is already running there" in answers(out)[what][1]


def test_the_ports_of_dialects(check: Whisperd, tokenizer_file: Path) -> None:
    async def ask() -> tuple[int, str, str]:
        async with service(scripted(tokenizer_file), {"dialects": {"vosk": 0}}) as daemon:
            ours = int(daemon.server.urls["vosk"].rpartition(":")[2])
            with socket.create_server(("127.0.0.1", 0)) as stranger:
                dialects = {"vosk": ours, "whisperlive": stranger.getsockname()[1]}
                return await asyncio.to_thread(check, server={"port": 0}, dialects=dialects)

    code, out, _ = asyncio.run(ask())
    assert code == 1
    assert "a whisperd is already running there" in answers(out)["vosk"][1]
    state, said = answers(out)["whisperlive"]
    assert state == "FAIL"
    assert said.endswith("stop the program that listens there, or set dialects.whisperlive")
    code, out, _ = check(server={"port": 0})
    assert (code, "vosk" in answers(out)) == (0, False)


def test_the_answers_as_json(check: Whisperd, tmp_path: Path) -> None:
    code, out, _ = check("--json", server={"port": 0})
    found = {answer["what"]: answer for answer in json.loads(out)}
    assert code == 0
    assert found["state"] == {"what": "state", "fine": True, "detail": str(tmp_path / "state")}


def test_a_broker_that_does_not_let_us_in(check: Whisperd, tmp_path: Path) -> None:
    with broker(tmp_path, started=False) as mosquitto:
        mosquitto.options = "allow_anonymous false\n"
        mosquitto.start()
        code, out, _ = check(server={"port": 0}, mqtt={"host": "127.0.0.1", "port": mosquitto.port})
    assert code == 1
    assert (
        "the broker refused the connection: not authorised: correct mqtt.username and mqtt.password"
        in answers(out)["MQTT"][1]
    )


def test_a_broker_that_lets_us_in_but_not_publish(check: Whisperd, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic readwrite other/#\n")
    (tmp_path / "acl").chmod(0o644)
    with broker(tmp_path, started=False) as mosquitto:
        mosquitto.options = f"allow_anonymous true\nacl_file {tmp_path}/acl\nuser root\n"
        mosquitto.start()
        mqtt = {"host": "127.0.0.1", "port": mosquitto.port}
        code, out, _ = check(server={"port": 0}, mqtt=mqtt)
        assert check(server={"port": 0}, mqtt={**mqtt, "topic": "other"})[0] == 0
    assert code == 1
    assert "publishing to whisperd/check is not allowed (not authorized): allow whisperd/#" in answers(out)["MQTT"][1]


def test_what_listens_but_is_no_broker(check: Whisperd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, out, _ = check(server={"port": 0}, mqtt={"host": "127.0.0.1", "port": silent.getsockname()[1]})
    assert code == 1
    assert "no answer within 0.3 s" in answers(out)["MQTT"][1]


def test_secrets_that_everybody_may_read(check: Whisperd, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    file.chmod(0o644)
    code, out, _ = check(server={"port": 0}, mqtt={"password_file": str(file)})
    assert code == 1
    assert f"mqtt.password_file: everybody may read {file}: chmod o= {file}" in answers(out)["secrets"][1]
    file.chmod(0o640)
    code, out, _ = check(server={"port": 0, "tokens": ["t"]}, mqtt={"password_file": str(file)})
    assert code == 0
    assert "everybody may read server.tokens in " in answers(out)["secrets"][1]


def test_a_state_that_cannot_be_written(check: Whisperd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/proc/whisperd")
    code, out, _ = check(server={"port": 0})
    assert code == 1
    assert "/proc/whisperd: " in answers(out)["state"][1]
    assert "StateDirectory=" in answers(out)["state"][1]


def test_a_model_that_is_not_here_is_not_fetched_but_named(tmp_path: Path) -> None:
    path = tmp_path / "whisperd.yaml"
    path.write_text("server: {port: 0}\nmodels: {student: whisperd-tests/nowhere}\n")
    done = subprocess.run(
        [sys.executable, "-m", "daemon.commands.cli", "check", "-c", str(path)],
        env={**os.environ, "HF_HOME": str(tmp_path)}, cwd=DATA.parent.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    verdict, detail = answers(done.stdout)["models"]
    assert verdict == "FAIL"
    assert "whisperd models pull whisperd-tests/nowhere" in detail


def test_the_wyoming_port_is_looked_at(check: Whisperd) -> None:
    _, out, _ = check(server={"port": 0})
    assert answers(out)["Wyoming"] == ("ok", "off")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, _ = check(server={"port": 0}, wyoming={"host": "127.0.0.1", "port": port})
    assert code == 1
    assert "stop the program that listens there, or set wyoming.host and wyoming.port" in answers(out)["Wyoming"][1]


def test_models_are_described_from_their_files(capsys: pytest.CaptureFixture[str], english: Any) -> None:
    from daemon.common.errors import ServiceError
    from daemon.engines.load import describe_models
    from daemon.settings.schema import Settings

    both = {"student": str(english.student), "teacher": str(english.teacher)}
    told = describe_models(Settings.model_validate({"models": both}))
    assert told == f"student {english.student.name}, teacher {english.teacher.name}, up to 5 s"
    with pytest.raises(ServiceError, match="there is no directory"):
        describe_models(Settings.model_validate({"models": {"student": "./no such model"}}))


def test_the_recipe_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["distill", "--help"])
    assert caught.value.code == 0
    assert "corpus" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "WHISPERD_MODELS__STUDENT": "./no such model"}

    async def run() -> tuple[int, bytes]:
        popen = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "daemon.commands.cli", "check", "-c", os.devnull,
            stdout=write, stderr=asyncio.subprocess.PIPE, env=environment, cwd=DATA.parent.parent,
        )  # fmt: skip
        _, err = await popen.communicate()
        assert popen.returncode is not None
        return popen.returncode, err

    try:
        code, err = asyncio.run(run())
    finally:
        os.close(write)
    assert (code, err) == (1, b"")
