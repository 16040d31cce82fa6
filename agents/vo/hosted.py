"""One of the VOs that a VO server speaks for: its store, its member list, its VOMS door."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from agents.vo import store as rows
from agents.vo.config import VoConfig
from agents.vo.directory import MemberDirectory
from agents.vo.door import VomsDoor
from agents.vo.issuing import Issued, Issuer, Wanted
from agents.vo.organisation import Organisation
from fabric.context import AgentContext
from fabric.errors import Unavailable, from_security
from fabric.ldap.tree import EntryTree
from fabric.tls_door import TlsDoor
from security.errors import SecurityError
from security.validation import ChainInput, Identity, validate_client_chain


class HostedVo:
    """The VO of the grid description has its store in ``vo.db`` and its door at the server's `http` port; each other
    one a store ``vo-<name>.db``, where the port is kept that the system once gave."""

    def __init__(self, context: AgentContext, config: VoConfig, vo: str, tree: EntryTree) -> None:
        """Nobody is shown or let in yet. Raises as `Store`."""
        self._context, self.vo = context, vo
        self._is_described = vo == config.vo
        if not self._is_described:  # the groups of the description are those of another VO
            config = replace(config, vo=vo, groups=())
        self._store = context.store("vo" if self._is_described else f"vo-{vo}", rows.metadata, rows.MIGRATIONS)
        self.directory = MemberDirectory(vo, context.clock.now(), tree)
        self._issuer = Issuer(
            vo,
            lambda: context.credential,
            max_lifetime=timedelta(seconds=config.max_attribute_lifetime_s),
            default=timedelta(seconds=config.attribute_lifetime_s),
        )
        self.organisation = Organisation(
            config, self._store, self.directory, self._issuer, context.judge, context.clock, context.log
        )
        door = VomsDoor(vo, self._validate, self._issue, context.log)
        limit = config.max_connections_per_address
        self._door = TlsDoor(lambda: context.credential, door.serve, context.log, max_per_address=limit)
        self._watching: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Of the VOMS door; 0 while it is closed."""
        return self._door.port

    async def open(self) -> None:
        """Show the members and open the door. May be repeated when it failed. Raises Unavailable PORT_IN_USE."""
        settings = self._context.settings
        self.organisation.recover()
        if self._is_described:
            if "http" in settings.ports:
                await self._door.start(settings.listen, settings.ports["http"])
        else:
            await self._open_at(settings.listen, await self._store.read(rows.door_port))
        self._issuer.uri = f"{settings.advertise}:{self.port or settings.rpc_port}"
        self._watching = self._context.spawn(self.organisation.watch(), f"watch memberships of {self.vo}")

    async def _open_at(self, listen: str, kept: int) -> None:
        try:
            await self._door.start(listen, kept)
        except Unavailable:  # somebody else has it now: the list of VOs tells everybody the new one
            await self._door.start(listen, 0)
        if self.port != kept:
            await self._store.write(lambda connection: rows.keep_door_port(connection, self.port))

    async def close(self) -> None:
        """Show nobody and let nobody in. The store stays as it is."""
        self.directory.close()
        await self._door.close()
        if self._watching is not None:
            self._watching.cancel()

    def _validate(self, chain: ChainInput) -> Identity:
        context = self._context
        return validate_client_chain(chain, context.trust.snapshot(), context.policy, context.clock.now())

    async def _issue(self, identity: Identity, wanted: Wanted, address: str) -> Issued:
        context = self._context
        try:
            carried = context.voms.attributes_of(
                identity, context.trust.snapshot(), context.policy, context.clock.now()
            )
        except SecurityError as error:
            raise from_security(error) from error
        return await self.organisation.issue(identity, carried, wanted, "https", address)
