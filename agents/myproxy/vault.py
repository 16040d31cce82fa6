"""Encryption of private keys at rest: AES-256-GCM under a key from the agent's key file and, if there is one, the
passphrase (scrypt, RFC 7914). Everything else of a row is bound to it as associated data."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from agents.myproxy.model import Stored
from fabric.errors import DataCorrupted, Unavailable, from_security
from security import certificates
from security.certificates import PrivateKey
from security.credentials import Credential, without_authority
from security.errors import SecurityError, os_error_text
from security.files import read_private, write_atomic

KEY_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES = 12
_LABEL = b"gridfabric myproxy v1"


class WrongPassphrase(Exception):
    """The seal does not open with it."""


def load_key(path: Path, *, must_exist: bool) -> bytes:
    """The agent's key file, made (0600, synced) when there is none and there may be none.

    Raises DataCorrupted KEY_FILE_MISSING or KEY_FILE_INVALID, Unavailable, Unauthenticated CREDENTIAL_FILE_UNSAFE.
    """
    try:
        if not path.exists():
            if must_exist:
                raise DataCorrupted(
                    "KEY_FILE_MISSING",
                    f"the key file {path} of the credential store is missing and the stored credentials cannot be read "
                    "without it; restore it from a backup, or remove the store to begin empty",
                    path=path,
                )
            write_atomic(path, secrets.token_bytes(KEY_BYTES), 0o600)
        key = read_private(path, KEY_BYTES, os.geteuid())
    except OSError as error:
        raise Unavailable(
            "KEY_FILE_UNAVAILABLE", f"the key file {path} cannot be used ({os_error_text(error)})"
        ) from error
    except SecurityError as error:
        raise from_security(error) from error
    if len(key) != KEY_BYTES:
        raise DataCorrupted("KEY_FILE_INVALID", f"the key file {path} is damaged; restore it from a backup", path=path)
    return key


class Vault:
    """Seals and opens. Slow where there is a passphrase (`scrypt_log2_n`): never on an event loop."""

    def __init__(self, key: bytes, scrypt_log2_n: int) -> None:
        self._key, self._n = key, 1 << scrypt_log2_n

    def seal(self, row: Stored, key: PrivateKey, passphrase: bytes) -> Stored:
        """The row with the private key in it; an empty passphrase: the key file alone opens it."""
        row = replace(
            row,
            has_passphrase=bool(passphrase),
            salt=secrets.token_bytes(SALT_BYTES),
            nonce=secrets.token_bytes(NONCE_BYTES),
        )
        plain = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        sealed = AESGCM(self._derive(row, passphrase)).encrypt(row.nonce, plain, _bound(row))
        return replace(row, sealed=sealed)

    def open(self, row: Stored, passphrase: bytes) -> Credential:
        """The credential. Raises WrongPassphrase, DataCorrupted CREDENTIAL_DAMAGED (the row was altered)."""
        try:
            plain = AESGCM(self._derive(row, passphrase)).decrypt(row.nonce, row.sealed, _bound(row))
        except InvalidTag:
            if row.has_passphrase:
                raise WrongPassphrase from None
            raise _damaged(row) from None
        # authenticated data that we wrote: the arithmetic of an RSA key need not be checked again (40 ms)
        key = serialization.load_der_private_key(plain, None, unsafe_skip_rsa_key_validation=True)
        if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            raise _damaged(row)
        try:
            chain = certificates.load_chain(row.chain_pem)
            return Credential(chain[0], key, without_authority(chain[1:]))
        except SecurityError:
            raise _damaged(row) from None

    def waste(self, passphrase: bytes) -> None:
        """As much time as a wrong passphrase costs."""
        self._stretch(passphrase, bytes(SALT_BYTES))

    def _derive(self, row: Stored, passphrase: bytes) -> bytes:
        stretched = self._stretch(passphrase, row.salt) if row.has_passphrase else b""
        mixed = hmac.digest(self._key, stretched, "sha256")
        return HKDF(hashes.SHA256(), KEY_BYTES, row.salt, _LABEL).derive(mixed)

    def _stretch(self, passphrase: bytes, salt: bytes) -> bytes:
        digest = hashlib.sha256(passphrase).digest()  # HMAC inside scrypt cannot tell a passphrase from one with NULs
        return Scrypt(salt=salt, length=KEY_BYTES, n=self._n, r=8, p=1).derive(digest)


def _bound(row: Stored) -> bytes:
    """Everything of a row that decides who gets what, unambiguous."""
    parts = [
        _LABEL, row.username.encode(), row.name.encode(), row.owner.encode(), row.retrievers.encode(),
        row.trusted_retrievers.encode(), row.renewers.encode(), str(row.max_lifetime_s).encode(),
        b"passphrase" if row.has_passphrase else b"key file", hashlib.sha256(row.chain_pem).digest(),
    ]  # fmt: skip
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _damaged(row: Stored) -> DataCorrupted:
    return DataCorrupted(
        "CREDENTIAL_DAMAGED",
        f"the stored credential of {row.owner} was altered or its key file replaced, so it cannot be opened; "
        "store it again with myproxy-init",
        owner=row.owner,
    )
