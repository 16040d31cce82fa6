"""An incident from the alert to the end."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

from agents.bookkeeping.client import BookkeepingClient
from agents.user_interface import data
from agents.user_interface.drill.ground import REFUSED_WITHIN_S, Ground
from agents.user_interface.drill.people import LOOK_EVERY_S, Job, Person
from agents.user_interface.drill.relay import relays_from
from fabric.settings import Endpoint

JOBS, FILES, INNOCENT_JOBS = 3, 2, 4


async def incident(ground: Ground) -> None:
    """An alert names a DN and nothing else. The defender finds hosts, jobs, files and addresses in the trail, suspends,
    kills, and has the revocation in force everywhere, while honest people's jobs and calls go on."""
    mallory, alice = await ground.attacker(), await ground.victim()
    address = f"127.{ground.dice.randrange(1, 200)}.{ground.dice.randrange(200)}.66"
    ground.begin()
    # Each by its place: a slot that an earlier drill leaves just now may be given away twice, and nobody here ends.
    homes = [f'regexp(":{one.rpc}/", other.GlueCEUniqueID)' for one in ground.endpoints("gatekeeper")]
    places = itertools.cycle(homes)
    innocent = await asyncio.gather(*(alice.run_forever(next(places)) for _ in range(INNOCENT_JOBS)))
    jobs = await asyncio.gather(*(mallory.run_forever(next(places)) for _ in range(JOBS)))
    files = [await _hidden_file(ground, mallory, number) for number in range(FILES)]
    elsewhere = await ground.bearer(mallory.proxy, mallory.name, doors=await relays_from(ground, address))
    await ground.serves(elsewhere)
    ground.attack(f"has {JOBS} jobs, {FILES} files, and calls from {address}")
    computing = await _computing_elements(ground, mallory, jobs)
    async with ground.honest_work():
        began = time.monotonic()

        def took(what: str) -> None:
            ground.score.figures[f"{what}, ms"] = round((time.monotonic() - began) * 1000)
            ground.mark("defender", what)

        ground.defend(f"is told one name: {mallory.subject}")
        trail = await ground.command("audit", "--dn", mallory.subject)
        _require_found(ground, trail["entries"], [*(job.job_id for job in jobs), *files, address], computing)
        took("hosts, jobs, files and addresses identified")
        await (await ground.vo()).suspend(mallory.subject, "incident")
        took("membership suspended")
        await ground.ban("subject", mallory.subject)
        await ground.gone(*jobs)
        took("last process killed")
        await (await ground.authority()).revoke(subject=mallory.subject, reason="keyCompromise")
        await ground.refuses(mallory, "BANNED", "CERTIFICATE_REVOKED", "NOT_MAPPED")
        took("refused by every service")
        fresh = await ground.person(mallory.certificate, f"{mallory.name} with a new proxy", mallory.part)
        await asyncio.gather(*(_knows_list(fresh, endpoint) for endpoint in ground.endpoints()))
        took("revocation list in force everywhere")
        await ground.refuses(elsewhere, "BANNED", "CERTIFICATE_REVOKED", "NOT_MAPPED")
    harmed = [job for job in innocent if not job.processes()]
    ground.score.figures["innocent jobs harmed"] = len(harmed)
    ground.expect(not harmed, f"{len(harmed)} of {len(innocent)} jobs of an honest user were harmed")
    await ground.serves(alice)


async def _hidden_file(ground: Ground, person: Person, number: int) -> str:
    """A file of the person at some storage element; its LFN."""
    path = ground.folder / f"loot-{ground.dice.randrange(10**9)}-{number}"
    path.write_bytes(ground.dice.randbytes(1000))
    lfn = f"lfn:/grid/{ground.operator.vo}/{path.name}"
    element = ground.dice.choice(await data.elements(person.grid))
    await data.put(person.grid, path, lfn, element)
    return lfn


async def _computing_elements(ground: Ground, person: Person, jobs: Sequence[Job]) -> set[str]:
    """The gatekeepers where these jobs are, by what bookkeeping tells their owner."""
    bookkeeping = BookkeepingClient(await person.grid.channel("bookkeeping"))
    found = await bookkeeping.query(job_ids=[job.job_id for job in jobs])
    ports = {job.ce.partition("/")[0].rpartition(":")[2] for job in found}
    return {endpoint.name for endpoint in ground.endpoints("gatekeeper") if str(endpoint.rpc) in ports}


def _require_found(
    ground: Ground, entries: Sequence[dict[str, Any]], traces: Sequence[str], computing: set[str]
) -> None:
    """The trail must name every job, file and address, and the services where the jobs are."""
    text = json.dumps(entries)
    for trace in traces:
        ground.expect(trace.removeprefix("lfn:") in text, f"the trail does not name {trace}")
    missing = computing - {entry["agent"] for entry in entries}
    ground.expect(not missing, f"the trail has nothing of {', '.join(sorted(missing))}, where the jobs run")


async def _knows_list(person: Person, endpoint: Endpoint) -> None:
    """Wait until a service refuses a revoked person because of the list, and not only because of the ban."""
    async with asyncio.timeout(REFUSED_WITHIN_S):
        while True:
            refusal = await person.attempt(endpoint)
            if refusal is not None and refusal.reason == "CERTIFICATE_REVOKED":
                return
            await asyncio.sleep(LOOK_EVERY_S)
