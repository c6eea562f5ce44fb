"""What the log of a real process holds, in which form, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import json
import logging
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from harness import PATIENCE, ROOT, Event, broker, client, listener, scripted, service, speech, wait_until
from test_mqtt_outages import DAEMON
from test_websocket import fetch
from websockets.exceptions import ConnectionClosed, InvalidStatus

from daemon.common import logs
from daemon.common.client_input import quoted, shown
from daemon.settings.schema import Settings

TOKEN, LATER = "a-token/that%nobody?guesses", "another-token-after-a-reload"
WRONG_PLACES = [
    "/v1/stream?{}",
    "/v1/stream?source={}",
    "/v1/stream?{}=x",
    "/v1/events?since={}&source=a",
    "/v1/stream?token=wrong&source=x",
    "/{}",
    "/metrics?token={}&token={}",
]


async def use(url: str, token: str) -> str:
    """All that may go wrong with a token, and a sentence that goes right; what was heard."""
    for place in WRONG_PLACES:
        path = place.replace("{}", quote(token, safe=""))
        with contextlib.suppress(Exception):  # some are no websocket at all
            async with client(url, path) as mine:
                await mine.rest()
        await asyncio.to_thread(fetch, url, path)
    for frame in (f'"{token}"', token, f'{{"type": "{token}"}}', f'{{"type": "start", "{token}": 1}}'):
        with contextlib.suppress(ConnectionClosed):
            async with client(url, "/v1/stream", additional_headers={"Authorization": f"Bearer {token}"}) as mine:
                await mine.ws.send(frame)
                await mine.rest()
    async with client(url, f"/v1/stream?source=kitchen&token={quote(token, safe='')}") as mine:
        await mine.play(speech())
        final = await mine.until("final")
        await mine.say(type="stop")
        await mine.rest()
    return str(final["text"])


@pytest.mark.parametrize("transcripts", [False, True])
async def test_a_log_of_everything_holds_no_token_and_text_only_on_request(
    transcripts: bool, tmp_path: Path, tokenizer_file: Path
) -> None:
    file, config = tmp_path / "log", tmp_path / "whisperd.yaml"

    def settings(token: str) -> str:
        mqtt = {"host": "127.0.0.1", "port": mosquitto.port, "username": "me", "password": "the-brokers-secret"}
        log = {"level": "debug", "transcripts": transcripts}
        return json.dumps({"server": {"port": 0, "tokens": [token]}, "log": log, "mqtt": mqtt})

    with broker(tmp_path) as mosquitto, open(file, "w") as log:  # noqa: ASYNC230 - a small file, in a test
        config.write_text(settings(TOKEN))
        popen = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DAEMON, str(tokenizer_file), str(config), cwd=ROOT, stderr=log,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}", "STATE_DIRECTORY": str(tmp_path)},
        )  # fmt: skip
        try:
            await wait_until(lambda: "ready: " in file.read_text())
            url = file.read_text().partition("listening on ")[2].split()[0]
            async with listener(mosquitto.port) as broker_says:
                heard = [await use(url, TOKEN)]
                await broker_says.until("whisperd/kitchen/final")
                config.write_text(settings(LATER))
                popen.send_signal(signal.SIGHUP)
                await wait_until(lambda: "reloaded: server.tokens" in file.read_text())
                heard.append(await use(url, LATER))
                await broker_says.until("whisperd/kitchen/final")
            popen.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(popen.wait(), PATIENCE) == 0
        finally:
            if popen.returncode is None:
                popen.kill()
                await popen.wait()
    told = file.read_text()
    assert "DEBUG" in told
    for secret in (TOKEN, quote(TOKEN, safe=""), LATER, "the-brokers-secret"):
        assert secret not in told
    for text in heard:
        assert len(text) > 3
        assert (f"kitchen: {text}" in told) is transcripts
        assert (text in told) is transcripts


def test_a_secret_is_struck_out_as_a_word() -> None:
    formatter = logs._Text("%(message)s")

    def line(text: str) -> str:
        return formatter.format(logging.makeLogRecord({"msg": text}))

    try:
        logs.hide(["t", "se cret", "ö" * 8, ""])
        assert line("that t, and ?token=t&x") == "that ***, and ?token=***&x"
        assert line("se cret se%20cret") == "*** ***"
        assert line(ascii("ö" * 8)) == "'***'"
        logs.hide([])
        assert line("t") == "t"
    finally:
        logs.hide([])


LONG = "a-token-that-is-longer-than-what-is-shown-of-anything-" + "0123456789abcdef" * 8


@pytest.mark.parametrize("glue", ["", "x", "token_", "ü"])
def test_a_secret_is_struck_out_wherever_it_stands_and_whoever_cut_it(glue: str) -> None:
    formatter = logs._Text("%(message)s")
    try:
        logs.hide([LONG, "short", "with'quote\\s"])
        for text in (LONG, LONG[:60], LONG[:200], LONG[:20] + "...", quote(LONG)):
            told = formatter.format(logging.makeLogRecord({"msg": glue + text + glue}))
            assert told.startswith(glue + "***")
            assert LONG[:16] not in told
            assert LONG[-16:] not in told
        for show in (quoted, shown):
            for value in (LONG, glue + LONG, [glue + LONG], "y" * 50 + LONG, "y" * 1_000_000, "with'quote\\s"):
                told = show(value)
                assert len(told) <= 60
                assert "a-token" not in told
                assert "quote" not in told
        assert quoted("shortly") == "'shortly'"
    finally:
        logs.hide([])


async def test_a_token_that_is_cut_is_in_no_error_and_no_line(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is told of a client's fault shows what it sent, cut: through every entrance."""
    caplog.set_level(logging.DEBUG, "daemon")
    told: list[str] = []
    sections = {"server": {"tokens": [LONG]}, "dialects": {"vosk": 0, "whisperlive": 0}}
    try:
        async with service(scripted(tokenizer_file), sections) as daemon:
            logs.hide([LONG])
            urls = [(daemon.server.url, path) for path in ("/v1/stream", "/v1/events", "/v1/realtime", "/v1/listen")]
            for url, path in [*urls, *((url, "/") for url in daemon.server.urls.values())]:
                for query in (f"source=x{LONG}", f"x{LONG}=1", f"intent={LONG}", f"since=x{LONG}&source=a"):
                    with contextlib.suppress(InvalidStatus):
                        async with client(url, f"{path}?token={LONG}&{query}") as mine:
                            with contextlib.suppress(ConnectionClosed):
                                await mine.ws.send(json.dumps({"type": f"x{LONG}", f"y{LONG}": LONG, "config": LONG}))
            for headers in ({"Origin": f"https://{LONG}.example"}, {"Host": f"{LONG}.example"}):
                async with httpx.AsyncClient(base_url=daemon.server.url.replace("ws", "http", 1)) as made:
                    told += [(await made.get("/v1/sources", headers=headers)).text]
                    fields = {f"x{LONG}": LONG, "response_format": f"x{LONG}"}
                    query = f"/v1/audio/transcriptions?token={LONG}&source=x{LONG}"
                    told += [(await made.post(query, data=fields, headers=headers)).text]
    finally:
        logs.hide([])
        said = [record.getMessage() for record in caplog.records]
    # What is logged of a fault is what its client is told.
    assert sum("***" in each for each in said) > 10
    for text in (*told, *said):
        assert "a-token-that" not in text


def test_lines_are_bounded_in_size_and_number() -> None:
    def say(text: str) -> None:
        logger.info("%s", text)

    out = io.StringIO()
    handler = logs._Stderr(journal=False)
    handler.setStream(out)
    handler.use("text")
    logger = logging.Logger("test")
    logger.addHandler(handler)
    say("x" * 1_000_000)
    assert len(out.getvalue()) < 20_000
    assert " characters were left out" in out.getvalue()
    for _ in range(1000):
        say("y" * 10_000)
    assert len(out.getvalue()) < 400_000
    logger.info("somebody else")
    assert "somebody else" in out.getvalue()
    budget = next(iter(handler._budgets._places.values()))
    left_out, budget._left = budget.left_out, 1000.0
    say("once more")
    assert f"{left_out} lines like the next one were left out" in out.getvalue().splitlines()[-2]
    assert out.getvalue().endswith("once more\n")


async def test_what_parts_of_a_form_say_of_themselves_is_no_line_of_the_log(
    tokenizer_file: Path, recwarn: pytest.WarningsRecorder
) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        head = b"--x\r\nContent-Disposition: form-data; name*=rubbish''" + b"%ff" * 1000 + b"; nothing\r\n\r\n1\r\n"
        async with httpx.AsyncClient(base_url=daemon.server.url.replace("ws", "http", 1)) as made:
            answer = await made.post(
                "/v1/audio/transcriptions",
                content=head * 10 + b"--x--\r\n",
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
    assert answer.status_code == 400
    assert not [each for each in recwarn if "rubbish" in str(each.message)]


# --- the form --------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, threading, warnings
import harness
from pathlib import Path
from daemon.service import app
from daemon.commands import cli

ran = finals = 0

def before(jobs):
    global ran, finals
    ran += 1
    if ran == 2:
        warnings.warn("a library\\nwarns")
        threading.Thread(target=lambda: 1 / 0).start()
    final = any(job.times for job in jobs)
    finals += final
    if finals % 2 if final else ran % 3 == 0:
        raise RuntimeError("a kernel failed\\nin two lines")

app.Service.__init__.__defaults__ = (harness.scripted(Path(sys.argv[1]), before=before),)
sys.exit(cli.main(["run", "-c", sys.argv[2]]))
"""
"""`whisperd run` with an engine of which all that may go wrong goes wrong."""


async def talk(url: str, source: str) -> list[Event]:
    """Two sentences, a fault between them, and a farewell."""
    async with client(url) as mine:
        await mine.say(type="start", source=source, words=True)  # by its words the engine knows a final
        await mine.play(speech())
        await mine.say(type="start", sample_rate=1)
        await mine.play(speech())
        await mine.say(type="stop")
        await mine.rest()
        return mine.events


async def logged(tmp_path: Path, tokenizer_file: Path, log: dict[str, Any]) -> tuple[list[str], list[list[Event]]]:
    """The lines of a process under load, standard output's too; and what its clients were told."""
    file, config = tmp_path / "log", tmp_path / "whisperd.yaml"
    config.write_text(json.dumps({"server": {"port": 0}, "log": log, "escalate": {"when": "never"}}))
    with open(file, "w") as output:  # noqa: ASYNC230 - a small file, in a test
        popen = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, str(tokenizer_file), str(config), cwd=ROOT, stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}", "STATE_DIRECTORY": str(tmp_path)},
        )  # fmt: skip
        try:
            await wait_until(lambda: "ready: " in file.read_text())
            url = file.read_text().partition("listening on ")[2].split()[0].rstrip('",}')
            told = await asyncio.gather(*(talk(url, f"room{number}") for number in range(8)))
            await asyncio.to_thread(fetch, url, "/nothing")
            popen.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(popen.wait(), PATIENCE) == 0
        finally:
            if popen.returncode is None:
                popen.kill()
                await popen.wait()
    return file.read_text().splitlines(), told


async def test_json_every_line_parses_and_each_of_a_stream_names_it(tmp_path: Path, tokenizer_file: Path) -> None:
    log = {"level": "debug", "format": "json", "transcripts": True}
    lines, told = await logged(tmp_path, tokenizer_file, log)
    records = [json.loads(line) for line in lines]
    for record in records:
        assert {"time", "level", "logger", "message"} <= record.keys()
        assert datetime.fromisoformat(record["time"]).tzinfo is not None
        assert record["level"] in ("debug", "info", "warning", "error", "critical")
        assert all(isinstance(value, str) for value in record.values())
    failures = 0
    for events in told:
        session, source = events[0]["session"], events[0]["source"]
        mine = [record for record in records if record.get("session") == session]
        assert {record["source"] for record in mine} == {source}
        said = [record["message"] for record in mine]
        assert said[0].startswith("stream started: pcm_s16le")
        assert said[-1].startswith("stream ended: ")
        # What others said of this stream is under its session, and nothing else is.
        texts = [event["text"] for event in events if event["type"] == "final"]
        assert [message for message in said if message.startswith(f"{source}: ")] == [
            f"{source}: {text}" for text in texts
        ]
        failed = [event["message"] for event in events if event.get("code") == "transcription_failed"]
        failures += len(failed)
        assert [message for message in said if message.startswith("utterance ")] == failed
        assert sum(": late_start: " in message for message in said) == 1
    assert failures, "some must fail, or nothing was tested"
    names = {events[0]["source"] for events in told}
    assert all("session" in record for record in records if record.get("source") in names)
    strangers = [record["message"] for record in records if "session" not in record]
    assert not any(name in message for name in names for message in strangers)
    # Exceptions and what others print.
    batches = [record for record in records if "a batch of" in record["message"]]
    assert batches
    assert all("RuntimeError: a kernel failed\nin two lines" in record["exception"] for record in batches)
    assert any("a library\nwarns" in record["message"] and record["logger"] == "py.warnings" for record in records)
    (uncaught,) = [record for record in records if record["level"] == "critical"]
    assert "ZeroDivisionError" in uncaught["exception"]


async def test_text_names_streams_too(tmp_path: Path, tokenizer_file: Path) -> None:
    lines, told = await logged(tmp_path, tokenizer_file, {"transcripts": True})
    for events in told:
        subject = f"[{events[0]['source']} {events[0]['session']}] "
        texts = [event["text"] for event in events if event["type"] == "final"]
        said = [line.partition(subject)[2] for line in lines if subject in line]
        assert [each for each in said if each.startswith("room")] == [
            f"{events[0]['source']}: {text}" for text in texts
        ]


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_journal_gets_a_priority_before_each_line(format: logs.Format) -> None:
    handler = logs._Stderr(journal=True)
    handler.use(format)
    record = logging.makeLogRecord({"msg": "one\ntwo", "levelno": logging.WARNING, "levelname": "WARNING"})
    try:
        raise ValueError("three")
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = handler.format(record).splitlines()
    assert all(line.startswith("<4>") for line in lines)
    if format == "json":
        (line,) = lines
        assert json.loads(line.removeprefix("<4>"))["message"] == "one\ntwo"
    else:
        assert (lines[0].endswith("one"), lines[1], lines[-1]) == (True, "<4>two", "<4>ValueError: three")


def test_a_secret_is_struck_out_of_json_however_json_would_write_it() -> None:
    try:
        logs.hide(['se"cret\\ö'])
        record = logging.makeLogRecord({"name": "x", "msg": 'a se"cret\\ö here', "levelname": "INFO"})
        assert json.loads(logs._Json().format(record))["message"] == "a *** here"
    finally:
        logs.hide([])


def test_a_block_speaks_of_what_it_says_and_no_longer() -> None:
    def names() -> list[str]:
        fields = json.loads(logs._Json().format(logging.makeLogRecord({"msg": "x", "levelname": "INFO"})))
        return [fields[name] for name in ("source", "session") if name in fields]

    def speaks() -> None:
        assert names() == []
        with logs.log_context(source="kitchen"):
            assert names() == ["kitchen"]
            logs.bind_log_context(session="1")
            assert names() == ["kitchen", "1"]
        assert names() == []

    contextvars.Context().run(speaks)


async def test_the_form_changes_with_a_reload(tmp_path: Path, tokenizer_file: Path) -> None:
    handler = logs._Stderr(journal=False)
    handler.use("text")
    logging.getLogger().addHandler(handler)
    try:
        async with service(scripted(tokenizer_file)) as daemon:
            section = {"server": {"port": 0}, "log": {"format": "json"}}
            daemon.reload(lambda: Settings.model_validate(section))
            await wait_until(lambda: isinstance(handler.formatter, logs._Json))
    finally:
        logging.getLogger().removeHandler(handler)
