"""Options of the transfer agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """The agent's own section of the cluster file."""

    max_queued: int = field(default=100_000, metadata={"minimum": 1})
    """Files that have not ended."""
    max_queued_per_owner: int = field(default=50_000, metadata={"minimum": 1})
    max_active: int = field(default=128, metadata={"minimum": 1})
    """Copies at once."""
    max_per_element: int = field(default=32, metadata={"minimum": 1})
    """Copies at once from or to one storage element."""
    max_per_link: int = field(default=16, metadata={"minimum": 1})
    """What the optimiser may go up to."""
    tune_every_s: float = field(default=5.0, metadata={"minimum": 0.05})
    """How often the optimiser looks at a link."""
    vo_shares: Mapping[str, float] = field(default_factory=dict)
    """On every link; a VO that is not named has 1."""
    caps_mb_per_s: Mapping[str, float] = field(default_factory=dict)
    """Speed of links, as `"CERN > RAL" = 20`, by site or name of the storage elements; `*` is any."""
    max_attempts: int = field(default=6, metadata={"minimum": 1, "maximum": 100})
    retry_first_s: float = 10.0
    """Pause before the second attempt; each further one is twice as long."""
    retry_max_s: float = 600.0
    stall_s: float = field(default=60.0, metadata={"minimum": 0.05})
    """A copy that moves no byte for so long is ended and tried again."""
    clean_for_s: float = 7 * 86400.0
    """How long it is tried to remove a copy that nobody wants any more."""
    look_again_s: float = field(default=3600.0, metadata={"minimum": 0.05})
    """How often subscriptions look at all their files, besides those that they are told of."""
    renew_before_s: float = 3600.0
    """An owner's proxy is renewed when less than this, or half of its life, is left, if there is a credential store."""
    renew_look_s: float = field(default=30.0, metadata={"minimum": 0.05})
    renew_retry_s: float = field(default=60.0, metadata={"minimum": 0.01})
    renewed_lifetime_s: float = field(default=12 * 3600.0, metadata={"minimum": 60.0})
    """What the credential store is asked for; it may give less."""
    myproxy_servers: tuple[str, ...] = ()
    """Further credential stores, host:port; the grid's own are known."""
    max_subscriptions: int = field(default=200, metadata={"minimum": 1})
    keep_s: float = 30 * 86400.0
    """How long what has ended can be asked for."""
