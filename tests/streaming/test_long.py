"""A stream that lasts: what a day of it costs, and that its clock is the clock of its samples."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType, ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer

from streaming.audio import FRAME
from streaming.events import Event, Final, Partial, SpeechStopped
from streaming.fake import ScriptedEngine
from streaming.job import SAMPLE_RATE, Waveform
from streaming.session import Session, SessionSettings
from streaming.text import Text

FRAMES_A_MINUTE = 60 * SAMPLE_RATE // FRAME  # whole frames: 1875
VOICED = 125  # of each minute: four seconds
FRAMES_AN_UPDATE = 25  # 0.8 s


def loud(frame: Waveform) -> float:
    """The detector, at its seam: what is not zero is speech."""
    return 0.9 if frame[0] else 0.0


@dataclass
class Life:
    """A stream, minute by minute, and what came of it; of its events only the last minute's are kept."""

    engine: ScriptedEngine
    session: Session
    frames: int = 0
    voiced: int = 0
    covered: int = 0
    reached: float = 0.0
    finals: int = 0
    events: list[Event] = field(default_factory=list)

    def minute(self, voiced: int = VOICED) -> None:
        self.events = []
        for at in range(0, FRAMES_A_MINUTE, FRAMES_AN_UPDATE):
            self.update(min(max(voiced - at, 0), FRAMES_AN_UPDATE))
        self._check()

    def update(self, voiced: int) -> None:
        """Some audio, of which the first frames are voiced, and all that is to be done about it."""
        audio = np.zeros(FRAMES_AN_UPDATE * FRAME, np.float32)
        audio[: voiced * FRAME] = 0.5
        self.frames += FRAMES_AN_UPDATE
        self.voiced += voiced
        now = self.frames * FRAME / SAMPLE_RATE
        self.events += self.session.receive(audio, now)
        while (job := self.session.next_job()) is not None:
            self.events += self.session.receive_result(self.engine.run([job])[0], now)

    def _check(self) -> None:
        """Bounds go on from where they were, and add up."""
        stopped = [event for event in self.events if isinstance(event, SpeechStopped)]
        finals = [event for event in self.events if isinstance(event, Final)]
        assert [final.utterance for final in finals] == [event.utterance for event in stopped]
        for final in finals:
            self.finals += 1
            assert final.utterance == self.finals
            assert self.reached <= final.start < final.end <= self.session.audio_seconds
            self.reached = final.end
            self.covered += round((final.end - final.start) * SAMPLE_RATE)
        assert self.session.audio_seconds == self.frames * FRAME / SAMPLE_RATE

    def weight(self) -> tuple[Counter[str], int]:
        """All objects that the session holds, by type, and the bytes of their arrays and containers."""
        kinds: Counter[str] = Counter()
        size = 0
        seen: set[int] = set()
        todo: list[object] = [self.session]
        while todo:
            each = todo.pop()
            if id(each) in seen or isinstance(each, type | ModuleType | FunctionType | Text | int | float | str):
                continue
            seen.add(id(each))
            kinds[type(each).__name__] += 1
            size += sys.getsizeof(each)
            todo += gc.get_referents(each)
        return kinds, size

    def calls(self) -> int:
        """Functions called, ours and others', for one update in which a partial or nothing is due."""
        count = 0

        def called(_: FrameType, what: str, __: object) -> None:
            nonlocal count
            count += what in ("call", "c_call")

        sys.setprofile(called)
        try:
            self.update(FRAMES_AN_UPDATE)
        finally:
            sys.setprofile(None)
        return count


def life(tokenizer_file: Path, tokenizer: Tokenizer, text: Text) -> Life:
    eot = tokenizer.token_to_id("<|endoftext|>")
    assert eot is not None
    engine = ScriptedEngine(tokenizer_file, eot)
    return Life(engine, Session("kitchen", SessionSettings(), loud, text))


def measured(stream: Life) -> tuple[Counter[str], int, list[int]]:
    """Weight and calls at the same place of any minute: in silence, and in the first seconds of an utterance."""
    stream.minute()
    kinds, size = stream.weight()
    stream.events = []
    calls = [stream.calls() for _ in range(4)]
    for _ in range(FRAMES_A_MINUTE // FRAMES_AN_UPDATE - 4):
        stream.update(0)
    stream._check()
    return kinds, size, calls


@pytest.mark.timeout(600)  # seconds of work; a busy machine may take its time
def test_a_day_costs_no_more_than_its_first_minutes_and_adds_up(
    tokenizer_file: Path, tokenizer: Tokenizer, text: Text
) -> None:
    """A few seconds of speech every few minutes, and a monologue of a minute, which is cut, in each hour."""
    stream = life(tokenizer_file, tokenizer, text)
    stream.minute(FRAMES_A_MINUTE)  # what is made once, at a first cut or a first partial, is no growth
    stream.minute()
    young = measured(stream)
    for hour in range(24):
        stream.minute(FRAMES_A_MINUTE)
        for _ in range(57):
            stream.minute()
        grown = measured(stream)
        assert grown[0] == young[0], hour
        assert grown[1] <= young[1] * 1.1, hour  # a queue's storage comes in blocks, of which the first may be in use
        assert all(now <= then * 1.05 for now, then in zip(grown[2], young[2], strict=True)), hour
    assert stream.session.audio_seconds > 24 * 3600
    # Voiced and silent are all that was received: speech is exactly what was voiced, to a sample.
    assert stream.covered == stream.voiced * FRAME
    assert stream.finals > 24 * 15


@pytest.mark.timeout(600)
def test_a_monologue_of_two_hours_costs_no_more_than_one_of_a_minute(
    tokenizer_file: Path, tokenizer: Tokenizer, text: Text
) -> None:
    """Never a pause: segments are cut at their limit, and what is open is never heavier than that."""
    stream = life(tokenizer_file, tokenizer, text)
    limit = round(SessionSettings().segment.longest * SAMPLE_RATE / FRAME) + FRAMES_AN_UPDATE
    dearest: list[int] = []  # calls for one update, in the first minutes and in the last
    for minute in range(120):
        counted = minute < 3 or minute >= 118
        costs = []
        stream.events = []
        for _ in range(FRAMES_A_MINUTE // FRAMES_AN_UPDATE):
            if counted:
                costs.append(stream.calls())
            else:
                stream.update(FRAMES_AN_UPDATE)
            assert len(stream.session._recent._frames) <= limit
        stream._check()
        dearest += [max(costs)] if counted else []
    assert max(dearest[3:]) <= max(dearest[:3]) * 1.05
    assert any(isinstance(event, Partial) for event in stream.events)  # the last minute was heard too
    assert stream.covered >= stream.voiced * FRAME - limit * FRAME


def check_growth_is_seen(grow: Callable[[Session], None], stream: Life) -> bool:
    before = measured(stream)
    grow(stream.session)
    return measured(stream) != before


def test_a_session_that_grew_would_be_seen(tokenizer_file: Path, tokenizer: Tokenizer, text: Text) -> None:
    stream = life(tokenizer_file, tokenizer, text)
    stream.minute()
    stream.minute()
    assert not check_growth_is_seen(lambda session: None, stream)
    assert check_growth_is_seen(lambda session: setattr(session, "source", [[]]), stream)
