"""The key store's rows: one share of each key, whose it is and who may read it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

import sqlalchemy as sa

from fabric.errors import AlreadyExists, Exhausted, Refused
from fabric.rpc.peer import Peer
from fabric.store import Store
from security.secret_sharing import Share
from security.voms import is_fqan, is_within

MAX_READERS = 100
"""Of one key: more people than that are a group."""

metadata = sa.MetaData()
shares = sa.Table(
    "shares",
    metadata,
    sa.Column("key_id", sa.LargeBinary, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("x", sa.Integer, nullable=False),
    sa.Column("share", sa.LargeBinary, nullable=False),
    sa.Column("threshold", sa.Integer, nullable=False),
    sa.Column("readers", sa.Text, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Index("ix_shares_owner", "owner"),
    sqlite_with_rowid=False,
)
_COLUMNS = "key_id, owner, vo, x, share, threshold, readers, created_at_us"


@dataclass(frozen=True, slots=True)
class KeptShare:
    """A share with whose it is."""

    key_id: bytes
    owner: str
    vo: str
    share: Share = field(repr=False)
    threshold: int
    readers: tuple[str, ...]
    """DNs and FQANs; the owner is not among them."""
    created_at_us: int

    def admits(self, peer: Peer) -> bool:
        """The owner, a person who is named, a member of a group or who shows a role that is named."""
        if peer.subject == self.owner or peer.subject in self.readers:
            return True
        shown = (f"/{peer.vo}", *peer.fqans) if peer.vo == self.vo else ()
        return any(is_within(fqan, reader) for reader in self.readers if is_fqan(reader) for fqan in shown)


def refused(peer: Peer, key_id: bytes) -> Refused:
    """For whom the key is not, and for whom there is none: nobody learns which of the two it is."""
    return Refused(
        "KEY_REFUSED",
        f"this key store has no key {key_id.hex()} for {peer.subject}; ask the owner of the file to let you in: "
        "grid data grant",
        subject=peer.subject,
    )


class ShareStore:
    """The rows, as model values. What a method that writes has returned from is durable."""

    def __init__(self, store: Store, max_per_owner: int) -> None:
        self._store, self._max_per_owner = store, max_per_owner

    async def put(self, kept: KeptShare) -> None:
        """Raises AlreadyExists(KEY_EXISTS), Exhausted(KEYS_EXHAUSTED)."""

        def write(connection: sa.Connection) -> None:
            existing = _get(connection, kept.key_id)
            if existing is not None:
                if (existing.owner, existing.share, existing.threshold) == (kept.owner, kept.share, kept.threshold):
                    return
                raise AlreadyExists("KEY_EXISTS", f"there is a key {kept.key_id.hex()} here already; use a new id")
            count = connection.exec_driver_sql("SELECT COUNT(*) FROM shares WHERE owner = ?", (kept.owner,))
            if int(count.scalar_one()) >= self._max_per_owner:
                raise Exhausted(
                    "KEYS_EXHAUSTED",
                    f"{kept.owner} keeps {self._max_per_owner} keys here already; remove files or choose another store",
                )
            connection.exec_driver_sql(
                f"INSERT INTO shares ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)",
                (kept.key_id, kept.owner, kept.vo, kept.share.x, kept.share.values, kept.threshold, "[]",
                 kept.created_at_us),
            )  # fmt: skip

        await self._store.write(write)

    async def get(self, key_id: bytes, peer: Peer) -> KeptShare:
        """Raises Refused(KEY_REFUSED)."""
        kept = await self._store.read(lambda connection: _get(connection, key_id))
        if kept is None or not kept.admits(peer):
            raise refused(peer, key_id)
        return kept

    async def set_readers(
        self, key_id: bytes, peer: Peer, grant: Collection[str], withdraw: Collection[str]
    ) -> tuple[tuple[str, ...], int]:
        """(the readers now, shares needed). Raises Refused(KEY_REFUSED) but for the owner,
        Exhausted(READERS_EXHAUSTED)."""

        def write(connection: sa.Connection) -> tuple[tuple[str, ...], int]:
            kept = _own(connection, key_id, peer)
            readers = tuple(sorted((set(kept.readers) | set(grant)) - set(withdraw)))
            if len(readers) > MAX_READERS:
                raise Exhausted("READERS_EXHAUSTED", f"a key is for at most {MAX_READERS} others; grant it to a group")
            connection.exec_driver_sql(
                "UPDATE shares SET readers = ? WHERE key_id = ?", (json.dumps(readers), kept.key_id)
            )
            return readers, kept.threshold

        return await self._store.write(write)

    async def remove(self, key_id: bytes, peer: Peer) -> bool:
        """False if it was not there. Raises Refused(KEY_REFUSED) but for the owner."""

        def write(connection: sa.Connection) -> bool:
            if _get(connection, key_id) is None:
                return False
            _own(connection, key_id, peer)
            connection.exec_driver_sql("DELETE FROM shares WHERE key_id = ?", (key_id,))
            return True

        return await self._store.write(write)


def _own(connection: sa.Connection, key_id: bytes, peer: Peer) -> KeptShare:
    kept = _get(connection, key_id)
    if kept is None or kept.owner != peer.subject:
        raise refused(peer, key_id)
    return kept


def _get(connection: sa.Connection, key_id: bytes) -> KeptShare | None:
    row = connection.exec_driver_sql(f"SELECT {_COLUMNS} FROM shares WHERE key_id = ?", (key_id,)).first()
    if row is None:
        return None
    found, owner, vo, x, values, threshold, readers, created_at_us = row
    return KeptShare(
        bytes(found), owner, vo, Share(x, bytes(values)), threshold, tuple(json.loads(readers)), created_at_us
    )
