"""The VO server's section of the grid description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.errors import InvalidRequest
from fabric.settings import parse_options


@dataclass(frozen=True)
class VoConfig:
    """Every option with its default."""

    vo: str = ""
    """The virtual organisation; by default the grid's only one."""
    max_members: int = field(default=100_000, metadata={"minimum": 1})
    max_requests: int = field(default=1000, metadata={"minimum": 1})
    """People who asked to become members and wait for a decision: anybody with a certificate can ask."""
    max_connections_per_address: int = field(default=64, metadata={"minimum": 1})
    """Of the VOMS door, at one moment."""
    page_size: int = field(default=1000, metadata={"minimum": 1, "maximum": 10_000})
    """Members in one answer."""
    groups: tuple[str, ...] = ()
    """Groups that exist from the start, such as "/cms/higgs"; more with `grid vo group add`."""
    roles: tuple[str, ...] = ("VO-Admin",)
    """Roles that exist from the start."""
    attribute_lifetime_s: float = field(default=12 * 3600.0, metadata={"minimum": 60})
    """Life of an attribute certificate for which nobody asked for another."""
    max_attribute_lifetime_s: float = field(default=24 * 3600.0, metadata={"minimum": 60, "maximum": 7 * 86400.0})
    """Longest life; it bounds how long a removed member still shows its groups to a site that asks nobody."""
    sweep_s: float = field(default=1.0, metadata={"minimum": 0.01})
    """How often ends of memberships and grace periods are looked for."""


def parse_config(options: Mapping[str, Any], vos: tuple[str, ...]) -> VoConfig:
    """Checked options with the VO filled in. Raises InvalidRequest SETTINGS_INVALID."""
    config = parse_options(VoConfig, options, where="options of the VO server")
    if not config.vo and len(vos) != 1:
        raise InvalidRequest(
            "SETTINGS_INVALID", "options of the VO server: 'vo' is missing; name the virtual organisation"
        )
    return parse_options(VoConfig, {**options, "vo": config.vo or vos[0]}, where="options of the VO server")
