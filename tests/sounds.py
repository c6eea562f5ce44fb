"""Files of sound in the formats that people's devices write, made by the encoders that they use."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import cast

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

NONE: Mapping[str, str] = MappingProxyType({})

KINDS = {
    "webm": ("webm", "libopus", 48000, NONE),
    "webm, live": ("webm", "libopus", 48000, {"live": "1"}),
    "m4a": ("ipod", "aac", 44100, NONE),
    "mp4": ("mp4", "aac", 48000, {"movflags": "faststart"}),
    "mp4, live": ("mp4", "aac", 48000, {"movflags": "frag_keyframe+empty_moov"}),
    "aac": ("adts", "aac", 16000, NONE),
    "ogg opus": ("ogg", "libopus", 48000, NONE),
    "mp3": ("mp3", "libmp3lame", 44100, NONE),
    "mp3 without Xing": ("mp3", "libmp3lame", 16000, {"write_xing": "0"}),
    "flac": ("flac", "flac", 16000, NONE),
    "wav": ("wav", "pcm_s16le", 16000, NONE),
}
"""Name -> container, codec, rate, options of the muxer."""


def encoded(
    kind: str, samples: NDArray[np.int16], rate: int = 16000, *, layout: str = "mono", picture: bool = False
) -> bytes:
    """picture: with a stream of pictures beside the sound, as a telephone's video has it."""
    container, codec, out_rate, options = KINDS[kind]
    # On disk: what goes back over a file (faststart) opens it a second time.
    settings = dict(options)
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=container, options=settings) as out:
        sound = cast(av.AudioStream, out.add_stream(codec, rate=out_rate, layout=layout))
        if codec == "libopus":
            sound.bit_rate = 32000
        if picture:
            pictures = out.add_stream("mpeg4", rate=25)
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
            for number in range(round(25 * samples.size / rate)):
                shown = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 256, np.uint8), format="rgb24")
                shown.pts, shown.time_base = number, Fraction(1, 25)
                out.mux(pictures.encode(shown))
            out.mux(pictures.encode(None))
        resampler = av.AudioResampler(sound.format, layout, out_rate, sound.codec_context.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate = rate
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(sound.encode(each))
        out.mux(sound.encode(None))
        out.close()
        return file.read()


def written(
    format: str, samples: NDArray[np.int16] | NDArray[np.float64], rate: int = 16000, subtype: str | None = None
) -> bytes:
    """By libsndfile: another maker of the same formats."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def of_unknown_length(flac: bytes) -> bytes:
    """As an encoder writes it into a pipe: it cannot go back to say how many samples there were, nor what they were."""
    start = flac.index(b"fLaC") + 8
    about = int.from_bytes(flac[start + 10 : start + 18], "big") >> 36 << 36
    return flac[: start + 10] + about.to_bytes(8, "big") + bytes(16) + flac[start + 34 :]


def with_data_size(wav: bytes, size: int) -> bytes:
    """As a recorder leaves it that died before it wrote the sizes."""
    at = wav.index(b"data") + 4
    return wav[:4] + size.to_bytes(4, "little") + wav[8:at] + size.to_bytes(4, "little") + wav[at + 4 :]
