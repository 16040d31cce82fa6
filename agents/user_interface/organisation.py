"""What `grid vo` does: memberships, groups, roles and the acceptable use policy of a virtual organisation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gridfabric.vo.v1 import vo_pb2 as pb

from agents.user_interface import console, endpoints
from agents.user_interface.connection import administrator, open_for_user, open_grid
from agents.user_interface.exits import Ended, ExitCode
from agents.user_interface.vos import vo_client
from agents.vo.client import VoClient
from fabric.errors import NotFound

Call = Callable[[VoClient], Awaitable[Any]]


@asynccontextmanager
async def as_manager(
    vo: str | None, state: Path | None, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[VoClient]:
    """Calls in the name of the operator where the grid was started, else of the user, whose proxy shows VO-Admin."""
    folder = _operators_folder(state, environ)
    if folder is None:
        async with as_user(vo, state, environ) as client:
            yield client
        return
    services = endpoints.find(environ, folder)
    async with open_grid(services, administrator(folder), Path(services.certificates)) as grid:
        yield await vo_client(grid, vo or environ.get("GRIDFABRIC_VO") or grid.vo)


def _operators_folder(state: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The state folder whose operator we are, if there is one."""
    try:
        folder = endpoints.state_folder(state, environ)
    except NotFound:
        return None
    return folder if os.access(folder / "admin.pem", os.R_OK) else None


@asynccontextmanager
async def as_user(
    vo: str | None, state: Path | None = None, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[VoClient]:
    """Calls in the name of the user's proxy."""
    async with open_for_user(environ, state) as grid:
        yield await vo_client(grid, vo or grid.vo)


def member_facts(answer: pb.GetMemberResponse) -> dict[str, Any]:
    """A membership for people and programs."""
    member = answer.member
    return {
        "vo": answer.vo,
        **row(member),
        "aup_signed_at": console.time_us_text(member.aup_signed_at_us),
        "attributes": dict(member.attributes),
        "good_standing": not answer.objection,
        "objection": answer.objection,
    }


def row(member: pb.Member) -> dict[str, Any]:
    """One member of a list."""
    return {
        "subject": member.subject,
        "common_name": member.common_name,
        "email": member.email,
        "state": state_name(member.state),
        "groups": list(member.groups),
        "aup_version": member.aup_version,
        "added_at": console.time_us_text(member.added_at_us),
        "expires_at": console.time_us_text(member.expires_at_us),
        "reason": member.reason,
    }


def state_name(state: int) -> str:
    """APPROVED, ..."""
    return pb.MemberState.Name(state).removeprefix("MEMBER_STATE_")


async def list_members(vo: str | None, state: Path | None, wanted: str, *, as_json: bool) -> None:
    """`grid vo member ls`."""
    async with as_manager(vo, state) as client:
        members = [row(member) for member in await client.list_members()]
    members = [member for member in members if not wanted or member["state"] == wanted.upper()]
    if as_json:
        console.print_json({"members": members})
        return
    console.print_table(
        ["Member", "State", "AUP", "Until", "Groups and roles"],
        [
            [m["subject"], m["state"], m["aup_version"] or "-", m["expires_at"][:10], " ".join(m["groups"])]
            for m in members
        ],
    )


async def show_member(subject: str, vo: str | None, state: Path | None, *, as_json: bool) -> None:
    """`grid vo member show`; one's own membership without a subject. Exit 1 for no good standing."""
    async with as_manager(vo, state) if subject else as_user(vo, state) as client:
        facts = member_facts(await client.get_member(subject))
    print_member(facts, as_json=as_json)
    if not facts["good_standing"]:
        raise Ended(ExitCode.FAILED)


def print_member(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """As JSON or as lines."""
    if as_json:
        console.print_json(facts)
        return
    attributes_text = " ".join(f"{name}={value}" for name, value in facts["attributes"].items())
    shown = {
        "vo": facts["vo"],
        "member": facts["subject"],
        "state": facts["state"] + (f" ({facts['reason']})" if facts["reason"] else ""),
        "groups and roles": " ".join(facts["groups"]) or "-",
        "attributes": attributes_text or "-",
        "policy signed": f"version {facts['aup_version']}, {facts['aup_signed_at']}" if facts["aup_version"] else "-",
        "until": facts["expires_at"] or "for good",
        "good standing": "yes" if facts["good_standing"] else f"no: {facts['objection']}",
    }
    console.print_facts(shown)


async def change(call: Call, vo: str | None, state: Path | None, *, as_json: bool, own: bool = False) -> None:
    """One change of a membership, and the membership afterwards."""
    async with as_user(vo, state) if own else as_manager(vo, state) as client:
        answer = await call(client)
    print_member(member_facts(answer), as_json=as_json)


async def do(call: Call, done: str, vo: str | None, state: Path | None, *, as_json: bool) -> None:
    """One change without an answer."""
    async with as_manager(vo, state) as client:
        await call(client)
    if as_json:
        console.print_json({"done": done})
    else:
        print(done)


async def list_groups(vo: str | None, state: Path | None, *, as_json: bool) -> None:
    """`grid vo group ls`."""
    async with as_manager(vo, state) as client:
        found = await client.list_groups()
    if as_json:
        console.print_json({"vo": found.vo, "groups": list(found.groups), "roles": list(found.roles)})
        return
    print("\n".join(found.groups))
    print(f"roles: {' '.join(found.roles) or '-'}")


def aup_facts(found: pb.GetAupResponse) -> dict[str, Any]:
    """A policy for people and programs."""
    return {
        "vo": found.vo,
        "version": found.version,
        "published_at": console.time_us_text(found.published_at_us),
        "required_at": console.time_us_text(found.required_at_us),
        "text": found.text,
    }


async def show_aup(vo: str | None, state: Path | None, *, as_json: bool) -> None:
    """`grid vo aup show`."""
    async with as_user(vo, state) as client:
        facts = aup_facts(await client.get_aup())
    print_aup(facts, as_json=as_json)


def print_aup(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """As JSON or as text."""
    if as_json:
        console.print_json(facts)
    elif not facts["version"]:
        print(f"{facts['vo']} has no acceptable use policy")
    else:
        print(f"{facts['vo']}, version {facts['version']}, required from {facts['required_at']}\n\n{facts['text']}")


async def publish_aup(file: Path, grace_s: float, vo: str | None, state: Path | None, *, as_json: bool) -> None:
    """`grid vo aup publish`."""
    text = file.read_text(encoding="utf-8")
    async with as_manager(vo, state) as client:
        facts = aup_facts(await client.publish_aup(text, grace_s))
    print_aup(facts, as_json=as_json)


async def sign_aup(version: int | None, vo: str | None, state: Path | None, *, as_json: bool) -> None:
    """`grid vo aup sign`: the version named, or the current one."""
    async with as_user(vo, state) as client:
        answer = await client.sign_aup(version if version is not None else (await client.get_aup()).version)
    print_member(member_facts(answer), as_json=as_json)
