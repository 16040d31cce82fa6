"""The grid's ban list: kept here, pushed to every agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import grpc
import sqlalchemy as sa
from gridfabric.authority.v1 import bans_pb2 as pb
from gridfabric.authority.v1 import bans_pb2_grpc as pb_grpc

from agents.authority.store import metadata
from fabric.bulletin import Bulletin
from fabric.clock import Clock, from_us, to_us
from fabric.errors import Conflict, Exhausted, InvalidRequest, Refused
from fabric.logs import Logger
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import administrator, any_of, any_service, authenticated
from fabric.store import Store
from security.bans import Ban, BanKind, BanList
from security.errors import SecurityError

RULES = {
    "Add": authenticated,
    "Lift": administrator,
    "List": any_of(administrator, any_service),
    "Watch": any_service,
}
MAX_BANS = 10_000
"""More than this is no list of people to keep out but a VO to close."""
MAX_OWN_BANS = 100
MAX_OWN_BAN = timedelta(days=14)
"""For proxies that their owner takes back; longer than any lives."""
MAX_ID_LENGTH = 64

bans = sa.Table(
    "bans",
    metadata,
    sa.Column("id", sa.String(MAX_ID_LENGTH), primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
)


class BansServicer(pb_grpc.BansServicer):
    """One line of the list per ban; the database is the list."""

    def __init__(self, store: Store, clock: Clock, log: Logger) -> None:
        self._store, self._clock, self._log = store, clock, log
        self._bulletin = Bulletin(self._listing)

    async def Add(self, request: pb.AddBanRequest, context: grpc.aio.ServicerContext) -> pb.AddBanResponse:
        """See the proto."""
        peer = current_peer(context)
        ban = self._checked(request.ban, peer.subject)
        if not peer.is_administrator:
            _require_own(ban, peer)
            if ban.until is None or ban.until > self._clock.now() + MAX_OWN_BAN:
                raise InvalidRequest("BAN_INVALID", f"give the end of the proxy, within {MAX_OWN_BAN.days} days")

        def add(connection: sa.Connection) -> Ban:
            known = connection.execute(sa.select(bans.c.line).where(bans.c.id == ban.ban_id)).scalar()
            if known is not None:
                kept = Ban.parse(known)
                if (kept.kind, kept.value, kept.sites) != (ban.kind, ban.value, ban.sites):
                    raise Conflict("BAN_ID_USED", f"ban {ban.ban_id} is about {kept.describe()}; use another id")
                return kept
            self._forget_ended(connection)
            count = sa.select(sa.func.count()).select_from(bans)
            own = connection.execute(count.where(bans.c.author == peer.subject)).scalar_one()
            if not peer.is_administrator and own >= MAX_OWN_BANS:
                raise Exhausted("TOO_MANY_BANS", f"{peer.subject} has {own} bans of proxies; they end with the proxies")
            if connection.execute(count).scalar_one() >= MAX_BANS:
                raise Exhausted("TOO_MANY_BANS", f"there are {MAX_BANS} bans; lift some, or ban their VO or authority")
            until_us = to_us(ban.until) if ban.until else 0
            connection.execute(
                bans.insert().values(id=ban.ban_id, line=ban.emit(), author=peer.subject, until_us=until_us)
            )
            return ban

        kept = await self._store.write(add)
        if kept is ban:
            self._log.audit("ban.added", ban=ban.emit(), by=ban.author)
            self._bulletin.changed()
        return pb.AddBanResponse(ban=_to_wire(kept))

    def _checked(self, asked: pb.Ban, author: str) -> Ban:
        if not asked.id or len(asked.id) > MAX_ID_LENGTH or not asked.id.isalnum():
            raise InvalidRequest("BAN_INVALID", f"a ban needs an id of 1 to {MAX_ID_LENGTH} letters and digits")
        until: datetime | None = None
        try:
            if asked.until_us:
                until = from_us(asked.until_us)
            ban = Ban.of(
                asked.kind, asked.value, until=until, author=author, reason=asked.reason, ban_id=asked.id,
                sites=asked.sites,
            )  # fmt: skip
        except (SecurityError, ValueError, OverflowError) as error:
            raise InvalidRequest("BAN_INVALID", f"this ban cannot be kept: {error}") from error
        if until is not None and until <= self._clock.now():
            raise InvalidRequest("BAN_INVALID", "this ban would have ended before it began; give a later end")
        return ban

    async def Lift(self, request: pb.LiftBanRequest, context: grpc.aio.ServicerContext) -> pb.LiftBanResponse:
        """See the proto."""

        def lift(connection: sa.Connection) -> str | None:
            line = connection.execute(sa.select(bans.c.line).where(bans.c.id == request.id)).scalar()
            connection.execute(bans.delete().where(bans.c.id == request.id))
            return line

        line = await self._store.write(lift)
        if line is not None:
            self._log.audit("ban.lifted", ban=line, by=current_peer(context).subject)
            self._bulletin.changed()
        return pb.LiftBanResponse(was_there=line is not None)

    async def List(self, request: pb.ListBansRequest, context: grpc.aio.ServicerContext) -> pb.ListBansResponse:
        """See the proto."""
        return pb.ListBansResponse(bans=[_to_wire(ban) for ban in (await self._in_force()).bans])

    async def Watch(
        self, request: pb.WatchBansRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.BanListing]:
        """See the proto."""
        async for listing in self._bulletin.told():
            yield listing

    async def _listing(self) -> pb.BanListing:
        return pb.BanListing(text=(await self._in_force()).emit())

    async def _in_force(self) -> BanList:
        now_us = to_us(self._clock.now())
        in_force = sa.or_(bans.c.until_us == 0, bans.c.until_us > now_us)

        def read(connection: sa.Connection) -> list[str]:
            return list(connection.execute(sa.select(bans.c.line).where(in_force).order_by(bans.c.id)).scalars())

        return BanList(tuple(Ban.parse(line) for line in await self._store.read(read)))

    def _forget_ended(self, connection: sa.Connection) -> None:
        now_us = to_us(self._clock.now())
        connection.execute(bans.delete().where(bans.c.until_us > 0, bans.c.until_us <= now_us))


def _require_own(ban: Ban, peer: Peer) -> None:
    """Who is no operator may ban proxies that it has signed itself, until they have ended."""
    issuer = ban.value.partition(" ")[2]
    own = ban.kind is BanKind.CERTIFICATE and (issuer == peer.subject or issuer.startswith(f"{peer.subject}/CN="))
    if not own or ban.sites:
        raise Refused(
            "NOT_OWNER",
            f"{peer.subject} may ban proxies of its own, by serial number and issuer and everywhere, and not "
            f"{ban.describe()}; ask an operator of the grid",
        )


def _to_wire(ban: Ban) -> pb.Ban:
    return pb.Ban(
        id=ban.ban_id,
        kind=ban.kind.value,
        value=ban.value,
        until_us=to_us(ban.until) if ban.until else 0,
        author=ban.author,
        reason=ban.reason,
        sites=sorted(ban.sites),
    )
