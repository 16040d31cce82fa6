"""Encrypted files: AES-256-GCM in chunks, so that files of any size pass through little memory.

    magic (8 bytes) | id of the key (16 bytes) | chunk, chunk, ..., last chunk

A chunk is 1 MiB of the file (the last one less, perhaps nothing) and its tag of 16 bytes. The nonce is the number of
the chunk and whether it is the last; header and tag are authenticated. So chunks that are changed, left out, repeated,
put elsewhere or taken from another file, and a file that was cut or prolonged, do not open (the STREAM construction:
Hoang, Reyhanitabar, Rogaway, Vizar 2015). A key is for one file only.
"""

from __future__ import annotations

from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"\x89GFSEAL\x01"
KEY_BYTES = 32
KEY_ID_BYTES = 16
HEADER_BYTES = len(MAGIC) + KEY_ID_BYTES
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16


class SealError(ValueError):
    """These bytes are not what was sealed with this key."""


def new_key() -> bytes:
    """For one file."""
    return AESGCM.generate_key(8 * KEY_BYTES)


def is_sealed(beginning: bytes) -> bool:
    """Whether a file that begins like this is a sealed one."""
    return len(beginning) >= HEADER_BYTES and beginning.startswith(MAGIC)


def key_id_of(beginning: bytes) -> bytes:
    """Raises SealError for a file that is not sealed."""
    if not is_sealed(beginning):
        raise SealError("this file is not an encrypted one")
    return bytes(beginning[len(MAGIC) : HEADER_BYTES])


def seal(key: bytes, key_id: bytes, source: BinaryIO, target: BinaryIO) -> None:
    """Encrypt all that `source` has. Raises OSError."""
    if len(key_id) != KEY_ID_BYTES:
        raise ValueError(f"the id of a key has {KEY_ID_BYTES} bytes")
    header, cipher = MAGIC + key_id, AESGCM(key)
    target.write(header)
    number, chunk = 0, _exactly(source, CHUNK_BYTES)
    while True:
        following = _exactly(source, CHUNK_BYTES) if len(chunk) == CHUNK_BYTES else b""
        target.write(cipher.encrypt(_nonce(number, last=not following), chunk, header))
        if not following:
            return
        number, chunk = number + 1, following


def unseal(key: bytes, source: BinaryIO, target: BinaryIO) -> None:
    """Decrypt a whole file. What was written before a SealError is worth nothing: the end is part of what is
    verified. Raises SealError, OSError."""
    header = _exactly(source, HEADER_BYTES)
    key_id_of(header)
    cipher, number = AESGCM(key), 0
    sealed = _exactly(source, CHUNK_BYTES + TAG_BYTES)
    while True:
        following = _exactly(source, CHUNK_BYTES + TAG_BYTES)
        try:
            target.write(cipher.decrypt(_nonce(number, last=not following), sealed, header))
        except (InvalidTag, ValueError) as error:
            raise SealError(
                f"chunk {number} is not what was encrypted: the file was changed, cut, or the key is another one"
            ) from error
        if not following:
            return
        number, sealed = number + 1, following


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _exactly(source: BinaryIO, size_bytes: int) -> bytes:
    """So many bytes, or all that are left."""
    parts: list[bytes] = []
    while size_bytes and (part := source.read(size_bytes)):
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)
