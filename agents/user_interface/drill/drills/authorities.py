"""Certification authorities that misbehave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agents.user_interface.drill.ground import Ground
from agents.user_interface.drill.people import ATTACKER
from security.authority import CertificateAuthority
from security.certificates import issuer_of
from security.credentials import Credential, generate_key


def authority_of_equal_name(ground: Ground, honest: Credential) -> CertificateAuthority:
    """Another authority with the name of the one that issued this certificate."""
    name = issuer_of(honest.certificate)
    folder = ground.folder / f"rogue-{ground.dice.randrange(10**9)}"
    rogue = CertificateAuthority.create(folder, name, lifetime=timedelta(days=10), now=datetime.now(UTC))
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
