"""The members' table."""

from __future__ import annotations

import json
from collections.abc import Iterator

import sqlalchemy as sa

from agents.vo.model import Member
from fabric.errors import Exhausted

metadata = sa.MetaData()
members = sa.Table(
    "members",
    metadata,
    sa.Column("subject", sa.String, primary_key=True),
    sa.Column("common_name", sa.String, nullable=False),
    sa.Column("email", sa.String, nullable=False),
    sa.Column("groups", sa.String, nullable=False),
    sa.Column("added_at_us", sa.BigInteger, nullable=False),
)


def put(connection: sa.Connection, member: Member, most: int) -> Member:
    """Add a member, or renew its particulars; the first date stays. Returns what is stored. Raises VO_FULL."""
    known = connection.execute(sa.select(members.c.added_at_us).where(members.c.subject == member.subject)).scalar()
    if known is None:
        if connection.execute(sa.select(sa.func.count()).select_from(members)).scalar_one() >= most:
            raise Exhausted("VO_FULL", f"the VO has its {most} members; remove some or raise max_members")
        connection.execute(members.insert().values(**_row(member)))
        return member
    kept = Member(member.subject, member.common_name, member.email, member.groups, known)
    connection.execute(sa.update(members).where(members.c.subject == kept.subject).values(**_row(kept)))
    return kept


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


def _row(member: Member) -> dict[str, object]:
    return {
        "subject": member.subject,
        "common_name": member.common_name,
        "email": member.email,
        "groups": json.dumps(member.groups),
        "added_at_us": member.added_at_us,
    }


def _member(row: sa.Row) -> Member:
    return Member(row.subject, row.common_name, row.email, tuple(json.loads(row.groups)), row.added_at_us)
