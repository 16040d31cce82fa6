"""Changes of an input at random: bits, bytes, pieces, lengths of DER, tokens of text; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_BYTES = 200_000
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x81, 0x82, 0x84, 0x30, 0x31)
_TOKENS = (
    b"\0", b"\n", b'"', b"\\", b"'", b"/", b"=", b"*", b".*", b"(", b")", b"[", b"]", b"{", b"}", b"#", b",", b";",
    b"+", b"-", b"\xff", b"\xed\xa0\x80", b"%s", b"\\x00", b"\\xFF", b"/CN=", b"CN=", b"\xe2\x80\xae",
    b"9" * 30, b"(" * 40, b"-----BEGIN CERTIFICATE-----\n", b"\x30\x80", b"\x30\x84\x7f\xff\xff\xff", b"\x02\x01\x00",
    b"\x00" * 20,
)  # fmt: skip


_TAGS = frozenset({0x02, 0x03, 0x04, 0x06, 0x0C, 0x13, 0x17, 0x30, 0x31, 0xA0})


def mutate(seed: bytes, chance: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """`seed` with one to six changes."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        _change(data, chance, others)
        if len(data) > MAX_BYTES:
            del data[MAX_BYTES:]
    return bytes(data)


def _change(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    kind = chance.randrange(9)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << chance.randrange(8)
    elif kind == 1 and data:
        data[at % len(data)] = chance.choice(_NUMBERS)
    elif kind == 2:
        del data[at : at + chance.choice((1, 2, 8, 64))]
    elif kind == 3:
        data[at:at] = chance.choice(_TOKENS)
    elif kind == 4:
        data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
    elif kind == 5:  # a piece twice, or a hundred times
        piece = bytes(data[at : at + chance.choice((1, 8, 40))])
        data[at:at] = piece * chance.choice((1, 2, 100))
    elif kind == 6 and others:
        other = chance.choice(others)
        start = chance.randrange(len(other) + 1)
        data[at : at + chance.randrange(64)] = other[start : start + chance.randrange(64)]
    elif kind == 7:
        _element(data, chance)
    else:
        del data[at:]


def _element(data: bytearray, chance: random.Random) -> None:
    """Take one DER element out, put it in twice, or exchange its tag; outer lengths stay as they were."""
    starts = [
        at for at in range(len(data) - 2) if data[at] in (0x02, 0x03, 0x04, 0x06, 0x0C, 0x13, 0x17, 0x30, 0x31, 0xA0)
    ]
    if not starts:
        return
    at = chance.choice(starts)
    length = data[at + 1]
    if length >= 0x80:
        return
    element = bytes(data[at : at + 2 + length])
    kind = chance.randrange(3)
    if kind == 0:
        del data[at : at + 2 + length]
    elif kind == 1:
        data[at:at] = element
    else:
        data[at] = chance.choice((0x02, 0x04, 0x05, 0x06, 0x0C, 0x17, 0x18, 0x30, 0x31, 0xA0, 0xA1))
