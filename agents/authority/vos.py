"""The grid's list of VOs: kept here, pushed to every agent. The VOs of the grid description are its first content."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace

import grpc
import sqlalchemy as sa
from gridfabric.authority.v1 import vos_pb2 as pb
from gridfabric.authority.v1 import vos_pb2_grpc as pb_grpc

from agents.authority.store import metadata
from fabric.bulletin import Bulletin
from fabric.clock import Clock, from_us, to_us
from fabric.errors import AlreadyExists, Exhausted, InvalidRequest, NotFound, Refused, from_security
from fabric.logs import Logger
from fabric.rpc.peer import current_peer
from fabric.rpc.rules import administrator, any_of, any_service, authenticated, services
from fabric.settings import Settings
from fabric.store import Store
from fabric.vos import described
from security.vos import EVERYWHERE, MAX_VOS, Vo, VoList, VoServer, check_name

RULES = {
    "Create": administrator,
    "Accept": administrator,
    "Refuse": administrator,
    "Dissolve": administrator,
    "Serve": services("vo"),
    "List": any_of(authenticated, any_service),
    "Watch": any_service,
}
MAX_REASON_LENGTH = 300

vos = sa.Table(
    "vos",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("server", sa.String, nullable=False),
    sa.Column("http_port", sa.Integer, nullable=False, default=0),
    sa.Column("sites", sa.String, nullable=False),
    sa.Column("dissolved_at_us", sa.BigInteger, nullable=False, default=0),
    sa.Column("reason", sa.String, nullable=False, default=""),
)
"""`server` is empty for a VO of the grid description, which says there where its servers are."""


class VosServicer(pb_grpc.VosServicer):
    """One row per VO that ever was; each change is one transaction."""

    def __init__(self, settings: Settings, sites: Iterable[str], store: Store, clock: Clock, log: Logger) -> None:
        """`sites`: of the grid. Takes in what the grid description says and is not known yet."""
        self._described, self._sites = described(settings), frozenset(sites)
        self._servers = {
            server.name: VoServer(server.name, server.site, server.host, server.rpc, server.ldap)
            for server in settings.endpoints("vo")
        }
        self._store, self._clock, self._log = store, clock, log
        self._bulletin = Bulletin(self._listing)
        store.write_sync(self._take_in)

    def _take_in(self, connection: sa.Connection) -> None:
        known = set(connection.execute(sa.select(vos.c.name)).scalars())
        for vo in self._described.vos:
            if vo.name not in known:
                self._insert(connection, vo.name, server="", sites=vo.sites)

    def _insert(self, connection: sa.Connection, name: str, server: str, sites: Iterable[str]) -> None:
        highest = connection.execute(sa.select(sa.func.max(vos.c.number))).scalar()
        number = 0 if highest is None else highest + 1
        if number >= MAX_VOS:
            raise Exhausted(
                "TOO_MANY_VOS", f"the grid has had {MAX_VOS} VOs, and no name or number is used twice; make groups"
            )
        connection.execute(
            vos.insert().values(number=number, name=name, server=server, sites=json.dumps(sorted(sites)))
        )

    # -- changes -----------------------------------------------------------------------------------------------------

    async def Create(self, request: pb.CreateVoRequest, context: grpc.aio.ServicerContext) -> pb.VoListing:
        """See the proto."""
        try:
            name = check_name(request.name)
        except ValueError as error:
            raise InvalidRequest("VO_INVALID", str(error)) from error
        server = request.server or next(iter(self._servers), "")
        if server not in self._servers:
            known = ", ".join(self._servers) or "none"
            raise NotFound("VO_SERVER_UNKNOWN", f"{server[:80]!r} is no VO server of this grid; there are: {known}")

        def create(connection: sa.Connection) -> bool:
            row = connection.execute(sa.select(vos).where(vos.c.name == name)).one_or_none()
            if row is None:
                self._insert(connection, name, server, sites=())
                return True
            self._require_alive(row)
            host = row.server or next((s.name for vo in self._described.vos if vo.name == name for s in vo.servers), "")
            if host != server:
                raise AlreadyExists("VO_EXISTS", f"the VO {name} exists, with the server {host}", vo=name)
            return False

        if await self._store.write(create):
            self._changed("vo.created", context, name, server=server)
        return await self._listing()

    async def Accept(self, request: pb.SitesOfVoRequest, context: grpc.aio.ServicerContext) -> pb.VoListing:
        """See the proto."""
        return await self._alter_sites(
            request, context, "vo.accepted", lambda sites, named: sites if EVERYWHERE in sites else sites | named
        )

    async def Refuse(self, request: pb.SitesOfVoRequest, context: grpc.aio.ServicerContext) -> pb.VoListing:
        """See the proto."""
        return await self._alter_sites(
            request, context, "vo.refused", lambda sites, named: (self._sites if EVERYWHERE in sites else sites) - named
        )

    async def _alter_sites(
        self,
        request: pb.SitesOfVoRequest,
        context: grpc.aio.ServicerContext,
        what: str,
        alter: Callable[[frozenset[str], frozenset[str]], frozenset[str]],
    ) -> pb.VoListing:
        named = frozenset(request.sites)
        if not named or (unknown := named - self._sites):
            known = ", ".join(sorted(self._sites)) or "none"
            wrong = ", ".join(sorted(unknown))[:100] if named else "no site"
            raise InvalidRequest("SITE_UNKNOWN", f"{wrong} cannot accept a VO here; the sites of the grid are {known}")

        def change(connection: sa.Connection) -> bool:
            row = self._row(connection, request.name)
            before = frozenset(json.loads(row.sites))
            after = alter(before, named)
            connection.execute(sa.update(vos).where(vos.c.number == row.number).values(sites=json.dumps(sorted(after))))
            return after != before

        if await self._store.write(change):
            self._changed(what, context, request.name, sites=sorted(named))
        return await self._listing()

    async def Dissolve(self, request: pb.DissolveVoRequest, context: grpc.aio.ServicerContext) -> pb.VoListing:
        """See the proto."""
        reason = request.reason.strip()
        if len(reason) > MAX_REASON_LENGTH or not reason.isprintable():
            raise InvalidRequest("REASON_INVALID", f"a reason has at most {MAX_REASON_LENGTH} printable characters")
        now_us = to_us(self._clock.now())

        def dissolve(connection: sa.Connection) -> bool:
            row = self._row(connection, request.name, alive=False)
            if row.dissolved_at_us:
                return False
            connection.execute(
                sa.update(vos).where(vos.c.number == row.number).values(dissolved_at_us=now_us, reason=reason)
            )
            return True

        if await self._store.write(dissolve):
            self._changed("vo.dissolved", context, request.name, reason=reason or None)
        return await self._listing()

    async def Serve(self, request: pb.ServeVoRequest, context: grpc.aio.ServicerContext) -> pb.VoListing:
        """See the proto."""
        peer = current_peer(context)
        if not 0 <= request.http_port < 65536:
            raise InvalidRequest("PORT_INVALID", f"{request.http_port} is no port")

        def serve(connection: sa.Connection) -> bool:
            row = self._row(connection, request.name)
            if row.server != peer.standing.agent_name:
                raise Refused("NOT_OWNER", f"{peer.subject} does not speak for the VO {row.name}; {row.server} does")
            connection.execute(sa.update(vos).where(vos.c.number == row.number).values(http_port=request.http_port))
            return row.http_port != request.http_port

        if await self._store.write(serve):
            self._changed("vo.served", context, request.name, http_port=request.http_port)
        return await self._listing()

    def _row(self, connection: sa.Connection, name: str, *, alive: bool = True) -> sa.Row:
        row = connection.execute(sa.select(vos).where(vos.c.name == name)).one_or_none()
        if row is None:
            raise NotFound(
                "VO_UNKNOWN", f"there is no VO {name[:64]!r} in this grid; make it with: grid vo create", vo=name[:64]
            )
        if alive:
            self._require_alive(row)
        return row

    def _require_alive(self, row: sa.Row) -> None:
        refusal = self._vo(row).refusal("") if row.dissolved_at_us else None
        if refusal is not None:
            raise from_security(refusal)

    def _changed(self, what: str, context: grpc.aio.ServicerContext, name: str, **facts: object) -> None:
        self._log.audit(what, vo=name, by=current_peer(context).subject, **facts)
        self._bulletin.changed()

    # -- questions ---------------------------------------------------------------------------------------------------

    async def List(self, request: pb.ListVosRequest, context: grpc.aio.ServicerContext) -> pb.VoListing:
        """See the proto."""
        return await self._listing()

    async def Watch(
        self, request: pb.WatchVosRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.VoListing]:
        """See the proto."""
        async for listing in self._bulletin.told():
            yield listing

    async def _listing(self) -> pb.VoListing:
        def read(connection: sa.Connection) -> Sequence[sa.Row]:
            return connection.execute(sa.select(vos).order_by(vos.c.number)).all()

        known = [self._vo(row) for row in await self._store.read(read)]
        return pb.VoListing(text=VoList(tuple(vo for vo in known if vo.servers or vo.dissolved_at)).emit())

    def _vo(self, row: sa.Row) -> Vo:
        """Without a server if the grid description no longer has it."""
        told = self._described.get(row.name)
        servers = told.servers if not row.server and told is not None else ()
        if row.server in self._servers:
            servers = (replace(self._servers[row.server], http=row.http_port),)
        dissolved_at = from_us(row.dissolved_at_us) if row.dissolved_at_us else None
        return Vo(row.name, row.number, servers, frozenset(json.loads(row.sites)), dissolved_at, row.reason)
