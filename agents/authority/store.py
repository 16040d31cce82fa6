"""Invitations: tokens by their hash, each for one site and one enrolment. Authorities beside the first one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import sqlalchemy as sa

from fabric.errors import AlreadyExists

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
authorities = sa.Table(
    "authorities",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("parent", sa.String(64), nullable=False),
    sa.Column("is_foreign", sa.Boolean, nullable=False),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
    sa.Column("signing_policy", sa.Text, nullable=False),
    sa.Column("crl", sa.LargeBinary, nullable=False),
    sa.Column("crl_urls", sa.Text, nullable=False, server_default=""),
    sa.Column("is_removed", sa.Boolean, nullable=False, default=False),
)
trust_number = sa.Table("trust_number", metadata, sa.Column("number", sa.BigInteger, primary_key=True))


@dataclass(frozen=True)
class AuthorityRow:
    """One authority beside the first: with its key in a folder of its name, or a foreign one as it was given."""

    name: str
    parent: str = ""
    is_foreign: bool = False
    certificate: bytes = b""
    signing_policy: str = ""
    crl: bytes = b""
    crl_urls: str = ""
    """Where newer lists are to be had, one a line."""


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


def add_crl_urls(connection: sa.Connection) -> None:
    """A store from before foreign authorities had addresses."""
    connection.execute(sa.text("ALTER TABLE authorities ADD COLUMN crl_urls TEXT NOT NULL DEFAULT ''"))


MIGRATIONS = (add_crl_urls,)


def all_authorities(connection: sa.Connection) -> list[AuthorityRow]:
    """Those that are trusted, parents before children."""
    columns = [authorities.c[name] for name in AuthorityRow.__dataclass_fields__]
    query = sa.select(*columns).where(sa.not_(authorities.c.is_removed)).order_by(sa.text("rowid"))
    return [AuthorityRow(*row) for row in connection.execute(query)]


def keep_authority(connection: sa.Connection, row: AuthorityRow) -> None:
    """Trust this one; a foreign one that is known is replaced. Raises AlreadyExists for a name that was removed."""
    known = connection.execute(
        sa.select(authorities.c.is_removed, authorities.c.is_foreign).where(authorities.c.name == row.name)
    ).one_or_none()
    if known is not None and known.is_removed and not (known.is_foreign and row.is_foreign):
        raise AlreadyExists("AUTHORITY_EXISTS", f"an authority {row.name} was removed here; choose another name")
    connection.execute(authorities.delete().where(authorities.c.name == row.name))
    connection.execute(authorities.insert().values(**vars(row), is_removed=False))


def remove_authority(connection: sa.Connection, name: str) -> None:
    """Trust this one no more; its name is remembered."""
    connection.execute(sa.update(authorities).where(authorities.c.name == name).values(is_removed=True))


def next_trust_number(connection: sa.Connection, now_us: int) -> int:
    """The number of a changed trust set: greater than any before, also after the loss of this file."""
    last = connection.execute(sa.select(sa.func.max(trust_number.c.number))).scalar() or 0
    number = max(last + 1, now_us)
    connection.execute(trust_number.delete())
    connection.execute(trust_number.insert().values(number=number))
    return number
