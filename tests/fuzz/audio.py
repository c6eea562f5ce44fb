"""Audio: the encodings of a stream, and sound files.

`audio`: whatever bytes come, and wherever they are cut, the same samples, finite and at most full scale, as many as the
clock says. `files`: a file that is damaged is read as far as it goes, or is a complaint.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, get_args

import numpy as np
import soundfile
import sounds
from hypothesis import strategies as st

from streaming.audio import AudioDecoder, AudioFormat, AudioFormatError
from streaming.events import Encoding
from streaming.job import SAMPLE_RATE
from streaming.recording import RecordingError, RecordingReader

from .native import VALUES as SENT
from .rounds import Target

VALUES = SENT | st.text(max_size=500)
FORMATS = st.tuples(
    st.sampled_from(get_args(Encoding)) | st.sampled_from(get_args(Encoding)) | VALUES,
    st.sampled_from([8000, 16000, 44100, 48000, 192000]) | st.integers(7999, 192001) | VALUES,
    st.integers(0, 9) | st.just(1) | VALUES,
)
BYTES = st.binary(max_size=4000) | st.builds(
    lambda values: np.array(values, "<f4").tobytes(), st.lists(st.floats(width=32), max_size=200)
)


def decode(example: tuple[tuple[Any, Any, Any], bytes, list[int]]) -> None:
    (encoding, rate, channels), whole, cuts = example
    try:
        audio_format = AudioFormat(encoding, rate, channels)
    except AudioFormatError as error:
        assert error.code in ("bad_format", "bad_encoding")
        assert len(str(error)) < 300
        return
    places = sorted(each % (len(whole) + 1) for each in cuts)
    pieces = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    (one, first), (other, second) = decoded(audio_format, [whole]), decoded(audio_format, pieces)
    frames = len(whole) // audio_format.frame_bytes
    assert first.leftover == second.leftover == len(whole) % audio_format.frame_bytes
    assert first.invalid_samples == second.invalid_samples
    assert len(one) == len(other) == (frames * SAMPLE_RATE * 2 + rate) // (2 * rate)
    assert np.isfinite(one).all()
    assert np.abs(one).max(initial=0) <= (1 if rate == SAMPLE_RATE else 2)  # a resampler overshoots at an edge
    np.testing.assert_allclose(one, other, atol=1e-5)


def decoded(audio_format: AudioFormat, pieces: list[bytes]) -> tuple[Any, AudioDecoder]:
    decoder = AudioDecoder(audio_format)
    given = [decoder.feed(piece) for piece in pieces]
    return np.concatenate([*given, decoder.finish()]), decoder


# --- files -----------------------------------------------------------------------------------------------------------


def whole_file(kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(4000) / 9).astype(np.float32), 16000, format=kind)
    return buffer.getvalue()


HUM = np.round(9000 * np.sin(np.arange(4000) / 9)).astype(np.int16)
WHOLE = {kind: whole_file(kind) for kind in ("WAV", "FLAC", "OGG", "AIFF", "AU", "W64", "CAF")} | {
    kind: sounds.encoded(kind, HUM) for kind in sounds.KINDS
}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(sorted(WHOLE)).map(WHOLE.__getitem__)))
    for _ in range(draw(st.integers(0, 6))):
        # The heads of files are where the lengths are.
        at = draw(st.integers(0, min(len(data) - 1, 200)) | st.integers(0, len(data) - 1))
        data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


def read(data: bytes) -> None:
    with contextlib.suppress(RecordingError), contextlib.closing(RecordingReader(io.BytesIO(data))) as file:
        for _ in range(1000):  # a head may promise hours
            if (samples := file.read()) is None:
                break
            assert samples.shape[1] == file.channels
        file.missing()


TARGETS = (
    Target("audio", st.tuples(FORMATS, BYTES, st.lists(st.integers(0, 2**16), max_size=6)), decode, size=300),
    Target("files", damaged() | st.binary(max_size=100), read, size=300),
)
