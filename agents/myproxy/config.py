"""The credential store's section of the grid description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.myproxy.policy import AGENT, ANONYMOUS
from fabric.settings import parse_options

HOUR_S = 3600.0
DAY_S = 86400.0


@dataclass(frozen=True)
class MyProxyConfig:
    """Every option with its default. For the lists of people see `agents.myproxy.policy.permits`."""

    accepted: tuple[str, ...] = ("*",)
    """Who may store, by DN pattern, beyond `members_only`."""
    members_only: bool = True
    """Only who is in the member list stores, and only for such owners credentials are given out."""
    retrievers: tuple[str, ...] = ("*",)
    """Who may retrieve with a passphrase. A client without a certificate is called `<anonymous>`."""
    trusted_retrievers: tuple[str, ...] = ()
    """Who may retrieve with its certificate alone, where the owner names it too (`myproxy-init -Z`)."""
    renewers: tuple[str, ...] = ("agent:broker", "agent:gatekeeper", "agent:transfer")
    """Who may renew, where the owner names it too (`myproxy-init -R`)."""
    default_renewers: tuple[str, ...] = ("agent:broker", "agent:gatekeeper", "agent:transfer")
    """Who may renew where the owner gave no passphrase and named nobody (`myproxy-init -d -n`, the habit of LCG and
    gLite). None: such a credential is not taken."""
    key_retrievers: tuple[str, ...] = ()
    """Who may have the stored private key itself, with its passphrase (`myproxy-retrieve`)."""
    max_stored_lifetime_s: float = field(default=7 * DAY_S, metadata={"minimum": 60})
    """Longest life of a stored credential, from now."""
    delegated_lifetime_s: float = field(default=12 * HOUR_S, metadata={"minimum": 60})
    """Life of a delegated proxy where neither owner nor client say another."""
    max_delegated_lifetime_s: float = field(default=24 * HOUR_S, metadata={"minimum": 60})
    """Longest life of a delegated proxy; it bounds how long a stolen one is good."""
    passphrase_min_length: int = field(default=6, metadata={"minimum": 6, "maximum": 64})
    """Bytes; the clients themselves refuse fewer than 6."""
    max_credentials: int = field(default=100_000, metadata={"minimum": 1})
    max_credentials_per_owner: int = field(default=64, metadata={"minimum": 1})
    key_type: str = field(default="rsa-2048", metadata={"choices": ("rsa-2048", "ec-p256")})
    """Of the key made for a stored credential. The C tools of the field sign with RSA only."""
    scrypt_log2_n: int = field(default=14, metadata={"minimum": 10, "maximum": 20})
    """Cost of one guess at a passphrase: 16 MiB and some 40 ms at 14."""
    failures_per_user: int = field(default=10, metadata={"minimum": 1})
    """Wrong attempts at one user name before further ones have to wait."""
    failures_per_peer: int = field(default=5, metadata={"minimum": 1})
    """Wrong attempts from one address, or of one DN, before further ones have to wait."""
    back_off_s: float = field(default=2.0, metadata={"minimum": 0.001})
    """The first wait; it doubles with each further failure."""
    max_back_off_user_s: float = field(default=60.0, metadata={"minimum": 0.001})
    """Longest wait of a user name: strangers must not lock somebody out for long."""
    max_back_off_peer_s: float = field(default=900.0, metadata={"minimum": 0.001})
    forget_failures_s: float = field(default=HOUR_S, metadata={"minimum": 1})
    """The failures that cost no wait are forgotten within this time, one after another."""
    request_timeout_s: float = field(default=120.0, metadata={"minimum": 0.1})
    """From the connection to the request: `myproxy-init` connects first and then asks its user for passphrases."""
    step_timeout_s: float = field(default=15.0, metadata={"minimum": 0.1})
    """For each further message of a dialogue."""
    max_connections_per_address: int = field(default=64, metadata={"minimum": 1})
    sweep_s: float = field(default=60.0, metadata={"minimum": 0.01})
    """How often expired credentials are erased."""

    def __post_init__(self) -> None:
        if self.delegated_lifetime_s > self.max_delegated_lifetime_s:
            raise ValueError("'delegated_lifetime_s' is more than 'max_delegated_lifetime_s'")
        for pattern in (
            *self.accepted,
            *self.retrievers,
            *self.trusted_retrievers,
            *self.renewers,
            *self.default_renewers,
            *self.key_retrievers,
        ):
            if not pattern.startswith(("/", "*", ANONYMOUS, AGENT)):
                raise ValueError(f"{pattern!r} is no pattern of a DN, which begins with '/' or '*', nor {AGENT}KIND")


def parse_config(options: Mapping[str, Any]) -> MyProxyConfig:
    """Checked options. Raises InvalidRequest SETTINGS_INVALID."""
    return parse_options(MyProxyConfig, options, where="options of the credential store")
