"""The grid that is started for drills: two sites on this machine, with everything that somebody may attack."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from agents.user_interface import console, deployment
from agents.user_interface.demo.run import make_state_folder
from agents.user_interface.signals import undisturbed
from clusters import deploy, load
from clusters.model import AgentDescription, GridDescription

DESCRIPTION = """
[grid]
name = "drill"
mode = "lab"
organisation = "/O=Drill"
[[vo]]
name = "cms"
[[vo]]
name = "atlas"
[[site]]
name = "EAST"
location = "the site that is attacked"
top = {}
information = {}
broker = {}
bookkeeping = {}
catalog = {}
storage = {}
myproxy = {}
gatekeeper = { lease_linger_s = 0.5, max_disk_bytes = 50_000_000 }
worker = { slots = 4, term_grace_s = 0.5, disk_check_s = 0.2 }
[[site]]
name = "WEST"
location = "its neighbour"
information = {}
storage = {}
gatekeeper = { lease_linger_s = 0.5, max_disk_bytes = 50_000_000, pools = [{ vo = "cms" }, { vo = "atlas", count = 2 }]}
worker = { slots = 4, term_grace_s = 0.5, disk_check_s = 0.2 }
"""
SMALL_POOLS = "WEST"
"""The site with two accounts for the second VO."""
POLLED = {"map_refresh_s": 2.0, "crl_refresh_s": 2.0, "trust_poll_s": 1.0}
"""Times of `FabricOptions` that `--speed` divides."""


def description(folder: Path, speed: float, text: str = DESCRIPTION) -> GridDescription:
    """With the clocks of `--speed`."""

    def quickened(agent: AgentDescription) -> AgentDescription:
        return replace(agent, fabric={**agent.fabric, **{name: usual / speed for name, usual in POLLED.items()}})

    found = load.loads(text, folder / "drill.toml")
    sites = tuple(replace(site, agents=tuple(map(quickened, site.agents))) for site in found.sites)
    return replace(found, sites=sites)


@contextmanager
def running(state: Path | None, speed: float = 1.0, text: str = DESCRIPTION) -> Generator[Path]:
    """The state folder of this grid, or of one started now, which is stopped and removed however this ends."""
    if state is not None:
        yield state
        return
    own = make_state_folder()
    try:
        console.say("starting a grid of two sites")
        deploy.up(description(own, speed, text), own)
        yield own
    finally:
        with undisturbed():
            deployment.stop(own)
            deployment.remove(own)
