"""What `grid ca create|add|remove|ls|rollover|retire` do, in the name of the grid's operator."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from gridfabric.authority.v1 import trust_pb2 as pb

from agents.authority.client import AuthorityClient
from agents.user_interface import bans, console, endpoints
from agents.user_interface.connection import Grid, administrator, as_operator
from agents.user_interface.exits import UsageProblem
from agents.user_interface.users import make_request
from fabric.clock import from_us, utc_text
from fabric.errors import Conflict, NotFound
from security.bans import Ban
from security.credentials import Credential, generate_key
from security.errors import os_error_text
from security.files import read_bounded
from security.signing_policy import matches

COLUMNS = ("name", "subject", "hash", "kind", "key", "until", "list", "in_force")
MAX_FILE_BYTES = 4 * 1024 * 1024
"""Of what one call can carry."""


async def show(state: Path | None, *, as_json: bool) -> None:
    """`grid ca ls`."""
    async with as_operator(state) as grid:
        found = [row(one) for one in await AuthorityClient(await grid.channel("authority")).authorities()]
    if as_json:
        console.print_json(found)
        return
    lines = [
        {**one, "key": f"{number} of {len(one['keys'])}", **key}
        for one in found
        for number, key in enumerate(one["keys"], 1)
    ]
    console.print_table(COLUMNS, [[line[column] for column in COLUMNS] for line in lines])


async def create(
    name: str, under: str | None, namespace: Sequence[str], lifetime_s: int, state: Path | None, *, as_json: bool
) -> None:
    """`grid ca create`."""
    async with as_operator(state) as grid:
        client = AuthorityClient(await grid.channel("authority"))
        made = await client.create_authority(name, parent=under or "", namespace=namespace, lifetime_s=lifetime_s)
    _tell(made, "created, and trusted by every host now", as_json=as_json)


async def add(
    certificate: Path, policy: Path, crl: Path | None, crl_url: Sequence[str], state: Path | None, *, as_json: bool
) -> None:
    """`grid ca add`. Raises UsageProblem."""
    offered = _read(certificate), _read(policy).decode("utf-8", "replace"), b"" if crl is None else _read(crl)
    async with as_operator(state) as grid:
        added = await AuthorityClient(await grid.channel("authority")).add_authority(*offered, crl_url)
    if not any(key.crl_number for key in added.keys) and not crl_url:
        console.warn("without a revocation list its people are refused where one is required; give --crl or --crl-url")
    _tell(added, "added, and trusted by every host now", as_json=as_json)


async def remove(authority: str, state: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """`grid ca remove`."""
    async with as_operator(state) as grid:
        client = AuthorityClient(await grid.channel("authority"))
        losing = await client.remove_authority(authority, dry_run=True)  # refuses what cannot be removed
        if dry_run:
            bans.print_hits(await _would_lose(grid, await _find(client, authority)), as_json=as_json)
            return
        losing = await client.remove_authority(authority)
    if as_json:
        console.print_json({"authority": authority, "removed": True, "certificates": [_losing(one) for one in losing]})
    else:
        console.say(f"removed: {authority}; {len(losing)} certificates are worth nothing any more")


async def roll_over(authority: str, state: Path | None, *, as_json: bool) -> None:
    """`grid ca rollover`: then the operator's own certificate is renewed too."""
    async with as_operator(state) as grid:
        client = AuthorityClient(await grid.channel("authority"))
        made = await client.roll_over(authority)
        await _renew_own(client, state)
    _tell(made, f"has a new key; end the old one with: grid ca retire '{made.name}'", as_json=as_json)


async def retire(authority: str, state: Path | None, *, dry_run: bool, now: bool, as_json: bool) -> None:
    """`grid ca retire`."""
    async with as_operator(state) as grid:
        client = AuthorityClient(await grid.channel("authority"))
        await _renew_own(client, state)
        ending = await client.retire(authority, dry_run=dry_run, now=now)
    losing = [_losing(one) | {"until": utc_text(from_us(one.until_us)), "renewed": one.renewed} for one in ending]
    if as_json:
        console.print_json({"authority": authority, "retired": not dry_run, "live_on_it": losing})
    elif not dry_run:
        console.say(f"retired: the old key of {authority}; {len(losing)} certificates ended with it")
    elif losing:
        console.print_table(
            ("subject", "kind", "serial", "until", "has a new one"),
            [
                (one.subject, one.kind, one.serial, utc_text(from_us(one.until_us)), "yes" if one.renewed else "no")
                for one in ending
            ],
        )
    else:
        console.say("nobody lives on the old key")


async def _renew_own(client: AuthorityClient, state: Path | None) -> None:
    """The operator's own certificate, if an old key has signed it."""
    folder = endpoints.state_folder(state, os.environ)
    key = generate_key("ec-p256")
    try:
        renewed = await client.renew(make_request(key, administrator(folder).subject.common_name))
    except Conflict as error:
        if error.reason != "RENEWAL_NOT_DUE":
            raise
        return
    await asyncio.to_thread(Credential(x509.load_pem_x509_certificate(renewed), key).save, folder / "admin.pem")


async def _find(client: AuthorityClient, text: str) -> pb.AuthorityFacts:
    for one in await client.authorities():
        if text in (one.name, one.subject, one.hash):
            return one
    raise NotFound("AUTHORITY_UNKNOWN", f"there is no authority {text[:200]!r}; grid ca ls shows them")


async def _would_lose(grid: Grid, authority: pb.AuthorityFacts) -> dict[str, Any]:
    """Who and what lives on an authority: by its register, and of a foreign one by the names that it may sign."""
    meant = None
    if authority.is_foreign:

        def meant(subject: str) -> bool:
            return any(matches(pattern, subject) for pattern in authority.namespace)

    return await bans.would_hit(grid, Ban.parse(f"authority:{authority.subject}"), meant)


def row(authority: pb.AuthorityFacts) -> dict[str, Any]:
    """One authority for people and programs."""
    kind = "foreign" if authority.is_foreign else f"below {authority.parent}" if authority.parent else "root"
    return {
        "name": authority.name,
        "subject": authority.subject,
        "hash": authority.hash,
        "kind": kind,
        "may_sign": list(authority.namespace),
        "keys": [
            {
                "fingerprint": key.fingerprint,
                "until": console.time_text(console.from_us(key.not_after_us)),
                "list": key.crl_number or "none",
                "list_until": console.time_text(console.from_us(key.crl_next_update_us)),
                "in_force": key.active,
            }
            for key in authority.keys
        ],
    }


def _losing(one: pb.Losing) -> dict[str, str]:
    return {"subject": one.subject, "serial": one.serial, "kind": one.kind}


def _tell(authority: pb.AuthorityFacts, what: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json(row(authority))
    else:
        console.say(f"{authority.name}: {authority.subject} {what}; it may sign {', '.join(authority.namespace)}")


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UsageProblem(f"{path} cannot be read ({os_error_text(error)})") from None
