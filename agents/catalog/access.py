"""Who may use which part of the catalogue: access lists on directories and files, by groups, roles and names.

A name goes by its own list, else by that of the nearest directory above that has one: one list on a directory is
about everything below. Where there is none, the whole VO may (and `removal` in the options says who removes). The
owner of the name that has the list, the VO's managers (`/<vo>/Role=VO-Admin`) and operators have every right and change
it, so nobody is locked out. Whoever owns a name may give it a list of its own, and remove the name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from agents.catalog.names import ROOT, Lfn
from fabric.errors import Exhausted, InvalidRequest, Refused
from fabric.rpc.peer import Peer
from fabric.store import rows
from security.errors import SecurityError
from security.names import DistinguishedName
from security.voms import is_fqan, is_within

MAX_ENTRIES = 100
"""Of one list: more people than that are a group."""
MAX_LISTS = 10_000
"""In one catalogue: lists are about subtrees, not about single files."""
MAX_WHO_LENGTH = 1024


class Right(StrEnum):
    """What may be done with names."""

    LIST = "list"
    """List the directory, look up files and their replicas."""
    ADD = "add"
    """Register files and replicas, make directories."""
    REMOVE = "remove"
    """Take away names and replicas."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of a list."""

    who: str
    """An FQAN of the VO (`/cms` is all of it), or a person's DN."""
    rights: frozenset[Right]

    @classmethod
    def of(cls, who: str, rights: Iterable[str], vo: str) -> Grant:
        """Checked. Raises InvalidRequest ACL_INVALID."""
        try:
            chosen = frozenset(Right(right) for right in rights)
            if len(who) > MAX_WHO_LENGTH or not chosen:
                raise ValueError("it names no right" if not chosen else "it is too long")
            if is_fqan(who):
                if not is_within(who, f"/{vo}"):
                    raise ValueError(f"{who} is of another VO than {vo}")
                return cls(who, chosen)
            return cls(str(DistinguishedName.parse(who)), chosen)
        except (ValueError, SecurityError) as error:
            raise InvalidRequest(
                "ACL_INVALID",
                f"{','.join(rights)[:80]}:{who[:200]} is no line of an access list ({str(error)[:200]}); write "
                f"rights of {', '.join(Right)} and whose, such as list,add:/{vo}/Role=production or "
                "remove:/O=.../CN=name",
            ) from error

    def __str__(self) -> str:
        return f"{','.join(right for right in Right if right in self.rights)}:{self.who}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as lists are concerned."""

    subject: str
    vo: str
    fqans: tuple[str, ...]
    is_operator: bool = False

    @classmethod
    def of(cls, peer: Peer) -> Caller:
        """Of a session."""
        return cls(peer.subject, peer.vo, tuple(peer.fqans), peer.is_administrator)

    @property
    def manages(self) -> bool:
        """The VO's manager, or an operator."""
        return self.is_operator or f"/{self.vo}/Role=VO-Admin" in self.fqans

    def has(self, who: str) -> bool:
        """Whether a line about `who` is about the caller."""
        if who in (self.subject, f"/{self.vo}"):
            return True
        return any(is_within(fqan, who) for fqan in self.fqans if is_within(fqan, f"/{self.vo}"))


@dataclass(frozen=True, slots=True)
class AccessList:
    """The list that one name carries."""

    lfn: str
    owner: str
    """Of that name; empty for a VO's own directory."""
    grants: tuple[Grant, ...]

    def allows(self, caller: Caller, right: Right) -> bool:
        """Whether the caller has a right on what the list is about."""
        if caller.subject == self.owner or caller.manages:
            return True
        return any(right in grant.rights and caller.has(grant.who) for grant in self.grants)

    def require(self, caller: Caller, right: Right, lfn: Lfn) -> None:
        """Raises Refused ACCESS_DENIED, which says what would be enough."""
        if self.allows(caller, right):
            return
        enough = [grant.who for grant in self.grants if right in grant.rights]
        roles = [who for who in enough if is_fqan(who) and who != f"/{caller.vo}"]
        cure = (
            f"make a proxy with it: grid proxy init --voms {caller.vo}:{roles[0]}"
            if roles
            else f"ask {self.owner or 'a manager of the VO'} for it: grid data acl set lfn:{self.lfn}"
        )
        raise Refused(
            "ACCESS_DENIED",
            f"{right} in {lfn} is for {', '.join(enough[:10]) or 'the owner alone'} (access list of {self.lfn}), and "
            f"{caller.subject} shows {', '.join(caller.fqans[:10]) or 'no groups or roles'}; {cure}",
            subject=caller.subject,
            lfn=lfn,
        )


metadata = sa.MetaData()
lists = sa.Table(
    "access_lists",
    metadata,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("grants", sa.Text, nullable=False),
)


def nearest(connection: sa.Connection, lfns: Iterable[Lfn]) -> Mapping[str, AccessList]:
    """By path: the list that each of these names goes by. Names without one are left out."""
    if not rows(connection, "SELECT 1 FROM access_lists LIMIT 1"):
        return {}
    upward = {lfn.path: _upward(lfn.path) for lfn in lfns}
    wanted = sorted({path for paths in upward.values() for path in paths})
    found: dict[str, AccessList] = {}
    for start in range(0, len(wanted), _PATHS_AT_ONCE):
        some = connection.execute(sa.select(lists).where(lists.c.path.in_(wanted[start : start + _PATHS_AT_ONCE])))
        found |= {row.path: AccessList(row.path, row.owner, _grants(row.grants)) for row in some}
    chosen = ((path, next((found[one] for one in paths if one in found), None)) for path, paths in upward.items())
    return {path: one for path, one in chosen if one is not None}


def require(connection: sa.Connection, caller: Caller, right: Right, lfn: Lfn) -> bool:
    """Raises Refused ACCESS_DENIED; False if no list is about the name."""
    found = nearest(connection, [lfn]).get(lfn.path)
    if found is not None:
        found.require(caller, right, lfn)
    return found is not None


def require_manager(caller: Caller, lfn: Lfn, owner: str) -> None:
    """Raises Refused ACL_NOT_YOURS."""
    if caller.manages or (owner and caller.subject == owner):
        return
    raise Refused(
        "ACL_NOT_YOURS",
        f"the access list of {lfn} is for its owner{f' {owner}' if owner else ''}, the managers of {caller.vo} "
        f"(grid proxy init --voms {caller.vo}:/{caller.vo}/Role=VO-Admin) and operators; {caller.subject} is "
        "none of them",
        subject=caller.subject,
        lfn=lfn,
    )


def keep(connection: sa.Connection, lfn: Lfn, owner: str, grants: Sequence[Grant]) -> None:
    """Give a name this list; without grants take it away. Raises Exhausted TOO_MANY_LISTS, InvalidRequest."""
    if len(grants) > MAX_ENTRIES:
        raise InvalidRequest("ACL_INVALID", f"an access list has at most {MAX_ENTRIES} lines; make groups in the VO")
    forget(connection, lfn)
    if not grants:
        return
    count = connection.execute(sa.select(sa.func.count()).select_from(lists)).scalar_one()
    if count >= MAX_LISTS:
        raise Exhausted("TOO_MANY_LISTS", f"there are {MAX_LISTS} access lists; give directories one, not their files")
    text = json.dumps([[grant.who, sorted(grant.rights)] for grant in grants])
    connection.execute(lists.insert().values(path=lfn.path, owner=owner, grants=text))


def forget(connection: sa.Connection, lfn: Lfn) -> None:
    """The name is gone or has no list of its own any more."""
    connection.execute(lists.delete().where(lists.c.path == lfn.path))


_PATHS_AT_ONCE = 500


def _upward(path: str) -> list[str]:
    """The name, then what it is in, below /grid."""
    found: list[str] = []
    while path not in (ROOT, ""):
        found.append(path)
        path = path.rpartition("/")[0]
    return found


def _grants(text: str) -> tuple[Grant, ...]:
    return tuple(Grant(who, frozenset(map(Right, rights))) for who, rights in json.loads(text))
