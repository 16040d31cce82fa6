"""Certification authorities that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from agents.user_interface.drill.ground import NAMES, SERVED_AGAIN_S, Ground, NotHereError
from agents.user_interface.drill.people import ATTACKER, VICTIM, Person
from agents.user_interface.users import await_known
from fabric.errors import NotFound
from security.authority import CertificateAuthority
from security.certificates import issuer_of
from security.credentials import Credential, generate_key
from security.names import DistinguishedName


def authority_of_equal_name(ground: Ground, honest: Credential) -> CertificateAuthority:
    """Another authority with the name of the one that issued this certificate."""
    name = issuer_of(honest.certificate)
    folder = ground.folder / f"rogue-{ground.dice.randrange(10**9)}"
    rogue = CertificateAuthority.create(
        folder, name, lifetime=timedelta(days=10), now=datetime.now(UTC), key_type="ec-p256"
    )
    ground.at_end(rogue.close)
    return rogue


async def ca_rogue(ground: Ground) -> None:
    """An authority of the same name issues a certificate with a real user's name."""
    alice = await ground.victim()
    ground.begin()
    rogue, key, now = authority_of_equal_name(ground, alice.certificate), generate_key("ec-p256"), datetime.now(UTC)
    subject = alice.certificate.subject
    forged = Credential(rogue.issue_user(subject, key.public_key(), lifetime=timedelta(days=1), now=now), key)
    ground.attack("an authority of the same name has signed a certificate of the user's name")
    twin = await ground.person(forged, f"twin of {alice.name}", ATTACKER)
    await ground.refuses(twin, "UNKNOWN_CA", "BAD_SIGNATURE")
    await ground.serves(alice)


async def ca_outside_namespace(ground: Ground) -> None:
    """An authority that the grid trusts for some names signs others: a user of the first authority, an operator, a
    service. Nobody believes it, and what it may sign stays good."""
    alice = await ground.victim()
    name = await _second_authority(ground)
    member = await _member_of(ground, name)
    ground.begin()
    await ground.serves(member)
    organisation = ground.services.extra["organisation"]
    key = Credential.load(*_key_files(ground, name))
    for subject, part in (
        (alice.subject, f"twin of {alice.name}"),
        (f"{organisation}/OU=Operators/CN=root", "false operator"),
        (f"{organisation}/OU={ground.one('broker').site}/CN=broker/{ground.one('broker').name}", "false broker"),
    ):
        ground.attack(f"the authority {name} signs {subject}")
        impostor = await ground.person(_signed_by(key, subject), part, ATTACKER)
        await ground.refuses(impostor, "NAMESPACE_VIOLATION")
    await asyncio.gather(ground.serves(alice), ground.serves(member))


async def ca_removed(ground: Ground) -> None:
    """An authority's key is in wrong hands. It is removed everywhere: whoever lives on its certificates is refused,
    their jobs and sessions end, nobody else notices; who has a certificate of another authority goes on."""
    name = await _second_authority(ground)
    member = await _member_of(ground, name)
    key = Credential.load(*_key_files(ground, name))
    authority = await ground.authority()
    ground.begin()
    forged = f"{member.subject.rpartition('/')[0]}/CN=Nobody {ground.dice.randrange(10**6)}"
    await (await ground.vo()).add_member(forged)
    thief = await ground.person(_signed_by(key, forged), "bearer of a forged certificate", ATTACKER)
    ground.attack(f"has the key of the authority {name} and signs certificates of its own")
    await ground.serves(thief, within_s=SERVED_AGAIN_S)
    job = await member.run_forever()
    losing = await authority.remove_authority(name, dry_run=True)
    ground.expect(member.subject in {one.subject for one in losing}, "the dry run does not name who would lose")
    async with ground.honest_work():
        ground.defend(f"removes the authority {name}")
        await authority.remove_authority(name)
        await asyncio.gather(
            ground.refuses(thief, "UNKNOWN_CA"), ground.refuses(member, "UNKNOWN_CA"), ground.gone(job)
        )
    await ground.serves(await ground.victim())


async def ca_rollover(ground: Ground) -> None:
    """An authority changes its key: old and new certificates are good side by side, the old key cannot end while
    somebody lives on it, and when it has ended only the new ones are good."""
    name = await _second_authority(ground)
    old = await _member_of(ground, name)
    authority = await ground.authority()
    ground.begin()
    await ground.serves(old)
    async with ground.honest_work():
        ground.defend(f"rolls the authority {name} over to a new key")
        await authority.roll_over(name)
        operator = await ground.bearer(ground.operator.credential, "operator", "defender")
        service = ground.one("authority").name
        await ground.refuses_act(operator, service, authority.retire(name), "AUTHORITY_IN_USE")
        renewed = await ground.certificate_of(old.name, authority=name)
        new = await ground.person(renewed, f"{old.name}, new certificate", VICTIM)
        await asyncio.gather(ground.serves(old), ground.serves(new, within_s=SERVED_AGAIN_S))
        await ground.refuses_act(operator, service, authority.retire(name), "OLD_KEY_IN_USE")
        ground.defend("ends the old key, and what may still stand on old certificates")
        await authority.retire(name, now=True)
        await ground.refuses(old, "UNKNOWN_CA", "BAD_SIGNATURE")
        await ground.serves(new)


async def _second_authority(ground: Ground) -> str:
    """A new authority of the grid, trusted everywhere, until the end of the drill."""
    name = f"ca{ground.dice.randrange(10**6)}"
    authority = await ground.authority()
    await authority.create_authority(name)

    async def remove() -> None:
        with contextlib.suppress(NotFound):
            await authority.remove_authority(name)

    ground.afterwards(remove)
    return name


async def _member_of(ground: Ground, authority: str) -> Person:
    """A member of the first VO with a certificate of this authority, whom every service knows."""
    name = f"{ground.dice.choice(NAMES)} of {authority}"
    certificate = await ground.certificate_of(name, authority=authority)
    await (await ground.vo()).add_member(str(certificate.identity), name)
    person = await ground.person(certificate, name, VICTIM)
    if unknown := await await_known(person.grid):
        raise TimeoutError(f"{name} is not known to {', '.join(unknown)}")
    return person


def _key_files(ground: Ground, name: str) -> tuple[Path, Path]:
    """Certificate and key of an authority of this grid. Raises NotHereError."""
    for path in ground.state.glob(f"sites/*/*/authorities/{name}/ca.pem"):
        return path, path.with_name("key.pem")
    raise NotHereError("the authority of this grid is on another machine")


def _signed_by(authority: Credential, subject: str) -> Credential:
    """A certificate that an authority's software would refuse to make."""
    key, now = generate_key("ec-p256"), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(DistinguishedName.parse(subject).to_x509())
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .sign(authority.key, hashes.SHA256())
    )
    return Credential(certificate, key)
