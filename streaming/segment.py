"""Endpointing: speech probabilities in, segments out, in absolute sample offsets.

Owns when an utterance opens and closes, and which samples belong to it. Offsets only ever grow by what was heard;
nothing is inserted or removed, so they are the stream's one clock. Knows neither samples nor models: what comes in is
one probability and one level for each frame of 512 samples.

    silence ....|  pre-roll  |  voiced ... voiced  | tail |  rest of the hangover | silence ....
                ^ audio_start ^ start              ^ end  ^ audio_end             ^ closed here
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from streaming.audio import FRAME
from streaming.job import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """When utterances open and close; in seconds, unless said otherwise.

    Attributes:
        threshold: a frame with this probability or more may open an utterance.
        release: inside an utterance a frame is voiced down to this probability (hysteresis: a word's soft end is not
            cut).
        onset: how long speech must be voiced without a break to open an utterance. Two frames: a click is over in one,
            the shortest words last six.
        pre_roll: audio before the first voiced frame that belongs to the segment; a word's soft first consonant is in
            it.
        hangover: silence that closes an utterance. People pause for 0.2 to 0.5 inside a command; each tenth more delays
            every final by a tenth.
        tail: audio after the last voiced frame that belongs to the segment: a released "p" or "t" comes up to 0.15
            after the voice. The rest of the hangover is silence that a model would only have to listen to.
        longest: a segment's audio at most, pre-roll included. Half a minute is the model's own limit; half of that
            keeps the cost of hearing a growing segment again low, and people seldom speak that long without a pause.
        cut_window: a segment that grows too long is cut at the quietest point of this much of its end.
    """

    threshold: float = 0.5
    release: float = 0.35
    onset: float = 0.064
    pre_roll: float = 0.3
    hangover: float = 0.6
    tail: float = 0.2
    longest: float = 15.0
    cut_window: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.release <= self.threshold <= 1:
            raise ValueError(f"0 < release <= threshold <= 1 must hold, got {self.release}, {self.threshold}")
        for name in ("onset", "pre_roll", "hangover", "tail"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more seconds, got {getattr(self, name)}")
        if not self.cut_window > 0:
            raise ValueError(f"cut_window must be more than 0 seconds, got {self.cut_window}")
        least = self.pre_roll + self.onset + self.cut_window + self.tail
        if not least <= self.longest <= 30:
            raise ValueError(
                f"longest must be at least pre_roll + onset + cut_window + tail = {least:g} "
                f"and at most 30 seconds, got {self.longest:g}"
            )


@dataclass(frozen=True, slots=True)
class Segment:
    """The samples of an utterance, as absolute offsets.

    Attributes:
        audio_start: the first sample that a model should hear.
        start: the first sample of speech.
        end: one past the last sample of speech.
        audio_end: one past the last sample that a model should hear.
    """

    audio_start: int
    start: int
    end: int
    audio_end: int


@dataclass(frozen=True, slots=True)
class Opened:
    segment: Segment


@dataclass(frozen=True, slots=True)
class Closed:
    segment: Segment


Boundary = Opened | Closed


class Segmenter:
    """One stream's endpointing.

    Attributes:
        open: the segment that is growing, or None.
        heard: samples so far, in whole frames.
        voiced: how many of them were speech, by the threshold that held at the time.
    """

    def __init__(self, settings: SegmentSettings | None = None) -> None:
        self.settings = settings = settings or SegmentSettings()
        self.open: Segment | None = None
        self.heard = 0
        self.voiced = 0
        self._onset_frames = max(1, round(settings.onset * SAMPLE_RATE / FRAME))
        self._pre_roll = round(settings.pre_roll * SAMPLE_RATE)
        self._hangover = round(settings.hangover * SAMPLE_RATE)
        self._tail = round(settings.tail * SAMPLE_RATE)
        self._longest = round(settings.longest * SAMPLE_RATE)
        self._cut_frames = round(settings.cut_window * SAMPLE_RATE / FRAME)
        self._taken = 0  # samples before this offset belong to earlier segments
        self._run = 0  # voiced frames in a row while no segment is open
        self._levels: list[float] = []  # of the open segment's frames, from its first voiced one
        self._voiced: list[bool] = []  # likewise

    @property
    def keep_from(self) -> int:
        """Samples before this offset will not be part of any later segment, nor of the open one."""
        if self.open:
            return self.open.audio_start
        return max(self._taken, self.heard - self._run * FRAME - self._pre_roll, 0)

    def push(self, probability: float, level: float) -> list[Boundary]:
        """Take one more frame; at most a close and an open come of it.

        Args:
            probability: of speech, 0 to 1.
            level: the mean square of the samples.
        """
        self.heard += FRAME
        voiced = probability >= (self.settings.threshold if self.open is None else self.settings.release)
        self.voiced += FRAME if voiced else 0
        return self._listen(voiced, level) if self.open is None else self._grow(self.open, voiced, level)

    def flush(self, received: int) -> list[Boundary]:
        """Close what is open.

        Args:
            received: every sample so far, including those of the frame that is not complete.
        """
        if self.open is None:
            return []
        return [self._close(self._ending(self.open, received))]

    def _listen(self, voiced: bool, level: float) -> list[Boundary]:
        self._run = self._run + 1 if voiced else 0
        self._levels = [*self._levels, level][-self._run :] if voiced else []
        if self._run < self._onset_frames:
            return []
        start = max(self.heard - self._run * FRAME, self._taken)
        audio_start = max(start - self._pre_roll, self._taken)
        self.open = Segment(audio_start, start, self.heard, self.heard)
        self._voiced = [True] * self._run
        self._run = 0
        return [Opened(self.open)]

    def _grow(self, segment: Segment, voiced: bool, level: float) -> list[Boundary]:
        self._levels.append(level)
        self._voiced.append(voiced)
        end = self.heard if voiced else segment.end
        # Made anew rather than replaced: it is made of every frame of everybody's speech.
        segment = Segment(segment.audio_start, segment.start, end, min(end + self._tail, self.heard))
        self.open = segment
        if self.heard - segment.end >= self._hangover and not voiced:
            return [self._close(segment)]
        # The next frame must still fit. If it is voiced, all the silence before it is part of the segment
        # too.
        if self.heard + FRAME - segment.audio_start > self._longest:
            return self._cut(segment)
        return []

    def _ending(self, segment: Segment, received: int) -> Segment:
        return replace(segment, audio_end=min(segment.end + self._tail, received))

    def _close(self, segment: Segment) -> Closed:
        self.open = None
        self._taken = segment.audio_end
        self._levels, self._voiced = [], []
        return Closed(segment)

    def _cut(self, segment: Segment) -> list[Boundary]:
        """Split a segment that is too long between two frames: no sample lost, none in both parts."""
        at = self._quietest()
        before, after = self._voiced[:at], self._voiced[at:]
        if not any(after):
            # What follows the quietest point is silence: the speech is over, and only the hangover had not
            # passed.
            return [self._close(segment)]
        first_frame = self.heard - len(self._voiced) * FRAME
        cut = first_frame + at * FRAME
        first = replace(segment, end=first_frame + _last(before) * FRAME, audio_end=cut)
        start = cut + after.index(True) * FRAME
        levels = self._levels[at:]
        closed = self._close(first)
        self.open = self._ending(Segment(cut, start, segment.end, segment.end), self.heard)
        self._levels, self._voiced = levels, after
        return [closed, Opened(self.open)]

    def _quietest(self) -> int:
        """Index of the frame to cut before: the lowest level, over three frames, in the cut window.

        Three frames (96 ms): the gap between two words, rather than the closure inside one. The latest of
        equals.
        """
        levels = self._levels
        last = len(levels) - 1
        candidates = range(max(1, last - self._cut_frames + 1), last)
        return min(reversed(candidates), key=lambda i: levels[i - 1] + levels[i] + levels[i + 1])


def _last(voiced: list[bool]) -> int:
    """How many frames up to and with the last voiced one."""
    return len(voiced) - voiced[::-1].index(True)
