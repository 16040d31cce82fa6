"""Invitations: tokens by their hash, each for one site and one enrolment."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import sqlalchemy as sa

metadata = sa.MetaData()
invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("site", sa.String, nullable=False),
    sa.Column("expires_at_us", sa.BigInteger, nullable=False),
    sa.Column("request_hash", sa.String(64), nullable=False, default=""),
    sa.Column("answer", sa.LargeBinary, nullable=False, default=b""),
)


@dataclass(frozen=True)
class Invitation:
    """One row. Spent when `request_hash` is set; `answer` is then what was answered."""

    site: str
    expires_at_us: int
    request_hash: str
    certificates: tuple[bytes, ...]


def hash_token(token: str) -> str:
    """What is stored instead of a token."""
    return hashlib.sha256(b"gridfabric invitation\0" + token.encode()).hexdigest()


def add(connection: sa.Connection, token: str, site: str, expires_at_us: int) -> None:
    """A new invitation."""
    connection.execute(
        invitations.insert().values(
            token_hash=hash_token(token), site=site, expires_at_us=expires_at_us, request_hash="", answer=b""
        )
    )


def find(connection: sa.Connection, token: str) -> Invitation | None:
    """The invitation of a token; None if there is none."""
    row = connection.execute(sa.select(invitations).where(invitations.c.token_hash == hash_token(token))).one_or_none()
    if row is None:
        return None
    answer = json.loads(row.answer) if row.answer else []
    return Invitation(row.site, row.expires_at_us, row.request_hash, tuple(pem.encode() for pem in answer))


def spend(connection: sa.Connection, token: str, request_hash: str) -> bool:
    """Bind a token to one request, for ever. False if it is bound to another one."""
    bound = connection.execute(
        sa.update(invitations)
        .where(invitations.c.token_hash == hash_token(token), invitations.c.request_hash.in_(("", request_hash)))
        .values(request_hash=request_hash)
    )
    return bound.rowcount == 1


def keep_answer(connection: sa.Connection, token: str, certificates: list[bytes]) -> None:
    """Remember what was answered, for a client whose connection broke."""
    text = json.dumps([pem.decode() for pem in certificates]).encode()
    connection.execute(sa.update(invitations).where(invitations.c.token_hash == hash_token(token)).values(answer=text))


def open_count(connection: sa.Connection, now_us: int) -> int:
    """Invitations that could still be used; forgets those that expired unused."""
    connection.execute(
        sa.delete(invitations).where(invitations.c.expires_at_us < now_us, invitations.c.request_hash == "")
    )
    count = sa.select(sa.func.count()).select_from(invitations).where(invitations.c.request_hash == "")
    return int(connection.execute(count).scalar_one())
