from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from gridfabric.storage.v1 import storage_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agents.storage.framing import get_data, parse_get, parse_put, put_data

SIZES = [1, 127, 128, 16383, 16384, (1 << 20) - 1, 1 << 20, (1 << 21) + 3]


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_are_protobufs_own(size: int) -> None:
    data = bytes(size)
    assert put_data(data) == pb.PutRequest(data=data).SerializeToString()
    assert get_data(memoryview(data)) == pb.GetResponse(data=data).SerializeToString()
    for view in (parse_put(put_data(data)), parse_get(get_data(data))):
        assert isinstance(view, memoryview) and view == data


def test_messages_with_more_go_through_protobuf() -> None:
    for message in (
        pb.PutRequest(header=pb.PutHeader(vo="cms")),
        pb.PutRequest(data=b"x", trailer=pb.PutTrailer(checksums=pb.Checksums(adler32="1"))),
        pb.PutRequest(),
    ):
        assert parse_put(message.SerializeToString()) == message
    first = pb.GetResponse(size_bytes=0, checksums=pb.Checksums())
    assert parse_get(first.SerializeToString()) == first


@given(st.binary(max_size=40))
def test_any_bytes_mean_what_protobuf_says(raw: bytes) -> None:
    try:
        expected = pb.PutRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_put(raw)
        return
    found = parse_put(raw)
    assert found == expected.data if isinstance(found, memoryview) else found == expected
