"""What the port serves to browsers besides websockets: the page's files, the list of sources, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, client, scripted, service, speech

from daemon.endpoints.pages import Pages
from daemon.service.app import Service

FILES = ROOT / "daemon" / "page"


async def get(daemon: Service, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    def ask() -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(daemon.server.url.removeprefix("ws://"), timeout=30)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def test_the_files_of_the_page(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        status, body, headers = await get(daemon, "/")
        assert (status, body) == (200, (FILES / "index.html").read_bytes())
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        for path in FILES.iterdir():
            status, body, headers = await get(daemon, "/" if path.name == "index.html" else f"/{path.name}")
            assert (status, body) == (200, path.read_bytes()), path.name
            assert path.suffix[1:] in headers["Content-Type"].replace("javascript", "js")


def test_the_files_of_the_page_are_installed() -> None:
    """They are no modules: a package has them only if it is told so."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["daemon"]
    for path in FILES.iterdir():
        assert any(path.relative_to(ROOT / "daemon").match(pattern) for pattern in told), path.name


async def test_a_file_that_did_not_change_is_not_sent_again(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        first, second = await get(daemon, "/page.js"), await get(daemon, "/view.js")
        assert first[2]["Cache-Control"] == "no-cache"
        status, body, headers = await get(daemon, "/page.js", If_None_Match=first[2]["ETag"])
        assert (status, body, headers["ETag"]) == (304, b"", first[2]["ETag"])
        assert (await get(daemon, "/page.js", If_None_Match=second[2]["ETag"]))[:2] == first[:2]


@pytest.mark.parametrize(
    "path",
    ["/index.html", "/page/page.js", "//page.js", "/../page.js", "/%2e%2e/web.py", "/web.py", "/page.js/../web.py"],
)
def test_nothing_that_is_asked_for_is_a_path(path: str) -> None:
    assert Pages(lambda: None, lambda: None, lambda: b"", "text/plain", lambda _: b"").get(path).status == 404


async def test_the_list_of_sources(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"server": {"tokens": ["right"]}}) as daemon:
        async with client(daemon.server.url, "/v1/stream?source=kitchen&token=right") as mine:
            await mine.play(speech())
            await mine.say(type="flush")
            await mine.until("flushed")
            status, body, headers = await get(daemon, "/v1/sources", Authorization="Bearer right")
            assert (status, headers["Cache-Control"]) == (200, "no-store")
            (final,) = mine.of("final")
            listed = {"source": "kitchen", "state": "listening", "final": final["seq"]}
            assert json.loads(body) == {"run": daemon.pipeline.hub.run, "sources": [listed]}
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, body, _ = await get(daemon, "/v1/sources", **headers)
            assert (status, json.loads(body)["code"]) == (401, "unauthorised")


@pytest.mark.parametrize(
    ("host", "settings", "fine"),
    [
        ("127.0.0.1:8765", {}, True),
        ("[::1]:8765", {}, True),
        ("localhost:8765", {}, True),
        ("whisper:8765", {}, True),
        ("whisper.local", {}, True),
        ("whisper.example", {}, False),
        ("[::1", {}, False),
        ("", {}, False),
        ("127.0.0.1.evil.example:8765", {}, False),
        ("whisper.example", {"origins": ["https://whisper.example"]}, True),
        ("whisper.example", {"origins": ["*"]}, True),
        ("whisper.example", {"tokens": ["secret"]}, True),
    ],
)
async def test_under_which_names_a_page_is_ours(
    host: str, settings: dict[str, Any], fine: bool, tokenizer_file: Path
) -> None:
    """A stranger's page may have a name that was made to point at this machine: for a browser it is then our own."""
    async with service(scripted(tokenizer_file), {"server": settings}) as daemon:
        token = {"Authorization": "Bearer secret"} if settings.get("tokens") else {}
        for path in ("/v1/sources", "/metrics", "/v1/models", "/v1/models/whisper-1"):
            status, body, _ = await get(daemon, path, Host=host, **token)
            assert status == (200 if fine else 403)
            if not fine:
                assert json.loads(body)["code"] == "bad_origin"
        for path in ("/healthz", "/readyz", "/"):  # these are the same for everybody
            assert (await get(daemon, path, Host=host))[0] == 200
        # `Origin` comes behind the handshake's own headers; the first `Host` would be the socket's address.
        headers = {"Host": host, "Origin": f"http://{host}"} | token
        async with _raw(daemon, headers) as answer:
            assert ("ready" in answer) is fine
            assert ("bad_origin" in answer) is not fine


class _raw:  # noqa: N801 - used like a function
    """The first message on a stream, asked for with just these headers."""

    def __init__(self, daemon: Service, headers: dict[str, str]) -> None:
        self._daemon, self._headers = daemon, headers

    async def __aenter__(self) -> str:
        host, _, port = self._daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, self._writer = await asyncio.open_connection(host, int(port))
        lines = [f"{name}: {value}" for name, value in self._headers.items()]
        lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
        self._writer.write(("\r\n".join(["GET /v1/stream HTTP/1.1", *lines]) + "\r\n\r\n").encode())
        async with asyncio.timeout(30):
            await reader.readuntil(b"\r\n\r\n")
            return (await reader.readuntil(b"}")).decode(errors="replace")

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()


# --- for pages of others, and for whoever only looks whether we are here ----------------------------------------------


APP = "https://app.example"


async def ask(daemon: Service, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    def fetch() -> tuple[int, dict[str, str], bytes]:
        address = daemon.server.url.removeprefix("ws://")
        with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    return await asyncio.to_thread(fetch)


@pytest.mark.parametrize("openai", [True, False])
@pytest.mark.parametrize("path", ["/v1/sources", "/v1/models", "/v1/audio/transcriptions", "/healthz"])
async def test_a_page_of_others_may_ask_first(path: str, openai: bool, tokenizer_file: Path) -> None:
    sections = {"server": {"origins": [APP], "tokens": ["t"]}, "dialects": {"openai": openai}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        wanted = "authorization, x-stainless-os"
        asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": wanted}
        status, headers, body = await ask(daemon, "OPTIONS", path, Origin=APP, **asked)
        assert (status, body) == (204, b"")
        assert headers["access-control-allow-origin"] == APP
        assert headers["access-control-allow-headers"] == wanted
        assert "POST" in headers["access-control-allow-methods"]
        assert headers["vary"] == "Origin"
        status, headers, _ = await ask(daemon, "OPTIONS", path, Origin=APP + ".evil.example", **asked)
        assert status == 403
        assert "access-control-allow-origin" not in headers
        asked["Access_Control_Request_Headers"] = "x" * 2000
        status, headers, _ = await ask(daemon, "OPTIONS", path, Origin=APP, **asked)
        assert headers["access-control-allow-headers"] == "authorization, content-type"


async def test_a_page_of_others_may_read_the_answers(tokenizer_file: Path) -> None:
    sections = {"server": {"origins": [APP], "tokens": ["t"]}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        for method, path, wanted in [
            ("GET", "/v1/models", 200), ("GET", "/v1/sources/", 200), ("GET", "/nothing", 404),
            ("POST", "/v1/audio/transcriptions", 400), ("POST", "/v1/audio/transcriptions/", 400), ("PUT", "/x", 405),
        ]:  # fmt: skip
            for token, status in (("t", wanted), ("wrong", wanted if wanted in (404, 405) else 401)):
                got, headers, _ = await ask(daemon, method, path, Origin=APP, Authorization=f"Bearer {token}")
                assert got == status
                assert (headers["access-control-allow-origin"], headers["vary"]) == (APP, "Origin")
                assert headers["access-control-expose-headers"] == "Retry-After, Whisperd-Warning"
            _, headers, _ = await ask(daemon, method, path, Origin="https://evil.example", Authorization="Bearer t")
            assert "access-control-allow-origin" not in headers


async def test_a_page_of_others_may_read_that_all_seats_are_taken(tokenizer_file: Path) -> None:
    sections = {"server": {"origins": [APP], "max_streams": 1}}
    async with service(scripted(tokenizer_file), sections) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start")
        await mine.until("ready")
        status, headers, _ = await ask(daemon, "POST", "/v1/audio/transcriptions", Origin=APP)
        assert (status, headers["retry-after"]) == (503, "10")
        assert headers["access-control-allow-origin"] == APP


async def test_nobody_is_told_of_sharing_where_nobody_is_listed(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        _, headers, _ = await ask(daemon, "GET", "/healthz", Origin=APP)
        assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/page.js", "/metrics", "/v1/models", "/nothing"])
async def test_head_has_the_head_of_the_answer(path: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        whole, head = await ask(daemon, "GET", path), await ask(daemon, "HEAD", path)
        assert (head[0], head[2]) == (whole[0], b"")
        if path != "/metrics":  # it counts itself
            assert head[1].items() >= {"content-length": str(len(whole[2]))}.items()
            assert head[1]["content-type"] == whole[1]["content-type"]


async def test_a_slash_at_the_end_says_nothing(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        assert (await ask(daemon, "GET", "/healthz/"))[0] == 200
        assert (await ask(daemon, "GET", "/v1/models//?x"))[0] == 200
        async with client(daemon.server.url, "/v1/stream/") as mine:
            await mine.say(type="start")
            assert (await mine.next())["type"] == "ready"
