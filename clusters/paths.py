"""Where everything of a running grid is kept. One folder per grid and host: the *state*."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STATE_VARIABLE = "GRIDFABRIC_STATE"


def default_state(grid: str, environ: Mapping[str, str], uid: int) -> Path:
    """`$GRIDFABRIC_STATE`, else /var/tmp/gridfabric-<uid>/<grid>: survives a reboot, is reachable by pool accounts."""
    named = environ.get(STATE_VARIABLE)
    return Path(named) if named else Path(f"/var/tmp/gridfabric-{uid}") / grid


@dataclass(frozen=True)
class StatePaths:
    """The layout of a state folder. Folders above scratch areas are 0755; whatever holds a secret is 0700 or 0600."""

    root: Path

    @property
    def inventory(self) -> Path:
        """What the grid is and which ports it has: outlives the grid's stop."""
        return self.root / "inventory.json"

    @property
    def run(self) -> Path:
        """What is running now: process ids, Ray address. Absent when the grid is down."""
        return self.root / "run.json"

    @property
    def description(self) -> Path:
        """The description as it was when the grid was started."""
        return self.root / "description.toml"

    @property
    def lock(self) -> Path:
        """Held while a command changes the grid."""
        return self.root / ".lock"

    @property
    def token(self) -> Path:
        """Ray's token."""
        return self.root / "ray-token"

    @property
    def node_status(self) -> Path:
        """What the launcher says of its Ray node."""
        return self.root / "ray-status.json"

    @property
    def log(self) -> Path:
        """What the Ray launcher and its children write."""
        return self.root / "ray.log"

    @property
    def certificates(self) -> Path:
        """X509_CERT_DIR of this host."""
        return self.root / "certificates"

    @property
    def administrator(self) -> Path:
        """The operator's credential."""
        return self.root / "admin.pem"

    @property
    def users(self) -> Path:
        """Certificates made by `grid user add`, one folder each."""
        return self.root / "users"

    def site(self, site: str) -> Path:
        """Everything of one site."""
        return self.root / "sites" / site

    def agent(self, site: str, name: str) -> Path:
        """An agent's own state."""
        return self.site(site) / name

    def credential(self, site: str, name: str) -> Path:
        """An agent's certificate and key."""
        return self.site(site) / "credentials" / f"{name}.pem"

    def settings(self, name: str) -> Path:
        """An agent's settings, as `python -m fabric.agent` reads them."""
        return self.root / "settings" / f"{name}.json"

    def make(self) -> None:
        """Create the root. May be called twice. Raises OSError."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.root.stat().st_uid == os.geteuid():
            self.root.chmod(0o755)
