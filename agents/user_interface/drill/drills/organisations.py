"""Virtual organisations: their members, policies and attributes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from agents.user_interface.attributes import vo_client
from agents.user_interface.drill.drills.authorities import authority_of_equal_name
from agents.user_interface.drill.ground import NAMES, SERVED_AGAIN_S, Ground
from agents.user_interface.drill.people import ATTACKER, LOOK_EVERY_S, VICTIM, Person, proxy_of
from agents.user_interface.users import vo_server
from agents.vo.client import VoClient
from fabric.errors import NotFound
from security import voms
from security.credentials import Credential, generate_key


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
    await ground.serves(mallory, within_s=SERVED_AGAIN_S)


async def aup_changed(ground: Ground) -> None:
    """A VO publishes a new acceptable use policy: who has not signed it is refused everywhere and gets no attributes,
    who signs is served again; another VO's members notice nothing."""
    vo_name = ground.second_vo()
    signer, idle = await ground.member(VICTIM, vo_name), await ground.member(ATTACKER, vo_name)
    vo = await ground.vo(vo_name)
    ground.begin()
    await asyncio.gather(ground.serves(signer), ground.serves(idle))
    async with ground.honest_work():
        ground.defend("publishes a new policy, in force at once")
        version = (await vo.publish_aup(f"Rules {ground.dice.randrange(10**6)}: no mining.", 0.0)).version
        ground.afterwards(lambda: vo.publish_aup("As before.", timedelta(days=365).total_seconds()))
        await asyncio.gather(ground.refuses(signer, "NOT_MAPPED"), ground.refuses(idle, "NOT_MAPPED"))
        asked = (await _membership(idle, vo_name)).issue_attributes([f"/{vo_name}"])
        await ground.refuses_act(idle, f"vo.{vo_name}", asked, "AUP_UNSIGNED")
        await (await _membership(signer, vo_name)).sign_aup(version)
        ground.mark(VICTIM, "signs the policy")
        await ground.serves(signer, within_s=SERVED_AGAIN_S)
        await ground.refuses(idle, "NOT_MAPPED")


async def attributes_forged(ground: Ground) -> None:
    """Attribute certificates that the VO's server did not sign so, or that are over: each one refuses its proxy; the
    real one is believed, until it ends and its sessions with it."""
    vo = ground.operator.vo
    alice = await ground.victim()
    genuine = (await (await _membership(alice, vo)).issue_attributes([f"/{vo}"])).attribute_certificate
    server = Credential.load(ground.credential_file(vo_server(ground.operator, vo)))
    rogue, now = authority_of_equal_name(ground, alice.certificate), datetime.now(UTC)
    key = generate_key("rsa-2048")
    impostor_certificate = rogue.issue_host(
        ["localhost"], key.public_key(), lifetime=timedelta(days=1), now=now, subject=server.subject
    )

    def by(signer: Credential, role: str, lifetime: timedelta, began: datetime) -> bytes:
        return voms.create_attribute_certificate(
            signer, alice.certificate.certificate, vo=vo, uri="localhost:15000", fqans=[f"/{vo}/Role={role}"],
            lifetime=lifetime, now=began,
        )  # fmt: skip

    hour = timedelta(hours=1)
    altered = bytearray(genuine)
    altered[-1] ^= 1
    forgeries = {
        "signed by the user": by(alice.certificate, "admin", hour, now),
        "signed by a server that another authority has certified": by(
            Credential(impostor_certificate, key), "admin", hour, now
        ),
        "signed by a host that is no VO server": by(
            Credential.load(ground.credential_file(ground.one("storage"))), "admin", hour, now
        ),
        "with a changed signature": bytes(altered),
        "of the server, but over": by(server, "NULL", hour, now - 2 * hour),
    }
    ground.begin()
    await ground.serves(await _with_attributes(ground, alice, genuine, "genuine attributes", VICTIM))
    for how, encoded in forgeries.items():
        ground.attack(f"has attributes {how}")
        forger = await _with_attributes(ground, alice, encoded, f"attributes {how}", ATTACKER)
        await ground.refuses(forger, "ATTRIBUTE_INVALID", "UNKNOWN_CA", "BAD_SIGNATURE")
    brief = by(server, "NULL", timedelta(seconds=ground.seconds(4)), datetime.now(UTC))
    member = await _with_attributes(ground, alice, brief, "attributes that end", VICTIM)
    await ground.serves(member)
    await asyncio.sleep(ground.seconds(4))
    ground.defend("waits: the attributes end")
    await ground.refuses(member, "ATTRIBUTE_INVALID", "SESSION_EXPIRED")


async def attributes_moved(ground: Ground) -> None:
    """A privileged member's attribute certificate is put into another member's proxy."""
    vo_name, role = ground.operator.vo, f"role{ground.dice.randrange(10**6)}"
    manager, mallory = await ground.victim(), await ground.attacker()
    vo = await ground.vo()
    await vo.add_role(role)
    await vo.grant(manager.subject, f"/{vo_name}/Role={role}")
    privileged = await (await _membership(manager, vo_name)).issue_attributes([f"/{vo_name}/Role={role}"])
    ground.begin()
    encoded = privileged.attribute_certificate
    await ground.serves(await _with_attributes(ground, manager, encoded, f"{manager.name} as {role}", VICTIM))
    asked = (await _membership(mallory, vo_name)).issue_attributes([f"/{vo_name}/Role={role}"])
    await ground.refuses_act(mallory, f"vo.{vo_name}", asked, "FQAN_REFUSED")
    ground.attack(f"puts the attributes of {manager.name} into a proxy of {mallory.name}")
    await ground.refuses(
        await _with_attributes(ground, mallory, encoded, f"{mallory.name} as {role}", ATTACKER), "ATTRIBUTE_INVALID"
    )
    await ground.serves(mallory)


async def _membership(person: Person, vo: str) -> VoClient:
    """Calls of a member to the VO's server."""
    return await vo_client(person.grid, vo)


async def _with_attributes(ground: Ground, person: Person, encoded: bytes, name: str, part: str) -> Person:
    """The person with a proxy that carries this attribute certificate."""
    proxy = proxy_of(person.certificate, extensions=[voms.proxy_extension([encoded])])
    return await ground.bearer(proxy, name, part)


async def vo_dissolved(ground: Ground) -> None:
    """A VO is created, accepted by the sites, given members who run jobs, and dissolved: nothing of it works any more,
    its jobs end, and another VO's members notice nothing. No service restarts."""
    name = f"vo{ground.dice.randrange(10**6)}x"
    authority, sites = await ground.authority(), sorted({endpoint.site for endpoint in ground.endpoints("gatekeeper")})
    ground.begin()
    ground.defend(f"creates the VO {name}, which {' and '.join(sites)} accept")
    await authority.create_vo(name)
    await authority.accept_vo(name, sites)
    server = ground.one("vo")
    vo = VoClient(await ground.operator.channel_to(server.host, server.rpc), name)
    members: list[Person] = []
    for number in range(2):
        certificate = await ground.certificate_of(f"{ground.dice.choice(NAMES)} of {name} {number}")
        await _hosted(vo, str(certificate.identity))
        members.append(await ground.person(certificate, str(certificate.identity.common_name), VICTIM))
    await asyncio.gather(*(ground.serves(member, within_s=SERVED_AGAIN_S) for member in members))
    home = f'regexp(":{ground.one("gatekeeper").rpc}/", other.GlueCEUniqueID)'  # the other site names its pools itself
    jobs = await asyncio.gather(*(member.run_forever(home) for member in members))
    ground.score.figures["from nothing to a running job of the new VO, ms"] = ground.score.now_ms()
    async with ground.honest_work():
        ground.defend("dissolves the VO")
        await authority.dissolve_vo(name, "drill")
        await asyncio.gather(
            *(ground.refuses(member, "VO_DISSOLVED", "NOT_MAPPED") for member in members), ground.gone(*jobs)
        )
        own = VoClient(await members[0].grid.channel_to(server.host, server.rpc), name)
        await ground.refuses_act(
            members[0], server.name, own.issue_attributes([f"/{name}"]), "VO_DISSOLVED", "VO_UNKNOWN"
        )


async def _hosted(vo: VoClient, subject: str) -> None:
    """A member of a VO that its server may have heard of only now."""
    async with asyncio.timeout(SERVED_AGAIN_S):
        while True:
            try:
                return await vo.add_member(subject)
            except NotFound:
                await asyncio.sleep(LOOK_EVERY_S)
