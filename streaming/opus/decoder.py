"""Opus in a container to mono float32 at 16 kHz.

Owns which container it is, and the codec. The bytes come as they are recorded, cut anywhere: a browser's MediaRecorder
writes Ogg or WebM, and no library takes them apart without waiting for more. The packets are decoded by PyAV. What the
container says of rate and channels holds; its times are not looked at: sound follows sound, as it was recorded. Knows
nothing of how a container is built, of speech, of messages, or of where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av
import numpy as np

from streaming.audio import AudioDecoder, AudioFormat, AudioFormatError
from streaming.job import Waveform
from streaming.opus import ogg, webm
from streaming.opus.demuxer import HEAD, Demuxer, damaged
from streaming.signal_check import Finding, SignalCheck

_RATE = 48000  # of every Opus decoder, whatever was recorded
_MOST_CHANNELS = 8
_BYTES_A_SECOND = 3000  # of speech, about
_LONGEST_DURATION = 5760  # samples of a packet: 120 ms

_TAGS = b"OpusTags"

_DEMUXERS: tuple[tuple[bytes, Callable[[], Demuxer]], ...] = (
    (ogg.MAGIC, ogg.OggDemuxer),
    (webm.MAGIC, webm.WebMDemuxer),
)


class OpusDecoder:
    """The audio of one stream: bytes in, samples out, as `AudioDecoder` gives them."""

    def __init__(self) -> None:
        self._samples = AudioDecoder(AudioFormat("pcm_f32le", _RATE, 1))
        self._signal_check = SignalCheck(_RATE)
        self._begun = b""  # too little to tell the container by
        self._demuxer: Demuxer | None = None
        self._codec: Any = None
        self._skip = 0
        self._lost = 0
        self._fault: AudioFormatError | None = None

    @property
    def heard(self) -> int:
        """Samples so far, at 48 kHz."""
        return self._samples.heard

    @property
    def invalid_samples(self) -> int:
        """Samples of packets that could not be decoded; each was taken as silence."""
        return self._lost + self._samples.invalid_samples

    @property
    def leftover(self) -> int:
        """Bytes of a packet that is not complete yet."""
        return len(self._begun) if self._demuxer is None else self._demuxer.leftover

    @property
    def remains(self) -> str:
        """What `leftover` is, in words."""
        return f"{self.leftover} bytes of an incomplete Opus packet: end the recording first"

    @property
    def delay(self) -> float:
        """Seconds of audio that came in and that the resampler has not given out yet."""
        return self._samples.delay

    def bytes_of(self, seconds: float) -> int:
        """Estimate how many bytes hold so much speech.

        Args:
            seconds: how much.

        Returns:
            About as many bytes, but not none.
        """
        return max(1, round(seconds * _BYTES_A_SECOND))

    def feed(self, data: bytes) -> Waveform:
        """Decode the next bytes.

        What came before a damaged place is given first, and the fault at the next call.

        Args:
            data: bytes of the container, of any number.

        Returns:
            Samples that `data` completed: shape `[n]`, possibly empty.

        Raises:
            AudioFormatError: `bad_format`; this is no Opus in Ogg or WebM, or its container is damaged.
        """
        if self._demuxer is None:
            data = self._begun + data
            self._demuxer = _demuxer_for(data)
            if self._demuxer is None:
                self._begun = data
                return self._samples.feed(b"")
            self._begun = b""
        if self._fault is not None:
            raise self._fault
        decoded: list[Waveform] = []
        try:
            for packet in self._demuxer.packets(data):
                decoded.append(self._decode(packet))  # noqa: PERF401 - what was decoded before a fault is kept
        except AudioFormatError as error:
            if not decoded:
                raise
            self._fault = error  # after what came before it was given
        return self._samples.feed(b"".join(each.astype("<f4").tobytes() for each in decoded))

    def forget_leftover(self) -> None:
        """Drop what is not complete: the stream ends here, however much there is of its last packet."""
        self._begun = b""
        if self._demuxer is not None:
            self._demuxer.forget_leftover()

    def findings(self) -> list[Finding]:
        """Return what is new to say of the form of the samples, if there is anything."""
        return self._signal_check.findings()

    def finish(self) -> Waveform:
        """End the stream, and return what the resampler still held."""
        self._signal_check.end()
        return self._samples.finish()

    def _decode(self, packet: bytes) -> Waveform:
        if packet.startswith(HEAD):
            self._open(packet)
            return _silence(0)
        if packet.startswith(_TAGS):
            return _silence(0)
        if self._codec is None:
            raise damaged("audio comes before the header (OpusHead) that says how to decode it")
        samples = self._sound(packet)
        skipped = min(self._skip, samples.size)
        self._skip -= skipped
        return samples[skipped:]

    def _open(self, head: bytes) -> None:
        if len(head) < 19 or not 1 <= head[9] <= _MOST_CHANNELS:
            raise damaged(f"its header (OpusHead) is too short, or does not have 1 to {_MOST_CHANNELS} channels")
        self._codec = av.CodecContext.create("opus", "r")
        # What the encoder put before the sound is dropped here: not every release of the library does it.
        self._codec.extradata = head[:10] + bytes(2) + head[12:]
        self._skip = int.from_bytes(head[10:12], "little")

    def _sound(self, packet: bytes) -> Waveform:
        """Decode one packet.

        Returns:
            Samples, mono at 48 kHz; silence of the packet's length where it cannot be decoded.
        """
        try:
            frames = self._codec.decode(av.Packet(packet)) if packet else []
        except (av.FFmpegError, ValueError):
            frames = []
        if frames:
            channels: Waveform = np.concatenate([frame.to_ndarray().T for frame in frames])
            mono: Waveform = channels.mean(axis=1, dtype=np.float32)
            self._signal_check.look(channels, mono)
            return mono.clip(-1, 1)
        silence = _silence(_duration(packet))
        self._lost += silence.size
        return silence


def _demuxer_for(data: bytes) -> Demuxer | None:
    """Choose the demuxer for what begins with `data`.

    Args:
        data: the first bytes of the stream.

    Returns:
        The demuxer; None while there is too little to tell.

    Raises:
        AudioFormatError: `bad_format`; it is neither of the containers.
    """
    for magic, demuxer in _DEMUXERS:
        if data.startswith(magic):
            return demuxer()
        if magic.startswith(data):
            return None
    raise AudioFormatError(
        "bad_format",
        "Opus must come in Ogg or WebM, from the beginning of the recording, as a browser's MediaRecorder sends it; "
        f"this begins with {data[:4]!r}",
    )


def _silence(samples: int) -> Waveform:
    return np.zeros(samples, np.float32)


def _duration(packet: bytes) -> int:
    """Read from a packet's first two bytes how many samples it has at 48 kHz (RFC 6716, 3.1)."""
    if not packet:
        return 0
    config, count = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[count]
    return min(frames * frame, _LONGEST_DURATION)
