"""One stream: what a client sends, to its channels; what they say, to whoever listens.

Owns the life of one stream: its decoder, its channels, what its own client is told, and the moment when its last final
is out. What becomes of a channel's samples is decided there. Knows nothing of sockets or topics: the edge that brings
the audio calls `receive` with the messages of the common vocabulary.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from daemon.common.client_input import quoted, shown
from daemon.common.errors import Fault
from daemon.common.logs import bind_log_context
from daemon.common.sources import DEFAULT_SOURCE, channel_names
from daemon.core.channel import Channel
from daemon.core.neighbours import ModelInfo, Neighbours
from streaming.audio import AudioDecoder, AudioFormat, AudioFormatError, SeparateDecoder
from streaming.events import (
    Audio,
    Discard,
    Endpointing,
    Error,
    Flush,
    Flushed,
    Inbound,
    Notice,
    Ready,
    Start,
    Stop,
    Stopped,
)
from streaming.job import SAMPLE_RATE
from streaming.opus.decoder import OpusDecoder
from streaming.session import SessionSettings

_log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.25
"""Audio that is looked at between two turns of the event loop: eight frames, a few milliseconds of voice detection.
A client that sends a file at fifty times its pace must not delay those who speak."""

_SLICE_SAMPLES = 2 * round(_SLICE_SECONDS * SAMPLE_RATE)
"""The most of it, where the bytes held more than was thought."""

_UNSEEN_SECONDS = 2 * _SLICE_SECONDS
"""Audio that may wait for voice detection before reading pauses."""

_Decoder = AudioDecoder | SeparateDecoder | OpusDecoder


class Stream:
    """A stream, from its `Start` to `Stopped`.

    All that its channels say goes to the hub. What concerns its own client alone (ready, flushed, stopped, errors) goes
    only into `outbox`, which follows this stream.

    Args:
        start: the parameters that its client chose.
        shared: what all streams share.

    Raises:
        Fault: `bad_language`, `bad_format`, `bad_encoding`, `bad_endpointing`; fatal.

    Attributes:
        source: the name that its client chose.
        flushes: how many came so far.
        silent: whether it ended because nobody spoke for as long as its client wanted to wait.
    """

    def __init__(self, start: Start, shared: Neighbours) -> None:
        self.id = uuid.uuid4().hex
        self.source = start.source if start.source is not None else DEFAULT_SOURCE
        bind_log_context(source=self.source, session=self.id)
        self._shared = shared
        self._decoder = _decoder(start)
        self._patience = _patience(start)
        settings = _session_settings(shared.session, start.endpointing, shared.model.longest)
        languages = _languages(start, shared.model)
        names = channel_names(self.source, start.channels) if start.separate else (self.source,)
        ids = [f"{self.id}-{number}" for number in range(1, len(names) + 1)] if start.separate else [self.id]
        self._separate = start.separate
        self.flushes = 0
        self.silent = False
        self._slice = self._decoder.bytes_of(_SLICE_SECONDS)
        self._ended = False  # nothing more is taken in
        self._closed = False
        self._finished = asyncio.Event()  # the last final is out
        self._progress = asyncio.Event()  # a result came: there may be room again
        self.outbox = shared.hub.follow(*ids)
        self._channels: list[Channel] = []
        for id, name in zip(ids, names, strict=True):
            self._channels.append(Channel(id, name, start, settings, languages, shared, self))
        self._answers: dict[Channel, deque[Flushed | Stopped]] = {channel: deque() for channel in self._channels}
        shared.metrics.streams.inc()
        shared.metrics.streams_open.inc()
        _log.debug("stream started: %s at %d Hz", start.encoding, start.sample_rate)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names that its events carry, one for each channel."""
        return tuple(channel.source for channel in self._channels)

    @property
    def settled(self) -> bool:
        """Whether all that was said so far has its final."""
        return all(channel.session.settled for channel in self._channels)

    @property
    def samples(self) -> int:
        """The samples of each channel that were heard so far, at the client's rate."""
        return self._decoder.heard

    @property
    def greeting(self) -> Ready:
        """The `Ready` event, which says what the client talks to."""
        model = self._shared.model
        ready = Ready(self.id, self.source, model.student, model.teacher, model.device)
        return replace(ready, channels=self.sources) if self._separate else ready

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
                for channel in self._channels:
                    channel.flush(id)
            case Discard(id):
                for channel in self._channels:
                    channel.discard(id)
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
        self.outbox.close()
        for channel in self._channels:
            channel.close()
        self._shared.metrics.streams_open.dec()
        sessions = [channel.session for channel in self._channels]
        spoken = sum(session.voiced_seconds for session in sessions)
        _log.debug("stream ended: %.1f s of audio, %.1f s of it speech", sessions[0].audio_seconds, spoken)

    async def _hear(self, data: bytes, now: float) -> None:
        for at in range(0, len(data), self._slice):
            await self._room()
            if self._ended:
                return
            samples = self._decode(data[at : at + self._slice])
            self._notice()
            # A few bytes of opus may hold a long silence.
            for begin in range(0, max(1, samples.shape[1]), _SLICE_SAMPLES):
                self._take(samples[:, begin : begin + _SLICE_SAMPLES], now - self._decoder.delay)
                await asyncio.sleep(0)
                await self.caught_up(_UNSEEN_SECONDS)  # where more is sent than is looked at meanwhile

    def _decode(self, data: bytes) -> NDArray[np.float32]:
        """Return the samples that `data` completed: shape `[channels, n]`."""
        try:
            return np.atleast_2d(self._decoder.feed(data))
        except AudioFormatError as error:
            self._decoder.forget_leftover()  # it is this that cannot be read, and not cut off as well
            raise _fault(error) from None

    def _notice(self) -> None:
        for finding in self._decoder.findings():
            _log.info("%s: %s", finding.code, finding.message)
            self.outbox.put(Notice(finding.code, finding.message, self.sources[finding.channel]))

    def _take(self, samples: NDArray[np.float32], arrived: float) -> None:
        """Give each channel its samples, at once: whoever resumes the stream does so at one place for all of them."""
        if self._ended:
            return
        for channel, own in zip(self._channels, samples, strict=True):
            channel.take(own, arrived)

    async def caught_up(self, within: float = 0.0) -> None:
        """Wait until it is known of all that came, but the last seconds, whether it is speech."""
        while any(channel.unseen_seconds > within for channel in self._channels) and not self._ended:
            self._progress.clear()
            await self._progress.wait()

    def _lose_patience(self) -> None:
        """End the stream if nobody has spoken for as long as its client waits."""
        if self._patience is None or self._ended:
            return
        sessions = [channel.session for channel in self._channels]
        if any(session.spoken for session in sessions):
            self._patience = None
        elif min(session.judged_seconds for session in sessions) >= self._patience:
            self.silent = True
            message = f"nobody spoke within {self._patience:g} s, and the stream ended"
            self.outbox.put(Notice("no_speech", message, self.source))
            self._end()

    async def _room(self) -> None:
        """Pause while too much audio waits for its finals."""
        if not self._is_full():
            return
        began = time.monotonic()
        self._shared.metrics.backpressure.inc()
        while self._is_full() and not self._ended:
            self._progress.clear()
            await self._progress.wait()
        self._shared.metrics.backpressure_seconds.inc(time.monotonic() - began)

    def _is_full(self) -> bool:
        return any(channel.session.backlog_seconds > self._shared.backlog for channel in self._channels)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        now = time.monotonic()
        rest = np.atleast_2d(self._decoder.finish())
        self._notice()
        if self._decoder.leftover:
            fault = _odd_bytes(self._decoder)
            self._shared.metrics.client_errors.labels(fault.code).inc()
            self.outbox.put(fault)
        for channel, own in zip(self._channels, rest, strict=True):
            channel.stop(own, now)

    # --- what its channels say -------------------------------------------------------------------------------------

    def answered(self, channel: Channel, event: Flushed | Stopped) -> None:
        """Tell the client once all channels have answered what each of them was told, in the same order."""
        self._answers[channel].append(event)
        while all(self._answers.values()):
            *_, answer = [answers.popleft() for answers in self._answers.values()]
            self.outbox.put(answer, self.id)

    def progressed(self) -> None:
        self._lose_patience()
        if all(channel.session.finished for channel in self._channels):
            self._finished.set()
        self._progress.set()

    def broke(self, error: Exception) -> None:
        """Note that something of this stream failed, which is a fault of the service, and ends it."""
        self._shared.metrics.errors.labels("internal").inc()
        self.outbox.put(Error("internal", "an internal error ended this stream; see the service's log", fatal=True))
        self._ended = True
        self._finished.set()
        self._progress.set()


def _decoder(start: Start) -> _Decoder:
    try:
        if start.encoding == "opus":
            if start.separate:
                raise AudioFormatError("bad_format", "channels of Opus cannot be separate: send samples")
            return OpusDecoder()
        form = AudioFormat(start.encoding, start.sample_rate, start.channels)
        return SeparateDecoder(form) if start.separate else AudioDecoder(form)
    except AudioFormatError as error:
        raise _fault(error) from None


def _patience(start: Start) -> float | None:
    seconds = start.endpointing.no_speech
    if seconds is not None and seconds <= 0:
        raise Fault("bad_endpointing", "no_speech must be more than 0 seconds", fatal=True)
    return seconds


def _fault(error: AudioFormatError) -> Fault:
    got = "".join(f", got {shown(each)}" for each in error.got)
    return Fault(error.code, f"{error}{got}", fatal=True)


def _session_settings(settings: SessionSettings, wanted: Endpointing, longest: float) -> SessionSettings:
    """Return `settings`, with what this stream wants otherwise."""
    changes = {key: value for key, value in asdict(wanted).items() if value is not None and key != "no_speech"}
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


def _odd_bytes(decoder: _Decoder) -> Error:
    return Error("odd_bytes", f"the audio ended with {decoder.remains}; everything before it was heard", fatal=False)
