"""Elements of WebM, by hand."""

from __future__ import annotations

import pytest
from containers import HEAD, MADE

from streaming.audio import AudioFormatError
from streaming.opus.webm import MAGIC, WebMDemuxer

SEGMENT, TRACKS, CLUSTER = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75"
UNKNOWN = b"\xff"  # a size that nobody knew yet


def element(kind: bytes, body: bytes) -> bytes:
    return kind + (1 << 14 | len(body)).to_bytes(2, "big") + body


def track(number: int, codec: bytes, head: bytes = b"") -> bytes:
    return element(b"\xae", element(b"\xd7", bytes([number])) + element(b"\x86", codec) + element(b"\x63\xa2", head))


def block(number: int, packet: bytes, flags: int = 0) -> bytes:
    return element(b"\xa3", bytes([0x80 | number, 0, 0, flags]) + packet)


def webm(*tracks: bytes, blocks: bytes) -> bytes:
    head = element(MAGIC, b"") + SEGMENT + UNKNOWN + element(TRACKS, b"".join(tracks))
    return head + CLUSTER + UNKNOWN + blocks


def packets(data: bytes, piece: int = 1 << 20) -> list[bytes]:
    demuxer = WebMDemuxer()
    return [each for at in range(0, len(data), piece) for each in demuxer.packets(data[at : at + piece])]


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 3000])
def test_a_packet_comes_out_as_it_went_in(size: int, piece: int) -> None:
    packet = bytes(size)
    data = webm(track(1, b"A_OPUS", HEAD), blocks=block(1, packet) + block(1, b"next"))
    assert packets(data, piece) == [HEAD, packet, b"next"]


def test_tracks_beside_the_one_of_opus_are_passed_over() -> None:
    tracks = track(1, b"V_VP8"), track(2, b"A_OPUS", HEAD), track(3, b"A_OPUS", b"another")
    blocks = block(1, b"a picture") + block(2, b"sound") + block(3, b"other sound")
    assert packets(webm(*tracks, blocks=blocks)) == [HEAD, b"sound"]


def test_elements_that_say_nothing_are_passed_over() -> None:
    void = element(b"\xec", bytes(2000))
    data = webm(void, track(1, b"A_OPUS", HEAD), void, blocks=void + block(1, b"sound"))
    assert packets(data, 100) == [HEAD, b"sound"]


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (element(b"\xa3", b"\x81\0"), "a block of WebM is too short"),
        (block(1, b"several", flags=0x02), "several packets each"),
        (b"\xa3" + UNKNOWN, "has no end"),
        (b"\xa3\x10\x10\x00\x00", "has no end"),
        (b"\0", "an element of WebM is missing where one should begin"),
    ],
)
def test_damage_is_said_so(blocks: bytes, says: str) -> None:
    with pytest.raises(AudioFormatError, match=says):
        packets(webm(track(1, b"A_OPUS", HEAD), blocks=blocks))


def test_what_is_not_complete_is_counted_and_can_be_dropped() -> None:
    demuxer = WebMDemuxer()
    assert list(demuxer.packets(MADE["webm"][:-700])) != []
    assert demuxer.leftover > 0
    demuxer.forget_leftover()
    assert demuxer.leftover == 0
