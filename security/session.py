"""Proof that the caller of a session holds the key of its chain, bound to the server that it talks to.

The signature covers a fixed label (it can never be taken for a signature with another meaning), the server's nonce (no
replay), the server's certificate (no relay through a third party) and the chain (no exchange of certificates).
"""

from __future__ import annotations

import hashlib

from cryptography import x509

from security import certificates
from security.credentials import Credential, verify_signature
from security.errors import Reason, ValidationError

LABEL = b"gridfabric-session-v1\0"
NONCE_BYTES = 32
MAX_SIGNATURE_BYTES = 2048
"""RSA-8192 gives 1024 bytes."""


def session_proof_input(nonce: bytes, server_leaf_der: bytes, chain_pem: bytes) -> bytes:
    """The bytes that are signed: label, nonce (32), SHA-256 of the server's leaf, SHA-256 of the chain as sent.

    Raises ValueError for a nonce of another length.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a session nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return LABEL + nonce + hashlib.sha256(server_leaf_der).digest() + hashlib.sha256(chain_pem).digest()


def prove(credential: Credential, nonce: bytes, server_leaf_der: bytes) -> bytes:
    """The client's signature for `credential.pem_chain()`."""
    return credential.sign(session_proof_input(nonce, server_leaf_der, credential.pem_chain()))


def check_proof(
    leaf: x509.Certificate, signature: bytes, nonce: bytes, server_leaf_der: bytes, chain_pem: bytes
) -> None:
    """Check `prove` with the leaf of the validated chain. Raises ValidationError BAD_SIGNATURE.

    The caller makes sure that the nonce is one it gave out, once.
    """
    if len(nonce) != NONCE_BYTES or len(signature) > MAX_SIGNATURE_BYTES:
        raise ValidationError(
            Reason.BAD_SIGNATURE,
            f"the session proof of {certificates.describe(leaf)} has a nonce or signature of a wrong length",
            certificates.facts_of(leaf, "session proof"),
        )
    try:
        verify_signature(leaf, signature, session_proof_input(nonce, server_leaf_der, chain_pem))
    except ValidationError as error:
        if error.reason is not Reason.BAD_SIGNATURE:
            raise
        raise ValidationError(
            Reason.BAD_SIGNATURE,
            f"the session proof of {certificates.describe(leaf)} does not verify for this server and nonce; "
            "begin again",
            certificates.facts_of(leaf, "session proof"),
        ) from error
