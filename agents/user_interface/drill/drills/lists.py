"""Revocation lists: late, old, forged, out of reach. The lab's agents share one directory of authorities."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from agents.user_interface.drill.drills.authorities import authority_of_equal_name
from agents.user_interface.drill.ground import SERVED_AGAIN_S, Ground
from agents.user_interface.drill.people import VICTIM, Person, proxy_of
from security.certificates import issuer_of, public_key_of
from security.files import write_atomic
from security.installation import install_crl
from security.trust import TrustStore

SHARED = (
    "all agents of this lab share one directory of authorities; elsewhere each host has its own and fetches by itself"
)


async def crl_server_down(ground: Ground) -> None:
    """The authority's host hangs: with the last good list everything goes on, new sessions and jobs too; a revocation
    takes effect when it is back."""
    mallory = await ground.attacker()
    ground.begin()
    await ground.serves(mallory)
    async with ground.honest_work():
        thaw = ground.freeze(ground.one("authority"))
        ground.attack("the authority's host hangs")
        await asyncio.sleep(ground.seconds(3))
        newcomer = await ground.person(mallory.certificate, f"{mallory.name} with a new proxy", VICTIM)
        await ground.serves(newcomer)
        await newcomer.run_forever()
        await thaw()
        ground.defend("the authority is back, and the certificate is revoked")
        await (await ground.authority()).revoke(subject=mallory.subject, reason="keyCompromise")
        await ground.refuses(mallory, "CERTIFICATE_REVOKED")


async def crl_expired(ground: Ground) -> None:
    """The authority hangs until its list is past nextUpdate: every service refuses everybody, running jobs go on, and
    when the authority is back, so is everybody."""
    ground.note(SHARED)
    alice = await ground.victim()
    authority = ground.authority_files()
    ground.begin()
    job = await alice.run_forever()
    await ground.serves(alice)
    ground.freeze(ground.one("authority"))
    brief = authority.build_crl(datetime.now(UTC), timedelta(seconds=ground.seconds(5)))
    install_crl(ground.certificates, brief, datetime.now(UTC))
    ends_at = datetime.now(UTC) + timedelta(seconds=ground.seconds(5))
    ground.attack("the authority hangs, its last list is about to end")
    await asyncio.sleep(max(0.0, (ends_at - datetime.now(UTC)).total_seconds()))
    ground.attack("the list is past its nextUpdate")
    await ground.refuses(alice, "CRL_EXPIRED")
    ground.expect(bool(job.processes()), "a running job was stopped because a list is late")
    ground.defend("restarts the authority, which publishes a list")
    await ground.restart(ground.one("authority"))
    await ground.serves(alice, within_s=SERVED_AGAIN_S)
    ground.expect(bool(job.processes()), "a running job was stopped because a list was late")


async def crl_older(ground: Ground) -> None:
    """Somebody puts an older list, from before a revocation, in the place of the current one; a service restarts."""
    ground.note(SHARED)
    mallory, alice = await ground.attacker(), await ground.victim()
    path = _list_of(ground, mallory)
    older = path.read_bytes()
    ground.begin()
    await ground.serves(mallory)
    ground.defend("revokes the certificate")
    _, number = await (await ground.authority()).revoke(subject=mallory.subject, reason="keyCompromise")
    await ground.refuses(mallory, "CERTIFICATE_REVOKED")
    write_atomic(path, older, 0o644)
    ground.attack("puts the list from before the revocation in its place")
    await _goes_on(ground, mallory, alice, path, number)


async def crl_wrong_ca(ground: Ground) -> None:
    """A newer list of the right name, signed by another authority's key, names nobody; a service restarts."""
    ground.note(SHARED)
    mallory, alice = await ground.attacker(), await ground.victim()
    rogue, path = authority_of_equal_name(ground, alice.certificate), _list_of(ground, mallory)
    ground.begin()
    await ground.serves(mallory)
    ground.defend("revokes the certificate")
    _, number = await (await ground.authority()).revoke(subject=mallory.subject, reason="keyCompromise")
    await ground.refuses(mallory, "CERTIFICATE_REVOKED")
    write_atomic(path, rogue.build_crl(datetime.now(UTC), timedelta(days=30)), 0o644)
    ground.attack("puts a list in its place that another authority of that name has signed")
    await _goes_on(ground, mallory, alice, path, number)


async def _goes_on(ground: Ground, mallory: Person, alice: Person, path: Path, number: int) -> None:
    """With a bad list on the disk: the revoked stay refused, others are served, also by a service that restarts; and
    the good list comes back."""
    await asyncio.sleep(ground.seconds(2))
    await ground.refuses(mallory, "CERTIFICATE_REVOKED")
    await ground.serves(alice)
    restarted = ground.one("storage")
    await ground.restart(restarted)
    fresh = await ground.bearer(proxy_of(alice.certificate), f"{alice.name} with a new proxy", VICTIM)
    await ground.serves(fresh, [restarted], within_s=SERVED_AGAIN_S)
    revoked = await ground.person(mallory.certificate, f"{mallory.name} with a new proxy", mallory.part)
    await ground.refuses_act(revoked, restarted.name, revoked.call(restarted), "CERTIFICATE_REVOKED")
    await ground.eventually(
        lambda: (_number(path, alice) or 0) >= number, "the good list is not on the disk again", SERVED_AGAIN_S
    )
    ground.mark("umpire", "the good list is on the disk again")


def _number(path: Path, person: Person) -> int | None:
    """Of a list on the disk, if it is one of the authority that issued somebody's certificate."""
    found = x509.load_pem_x509_crl(path.read_bytes())
    authority = TrustStore(path.parent).snapshot().named(issuer_of(person.certificate.certificate))
    if not any(found.is_signature_valid(public_key_of(one.certificate)) for one in authority):
        return None
    return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _list_of(ground: Ground, person: Person) -> Path:
    """The file with the revocation list of the authority that issued somebody's certificate."""
    name = issuer_of(person.certificate.certificate)
    for authority in TrustStore(ground.certificates).snapshot().named(name):
        for stem in sorted(authority.stems):
            if (path := ground.certificates / f"{stem}.r0").exists():
                return path
    raise FileNotFoundError(f"no list of {name} in {ground.certificates}")
