from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.ldap import ber
from fabric.ldap.ber import BerError, BerTooDeepError, BerTooLargeError, Reader


@given(st.integers(-(2**63), 2**63 - 1))
def test_integer_survives(value: int) -> None:
    encoded = ber.encode_integer(value)
    assert Reader(encoded).integer() == value
    if len(encoded) > 3:  # minimal: the first nine bits are not all equal
        assert not (encoded[2] == 0 and encoded[3] < 0x80)
        assert not (encoded[2] == 0xFF and encoded[3] >= 0x80)


@given(st.binary(max_size=70_000))
@settings(max_examples=30)
def test_octets_survive(value: bytes) -> None:
    reader = Reader(ber.encode_octets(value))
    assert reader.octets() == value
    reader.end()


@given(st.booleans())
def test_boolean_survives(value: bool) -> None:
    assert Reader(ber.encode_boolean(value)).boolean() is value


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80\x00\x00",  # indefinite length
        b"\x30\x85\x00\x00\x00\x00\x01a",  # five length octets
        b"\x1f\x81\x01\x00",  # tag of several octets
        b"\x30\x05\x02\x01",  # cut short
        b"\x30",
        b"",
    ],
)
def test_malformed_element_is_refused(data: bytes) -> None:
    with pytest.raises(BerError):
        Reader(data).element()


@pytest.mark.parametrize("data", [b"\x02\x00", b"\x02\x09" + bytes(9), b"\x01\x02\x00\x00", b"\x04\x00"])
def test_wrong_content_is_refused(data: bytes) -> None:
    reader = Reader(data)
    with pytest.raises(BerError):
        reader.boolean() if data[0] == 1 else reader.integer()


def test_depth_is_bounded() -> None:
    data = b""
    for _ in range(100):
        data = ber.encode_element(ber.SEQUENCE, data)
    reader = Reader(data)
    with pytest.raises(BerTooDeepError):
        while True:
            reader = reader.enter(ber.SEQUENCE)


def test_frame_length_waits_for_the_header_and_bounds_the_message() -> None:
    assert ber.frame_length(b"") is None
    assert ber.frame_length(b"\x30") is None
    assert ber.frame_length(b"\x30\x82\x01") is None
    assert ber.frame_length(b"\x30\x82\x01\x00") == 4 + 256
    with pytest.raises(BerTooLargeError):
        ber.frame_length(b"\x30\x84\x7f\xff\xff\xff")
    with pytest.raises(BerError):
        ber.frame_length(b"GET / HTTP/1.1")
