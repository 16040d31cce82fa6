"""Bans: of a person, at one site, of a whole site."""

from __future__ import annotations

import asyncio

from agents.user_interface.drill.ground import SERVED_AGAIN_S, Ground

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
