"""A member of a virtual organisation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fabric.errors import InvalidRequest
from security.errors import SecurityError
from security.names import DistinguishedName

MAX_GROUPS = 100
_EMAIL = re.compile(r"[^@\s<>\"]{1,64}@[A-Za-z0-9.-]{1,190}\Z")
_FQAN = re.compile(r"/[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*(?:/Role=[A-Za-z0-9._-]+)?\Z")


@dataclass(frozen=True)
class Member:
    """One person."""

    subject: str
    """DN in slash form."""
    common_name: str
    email: str
    groups: tuple[str, ...]
    """FQANs below the VO, e.g. /cms/production."""
    added_at_us: int


def checked_member(
    vo: str, subject: str, common_name: str, email: str, groups: tuple[str, ...], added_at_us: int
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
        if not _FQAN.match(group) or group.split("/")[1] != vo:
            raise _invalid(f"{group[:80]!r} is not a group of {vo}; write it as /{vo}/production")
    shown = common_name.strip() or name.common_name
    if len(shown) > 200 or not shown.isprintable():
        raise _invalid("the common name is too long or not printable")
    return Member(str(name), shown, email, tuple(dict.fromkeys(groups)), added_at_us)


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest("MEMBER_INVALID", f"this member cannot be added: {problem}")
