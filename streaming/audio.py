"""Wire formats to mono float32 at 16 kHz.

Owns the encodings, the mixing of channels, the resampler of one stream and its sample clock: sample *i* that comes out
was heard `i / SAMPLE_RATE` seconds after the stream's first sample, at whatever rate it came in. Knows nothing of
speech, of messages, or of where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import soxr
from numpy.typing import NDArray

from streaming.events import Encoding, Packed
from streaming.job import SAMPLE_RATE, Waveform
from streaming.signal_check import Finding, SignalCheck

FRAME = 512
"""Samples in a frame, the unit in which speech is judged (32 ms): what the voice detector is trained on."""

MIN_RATE, MAX_RATE = 8000, 192000
MAX_CHANNELS = 8

Code = Literal["bad_format", "bad_encoding"]


class AudioFormatError(ValueError):
    """A format that cannot be decoded.

    The message does not repeat what was sent: that may hold a secret, and only whoever knows the secrets can cut it
    out.

    Attributes:
        code: the word for it on the wire. The message says what to send instead.
        got: the value that was sent, if there was one; whole, and of any kind.
    """

    def __init__(self, code: Code, message: str, *got: object) -> None:
        super().__init__(message)
        self.code = code
        self.got = got


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What the bytes of a stream mean; channels are interleaved.

    Raises:
        AudioFormatError: `bad_encoding` or `bad_format`.
    """

    encoding: Encoding = "pcm_s16le"
    sample_rate: int = SAMPLE_RATE
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            known = ", ".join((*get_args(Encoding), *get_args(Packed)))
            raise AudioFormatError("bad_encoding", f"encoding must be one of {known}", self.encoding)
        _check_range("sample_rate", self.sample_rate, MIN_RATE, MAX_RATE)
        _check_range("channels", self.channels, 1, MAX_CHANNELS)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return _CODECS[self.encoding].width * self.channels

    def whole(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the samples of all channels in `data` that are complete, and the rest."""
        whole = len(data) - len(data) % self.frame_bytes
        return data[:whole], data[whole:]

    def bytes_of(self, seconds: float) -> int:
        """Return the number of bytes that hold so many seconds, in whole samples, at least one."""
        return max(1, round(seconds * self.sample_rate)) * self.frame_bytes


def _check_range(name: str, value: object, low: int, high: int) -> None:
    # bool is an int in Python, and what arrives here was JSON a moment ago.
    if not isinstance(value, int) or isinstance(value, bool):
        raise AudioFormatError("bad_format", f"{name} must be {low}..{high}, a whole number", value)
    if not low <= value <= high:
        raise AudioFormatError("bad_format", f"{name} must be {low}..{high}", value)


class AudioDecoder:
    """The audio of one stream: bytes in, samples out.

    Chunks of bytes may have any size and be split anywhere.

    Attributes:
        heard: samples of every channel that came in, at the rate they came in.
        invalid_samples: NaN or infinite input samples so far; each was taken as silence.
        leftover: bytes of a frame that is not complete yet. Not 0 after `finish`: the stream broke off inside one.
    """

    def __init__(self, audio_format: AudioFormat) -> None:
        self.format = audio_format
        self.invalid_samples = 0
        self._codec = _CODECS[audio_format.encoding]
        self._signal_check = SignalCheck(audio_format.sample_rate)
        self._rest = b""
        self.heard = 0
        self._given = 0  # samples that went out
        self._resampler: Any = None
        if audio_format.sample_rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(audio_format.sample_rate, SAMPLE_RATE, 1, dtype="float32")

    @property
    def leftover(self) -> int:
        return len(self._rest)

    @property
    def remains(self) -> str:
        """What `leftover` is, in words."""
        return _remains(self.format, self.leftover)

    def bytes_of(self, seconds: float) -> int:
        """Return the number of bytes that hold so many seconds, in whole samples, at least one."""
        return self.format.bytes_of(seconds)

    @property
    def delay(self) -> float:
        """Seconds of audio that came in and that the resampler has not given out yet (6 to 120 ms; 0 at 16 kHz).

        The samples that come out keep their place in time; they are only handed over later. Whoever measures a lag
        subtracts this from the time of arrival.
        """
        return max(0.0, self.heard / self.format.sample_rate - self._given / SAMPLE_RATE)

    def feed(self, data: bytes) -> Waveform:
        """Return the samples that `data` completed: shape `[n]`, possibly empty."""
        data, self._rest = self.format.whole(self._rest + data)
        return self._resample(self._decode(data), last=False)

    def forget_leftover(self) -> None:
        """Drop the frame that is not complete: the stream continues at a whole sample, and it will be sent again."""
        self._rest = b""

    def findings(self) -> list[Finding]:
        """Return what is new to say of the form of the samples."""
        return self._signal_check.findings()

    def finish(self) -> Waveform:
        """Return what the resampler still held.

        In all, `round(samples in * 16000 / rate)` samples (half upwards) came out.
        """
        self._signal_check.end()
        return self._resample(np.empty(0, np.float32), last=True)

    def _decode(self, data: bytes) -> Waveform:
        raw = self._codec.decode(data)
        finite = np.isfinite(raw)
        invalid = 0
        if not finite.all():
            invalid = int(raw.size - finite.sum())
            raw = np.where(finite, raw, np.float32(0))
        self.invalid_samples += invalid
        raw = raw.reshape(-1, self.format.channels)
        # A full scale of 1 is the promise of `Waveform`.
        clipped = np.clip(raw, -1, 1) if self._codec.unbounded else raw
        samples = clipped.mean(axis=1, dtype=np.float32) if self.format.channels > 1 else clipped[:, 0]
        self._signal_check.look(raw, samples, invalid)
        self.heard += samples.size
        return samples

    def _resample(self, samples: Waveform, *, last: bool) -> Waveform:
        if self._resampler is not None:
            samples = cast(Waveform, self._resampler.resample_chunk(samples, last=last))
        self._given += samples.size
        return samples


class SeparateDecoder:
    """The audio of a stream whose channels are heard each by itself: as `AudioDecoder`, but all channels come out."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self.format = audio_format
        self._decoders = [AudioDecoder(replace(audio_format, channels=1)) for _ in range(audio_format.channels)]
        self._width = audio_format.frame_bytes // audio_format.channels
        self._rest = b""

    @property
    def heard(self) -> int:
        """Samples of each channel that came in, at the rate they came in."""
        return self._decoders[0].heard

    @property
    def leftover(self) -> int:
        """Bytes of a sample of all channels that is not complete yet."""
        return len(self._rest)

    @property
    def remains(self) -> str:
        """What `leftover` is, in words."""
        return _remains(self.format, self.leftover)

    @property
    def delay(self) -> float:
        """As of `AudioDecoder`."""
        return self._decoders[0].delay

    def bytes_of(self, seconds: float) -> int:
        """Return the number of bytes that hold so many seconds, in whole samples, at least one."""
        return self.format.bytes_of(seconds)

    def feed(self, data: bytes) -> NDArray[np.float32]:
        """Return the samples that `data` completed: shape `[channels, n]`, `n` possibly 0."""
        data, self._rest = self.format.whole(self._rest + data)
        parts = np.frombuffer(data, np.uint8).reshape(-1, self.format.channels, self._width)
        return np.stack([decoder.feed(parts[:, at].tobytes()) for at, decoder in enumerate(self._decoders)])

    def forget_leftover(self) -> None:
        """As of `AudioDecoder`."""
        self._rest = b""

    def findings(self) -> list[Finding]:
        """Return what is new to say of the form of the samples, with the channel's number."""
        return [replace(found, channel=at) for at, each in enumerate(self._decoders) for found in each.findings()]

    def finish(self) -> NDArray[np.float32]:
        """Return what the resamplers still held: shape `[channels, n]`."""
        return np.stack([decoder.finish() for decoder in self._decoders])


def _remains(form: AudioFormat, leftover: int) -> str:
    return (
        f"{leftover} of the {form.frame_bytes} bytes of a sample of {form.encoding} with {form.channels} channel(s): "
        "send whole samples"
    )


# --- encodings ----------------------------------------------------------------------------------------------


def _pcm_s16le(data: bytes) -> Waveform:
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def _pcm_f32le(data: bytes) -> Waveform:
    return np.frombuffer(data, "<f4").astype(np.float32)


def _mulaw_table() -> Waveform:
    """ITU-T G.711 mu-law: code byte -> sample, shape `[256]`. Codes are sent inverted; the bias is 0x84."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    exponent, mantissa = code >> 4 & 7, code & 15
    magnitude = ((mantissa << 3) + 0x84 << exponent) - 0x84
    return _signed(magnitude, negative=code & 0x80 != 0)


def _alaw_table() -> Waveform:
    """ITU-T G.711 A-law: code byte -> sample, shape `[256]`.

    Even bits are sent inverted; the first segment is linear.
    """
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    linear = (mantissa << 4) + 8
    curved = (mantissa << 4) + 0x108 << np.maximum(exponent - 1, 0)
    return _signed(np.where(exponent == 0, linear, curved), negative=code & 0x80 == 0)


def _signed(magnitude: NDArray[np.int32], negative: NDArray[np.bool_]) -> Waveform:
    return (np.where(negative, -magnitude, magnitude) / 32768).astype(np.float32)


def _by_table(table: Waveform) -> Callable[[bytes], Waveform]:
    return lambda data: table[np.frombuffer(data, np.uint8)]


@dataclass(frozen=True, slots=True)
class _Codec:
    width: int  # bytes per sample
    decode: Callable[[bytes], Waveform]
    unbounded: bool = False  # samples may be anything, numbers or not


_CODECS: dict[Encoding, _Codec] = {
    "pcm_s16le": _Codec(2, _pcm_s16le),
    "pcm_f32le": _Codec(4, _pcm_f32le, unbounded=True),
    "mulaw": _Codec(1, _by_table(_mulaw_table())),
    "alaw": _Codec(1, _by_table(_alaw_table())),
}
