"""The map file of one agent, kept from the member lists of the VO servers (`fabric/member_reader.py`).

Each member becomes a line `"DN" .<vo>`. A server that does not answer keeps its last good list; the age of that is in
the agent's health. A list that was never read degrades the agent, and a person in no other list is asked to try later.

A list that loses more than a set share of its people (`map_shrink_share`, at least `map_shrink_least`) is held: the old
one stays, the agent is degraded and names who would lose access, until the digest in that sentence is a line of
<map file>.confirm. Single people are removed at once, and a ban takes effect whatever the lists say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fabric.context import AgentContext, map_path
from fabric.errors import Unavailable
from fabric.member_lists import Held, hold
from fabric.member_reader import MemberList, MemberReader
from fabric.settings import Endpoint
from security.errors import SecurityError, os_error_text
from security.files import write_if_changed
from security.mapfile import GridMapFile, MapEntry, emit
from security.names import DistinguishedName

ASK_PAUSE_S = 1.0
"""Between two looks that strangers cause: a flood of unknown names must not become a flood at the VO servers."""
SHARED_AGE = 0.45
"""How old, in refresh times, what another agent of this process was just told may be."""
MAX_CONFIRMATION_BYTES = 64 * 1024
OLD_AFTER_S = 60.0
"""A member list of this age degrades the agent's health."""


@dataclass
class _VoList:
    """What is known of one VO. `members` None: never heard of."""

    members: tuple[DistinguishedName, ...] | None = None
    """In use."""
    offered: MemberList | None = None
    """What the server said last."""
    held: Held | None = None
    """Why that is not in use."""
    good_at: float = field(default=0.0)
    sentence: str = ""
    reader: MemberReader | None = None


class MapFileUpdater:
    """Asks every VO server each `map_refresh_s`, or at once for a stranger, and writes the file when something
    changed."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._path = map_path(context.settings)
        self._vos: tuple[str, ...] = ()
        self._lists: dict[str, _VoList] = {}
        self._dropped: list[MemberReader] = []
        """Of VOs that are served no more."""
        self._started_at = context.clock.monotonic()
        self._updating: asyncio.Task[None] | None = None
        self._written: tuple[object, ...] = ()
        """The member lists that are in the file, and the file's stamp then."""
        self._look_at_vos()
        self._report()

    def _look_at_vos(self) -> None:
        """The VOs that are served here now. After a restart the lists of the last life are good until a server
        answers."""
        vos = self._context.vos
        if vos.served == self._vos or vos.error is not None:  # what cannot be read closes doors, and forgets nothing
            return
        for vo in set(self._lists) - set(vos.served):
            self._drop(self._lists.pop(vo).reader)
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

    def _drop(self, reader: MemberReader | None) -> None:
        if reader is not None:
            self._dropped.append(reader)

    async def run(self) -> None:
        """Update for ever."""
        refresh_s = self._context.settings.fabric.map_refresh_s
        try:
            while True:
                try:
                    if not self._is_settled(SHARED_AGE * refresh_s):
                        await self._update_shared(SHARED_AGE * refresh_s)
                    self._context.solved("map file")
                except Exception as error:  # logged where it happened; the next round may do better
                    self._context.problem(
                        "map file", f"the map file {self._path} cannot be written ({os_error_text(error)})"
                    )
                self._report()
                await asyncio.sleep(refresh_s)
        finally:
            if self._updating is not None:
                self._updating.cancel()
                await asyncio.wait([self._updating])
            for found in self._lists.values():
                self._drop(found.reader)
            await self._leave_dropped()

    def _is_settled(self, max_age_s: float) -> bool:
        """True if another agent of this process has just seen that no list has changed, and nobody changed the file."""
        self._look_at_vos()
        lists = [self._lists[vo] for vo in self._vos]
        if self._written != (*(found.members for found in lists), self._stamp()):
            return False
        for vo, found in zip(self._vos, lists, strict=True):
            reader = found.reader
            if reader is None or found.held is not None or reader.servers != self._servers(vo):
                return False
            if found.offered is None or reader.known(max_age_s) is not found.offered:
                return False
        for found in lists:
            found.good_at, found.sentence = self._context.clock.monotonic(), ""
        return True

    async def _leave_dropped(self) -> None:
        while self._dropped:
            await self._dropped.pop().leave()

    async def update_now(self) -> tuple[str, ...]:
        """For somebody who is not in the file; the lists are asked for at most once a second. The VOs whose members
        were never heard of."""
        with contextlib.suppress(Exception):  # logged where it happened; the list in use stays
            await self._update_shared(ASK_PAUSE_S)
        return tuple(vo for vo in self._lists if self._is_unknown(vo))

    def _is_unknown(self, vo: str) -> bool:
        """True if there is somebody to ask who are the members, and nobody has told yet."""
        return self._lists[vo].members is None and bool(self._context.vos.servers_of(vo))

    async def _update_shared(self, max_age_s: float) -> None:
        if self._updating is None:
            self._updating = asyncio.create_task(self._update(max_age_s), name="update map file")
            self._updating.add_done_callback(self._updated)
        await asyncio.shield(self._updating)

    def _updated(self, task: asyncio.Task[None]) -> None:
        self._updating = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._context.log.exception("map.update_failed", error)

    async def _update(self, max_age_s: float) -> None:
        self._look_at_vos()
        await self._leave_dropped()
        vos = self._vos
        await asyncio.gather(*(self._ask(vo, self._lists[vo], max_age_s) for vo in vos))
        if vos != self._vos:
            return  # some came or went meanwhile
        lists = [self._lists[vo].members for vo in vos]
        if self._written == (*lists, self._stamp()):
            return
        if lists and all(members is None for members in lists):
            return
        people, changed = await asyncio.to_thread(self._write, list(zip(vos, lists, strict=True)))
        self._written = (*lists, self._stamp())
        if changed:
            self._context.log.info("map.written", people=people)
            self._context.news.ring()

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

    async def _ask(self, vo: str, found: _VoList, max_age_s: float) -> None:
        servers = self._servers(vo)
        if found.reader is None or found.reader.servers != servers:
            self._drop(found.reader)
            found.reader = MemberReader.shared(vo, servers)
        try:
            offered = await found.reader.read(max_age_s)
        except Unavailable as error:
            found.sentence = error.sentence
            return
        if offered is not found.offered:
            for text, sentence in offered.refused:
                self._context.log.warning("map.member_refused", vo=vo, subject=text[:300], sentence=sentence)
        if offered is not found.offered or found.held is not None:  # a confirmation may have come
            await self._take(vo, found, offered)
        found.good_at, found.sentence = self._context.clock.monotonic(), ""

    async def _take(self, vo: str, found: _VoList, offered: MemberList) -> None:
        """Use what the server says, unless too many would lose access and nobody has confirmed that."""
        options = self._context.settings.fabric
        held = await asyncio.to_thread(
            hold, found.members or (), offered.members, share=options.map_shrink_share, least=options.map_shrink_least
        )
        found.offered = offered
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
        found.members, found.held = offered.members, None

    @property
    def _confirmations(self) -> Path:
        return self._path.with_name(f"{self._path.name}.confirm")

    def _confirmed(self) -> frozenset[str]:
        try:
            with open(self._confirmations, encoding="ascii") as file:
                return frozenset(file.read(MAX_CONFIRMATION_BYTES).split())
        except (OSError, ValueError):
            return frozenset()

    def _servers(self, vo: str) -> tuple[Endpoint, ...]:
        """Who speaks for the VO; every VO server where that is not known."""
        known = self._context.vos.servers_of(vo)
        named = [Endpoint("vo", server.name, server.host, server.site, ldap=server.ldap) for server in known]
        return tuple(endpoint for endpoint in named or self._context.settings.endpoints("vo") if endpoint.ldap)

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
            if self._is_unknown(vo):
                why = found.sentence or "no VO server has answered yet"
                self._context.problem(f"members of {vo}", f"the members of {vo} are not known here yet: {why}")
            elif found.sentence and age_s > OLD_AFTER_S:
                self._context.problem(f"members of {vo}", f"{found.sentence}; the list in use is {age_s:.0f} s old")
            else:
                self._context.solved(f"members of {vo}")
