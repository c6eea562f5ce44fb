"""Sound files, of any kind that people's devices write, to float samples.

Owns which kinds are read, the decoder, how far it continues in a file that is damaged or was never ended, and what of
it is missing. Knows nothing of speech, of paths, or of where the file comes from.

FFmpeg's libraries (PyAV) do the work. They could do much more than is wanted of a stranger's file, such as following a
playlist to other files. So only containers that hold sound themselves, and only decoders of sound, are allowed.

A length is what was decoded: what a header announces is used only to say that something is missing. Times within a
container are ignored: sound follows sound.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import av
import numpy as np
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""Shape [samples, channels]."""

_CONTAINERS = (
    "aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "asf", "au", "avi", "caf", "flac", "flv", "gsm", "ircam", "matroska",
    "webm", "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "mp3", "mpegts", "nistsphere", "ogg", "rm", "tta", "voc", "w64",
    "wav", "wv",
)  # fmt: skip
_DECODERS = (
    "aac", "aac_latm", "ac3", "adpcm_g722", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "adpcm_swf", "adpcm_yamaha",
    "alac", "amrnb", "amrwb", "eac3", "flac", "g722", "g723_1", "g726", "g729", "gsm", "gsm_ms", "ilbc", "libopus",
    "libspeex", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "nellymoser", "opus", "pcm_alaw", "pcm_f32be",
    "pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_mulaw", "pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_s24le", "pcm_s32be",
    "pcm_s32le", "pcm_s8", "pcm_u8", "speex", "tta", "vorbis", "wavpack", "wmav1", "wmav2", "wmavoice",
)  # fmt: skip
_SAY_HOW_LONG = ("asf", "caf", "flac", "matroska", "mov", "ogg")
"""Containers whose length stands in the file. Of the others it is an estimate, by the first packets' rate of bits."""

_FAULTS = (av.FFmpegError, ValueError, OSError, EOFError)
_MOST_READS = 100_000
_BYTES_A_READ = 256
"""A reader goes back and forth in a file, but not for ever: so many reads, and one more for so many bytes of it."""

_EMPTY_PACKETS = 1000
"""Packets without sound after which a turn ends: a file that has none at all is gone through in pieces, too."""

_SLACK_SECONDS, _SLACK_SHARE = 0.5, 0.02
_UNKNOWN_SIZE = 0x7FF0_0000
"""Sizes from here on are what a recorder writes before it knows the size."""

_BEHIND = 4096  # bytes: tags may follow the sound
_MOST_CHUNKS = 1000  # of a WAV, in front of its sound and behind it
_ANOTHER = b"RIFF"  # begins a file of its own, which somebody joined to this one
_OGG_PAGE = 65307  # the longest
_FIRST_FRAME = 2048  # of an MP3, at most


class RecordingError(Exception):
    """The file is no recording that can be heard; the message says why, and what to do."""


class RecordingReader:
    """A file of sound, from its beginning.

    Args:
        file: can be read in any order; stays the caller's.

    Raises:
        RecordingError: it holds no sound that can be decoded.

    Attributes:
        sample_rate: of all that `read` gives, even if a chain of recordings changes it on the way.
        channels: likewise.
        announced: seconds that the file says it has, if it does.
        heard: samples so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._size = file.seek(0, io.SEEK_END)
        self._file = file
        self._head, self._tail = self._part(0, _OGG_PAGE), self._part(max(0, self._size - _OGG_PAGE), _OGG_PAGE)
        self._counted = self._is_counted()
        self._wav = _Wav(self._part, self._size) if self._head[:4] + self._head[8:12] == b"RIFFWAVE" else None
        file.seek(0)  # from here on the place in it is the decoder's
        try:
            self._container = _open(_Reader(file, self._size, self._wav.stale if self._wav else None))
        except _FAULTS as error:
            raise RecordingError(self._why_not(error)) from None
        stream = self._container.streams.best("audio")
        decoder = cast(Any, stream.codec_context if stream is not None else None)
        if decoder is None or not decoder.sample_rate or not decoder.channels:
            self._container.close()
            raise RecordingError("it contains no sound that can be decoded")
        self._stream = cast(av.AudioStream, stream)
        self.sample_rate: int = decoder.sample_rate
        self.channels: int = decoder.channels
        self.announced = self._announced()
        self.heard = 0
        self._lost = 0  # packets that could not be decoded
        self._broken: str | None = None
        self._fit = _Fit(self.sample_rate, self.channels)
        self._turns = self._decode()

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return self.heard / self.sample_rate

    def read(self) -> Samples | None:
        """Return the samples of the next packet, possibly none; None at the end.

        What is damaged is left out.
        """
        samples = next(self._turns, None)
        self.heard += 0 if samples is None else len(samples)
        return samples

    def missing(self) -> str | None:
        """Return, after the end, what of the recording was not heard, in words.

        Returns:
            None when it is whole, as far as one can tell.
        """
        remarks = []
        if self._lost:
            remarks.append(f"{self._lost} of its packets could not be decoded")
        if self._broken:
            remarks.append(f"it cannot be read further ({self._broken})")
        if self.announced is not None and self.announced - self.seconds > self._slack():
            remarks.append(f"it announces {self.announced:.1f} s of sound")
        elif cut := self._cut():
            remarks.append(cut)
        if remarks:
            return f"{self.seconds:.1f} s were heard; {'; '.join(remarks)}"
        return None if self.heard else "it contains no sound"

    def close(self) -> None:
        self._container.close()

    # --- decoding --------------------------------------------------------------------------------------------------

    def _decode(self) -> Iterator[Samples]:
        empty = 0
        for packet in self._packets():
            try:
                heard = [self._fit(frame) for frame in packet.decode()]
            except _FAULTS:
                self._lost += 1
                heard = []
            empty = 0 if heard else empty + 1
            if heard or empty % _EMPTY_PACKETS == 0:
                yield np.concatenate([*heard, np.empty((0, self.channels), np.float32)])
        yield self._fit.rest()

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._stream)
        except (av.error.PatchWelcomeError, av.error.ArgumentError):
            self._broken = "a recording in another format is appended to it: make a file of each"
        except _FAULTS as error:
            self._broken = _reason(error)

    # --- how much there should be ----------------------------------------------------------------------------------

    def _announced(self) -> float | None:
        kind = self._container.format.name.partition(",")[0]
        if kind not in _SAY_HOW_LONG and not (kind == "mp3" and self._counted):
            return None
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        # Of the whole file: of its pictures, where it has some.
        alone = len(self._container.streams) == 1 and self._container.duration is not None
        return cast(int, self._container.duration) / av.time_base if alone else None

    def _is_counted(self) -> bool:
        """Whether the first frame of an MP3 says how many there are."""
        tag = 0
        if self._head.startswith(b"ID3"):
            tag = 10 + sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(self._head[6:10])))
        first = self._part(tag, _FIRST_FRAME)
        return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))

    def _slack(self) -> float:
        return max(_SLACK_SECONDS, _SLACK_SHARE * (self.announced or 0))

    def _cut(self) -> str | None:
        """What the sizes in the file say of its end."""
        size = self._size_by_head()
        if size is not None and self._size < size < _UNKNOWN_SIZE:
            return f"the file is cut off: {size - self._size} bytes that it announces are missing"
        behind = self._wav.behind if self._wav is not None else _passed_over(size, self._size)
        if behind > _BEHIND:
            return f"{behind} bytes after the sound that it announces were skipped"
        if self._head.startswith(b"OggS"):
            last = self._tail.rfind(b"OggS")
            if last < 0 or len(self._tail) < last + 6 or not self._tail[last + 5] & 4:
                return "the recording breaks off: it was never finished"
        return None

    def _size_by_head(self) -> int | None:
        head = self._head
        match head[:4]:
            case b"RIFF":
                return 8 + int.from_bytes(head[4:8], "little")
            case b"FORM":
                return 8 + int.from_bytes(head[4:8], "big")
            case b".snd":
                return int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
        return None

    def _why_not(self, error: Exception) -> str:
        if self._size == 0:
            return "it is empty"
        if self._head[4:8] == b"ftyp" and isinstance(error, av.error.InvalidDataError):
            return "its index (moov) is missing: the recording was never finished, and its sound cannot be found"
        if isinstance(error, av.error.InvalidDataError | EOFError | av.error.ArgumentError):
            return "its format is unknown, or it is too short to contain sound"
        return _reason(error)

    def _part(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        return self._file.read(size)


class _Fit:
    """Frames to samples of one rate and one count of channels: those of the first."""

    def __init__(self, rate: int, channels: int) -> None:
        self._rate, self._channels = rate, channels
        self._from = rate
        self._resampler: Any = None

    def __call__(self, frame: av.AudioFrame) -> Samples:
        samples = _interleaved(frame)
        if samples.shape[1] != self._channels:
            samples = np.repeat(samples.mean(axis=1, keepdims=True, dtype=np.float32), self._channels, axis=1)
        if frame.sample_rate == self._from:
            return self._resample(samples, last=False)
        before = self.rest()
        self._from = frame.sample_rate
        if self._from != self._rate:
            self._resampler = soxr.ResampleStream(self._from, self._rate, self._channels, dtype="float32")
        return np.concatenate([before, self._resample(samples, last=False)])

    def rest(self) -> Samples:
        """What the resampler still held."""
        rest = self._resample(np.empty((0, self._channels), np.float32), last=True)
        self._resampler, self._from = None, self._rate
        return rest

    def _resample(self, samples: Samples, *, last: bool) -> Samples:
        if self._resampler is None:
            return samples
        # One channel comes back without its axis.
        return cast(Samples, self._resampler.resample_chunk(samples, last=last)).reshape(-1, self._channels)


def _interleaved(frame: av.AudioFrame) -> Samples:
    """A frame as it was decoded; full scale is 1.

    Raises:
        ValueError: PyAV cannot convert it.
    """
    raw: NDArray[Any] = frame.to_ndarray()
    values = raw.T if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels)
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / 128 - 1
    scale = -float(np.iinfo(values.dtype).min) if np.issubdtype(values.dtype, np.integer) else 1.0
    return (values / scale).astype(np.float32)


def _passed_over(announced: int | None, size: int) -> int:
    """Bytes of a file behind what its head announces."""
    return size - announced if announced is not None and _BEHIND < announced < size else 0


class _Wav:
    """The chunks of a WAV file, and whether the size of the one that holds its sound is to be believed.

    A recorder writes that size when it begins, perhaps now and then, and last when it ends. Where it died, more sound
    stands behind what it has announced, and nothing else does: other chunks come in a file that was ended. Sound does
    not look like a chunk, which has a name of four letters, and a size that fits.

    Args:
        part: returns what is in the file from a place on, so many bytes.
        size: of the file.

    Attributes:
        stale: where a size stands that is too small; None where it is right, or says itself that nobody knew.
        behind: bytes at the end of the file that are in no chunk, and not heard.
    """

    def __init__(self, part: Callable[[int, int], bytes], size: int) -> None:
        self._part = part
        self.stale: int | None = None
        announced = 8 + self._number(4)
        self.behind = _passed_over(announced, size)
        # A chunk that the file was cut off in is one all the same.
        self._limit = max(size, announced if announced < _UNKNOWN_SIZE else 0)
        sound = self._walk(12, b"data")
        if part(sound, 4) == b"data":
            self._judge(sound, size)

    def _judge(self, sound: int, size: int) -> None:
        chunk_size = self._number(sound + 4)
        end = sound + 8 + chunk_size
        if chunk_size == 0 or chunk_size >= _UNKNOWN_SIZE:
            self.behind = 0
            return
        # Some forget the byte that evens a size out.
        last = max(self._walk(end), self._walk(end + chunk_size % 2))
        self.behind = size - last
        if self.behind > _BEHIND and last == end + chunk_size % 2 and self._part(last, 4) != _ANOTHER:
            self.stale, self.behind = sound + 4, 0

    def _walk(self, at: int, until: bytes = _ANOTHER) -> int:
        """Where the chunks from `at` on end, or one of that name begins."""
        for _ in range(_MOST_CHUNKS):
            head = self._part(at, 8)
            size = int.from_bytes(head[4:], "little")
            is_one = len(head) == 8 and all(0x20 <= byte < 0x7F for byte in head[:4]) and at + 8 + size <= self._limit
            if not is_one or head[:4] == until:
                break
            at += 8 + size + size % 2
        return at

    def _number(self, at: int) -> int:
        return int.from_bytes(self._part(at, 4), "little")


class _Reader:
    """What FFmpeg sees of the file, in which the four bytes of a size at `unknown` read as not known."""

    def __init__(self, file: IO[bytes], size: int, unknown: int | None = None) -> None:
        self._file = file
        self._left = _MOST_READS + size // _BYTES_A_READ
        self._unknown = unknown

    def read(self, size: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError("it seeks back and forth without an end")
        if self._unknown is None:
            return self._file.read(size)
        at = self._unknown - self._file.tell()
        return _with_ones(self._file.read(size), at)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _with_ones(data: bytes, at: int) -> bytes:
    """`data` with the four bytes from `at` on, as far as they are in it, as ones."""
    first, end = max(at, 0), min(at + 4, len(data))
    return data[:first] + b"\xff" * (end - first) + data[end:] if first < end else data


def _open(reader: _Reader) -> av.container.InputContainer:
    options = {"format_whitelist": ",".join(_CONTAINERS), "codec_whitelist": ",".join(_DECODERS)}
    return av.open(reader, "r", container_options=options, metadata_errors="replace")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
