"""Opus as browsers and tools send it: real files of libsndfile's and FFmpeg's making, cut anywhere."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from containers import HEAD, MADE, SECONDS, page
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.audio import AudioFormatError
from streaming.job import SAMPLE_RATE, Waveform
from streaming.opus.decoder import OpusDecoder


def decode(data: bytes, pieces: list[int]) -> tuple[Waveform, OpusDecoder]:
    decoder, out, at, turn = OpusDecoder(), [], 0, 0
    while at < len(data):
        size = pieces[turn % len(pieces)]
        out.append(decoder.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*out, decoder.finish()]), decoder


@pytest.mark.parametrize("name", MADE)
def test_what_was_recorded_is_heard_at_its_time(name: str) -> None:
    heard, decoder = decode(MADE[name], [997])
    assert abs(len(heard) / SAMPLE_RATE - SECONDS) < 0.04
    assert heard.dtype == np.float32
    loud = np.flatnonzero(np.abs(heard) > 0.1) / SAMPLE_RATE
    assert abs(loud[0] - 1.0) < 0.004
    assert abs(loud[-1] - 1.5) < 0.004
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.1)
    assert (decoder.leftover, decoder.invalid_samples) == (0, 0)
    assert decoder.delay < 1 / SAMPLE_RATE


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(MADE)), pieces=st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_any_split_gives_the_same_samples(name: str, pieces: list[int]) -> None:
    np.testing.assert_array_equal(decode(MADE[name], pieces)[0], decode(MADE[name], [len(MADE[name])])[0])


@pytest.mark.parametrize("name", ["ogg", "webm"])
def test_one_that_breaks_off_is_heard_as_far_as_it_went(name: str) -> None:
    whole, _ = decode(MADE[name], [500])
    some, decoder = decode(MADE[name][:-700], [500])
    assert 0 < decoder.leftover < 4096
    assert "incomplete Opus packet" in decoder.remains
    np.testing.assert_allclose(some[: len(some) - 200], whole[: len(some) - 200], atol=1e-6)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"RIFF....WAVE", "must come in Ogg or WebM, from the beginning of the recording"),
        (bytes(64), "must come in Ogg or WebM"),
        (MADE["ogg"][:47] + bytes(100), "is missing where one should begin"),
        (MADE["webm"].replace(b"A_OPUS", b"A_AAC\0"), "has no Opus track"),
        (MADE["ogg"].replace(b"OpusHead", b"OpusHeap"), None),
    ],
)
def test_what_is_no_opus_is_said_so(data: bytes, says: str | None) -> None:
    if says is None:  # a stream of something else in Ogg is passed over, as one beside ours is
        assert len(decode(data, [100])[0]) == 0
        return
    with pytest.raises(AudioFormatError, match=says) as caught:
        decode(data, [100])
    assert caught.value.code == "bad_format"


def test_what_came_before_the_damage_is_given_first() -> None:
    decoder = OpusDecoder()
    at = MADE["ogg of ffmpeg"].rindex(b"OggS")
    heard = decoder.feed(MADE["ogg of ffmpeg"][:at] + bytes(100))
    assert len(heard) / SAMPLE_RATE > SECONDS / 2
    assert decoder.leftover
    with pytest.raises(AudioFormatError, match="should begin"):
        decoder.feed(b"")


def test_a_packet_that_cannot_be_decoded_is_silence_of_its_length() -> None:
    decoder = OpusDecoder()
    bad = b"\x03\xff"  # SILK, 10 ms, 63 frames: more than a packet may have
    decoder.feed(page(HEAD, first=True) + page(b"OpusTags") + page(bad))
    assert decoder.heard == decoder.invalid_samples == 5760


@given(data=st.binary(max_size=300), name=st.sampled_from(["ogg", "webm"]), at=st.integers(0, 2000))
def test_rubbish_is_a_complaint_or_silence(data: bytes, name: str, at: int) -> None:
    with contextlib.suppress(AudioFormatError):
        heard, _ = decode(MADE[name][:at] + data, [100])
        assert np.isfinite(heard).all()
