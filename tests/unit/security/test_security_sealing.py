"""Encrypted files and shared secrets: what opens, and everything that does not."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable

import pytest

from security.sealing import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MAGIC,
    TAG_BYTES,
    SealError,
    is_sealed,
    key_id_of,
    new_key,
    seal,
    unseal,
)
from security.secret_sharing import Share, combine, invert, multiply, split

KEY, OTHER_KEY, KEY_ID = bytes(range(32)), bytes(32), b"0123456789abcdef"
DATA = random.Random(1).randbytes(2 * CHUNK_BYTES + 5)
PIECE = CHUNK_BYTES + TAG_BYTES


def sealed(data: bytes, key: bytes = KEY, key_id: bytes = KEY_ID) -> bytes:
    out = io.BytesIO()
    seal(key, key_id, io.BytesIO(data), out)
    return out.getvalue()


def opened(data: bytes, key: bytes = KEY) -> bytes:
    out = io.BytesIO()
    unseal(key, io.BytesIO(data), out)
    return out.getvalue()


class Dribble(io.BytesIO):
    """A file whose reads give less than they are asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 70_001))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_files_of_any_size_open_again(size: int) -> None:
    one = sealed(DATA[:size])
    assert opened(one) == DATA[:size]
    assert is_sealed(one) and key_id_of(one) == KEY_ID
    assert len(one) == HEADER_BYTES + size + TAG_BYTES * max(1, -(-size // CHUNK_BYTES))
    assert DATA[: min(size, 32)] not in one or size < 8


def test_short_reads_change_nothing() -> None:
    out = io.BytesIO()
    seal(KEY, KEY_ID, Dribble(DATA), out)
    assert out.getvalue() == sealed(DATA)
    back = io.BytesIO()
    unseal(KEY, Dribble(out.getvalue()), back)
    assert back.getvalue() == DATA


def chunks(one: bytes) -> list[bytes]:
    return [one[start : start + PIECE] for start in range(HEADER_BYTES, len(one), PIECE)]


HARM: dict[str, Callable[[bytes], bytes]] = {
    "another key id": lambda one: one[:10] + b"x" + one[11:],
    "a bit of the first chunk": lambda one: one[:99] + bytes([one[99] ^ 1]) + one[100:],
    "a bit of the last tag": lambda one: one[:-1] + bytes([one[-1] ^ 1]),
    "cut by a byte": lambda one: one[:-1],
    "cut at a chunk": lambda one: one[: HEADER_BYTES + 2 * PIECE],
    "cut to the first chunk": lambda one: one[: HEADER_BYTES + PIECE],
    "cut to the header": lambda one: one[:HEADER_BYTES],
    "cut in the header": lambda one: one[: HEADER_BYTES - 1],
    "nothing": lambda one: b"",
    "prolonged": lambda one: one + b"\0",
    "prolonged by a chunk": lambda one: one + chunks(one)[0],
    "reordered": lambda one: one[:HEADER_BYTES] + b"".join([chunks(one)[1], chunks(one)[0], chunks(one)[2]]),
    "repeated": lambda one: one[:HEADER_BYTES] + b"".join([chunks(one)[0], chunks(one)[0], chunks(one)[2]]),
    "left out": lambda one: one[:HEADER_BYTES] + b"".join([chunks(one)[0], chunks(one)[2]]),
    "a chunk of another file": lambda one: sealed(DATA, OTHER_KEY)[:-PIECE] + one[-PIECE:],
    "not sealed": lambda one: DATA,
    "another version": lambda one: MAGIC[:-1] + b"\2" + one[len(MAGIC) :],
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_was_changed_does_not_open(harm: str) -> None:
    with pytest.raises(SealError):
        opened(HARM[harm](sealed(DATA)))


def test_only_its_key_opens_a_file_and_each_file_has_another() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    with pytest.raises(SealError):
        opened(sealed(DATA[:100]), OTHER_KEY)
    with pytest.raises(ValueError, match="16 bytes"):
        sealed(DATA[:100], key_id=b"short")


def test_the_field_is_that_of_fips_197() -> None:
    assert [multiply(0x57, 0x83), multiply(0x57, 0x13), multiply(0x57, 0x02), multiply(0x57, 0x10)] == [
        0xC1, 0xFE, 0xAE, 0x07,
    ]  # fmt: skip
    assert invert(0x53) == 0xCA
    assert all(multiply(a, invert(a)) == 1 for a in range(1, 256, 7))


def test_a_known_polynomial() -> None:
    shares = split(b"\x42", 3, 3, lambda size: b"\x05" * size)  # 0x42 + 5 x + 5 x^2
    assert [(share.x, share.values) for share in shares] == [(1, b"\x42"), (2, b"\x5c"), (3, b"\x5c")]


@pytest.mark.parametrize(("threshold", "count"), [(2, 3), (3, 5), (4, 4)])
def test_any_k_shares_open_and_fewer_say_nothing(threshold: int, count: int) -> None:
    shares = split(KEY, threshold, count)
    for size in range(threshold, count + 1):
        assert all(combine(chosen) == KEY for chosen in itertools.combinations(shares, size))
    assert all(combine(chosen) != KEY for chosen in itertools.combinations(shares, threshold - 1))


def test_one_share_fits_every_secret() -> None:
    """For each value of the secret there is exactly one polynomial through a given share: it says nothing."""
    share = split(b"\x99", 2, 3, lambda size: b"\x31" * size)[1]
    fitting = {share.values[0] ^ multiply(slope, share.x) for slope in range(256)}
    assert fitting == set(range(256))


def test_what_cannot_be_shares_is_refused_and_nothing_shows_them() -> None:
    for threshold, count in ((1, 3), (0, 3), (4, 3), (2, 256)):
        with pytest.raises(ValueError, match="no way"):
            split(KEY, threshold, count)
    with pytest.raises(ValueError, match="no way"):
        split(b"", 2, 3)
    one, two, three = split(KEY, 2, 3)
    for wrong in ([], [one, one], [one, Share(2, b"short")], [Share(0, one.values), two], [Share(256, b"1" * 32), two]):
        with pytest.raises(ValueError, match="not shares"):
            combine(wrong)
    assert combine([one, Share(2, three.values)]) != KEY
    assert one.values.hex() not in repr(one) and str(one.values) not in repr(one)
