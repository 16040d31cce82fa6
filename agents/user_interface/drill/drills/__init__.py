"""The drills, by theme. Each plays an attack on a real grid, and its control: the same with an honest credential
succeeds. A drill is a function: its name is the drill's, its docstring the story."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agents.user_interface.drill.drills import (
    authorities,
    bans,
    credentials,
    delegations,
    flood,
    hosts,
    incident,
    lists,
    organisations,
    payloads,
    stores,
)
from agents.user_interface.drill.ground import Ground


@dataclass(frozen=True)
class Drill:
    """One drill."""

    name: str
    story: str
    play: Callable[[Ground], Awaitable[None]]


DRILLS: tuple[Drill, ...] = tuple(
    Drill(play.__name__.replace("_", "-"), " ".join((play.__doc__ or "").split()), play)
    for play in (
        hosts.proxy_stolen,
        credentials.user_revoked,
        credentials.proxy_revoked,
        hosts.host_revoked,
        lists.crl_expired,
        lists.crl_server_down,
        lists.crl_older,
        lists.crl_wrong_ca,
        credentials.limited_proxy_submits,
        credentials.proxy_outlives_certificate,
        credentials.deep_delegation_chain,
        credentials.session_token_stolen,
        payloads.pool_accounts_exhausted,
        payloads.payload_runaway,
        delegations.delegation_reused,
        delegations.delegation_stolen,
        authorities.ca_removed,
        authorities.ca_outside_namespace,
        authorities.ca_rollover,
        authorities.ca_rogue,
        bans.user_banned,
        bans.user_banned_at_site,
        bans.site_banned,
        organisations.vo_dissolved,
        organisations.membership_suspended,
        organisations.aup_changed,
        organisations.attributes_forged,
        organisations.attributes_moved,
        hosts.man_in_the_middle,
        hosts.clock_skew,
        stores.credential_store_stolen,
        flood.flood,
        incident.incident,
    )
)
