"""Formats, the resampler and the sample clock."""

from __future__ import annotations

import io
import math
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from streaming.audio import AudioDecoder, AudioFormat, AudioFormatError, SeparateDecoder
from streaming.events import Encoding
from streaming.job import SAMPLE_RATE, Waveform

RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000, 12345)


def decode(audio_format: AudioFormat, data: bytes, pieces: list[int]) -> Waveform:
    """All samples of `data`, fed in pieces of the given sizes, over and over."""
    return fed(AudioDecoder(audio_format), data, pieces)


def fed(decoder: AudioDecoder | SeparateDecoder, data: bytes, pieces: list[int]) -> Waveform:
    out, at, turn = [], 0, 0
    while at < len(data):
        size = pieces[turn % len(pieces)]
        out.append(decoder.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*out, decoder.finish()], axis=-1)


any_stream = given(
    encoding=st.sampled_from(get_args(Encoding)),
    rate=st.sampled_from(RATES),
    channels=st.integers(1, 8),
    data=st.binary(max_size=4000),
    pieces=st.lists(st.integers(1, 997), min_size=1, max_size=5),
)


@any_stream
def test_any_split_gives_the_same_samples(
    encoding: Encoding, rate: int, channels: int, data: bytes, pieces: list[int]
) -> None:
    audio_format = AudioFormat(encoding, rate, channels)
    whole = decode(audio_format, data, [max(1, len(data))])
    assert np.array_equal(decode(audio_format, data, pieces), whole)
    samples_in = len(data) // audio_format.frame_bytes
    assert len(whole) == math.floor(samples_in * SAMPLE_RATE / rate + 0.5)


@any_stream
def test_each_separate_channel_is_what_it_is_alone(
    encoding: Encoding, rate: int, channels: int, data: bytes, pieces: list[int]
) -> None:
    separate = SeparateDecoder(AudioFormat(encoding, rate, channels))
    samples = fed(separate, data, pieces)
    width = separate.format.frame_bytes // channels
    whole = len(data) - len(data) % separate.format.frame_bytes
    assert (separate.leftover, separate.heard) == (len(data) - whole, whole // separate.format.frame_bytes)
    parts = np.frombuffer(data[:whole], np.uint8).reshape(-1, channels, width)
    for number in range(channels):
        alone = decode(AudioFormat(encoding, rate, 1), parts[:, number].tobytes(), [1 << 20])
        np.testing.assert_allclose(samples[number], alone, atol=1e-5)


def test_what_is_wrong_with_a_separate_channel_is_said_of_it() -> None:
    decoder = SeparateDecoder(AudioFormat("pcm_s16le", SAMPLE_RATE, 2))
    decoder.feed(np.stack([np.zeros(11 * SAMPLE_RATE), np.full(11 * SAMPLE_RATE, 99)], 1).astype("<i2").tobytes())
    assert [(found.code, found.channel) for found in decoder.findings()] == [("no_signal", 0)]
    decoder.feed(b"abc")
    assert decoder.remains.startswith("3 of the 4 bytes of a sample of pcm_s16le with 2 channel(s)")
    decoder.forget_leftover()
    assert decoder.leftover == 0


@given(rate=st.sampled_from(RATES), length=st.integers(1, 20000), piece=st.integers(7, 5000))
def test_resampling_a_stream_equals_resampling_the_whole(rate: int, length: int, piece: int) -> None:
    samples = np.random.default_rng(length).uniform(-0.9, 0.9, length).astype(np.float32)
    streamed = decode(AudioFormat("pcm_f32le", rate), samples.tobytes(), [piece])
    whole = samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
    np.testing.assert_allclose(streamed, whole, atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_sound_keeps_its_place_in_time(rate: int) -> None:
    time = np.arange(2 * rate) / rate
    burst = np.exp(-(((time - 1.25) / 0.002) ** 2)).astype(np.float32)
    heard = decode(AudioFormat("pcm_f32le", rate), burst.tobytes(), [641])
    assert abs(int(heard.argmax()) - 1.25 * SAMPLE_RATE) <= 1


@pytest.mark.parametrize("rate", RATES)
def test_the_delay_is_what_came_in_and_has_not_come_out(rate: int) -> None:
    decoder = AudioDecoder(AudioFormat("pcm_s16le", rate))
    fed = given_out = 0
    for _ in range(50):
        given_out += len(decoder.feed(bytes(2 * (rate // 50))))
        fed += rate // 50
        assert decoder.delay == pytest.approx(fed / rate - given_out / SAMPLE_RATE, abs=1e-9)
        assert decoder.delay < 0.15
    decoder.finish()
    assert decoder.delay < 1 / SAMPLE_RATE


@pytest.mark.parametrize(("encoding", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_g711_agrees_with_libsndfile_on_every_code(encoding: Encoding, subtype: str) -> None:
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), samplerate=16000, channels=1, format="RAW", subtype=subtype, dtype="float32"
    )
    np.testing.assert_array_equal(decode(AudioFormat(encoding), codes, [256]), expected)


def test_pcm_is_scaled_to_one_and_channels_are_averaged() -> None:
    stereo = np.array([[-32768, 32767], [16384, 0], [100, -100]], "<i2")
    heard = decode(AudioFormat("pcm_s16le", channels=2), stereo.tobytes(), [3])
    np.testing.assert_allclose(heard, [-0.5 / 32768, 0.25, 0], atol=1e-7)


def test_what_is_no_number_is_silence_and_is_counted() -> None:
    decoder = AudioDecoder(AudioFormat("pcm_f32le"))
    heard = decoder.feed(np.array([0.5, np.nan, np.inf, -np.inf, 1e30, -0.25], "<f4").tobytes())
    np.testing.assert_array_equal(heard, np.array([0.5, 0, 0, 0, 1, -0.25], np.float32))
    assert decoder.invalid_samples == 3


def test_a_signalling_nan_raises_no_warning() -> None:
    decoder = AudioDecoder(AudioFormat("pcm_f32le", 48000))
    decoder.feed(bytes.fromhex("0100807f") * 100)
    assert decoder.invalid_samples == 100


def test_bytes_of_a_broken_frame_are_left_over_after_what_was_whole() -> None:
    decoder = AudioDecoder(AudioFormat("pcm_s16le", channels=2))
    assert len(decoder.feed(bytes(11))) == 2
    assert decoder.leftover == 3
    assert len(decoder.feed(bytes(1))) == 1
    assert decoder.leftover == 0


KNOWN = "encoding must be one of pcm_s16le, pcm_f32le, mulaw, alaw, opus"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ({"sample_rate": 12}, "bad_format", "sample_rate must be 8000..192000"),
        ({"sample_rate": 192001}, "bad_format", "sample_rate must be 8000..192000"),
        ({"sample_rate": "16000"}, "bad_format", "sample_rate must be 8000..192000, a whole number"),
        ({"sample_rate": 16000.0}, "bad_format", "sample_rate must be 8000..192000, a whole number"),
        ({"channels": 0}, "bad_format", "channels must be 1..8"),
        ({"channels": True}, "bad_format", "channels must be 1..8, a whole number"),
        ({"channels": None}, "bad_format", "channels must be 1..8, a whole number"),
        ({"encoding": "mp3"}, "bad_encoding", KNOWN),
        ({"encoding": ["mulaw"]}, "bad_encoding", KNOWN),
        ({"encoding": "x" * 5000}, "bad_encoding", KNOWN),
    ],
)
def test_a_format_that_cannot_be_is_refused(arguments: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(AudioFormatError) as caught:
        AudioFormat(**arguments)
    assert caught.value.code == code
    assert str(caught.value) == message
    assert caught.value.got == tuple(arguments.values())  # whole: whoever cuts it knows what must not be cut in two
