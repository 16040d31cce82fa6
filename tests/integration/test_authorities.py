"""Authorities made, added, rolled over and removed on a running grid, pushed to every agent; real TLS and sessions."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.grid import LabGrid

from agents.authority.client import AuthorityClient
from agents.storage import client as storage
from fabric import trust_push
from fabric.errors import Conflict, GridError
from security.authority import CertificateAuthority
from security.certificates import issuer_among, subject_hash
from security.credentials import Credential

PUSHED: dict[str, Any] = {"trust_updater": True, "crl_refresh_s": 3600.0, "trust_poll_s": 3600.0}
"""Nobody looks at the disk or asks by HTTP: what arrives was pushed."""
PROMPT_S = 15.0


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, fabric=PUSHED) as made:
        made.plan("authority")
        trust_push.remember(made.certificates, [made.grid.ca.certificate])
        yield made


async def start(lab: LabGrid, **options: Any) -> AuthorityClient:
    await lab.start("authority", options={"directory": str(lab.grid.ca.directory), "sites": {}, **options})
    return AuthorityClient(await lab.channel("authority", credential=lab.operator()))


async def space(lab: LabGrid, who: Credential) -> Any:
    return await storage.space(await lab.channel("storage", credential=who))


async def refusal(lab: LabGrid, who: Credential) -> GridError:
    """Why the storage element refuses somebody, once it does."""
    async with asyncio.timeout(PROMPT_S):
        while True:
            try:
                await space(lab, who)
            except GridError as error:
                return error
            await asyncio.sleep(0.005)


async def test_a_revocation_is_pushed_to_every_agent_in_no_time(lab: LabGrid) -> None:
    authority = await start(lab)
    await lab.start("storage")
    alice = lab.user("alice")
    await space(lab, alice)
    began = time.monotonic()
    await authority.revoke(subject=str(alice.identity), reason="keyCompromise")
    error = await refusal(lab, alice)
    assert error.reason == "CERTIFICATE_REVOKED"
    print(f"revocation to the first refusal: {(time.monotonic() - began) * 1e3:.0f} ms")
    await space(lab, lab.user("bob"))


def leaf(lab: LabGrid, name: str) -> x509.Certificate:
    """What a server shows to whoever connects now."""
    pem = ssl.get_server_certificate(("localhost", lab.port(name)), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode())


async def renewed(lab: LabGrid, *names: str) -> None:
    """Until these servers show certificates of the key that signs now."""
    async with asyncio.timeout(PROMPT_S):
        for name in names:
            while issuer_among(await asyncio.to_thread(leaf, lab, name), [lab.grid.ca.certificate]) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_roll_over_without_a_restart_and_the_end_of_the_old_key(lab: LabGrid) -> None:
    authority = await start(lab)
    await lab.start("storage")
    alice = lab.user("alice")
    await space(lab, alice)
    made = await authority.roll_over("grid")
    assert len(made.keys) == 2
    lab.grid.ca.close()
    lab.grid.ca = CertificateAuthority.open(lab.grid.ca.directory)
    with pytest.raises(Conflict) as caught:
        await authority.roll_over("grid")
    assert caught.value.reason == "ROLLOVER_UNDER_WAY"
    await space(lab, alice)  # an old certificate is as good as ever
    await renewed(lab, "authority.CERN", "storage.CERN")
    await space(lab, alice)
    with pytest.raises(Conflict) as caught:
        await authority.retire("grid")
    assert "CN=alice" in caught.value.sentence and "storage" not in caught.value.sentence
    del lab._users["alice"]
    lab.refresh_trust()
    new = lab.user("alice")
    operator = AuthorityClient(await lab.channel("authority", credential=lab.operator()))
    await space(lab, new)
    await operator.retire("grid")
    assert (await refusal(lab, alice)).reason in ("UNKNOWN_CA", "BAD_SIGNATURE")
    lab.refresh_trust()
    await space(lab, new)
    for name in ("authority.CERN", "storage.CERN"):
        assert not lab.agents[name].context.problems
    stem = subject_hash(lab.grid.ca.certificate)
    assert sorted(path.name for path in lab.certificates.glob(f"{stem}.*[0-9]")) == [f"{stem}.0", f"{stem}.r0"]
