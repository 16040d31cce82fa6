"""The authority's section of the grid description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.errors import InvalidRequest
from fabric.settings import parse_options

DAY_S = 86400.0


@dataclass(frozen=True)
class AuthorityConfig:
    """Every option with its default. Times in seconds."""

    directory: Path = Path("ca")
    """Keys and register; a relative path starts at the state directory."""
    host_lifetime_s: float = field(default=365 * DAY_S, metadata={"minimum": 60})
    user_lifetime_s: float = field(default=365 * DAY_S, metadata={"minimum": 60})
    """Of a user's certificate; no user can ask for a longer one."""
    crl_lifetime_s: float = field(default=7 * DAY_S, metadata={"minimum": 10})
    """From one revocation list to the time when sites stop accepting it. A new one is made at half of it."""
    invitation_lifetime_s: float = field(default=7 * DAY_S, metadata={"minimum": 1})
    max_invitations: int = field(default=10_000, metadata={"minimum": 1})
    """Invitations that are neither used nor expired."""
    sites: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """What an invited site may enrol: site to `<kind>/<name>` to the host names of that agent."""


def parse_config(options: Mapping[str, Any], state_dir: Path) -> AuthorityConfig:
    """Checked options, the directory absolute. Raises InvalidRequest SETTINGS_INVALID naming the option."""
    config = parse_options(AuthorityConfig, options, where="options of the authority")
    directory = (state_dir / config.directory).absolute()
    if not (directory / "ca.pem").exists():
        raise InvalidRequest(
            "SETTINGS_INVALID",
            f"options of the authority: 'directory' {directory} holds no authority; grid up makes one",
        )
    return parse_options(AuthorityConfig, {**options, "directory": str(directory)}, where="options of the authority")
