"""The dialects of other services: their codecs alone, and their ports.

`dialects`: whatever is in a handshake and its frames, and whatever is told of the stream meanwhile, messages or a fault
with a sentence, and frames that can be sent. `dialects-files`: the query of a file, and an answer to whatever was said
in it. `dialects-port`: the same over real sockets, and files as forms and as bodies.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from daemon.common.errors import Fault
from daemon.dialects import deepgram, deepgram_files, openai_files, openai_realtime, vosk, whisperlive
from daemon.dialects.codec import Codec, Dialect, Frame, Handshake, Message, Reply
from streaming.audio import AudioFormat, AudioFormatError
from streaming.events import (
    Audio,
    Discard,
    Event,
    Final,
    Flush,
    Flushed,
    Partial,
    Ready,
    SpeechStarted,
    SpeechStopped,
    Start,
    Stop,
    Stopped,
    Word,
)

from .audio import damaged
from .native import TEXTS, VALUES, frame, handshake_lines
from .rounds import Target
from .service import Daemon

VOSK = vosk.dialect(8000)
DIALECTS = (deepgram.DIALECT, VOSK, whisperlive.DIALECT, openai_realtime.DIALECT)

# --- what they send --------------------------------------------------------------------------------------------------

AUDIO = st.binary(max_size=400) | st.sampled_from([b"\x00" * 2000, b""])
NUMBERS = st.sampled_from([0, 1, -1, 0.5, 300, 8000, 16000, 24000, 10**30, 1e308]) | st.floats() | st.integers()

QUERIES: dict[str, dict[str, list[str]]] = {
    "deepgram": {
        "encoding": ["linear16", "mulaw", "linear32", "opus"], "sample_rate": ["16000", "8000", "7", "9" * 10, "٣"],
        "channels": ["1", "2", "9"], "interim_results": ["true", "maybe"], "utterance_end_ms": ["1000", "1", "x"],
        "endpointing": ["false", "true", "10", "500"], "vad_events": ["true"], "punctuate": ["true"],
        "language": ["en", "en-US", "multi", "-"], "extra": ["a:b", "a"], "smart_format": ["true"],
        "redact": ["pci", "false"], "source": ["a1"], "tag": ["x"], "keyterm": ["Kallax", "", "a" * 101],
        "keywords": ["Kallax:2", "a:b", "a:-1", ":", "a:1e999"], "dictation": ["true"],
    },
    "vosk": {"source": ["a1", ""]},
    "whisperlive": {"source": ["a1", ""]},
    "openai": {"intent": ["transcription", "chat"], "model": ["x"], "source": ["a1"]},
}  # fmt: skip
USUAL = {"deepgram": {"encoding": "linear16", "sample_rate": "16000", "interim_results": "true"}}


def objects(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, each nearly right."""
    each = {name: st.one_of(st.sampled_from(values), NUMBERS, VALUES) for name, values in fields.items()}
    return st.fixed_dictionaries({}, optional=each)


FORMATS = objects(type=["audio/pcm", "audio/pcmu", "audio/pcma"], rate=[24000, 16000])
TURNS = st.none() | objects(
    type=["server_vad", "semantic_vad"], threshold=[0.5], prefix_padding_ms=[300], silence_duration_ms=[500]
)
ASKED = objects(
    model=["x", "gpt-live-transcribe"], language=["en"], prompt=["", "y", "Kallax, Lumen", "Be exact."],
    keywords=[["Kallax"], []], languages=[["en"], ["en", "de"]], delay=["low"],
)  # fmt: skip
SESSIONS = st.one_of(
    st.builds(
        lambda given, turns, asked: {
            "type": "transcription",
            "audio": {"input": {"format": given, "turn_detection": turns, "transcription": asked}},
        },
        FORMATS, TURNS, ASKED,
    ),
    objects(input_audio_format=["pcm16", "g711_ulaw"], turn_detection=[None], include=[["x"]], type=["transcription"]),
    VALUES,
)  # fmt: skip
REALTIME = st.one_of(
    st.builds(
        lambda data: {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()},
        AUDIO | st.just(b"\x00" * 6000),
    ),
    st.builds(
        lambda kind, audio: {"type": f"input_audio_buffer.{kind}", "audio": audio},
        st.sampled_from(["append", "commit", "commit", "clear"]), TEXTS | VALUES,
    ),
    st.builds(lambda kind, session: {"type": kind, "session": session, "event_id": "e"},
              st.sampled_from(["session.update", "transcription_session.update"]), SESSIONS),
    st.builds(lambda kind: {"type": kind}, st.sampled_from(["response.create", "x"]) | VALUES),
)  # fmt: skip
WORDS: dict[str, st.SearchStrategy[Any]] = {
    "deepgram": st.builds(
        lambda kind, more: {"type": kind, **more},
        st.sampled_from(["Finalize", "CloseStream", "KeepAlive", "Configure", "x"]),
        st.dictionaries(TEXTS, VALUES, max_size=1),
    ),
    "vosk": st.one_of(
        st.builds(lambda config: {"config": config},
                  objects(sample_rate=[16000], words=[1, True], max_alternatives=[3],
                          phrase_list=[[], ["a b", "[unk]"]])),
        st.sampled_from([{"eof": 1}, {"reset": 1}, {"eof": 1, "reset": 1}, {"eof": 0}]),
    ),
    "whisperlive": objects(
        uid=["u"], language=["en", None], task=["transcribe", "translate"], model=["small"], use_vad=[True],
        send_last_n_segments=[10], word_timestamps=[True], enable_translation=[False, True],
        hotwords=["Kallax, Lumen", None], initial_prompt=["Be exact.", "Kallax, Lumen"],
    ),
    "openai": REALTIME,
}  # fmt: skip


def frames(name: str) -> st.SearchStrategy[Frame]:
    words = WORDS[name].map(json.dumps)
    wrong = TEXTS | VALUES.map(json.dumps) | st.sampled_from(["[" * 100_000, "1" * 5000, "END_OF_AUDIO"])
    return st.one_of(words, words, AUDIO, wrong)


@st.composite
def handshakes(draw: st.DrawFn, name: str) -> Handshake:
    pairs = list(USUAL.get(name, {}).items()) if draw(st.integers(0, 4)) else []
    for key in draw(st.lists(st.sampled_from(sorted(QUERIES[name])), max_size=4)):
        pairs.append((key, draw(st.sampled_from(QUERIES[name][key]) | st.text(max_size=10))))
    query = "&".join(f"{key}={quote(value, errors='replace')}" for key, value in dict(pairs).items())
    if not draw(st.integers(0, 6)):
        query = draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
    headers = {
        key: (draw(values),)
        for key, values in HEADERS.items()
        if not draw(st.integers(0, 3))
    }  # fmt: skip
    return Handshake("/", query, headers, tuple(draw(st.lists(st.sampled_from(PROTOCOLS), max_size=2))))


HEADERS = {
    "authorization": st.sampled_from(["Bearer good", "Token good", "Token", ""]) | st.text(max_size=10),
    "openai-beta": st.just("realtime=v1"),
    "origin": st.sampled_from(["http://localhost", "http://[", "null"]),
}
PROTOCOLS = ["token", "good", "bearer", "realtime", "openai-insecure-api-key.good", "openai-beta.realtime-v1"]

# --- the codecs ------------------------------------------------------------------------------------------------------

SAID = st.sampled_from(["", "stop", " turn on the light", "…", "naïve 東京", '"\\\x00'])
HAPPENINGS = st.lists(st.tuples(SAID, st.booleans(), st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=2)
EXAMPLES = st.sampled_from(DIALECTS).flatmap(
    lambda dialect: st.tuples(
        st.just(dialect), handshakes(dialect.name), st.lists(frames(dialect.name) | HAPPENINGS, max_size=8)
    )
)


class Play:
    """One client's codec, and a stream behind it that says what it is told to."""

    def __init__(self, dialect: Dialect, codec: Codec) -> None:
        self.over = False
        self._dialect = dialect
        self._codec = codec
        self._open: Start | None = None
        self._utterance = 0
        self._time = 0.0

    def take(self, give: Callable[[], Iterable[Message]]) -> None:
        try:
            for message in give():
                self._take(message)
        except Fault as fault:
            sendable(self._codec.blame(fault))
            check(self._dialect, fault)
            self.over = self.over or fault.fatal

    def _take(self, message: Message) -> None:
        match message:
            case Reply(said):
                sendable([said])
            case Start():
                self._begin(message)
            case Flush(id) | Discard(id):
                self._tell(Flushed(id))
            case Stop():
                self.over = True
            case Audio(data):
                assert self._open is not None, "a codec begins with a start"
                assert isinstance(data, bytes)

    def _begin(self, start: Start) -> None:
        if self._open is not None:
            self._tell(Stopped(self._time))
        try:
            if start.encoding != "opus":
                AudioFormat(start.encoding, start.sample_rate, start.channels)
        except AudioFormatError as error:
            raise Fault(error.code, str(error), fatal=True) from None
        self._open, self._utterance, self._time = start, 0, 0.0
        self._tell(Ready("s", start.source or "x", "student", None, "cpu"))

    def happen(self, utterances: list[tuple[str, bool, float, float]]) -> None:
        """People speak."""
        for text, split, pause, confidence in utterances if self._open is not None else ():
            self._utterance += 1
            begun, ended = self._time + pause, self._time + pause + 1
            self._time = ended + 1
            source = self._open.source or "x" if self._open is not None else "x"
            word = Word(text, begun, ended, confidence)
            final = Final(source, self._utterance, begun, ended, text, confidence, "student", "en", 5, (word,), 1)
            partial = Partial(source, self._utterance, begun, ended, text[:3], text[3:], 5)
            events: list[Event] = [SpeechStarted(source, self._utterance, begun), partial]
            events += [replace(partial, stable=text, tail="")] if split else []
            for event in [*events, SpeechStopped(source, self._utterance, ended), final]:
                self._tell(event)

    def end(self) -> None:
        if self._open is not None:
            self._tell(Stopped(self._time))
        sendable(self._codec.part(1000))

    def _tell(self, event: Event) -> None:
        sendable(self._codec.encode(event))


def sendable(said: Iterable[Frame]) -> None:
    for each in said:
        assert isinstance(each, str), "none of them sends binary frames"
        each.encode()  # a lone surrogate would have no UTF-8
        json.loads(each, parse_constant=_no_json)


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def check(dialect: Dialect, fault: Fault) -> None:
    assert 0 < len(fault.message) < 600
    fault.message.encode()
    assert len(dialect.close_reason(fault).encode()) <= 123
    assert 1000 <= dialect.close_code(fault.code) < 5000
    sendable(dialect.refuse(fault))
    if dialect.reject is not None:
        rejection = dialect.reject(fault)
        assert 400 <= rejection.status < 600
        json.loads(rejection.body)
        assert all("\n" not in value and "\r" not in value for value in rejection.headers.values())


def converse(example: tuple[Dialect, Handshake, list[Any]]) -> None:
    dialect, handshake, steps = example
    try:
        shown = dialect.tokens(handshake)
        assert all(isinstance(token, str) for token in shown)
        play = Play(dialect, dialect.make(handshake))
    except Fault as fault:
        check(dialect, fault)
        if dialect.refuse_by_name is not None:
            for each in steps:
                sendable(dialect.refuse_by_name(fault, each) if isinstance(each, str | bytes) else ())
        return
    codec = play._codec
    play.take(codec.greet)
    for step in steps:
        if play.over:
            break
        if isinstance(step, str | bytes):
            play.take(lambda step=step: codec.decode(step))  # type: ignore[misc]  # mypy: a lambda with a default
        else:
            play.happen(step)
    play.end()


# --- the files -------------------------------------------------------------------------------------------------------

OF_FILES = {
    **QUERIES["deepgram"],
    "utterances": ["true", "false", "maybe"], "utt_split": ["0.8", "nan", "-1", "1e999"], "multichannel": ["true"],
    "detect_language": ["true", "de", ""], "language_hint": ["en", "de"], "paragraphs": ["true"], "callback": ["x"],
    "custom_topic": ["x"], "model": ["nova-3"],
}  # fmt: skip


@st.composite
def file_queries(draw: st.DrawFn) -> str:
    names = draw(st.lists(st.sampled_from(sorted(OF_FILES)), max_size=6))
    pairs = [(name, draw(st.sampled_from(OF_FILES[name]) | st.text(max_size=10))) for name in names]
    return "&".join(f"{name}={quote(value, errors='replace')}" for name, value in pairs)


def ask_for_a_file(example: tuple[str, list[tuple[str, bool, float, float]]]) -> None:
    query, said = example
    try:
        asked = deepgram_files.parse(query)
    except Fault as fault:
        assert 0 < len(fault.message) < 600
        rejection = deepgram_files.DIALECT.reject(fault)
        assert json.loads(rejection.body)["err_msg"] == fault.message
        assert all("\n" not in value and "\r" not in value for value in rejection.headers.values())
        return
    finals = [
        Final(
            "ab"[second], number, start, start + 1, text, sure, "student", ("en", None)[second], 5,
            (Word(text, start, start + 1, sure),),
        )
        for number, (text, second, start, sure) in enumerate(said, 1)
    ]  # fmt: skip
    created = datetime(2026, 1, 1, tzinfo=UTC)
    recording = deepgram_files.Recording("ab", 9.0, 2, ("a", "b"), asked.headerless, "student", None, created)
    body, _ = deepgram_files.answer(finals, recording, asked)
    body.encode()
    results = json.loads(body, parse_constant=_no_json)["results"]
    assert len(results["channels"]) == 2
    assert all(0 <= each["alternatives"][0]["confidence"] <= 1 for each in results["channels"])
    assert len(results.get("utterances", finals)) == len(finals)


FILES = st.tuples(file_queries(), HAPPENINGS)

# --- at the ports ----------------------------------------------------------------------------------------------------

_daemon = Daemon({"dialects": {"vosk": 0, "whisperlive": 0, "max_upload": 20_000}})
PATHS = {"deepgram": "/v1/listen", "openai": "/v1/realtime", "vosk": "/", "whisperlive": "/"}


@st.composite
def talks(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    dialect = draw(st.sampled_from(DIALECTS))
    handshake = draw(handshakes(dialect.name))
    lines = [f"{name}: {value}" for name, values in handshake.headers.items() for value in values]
    lines += ["Authorization: Bearer good"] if draw(st.integers(0, 3)) else []
    lines += [f"Sec-WebSocket-Protocol: {', '.join(handshake.subprotocols)}"] if handshake.subprotocols else []
    target = PATHS[dialect.name] + "?" * bool(handshake.query) + handshake.query
    request = "\r\n".join([f"GET {target} HTTP/1.1", *handshake_lines(), *lines, "", ""])
    said = draw(st.lists(frames(dialect.name).filter(lambda each: len(each) < 60_000), max_size=6))
    pieces = [
        frame(1, each.encode("utf-8", "replace")) if isinstance(each, str) else frame(2, each) for each in said
    ]  # fmt: skip
    return dialect.name, [request.encode("latin-1", "replace"), *pieces]


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "model",
                "language",
                "response_format",
                "stream",
                "timestamp_granularities[]",
                "include[]",
                "prompt",
                "x",
                "keywords[]",
                "keywords",
                "languages[]",
                "temperature",
                "chunking_strategy",
                "chunking_strategy[type]",
            ]
        ),
        st.sampled_from(["en", "json", "text", "srt", "vtt", "verbose_json", "true", "word", "logprobs", ""])
        | st.text(max_size=10),
    ),
    max_size=4,
)


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A file, damaged or not, and fields, in a form, whole or cut; or anything."""
    boundary = draw(st.sampled_from([b"b", b"b" * 70, b"x y"]))
    parts = [
        b'Content-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value.encode("utf-8", "replace")
        for name, value in draw(FIELDS)
    ]
    head = b'Content-Disposition: form-data; name="file"; filename="' + draw(st.binary(max_size=5)) + b'"\r\n\r\n'
    parts += [head + draw(damaged())] if draw(st.integers(0, 9)) else []
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    if not draw(st.integers(0, 4)):
        body = body[: draw(st.integers(0, len(body)))]
    size = len(body) if draw(st.integers(0, 9)) else draw(st.integers(0, 30_000))
    kind = draw(st.sampled_from([b"multipart/form-data; boundary=" + boundary] * 9 + [b"multipart/form-data", b"x"]))
    length = b"Content-Length: %d" % size if draw(st.integers(0, 9)) else b"Transfer-Encoding: chunked"
    path = openai_files.PATH.encode() if draw(st.integers(0, 19)) else b"/" + draw(st.binary(max_size=5))
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Type: " + kind, length, b"Connection: close"]
    lines += [b"Authorization: Bearer good"] if draw(st.integers(0, 9)) else []
    return "form", [b"\r\n".join([*lines, b"", b""]) + body]


@st.composite
def recordings(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A file, damaged or not, as a body, whole or cut, with or without its length."""
    body = draw(damaged() | st.binary(max_size=50))
    if draw(st.integers(0, 4)):
        length = b"Content-Length: %d" % (len(body) if draw(st.integers(0, 9)) else draw(st.integers(0, 30_000)))
    else:
        length = b"Transfer-Encoding: chunked"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if draw(st.integers(0, 4)) and body else body
    kind = draw(
        st.sampled_from([b"", b"Content-Type: audio/wav", b"Content-Type: application/json", b"Content-Type: x"])
    )
    slashes = draw(st.sampled_from(["", "", "/", "//"]))
    target = f"{deepgram.PATH}{slashes}?{draw(file_queries())}".encode()
    lines = [b"POST " + target + b" HTTP/1.1", b"Host: x", *([kind] if kind else []), length, b"Connection: close"]
    lines += [b"Authorization: Token good"] if draw(st.integers(0, 9)) else []
    return "recording", [b"\r\n".join([*lines, b"", b""]) + body]


def talk(example: tuple[str, list[bytes]]) -> None:
    name, pieces = example
    _daemon.exchange(_daemon.ports.get(name, _daemon.http), pieces)


TARGETS = (
    Target("dialects", EXAMPLES, converse, size=400),
    Target("dialects-files", FILES, ask_for_a_file, size=400),
    Target(
        "dialects-port",
        talks() | talks() | forms() | recordings(),
        talk,
        size=100,
        open=_daemon.open,
        close=_daemon.close,
    ),
)
