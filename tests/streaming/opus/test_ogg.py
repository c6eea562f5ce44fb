"""Pages of Ogg, by hand."""

from __future__ import annotations

import pytest
from containers import HEAD, MADE, page

from streaming.audio import AudioFormatError
from streaming.opus.ogg import OggDemuxer


def packets(data: bytes, piece: int = 1 << 20) -> list[bytes]:
    demuxer = OggDemuxer()
    return [each for at in range(0, len(data), piece) for each in demuxer.packets(data[at : at + piece])]


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 254, 255, 256, 3000])
def test_a_packet_comes_out_as_it_went_in(size: int, piece: int) -> None:
    packet = bytes(size)
    assert packets(page(HEAD, first=True) + page(packet) + page(b"next"), piece) == [HEAD, packet, b"next"]


def test_streams_beside_the_one_of_opus_are_passed_over() -> None:
    video = page(b"\x80theora", first=True, serial=7)
    assert packets(video + page(HEAD, first=True) + page(b"a picture", serial=7) + page(b"sound")) == [HEAD, b"sound"]


def test_the_next_stream_of_a_chain_is_read_too() -> None:
    first, second = (page(HEAD, first=True, serial=each) + page(b"sound", serial=each) for each in (1, 2))
    assert packets(first + second) == [HEAD, b"sound"] * 2


def test_a_packet_without_an_end_is_not_waited_for() -> None:
    full = page(b"")[:26] + bytes([254]) + bytes([255] * 254) + bytes(255 * 254)
    with pytest.raises(AudioFormatError, match="a packet has no end"):
        packets(page(HEAD, first=True) + full * 2)


def test_what_is_not_complete_is_counted_and_can_be_dropped() -> None:
    demuxer = OggDemuxer()
    assert list(demuxer.packets(MADE["ogg"][:-10])) != []
    assert demuxer.leftover > 0
    demuxer.forget_leftover()
    assert demuxer.leftover == 0
