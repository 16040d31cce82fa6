"""Who of a VO may use something, by groups and roles: a list of FQANs in the options of an agent.

`/cms` lets in every member of cms, `/cms/production` the members of that group with its subgroups and roles,
`/cms/Role=pilot` who shows that role. What the list does not name is refused; an empty list names everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fabric.errors import InvalidRequest, Refused
from fabric.rpc.peer import Peer
from security.voms import is_fqan, is_within


def check(access: Sequence[str], where: str) -> None:
    """Raises InvalidRequest SETTINGS_INVALID for what is no FQAN."""
    for fqan in access:
        if not is_fqan(fqan):
            raise InvalidRequest(
                "SETTINGS_INVALID", f"{where}: {fqan[:80]!r} is no FQAN such as /cms/production or /cms/Role=pilot"
            )


def admits(access: Sequence[str], vo: str, fqans: Iterable[str]) -> bool:
    """Whether a member of `vo` with these verified groups and roles is let in. Those of other VOs count for nothing."""
    if not access or f"/{vo}" in access:
        return True
    mine = [fqan for fqan in fqans if is_within(fqan, f"/{vo}")]
    return any(is_within(fqan, allowed) for fqan in mine for allowed in access)


def require(access: Sequence[str], peer: Peer, what: str) -> None:
    """Raises Refused ACCESS_DENIED, which says what would be enough. `what`: "jobs", "writing to the space of cms"."""
    if admits(access, peer.vo, peer.fqans):
        return
    enough = [allowed for allowed in access if is_within(allowed, f"/{peer.vo}")]
    cure = f"; make a proxy with it: grid proxy init --voms {peer.vo}:{enough[0]}" if enough else ""
    raise Refused(
        "ACCESS_DENIED",
        f"{what} is kept here for {', '.join(access)}, and {peer.subject} of {peer.vo or 'no VO'} shows "
        f"{', '.join(peer.fqans[:10]) or 'no groups or roles'}{cure}",
        subject=peer.subject,
        vo=peer.vo,
    )


def published(access: Sequence[str], vos: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the VOs that are served, those whose members are all let in; and the groups and roles of the others."""
    whole = tuple(vo for vo in vos if not access or f"/{vo}" in access)
    rest = [vo for vo in vos if vo not in whole]
    return whole, tuple(allowed for allowed in access if any(is_within(allowed, f"/{vo}") for vo in rest))
