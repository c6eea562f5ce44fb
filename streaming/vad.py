"""Whether audio is speech: a probability for each frame of 512 samples (32 ms).

Owns the two detectors and how they are joined. WebRTC's, which costs microseconds and misses little but calls much
noise speech, is the gate, together with a check for what is louder than the quiet before. Silero's, which costs fifty
times that and judges well, decides while the gate or a recent moment says "maybe". So a silent stream costs
microseconds and a noisy one is judged well. Every stream has its own `Detector`; detectors share only the network's
weights. Knows nothing of utterances: `segment.py` has thresholds and endpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import webrtcvad

from streaming.audio import FRAME
from streaming.job import SAMPLE_RATE, Waveform
from streaming.silero import Silero, judge_frames

FRAME_SECONDS = FRAME / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class VadSettings:
    """How speech is detected.

    Attributes:
        kind: both stages, or either alone.
        aggressiveness: 0 to 3, of the WebRTC detector. At 2 the gate misses about one voiced frame in a hundred of what
            Silero hears, and those lie inside words, where `hold` keeps the gate open; at 3 it misses five.
        hold: seconds for which Silero continues to decide after the gate or Silero itself last said "maybe".
    """

    kind: Literal["two-stage", "silero", "webrtc"] = "two-stage"
    aggressiveness: int = 2
    hold: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("two-stage", "silero", "webrtc"):
            raise ValueError(f"kind must be two-stage, silero or webrtc, got {self.kind!r}")
        if self.aggressiveness not in (0, 1, 2, 3):
            raise ValueError(f"aggressiveness must be 0..3, got {self.aggressiveness!r}")
        if not self.hold >= 0:
            raise ValueError(f"hold must be 0 or more seconds, got {self.hold!r}")


class Detector:
    """One stream's detector: frames in, in order, a probability for each."""

    def __init__(self, settings: VadSettings | None = None) -> None:
        self.settings = settings or VadSettings()
        self._judge: _Judge
        match self.settings.kind:
            case "silero":
                self._judge = _Network()
            case "webrtc":
                self._judge = _Alone(_Webrtc(self.settings.aggressiveness))
            case _:
                self._judge = _TwoStage(self.settings)

    def __call__(self, frame: Waveform) -> float:
        """Return the probability that a frame, shape `[512]`, holds speech: 0 to 1.

        Raises:
            ValueError: the frame has another length.
        """
        return judge([self], [frame])[0]

    def ask(self, frame: _Frame) -> tuple[Silero | None, Sequence[Waveform]]:
        """Take the next frame, and return the network with the frames that it must hear of it; often none."""
        return self._judge.network, self._judge.ask(frame)

    def decide(self, probability: float) -> float:
        """Return the probability of the frame, given what the network said of the last that it heard, or 0."""
        return self._judge.decide(probability)

    def reset(self) -> None:
        """Forget all that was heard."""
        self._judge.reset()


def judge(detectors: Sequence[Detector], frames: Sequence[Waveform]) -> list[float]:
    """Return the probability of speech in the next frame of each of several streams.

    Those that need the network share its passes.

    Args:
        detectors: each once.
        frames: of the detectors, in order, of shape `[512]`.

    Raises:
        ValueError: a frame has another length.
    """
    asked = [detector.ask(frame) for detector, frame in zip(detectors, _looked_at(frames), strict=True)]
    said = [0.0] * len(asked)
    for turn in range(max(len(heard) for _, heard in asked)):
        rows = [(at, network, heard[turn]) for at, (network, heard) in enumerate(asked) if turn < len(heard)]
        networks = [network for _, network, _ in rows if network is not None]
        for (at, _, _), probability in zip(rows, judge_frames(networks, [row[2] for row in rows]), strict=True):
            said[at] = probability
    return [detector.decide(probability) for detector, probability in zip(detectors, said, strict=True)]


_PCM = 2 * FRAME
"""Bytes of a frame in 16 bits."""


class _Frame(NamedTuple):
    """A frame, as detectors look at it.

    Attributes:
        samples: in -1..1, shape `[512]`.
        pcm: the same in 16 bits.
        power: of the differences between one sample and the next: hum and rumble are loud, change slowly, and are no
            speech.
    """

    samples: Waveform
    pcm: bytes
    power: float


def _looked_at(frames: Sequence[Waveform]) -> list[_Frame]:
    """Return frames with all that is computed of each, which for many at once takes little longer than for one.

    Raises:
        ValueError: a frame has another length.
    """
    for frame in frames:
        if frame.shape != (FRAME,):
            raise ValueError(f"a frame has {FRAME} samples, got shape {frame.shape}")
    samples = np.stack(frames)
    np.clip(samples, -1.0, 1.0, out=samples)
    pcm = (samples * 32767).astype(np.int16).tobytes()
    steps = samples[:, 1:] - samples[:, :-1]
    powers = (np.einsum("ij,ij->i", steps, steps) / steps.shape[1]).tolist()
    return [_Frame(samples[at], pcm[at * _PCM : (at + 1) * _PCM], power) for at, power in enumerate(powers)]


class _Judge(Protocol):
    """How a detector decides: what it asks the network, and what it makes of the answer."""

    @property
    def network(self) -> Silero | None: ...

    def ask(self, frame: _Frame) -> Sequence[Waveform]: ...

    def decide(self, probability: float) -> float: ...

    def reset(self) -> None: ...


class _Network:
    """The network decides each frame."""

    def __init__(self) -> None:
        self.network = Silero()

    def reset(self) -> None:
        self.network.reset()

    def ask(self, frame: _Frame) -> Sequence[Waveform]:
        return (frame.samples,)

    def decide(self, probability: float) -> float:
        return probability


class _Alone:
    """WebRTC's detector decides, and no network is asked."""

    network = None

    def __init__(self, webrtc: _Webrtc) -> None:
        self._webrtc = webrtc
        self._found = 0.0

    def reset(self) -> None:
        self._webrtc.reset()

    def ask(self, frame: _Frame) -> Sequence[Waveform]:
        self._found = self._webrtc(frame.pcm)
        return ()

    def decide(self, probability: float) -> float:
        return self._found


class _Webrtc:
    """The share of a frame's 10 ms pieces that WebRTC's detector calls speech."""

    PIECE = 2 * SAMPLE_RATE // 100
    """Bytes."""

    def __init__(self, aggressiveness: int) -> None:
        self._aggressiveness = aggressiveness
        self.reset()

    def reset(self) -> None:
        # It has no reset of its own; a new one takes microseconds.
        self._vad = webrtcvad.Vad(self._aggressiveness)
        self._rest = b""

    def __call__(self, pcm: bytes) -> float:
        # 512 samples are no multiple of 160: what is left over waits for the next frame, so that no sample is
        # skipped.
        data, step = self._rest + pcm, self.PIECE
        pieces = len(data) // step
        self._rest = data[pieces * step :]
        voiced = sum([self._vad.is_speech(data[at : at + step], SAMPLE_RATE) for at in range(0, pieces * step, step)])
        return float(voiced / pieces)


class _Gate:
    """Might this be speech? WebRTC's detector says so, or it is louder than what was quiet lately.

    The first alone knows absolute levels: of speech at -60 dBFS (a far microphone, or one without gain) it misses
    the first words, and below that all of them. The second knows none: steady noise is its own measure, however loud.
    """

    LOUDER = 4.0  # in power: 6 dB
    QUIET = 1e-9  # power, -90 dBFS: what a stream is taken to begin with, so that its first word is heard
    FORGOTTEN = 10 ** (0.1 * FRAME_SECONDS)  # 1 dB a second: how fast the quiet of before no longer counts

    def __init__(self, aggressiveness: int) -> None:
        self._webrtc = _Webrtc(aggressiveness)
        self.reset()

    def reset(self) -> None:
        self._webrtc.reset()
        self._quiet = self.QUIET

    def __call__(self, frame: _Frame) -> bool:
        voiced = self._webrtc(frame.pcm) > 0
        louder = frame.power > self.LOUDER * self._quiet
        # The quietest that can be: a sample that is off by one in 16 bits now and then is no sound.
        self._quiet = max(min(frame.power, self._quiet * self.FORGOTTEN), self.QUIET / 100)
        return voiced or louder


class _TwoStage:
    """A cheap gate wakes Silero's detector."""

    WARM_UP = 32
    """Frames (1 s) that a woken Silero hears first. A recurrent network that wakes on a word's first frame doubts
    it (0.5 where it would have said 0.9). With these before it, and with what it remembers of the time before it
    fell asleep, it judges even a faint voice as if it had been awake all along."""

    MAYBE = 0.2
    """A Silero probability from which on it stays awake, whatever the gate says."""

    def __init__(self, settings: VadSettings) -> None:
        self._gate = _Gate(settings.aggressiveness)
        self.network = Silero()
        self._hold_frames = round(settings.hold / FRAME_SECONDS)
        self.reset()

    def reset(self) -> None:
        self._gate.reset()
        self.network.reset()
        self._asked = False
        self._hold = 0  # frames for which Silero stays awake
        self._unheard: deque[Waveform] = deque(maxlen=self.WARM_UP)  # the latest frames while it sleeps

    def ask(self, frame: _Frame) -> Sequence[Waveform]:
        if self._gate(frame):
            self._hold = self._hold_frames + 1
        self._asked = self._hold > 0
        if not self._asked:
            self._unheard.append(frame.samples.copy())  # alone, or it would keep the others' in memory
            return ()
        self._hold -= 1
        heard = (*self._unheard, frame.samples)
        self._unheard.clear()
        return heard

    def decide(self, probability: float) -> float:
        if self._asked and probability >= self.MAYBE:
            self._hold = self._hold_frames
        return probability
