"""Who may do what: tokens and their sources, over real sockets too; and which ports are not opened to everybody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, client, free_port, scripted, service, speech, wait_until
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Whisperd, answers, check
from test_install import Install, root
from test_install import whisperd as installer
from test_websocket import fetch
from websockets.exceptions import ConnectionClosed

from daemon.common.errors import ConfigurationError, Fault
from daemon.common.permissions import Rights, exposed, is_local, rights_of
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.load import load
from daemon.settings.schema import Settings, Token

__all__ = ["check", "installer", "root"]  # fixtures

LONG = "a-token-that-nobody-guesses"
HOUSE: list[Any] = [
    LONG,
    {"token": "porch", "send": ["porch", "porch-*"]},
    {"token": "screen", "read": ["kitchen"]},
    {"token": "counts"},
]


def tokens(*entries: Any) -> tuple[Token, ...]:
    return Settings.model_validate({"server": {"tokens": list(entries)}}).server.tokens


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_without_tokens_everybody_may_everything() -> None:
    assert rights_of([], ()) == rights_of(["any"], ()) == Rights(("*",), ("*",))


words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cc", "Cf", "Zs"]), min_size=1)


@given(st.lists(words, min_size=1, max_size=5), st.lists(words, max_size=3))
def test_a_token_opens_exactly_if_it_is_listed(listed: list[str], shown: list[str]) -> None:
    entries = tokens(*(each for each in listed if each.isprintable())) or tokens("x")
    known = {each.token for each in entries}
    assert (rights_of(shown, entries) is not None) == bool(known & set(shown))


def test_what_no_program_would_send_is_only_a_wrong_token() -> None:
    for shown in ("", "\udcff\udcfe", "goo", "good ", "goodgood", "GOOD"):
        assert rights_of([shown], tokens("good")) is None
    # UTF-8 in a header comes as surrogates.
    assert rights_of(["g\udcc3\udcb6\udcc3\udcb6d"], tokens("gööd")) is not None


def test_a_token_that_is_listed_twice_may_what_either_says() -> None:
    rights = rights_of(["a"], tokens({"token": "a", "send": ["x"]}, {"token": "a", "read": ["y"]}))
    assert rights == Rights(("x",), ("y",))


@pytest.mark.parametrize(
    ("pattern", "source", "fits"),
    [
        ("kitchen", "kitchen", True),
        ("kitchen", "kitchen-2", False),
        ("kitchen-*", "kitchen-2", True),
        ("kitchen-*", "kitchen", False),
        ("*", "küche", True),
        ("*-mic", "desk-mic", True),
        ("k*n", "kitchen", True),
        ("k.tchen", "kitchen", False),
        ("[k]itchen", "kitchen", False),
        ("", "kitchen", False),
        ("Kitchen", "kitchen", False),
    ],
)
def test_patterns(pattern: str, source: str, fits: bool) -> None:
    rights = Rights((pattern,), (pattern,))
    assert rights.may_read(source) is fits
    checks: list[Callable[[str], object]] = [rights.check_send, rights.check_read]
    for check_one in checks:
        if fits:
            check_one(source)
        else:
            with pytest.raises(Fault, match="its sources are"):
                check_one(source)


@given(st.text("ab*", max_size=8), st.text("ab", min_size=1, max_size=8))
def test_patterns_fit_as_a_regular_expression_would(pattern: str, source: str) -> None:
    wanted = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), source) is not None
    assert Rights((), (pattern,)).may_read(source) is wanted


@pytest.mark.timeout(20)
def test_a_pattern_takes_no_longer_for_what_nearly_fits() -> None:
    """Against a regular expression this would not end; and a name is judged before it is compared."""
    rights = Rights(("*-" * 30 + "x",), ("*-" * 30 + "x",))
    assert not rights.may_read("-" * 100_000)
    with pytest.raises(Fault, match="source must be"):
        rights.check_send("-" * 2000)
    with pytest.raises(Fault, match="source must be"):
        rights.check_read("-" * 2000)


# --- at the port -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "path", "start", "code"),
    [
        (LONG, "/v1/stream?source=hall", {}, None),
        ("porch", "/v1/stream?source=porch", {}, None),
        ("porch", "/v1/stream", {"source": "porch-2"}, None),
        ("porch", "/v1/stream?source=hall", {}, "forbidden"),
        ("porch", "/v1/stream?source=porch", {"source": "hall"}, "forbidden"),  # what is said later counts
        ("porch", "/v1/stream", {}, "forbidden"),  # as `stream`
        ("screen", "/v1/stream?source=kitchen", {}, "forbidden"),
        ("porc", "/v1/stream?source=porch", {}, "unauthorised"),
    ],
)
async def test_whom_a_token_may_speak_as(
    token: str, path: str, start: dict[str, str], code: str | None, tokenizer_file: Path
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        service(scripted(tokenizer_file), {"server": {"tokens": HOUSE}}) as daemon,
        client(daemon.server.url, path, additional_headers=headers) as mine,
    ):
        with contextlib.suppress(ConnectionClosed):  # it may be refused before it says anything
            await mine.say(type="start", **start)
        first = await mine.next()
        if code is None:
            assert first["type"] == "ready"
            return
        assert (first["type"], first["code"], first["fatal"]) == ("error", code, True)
        assert await mine.rest() == 1008
        assert daemon.pipeline.metrics.client_errors.labels(code)._value.get() == 1


async def test_a_token_reads_only_its_sources(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"tokens": HOUSE}}) as daemon,
        client(daemon.server.url, f"/v1/events?token={LONG}") as all_of_it,
        client(daemon.server.url, "/v1/events?token=screen") as screen,
    ):
        for source in ("hall", "kitchen"):
            async with client(daemon.server.url, f"/v1/stream?source={source}&token={LONG}") as mine:
                await mine.play(speech())
                await mine.say(type="stop")
                assert await mine.rest() == 1000
        for _ in range(2):
            await all_of_it.until("final")
        await screen.until("final")
        assert {event["source"] for event in all_of_it.events} == {"hall", "kitchen"}
        assert {event["source"] for event in screen.events} == {"kitchen"}
        for path in ("/v1/events?source=hall&since=0&token=screen", "/v1/events?token=porch"):
            async with client(daemon.server.url, path) as refused:
                assert await refused.rest() == 1008
                assert refused.events[0]["code"] == "forbidden"
        async with client(daemon.server.url, "/v1/events?source=kitchen&since=0&token=screen") as again:
            assert (await again.until("final"))["source"] == "kitchen"


async def test_the_counters_take_a_token_and_the_probes_none(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"server": {"tokens": HOUSE}}) as daemon:

        async def status(path: str) -> int:
            return (await asyncio.to_thread(fetch, daemon.server.url, path))[0]

        assert [await status(path) for path in ("/healthz", "/readyz", "/metrics", "/metrics?token=no")] == [
            200, 200, 401, 401,
        ]  # fmt: skip
        assert await status("/metrics?token=counts") == 200


async def test_headers_that_come_twice(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with service(scripted(tokenizer_file), {"server": {"tokens": [LONG]}}) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").partition(":")
        for twice in ("Authorization: Bearer no", "Upgrade: websocket", "Host: x", "Origin: http://x"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /metrics HTTP/1.1\r\n{twice}\r\n{twice}\r\nAuthorization: Bearer \xff\r\n\r\n".encode())
            async with asyncio.timeout(PATIENCE):
                answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 403 ")), answer  # 403: of a strange page
    assert "Traceback" not in caplog.text


async def test_new_tokens_in_the_file_hold_after_a_reload(tokenizer_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("first\n")
    file.chmod(0o600)
    sections = {"server": {"tokens_file": str(file)}}
    async with service(scripted(tokenizer_file), sections) as daemon:

        async def first_word(token: str) -> str:
            async with client(daemon.server.url, f"/v1/stream?token={token}") as mine:
                with contextlib.suppress(ConnectionClosed):
                    await mine.say(type="start")
                return str((await mine.next())["type"])

        async def reload(outcome: str) -> None:
            counted = daemon.pipeline.metrics.reloads.labels(outcome)._value
            before = counted.get()
            daemon.reload(lambda: Settings.model_validate({"server": {"port": 0, "tokens_file": str(file)}}))
            await wait_until(lambda: counted.get() == before + 1)

        assert (await first_word("first"), await first_word("second")) == ("ready", "error")
        file.write_text("second\n")
        await reload("taken")
        assert (await first_word("first"), await first_word("second")) == ("error", "ready")
        file.chmod(0o644)
        file.write_text("third\n")
        await reload("kept")
        assert (await first_word("second"), await first_word("third")) == ("ready", "error")


# --- ports that anybody reaches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "a.localhost"])
def test_addresses_of_this_machine(host: str) -> None:
    assert is_local(host)
    assert exposed([host], (), open_to_all=False) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "fe80::1%eth0", "0", "house.example", "::ffff:0:1"])
def test_addresses_of_others(host: str) -> None:
    assert not is_local(host)
    said = exposed([host], (), open_to_all=False)
    assert said is not None
    for mend in ("server.tokens", "server.tokens_file", "server.open: true"):
        assert mend in said
    assert exposed([host], tokens("t"), open_to_all=False) is None
    assert exposed([host], (), open_to_all=True) is None


def made(environment: ServiceEnvironment | None = None, **server: Any) -> Service:
    return Service(
        Settings.model_validate({"server": {"port": 0, **server}}), environment or ServiceEnvironment(), refuse
    )


def refuse(settings: Settings) -> Any:
    raise AssertionError("no engine is needed to refuse")


def test_a_wide_port_needs_a_token_or_a_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.host: 0\.0\.0\.0 can be reached .* there is no token"):
        made(host="0.0.0.0")
    made(host="0.0.0.0", tokens=["t"])
    made(host="0.0.0.0", open=True)
    (tmp_path / "server_tokens").write_text("t")
    made(ServiceEnvironment(credentials=tmp_path), host="0.0.0.0")


async def test_a_wide_port_that_is_handed_over_needs_one_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as wide:
        daemon = made(ServiceEnvironment(sockets=(wide.detach(),)))
        with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0 can be reached"):
            await daemon.run()


async def test_a_reload_does_not_open_the_port(tokenizer_file: Path) -> None:
    wide = {"host": "0.0.0.0", "port": 0}
    async with service(scripted(tokenizer_file), {"server": {**wide, "tokens": ["t"]}}) as daemon:
        kept = daemon.pipeline.metrics.reloads.labels("kept")._value
        daemon.reload(lambda: Settings.model_validate({"server": wide}))
        await wait_until(lambda: kept.get() == 1)
        assert [each.token for each in daemon.settings.server.tokens] == ["t"]


def test_check_and_the_installer_judge_alike(check: Whisperd, installer: Install, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("t\n")
    file.chmod(0o600)
    settings = root / "etc/whisperd/whisperd.yaml"
    settings.parent.mkdir(parents=True)
    for server, fine in (
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "open": True}, True),
        ({"host": "0.0.0.0", "tokens": [LONG]}, True),
        ({"host": "0.0.0.0", "tokens_file": str(file)}, True),
        ({"host": "127.0.0.1"}, True),
    ):
        code, out, _ = check(server={"port": free_port(), **server})
        verdict, detail = answers(out)["address"]
        assert (code, verdict) == ((0, "ok") if fine else (1, "FAIL"))
        assert ("guessable" in detail) == ("tokens_file" in server)
        settings.write_text(json.dumps({"server": server}))
        code, _, err = installer("install-service")
        assert code == (0 if fine else 1)
        assert err == ("" if fine else f"whisperd: {detail}\n")
    settings.write_text("server: {host: 0.0.0.0}")
    (root / "etc/credstore").mkdir()
    (root / "etc/credstore/server_tokens").write_text("t")
    assert installer("install-service")[0] == 0


def test_a_file_of_tokens_that_everybody_may_read_fails_the_check(check: Whisperd, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("t\n")
    file.chmod(0o644)
    code, out, _ = check(server={"port": 0, "tokens_file": str(file)})
    assert code == 1
    assert answers(out)["secrets"][1] == f"server.tokens_file: everybody may read {file}: chmod o= {file}"


def test_wyoming_is_opened_only_on_purpose_and_said_to_be_open(check: Whisperd) -> None:
    assert not load(Path("/dev/null"), {}).wyoming.host
    said: Callable[[str], str] = lambda host: answers(  # noqa: E731 - a name for an expression
        check(server={"port": 0}, wyoming={"host": host, "port": free_port()})[1]
    )["Wyoming"][1]
    assert "no passwords" not in said("127.0.0.1")
    assert "no passwords: anybody who reaches the port may use it" in said("0.0.0.0")
