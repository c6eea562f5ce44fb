"""One channel of a stream: samples of one source to its session, and the session's events to the hub.

Owns one source's share of a stream: its session, its place with the scheduler, and its switch. Here meet the neighbours
that must not know each other. A stream has one channel, into which all that its client sends is mixed, or one for each
channel of the audio. Knows nothing of bytes, of clients, or of the stream's other channels: what only the client is to
be told goes to `ChannelOwner`.
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from daemon.common.sources import DEFAULT_SOURCE
from daemon.core.neighbours import Neighbours
from daemon.core.scheduler import Kind
from streaming.audio import FRAME
from streaming.events import Error, Event, Flushed, Start, Stopped
from streaming.job import SAMPLE_RATE, Job, Result, Vocabulary, Waveform
from streaming.long_form import LongForm
from streaming.session import Session, SessionSettings
from streaming.vad import Detector

_log = logging.getLogger(__name__)

_MUTED = "\0muted"
"""The id of the flush that ends an utterance when its source is switched off."""


class ChannelOwner(Protocol):
    """The stream, as its channels see it."""

    def answered(self, channel: Channel, event: Flushed | Stopped) -> None:
        """Take the answer of a channel to what all were told."""

    def progressed(self) -> None:
        """Note that something was said, or that there may be room again."""

    def broke(self, error: Exception) -> None:
        """Note that a channel failed, which is a fault of the service."""


class Channel:
    """A channel. It is a client of the scheduler.

    Args:
        id: names its finals, and is the stream's for whoever follows it.
        source: the name that its events carry.
        start: the parameters of the stream.
        settings: how it is transcribed.
        languages: the code of its language; and those among which it is detected where that is None.
        shared: what all streams share.
        owner: the stream.
    """

    def __init__(
        self,
        id: str,
        source: str,
        start: Start,
        settings: SessionSettings,
        languages: tuple[str | None, tuple[str, ...]],
        shared: Neighbours,
        owner: ChannelOwner,
    ) -> None:
        self.id = id
        self.source = source
        self._shared = shared
        self._owner = owner
        self._start = start
        self.detector = Detector(shared.vad)
        self._frames: deque[Waveform] = deque()  # not looked at yet
        self._context = contextvars.copy_context()
        self.session = self._session(settings, *languages)
        self._speaking = False
        self._ended = False
        shared.scheduler.add(self)
        shared.sources.opened(source, self._mute)

    # --- what comes in ---------------------------------------------------------------------------------------------

    def take(self, samples: Waveform, arrived: float) -> None:
        """Hear samples: shape `[n]`, 16 kHz; the last of them arrived then."""
        seconds = len(samples) / SAMPLE_RATE
        self._shared.metrics.audio_seconds.inc(seconds)
        if not self._shared.sources.is_on(self.source):
            # Heard as silence rather than cut out: the stream's clock goes on.
            samples = np.zeros_like(samples)
            self._shared.metrics.muted_seconds.inc(seconds)
        self._frames.extend(self.session.keep(samples, arrived))
        if self._shared.detection is None:
            self._look()
        elif self._frames:
            self._shared.detection.add(self)

    @property
    def unseen_seconds(self) -> float:
        """Audio that was not looked at yet."""
        return len(self._frames) * FRAME / SAMPLE_RATE

    def flush(self, id: str | None) -> None:
        self._look()
        self._say(self.session.flush(id, time.monotonic()))

    def discard(self, id: str | None) -> None:
        self._look()
        self._say(self.session.discard(id, time.monotonic()))

    def stop(self, rest: Waveform, now: float) -> None:
        """Hear the last samples, and take no more."""
        self._ended = True
        self._frames.extend(self.session.keep(rest, now))
        self._look()
        self._say(self.session.stop(now))

    def close(self) -> None:
        """Leave, finished or not."""
        self._ended = True
        self._frames.clear()
        if self._shared.detection is not None:
            self._shared.detection.remove(self)
        self._shared.scheduler.remove(self)
        self._set_speaking(False)
        self._shared.sources.closed(self.source, self._mute)

    def _session(
        self, settings: SessionSettings, language: str | None, languages: tuple[str, ...]
    ) -> Session | LongForm:
        start, model = self._start, self._shared.model
        make: Callable[..., Session | LongForm] = partial(Session, partials=start.partials, spacing=self._spacing)
        if start.long_form != "vad" and model.text.first_timestamp is not None:
            make = partial(LongForm, longest=model.longest, conditioned=start.long_form == "conditioned")
        return make(
            self.source,
            settings,
            self.detector,
            model.text,
            language=language,
            languages=languages,
            words=start.words,
            vocabulary=self._vocabulary,
        )

    def _spacing(self) -> float:
        return 1.0 if self._shared.spacing is None else self._shared.spacing.factor

    def _vocabulary(self) -> Vocabulary:
        """Return the phrases of the moment: the stream's own, and those of its source and of the channel's."""
        phrases = self._start.vocabulary
        for name in dict.fromkeys((self._start.source or DEFAULT_SOURCE, self.source)):
            phrases = self._shared.vocabularies.of(name, phrases)
        return phrases

    def _look(self) -> None:
        """Look at the frames that wait, now: what is told the session next is about all of them."""
        while (frame := self.next_frame()) is not None:
            self._hear(frame, self.detector(frame))

    def _hear(self, frame: Waveform, probability: float) -> None:
        before = self.session.voiced_seconds
        events = self.session.judged(frame, probability)
        self._shared.metrics.voiced_seconds.inc(self.session.voiced_seconds - before)
        self._say(events)

    def _mute(self) -> None:
        """Make final what was said until now, because the source was switched off and no more audio may come."""
        if not self._ended:
            self.flush(_MUTED)

    # --- what goes out ---------------------------------------------------------------------------------------------

    def _say(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Flushed(id) if id == _MUTED:
                    pass  # nobody asked
                case Flushed() | Stopped():
                    self._owner.answered(self, event)
                case Error():
                    _log.error("%s", event.message)
                    self._shared.hub.publish(event, self.id)
                case _:
                    self._shared.hub.publish(event, self.id)
        self._set_speaking(self.session.speaking)
        self._shared.scheduler.schedule(self)
        self._owner.progressed()

    def _set_speaking(self, speaking: bool) -> None:
        if speaking != self._speaking:
            self._speaking = speaking
            self._shared.sources.speech(self.source, speaking)

    # --- a client of voice detection -------------------------------------------------------------------------------

    def next_frame(self) -> Waveform | None:
        return self._frames.popleft() if self._frames else None

    def judged(self, frame: Waveform, probability: float) -> None:
        if self._ended:  # by another channel of the stream, which was looked at in the same step
            return
        self._context.copy().run(self._hear, frame, probability)

    # --- a client of the scheduler ---------------------------------------------------------------------------------

    def pending(self) -> Kind | None:
        return self.session.pending()

    def next_job(self) -> Job | None:
        return self.session.next_job()

    def receive_result(self, result: Result) -> None:
        self._say(self.session.receive_result(result, time.monotonic()))

    def broke(self, error: Exception) -> None:
        self._ended = True
        self._owner.broke(error)
