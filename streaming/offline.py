"""A session without a service: audio that is in hand -> its events, as fast as they can be had.

Owns the loop between a session and whatever runs its jobs, and the one that only cuts audio into utterances. Nothing
waits for anything: every job runs when it is due, so what comes out is what a service that is never late would say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streaming.audio import FRAME
from streaming.events import Event
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.segment import Closed, Segmenter, SegmentSettings
from streaming.session import Session
from streaming.vad import Detector

Run = Callable[[Job], Result]

STEP = SAMPLE_RATE // 2
"""Samples that arrive at a time: half a second, the pace of partials."""


def listen(session: Session, run: Run, audio: Waveform) -> Iterator[Event]:
    """Events of `audio`, shape [samples]; the stream stays open."""
    for start in range(0, audio.size, STEP):
        yield from session.receive(audio[start : start + STEP], 0.0)
        yield from _answer(session, run)


def stop(session: Session, run: Run) -> Iterator[Event]:
    """The last events of a stream."""
    yield from session.stop(0.0)
    yield from _answer(session, run)


def utterances(audio: Waveform, settings: SegmentSettings | None = None) -> Iterator[Waveform]:
    """The segments of `audio`, shape [samples], as the service's detection and endpointing cut them."""
    segmenter, detector = Segmenter(settings), Detector()
    for start in range(0, audio.size - FRAME + 1, FRAME):
        frame = audio[start : start + FRAME]
        for boundary in segmenter.push(detector(frame), float((frame**2).mean())):
            if isinstance(boundary, Closed):
                yield audio[boundary.segment.audio_start : boundary.segment.audio_end]
    for boundary in segmenter.flush(audio.size):
        yield audio[boundary.segment.audio_start : boundary.segment.audio_end]


def _answer(session: Session, run: Run) -> Iterator[Event]:
    while job := session.next_job():
        yield from session.receive_result(run(job), 0.0)
