"""WebM to packets of Opus (RFC 8794, RFC 9559).

Owns the elements of EBML, and which track is read: the first that is Opus. Elements come in their order; of those that
hold others only the beginning matters, for a browser that records does not know how long they will be. Knows nothing of
how a packet is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

from streaming.opus.demuxer import LONGEST_PACKET, damaged

MAGIC = b"\x1a\x45\xdf\xa3"
"""How a file begins: the id of EBML's own header."""

_SEGMENT, _TRACKS, _TRACK, _CLUSTER, _GROUP = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675, 0xA0
_NUMBER, _CODEC, _PRIVATE, _SIMPLE_BLOCK, _BLOCK = 0xD7, 0x86, 0x63A2, 0xA3, 0xA1
_ENTERED = {_SEGMENT, _TRACKS, _TRACK, _CLUSTER, _GROUP}
_READ = {_NUMBER, _CODEC, _PRIVATE, _SIMPLE_BLOCK, _BLOCK}

_LACING = 0x06  # flags of a block: several packets in one


class WebMDemuxer:
    """The elements of one WebM file or stream in, packets out. See `Demuxer`."""

    def __init__(self) -> None:
        self._data = b""
        self._passing = 0  # bytes of an element that says nothing to us
        self._track: dict[int, bytes] = {}  # the one that is being described
        self._chosen: int | None = None

    @property
    def leftover(self) -> int:
        """Bytes of an element that is not complete yet."""
        return len(self._data)

    def forget_leftover(self) -> None:
        """Drop what is not complete: the stream ends here."""
        self._data = b""

    def packets(self, data: bytes) -> Iterator[bytes]:
        """Find the packets that `data` completes.

        Args:
            data: the next bytes of the elements.

        Yields:
            The packets in order. The head is the first of all.

        Raises:
            AudioFormatError: `bad_format`; an element is damaged, or there is no track of Opus.
        """
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
        """Take the next element that matters; None where it is not all there."""
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
            if size is None or (kind in _READ and size > LONGEST_PACKET):
                raise damaged(f"an element of WebM ({kind:#x}) has no end")
            if kind in _READ:
                if len(self._data) < at + size:
                    return None
                body, self._data = self._data[at : at + size], self._data[at + size :]
                return kind, body
            self._passing = at + size

    def _header(self) -> tuple[int, int | None, int] | None:
        """Read an element's kind and size.

        Returns:
            The kind, the size (None: unknown), and the length of both; None where they are not all there.
        """
        kind = _number(self._data, 0, 4, marked=True)
        if kind is None:
            return None
        size = _number(self._data, kind[1], 8, marked=False)
        if size is None:
            return None
        unknown = size[0] == (1 << 7 * (size[1] - kind[1])) - 1
        return kind[0], None if unknown else size[0], size[1]

    def _choose(self) -> Iterator[bytes]:
        """Choose the first track that is Opus, once it has been described.

        Yields:
            Its head.
        """
        track, self._track = self._track, {}
        if self._chosen is None and track.get(_CODEC) == b"A_OPUS":
            self._chosen = int.from_bytes(track.get(_NUMBER, b""), "big")
            yield track.get(_PRIVATE, b"")

    def _block(self, body: bytes) -> Iterator[bytes]:
        number = _number(body, 0, 8, marked=False)
        if number is None or len(body) < number[1] + 3:
            raise damaged("a block of WebM is too short")
        if self._chosen is None:
            raise damaged("this WebM has no Opus track")
        if number[0] == self._chosen:
            if body[number[1] + 2] & _LACING:
                raise damaged("its blocks hold several packets each (lacing)")
            yield body[number[1] + 3 :]


def _number(data: bytes, at: int, longest: int, *, marked: bool) -> tuple[int, int] | None:
    """Read one of EBML's numbers, whose leading zeros tell its length.

    Args:
        data: the bytes that it is in.
        at: where it begins.
        longest: bytes that it may have.
        marked: whether the bit that ends the leading zeros stays in it, as in an element's kind.

    Returns:
        The number, and where it ends. None where it is not all there.

    Raises:
        AudioFormatError: `bad_format`; it is longer than that.
    """
    if at >= len(data):
        return None
    length = 9 - data[at].bit_length()
    if length > longest:
        raise damaged("an element of WebM is missing where one should begin")
    if at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length], "big")
    return value if marked else value & ~(1 << 7 * length), at + length
