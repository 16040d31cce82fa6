"""What `grid delegation` does: the ledger of every service that holds delegated proxies, and recalling them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gridfabric.security.v1 import security_pb2 as pb
from gridfabric.security.v1 import security_pb2_grpc

from agents.authority.client import AuthorityClient
from agents.user_interface import console
from agents.user_interface.connection import Grid, as_operator, open_for_user
from fabric.errors import GridError, NotFound

KINDS = ("broker", "gatekeeper", "storage", "transfer")
"""Services that act in the name of users."""


@asynccontextmanager
async def _caller(dn: str, state: Path | None) -> AsyncIterator[Grid]:
    if dn:
        async with as_operator(state) as grid:
            yield grid
    else:
        async with open_for_user(os.environ, state) as grid:
            yield grid


async def ledger(grid: Grid, subject: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What every service holds of a subject (empty: everybody, for an operator), and who gave no answer and why."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}

    async def list_(service: str, stub: Any) -> None:
        answer = await stub.List(pb.DelegationListRequest(subject=subject))
        rows.extend(_row(service, found) for found in answer.delegations)

    await _ask_each(grid, list_, missing)
    return rows, missing


async def _ask_each(grid: Grid, ask: Callable[[str, Any], Awaitable[None]], missing: dict[str, str]) -> None:
    """Each service that holds delegations, by its name and stub; who gives no answer goes into `missing`."""
    for kind in KINDS:
        for endpoint in grid.services.all(kind):
            try:
                channel = await grid.channel_to(endpoint.host, endpoint.rpc)
                await ask(endpoint.name, security_pb2_grpc.DelegationStub(channel))
            except GridError as error:
                missing[endpoint.name] = error.sentence


def _row(service: str, found: pb.Delegated) -> dict[str, Any]:
    return {
        "service": service,
        "subject": found.subject,
        "delegation_id": found.delegation_id,
        "serial": found.serial,
        "issuer": found.issuer,
        "since": console.time_text(console.from_us(found.since_us)),
        "until": console.time_text(console.from_us(found.expires_at_us)),
        "jobs": found.jobs,
        "job_ids": list(found.job_ids),
    }


async def show(dn: str, state: Path | None, *, as_json: bool) -> None:
    """`grid delegation ls`."""
    async with _caller(dn, state) as grid:
        rows, missing = await ledger(grid, "" if dn == "*" else dn)
    if as_json:
        console.print_json({"delegations": rows, "missing": missing})
    elif rows:
        columns = ("service", "subject", "since", "until", "jobs", "serial")
        console.print_table(columns, [[row[column] for column in columns] for row in rows])
    else:
        console.say("nothing is delegated")
    console.end_with_missing(missing)


async def recall_all(grid: Grid, dn: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Take back what services hold of a subject (empty: the caller's own): first everywhere at once by a ban of each
    proxy, then erased service by service. Returns what was held, and who gave no answer and why. Raises NotFound."""
    rows, missing = await ledger(grid, dn)
    if not rows and not missing:
        raise NotFound("DELEGATION_MISSING", "nothing is delegated, so there is nothing to recall")
    authority = AuthorityClient(await grid.channel("authority"))
    for row in rows:
        until = datetime.fromisoformat(row["until"]) + timedelta(seconds=1)
        if until > datetime.now(UTC):
            await authority.ban(
                "certificate", f"{row['serial']} {row['issuer']}", reason="delegation recalled", until=until,
                ban_id=f"recall{row['serial']}"[:64],
            )  # fmt: skip

    async def recall_(_service: str, stub: Any) -> None:
        await stub.Recall(pb.DelegationRecallRequest(subject=dn))

    await _ask_each(grid, recall_, missing)
    return rows, missing


async def recall(dn: str, state: Path | None, *, as_json: bool) -> None:
    """`grid delegation recall`."""
    async with _caller(dn, state) as grid:
        rows, missing = await recall_all(grid, dn)
    if as_json:
        console.print_json({"recalled": rows, "missing": missing})
    else:
        jobs = sum(row["jobs"] for row in rows if row["service"] not in missing)
        console.say(f"recalled {len(rows)} delegated proxies; {jobs} jobs are being stopped")
    console.end_with_missing(missing)
