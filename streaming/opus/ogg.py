"""Ogg to packets of Opus (RFC 3533, RFC 7845).

Owns the pages, and which of the logical streams is read: those beside it are passed over. Checksums are not looked at:
what carries the bytes keeps them whole. Knows nothing of how a packet is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streaming.opus.demuxer import HEAD, LONGEST_PACKET, damaged

MAGIC = b"OggS"
"""How each page begins."""

_HEADER = 27  # bytes, before the sizes of the segments
_FIRST_PAGE = 2  # flag: the logical stream begins here
_WHOLE_SEGMENT = 255  # a segment of this size goes on in the next


class OggDemuxer:
    """The pages of one Ogg file or stream in, packets out. See `Demuxer`."""

    def __init__(self) -> None:
        self._data = b""
        self._packet = b""
        self._serial: bytes | None = None  # of the logical stream that is read

    @property
    def leftover(self) -> int:
        """Bytes of a page or a packet that is not complete yet."""
        return len(self._data) + len(self._packet)

    def forget_leftover(self) -> None:
        """Drop what is not complete: the stream ends here."""
        self._data = self._packet = b""

    def packets(self, data: bytes) -> Iterator[bytes]:
        """Find the packets that `data` completes.

        Args:
            data: the next bytes of the pages.

        Yields:
            The packets in order. The head is the first of all.

        Raises:
            AudioFormatError: `bad_format`; a page is missing where one should begin, or a packet has no end.
        """
        self._data += data
        while (page := self._page()) is not None:
            if page.flags & _FIRST_PAGE and page.body.startswith(HEAD):
                self._serial, self._packet = page.serial, b""  # perhaps the next of a chain
            if page.serial == self._serial:
                yield from self._cut(page)

    def _page(self) -> _Page | None:
        """Take the next page; None where it is not all there."""
        data = self._data
        if not MAGIC.startswith(data[:4]):
            raise damaged("an Ogg page (OggS) is missing where one should begin")
        if len(data) < _HEADER or len(data) < _HEADER + data[26]:
            return None
        start = _HEADER + data[26]
        sizes = data[_HEADER:start]
        end = start + sum(sizes)
        if len(data) < end:
            return None
        self._data = data[end:]
        return _Page(data[5], data[14:18], sizes, data[start:end])

    def _cut(self, page: _Page) -> Iterator[bytes]:
        at = 0
        for size in page.sizes:
            self._packet += page.body[at : at + size]
            at += size
            if len(self._packet) > LONGEST_PACKET:
                raise damaged("a packet has no end")
            if size < _WHOLE_SEGMENT:
                packet, self._packet = self._packet, b""
                yield packet


class _Page(NamedTuple):
    flags: int
    serial: bytes  # of its logical stream
    sizes: bytes  # of its segments
    body: bytes
