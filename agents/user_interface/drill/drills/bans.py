"""Bans: of a person, at one site, of a whole site."""

from __future__ import annotations

import asyncio

from agents.user_interface.drill.ground import SERVED_AGAIN_S, Ground, NotHereError
from security.credentials import Credential

BANNED = "BANNED"


async def user_banned(ground: Ground) -> None:
    """A user with a running job and open sessions is banned everywhere, then pardoned."""
    mallory = await ground.attacker()
    ground.begin()
    job = await mallory.run_forever()
    await ground.serves(mallory)
    async with ground.honest_work():
        ground.defend("bans the user")
        lift = await ground.ban("subject", mallory.subject)
        await asyncio.gather(ground.refuses(mallory, BANNED), ground.gone(job))
        ground.defend("lifts the ban")
        await lift()
    await ground.serves(mallory, within_s=SERVED_AGAIN_S)


async def user_banned_at_site(ground: Ground) -> None:
    """A user is banned at one site only: there refused, elsewhere served."""
    mallory = await ground.attacker()
    ground.begin()
    everywhere = ground.endpoints("gatekeeper", "storage")
    site = ground.dice.choice(sorted({endpoint.site for endpoint in everywhere}))
    await ground.serves(mallory, everywhere)
    ground.defend(f"bans the user at {site}")
    await ground.ban("subject", mallory.subject, sites=[site])
    await ground.refuses(mallory, BANNED, endpoints=[endpoint for endpoint in everywhere if endpoint.site == site])
    await ground.serves(mallory, [endpoint for endpoint in everywhere if endpoint.site != site])


async def site_banned(ground: Ground) -> None:
    """A whole site has gone bad: its hosts' certificates are banned at the other sites, whose services then refuse its
    agents, while the other sites go on; lifted, the site works again."""
    ground.note("the banned site's agents run as the same Unix user as all others of this lab")
    alice = await ground.victim()
    sites = sorted({endpoint.site for endpoint in ground.endpoints("storage")} - {ground.one("broker").site})
    if not sites:
        raise NotHereError("this grid has one site")
    site = ground.dice.choice(sites)
    elsewhere = [endpoint for endpoint in ground.endpoints() if endpoint.site != site]
    host = Credential.load(ground.credential_file(next(e for e in ground.endpoints("storage") if e.site == site)))
    ground.begin()
    agent = await ground.bearer(host, f"a host of {site}")
    peers = [endpoint for endpoint in elsewhere if endpoint.kind in ("bookkeeping", "catalog", "storage")]
    await ground.serves(agent, peers, act=agent.enter)
    others = sorted({endpoint.site for endpoint in elsewhere})
    ground.defend(f"bans every host of {site} at {', '.join(others)}")
    pattern = f"{ground.services.extra['organisation']}/OU={site}/CN=*"
    lift = await ground.ban("pattern", pattern, sites=others)
    await ground.refuses(agent, BANNED, endpoints=peers, act=agent.enter)
    await ground.serves(alice, elsewhere)
    home = next(endpoint for endpoint in elsewhere if endpoint.kind == "gatekeeper")
    job = await alice.run_forever(f'regexp(":{home.rpc}/", other.GlueCEUniqueID)')
    ground.expect(bool(job.processes()), "no job runs at the other sites")
    ground.defend("lifts the ban")
    await lift()
    await ground.serves(agent, peers, within_s=SERVED_AGAIN_S, act=agent.enter)
    await ground.serves(alice)
