"""Virtual organisations: their members, policies and attributes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agents.user_interface.drill.drills.authorities import authority_of_equal_name
from agents.user_interface.drill.ground import NAMES, SERVED_AGAIN_S, Ground
from agents.user_interface.drill.people import ATTACKER, LOOK_EVERY_S, VICTIM, Person, proxy_of
from agents.user_interface.vos import server_of, vo_client
from agents.vo.client import VoClient
from fabric.errors import NotFound
from fabric.settings import Endpoint
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
    new = await _NewVo.create(ground)
    ground.afterwards(new.dissolve)
    signer, idle = await new.join("signer", VICTIM), await new.join("idle", ATTACKER)
    ground.begin()
    await asyncio.gather(*(ground.serves(member, within_s=SERVED_AGAIN_S) for member in (signer, idle)))
    async with ground.honest_work():
        ground.defend("publishes a new policy, in force at once")
        version = (await new.client.publish_aup(f"Rules {ground.dice.randrange(10**6)}: no mining.")).version
        await asyncio.gather(ground.refuses(signer, "NOT_MAPPED"), ground.refuses(idle, "NOT_MAPPED"))
        asked = (await new.of(idle)).issue_attributes([f"/{new.name}"])
        await ground.refuses_act(idle, new.server.name, asked, "AUP_UNSIGNED")
        await (await new.of(signer)).sign_aup(version)
        ground.mark(VICTIM, "signs the policy")
        await ground.serves(signer, within_s=SERVED_AGAIN_S)
        await ground.refuses(idle, "NOT_MAPPED")


async def attributes_forged(ground: Ground) -> None:
    """Attribute certificates that the VO's server did not sign so, or that are over: each one refuses its proxy; the
    real one is believed, until it ends and its sessions with it."""
    vo = ground.operator.vo
    alice = await ground.victim()
    genuine = (await (await _membership(alice, vo)).issue_attributes([f"/{vo}"])).attribute_certificate
    server = Credential.load(ground.credential_file(await server_of(ground.operator, vo)))
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
    ground.begin()
    new = await _NewVo.create(ground)
    members = [await new.join(str(number), VICTIM) for number in range(2)]
    await asyncio.gather(*(ground.serves(member, within_s=SERVED_AGAIN_S) for member in members))
    home = f'regexp(":{ground.one("gatekeeper").rpc}/", other.GlueCEUniqueID)'  # the other site names its pools itself
    jobs = await asyncio.gather(*(member.run_forever(home) for member in members))
    ground.score.figures["from nothing to a running job of the new VO, ms"] = ground.score.now_ms()
    async with ground.honest_work():
        ground.defend("dissolves the VO")
        await new.dissolve()
        await asyncio.gather(
            *(ground.refuses(member, "VO_DISSOLVED", "NOT_MAPPED") for member in members), ground.gone(*jobs)
        )
        asked = (await new.of(members[0])).issue_attributes([f"/{new.name}"])
        await ground.refuses_act(members[0], new.server.name, asked, "VO_DISSOLVED", "VO_UNKNOWN")


@dataclass(frozen=True)
class _NewVo:
    """A VO that is made on the running grid, so that no other VO's members are disturbed."""

    ground: Ground
    name: str
    server: Endpoint
    client: VoClient
    """For the operator."""

    @classmethod
    async def create(cls, ground: Ground) -> _NewVo:
        """Accepted by every site."""
        name, server = f"vo{ground.dice.randrange(10**6)}x", ground.one("vo")
        sites = sorted({endpoint.site for endpoint in ground.endpoints("gatekeeper")})
        ground.defend(f"creates the VO {name}, which {' and '.join(sites)} accept")
        authority = await ground.authority()
        await authority.create_vo(name)
        await authority.accept_vo(name, sites)
        return cls(ground, name, server, VoClient(await ground.operator.channel_to(server.host, server.rpc), name))

    async def join(self, name: str, part: str) -> Person:
        """A member, whom services know a little later. Its server may have heard of the VO only now."""
        ground = self.ground
        called = f"{ground.dice.choice(NAMES)} {name} of {self.name}"
        certificate = await ground.certificate_of(called)
        async with asyncio.timeout(SERVED_AGAIN_S):
            while True:
                try:
                    await self.client.add_member(str(certificate.identity))
                    break
                except NotFound:
                    await asyncio.sleep(LOOK_EVERY_S)
        return await ground.person(certificate, called, part)

    async def of(self, person: Person) -> VoClient:
        """For a member."""
        return VoClient(await person.grid.channel_to(self.server.host, self.server.rpc), self.name)

    async def dissolve(self) -> None:
        """For ever. May be repeated."""
        await (await self.ground.authority()).dissolve_vo(self.name, "drill")
