"""What a site demands of a chain."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

CrlPolicy = Literal["require", "warn", "ignore"]
_WEAKEST_RSA_BITS = 512


@dataclass(frozen=True)
class ValidationPolicy:
    """What a site demands. The defaults fail closed."""

    missing_crl: CrlPolicy = "require"
    """An authority without a revocation list: refuse, accept with a warning, or accept."""
    expired_crl: CrlPolicy = "require"
    """An authority whose list is past nextUpdate; a revoked certificate on it is refused in any case."""
    max_chain: int = 12
    """Certificates from the leaf to the authority."""
    max_proxy_depth: int = 8
    """Proxies below the end entity."""
    minimum_rsa_bits: int = 2048
    clock_skew: timedelta = timedelta(minutes=5)
    """How far in the future a notBefore or lastUpdate may be. Ends of validity are never stretched."""
    namespaces: bool = True
    """False: what an authority may sign is not looked at. For judging chains by hand; no service does it."""
    allow_weak: bool = False
    """MD5, SHA-1 and RSA keys of 512 bits and more pass. For looking at old material; no service does it."""

    def __post_init__(self) -> None:
        for value in (self.missing_crl, self.expired_crl):
            if value not in ("require", "warn", "ignore"):
                raise ValueError(f"unknown revocation list policy {value!r}; use require, warn or ignore")
        if self.max_chain < 1 or self.max_proxy_depth < 0 or self.clock_skew < timedelta(0):
            raise ValueError("bounds of a validation policy cannot be negative")

    @property
    def shortest_rsa_bits(self) -> int:
        """Of an acceptable RSA key."""
        return _WEAKEST_RSA_BITS if self.allow_weak else self.minimum_rsa_bits


DEFAULT_POLICY = ValidationPolicy()
