"""A VO's member list at the servers that publish it by LDAP, as edg-mkgridmap does: once for all agents of a process.

Base `o=<vo>`; members are entries of class `gridMember` with their DN in slash form as `subject`. One connection to
each server is kept. A server that publishes `contextCSN` (ours, and OpenLDAP with syncprov) is asked for the list only
when that has changed.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass

from fabric.errors import Unavailable
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.filters import Equality
from fabric.ldap.tree import Scope
from fabric.settings import Endpoint
from security.errors import SecurityError
from security.mapfile import MapEntry, emit
from security.names import DistinguishedName

ASK_TIMEOUT_S = 10.0
"""For one whole member list."""
MAX_MEMBERS = 200_000
"""Of one VO; a list beyond it is refused as a whole."""


@dataclass(frozen=True, eq=False)
class MemberList:
    """What a server says. The same object until it says something else."""

    members: tuple[DistinguishedName, ...]
    """Those that a map file can hold."""
    refused: tuple[tuple[str, str], ...]
    """The others as the server names them, and why not."""


class MemberReader:
    """Asks when somebody wants to know and the last answer is too old; who comes meanwhile gets the same answer."""

    def __init__(self, vo: str, servers: tuple[Endpoint, ...]) -> None:
        """Use `shared`."""
        self.servers = servers
        self._vo = vo
        self._users = 0
        self._clients: dict[Endpoint, LdapClient] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._found: MemberList | None = None
        self._failure: Unavailable | None = None
        """Why the last look gave nothing."""
        self._texts: tuple[str, ...] = ()
        self._version: tuple[str, ...] = ()
        """The server that said `_texts`, and its contextCSN then; empty if it has none."""

    @staticmethod
    def shared(vo: str, servers: tuple[Endpoint, ...]) -> MemberReader:
        """The one of this event loop. Call `leave` as often as this."""
        readers = _readers.setdefault(asyncio.get_running_loop(), {})
        reader = readers.setdefault((vo, servers), MemberReader(vo, servers))
        reader._users += 1
        return reader

    async def leave(self) -> None:
        """One fewer reads here; the last one closes the connections."""
        self._users -= 1
        if self._users:
            return
        del _readers[asyncio.get_running_loop()][self._vo, self.servers]
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        for server in list(self._clients):
            await self._drop(server)

    def known(self, max_age_s: float) -> MemberList | None:
        """The list if it was read so short a time ago and nobody is asking."""
        is_young = asyncio.get_running_loop().time() - self._asked_at < max_age_s
        return self._found if is_young and self._asking is None and self._failure is None else None

    async def read(self, max_age_s: float) -> MemberList:
        """The list as it was at most so long ago, from the first server that answers. Raises Unavailable
        MEMBERS_UNREADABLE, also for what failed less than that ago."""
        now = asyncio.get_running_loop().time()
        if self._asking is None and now - self._asked_at >= max_age_s:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(), name=f"ask for members of {self._vo}")
            self._asking.add_done_callback(self._asked)
        if self._asking is not None:
            await asyncio.shield(self._asking)
        if self._found is None or self._failure is not None:
            raise self._failure or Unavailable("MEMBERS_UNREADABLE", f"no server publishes the members of {self._vo}")
        return self._found

    def _asked(self, _: asyncio.Task[None]) -> None:
        self._asking = None

    async def _ask(self) -> None:
        for server in self.servers:
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    await self._look_at(server)
            except (LdapError, TimeoutError, ValueError, OSError) as error:
                self._failure = Unavailable(
                    "MEMBERS_UNREADABLE",
                    f"the member list of {self._vo} at {server.host}:{server.ldap} cannot be read ({error})",
                )
                await self._drop(server)
                continue
            self._failure = None
            return

    async def _look_at(self, server: Endpoint) -> None:
        client = self._clients.get(server)
        if client is not None:
            try:
                return await self._look(client, server)
            except LdapError:  # the server was started again, or tired of an idle client
                await self._drop(server)
        client = await LdapClient.connect(server.host, server.ldap, timeout_s=ASK_TIMEOUT_S)
        self._clients[server] = client
        await self._look(client, server)

    async def _drop(self, server: Endpoint) -> None:
        client = self._clients.pop(server, None)
        if client is not None:
            await client.close()

    async def _look(self, client: LdapClient, server: Endpoint) -> None:
        top = f"o={self._vo}"
        tops = await client.search(top, scope=Scope.BASE, attributes=("contextCSN",))
        csn = tops[0].get("contextcsn") if tops else None
        version = (server.name, *csn) if csn else ()
        if version and version == self._version:
            return
        entries = await client.search(top, Equality("objectClass", "gridMember"), attributes=("subject",))
        if len(entries) > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} members")
        texts = tuple(dict.fromkeys(entry.first("subject") for entry in entries))
        if self._found is None or texts != self._texts:
            self._found = await asyncio.to_thread(_understood, self._vo, texts)
        self._texts, self._version = texts, version


_readers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, tuple[Endpoint, ...]], MemberReader]] = (
    weakref.WeakKeyDictionary()
)


def _understood(vo: str, texts: tuple[str, ...]) -> MemberList:
    members: list[DistinguishedName] = []
    refused: list[tuple[str, str]] = []
    for text in texts:
        try:
            subject = DistinguishedName.parse(text)
            emit([MapEntry(subject, (f".{vo}",))])
            members.append(subject)
        except SecurityError as error:
            refused.append((text, error.sentence))
    return MemberList(tuple(members), tuple(refused))
