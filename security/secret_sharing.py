"""A secret in n parts, of which any k give it back and any k - 1 say nothing about it (A. Shamir, CACM 22, 1979).

Each byte is the value at 0 of a random polynomial of degree k - 1 over GF(2^8) with the polynomial of AES (FIPS 197,
section 4.2); a share is its values at one x. Own code: the libraries on PyPI that offer it are unmaintained, or
(pycryptodome) split 16 bytes only and would bring a second cryptographic library along.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MAX_SHARES = 255


@dataclass(frozen=True, slots=True)
class Share:
    """One part. As long as the secret."""

    x: int
    """1 to 255."""
    values: bytes = field(repr=False)


def split(
    secret: bytes, threshold: int, count: int, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> list[Share]:
    """`count` shares of which `threshold` are needed. Raises ValueError for a threshold below 2, too many shares, or an
    empty secret."""
    if not secret or not 2 <= threshold <= count <= MAX_SHARES:
        raise ValueError(f"{threshold} of {count} shares of {len(secret)} bytes are no way to keep a secret")
    coefficients = [secret, *(random_bytes(len(secret)) for _ in range(threshold - 1))]
    return [Share(x, _evaluate(coefficients, x)) for x in range(1, count + 1)]


def combine(shares: Sequence[Share]) -> bytes:
    """The secret, if these are as many shares of it as are needed; else bytes that say nothing: whoever calls has a way
    to see whether they are right. Raises ValueError for shares that cannot be of one secret."""
    places = {share.x for share in shares}
    lengths = {len(share.values) for share in shares}
    if not shares or len(places) != len(shares) or len(lengths) != 1 or not all(0 < x <= MAX_SHARES for x in places):
        raise ValueError("these are not shares of one secret")
    secret = bytearray(lengths.pop())
    for share in shares:
        weight = 1
        for other in places - {share.x}:
            weight = multiply(weight, multiply(other, invert(other ^ share.x)))
        for index, value in enumerate(share.values):
            secret[index] ^= multiply(weight, value)
    return bytes(secret)


def multiply(a: int, b: int) -> int:
    """In GF(2^8). The same steps whatever the values are."""
    product = 0
    for _ in range(8):
        product ^= a & -(b & 1)
        a = (a << 1) ^ (0x11B & -(a >> 7))
        b >>= 1
    return product


def invert(a: int) -> int:
    """a ** 254, which is 1 / a."""
    result = 1
    for _ in range(254):
        result = multiply(result, a)
    return result


def _evaluate(coefficients: Sequence[bytes], x: int) -> bytes:
    value = bytearray(len(coefficients[0]))
    for coefficient in reversed(coefficients):
        for index, byte in enumerate(coefficient):
            value[index] = multiply(value[index], x) ^ byte
    return bytes(value)
