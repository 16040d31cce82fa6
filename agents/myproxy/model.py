"""What the store keeps of one credential."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stored:
    """One row. The chain is public; the private key is `sealed`, and everything else here is bound into the seal."""

    username: str
    name: str
    """Empty: the user's default credential."""
    owner: str
    """DN of who stored it."""
    description: str
    retrievers: str
    """DN pattern of who may retrieve with the passphrase; empty: whoever the site permits."""
    trusted_retrievers: str
    renewers: str
    max_lifetime_s: int
    """Of a proxy delegated from it; 0: the server's own."""
    chain_pem: bytes
    not_before_us: int
    not_after_us: int
    stored_at_us: int
    has_passphrase: bool
    salt: bytes = field(default=b"", repr=False)
    nonce: bytes = field(default=b"", repr=False)
    sealed: bytes = field(default=b"", repr=False)
