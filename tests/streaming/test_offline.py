"""A session without a service says what a service says, down to the last word."""

from __future__ import annotations

import numpy as np

from streaming.events import Event, Final, SpeechStarted, Stopped
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.offline import listen, stop
from streaming.session import Session, SessionSettings
from streaming.text import Text


def loudness(frame: Waveform) -> float:
    return float(np.abs(frame).max())


def test_every_job_is_run_and_the_tail_comes_out(text: Text) -> None:
    jobs: list[Job] = []

    def run(job: Job) -> Result:
        jobs.append(job)
        return Result(job.revision, tokens=(40,), log_probs=(-0.1, -0.1))

    session = Session("s", SessionSettings(), loudness, text)
    quiet, loud = np.zeros(SAMPLE_RATE, np.float32), np.ones(SAMPLE_RATE, np.float32)
    during = list(listen(session, run, np.concatenate([quiet, loud, quiet, loud])))
    assert _kinds(during).count(SpeechStarted) == 2
    assert _kinds(during).count(Final) == 1
    after = list(stop(session, run))
    assert _kinds(after)[-2:] == [Final, Stopped]
    assert session.finished
    assert sum(job.ask_teacher_below == 0 for job in jobs) == len(jobs) > 4


def _kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]
