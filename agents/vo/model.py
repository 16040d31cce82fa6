"""A virtual organisation: members with their states, groups, roles, and what they must have signed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fabric.errors import InvalidRequest
from security.errors import SecurityError
from security.names import DistinguishedName

MAX_GROUPS = 100
"""Groups and roles of one member."""
MAX_ATTRIBUTES = 32
"""Generic attributes of one member."""
MAX_AUP_BYTES = 64 * 1024
MAX_REASON_LENGTH = 300
MANAGER_ROLE = "VO-Admin"
"""Who has this role in the VO's own group manages the VO."""

_EMAIL = re.compile(r"[^@\s<>\"]{1,64}@[A-Za-z0-9.-]{1,190}\Z")
_FQAN = re.compile(r"(?P<group>(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){1,16})(?:/Role=(?P<role>[A-Za-z0-9._-]{1,64}))?\Z")
_ROLE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class MemberState(StrEnum):
    """Where a membership is in its life."""

    REQUESTED = "REQUESTED"
    """Somebody with a certificate asked to be a member; a manager has not decided."""
    APPROVED = "APPROVED"
    """A member."""
    SUSPENDED = "SUSPENDED"
    """A member that a manager has taken out for a time, with a reason."""
    EXPIRED = "EXPIRED"
    """The end that a manager set was reached; renewing brings it back."""


@dataclass(frozen=True)
class Member:
    """One person."""

    subject: str
    """DN in slash form."""
    common_name: str
    email: str
    groups: tuple[str, ...]
    """FQANs below the VO: groups (/cms/higgs) and roles (/cms/higgs/Role=pilot)."""
    added_at_us: int
    state: MemberState = MemberState.APPROVED
    aup_version: int = 0
    """The last version of the acceptable use policy that was signed; 0: none."""
    aup_signed_at_us: int = 0
    expires_at_us: int = 0
    """0: never."""
    reason: str = ""
    """Why suspended."""
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Aup:
    """A version of the acceptable use policy. Version 0 means that the VO has none."""

    version: int = 0
    text: str = ""
    published_at_us: int = 0
    required_at_us: int = 0
    """From then on, who has not signed it is in no good standing; before, an older signature is good."""


def checked_member(
    vo: str,
    subject: str,
    common_name: str,
    email: str,
    groups: tuple[str, ...],
    added_at_us: int,
    *,
    state: MemberState = MemberState.APPROVED,
) -> Member:
    """A member whose every part is well formed. Raises InvalidRequest MEMBER_INVALID naming the part."""
    try:
        name = DistinguishedName.parse(subject)
    except SecurityError as error:
        raise _invalid(f"the subject: {error.sentence}") from error
    if email and not _EMAIL.match(email):
        raise _invalid(f"{email[:80]!r} is not an e-mail address")
    if len(groups) > MAX_GROUPS:
        raise _invalid(f"more than {MAX_GROUPS} groups")
    for group in groups:
        if _FQAN.match(group) is None or group.split("/")[1] != vo:
            raise _invalid(f"{group[:80]!r} is not a group of {vo}; write it as /{vo}/production")
    shown = common_name.strip() or name.common_name
    if len(shown) > 200 or not shown.isprintable():
        raise _invalid("the common name is too long or not printable")
    return Member(str(name), shown, email, tuple(dict.fromkeys(groups)), added_at_us, state)


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest("MEMBER_INVALID", f"this member cannot be added: {problem}")


def split_fqan(vo: str, fqan: str) -> tuple[str, str]:
    """Group and role (empty for none) of an FQAN of this VO; `Role=NULL` and a capability are left out.

    Raises InvalidRequest FQAN_INVALID.
    """
    found = _FQAN.match(fqan.partition("/Capability=")[0])
    if found is None or found["group"].split("/")[1] != vo:
        raise InvalidRequest(
            "FQAN_INVALID",
            f"{fqan[:80]!r} is no group or role of {vo}; write /{vo}/GROUP or /{vo}/GROUP/Role=ROLE",
            fqan=fqan[:200],
        )
    role = found["role"] or ""
    return found["group"], "" if role == "NULL" else role


def join_fqan(group: str, role: str) -> str:
    """The FQAN of a group, or of a role in it."""
    return f"{group}/Role={role}" if role else group


def checked_role(name: str) -> str:
    """A role's name. Raises InvalidRequest FQAN_INVALID."""
    if not _ROLE.match(name) or name == "NULL":
        raise InvalidRequest("FQAN_INVALID", f"{name[:80]!r} is no name of a role: letters, digits, '.', '_' and '-'")
    return name


def checked_attribute(name: str, value: str) -> tuple[str, str]:
    """A generic attribute. Raises InvalidRequest ATTRIBUTE_INVALID."""
    if not _ATTRIBUTE.match(name):
        raise InvalidRequest(
            "ATTRIBUTE_INVALID", f"{name[:80]!r} is no name of an attribute: letters, digits, '.', '_' and '-'"
        )
    if len(value.encode()) > 1000 or not value.isprintable():
        raise InvalidRequest("ATTRIBUTE_INVALID", f"the value of {name} is too long or not printable")
    return name, value


def groups_of(vo: str, fqans: Iterable[str]) -> tuple[str, ...]:
    """Every group somebody with these FQANs is in: the VO's own, and each parent of a group or of a role's group."""
    found = {f"/{vo}"}
    for fqan in fqans:
        group = split_fqan(vo, fqan)[0]
        while group and group not in found:
            found.add(group)
            group = group.rpartition("/")[0]
    return tuple(sorted(found))


def roles_of(vo: str, fqans: Iterable[str]) -> tuple[str, ...]:
    """Every FQAN with a role among these, in order."""
    split = ((fqan, split_fqan(vo, fqan)[1]) for fqan in fqans)
    return tuple(sorted(fqan for fqan, role in split if role))
