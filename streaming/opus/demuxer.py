"""What the containers of Opus have in common: their interface, and the error for a damaged one.

Owns the longest packet that is waited for. Knows no container, and nothing of how a packet is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from streaming.audio import AudioFormatError

HEAD = b"OpusHead"
"""The beginning of a stream's first packet, its head, which says how to decode the others (RFC 7845, 5.1)."""

LONGEST_PACKET = 1 << 16
"""Bytes. Packets of Opus have at most 61 KB; whatever is longer has no end."""


class Demuxer(Protocol):
    """The bytes of one container in, split anywhere; the packets of its stream of Opus out."""

    @property
    def leftover(self) -> int:
        """Bytes of what is not complete yet."""

    def forget_leftover(self) -> None:
        """Drop what is not complete: the stream ends here."""

    def packets(self, data: bytes) -> Iterator[bytes]:
        """Find the packets that `data` completes.

        Args:
            data: the next bytes of the container.

        Yields:
            The packets in order. The head is the first of all.

        Raises:
            AudioFormatError: `bad_format`; the container is damaged.
        """


def damaged(what: str) -> AudioFormatError:
    """Make the error for a stream that cannot be read.

    Args:
        what: what is wrong with it.

    Returns:
        The error, for the caller to raise.
    """
    return AudioFormatError("bad_format", f"the Opus stream cannot be read: {what}")
