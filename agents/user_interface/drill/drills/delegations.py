"""Delegated proxies: stolen from a service, and used after their job."""

from __future__ import annotations

import asyncio
import os

from agents.user_interface import delegations
from agents.user_interface.drill.ground import Ground, NotHereError
from agents.user_interface.jobs import fetch_output
from security.credentials import Credential


async def delegation_stolen(ground: Ground) -> None:
    """Somebody reads a delegated proxy from a gatekeeper's disk and uses it; its owner recalls everything delegated."""
    alice = await ground.victim()
    ground.begin()
    job = await alice.run_forever()
    thief = await ground.bearer(_delegated_to_a_gatekeeper(ground, alice.subject), f"thief of {alice.name}'s proxy")
    ground.attack("reads a delegated proxy from the disk of a gatekeeper")
    targets = ground.endpoints("storage", "catalog")
    await ground.serves(thief, targets)
    held, _ = await delegations.ledger(alice.grid, "")
    ground.expect(bool(held), "no service tells its owner what it holds")
    ground.defend("the owner recalls what was delegated")
    await delegations.recall_all(alice.grid, "")
    await asyncio.gather(ground.refuses(thief, "BANNED", endpoints=targets), ground.gone(job))
    await ground.serves(alice)


def _delegated_to_a_gatekeeper(ground: Ground, subject: str) -> Credential:
    for path in ground.state.glob("sites/*/gatekeeper.*/delegations/*.pem"):
        if os.access(path, os.R_OK):
            credential = Credential.load(path)
            if str(credential.identity) == subject:
                return credential
    raise NotHereError(f"no gatekeeper on this machine holds a proxy of {subject}")


async def delegation_reused(ground: Ground) -> None:
    """A payload keeps a copy of its delegated proxy; after the job has ended somebody uses it: it starts no job, and
    what it can still read ends when the owner recalls what was delegated."""
    alice = await ground.victim()
    ground.begin()
    jdl = 'Executable = "/bin/sh"; Arguments = "-c \\"cp $X509_USER_PROXY kept.pem\\""; OutputSandbox = {"kept.pem"};'
    job_id = await alice.submit(jdl)
    folder = ground.folder / f"kept-{ground.dice.randrange(10**9)}"
    await ground.done(alice, job_id)
    await fetch_output(alice.grid, job_id, folder, clear=True)
    (folder / "kept.pem").chmod(0o600)
    thief = await ground.bearer(Credential.load(folder / "kept.pem"), f"thief of {alice.name}'s job proxy")
    ground.attack("has the proxy of a job that has ended")
    targets = ground.endpoints("storage", "catalog")
    await ground.serves(thief, targets)
    submission = thief.submit('Executable = "/bin/true";')
    await ground.refuses_act(thief, ground.one("broker").name, submission, "LIMITED_PROXY")
    ground.defend("the owner recalls what was delegated")
    await delegations.recall_all(alice.grid, "")
    await ground.refuses(thief, "BANNED", endpoints=targets)
    await ground.serves(alice)
