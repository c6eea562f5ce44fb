"""Files as telephones, browsers and recorders write them, whole, damaged and never ended."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import KINDS, encoded, of_unknown_length, with_data_size, written

from streaming import recording
from streaming.recording import RecordingError, RecordingReader, Samples

SECONDS = 6.0
SIZE = round(SECONDS * 16000)


def burst() -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """16 kHz: a murmur, and 440 Hz from 4.0 to 5.0 s."""
    time = np.arange(SIZE) / 16000
    loud = 0.5 * np.sin(2 * np.pi * 440 * time) * ((time >= 4.0) & (time < 5.0))
    murmur = 0.01 * np.random.default_rng(1).standard_normal(SIZE)
    return np.round(32767 * (loud + murmur)).astype(np.int16)


SOUND = burst()
MADE = {kind: encoded(kind, SOUND) for kind in KINDS} | {
    "vorbis": written("OGG", SOUND),
    "flac of libsndfile": written("FLAC", SOUND),
    "mp3 of libsndfile": written("MP3", SOUND),
    "aiff": written("AIFF", SOUND),
    "au": written("AU", SOUND),
}


def heard(data: bytes) -> tuple[Samples, RecordingReader]:
    recording = RecordingReader(io.BytesIO(data))
    pieces = []
    while (piece := recording.read()) is not None:
        pieces.append(piece)
    return np.concatenate(pieces), recording


def missing(data: bytes) -> str:
    return heard(data)[1].missing() or ""


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_is_heard_at_its_time_and_as_loud_as_it_is(kind: str) -> None:
    samples, file = heard(MADE[kind])
    assert file.missing() is None
    assert file.seconds == len(samples) / file.sample_rate == pytest.approx(SECONDS, abs=0.12)
    (loud,) = np.nonzero(np.abs(samples[:, 0]) > 0.2)
    assert loud[0] / file.sample_rate == pytest.approx(4.0, abs=0.08)
    assert loud[-1] / file.sample_rate == pytest.approx(5.0, abs=0.08)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("kind", ["mp4", "m4a"])
def test_a_video_is_heard_without_its_pictures(kind: str) -> None:
    _, file = heard(encoded(kind, SOUND, picture=True))
    assert (file.missing(), file.channels) == (None, 1)
    assert file.seconds == pytest.approx(SECONDS, abs=0.12)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"]
)
def test_every_form_of_samples_has_its_full_scale(subtype: str) -> None:
    both = np.stack([SOUND / 32768, SOUND / 65536], 1)
    samples, file = heard(written("WAV", both, subtype=subtype))
    assert (file.channels, file.sample_rate) == (2, 16000)
    np.testing.assert_allclose(samples[:SIZE], both, atol=0.1 if "ADPCM" in subtype else 0.03)


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 8, 0xFFFFFFFF])
def test_a_wav_that_says_no_size_is_heard_to_its_end(size: int) -> None:
    samples, file = heard(with_data_size(MADE["wav"], size))
    assert len(samples) == SIZE
    assert file.missing() is None


def test_a_flac_of_unknown_length_is_whole() -> None:
    samples, file = heard(of_unknown_length(MADE["flac of libsndfile"]))
    np.testing.assert_array_equal(samples[:, 0], SOUND / np.float32(32768))
    assert (file.announced, file.missing()) == (None, None)


@pytest.mark.parametrize("first", ["ogg opus", "vorbis"])
def test_a_chain_is_heard_link_by_link(first: str) -> None:
    samples, file = heard(MADE[first] * 3)
    assert file.missing() is None
    assert file.seconds == pytest.approx(3 * SECONDS, abs=0.12)
    loud = np.abs(samples[:, 0]) > 0.2
    for at in (4.5, 10.5, 16.5):
        assert loud[round((at - 0.4) * file.sample_rate) : round((at + 0.4) * file.sample_rate)].mean() > 0.5


def test_a_part_of_another_rate_and_with_more_channels_keeps_the_clock() -> None:
    other = encoded("mp3", SOUND, layout="stereo")
    samples, file = heard(MADE["mp3 without Xing"] + other)
    assert (file.sample_rate, file.channels) == (16000, 1)
    assert file.seconds == pytest.approx(2 * SECONDS, abs=0.3)
    (loud,) = np.nonzero(np.abs(samples[:, 0]) > 0.2)
    assert loud[-1] / 16000 == pytest.approx(SECONDS + 5.0, abs=0.3)


@pytest.mark.parametrize("second", [written("OGG", np.stack([SOUND] * 2, 1)), MADE["ogg opus"]])
def test_a_link_of_another_kind_is_said(second: bytes) -> None:
    _, file = heard(MADE["vorbis"] + second)
    assert file.seconds == SECONDS
    assert "a recording in another format is appended to it" in (file.missing() or "")


def test_a_length_is_what_was_decoded_and_no_estimate() -> None:
    # Loud at first, then silence in few bits: by the rate of the first frames it would be several times as long.
    varied = np.concatenate([SOUND, np.zeros(SIZE, np.int16)])
    samples, file = heard(written("MP3", varied)[:-1])
    assert file.seconds == len(samples) / 16000 == pytest.approx(2 * SECONDS, abs=0.12)


# --- recorders that died ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(MADE) - {"m4a"}))
def test_one_that_breaks_off_is_heard_as_far_as_it_goes(kind: str) -> None:
    data = MADE[kind]
    samples, file = heard(data[: round(0.7 * len(data))])
    assert 0.4 * SECONDS < file.seconds < 0.95 * SECONDS
    assert np.abs(samples).max() < 1


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("wav", "the file is cut off: "),
        ("aiff", "the file is cut off: "),
        ("au", "the file is cut off: "),
        ("flac of libsndfile", "it announces 6.0 s of sound"),
        ("mp3", "it announces 6.0 s of sound"),
        ("mp4", "it announces 6.0 s of sound"),
        ("webm", "it announces 6.0 s of sound"),
        ("ogg opus", "the recording breaks off: it was never finished"),
        ("vorbis", "the recording breaks off: it was never finished"),
    ],
)
def test_what_is_missing_is_said(kind: str, says: str) -> None:
    data = MADE[kind]
    said = missing(data[: round(0.7 * len(data))])
    assert says in said
    assert "s were heard; " in said


def sizes(wav: bytes, riff: int | None, data: int) -> bytes:
    """`wav` with those sizes in its head. riff: None: as it is."""
    changed = with_data_size(wav, data)
    return changed[:4] + (wav[4:8] if riff is None else riff.to_bytes(4, "little")) + changed[8:]


def chunk(name: bytes, body: bytes) -> bytes:
    return name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)


TAGS = chunk(b"LIST", b"INFO" + chunk(b"ICMT", b"kitchen " * 1000)) + chunk(b"id3 ", bytes(4999))


@pytest.mark.parametrize("riff", [None, 0, 32036, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["wav", "mu-law", "odd"])
def test_sound_behind_a_size_of_long_ago_is_heard(kind: str, riff: int | None) -> None:
    """The recorder died before it wrote the next."""
    subtype = {"wav": "PCM_16", "mu-law": "ULAW", "odd": "PCM_24"}[kind]
    whole, _ = heard(written("WAV", SOUND, subtype=subtype))
    samples, file = heard(sizes(written("WAV", SOUND, subtype=subtype), riff, 32001 if kind == "odd" else 32000))
    assert file.missing() is None
    np.testing.assert_array_equal(samples, whole)


@pytest.mark.parametrize("riff", [None, 0, 100, 0xFFFFFFFF])
def test_what_stands_in_chunks_behind_the_sound_is_not_heard(riff: int | None) -> None:
    size = 2 * SIZE
    samples, file = heard(sizes(written("WAV", SOUND), riff, size) + TAGS)
    np.testing.assert_array_equal(samples[:, 0], SOUND / np.float32(32768))
    assert file.missing() is None


def test_a_chunk_that_was_not_evened_out_is_one() -> None:
    wav = written("WAV", (SOUND[: SIZE - 1] / 32768).astype(np.float64), subtype="PCM_U8")
    assert wav.index(b"data") % 2 == 0
    samples, file = heard(wav.removesuffix(b"\0") + TAGS)
    assert (len(samples), file.missing()) == (SIZE - 1, None)


def test_tags_that_the_file_was_cut_off_in_are_no_sound() -> None:
    whole = written("WAV", SOUND) + TAGS
    samples, file = heard(whole[:4] + (len(whole) - 8).to_bytes(4, "little") + whole[8:-1000])
    assert len(samples) == SIZE
    assert "the file is cut off: 1000 bytes" in (file.missing() or "")


@pytest.mark.parametrize("behind", [TAGS + b"\xff" * 5000, b"RIFF"], ids=["tags and more", "another file"])
def test_what_is_not_heard_behind_the_sound_is_said(behind: bytes) -> None:
    data = MADE["wav"] + (MADE["wav"] if behind == b"RIFF" else behind)
    samples, file = heard(data)
    assert len(samples) == SIZE
    said = file.missing() or ""
    assert said.startswith("6.0 s were heard; ")
    assert said.endswith("bytes after the sound that it announces were skipped")


@given(head=st.binary(max_size=200), numbers=st.lists(st.integers(0, 2**32 - 1), max_size=3))
@settings(max_examples=50)
def test_chunks_of_any_kind_have_an_end(head: bytes, numbers: list[int]) -> None:
    data = b"RIFF" + b"".join(number.to_bytes(4, "little") for number in numbers) + b"WAVEfmt data" + head
    wav = recording._Wav(lambda at, size: data[at : at + size], len(data))
    assert wav.stale is None
    assert wav.behind <= len(data)


@pytest.mark.parametrize("kind", ["flac of libsndfile", "mp3", "ogg opus", "aac", "mp4", "webm, live"])
def test_behind_a_damaged_place_it_goes_on(kind: str) -> None:
    data = bytearray(MADE[kind])
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(2).bytes(300)
    samples, file = heard(bytes(data))
    (loud,) = np.nonzero(np.abs(samples[:, 0]) > 0.2)
    assert loud.size
    assert file.seconds > 0.75 * SECONDS


def test_tags_at_the_end_are_no_damage() -> None:
    assert missing(MADE["mp3"] + b"TAG" + bytes(125)) == ""
    assert missing(MADE["wav"] + b"LIST" + (4).to_bytes(4, "little") + b"INFO") == ""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"no sound at all", "its format is unknown"),
        (bytes(5000), "its format is unknown"),
        (MADE["m4a"][: len(MADE["m4a"]) // 2], r"its index \(moov\) is missing: the recording was never finished"),
        (MADE["vorbis"][:100], "too short to contain sound"),
    ],
    ids=["empty", "text", "zeros", "no index", "cut"],  # what is made differs from one process to the next
)
def test_what_is_no_recording_is_said_so(data: bytes, says: str) -> None:
    with pytest.raises(RecordingError, match=says):
        RecordingReader(io.BytesIO(data))


def test_an_empty_recording_says_that_it_is() -> None:
    samples, file = heard(written("WAV", SOUND[:0]))
    assert (len(samples), file.missing()) == (0, "it contains no sound")


# --- strangers' files ------------------------------------------------------------------------------------------------


def test_nothing_of_a_file_leads_to_another(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(MADE["wav"])
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {secret}\n",
        f"<MPD><Period><AdaptationSet><BaseURL>file://{secret}</BaseURL></AdaptationSet></Period></MPD>",
    ]
    for each in lists:
        with pytest.raises(RecordingError):
            RecordingReader(io.BytesIO(each.encode()))


def test_a_file_that_leads_back_and_forth_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_MOST_READS", 1)
    monkeypatch.setattr(recording, "_BYTES_A_READ", 1 << 30)
    with pytest.raises(RecordingError, match="back and forth"):
        RecordingReader(io.BytesIO(encoded("m4a", np.tile(SOUND, 20))))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(MADE)),
    at=st.integers(0, 40000),
    noise=st.binary(min_size=1, max_size=400),
    end=st.integers(1, 60000),
)
def test_any_damage_is_a_complaint_or_sound(kind: str, at: int, noise: bytes, end: int) -> None:
    data = bytearray(MADE[kind])
    data[at : at + len(noise)] = noise
    try:
        samples, file = heard(bytes(data[:end]))
    except RecordingError:
        return
    assert samples.shape == (file.heard, file.channels)
    file.missing()
