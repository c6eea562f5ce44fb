"""One stream: carries one client's audio to its session and its events to the hub.

Owns the life of one stream: its decoder, its session, its place with the scheduler, and the moment when its last final
is out. Here meet the neighbours that must not know each other. Knows nothing of sockets or topics: the edge that brings
the audio calls `receive` with the messages of the common vocabulary.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import asdict, dataclass, replace

import numpy as np

from daemon.common.client_input import quoted, shown
from daemon.common.errors import Fault
from daemon.common.logs import bind_log_context
from daemon.common.metrics import Metrics
from daemon.common.sources import DEFAULT_SOURCE, Sources
from daemon.core.hub import Hub
from daemon.core.scheduler import Kind, Scheduler
from daemon.core.vocabularies import SourceVocabularies
from streaming.audio import AudioDecoder, AudioFormat, AudioFormatError
from streaming.events import (
    Audio,
    Discard,
    Endpointing,
    Error,
    Event,
    Flush,
    Flushed,
    Inbound,
    Notice,
    Ready,
    Start,
    Stop,
    Stopped,
)
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.opus.decoder import OpusDecoder
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector, VadSettings

_log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.25
"""Audio that is looked at between two turns of the event loop: eight frames, a few milliseconds of voice detection.
A client that sends a file at fifty times its pace must not delay those who speak."""

_SLICE_SAMPLES = 2 * round(_SLICE_SECONDS * SAMPLE_RATE)
"""The most of it, where the bytes held more than was thought."""

_MUTED = "\0muted"
"""The id of the flush that ends an utterance when its source is switched off."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a stream must know of the engine.

    Attributes:
        languages: the codes of all that the models know.
        longest: seconds that the models hear at once.
        choice: the codes among which the language of a stream is detected that names none; empty for all.
    """

    student: str
    teacher: str | None
    device: str
    languages: tuple[str, ...]
    text: Text
    longest: float = 30.0
    choice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What all streams share.

    Attributes:
        backlog: seconds of audio that may wait for finals before reading pauses.
    """

    model: ModelInfo
    session: SessionSettings
    vad: VadSettings
    backlog: float
    scheduler: Scheduler
    hub: Hub
    sources: Sources
    vocabularies: SourceVocabularies
    metrics: Metrics


class Stream:
    """A stream, from its `Start` to `Stopped`. It is a client of the scheduler.

    All that it says goes to the hub. What concerns its own client alone (ready, flushed, stopped, errors) goes only
    into `outbox`, which follows this stream.

    Args:
        start: the parameters that its client chose.
        shared: what all streams share.

    Raises:
        Fault: `bad_language`, `bad_format`, `bad_encoding`, `bad_endpointing`; fatal.

    Attributes:
        flushes: how many came so far.
    """

    def __init__(self, start: Start, shared: Neighbours) -> None:
        self.id = uuid.uuid4().hex
        self.source = start.source if start.source is not None else DEFAULT_SOURCE
        bind_log_context(source=self.source, session=self.id)
        self._shared = shared
        self._decoder = _decoder(start)
        language, languages = _languages(start, shared.model)
        self._session = Session(
            self.source,
            _session_settings(shared.session, start.endpointing, shared.model.longest),
            Detector(shared.vad),
            shared.model.text,
            language=language,
            languages=languages,
            partials=start.partials,
            words=start.words,
            vocabulary=lambda: shared.vocabularies.of(self.source, start.vocabulary),
        )
        self.flushes = 0
        self._slice = self._decoder.bytes_of(_SLICE_SECONDS)
        self._ended = False  # nothing more is taken in
        self._closed = False
        self._finished = asyncio.Event()  # the last final is out
        self._progress = asyncio.Event()  # a result came: there may be room again
        self._speaking = False
        self.outbox = shared.hub.follow(self.id)
        shared.scheduler.add(self)
        shared.sources.opened(self.source, self._mute)
        shared.metrics.streams.inc()
        shared.metrics.streams_open.inc()
        _log.debug("stream started: %s at %d Hz", start.encoding, start.sample_rate)

    @property
    def settled(self) -> bool:
        """Whether all that was said so far has its final."""
        return self._session.settled

    @property
    def samples(self) -> int:
        """The samples of each channel that were heard so far, at the client's rate."""
        return self._decoder.heard

    @property
    def greeting(self) -> Ready:
        """The `Ready` event, which says what the client talks to."""
        model = self._shared.model
        return Ready(self.id, self.source, model.student, model.teacher, model.device)

    # --- what comes in ---------------------------------------------------------------------------------------------

    async def receive(self, message: Inbound) -> None:
        """Take in one message, and return when there is room for the next.

        So the caller reads no faster than the stream hears.

        Raises:
            Fault: `late_start`, or audio that cannot be read.
        """
        match message:
            case Audio(data):
                await self._hear(data, time.monotonic())
            case Flush(id):
                self.flushes += 1
                self._say(self._session.flush(id, time.monotonic()))
            case Discard(id):
                self._say(self._session.discard(id, time.monotonic()))
            case Stop():
                self._end()
            case Start():
                raise Fault("late_start", "the stream has started: open another connection to change parameters")

    def cut(self) -> None:
        """Note that the connection broke. Half a sample is not kept: the client continues at `samples`."""
        self._decoder.forget_leftover()

    async def finish(self) -> None:
        """Take no more audio, and return when the last final is out.

        A stop, a lost client and a shutdown all end a stream like this.
        """
        self._end()
        await self._finished.wait()

    def close(self) -> None:
        """Close the stream, finished or not. It may be called again."""
        if self._closed:
            return
        self._closed = True
        self._shared.scheduler.remove(self)
        self.outbox.close()
        self._set_speaking(False)
        self._shared.sources.closed(self.source, self._mute)
        self._shared.metrics.streams_open.dec()
        _log.debug("stream ended: %.1f s of audio, %.1f s of it speech", *self._heard())

    def _heard(self) -> tuple[float, float]:
        """Return the seconds of audio, and of speech."""
        return self._session.audio_seconds, self._session.voiced_seconds

    async def _hear(self, data: bytes, now: float) -> None:
        for at in range(0, len(data), self._slice):
            await self._room()
            if self._ended:
                return
            samples = self._decode(data[at : at + self._slice])
            self._notice()
            # A few bytes of opus may hold a long silence.
            for begin in range(0, max(1, samples.size), _SLICE_SAMPLES):
                self._take(samples[begin : begin + _SLICE_SAMPLES], now - self._decoder.delay)
                await asyncio.sleep(0)

    def _decode(self, data: bytes) -> Waveform:
        try:
            return self._decoder.feed(data)
        except AudioFormatError as error:
            self._decoder.forget_leftover()  # it is this that cannot be read, and not cut off as well
            raise _fault(error) from None

    def _notice(self) -> None:
        for finding in self._decoder.findings():
            _log.info("%s: %s", finding.code, finding.message)
            self.outbox.put(Notice(finding.code, finding.message, self.source))

    def _take(self, samples: Waveform, arrived: float) -> None:
        seconds = len(samples) / SAMPLE_RATE
        self._shared.metrics.audio_seconds.inc(seconds)
        if not self._shared.sources.is_on(self.source):
            # Heard as silence rather than cut out: the stream's clock goes on.
            samples = np.zeros_like(samples)
            self._shared.metrics.muted_seconds.inc(seconds)
        self._say(self._receive(samples, arrived))

    def _receive(self, samples: Waveform, arrived: float) -> list[Event]:
        before = self._session.voiced_seconds
        events = self._session.receive(samples, arrived)
        self._shared.metrics.voiced_seconds.inc(self._session.voiced_seconds - before)
        return events

    def _mute(self) -> None:
        """Make final what was said until now, because the source was switched off and no more audio may come."""
        if not self._ended:
            self._say(self._session.flush(_MUTED, time.monotonic()))

    async def _room(self) -> None:
        """Pause while too much audio waits for its finals."""
        if self._session.backlog_seconds <= self._shared.backlog:
            return
        began = time.monotonic()
        self._shared.metrics.backpressure.inc()
        while self._session.backlog_seconds > self._shared.backlog and not self._ended:
            self._progress.clear()
            await self._progress.wait()
        self._shared.metrics.backpressure_seconds.inc(time.monotonic() - began)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        now = time.monotonic()
        self._say(self._receive(self._decoder.finish(), now))
        self._notice()
        if self._decoder.leftover:
            fault = _odd_bytes(self._decoder)
            self._shared.metrics.client_errors.labels(fault.code).inc()
            self.outbox.put(fault)
        self._say(self._session.stop(now))

    # --- what goes out ---------------------------------------------------------------------------------------------

    def _say(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Flushed(id) if id == _MUTED:
                    pass  # nobody asked
                case Flushed() | Stopped():
                    self.outbox.put(event, self.id)
                case Error():
                    _log.error("%s", event.message)
                    self._shared.hub.publish(event, self.id)
                case _:
                    self._shared.hub.publish(event, self.id)
        self._set_speaking(self._session.speaking)
        self._shared.scheduler.schedule(self)
        if self._session.finished:
            self._finished.set()
        self._progress.set()

    def _set_speaking(self, speaking: bool) -> None:
        if speaking != self._speaking:
            self._speaking = speaking
            self._shared.sources.speech(self.source, speaking)

    # --- a client of the scheduler ---------------------------------------------------------------------------------

    def pending(self) -> Kind | None:
        return self._session.pending()

    def next_job(self) -> Job | None:
        return self._session.next_job()

    def receive_result(self, result: Result) -> None:
        self._say(self._session.receive_result(result, time.monotonic()))

    def broke(self, error: Exception) -> None:
        self._shared.metrics.errors.labels("internal").inc()
        self.outbox.put(Error("internal", "an internal error ended this stream; see the service's log", fatal=True))
        self._ended = True
        self._finished.set()
        self._progress.set()


def _decoder(start: Start) -> AudioDecoder | OpusDecoder:
    try:
        if start.encoding == "opus":
            return OpusDecoder()
        return AudioDecoder(AudioFormat(start.encoding, start.sample_rate, start.channels))
    except AudioFormatError as error:
        raise _fault(error) from None


def _fault(error: AudioFormatError) -> Fault:
    got = "".join(f", got {shown(each)}" for each in error.got)
    return Fault(error.code, f"{error}{got}", fatal=True)


def _session_settings(settings: SessionSettings, wanted: Endpointing, longest: float) -> SessionSettings:
    """Return `settings`, with what this stream wants otherwise."""
    changes = {key: value for key, value in asdict(wanted).items() if value is not None}
    if not changes:
        return settings
    segment = settings.segment
    if changes.get("longest", 0) > longest:
        raise Fault("bad_endpointing", f"longest must be at most {longest:g} seconds, what the models hear", fatal=True)
    # What closes an utterance may not need more than what opens one.
    release = min(segment.release, changes.get("threshold", segment.threshold))
    try:
        return replace(settings, segment=replace(segment, release=release, **changes))
    except ValueError as error:
        raise Fault("bad_endpointing", str(error), fatal=True) from None


def _languages(start: Start, model: ModelInfo) -> tuple[str | None, tuple[str, ...]]:
    """Return the language, and those among which it is detected where it is not given."""
    if start.language is not None:
        if start.language not in model.languages:
            raise _bad_language("language", start.language, model)
        return start.language, ()
    wanted = start.languages or model.choice
    # Of a client's list, written for any service, those that this one knows are enough.
    known = tuple(code for code in wanted if code in model.languages)
    if wanted and not known:
        raise _bad_language("one of languages", ", ".join(wanted), model)
    return (known[0], ()) if len(known) == 1 else (None, known)


def _bad_language(what: str, got: str, model: ModelInfo) -> Fault:
    known = ", ".join(model.languages)
    return Fault("bad_language", f"{what} must be one of {known}, got {quoted(got)}", fatal=True)


def _odd_bytes(decoder: AudioDecoder | OpusDecoder) -> Error:
    return Error("odd_bytes", f"the audio ended with {decoder.remains}; everything before it was heard", fatal=False)
