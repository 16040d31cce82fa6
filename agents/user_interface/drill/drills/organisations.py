"""Virtual organisations: their members, policies and attributes."""

from __future__ import annotations

from agents.user_interface.drill.ground import Ground

KNOWN_AGAIN_S = 30.0
"""For every service to read the member list again."""


async def membership_suspended(ground: Ground) -> None:
    """The VO suspends a member, and takes that back."""
    mallory = await ground.attacker()
    ground.begin()
    await ground.serves(mallory)
    vo = await ground.vo()
    ground.defend("suspends the membership")
    await vo.suspend(mallory.subject, "drill")
    await ground.refuses(mallory, "NOT_MAPPED")
    ground.defend("restores the membership")
    await vo.restore(mallory.subject)
    await ground.serves(mallory, within_s=KNOWN_AGAIN_S)
