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


@pytest.mark.parametrize(
    "inside",
    [
        b"\x04\x01a", b"\x04\x01a\x04\x02b", b"\x04\x01a\x04\x01b\x04\x00", b"\x04\x01a\x05\x00", b"\x05\x00\x04\x01b",
        b"\x04\x03a\x04\x00", b"\x04\x01a\x04\x81", b"\x04\x01a\x04\x80", b"", b"\x04", b"\x04\x7fa\x04\x01b",
    ],
)  # fmt: skip
def test_a_pair_is_two_texts_and_nothing_else(inside: bytes) -> None:
    with pytest.raises(BerError):
        Reader(ber.encode_element(0xA3, inside)).pair(0xA3)


def test_a_pair_with_long_texts_and_at_the_limit_of_depth() -> None:
    long = ber.encode_element(0xA3, ber.encode_text("a" * 200) + ber.encode_text("b" * 300))
    assert Reader(long).pair(0xA3) == ("a" * 200, "b" * 300)
    with pytest.raises(BerTooDeepError):
        Reader(long, depth=0).pair(0xA3)


def test_skipped_elements_are_whole() -> None:
    assert Reader(b"\x04\x01a\x30\x81\x02\x05\x00\x02\x01\x07").raw(2) == b"\x04\x01a\x30\x81\x02\x05\x00"
    for cut in (b"\x04\x01a\x04", b"\x04\x01a\x04\x02b", b"\x04\x01a\x1f\x01a", b"\x04\x01a\x04\x80"):
        with pytest.raises(BerError):
            Reader(cut).raw(2)
