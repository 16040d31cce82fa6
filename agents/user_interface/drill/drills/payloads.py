"""Payloads that do not behave, and accounts that run out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from gridfabric.gatekeeper.v1 import gatekeeper_pb2

from agents.gatekeeper import client as gatekeeper
from agents.user_interface.drill import lab
from agents.user_interface.drill.ground import SERVED_AGAIN_S, Ground, NotHereError
from agents.user_interface.drill.people import ATTACKER, VICTIM, Job, Person
from fabric.errors import Conflict, Exhausted, GridError, Refused
from fabric.settings import Endpoint

_STUBBORN = """
trap '' TERM HUP INT
stay='trap "" TERM HUP INT; while :; do sleep 0.2; done'
sh -c "$stay" child "$1" &
setsid sh -c "$stay" detached "$1" &
( ( setsid sh -c "$stay" orphan "$1" & ) & )
env -i /usr/bin/setsid /bin/sh -c "$stay" nameless "$1" &
"""
_FILLS = """
while :; do head -c 4000000 /dev/zero >> "fill-$1"; sleep 0.05; done
"""
_STAYS = """
while :; do sleep 0.2; done
"""
PROCESSES = 5
"""Of the stubborn payload: itself and four that hide."""


async def payload_runaway(ground: Ground) -> None:
    """A payload forks, detaches, hides, ignores SIGTERM; one fills the disk, another stays. The site's limit ends the
    first, a ban the second, and nothing of them is left; a neighbour's job on the same nodes goes on."""
    mallory, bob = await ground.attacker(), await ground.victim()
    ground.begin()
    neighbour = await bob.run_forever()
    greedy = await mallory.run_payload(_STUBBORN + _FILLS)
    ground.attack("fills the disk with a payload that detaches and ignores SIGTERM")
    began = time.monotonic()
    await ground.gone(greedy)
    ground.score.figures["until the disk limit ended all processes, ms"] = round((time.monotonic() - began) * 1000)
    await ground.eventually(lambda: not _on_disk(ground, f"fill-{greedy.mark}"), "its files are still on the disk")
    stubborn = await mallory.run_payload(_STUBBORN + _STAYS)
    await ground.eventually(lambda: len(stubborn.processes()) >= PROCESSES, "the payload has not made its processes")
    ground.attack("another payload of the kind stays")
    ground.defend("bans the user")
    await ground.ban("subject", mallory.subject)
    await asyncio.gather(ground.gone(stubborn), ground.refuses(mallory, "BANNED"))
    ground.expect(bool(neighbour.processes()), "a neighbour's job was killed")
    await ground.serves(bob)


def _on_disk(ground: Ground, name: str) -> list[Path]:
    """Folders of workers' scratch areas with a file of this name."""
    areas = [path.resolve() for path in ground.state.glob("sites/*/*/scratch")]
    return [Path(folder) for area in areas for folder, _, files in os.walk(area) if name in files]


async def pool_accounts_exhausted(ground: Ground) -> None:
    """More people than pool accounts: the one too many gets a clear refusal and nobody's account, other VOs notice
    nothing, and an account whose last job is gone goes to the next."""
    vo = ground.second_vo()
    ce = ground.endpoints("gatekeeper")[-1]
    if ce.site != lab.SMALL_POOLS:
        raise NotHereError(
            f"the drill fills the accounts of {vo}, and only the grid that is started for drills has few"
        )
    first, second, third = [await ground.member(part, vo) for part in (ATTACKER, ATTACKER, VICTIM)]
    ground.begin()
    running = [await _run_at(ground, ce, person, vo) for person in (first, second)]
    ground.attack(f"two members of {vo} hold all its accounts at {ce.name}")
    await ground.refuses_act(third, ce.name, _run_at(ground, ce, third, vo), "POOL_EXHAUSTED")
    async with ground.honest_work():
        ground.defend("the first cancels its job and wants no output")
        channel = await first.channel_to(ce)
        await gatekeeper.cancel(channel, [running[0].job_id])
        await ground.gone(running[0])
        began = time.monotonic()
        # the process is gone a moment before the gatekeeper knows that the job has ended
        await _while_refused(Conflict, lambda: gatekeeper.purge(channel, [running[0].job_id]))
        await _while_refused(Exhausted, lambda: _run_at(ground, ce, third, vo))
        ground.score.figures["until the account was free for the next, ms"] = round((time.monotonic() - began) * 1000)
        await ground.serves(third, [ce])


async def _run_at(ground: Ground, ce: Endpoint, person: Person, vo: str) -> Job:
    """A sleeping job, given to a gatekeeper by its owner."""
    seconds = f"3{ground.dice.randrange(10**8, 10**9)}"
    job = Job(person, f"https://drill.example/{seconds}", seconds)
    channel = await person.channel_to(ce)
    await person.grid.delegate(channel)
    description = gatekeeper_pb2.JobDescription(executable="/bin/sleep", arguments=[seconds], vo=vo)
    (outcome,) = await gatekeeper.submit(
        channel, [gatekeeper_pb2.Job(job_id=job.job_id, attempt=1, description=description)]
    )
    if not outcome.accepted:
        raise Refused(outcome.reason, outcome.sentence)
    ground.afterwards(lambda: gatekeeper.cancel(channel, [job.job_id]))
    await ground.eventually(job.processes, "the job has not started")
    return job


async def _while_refused(refusal: type[GridError], act: Callable[[], Awaitable[object]]) -> None:
    """Do this again and again until it is no longer refused so. Raises the refusal after SERVED_AGAIN_S."""
    deadline = time.monotonic() + SERVED_AGAIN_S
    while True:
        try:
            await act()
            return
        except refusal:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)
