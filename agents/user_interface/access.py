"""`grid data acl`: who may list, add to and remove from parts of the catalogue."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from agents.catalog import client as catalog
from agents.user_interface import console
from agents.user_interface.connection import Grid, as_operator, open_for_user
from agents.user_interface.data import check_lfn
from agents.user_interface.exits import UsageProblem
from fabric.errors import InvalidRequest


def parse(text: str, lfn: str) -> catalog.Grant:
    """A line of a list, RIGHTS:WHO. Raises UsageProblem."""
    rights, colon, who = text.partition(":")
    if not colon:
        raise UsageProblem(f"{text[:200]!r} is no line of an access list; write list,add:/cms/Role=production")
    try:
        return catalog.Grant.of(who, rights.split(","), catalog.parse_lfn(lfn).vo)
    except InvalidRequest as error:
        raise UsageProblem(error.sentence) from error


async def get_command(
    lfn: str, *, operator: bool, state: Path | None, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data acl get`."""
    name = check_lfn(lfn)
    async with _opened(operator, state, environ) as grid:
        _show(await catalog.access_of(await grid.channel("catalog"), name), as_json=as_json)


async def set_command(
    lfn: str,
    grants: Sequence[str],
    *,
    operator: bool,
    state: Path | None,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data acl set`, and `clear` with no grants."""
    name = check_lfn(lfn)
    wanted = [parse(text, name) for text in grants]
    async with _opened(operator, state, environ) as grid:
        _show(await catalog.set_access(await grid.channel("catalog"), name, wanted), as_json=as_json)


def _opened(operator: bool, state: Path | None, environ: Mapping[str, str]) -> AbstractAsyncContextManager[Grid]:
    return as_operator(state, environ) if operator else open_for_user(environ, state)


def _show(access: catalog.Access, *, as_json: bool) -> None:
    if as_json:
        grants = [{"who": grant.who, "rights": sorted(grant.rights)} for grant in access.grants]
        console.print_json(
            {
                "lfn": f"lfn:{access.lfn}",
                "owner": access.owner,
                "carried_by": f"lfn:{access.carried_by}" if access.carried_by else "",
                "grants": grants,
            }
        )
        return
    print(f"# file: lfn:{access.lfn}")
    print(f"# owner: {access.owner or '(the VO)'}")
    if not access.carried_by:
        print("# no access list: the whole VO may list and add")
    elif access.carried_by != access.lfn:
        print(f"# list of: lfn:{access.carried_by}")
    for grant in access.grants:
        print(grant)
