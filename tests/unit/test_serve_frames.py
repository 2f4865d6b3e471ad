"""ttRPC's frames: cut anywhere they are the same, nothing is changed, and nothing that comes makes the reader fail."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from csi.guest.serve import frames
from csi.guest.serve.frames import MOST_BYTES, Frame, Reader, TooLong
from csi.guest.serve.proto.secure_mount_pb2 import SecureMountRequest

CAPTURED_HEADER = bytes.fromhex("00000128000000010100")
"""The header before a request that a real kata-agent sent."""


def packed(stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">IIBB", len(payload), stream, kind, flags) + payload


FRAMES = st.builds(packed, st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=300), st.integers(0, 255))


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(1, 40), max_size=60))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(sent: list[bytes], pieces: list[int]) -> None:
    stream, reader, found = b"".join(sent), Reader(), []
    for length in [*pieces, len(stream)]:
        found += reader.feed(stream[:length])
        stream = stream[length:]
    assert [frame.raw for frame in found if isinstance(frame, Frame)] == sent
    assert [(f.stream, f.kind, f.payload) for f in found if isinstance(f, Frame)] == [
        (*struct.unpack(">IB", raw[4:9]), raw[10:]) for raw in sent
    ]


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_no_bytes_make_the_reader_fail_or_keep_more_than_one_frame(pieces: list[bytes]) -> None:
    reader = Reader()
    for piece in pieces:
        reader.feed(piece)
        assert len(reader._bytes) <= 10 + MOST_BYTES


def test_the_header_of_a_real_request_is_understood() -> None:
    (frame,) = Reader().feed(CAPTURED_HEADER + bytes(0x128))
    assert isinstance(frame, Frame)
    assert (frame.stream, frame.kind, len(frame.payload)) == (1, frames.REQUEST, 296)


def test_a_frame_over_the_bound_is_skipped_and_the_next_is_read() -> None:
    reader, after = Reader(), packed(7, 1, b"after")
    longest = packed(3, 1, bytes(MOST_BYTES))
    assert [type(found) for found in reader.feed(longest)] == [Frame]
    found = reader.feed(packed(5, 1, bytes(MOST_BYTES + 1))[:4096])
    assert found == [TooLong(5, 1, MOST_BYTES + 1)]
    assert reader.feed(bytes(MOST_BYTES + 1 + 10 - 4096)) == []
    (whole,) = reader.feed(after)
    assert isinstance(whole, Frame)
    assert whole.raw == after


def test_what_a_real_agent_sent_is_decoded_by_our_message() -> None:
    sent = bytes.fromhex(
        "0a0c626c6f636b2d64657669636512130a0a736f75726365547970651205656d70747912180a0a74617267657454797065120a66696c655379"
        "7374656d12310a086d6b66734f70747312252d4f205e6861735f6a6f75726e616c202d6d2030202d6920313633383430202d492031323812170a"
        "0e656e6372797074696f6e5479706512056c756b733212100a0864657669636549641204383a313612150a0d64617461496e7465677269747912"
        "047472756512160a0e66696c6573797374656d54797065120465787434222d2f72756e2f6b6174612d636f6e7461696e6572732f73616e64626f"
        "782f73746f726167652f4d4445764d44493d"
    )
    request = SecureMountRequest.FromString(sent)
    assert request.volume_type == "block-device"
    assert request.options["deviceId"] == "8:16"
    assert request.mount_point == "/run/kata-containers/sandbox/storage/MDEvMDI="
    assert list(request.flags) == []
