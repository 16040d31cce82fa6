"""The tables of a VO: members, groups, roles, versions of the acceptable use policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import sqlalchemy as sa

from agents.vo.model import Aup, Member, MemberState, join_fqan, split_fqan
from fabric.errors import Exhausted, NotFound, Refused

metadata = sa.MetaData()
members = sa.Table(
    "members",
    metadata,
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("common_name", sa.String, nullable=False),
    sa.Column("email", sa.String, nullable=False),
    sa.Column("groups", sa.String, nullable=False),
    sa.Column("added_at_us", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String, nullable=False, server_default=MemberState.APPROVED.value),
    sa.Column("aup_version", sa.Integer, nullable=False, server_default="0"),
    sa.Column("aup_signed_at_us", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("expires_at_us", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reason", sa.String, nullable=False, server_default=""),
    sa.Column("attributes", sa.String, nullable=False, server_default="{}"),
    sa.Index("members_expiring", "state", "expires_at_us"),
)
groups = sa.Table("groups", metadata, sa.Column("name", sa.String, primary_key=True))
roles = sa.Table("roles", metadata, sa.Column("name", sa.String, primary_key=True))
aups = sa.Table(
    "aups",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("text", sa.String, nullable=False),
    sa.Column("published_at_us", sa.BigInteger, nullable=False),
    sa.Column("required_at_us", sa.BigInteger, nullable=False),
)

door = sa.Table("door", metadata, sa.Column("port", sa.Integer, primary_key=True))
"""One row: where the VOMS door is, if the system chose its port."""


def _with_states(connection: sa.Connection) -> None:
    """Version 2: memberships have a life. Who is a member stays one; groups and roles in use come into being."""
    for column in (
        "state VARCHAR NOT NULL DEFAULT 'APPROVED'",
        "aup_version INTEGER NOT NULL DEFAULT 0",
        "aup_signed_at_us BIGINT NOT NULL DEFAULT 0",
        "expires_at_us BIGINT NOT NULL DEFAULT 0",
        "reason VARCHAR NOT NULL DEFAULT ''",
        "attributes VARCHAR NOT NULL DEFAULT '{}'",
    ):
        connection.exec_driver_sql(f"ALTER TABLE members ADD COLUMN {column}")
    connection.exec_driver_sql("CREATE INDEX members_expiring ON members (state, expires_at_us)")
    connection.exec_driver_sql("CREATE TABLE groups (name VARCHAR NOT NULL PRIMARY KEY)")
    connection.exec_driver_sql("CREATE TABLE roles (name VARCHAR NOT NULL PRIMARY KEY)")
    used = {fqan for row in connection.exec_driver_sql("SELECT groups FROM members") for fqan in json.loads(row[0])}
    for fqan in used:
        group, _, role = fqan.partition("/Role=")
        while group.count("/") > 1:
            connection.exec_driver_sql("INSERT OR IGNORE INTO groups VALUES (?)", (group,))
            group = group.rpartition("/")[0]
        if role:
            connection.exec_driver_sql("INSERT OR IGNORE INTO roles VALUES (?)", (role,))


MIGRATIONS = (_with_states,)


# Members


def put(connection: sa.Connection, member: Member, most: int) -> Member:
    """Add a member, or renew its particulars and groups; the first date, state and signature stay, and somebody who
    asked to be a member is one. Returns what is stored. Raises VO_FULL."""
    known = find(connection, member.subject)
    if known is None:
        if connection.execute(sa.select(sa.func.count()).select_from(members)).scalar_one() >= most:
            raise Exhausted("VO_FULL", f"the VO has its {most} members; remove some or raise max_members")
        connection.execute(members.insert().values(**_row(member)))
        return member
    kept = replace(
        known,
        common_name=member.common_name,
        email=member.email,
        groups=member.groups,
        state=MemberState.APPROVED if known.state is MemberState.REQUESTED else known.state,
    )
    save(connection, kept)
    return kept


def save(connection: sa.Connection, member: Member) -> None:
    """Write a member that exists."""
    connection.execute(sa.update(members).where(members.c.subject == member.subject).values(**_row(member)))


def find(connection: sa.Connection, subject: str) -> Member | None:
    """The member of this DN."""
    row = connection.execute(sa.select(members).where(members.c.subject == subject)).one_or_none()
    return None if row is None else _member(row)


def get(connection: sa.Connection, vo: str, subject: str) -> Member:
    """As `find`. Raises NotFound NOT_A_MEMBER."""
    found = find(connection, subject)
    if found is None:
        raise NotFound(
            "NOT_A_MEMBER",
            f"{subject} is not a member of {vo} and has not asked to be one (grid vo request)",
            subject=subject,
            vo=vo,
        )
    return found


def remove(connection: sa.Connection, subject: str) -> bool:
    """False if there was no such member."""
    return connection.execute(sa.delete(members).where(members.c.subject == subject)).rowcount == 1


def page(connection: sa.Connection, after: str, size: int) -> list[Member]:
    """Members in the order of their subjects, after one."""
    query = sa.select(members).where(members.c.subject > after).order_by(members.c.subject).limit(size)
    return [_member(row) for row in connection.execute(query)]


def every(connection: sa.Connection) -> Iterator[Member]:
    """All members."""
    for row in connection.execute(sa.select(members).order_by(members.c.subject)):
        yield _member(row)


def ended(connection: sa.Connection, now_us: int) -> list[Member]:
    """Members whose end was reached and who are not EXPIRED yet."""
    query = sa.select(members).where(
        members.c.state == MemberState.APPROVED.value,
        members.c.expires_at_us > 0,
        members.c.expires_at_us <= now_us,
    )
    return [_member(row) for row in connection.execute(query)]


def count(connection: sa.Connection, state: MemberState) -> int:
    """How many are in a state."""
    query = sa.select(sa.func.count()).select_from(members).where(members.c.state == state.value)
    return int(connection.execute(query).scalar_one())


# Groups and roles


def group_names(connection: sa.Connection, vo: str) -> list[str]:
    """Every group, the VO's own first."""
    found = connection.execute(sa.select(groups.c.name).order_by(groups.c.name)).scalars()
    return [f"/{vo}", *(name for name in found if name != f"/{vo}")]


def role_names(connection: sa.Connection) -> list[str]:
    """Every role."""
    return list(connection.execute(sa.select(roles.c.name).order_by(roles.c.name)).scalars())


def require_fqans(connection: sa.Connection, vo: str, fqans: Sequence[str]) -> None:
    """Raises NotFound GROUP_UNKNOWN or ROLE_UNKNOWN for the first that names what does not exist."""
    known, names = set(group_names(connection, vo)), set(role_names(connection))
    for fqan in fqans:
        group, role = split_fqan(vo, fqan)
        if group not in known:
            raise group_unknown(vo, group)
        if role and role not in names:
            raise NotFound(
                "ROLE_UNKNOWN", f"{vo} has no role {role}; make it with: grid vo role add {role}", vo=vo, role=role
            )


def group_unknown(vo: str, group: str) -> NotFound:
    """The refusal of a group that does not exist."""
    return NotFound(
        "GROUP_UNKNOWN", f"{vo} has no group {group}; make it with: grid vo group add {group}", vo=vo, group=group
    )


def add_group(connection: sa.Connection, vo: str, group: str) -> bool:
    """False if it was there. Raises GROUP_UNKNOWN for a group without its parent."""
    known = group_names(connection, vo)
    if group in known:
        return False
    parent = group.rpartition("/")[0]
    if parent not in known:
        raise group_unknown(vo, parent)
    connection.execute(groups.insert().values(name=group))
    return True


def add_role(connection: sa.Connection, role: str) -> bool:
    """False if it was there."""
    if role in role_names(connection):
        return False
    connection.execute(roles.insert().values(name=role))
    return True


def remove_group(connection: sa.Connection, vo: str, group: str) -> list[Member]:
    """Remove a group and what is below it, and take it from its members, who are returned as they are now.

    Raises Refused for the VO's own group.
    """
    if group == f"/{vo}":
        raise Refused("GROUP_PERMANENT", f"{group} is everybody in {vo} and cannot be removed", group=group)
    connection.execute(
        sa.delete(groups).where(sa.or_(groups.c.name == group, groups.c.name.startswith(f"{group}/", autoescape=True)))
    )
    return _without(connection, vo, lambda of, role: of == group or of.startswith(f"{group}/"))


def remove_role(connection: sa.Connection, vo: str, role: str) -> list[Member]:
    """Remove a role and take it from everybody, who are returned as they are now."""
    connection.execute(sa.delete(roles).where(roles.c.name == role))
    return _without(connection, vo, lambda of, held: held == role)


def _without(connection: sa.Connection, vo: str, gone: Callable[[str, str], bool]) -> list[Member]:
    changed: list[Member] = []
    for member in list(every(connection)):
        kept = tuple(fqan for fqan in member.groups if not gone(*split_fqan(vo, fqan)))
        if kept != member.groups:
            changed.append(replace(member, groups=kept))
            save(connection, changed[-1])
    return changed


def without_fqan(vo: str, member: Member, fqan: str) -> Member:
    """A member without a role, or without a group and everything in and below it."""
    group, role = split_fqan(vo, fqan)

    def stays(held: str) -> bool:
        of = split_fqan(vo, held)[0]
        return held != join_fqan(group, role) if role else of != group and not of.startswith(f"{group}/")

    return replace(member, groups=tuple(held for held in member.groups if stays(held)))


# The acceptable use policy


def current_aup(connection: sa.Connection) -> Aup:
    """The newest version; version 0 if there is none."""
    row = connection.execute(sa.select(aups).order_by(aups.c.version.desc()).limit(1)).one_or_none()
    return Aup() if row is None else Aup(row.version, row.text, row.published_at_us, row.required_at_us)


def publish_aup(connection: sa.Connection, text: str, now_us: int, required_at_us: int) -> Aup:
    """The next version."""
    aup = Aup(current_aup(connection).version + 1, text, now_us, required_at_us)
    connection.execute(
        aups.insert().values(
            version=aup.version, text=text, published_at_us=aup.published_at_us, required_at_us=aup.required_at_us
        )
    )
    return aup


# The door


def door_port(connection: sa.Connection) -> int:
    """The port that the system once gave; 0 if it was not asked yet."""
    return connection.execute(sa.select(door.c.port)).scalar() or 0


def keep_door_port(connection: sa.Connection, port: int) -> None:
    """The same again after a restart."""
    connection.execute(sa.delete(door))
    connection.execute(door.insert().values(port=port))


def _row(member: Member) -> dict[str, object]:
    return {
        "subject": member.subject,
        "common_name": member.common_name,
        "email": member.email,
        "groups": json.dumps(member.groups),
        "added_at_us": member.added_at_us,
        "state": member.state.value,
        "aup_version": member.aup_version,
        "aup_signed_at_us": member.aup_signed_at_us,
        "expires_at_us": member.expires_at_us,
        "reason": member.reason,
        "attributes": json.dumps(dict(member.attributes), sort_keys=True),
    }


def _member(row: sa.Row) -> Member:
    return Member(
        row.subject,
        row.common_name,
        row.email,
        tuple(json.loads(row.groups)),
        row.added_at_us,
        MemberState(row.state),
        row.aup_version,
        row.aup_signed_at_us,
        row.expires_at_us,
        row.reason,
        json.loads(row.attributes),
    )
