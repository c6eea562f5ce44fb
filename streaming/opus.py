"""Opus, in the containers that browsers and tools send it in, to mono float32 at 16 kHz.

Owns taking Ogg (RFC 7845) and WebM apart as they arrive, cut anywhere: a browser's MediaRecorder writes either, and no
library takes them apart without waiting for more. The packets are decoded by PyAV, which is imported when the first of
them comes. What the container says of rate and channels holds; its times are not looked at: sound follows sound, as it
was recorded. Knows nothing of speech, of messages, or of where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import av
import numpy as np

from streaming.audio import AudioDecoder, AudioFormat, FormatError
from streaming.form import Finding, Form
from streaming.job import Waveform

_RATE = 48000  # of every Opus decoder, whatever was recorded
_LONGEST_ELEMENT = 1 << 16  # packets have at most 61 KB
_MOST_CHANNELS = 8
_BYTES_A_SECOND = 3000  # of speech, about

_HEAD, _TAGS = b"OpusHead", b"OpusTags"


class OpusDecoder:
    """The audio of one stream: bytes in, samples out, as `AudioDecoder` gives them.

    Attributes:
        heard: samples so far, at 48 kHz.
        invalid_samples: samples of packets that could not be decoded; each was taken as silence.
        leftover: bytes of a packet that is not complete yet.
    """

    def __init__(self) -> None:
        self._samples = AudioDecoder(AudioFormat("pcm_f32le", _RATE, 1))
        self._form = Form(_RATE)
        self._begun = b""  # too little to tell the container by
        self._container: _Container | None = None
        self._codec: Any = None
        self._skip = 0
        self._lost = 0
        self._fault: FormatError | None = None

    @property
    def heard(self) -> int:
        return self._samples.heard

    @property
    def invalid_samples(self) -> int:
        return self._lost + self._samples.invalid_samples

    @property
    def leftover(self) -> int:
        return len(self._begun) if self._container is None else self._container.leftover

    @property
    def remains(self) -> str:
        """What `leftover` is, in words."""
        return f"{self.leftover} bytes of a packet of opus that is not complete: end the recording first"

    @property
    def delay(self) -> float:
        """As of `AudioDecoder`. Seconds."""
        return self._samples.delay

    def bytes_of(self, seconds: float) -> int:
        """About as many as hold so much speech."""
        return max(1, round(seconds * _BYTES_A_SECOND))

    def feed(self, data: bytes) -> Waveform:
        """Samples that `data` completed: shape [n], possibly empty.

        Raises:
            FormatError: `bad_format`; this is no Opus in Ogg or WebM, or its container is damaged.
        """
        if self._container is None:
            data = self._begun + data
            self._container = _container_of(data)
            if self._container is None:
                self._begun = data
                return self._samples.feed(b"")
            self._begun = b""
        if self._fault is not None:
            raise self._fault
        decoded: list[Waveform] = []
        try:
            for packet in self._container.packets(data):
                decoded.append(self._decode(packet))  # noqa: PERF401 - what was decoded before a fault is kept
        except FormatError as error:
            if not decoded:
                raise
            self._fault = error  # after what came before it was given
        return self._samples.feed(b"".join(each.astype("<f4").tobytes() for each in decoded))

    def forget_leftover(self) -> None:
        """The stream ends here, however much there is of its last packet."""
        self._begun = b""
        if self._container is not None:
            self._container.forget()

    def findings(self) -> list[Finding]:
        """As of `AudioDecoder`."""
        return self._form.findings()

    def finish(self) -> Waveform:
        """What the resampler still held."""
        self._form.end()
        return self._samples.finish()

    def _decode(self, packet: bytes) -> Waveform:
        if packet.startswith(_HEAD):
            self._open(packet)
            return _silence(0)
        if packet.startswith(_TAGS):
            return _silence(0)
        if self._codec is None:
            raise _damaged("audio comes before the head (OpusHead) that says how to decode it")
        samples = self._sound(packet)
        skipped = min(self._skip, samples.size)
        self._skip -= skipped
        return samples[skipped:]

    def _open(self, head: bytes) -> None:
        if len(head) < 19 or not 1 <= head[9] <= _MOST_CHANNELS:
            raise _damaged(f"its head (OpusHead) is too short, or has no channels from 1 to {_MOST_CHANNELS}")
        self._codec = av.CodecContext.create("opus", "r")
        # What the encoder put before the sound is dropped here: not every release of the library does it.
        self._codec.extradata = head[:10] + bytes(2) + head[12:]
        self._skip = int.from_bytes(head[10:12], "little")

    def _sound(self, packet: bytes) -> Waveform:
        """One packet: mono, 48 kHz. Silence of its length where it cannot be decoded."""
        try:
            frames = self._codec.decode(av.Packet(packet)) if packet else []
        except (av.FFmpegError, ValueError):
            frames = []
        if frames:
            channels: Waveform = np.concatenate([frame.to_ndarray().T for frame in frames])
            mono: Waveform = channels.mean(axis=1, dtype=np.float32)
            self._form.look(channels, mono)
            return mono.clip(-1, 1)
        silence = _silence(_duration(packet))
        self._lost += silence.size
        return silence


def _silence(samples: int) -> Waveform:
    return np.zeros(samples, np.float32)


def _duration(packet: bytes) -> int:
    """Samples of a packet at 48 kHz, by its first two bytes (RFC 6716, 3.1)."""
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
    return min(frames * frame, 5760)


def _damaged(what: str) -> FormatError:
    return FormatError("bad_format", f"the stream of opus cannot be read: {what}")


# --- containers ------------------------------------------------------------------------------------------------------


class _Container(Protocol):
    @property
    def leftover(self) -> int: ...

    def forget(self) -> None:
        """What is not complete."""

    def packets(self, data: bytes) -> Iterator[bytes]:
        """Those that `data` completed; the head (OpusHead) is the first of all. Raises: FormatError."""


def _container_of(data: bytes) -> _Container | None:
    """None while there is too little to tell.

    Raises:
        FormatError: `bad_format`; neither of the two.
    """
    for magic, kind in ((b"OggS", _Ogg), (b"\x1a\x45\xdf\xa3", _WebM)):
        if data.startswith(magic):
            return kind()
        if magic.startswith(data):
            return None
    raise FormatError(
        "bad_format",
        "opus must come in Ogg or WebM, from the recording's beginning, as a browser's MediaRecorder sends it; "
        f"this begins with {data[:4]!r}",
    )


class _Ogg:
    """Pages of one logical stream; those of others beside it are passed over."""

    def __init__(self) -> None:
        self._data = b""
        self._packet = b""
        self._serial: bytes | None = None

    @property
    def leftover(self) -> int:
        return len(self._data) + len(self._packet)

    def forget(self) -> None:
        self._data = self._packet = b""

    def packets(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while (page := self._page()) is not None:
            flags, serial, sizes, body = page
            first = flags & 2
            if first and body.startswith(_HEAD):
                self._serial, self._packet = serial, b""  # perhaps the next of a chain
            if serial == self._serial:
                yield from self._cut(sizes, body)

    def _page(self) -> tuple[int, bytes, bytes, bytes] | None:
        """Its flags, its stream, the sizes of its segments, its body; None where it is not all there."""
        data = self._data
        if not b"OggS".startswith(data[:4]):
            raise _damaged("where a page of Ogg should begin (OggS) there is none")
        if len(data) < 27 or len(data) < 27 + data[26]:
            return None
        start = 27 + data[26]
        sizes = data[27:start]
        end = start + sum(sizes)
        if len(data) < end:
            return None
        self._data = data[end:]
        return data[5], data[14:18], sizes, data[start:end]

    def _cut(self, sizes: bytes, body: bytes) -> Iterator[bytes]:
        at = 0
        for size in sizes:
            self._packet += body[at : at + size]
            at += size
            if len(self._packet) > _LONGEST_ELEMENT:
                raise _damaged("a packet has no end")
            if size < 255:
                packet, self._packet = self._packet, b""
                yield packet


_SEGMENT, _TRACKS, _TRACK, _CLUSTER, _GROUP = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675, 0xA0
_NUMBER, _CODEC, _PRIVATE, _SIMPLE_BLOCK, _BLOCK = 0xD7, 0x86, 0x63A2, 0xA3, 0xA1
_ENTERED = {_SEGMENT, _TRACKS, _TRACK, _CLUSTER, _GROUP}
_READ = {_NUMBER, _CODEC, _PRIVATE, _SIMPLE_BLOCK, _BLOCK}


class _WebM:
    """Elements of EBML, in the order in which they come: of those that hold others only the beginning matters."""

    def __init__(self) -> None:
        self._data = b""
        self._passing = 0  # bytes of an element that says nothing to us
        self._track: dict[int, bytes] = {}  # the one that is being described
        self._chosen: int | None = None

    @property
    def leftover(self) -> int:
        return len(self._data)

    def forget(self) -> None:
        self._data = b""

    def packets(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while (element := self._element()) is not None:
            kind, body = element
            if kind in (_TRACK, _CLUSTER):
                yield from self._choose()
            if kind in (_SIMPLE_BLOCK, _BLOCK):
                yield from self._block(body)
            elif kind not in _ENTERED:
                self._track[kind] = body

    def _element(self) -> tuple[int, bytes] | None:
        """The next that matters; None where it is not all there."""
        while True:
            passed = min(self._passing, len(self._data))
            self._data, self._passing = self._data[passed:], self._passing - passed
            head = self._header()
            if head is None:
                return None
            kind, size, at = head
            if kind in _ENTERED:
                self._data = self._data[at:]
                return kind, b""
            if size is None or (kind in _READ and size > _LONGEST_ELEMENT):
                raise _damaged(f"an element of WebM ({kind:#x}) has no end")
            if kind in _READ:
                if len(self._data) < at + size:
                    return None
                body, self._data = self._data[at : at + size], self._data[at + size :]
                return kind, body
            self._passing = at + size

    def _header(self) -> tuple[int, int | None, int] | None:
        """An element's kind, its size (None: unknown), and the length of both; None where they are not all there."""
        kind = _number(self._data, 0, 4, marked=True)
        if kind is None:
            return None
        size = _number(self._data, kind[1], 8, marked=False)
        if size is None:
            return None
        unknown = size[0] == (1 << 7 * (size[1] - kind[1])) - 1
        return kind[0], None if unknown else size[0], size[1]

    def _choose(self) -> Iterator[bytes]:
        """The first track that is Opus, once it has been described."""
        track, self._track = self._track, {}
        if self._chosen is None and track.get(_CODEC) == b"A_OPUS":
            self._chosen = int.from_bytes(track.get(_NUMBER, b""), "big")
            yield track.get(_PRIVATE, b"")

    def _block(self, body: bytes) -> Iterator[bytes]:
        number = _number(body, 0, 8, marked=False)
        if number is None or len(body) < number[1] + 3:
            raise _damaged("a block of WebM is too short")
        if self._chosen is None:
            raise _damaged("this WebM has no track of opus")
        if number[0] == self._chosen:
            if body[number[1] + 2] & 0x06:
                raise _damaged("its blocks hold several packets each (lacing)")
            yield body[number[1] + 3 :]


def _number(data: bytes, at: int, longest: int, *, marked: bool) -> tuple[int, int] | None:
    """One of EBML's numbers, whose leading zeros tell its length, and where it ends. None where it is not all there.

    marked: the bit that ends those stays in it, as in an element's kind.
    """
    if at >= len(data):
        return None
    length = 9 - data[at].bit_length()
    if length > longest:
        raise _damaged("where an element of WebM should begin there is none")
    if at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length], "big")
    return value if marked else value & ~(1 << 7 * length), at + length
