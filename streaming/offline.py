"""A session without a service: audio that is at hand becomes its events, as fast as possible.

Owns the loop between a session and what runs its jobs, and the one that only cuts audio into utterances. Nothing waits:
every job runs when it is due, so what comes out is what a service that is never late would say. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streaming.audio import FRAME
from streaming.events import Event
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.long_form import LongForm
from streaming.segment import Closed, Segmenter, SegmentSettings
from streaming.session import Session
from streaming.vad import Detector

Run = Callable[[Job], Result]

STEP = SAMPLE_RATE // 2
"""Samples that arrive at a time: half a second, the pace of partials."""


def listen(session: Session | LongForm, run: Run, audio: Waveform) -> Iterator[Event]:
    """Feed audio to a session, which stays open.

    Args:
        session: the session.
        run: runs its jobs.
        audio: shape `[samples]`.

    Yields:
        The events of the audio.
    """
    for start in range(0, audio.size, STEP):
        yield from session.receive(audio[start : start + STEP], 0.0)
        yield from _answer(session, run)


def stop(session: Session | LongForm, run: Run) -> Iterator[Event]:
    """Stop a session.

    Args:
        session: the session.
        run: runs its jobs.

    Yields:
        The last events.
    """
    yield from session.stop(0.0)
    yield from _answer(session, run)


def utterances(audio: Waveform, settings: SegmentSettings | None = None) -> Iterator[Waveform]:
    """Cut audio into segments, as the service's detection and endpointing do.

    Args:
        audio: shape `[samples]`.
        settings: of the endpointing.

    Yields:
        The audio of each segment.
    """
    segmenter, detector = Segmenter(settings), Detector()
    for start in range(0, audio.size - FRAME + 1, FRAME):
        frame = audio[start : start + FRAME]
        for boundary in segmenter.push(detector(frame), float((frame**2).mean())):
            if isinstance(boundary, Closed):
                yield audio[boundary.segment.audio_start : boundary.segment.audio_end]
    for boundary in segmenter.flush(audio.size):
        yield audio[boundary.segment.audio_start : boundary.segment.audio_end]


def _answer(session: Session | LongForm, run: Run) -> Iterator[Event]:
    while job := session.next_job():
        yield from session.receive_result(run(job), 0.0)
