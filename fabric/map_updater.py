"""The map file of one agent, kept from the member lists that the VO servers publish by LDAP (as edg-mkgridmap did).

Base `o=<vo>`; members are entries of class `gridMember` with their DN in slash form as `subject`. Each becomes a line
`"DN" .<vo>`. A server that does not answer keeps its last good list; the age of that is in the agent's health.

One connection to each server is kept. A server that publishes `contextCSN` (ours, and OpenLDAP with syncprov) is asked
for the list only when that has changed; and agents of one host tell each other, by a file in the directory of
authorities that they share, which version a server was just seen to have, so that not each of them asks each time.
Nothing but "not now" is believed of that file.

A list that loses more than a set share of its people (`map_shrink_share`, at least `map_shrink_least`) is held: the old
one stays, the agent is degraded and names who would lose access, until the digest in that sentence is a line of
<map file>.confirm. Single people are removed at once, and a ban takes effect whatever the lists say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from fabric.context import AgentContext, map_path
from fabric.ldap.client import LdapClient, LdapError
from fabric.ldap.filters import Equality
from fabric.ldap.tree import Scope
from fabric.member_lists import Held, hold
from fabric.settings import Endpoint
from security.errors import SecurityError, os_error_text
from security.files import write_if_changed
from security.mapfile import GridMapFile, MapEntry, emit
from security.names import DistinguishedName

ASK_TIMEOUT_S = 10.0
"""For one whole member list."""
MAX_MEMBERS = 200_000
"""Of one VO; a list beyond it is refused as a whole."""
ASK_PAUSE_S = 1.0
"""Between two updates that strangers cause: a flood of unknown names must not become a flood at the VO servers."""
HINT_AGE = 0.45
"""How old, in refresh times, a version that another agent of this host saw may be."""
MAX_CONFIRMATION_BYTES = 64 * 1024
OLD_AFTER_S = 60.0
"""A member list of this age degrades the agent's health."""

Texts = tuple[str, ...]
"""The members as a server names them."""
Version = tuple[str, ...]
"""A server's name and its contextCSN; empty if it has none."""


@dataclass
class _VoList:
    """What is known of one VO. `members` None: never heard of."""

    members: tuple[DistinguishedName, ...] | None = None
    """In use."""
    offered: tuple[DistinguishedName, ...] | None = None
    """What the server says, if that is held."""
    held: Held | None = None
    texts: Texts = ()
    """What the server said last; the same again is not read again."""
    version: Version = ()
    """When it said so."""
    good_at: float = field(default=0.0)
    sentence: str = ""


class MapFileUpdater:
    """Asks every VO server each `map_refresh_s`, or at once for a stranger, and writes the file when something
    changed."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._path = map_path(context.settings)
        self._vos: tuple[str, ...] = ()
        self._lists: dict[str, _VoList] = {}
        self._started_at = context.clock.monotonic()
        self._asked_at = -ASK_PAUSE_S
        self._updating: asyncio.Task[bool] | None = None
        self._clients: dict[tuple[str, Endpoint], LdapClient] = {}
        self._written: tuple[object, ...] = ()
        """The member lists that are in the file, and the file's stamp then."""
        self._look_at_vos()

    def _look_at_vos(self) -> None:
        """The VOs that are served here now. After a restart the lists of the last life are good until a server
        answers."""
        vos = self._context.vos
        if vos.served == self._vos or vos.error is not None:  # what cannot be read closes doors, and forgets nothing
            return
        for vo in set(self._lists) - set(vos.served):
            del self._lists[vo]
            for problem in (f"shrunken list of {vo}", f"members of {vo}"):
                self._context.solved(problem)
        for vo in set(vos.served) - set(self._lists):
            self._lists[vo] = _VoList(members=self._members_on_disk(vo))
        self._vos = vos.served

    def _members_on_disk(self, vo: str) -> tuple[DistinguishedName, ...] | None:
        try:
            return GridMapFile.load(self._path).subjects_of(f".{vo}") or None
        except SecurityError:
            return None

    async def run(self) -> None:
        """Update for ever."""
        try:
            while True:
                try:
                    if not self._is_known_to_be_good():
                        await self._update_shared()
                    self._context.solved("map file")
                except Exception as error:  # logged where it happened; the next round may do better
                    self._context.problem(
                        "map file", f"the map file {self._path} cannot be written ({os_error_text(error)})"
                    )
                self._report()
                await asyncio.sleep(self._context.settings.fabric.map_refresh_s)
        finally:
            if self._updating is not None:
                self._updating.cancel()
            for vo, endpoint in list(self._clients):
                await self._drop(vo, endpoint)

    def _is_known_to_be_good(self) -> bool:
        """True if another agent of this host has just seen that no list has changed, and nobody changed the file."""
        self._look_at_vos()
        lists = [self._lists[vo] for vo in self._vos]
        if any(found.held for found in lists):
            return False  # a confirmation may have come
        if self._updating is not None or self._written != (*(found.members for found in lists), self._stamp()):
            return False
        if not all(found.version and found.version == self._seen_by_others(vo) for vo, found in self._lists.items()):
            return False
        for found in lists:
            found.good_at, found.sentence = self._context.clock.monotonic(), ""
        return True

    def _seen_by_others(self, vo: str) -> Version:
        """The version that a server of this VO had a moment ago; empty if nobody has looked."""
        limit_s = HINT_AGE * self._context.settings.fabric.map_refresh_s
        try:
            with open(self._hint(vo), encoding="utf-8") as file:
                age_s = self._context.clock.now().timestamp() - os.fstat(file.fileno()).st_mtime
                return tuple(file.read(1000).splitlines()) if 0 <= age_s <= limit_s else ()
        except (OSError, ValueError):
            return ()

    def _tell_others(self, vo: str, version: Version) -> None:
        try:
            with open(self._hint(vo), "w", encoding="utf-8") as file:
                file.write("\n".join(version))
        except OSError:
            pass  # a directory that is not ours: everybody asks

    def _hint(self, vo: str) -> str:
        return f"{self._context.settings.certificates}/.gridfabric-members-{quote(vo, safe='')}"

    async def update_now(self) -> bool:
        """Once for somebody who is not in the file; at most once a second. True if the file was asked for again."""
        if self._updating is None and self._context.clock.monotonic() - self._asked_at < ASK_PAUSE_S:
            return False
        try:
            await self._update_shared()
        except Exception:  # logged where it happened; the list in use stays
            return False
        return True

    async def _update_shared(self) -> bool:
        if self._updating is None:
            self._asked_at = self._context.clock.monotonic()
            self._updating = asyncio.create_task(self._update(), name="ask VO servers")
            self._updating.add_done_callback(self._updated)
        return await asyncio.shield(self._updating)

    def _updated(self, task: asyncio.Task[bool]) -> None:
        self._updating = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._context.log.exception("map.update_failed", error)

    async def _update(self) -> bool:
        self._look_at_vos()
        vos = self._vos
        await asyncio.gather(*(self._ask(vo, self._lists[vo]) for vo in vos))
        if vos != self._vos:
            return False  # some came or went meanwhile
        lists = [self._lists[vo].members for vo in vos]
        if self._written == (*lists, self._stamp()):
            return False
        if lists and all(members is None for members in lists):
            return False
        people, changed = await asyncio.to_thread(self._write, list(zip(vos, lists, strict=True)))
        self._written = (*lists, self._stamp())
        if changed:
            self._context.log.info("map.written", people=people)
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _write(self, lists: Sequence[tuple[str, Sequence[DistinguishedName] | None]]) -> tuple[int, bool]:
        """How many people are in the file now, and whether it is another one. A person of several VOs is mapped to the
        first that this agent serves, and may use the others."""
        accounts: dict[DistinguishedName, list[str]] = {}
        for vo, members in lists:
            for subject in members or ():
                accounts.setdefault(subject, []).append(f".{vo}")
        text = emit([MapEntry(subject, tuple(names)) for subject, names in accounts.items()])
        return len(accounts), write_if_changed(self._path, text.encode(), 0o644)

    async def _ask(self, vo: str, found: _VoList) -> None:
        for endpoint in self._servers(vo):
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    version, texts = await self._subjects_at(endpoint, vo, found)
            except (LdapError, TimeoutError, ValueError, OSError) as error:
                found.sentence = f"the member list of {vo} at {endpoint.host}:{endpoint.ldap} cannot be read ({error})"
                await self._drop(vo, endpoint)
                continue
            if found.members is None or texts != found.texts:
                found.offered, found.texts = await asyncio.to_thread(self._names, texts, vo), texts
            await self._take_offered(vo, found)
            found.version = version
            if version:
                self._tell_others(vo, version)
            found.good_at, found.sentence = self._context.clock.monotonic(), ""
            return

    async def _take_offered(self, vo: str, found: _VoList) -> None:
        """Use what the server says, unless too many would lose access and nobody has confirmed that."""
        offered, options = found.offered, self._context.settings.fabric
        if offered is None:
            return
        held = await asyncio.to_thread(
            hold, found.members or (), offered, share=options.map_shrink_share, least=options.map_shrink_least
        )
        if held is not None and held.digest not in self._confirmed():
            if found.held != held:
                self._context.log.audit(
                    "map.shrink_held",
                    vo=vo,
                    before=held.before,
                    after=held.after,
                    digest=held.digest,
                    lost=[str(name) for name in held.lost[:100]],
                )
            found.held = held
            return
        if held is not None:
            self._context.log.audit("map.shrink_confirmed", vo=vo, digest=held.digest, lost=len(held.lost))
        found.members, found.offered, found.held = offered, None, None

    @property
    def _confirmations(self) -> Path:
        return self._path.with_name(f"{self._path.name}.confirm")

    def _confirmed(self) -> frozenset[str]:
        try:
            with open(self._confirmations, encoding="ascii") as file:
                return frozenset(file.read(MAX_CONFIRMATION_BYTES).split())
        except (OSError, ValueError):
            return frozenset()

    def _servers(self, vo: str) -> list[Endpoint]:
        """Who speaks for the VO; every VO server where that is not known."""
        known = self._context.vos.servers_of(vo)
        named = [Endpoint("vo", server.name, server.host, server.site, ldap=server.ldap) for server in known]
        return [endpoint for endpoint in named or self._context.settings.endpoints("vo") if endpoint.ldap]

    async def _subjects_at(self, endpoint: Endpoint, vo: str, found: _VoList) -> tuple[Version, Texts]:
        client = self._clients.get((vo, endpoint))
        if client is not None:
            try:
                return await self._look(client, endpoint, vo, found)
            except LdapError:  # the server was started again, or tired of an idle client
                await self._drop(vo, endpoint)
        client = await LdapClient.connect(endpoint.host, endpoint.ldap, timeout_s=ASK_TIMEOUT_S)
        self._clients[vo, endpoint] = client
        return await self._look(client, endpoint, vo, found)

    async def _drop(self, vo: str, endpoint: Endpoint) -> None:
        client = self._clients.pop((vo, endpoint), None)
        if client is not None:
            await client.close()

    async def _look(self, client: LdapClient, endpoint: Endpoint, vo: str, found: _VoList) -> tuple[Version, Texts]:
        tops = await client.search(f"o={vo}", scope=Scope.BASE, attributes=("contextCSN",))
        csn = tops[0].get("contextcsn") if tops else None
        version = (endpoint.name, *csn) if csn else ()
        if version and version == found.version:
            return version, found.texts
        entries = await client.search(f"o={vo}", Equality("objectClass", "gridMember"), attributes=("subject",))
        if len(entries) > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} members")
        return version, tuple(dict.fromkeys(entry.first("subject") for entry in entries))

    def _names(self, texts: Iterable[str], vo: str) -> tuple[DistinguishedName, ...]:
        """The names that a map file can hold; the others are logged and left out."""
        subjects: list[DistinguishedName] = []
        for text in texts:
            try:
                subject = DistinguishedName.parse(text)
                emit([MapEntry(subject, (f".{vo}",))])
                subjects.append(subject)
            except SecurityError as error:
                self._context.log.warning("map.member_refused", vo=vo, subject=text[:300], sentence=error.sentence)
        return tuple(subjects)

    def _report(self) -> None:
        now = self._context.clock.monotonic()
        for vo, found in self._lists.items():
            age_s = now - (found.good_at or self._started_at)
            if found.held is not None:
                self._context.problem(
                    f"shrunken list of {vo}",
                    f"the member list of {vo} shrank from {found.held.before} to {found.held.after} and is held; "
                    f"{found.held.names} would lose access; if that is right: echo {found.held.digest} >> "
                    f"{self._confirmations}",
                )
            else:
                self._context.solved(f"shrunken list of {vo}")
            if found.sentence and age_s > OLD_AFTER_S:
                self._context.problem(f"members of {vo}", f"{found.sentence}; the list in use is {age_s:.0f} s old")
            else:
                self._context.solved(f"members of {vo}")
