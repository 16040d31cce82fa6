"""Authorities made, added, rolled over and removed on a running grid, pushed to every agent; real TLS and sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid

from agents.authority.client import AuthorityClient
from agents.storage import client as storage
from fabric import trust_push
from fabric.errors import GridError
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
