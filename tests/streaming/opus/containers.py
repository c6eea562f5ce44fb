"""Opus in the containers that browsers and tools write: by libsndfile, by FFmpeg, and by hand."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import soundfile

from streaming.job import Waveform

SECONDS = 3.0
HEAD = b"OpusHead\x01\x01\x00\x00\x80\xbb\x00\x00\x00\x00\x00"


def tone() -> Waveform:
    """48 kHz: silence but for a burst of 440 Hz from 1.0 to 1.5 s."""
    time = np.arange(round(SECONDS * 48000)) / 48000
    burst = 0.5 * np.sin(2 * np.pi * 440 * time) * ((time >= 1.0) & (time < 1.5))
    return burst.astype(np.float32)


def ogg(channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone()] * channels, 1), 48000, format="OGG", subtype="OPUS")
    return file.getvalue()


def muxed(kind: str, *, live: bool = True, layout: str = "mono") -> bytes:
    """By FFmpeg. live: as a browser writes WebM, without going back to say how long anything is."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options={"live": "1"} if live and kind == "webm" else {}) as container:
        stream = container.add_stream("libopus", rate=48000, layout=layout)
        samples, size = tone(), 960
        for at in range(0, samples.size, size):
            channels = 1 if layout == "mono" else 2
            interleaved = np.repeat(samples[at : at + size], channels)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(interleaved, "flt", layout)
            frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


MADE = {
    "ogg": ogg(),
    "ogg, two channels": ogg(2),
    "ogg of ffmpeg": muxed("ogg"),
    "webm": muxed("webm"),
    "webm, two channels": muxed("webm", layout="stereo"),
    "webm with its sizes": muxed("webm", live=False),
}


def page(packet: bytes, *, first: bool = False, serial: int = 0) -> bytes:
    """Of Ogg, with one packet. Its checksum is not looked at: what carries it keeps it whole."""
    sizes = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    header = b"OggS\0" + bytes([2 * first]) + bytes(8) + serial.to_bytes(4, "little") + bytes(8)
    return header + bytes([len(sizes)]) + sizes + packet
