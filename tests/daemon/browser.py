"""A real browser for the page's tests: Debian's chromium without a window, spoken to over its DevTools protocol.

Owns the browser's process, one tab's connection and what went wrong in it. Knows nothing of the page.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from harness import PATIENCE, connect
from websockets.asyncio.client import ClientConnection

_FLAGS = [
    "--headless=new",
    "--no-sandbox",  # tests may run as root, and in containers without user namespaces
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--use-fake-device-for-media-stream",
    "--remote-debugging-port=0",
]


@contextmanager
def chromium(folder: Path, *more: str, hears: Path | None = None) -> Iterator[str]:
    """The address of a running browser's DevTools. `hears`: a WAV file that is its microphone, from its beginning
    whenever it is opened, and once; `more`: flags.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "these tests need a browser: apt-get install chromium"
    flags = [*_FLAGS, *more, f"--user-data-dir={folder}"]
    if hears is not None:
        flags.append(f"--use-file-for-fake-audio-capture={hears}%noloop")
    with open(folder / "log", "w") as log:
        popen = subprocess.Popen(
            [program, *flags, "about:blank"], stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)}
        )
    try:
        yield _wait_for_address(popen, folder)
    finally:
        popen.terminate()
        try:
            popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def _wait_for_address(popen: subprocess.Popen[bytes], folder: Path) -> str:
    deadline = time.monotonic() + 3 * PATIENCE
    while True:
        with suppress(FileNotFoundError):
            lines = (folder / "DevToolsActivePort").read_text().splitlines()
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert popen.poll() is None, f"chromium ended: {(folder / 'log').read_text()}"
        assert time.monotonic() < deadline, f"chromium does not start: {(folder / 'log').read_text()}"
        time.sleep(0.02)  # a file has no event to wait for


class Tab:
    """One tab with a profile of its own.

    Attributes:
        requests: the addresses of all that it asked for, websockets included.
        complaints: errors of scripts, of the console and of the security policy.
    """

    def __init__(self, ws: ClientConnection) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._ws = ws
        self._session: str | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        self.context = ""

    async def open(self) -> None:
        self.context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=self.context)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")

    async def close(self) -> None:
        self._session = None
        await self.call("Target.disposeBrowserContext", browserContextId=self.context)
        self._reader.cancel()

    async def call(self, method: str, *, patience: float = PATIENCE, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._ws.send(json.dumps(message))
        async with asyncio.timeout(patience):
            result: dict[str, Any] = await answer
        return result

    async def _browser(self, method: str, **parameters: Any) -> None:
        """Of this tab's profile, and so of no tab."""
        session, self._session = self._session, None
        await self.call(method, **parameters, browserContextId=self.context)
        self._session = session

    async def browse(self, url: str) -> None:
        self._loaded.clear()
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        async with asyncio.timeout(PATIENCE):
            await self._loaded.wait()

    async def microphone(self, url: str, setting: str) -> None:
        """`granted` or `denied`, for pages of `url`."""
        await self.permit(url, "microphone", setting)

    async def permit(self, url: str, what: str, setting: str) -> None:
        await self._browser("Browser.setPermission", permission={"name": what}, setting=setting, origin=url)

    async def downloads(self, folder: Path) -> None:
        await self._browser("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    async def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    async def do(self, script: str, patience: float = PATIENCE) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        answer = await self.call(
            "Runtime.evaluate",
            patience=patience,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str, patience: float = PATIENCE) -> Any:
        """Until the expression is true; looked at ten times a second."""
        script = f"""new Promise((resolve) => {{
            const look = () => {{
                const value = {condition};
                if (value) resolve(value); else setTimeout(look, 100);
            }};
            look();
        }})"""
        try:
            return await self.do(script, patience)
        except TimeoutError:
            text = await self.do("document.body.innerText")
            raise AssertionError(f"never {condition}; {self.complaints}; the page says:\n{text}") from None

    async def click(self, selector: str) -> None:
        await self.do(f"document.querySelector({selector!r}).click()")

    async def text(self, selector: str) -> str:
        return str(await self.do(f"document.querySelector({selector!r}).innerText"))

    async def size(self, width: int, height: int, *, mobile: bool = False, scale: float = 1) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    async def scheme(self, name: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def _read(self) -> None:
        async for text in self._ws:
            message = json.loads(text)
            if "id" in message:
                self._answer(message)
            else:
                self._note(message["method"], message["params"])

    def _answer(self, message: dict[str, Any]) -> None:
        answer = self._answers.pop(message["id"])
        if answer.done():
            return
        if "error" in message:
            answer.set_exception(AssertionError(message["error"]))
        else:
            answer.set_result(message["result"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Network.webSocketCreated":
                self.requests.append(told["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(told["entry"]["text"]))


@asynccontextmanager
async def tab(address: str) -> AsyncIterator[Tab]:
    async with connect(address, compression=None, max_size=None) as ws:
        made = Tab(ws)
        await made.open()
        try:
            yield made
        finally:
            await made.close()
