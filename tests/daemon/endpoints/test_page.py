"""The page at `/` in a real browser: with a recorded voice as its microphone, and everything that may go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import soundfile
from browser import Tab, chromium, tab
from harness import (
    PATIENCE,
    certificate,
    client,
    free_port,
    plain,
    process,
    scripted,
    service,
    speech,
    wait_until,
)

from bench.player import DEMO, said_in

CONNECTED = "document.querySelector('#connection').dataset.kind === 'open'"
LISTENING = "document.querySelector('#doing').innerText === 'Listening'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests; each takes a tab with a profile of its own, and the voice begins anew for each."""
    folder = tmp_path_factory.mktemp("browser")
    samples, rate = soundfile.read(DEMO, dtype="int16")
    soundfile.write(folder / "voice.wav", samples, rate, subtype="PCM_16")
    with chromium(folder, hears=folder / "voice.wav") as address:
        yield address


def http(url: str) -> str:
    return url.replace("ws", "http", 1)


async def open_page(page: Tab, url: str, *, microphone: str = "granted") -> None:
    await page.microphone(http(url), microphone)
    await page.browse(http(url) + "/")


def shows(selector: str, pattern: str) -> str:
    return f"/{pattern}/.test(document.querySelector({selector!r})?.innerText ?? '')"


async def lines(page: Tab) -> list[str]:
    texts: list[str] = await page.do("[...document.querySelectorAll('#finals .text')].map((each) => each.innerText)")
    return texts


async def say(url: str, source: str, *, times: int = 1) -> list[str]:
    """Other people's words: what the service made of them."""
    async with client(url, f"/v1/stream?source={source}") as other:
        for _ in range(times):
            await other.play(speech())
        await other.say(type="stop")
        await other.rest()
    return [event["text"] for event in other.of("final")]


# --- all goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)  # on a busy machine a browser's microphone is slower than time
async def test_a_voice_becomes_captions(browser: str, tmp_path: Path) -> None:
    """The shipped models, nothing set: words while they are spoken, the sources beside, copies and files of it."""
    told = [plain(text) for text in said_in(DEMO)]
    with process(tmp_path, {}) as daemon:
        async with tab(browser) as page:
            await page.downloads(tmp_path)
            await open_page(page, daemon.url)
            await page.until(CONNECTED)
            await page.do("""window.tails = new Set(), new MutationObserver(() => {
                const tail = document.querySelector('#live .tail')?.innerText;
                if (tail) tails.add(tail);
            }).observe(document.querySelector('#live'), {childList: true})""")
            await page.click("#talk")
            kitchen = await say(daemon.url, "kitchen")
            enough = 0.7 * len(" ".join(told).split())
            await page.until(f"document.querySelectorAll('#finals .word').length > {enough}", 4 * PATIENCE)
            await page.click("#talk")
            await page.until(shows("#doing", "^The microphone is off$"))
            said = await lines(page)
            # A browser that gets no processor for a while records gaps: so not every word need be right.
            heard = plain(" ".join(said)).split()
            assert SequenceMatcher(None, " ".join(told).split(), heard).ratio() > 0.5, said
            words = await page.do("[...document.querySelectorAll('#finals .word')].map((each) => each.innerText)")
            assert words == " ".join(said).split()
            assert re.fullmatch(r"\d+ %", await page.do("document.querySelector('#finals .word').title"))
            assert await page.text("#announcer") == said[-1]
            assert re.fullmatch(r"\d+ ms", await page.text("#latency"))
            # A slow machine may have had no time for a partial of the last sentence.
            assert re.fullmatch(r"\d+ ms|\u2013", await page.text("#lag"))
            assert await page.text("#models") == "tiny-en + tiny-en-teacher, cpu"
            await _files(page, tmp_path, said)
            await _copy(page, daemon.url, said)

            await page.click("#sources li:nth-child(2) button")
            await page.until(shows("#heading", "^kitchen$"))
            await page.until(f"document.querySelectorAll('#finals .text').length === {len(kitchen)}")
            assert await lines(page) == kitchen

            await page.browse(http(daemon.url) + "/")  # a page that comes later is told what was said before
            await page.until(f"document.querySelectorAll('#finals .text').length >= {len(said)}")
            assert await lines(page) == said
            assert (await page.text("#finals .about")).startswith("earlier\n")
            assert page.complaints == []
            host = daemon.url.removeprefix("ws://")
            assert {re.sub(r"^(blob:)?\w+://([^/]*)/.*", r"\2", each) for each in page.requests} == {host}
    assert "Traceback" not in daemon.log


async def _files(page: Tab, folder: Path, said: list[str]) -> None:
    name = await page.text("#heading")
    texts = {}
    for kind in ("txt", "srt", "vtt"):
        await page.click(f"[data-format={kind}]")
        path = folder / f"{name}.{kind}"
        await wait_until(partial(_is_written, path))
        texts[kind] = path.read_text()
    assert texts["txt"].splitlines() == said
    cues = re.findall(r"(\d+)\n00:(\d\d:\d\d),\d{3} --> 00:(\d\d:\d\d),\d{3}\n((?:.+\n)+)\n", texts["srt"])
    assert [number for number, *_ in cues] == [str(at + 1) for at in range(len(cues))]
    # A sentence is shown in lines, and a long one in several cues.
    assert " ".join(text for *_, text in cues).split() == " ".join(said).split()
    times = [moment for _, *both, _ in cues for moment in both]
    assert times == sorted(times)
    assert texts["vtt"].startswith("WEBVTT\n\n00:0")
    assert texts["vtt"].count(" --> ") == len(cues)


def _is_written(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


async def _copy(page: Tab, url: str, said: list[str]) -> None:
    await page.permit(http(url), "clipboard-read", "granted")
    await page.permit(http(url), "clipboard-write", "granted")
    await page.call("Page.bringToFront")
    await page.click("#copy")
    await page.until(shows("#copy", "^Copied$"))
    assert (await page.do("navigator.clipboard.readText()")).splitlines() == said


async def test_what_the_teacher_decided_is_marked(browser: str, tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"escalate": {"when": "always"}}) as daemon,
        tab(browser) as page,
    ):
        await open_page(page, daemon.server.url)
        await page.until(CONNECTED)
        await say(daemon.server.url, "kitchen")
        await page.until("document.querySelectorAll('#sources li').length === 2")
        await page.click("#sources li:nth-child(2) button")
        await page.until("document.querySelector('#finals .about .teacher')")


async def test_light_dark_and_a_phone(browser: str, tokenizer_file: Path) -> None:
    load = scripted(tokenizer_file, script="incomprehensibilities" * 4)
    async with service(load) as daemon, tab(browser) as page:
        await page.size(360, 740, mobile=True)
        await open_page(page, daemon.server.url)
        await page.until(CONNECTED)
        await say(daemon.server.url, "n" * 64)
        for name in ("pantry", "cellar", "attic"):
            await say(daemon.server.url, name)
        await page.until("document.querySelectorAll('#sources li').length === 5")
        await page.click("#sources li:nth-child(2) button")
        await page.until("document.querySelector('#finals .text')")
        assert await page.do("document.documentElement.scrollWidth") == 360
        assert await page.do("document.documentElement.scrollHeight") == 740
        await page.size(1100, 620)
        assert await page.do("document.querySelector('#sources').scrollWidth - sources.clientWidth") == 0
        await page.size(360, 740, mobile=True)
        hidden = """[...document.querySelectorAll('button, input')].filter((each) => {
            const {left, right, width} = each.getBoundingClientRect();
            return width && !each.closest('#sources') && (left < 0 || right > innerWidth);
        }).map((each) => each.id || each.innerText)"""
        assert await page.do(hidden) == []
        await say(daemon.server.url, "n" * 64, times=8)
        end = "(({scrollTop, clientHeight, scrollHeight}) => scrollHeight - scrollTop - clientHeight < 2)(transcript)"
        await page.until(f"transcript.scrollHeight > 900 && {end}")
        await page.size(740, 400, mobile=True)  # turned around, it still shows the end
        await page.until(end)
        await page.do("transcript.scrollTop = 0")
        await page.until("latest.checkVisibility()")
        await page.click("#latest")
        await page.until(f"{end} && !latest.checkVisibility()")
        grounds = []
        for scheme in ("light", "dark"):
            await page.scheme(scheme)
            grounds.append(await page.do("getComputedStyle(document.body).backgroundColor"))
        assert grounds[0] != grounds[1]
        nameless = """[...document.querySelectorAll('button, input')].filter(
            (each) => !(each.ariaLabel || each.innerText.trim() || each.labels?.length)).map((each) => each.id)"""
        assert await page.do(nameless) == []
        assert page.complaints == []


async def test_with_the_keyboard_alone(browser: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, tab(browser) as page:
        await open_page(page, daemon.server.url)
        await page.until(CONNECTED)
        await page.call("Page.bringToFront")
        reached = []
        for _ in range(20):
            await page.press("Tab", 9)
            focused = await page.do("document.activeElement.id")
            reached.append(focused)
            if focused == "talk":
                break
        assert reached[-1] == "talk", reached
        assert "transcript" in reached
        assert await page.do("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.press("Enter", 13, "\r")
        await page.until(LISTENING)
        await page.press("Enter", 13, "\r")
        await page.until(shows("#doing", "^The microphone is off$"))
        assert page.complaints == []


# --- something goes wrong --------------------------------------------------------------------------------------------


async def test_a_restart_loses_nothing(browser: str, tokenizer_file: Path) -> None:
    port = free_port()
    sections = {"server": {"port": port}}
    async with tab(browser) as page:
        async with service(scripted(tokenizer_file), sections) as daemon:
            url = daemon.server.url
            await open_page(page, url)
            await page.until(CONNECTED)
            before = await say(url, "kitchen", times=2)
            await page.click("#talk")
            await page.until(LISTENING)
            await page.until("document.querySelectorAll('#sources li').length === 2")
        await page.until(shows("#connection", r"Trying again in \d+ s$"))
        await page.until(shows("#doing", "What you say is kept and sent later$"))
        async with service(scripted(tokenizer_file), sections):
            after = await say(url, "kitchen", times=2)  # mostly before the page is back
            pantry = await say(url, "pantry")  # a name that the page has never seen
            await page.until(CONNECTED)
            await page.until(LISTENING)
            await page.click("#sources li:nth-child(2) button")
            await page.until(shows("#heading", "^kitchen$"))
            await page.until(f"document.querySelectorAll('#finals .text').length >= {len(before + after)}")
            assert await lines(page) == before + after
            await page.until("document.querySelectorAll('#sources li').length === 3")
            await page.click("#sources li:nth-child(3) button")
            await page.until(shows("#heading", "^pantry$"))
            await page.until("document.querySelectorAll('#finals .text').length >= 1")
            assert await lines(page) == pantry
            # The own voice goes on, under the new run's numbers.
            await page.click("#sources li:nth-child(1) button")
            await page.until(shows("#heading", "^browser-"))
            await page.until("document.querySelectorAll('#finals .text').length >= 2")
            await page.click("#talk")
            await page.until(shows("#doing", "^The microphone is off$"))


async def test_a_microphone_that_is_refused(browser: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, tab(browser) as page:
        await open_page(page, daemon.server.url, microphone="denied")
        await page.until(CONNECTED)
        await page.click("#talk")
        await page.until(shows("#notice-text", "^Access to the microphone was refused. Allow it for this page"))
        assert await page.text("#talk") == "Start"
        await page.microphone(http(daemon.server.url), "granted")
        await page.click("#talk")
        await page.until(LISTENING)
        assert await page.text("#notice-text") == ""
        assert page.complaints == []


CONTEXTS = """(() => {
    window.contexts = [];
    window.taken = false;  // as a system does it that gives the sound to a call
    const Real = window.AudioContext;
    window.AudioContext = class extends Real {
        constructor(...given) { super(...given); contexts.push(this); }
        resume() { return taken ? Promise.reject(new DOMException('a call', 'InvalidStateError')) : super.resume(); }
    };
})()"""


@pytest.mark.parametrize("back", ["by itself", "when somebody touches the page"])
async def test_a_microphone_that_the_system_takes_away(browser: str, back: str, tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        tab(browser) as page,
        client(daemon.server.url, "/v1/events") as other,
    ):
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=CONTEXTS)
        await open_page(page, daemon.server.url)
        await page.until(CONNECTED)
        await page.click("#talk")
        await page.until("document.querySelector('#live')?.innerText", 2 * PATIENCE)  # somebody is in mid-sentence
        await page.do("taken = true, contexts.at(-1).suspend()")
        await page.until(shows("#doing", "^The system took the microphone .* Touch the page to continue$"))
        # What was said until then is final, though no more sound comes that would tell that it ended.
        said = await other.until("final")
        await page.until(shows("#transcript", said["text"].strip()))
        if back == "by itself":
            await page.do("taken = false")
        else:
            # Nothing but a touch helps: no timer finds it given back.
            await page.do(
                "window.addEventListener('pointerdown', () => { taken = false }, { capture: true, once: true })"
            )
            await page.do("document.body.dispatchEvent(new PointerEvent('pointerdown', { bubbles: true }))")
        await page.until(LISTENING)
        assert await page.do("contexts.at(-1).state") == "running"
        await other.until("final")  # the same stream goes on
        assert len({event["id"].rpartition("-")[0] for event in other.of("final")}) == 1
        await page.click("#talk")
        await page.until(shows("#doing", "^The microphone is off$"))
        assert page.complaints == []


async def test_a_microphone_that_sends_nothing_more(browser: str, tokenizer_file: Path) -> None:
    """Its context says that it runs: some browsers leave it so after a call."""
    async with service(scripted(tokenizer_file)) as daemon, tab(browser) as page:
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=CONTEXTS)
        await page.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="""(() => {
                const Real = window.AudioWorkletNode;
                window.nodes = [];
                window.AudioWorkletNode = class extends Real {
                    constructor(...given) { super(...given); nodes.push(this); }
                };
            })()""",
        )
        await open_page(page, daemon.server.url)
        await page.until(CONNECTED)
        await page.click("#talk")
        await page.until(LISTENING)
        await page.do("nodes.at(-1).port.close()")
        await page.until(shows("#doing", "^The system took the microphone"))
        assert await page.do("contexts.at(-1).state") == "running"
        await page.until("nodes.length === 2", 3 * PATIENCE)
        await page.until(LISTENING)
        assert page.complaints == []


async def test_a_name_that_no_source_can_have(browser: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, tab(browser) as page:
        await open_page(page, daemon.server.url)
        for name in ("up/down", "desk"):
            await page.do(f"document.querySelector('#name').value = {name!r}")
            await page.do("document.querySelector('#name').dispatchEvent(new Event('change'))")
            await page.click("#talk")
            if name != "desk":
                await page.until(shows("#notice-text", "^Source must be 1..64 printable characters"))
                await page.until(shows("#doing", "^The microphone is off$"))
        await page.until(LISTENING)
        assert await page.text("#notice-text") == ""
        assert await page.text("#heading") == "desk"


async def test_a_busy_service(browser: str, tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"max_streams": 1}}) as daemon,
        tab(browser) as page,
    ):
        await open_page(page, daemon.server.url)
        async with client(daemon.server.url, "/v1/stream") as other:
            await other.say(type="start")
            await other.until("ready")
            await page.click("#talk")
            await page.until(shows("#doing", "^All 1 streams are taken: try again later. What you say is kept"))
        await page.until(LISTENING)


async def test_a_token_is_asked_for(browser: str, tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"tokens": ["open-sesame"]}}) as daemon,
        tab(browser) as page,
    ):
        await open_page(page, daemon.server.url)
        for token, wrong in (("sesame", "false"), ("open-sesame", "true")):
            told = f"document.querySelector('#wrong').checkVisibility() === {wrong}"
            await page.until(f"document.querySelector('#ask').open && {told}")
            if wrong == "false":  # put away, it can be had again
                await page.do("document.querySelector('#ask').close()")
                await page.click("#retry")
                await page.until("document.querySelector('#ask').open")
            await page.do(f"document.querySelector('#token').value = {token!r}")
            await page.click("#ask .main")
        await page.until(CONNECTED)
        await page.click("#talk")
        await page.until(LISTENING)
        await page.browse(http(daemon.server.url) + "/")  # it is remembered as long as the tab lives
        await page.until(CONNECTED)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A browser for which this machine is a computer in the house, and a stranger's too."""
    rules = "MAP whisper.lan 127.0.0.1,MAP evil.example 127.0.0.1"
    folder = tmp_path_factory.mktemp("elsewhere")
    with chromium(folder, f"--host-resolver-rules={rules}", "--ignore-certificate-errors") as address:
        yield address


async def test_a_page_from_an_address_that_is_not_safe(elsewhere: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, tab(elsewhere) as page:
        url = daemon.server.url.replace("127.0.0.1", "whisper.lan")
        await page.browse(http(url) + "/")
        await page.until(CONNECTED)  # reading needs no microphone
        await page.until(shows("#notice-text", "https:.* or from localhost"))
        await say(daemon.server.url, "kitchen")
        await page.until(shows("#sources", "turn on the kitchen"))
        await page.click("#talk")
        assert "ssh -L 8765" in await page.text("#notice-text")
        assert await page.text("#talk") == "Start"
        await page.click("#dismiss")
        assert await page.text("#notice-text") == ""


async def test_a_page_from_an_address_that_was_made_safe(elsewhere: str, tokenizer_file: Path, tmp_path: Path) -> None:
    path, key = certificate(tmp_path, "DNS:whisper.lan")
    sections = {"server": {"certificate": str(path), "key": str(key)}}
    async with service(scripted(tokenizer_file), sections) as daemon, tab(elsewhere) as page:
        url = daemon.server.url.replace("127.0.0.1", "whisper.lan")
        await open_page(page, url)
        await page.until(CONNECTED)
        await page.click("#talk")
        await page.until(LISTENING)
        assert {urlsplit(each).scheme for each in page.requests} == {"https", "wss"}
        assert page.complaints == []


async def test_a_stranger_under_our_address_hears_nothing(elsewhere: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, tab(elsewhere) as page:
        await page.browse(http(daemon.server.url).replace("127.0.0.1", "evil.example") + "/")
        await page.until(shows("#notice-text", "public name that anybody could point here"))
        assert await page.text("#connection") == "Refused"


# --- the parts without a document ------------------------------------------------------------------------------------


def final(utterance: int, **fields: Any) -> dict[str, Any]:
    made = {"type": "final", "source": "kitchen", "utterance": utterance, "seq": 2 * utterance, "language": "en"}
    made |= {"start": utterance, "end": utterance + 0.5, "text": f"line {utterance}", "model": "student"}
    return made | {"confidence": 1, "latency_ms": 500, "arrived": None, "part": 0} | fields


PURE = [
    # Formats: hours, rounding, what would break a file, long lines, streams that begin anew.
    ("formats.clock(3661.0456, ',')", "01:01:01,046"),
    ("formats.clock(59.9996, '.')", "00:01:00.000"),
    ("formats.txt([a, b])", "line 1\nline 2\n"),
    ("formats.srt([a])", "1\n00:00:01,000 --> 00:00:01,500\nline 1\n\n"),
    ("formats.srt([{...a, text: 'a --> b'}])", "1\n00:00:01,000 --> 00:00:01,500\na → b\n\n"),
    ("formats.vtt([{...a, text: '<b> & c'}])", "WEBVTT\n\n00:00:01.000 --> 00:00:01.500\n&lt;b&gt; &amp; c\n\n"),
    ("formats.cues([]).length", 0),
    ("formats.cues([{...a, text: 'word '.repeat(60).trim()}]).every((cue) => cue.lines.length <= 2)", True),
    ("formats.cues([{...a, text: 'word '.repeat(60).trim()}]).flatMap((cue) => cue.lines).join(' ').length", 299),
    ("formats.cues([{...a, text: 'word '.repeat(60).trim()}]).at(-1).end", 1.5),
    ("formats.cues([b, {...a, part: 1}]).map((cue) => cue.start)", [2, 2.5]),
    ("formats.cues([{...a, arrived: 2000}, {...a, arrived: 62000}]).map((cue) => cue.start)", [1, 61]),
    # Captions: nothing twice, in order, a restart counts anew, what has no final goes.
    ("texts([a, b, a])", ["line 1", "line 2"]),
    ("texts([b, a])", ["line 1", "line 2"]),
    ("texts([a, b, 'restart', a])", ["line 1", "line 2", "line 1"]),
    ("open([p(1, 1), p(2, 3)])", [1, 2]),
    ("open([p(1, 1), p(2, 3), {...b, seq: 4}])", []),
    ("open([p(2, 3), {...a, seq: 2}])", [2]),
    ("open([p(1, 3), p(1, 2)])", [1]),
    ("open([p(1, 1), 'restart'])", []),
    ("open([p(1, 1), 'later'])", []),
    ("made([a, b]).missing([{source: 'kitchen', final: 9}])", [{"source": "kitchen", "since": 4, "until": 9}]),
    ("made([a, b]).missing([{source: 'kitchen', final: 4}])", []),
    ("made([a, 'restart']).missing([{source: 'kitchen', final: 1}])", [{"source": "kitchen", "since": 0, "until": 1}]),
    # Of finals that came after a gap: what is in the gap is still asked for, until it is here.
    ("gap(false)", [{"source": "kitchen", "since": 2, "until": 9}]),
    ("gap(true)", []),
    ("made(Array.from({length: 2005}, (_, at) => ({...a, seq: at + 1}))).of('kitchen').dropped", 5),
    (
        "captions.shaded('Turn it on.', [{text: ' it', confidence: 0.4}, {text: 'nowhere', confidence: 1}])",
        [
            {"text": "Turn ", "confidence": None},
            {"text": "it", "confidence": 0.4},
            {"text": " on.", "confidence": None},
        ],
    ),
    ("captions.shaded('two words', undefined)", [{"text": "two words", "confidence": None}]),
    # Connections: pauses grow, and are never none.
    ("[1, 2, 3, 4, 5, 6, 60].map((failures) => link.pause(failures, () => 0.5))", [0.5, 1, 2, 4, 8, 15, 15]),
    ("link.pause(1, () => 0)", 0.375),
    ("link.address('v1/events', {source: 'a b'}, 'x&y').search", "?source=a+b&token=x%26y"),
    # What is said when there is no microphone.
    ("capture.explain({name: 'NotFoundError'}).slice(0, 24)", "No microphone was found."),
    ("capture.explain({name: 'Odd', message: 'why'})", "The microphone does not start: why."),
    ("capture.impossible({isSecureContext: true, navigator: {}}).slice(0, 27)", "This browser cannot record:"),
]


async def test_not_a_sample_is_lost_on_the_audio_thread(browser: str, tokenizer_file: Path) -> None:
    """The worklet on a context that does not run in real time: what comes out is what went in, loudest ones cut."""
    async with service(scripted(tokenizer_file)) as daemon, tab(browser) as page:
        await page.browse(http(daemon.server.url) + "/")
        heard = await page.do("""(async () => {
            const context = new OfflineAudioContext(1, 3200, 16000);
            await context.audioWorklet.addModule('capture-worklet.js');
            const processorOptions = {frame: 320};
            const node = new AudioWorkletNode(context, 'capture', {numberOfOutputs: 0, processorOptions});
            const source = new AudioBufferSourceNode(context, {buffer: context.createBuffer(1, 3200, 16000)});
            source.buffer.getChannelData(0).forEach((_, at, samples) => (samples[at] = (at - 100) / 2000));
            const frames = [];
            const all = new Promise((resolve) => {
                node.port.onmessage = ({data}) => frames.push(data) === 10 && resolve();
            });
            source.connect(node);
            source.start();
            await context.startRendering();
            await all;
            const levels = frames.map(({level}) => level);
            return {samples: frames.flatMap(({samples}) => [...new Int16Array(samples)]), levels};
        })()""")
        expected = [min(1.0, (at - 100) / 2000) * 32767 for at in range(3200)]
        assert len(heard["samples"]) == 3200
        assert max(abs(have - want) for have, want in zip(heard["samples"], expected, strict=True)) <= 1
        assert heard["levels"] == pytest.approx([min(1.0, (at * 320 + 219) / 2000) for at in range(10)], abs=1e-3)


async def test_the_parts_without_a_document(browser: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, tab(browser) as page:
        await page.browse(http(daemon.server.url) + "/")
        await page.do("""(async () => {
            for (const name of ['formats', 'captions', 'link', 'capture']) window[name] = await import(`./${name}.js`);
            const partial = {type: 'partial', source: 'kitchen', stable: '', tail: 'x'};
            window.p = (utterance, seq) => ({...partial, utterance, seq});
            window.made = (events) => {
                const all = new captions.Transcripts();
                let run = 1;
                all.begin(run);
                for (const event of events) {
                    if (event === 'restart') all.begin(++run);
                    else if (event === 'later') all.tidy(60000);
                    else all.receive(event, 1000);
                }
                return all;
            };
            window.gap = (filled) => {
                const all = made([a]);
                all.missing([{source: 'kitchen', final: 7}]);
                all.receive({...b, seq: 9}, 1000);
                if (filled) all.caughtUp('kitchen');
                return all.missing([{source: 'kitchen', final: 9}]);
            };
            window.texts = (events) => made(events).of('kitchen').finals.map((each) => each.text);
            window.open = (events) => [...made(events).of('kitchen').live.keys()];
        })()""")
        for name, line in (("a", final(1)), ("b", final(2))):
            await page.do(f"void (window.{name} = {line!r})".replace("None", "null"))
        for expression, expected in PURE:
            assert await page.do(expression) == expected, expression
