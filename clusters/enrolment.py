"""How a machine elsewhere becomes part of the grid: invited by the operator, enrolled with a token that works once.

The authority's certificate travels in the invitation, so that the first connection is already to the right server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agents.authority.client import AuthorityClient, open_client
from clusters import trust
from clusters.model import GridDescription
from clusters.paths import StatePaths
from clusters.plan import PlannedAgent
from clusters.trust import Invitation
from fabric.errors import InvalidRequest, NotFound, from_security
from security.credentials import Credential
from security.errors import SecurityError


def prepare_elsewhere(
    state: StatePaths, agents: Sequence[PlannedAgent], given: Invitation | None, now: datetime
) -> None:
    """Trust and credentials where the authority is on another machine. Enrols only what has no usable credential yet.

    Raises InvalidRequest INVITATION_NEEDED, or what the authority said.
    """
    if given is not None:
        trust.install_invitation(state, given, now)
    pem = b"".join(path.read_bytes() for path in sorted(state.certificates.glob("*.[0-9]")))
    lacking = trust.lacking(agents, pem, now) if pem else list(agents)
    if not lacking:
        return
    if given is None:
        names = ", ".join(agent.name for agent in lacking[:5])
        raise InvalidRequest(
            "INVITATION_NEEDED",
            f"{names} have no certificates here; get an invitation where the authority runs with: "
            "grid host invite SITE, and add --invitation FILE",
        )
    sites = {agent.description.site for agent in lacking}
    if sites != {given.site}:
        raise InvalidRequest(
            "INVITATION_OTHER_SITE", f"the invitation is for site {given.site}, not for {', '.join(sorted(sites))}"
        )
    asyncio.run(_enrol(state, given, lacking))


async def _enrol(state: StatePaths, invitation: Invitation, agents: Sequence[PlannedAgent]) -> None:
    requests = trust.make_requests(agents)
    async with open_client(invitation.authority_host, invitation.authority_port, state.certificates) as client:
        issued = await client.enrol(
            invitation.token,
            invitation.site,
            [(a.settings["kind"], a.name, a.hosts, requests[a.name][0]) for a in agents],
        )
    for agent, certificate in zip(agents, issued, strict=True):
        trust.save_issued(agent, certificate, requests[agent.name][1])


def invite(description: GridDescription, state: StatePaths, endpoints: Mapping[str, Any], site: str) -> Invitation:
    """Ask the running authority for an invitation. Raises GridError."""
    return asyncio.run(_invite(description, state, endpoints, site))


async def _invite(
    description: GridDescription, state: StatePaths, endpoints: Mapping[str, Any], site: str
) -> Invitation:
    found = endpoints["endpoints"].get("authority", [])
    if not found:
        raise NotFound("AUTHORITY_UNKNOWN", f"no authority is known in {state.root}")
    try:
        credential = Credential.load(state.administrator)
    except SecurityError as error:
        raise from_security(error) from error
    async with open_client(found[0]["host"], found[0]["rpc"], state.certificates, credential) as client:
        token, authority_pem = await client.invite(site)
    policy, crl = trust.policy_and_crl(state.certificates, authority_pem)
    return Invitation(
        description.name,
        site,
        token,
        found[0]["host"],
        found[0]["rpc"],
        authority_pem.decode(),
        policy,
        crl,
        tuple(vo.name for vo in description.vos),
    )


__all__ = ["AuthorityClient", "invite", "prepare_elsewhere"]
