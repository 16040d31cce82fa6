"""Who is who in this grid: agents and operators by their names, users by the map file, nobody who is banned.

`<organisation>/OU=<site>/CN=<kind>/<name>` are agents, `<organisation>/OU=Users/CN=...` users,
`<organisation>/OU=Operators/CN=...` administrators. Only the grid's authority makes such names: no other may sign them,
and where a site's manager has let one, nobody believes it.

Users are mapped in one of two modes: `coarse` by the map file, which tells people and VOs apart and nothing finer, or
`vo-groups` by the verified groups and roles of their proxies, in the order of the site's rules.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from fabric.clock import Clock, SystemClock
from fabric.errors import Exhausted, GridError, Refused, Unavailable, from_security
from fabric.logs import Logger
from fabric.rpc.peer import Standing
from fabric.rpc.rules import not_mapped
from fabric.vos import Vos
from security.authorization import accounts_by_groups
from security.bans import BanList
from security.errors import MappingError, Reason, SecurityError
from security.gridmapdir import GridMapDir
from security.mapfile import GridMapFile, GroupMapFile
from security.names import DistinguishedName
from security.validation import Identity
from security.voms import VomsAttributes

USERS = "Users"
OPERATORS = "Operators"
RESERVED_UNITS = frozenset({USERS, OPERATORS})
"""Organisational units that are no sites."""

MAP_AT_ONCE_BYTES = 64 * 1024
"""A larger map file takes more than some milliseconds to read."""

MEMBERS_PAUSE_S = 2
"""Who came before the first member list tries again after this."""

_Stamp = tuple[int, int, int]


class Judge:
    """An `Authoriser` over a map file, ban lists, the VOs let in here and, for gatekeepers, a pool account directory.

    `refresh` reads files that changed; a map file that is missing or cannot be read keeps the last one, an unreadable
    ban list refuses everybody, an unreadable list of VOs every member. `generation` grows whenever a judgement may have
    changed.
    """

    def __init__(
        self,
        *,
        organisation: str,
        authority: DistinguishedName,
        map_file: Path,
        ban_file: Path,
        log: Logger,
        vos: Vos,
        gridmapdir: Path | None = None,
        group_map: Path | None = None,
        central_bans: Path | None = None,
        site: str = "",
        clock: Clock | None = None,
        update_now: Callable[[], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        """`authority` gives agents and operators their certificates. `update_now` is asked once for news before
        somebody is refused as not mapped; it limits its own rate, and names the VOs whose members were never read.
        `group_map` is the file of rules of the mode `vo-groups`; without it the mode is `coarse`. `central_bans` is the
        copy of the grid's list: bans of other sites in it mean nothing at `site`, and a copy that is missing was not
        fetched yet."""
        self._organisation, self._authority = DistinguishedName.parse(organisation), authority
        self._map_path, self._log = map_file, log
        self._vos, self._vos_seen = vos, vos.generation
        self._ban_path, self._central_path = ban_file, central_bans
        self._site, self._clock = site, clock or SystemClock()
        self._pool = GridMapDir(gridmapdir) if gridmapdir is not None else None
        self.update_now = update_now
        self._map = GridMapFile(())
        self._group_path, self._groups = group_map, GroupMapFile()
        self._group_stamp: _Stamp | None = None
        self._own_bans: BanList = BanList()
        self._central_bans: BanList = BanList()
        self._bans: BanList | None = None
        self._ban_error: GridError | None = None
        self._map_stamp: _Stamp | None = None
        self._ban_stamps: tuple[_Stamp | None, _Stamp | None] = (None, None)
        self._read_before = False
        self._looking = asyncio.Lock()
        self.generation = 0
        self.refresh()

    @property
    def map_file(self) -> GridMapFile:
        """The map as of the last refresh."""
        return self._map

    async def look(self) -> bool:
        """As `refresh`, but a map of many people is read beside the event loop, which it would hold for seconds."""
        async with self._looking:
            stamp = _stamp(self._map_path)
            if stamp == self._map_stamp or stamp is None or stamp[1] <= MAP_AT_ONCE_BYTES:
                return self.refresh()
            before = self.generation
            found = await asyncio.to_thread(self._load_map)
            if found is not None:
                self._map = found
                self.generation += 1
            self._map_stamp = stamp  # if it has changed meanwhile the next look sees that
            self.refresh()
            return self.generation != before

    def refresh(self) -> bool:
        """Look at the files; True if one changed. One stat each: cheap to call every second."""
        self._vos.refresh()
        changed = self._vos_seen != self._vos.generation
        self._vos_seen = self._vos.generation
        stamp = _stamp(self._map_path)
        if stamp != self._map_stamp:
            changed = self._read_map() or changed
            self._map_stamp = stamp
        if self._group_path is not None and (stamp := _stamp(self._group_path)) != self._group_stamp:
            changed = self._read_groups(self._group_path) or changed
            self._group_stamp = stamp
        changed = self._look_at_bans() or changed
        if changed:
            self.generation += 1
        return changed

    def _read_map(self) -> bool:
        found = self._load_map()
        if found is not None:
            self._map = found
        return found is not None

    def _load_map(self) -> GridMapFile | None:
        """None if it cannot be read: the one in force stays."""
        try:
            found = GridMapFile.load(self._map_path)
        except SecurityError as error:
            self._log.error("map.unreadable", path=str(self._map_path), sentence=error.sentence)
            return None
        for problem in found.problems[:20]:
            self._log.warning(
                "map.line_refused", path=str(self._map_path), line=problem.line, sentence=problem.sentence
            )
        return found

    def _read_groups(self, path: Path) -> bool:
        try:
            self._groups = GroupMapFile.load(path)
        except SecurityError as error:  # the rules in force stay; there are none before the first good file
            self._log.error("group_map.unreadable", path=str(path), sentence=error.sentence)
            return False
        return True

    def _look_at_bans(self) -> bool:
        stamps = (_stamp(self._ban_path), _stamp(self._central_path) if self._central_path is not None else None)
        if stamps == self._ban_stamps and self._read_before:
            return False
        own, central = (
            stamp != seen or self._bans is None for stamp, seen in zip(stamps, self._ban_stamps, strict=True)
        )
        self._ban_stamps, self._read_before = stamps, True
        before = self._bans
        try:
            if own:
                self._own_bans = BanList.load(self._ban_path)
            if central and stamps[1] is not None and self._central_path is not None:
                self._central_bans = BanList.load(self._central_path)
            self._bans, self._ban_error = (self._own_bans + self._central_bans).at(self._site), None
        except SecurityError as error:
            self._bans, self._ban_error = None, from_security(error)
            self._log.error("bans.unreadable", path=str(self._ban_path), sentence=error.sentence)
        return self._bans is None or self._bans != before

    def hear_bans(self, central: BanList) -> bool:
        """The grid's list as it was just told: in force at once, before the copy is on disk. True if that is news.
        While a list on disk cannot be read everybody stays refused."""
        if self._bans is None or central == self._central_bans:
            return False
        self._central_bans = central
        self._bans = (self._own_bans + central).at(self._site)
        self.generation += 1
        return True

    async def admit(
        self, identity: Identity, *, unmapped: bool, attributes: tuple[VomsAttributes, ...] = (), address: str = ""
    ) -> Standing:
        """The standing for a new session. Raises Refused NOT_MAPPED, BANNED, BAN_LIST_UNREADABLE, VO_DISSOLVED,
        VO_NOT_ACCEPTED, VO_LIST_UNREADABLE, Exhausted POOL_EXHAUSTED, Unavailable MEMBERS_UNKNOWN."""
        standing = self.judge(identity, unmapped=True, attributes=attributes, address=address)
        if standing != Standing():
            return standing
        unread: Sequence[str] = ()
        if self._group_path is None:
            if self.update_now is not None:
                unread = await self.update_now()
            await self.look()
        try:
            return self.judge(identity, unmapped=unmapped, attributes=attributes, address=address)
        except Refused as error:
            if unread and error.reason == Reason.NOT_MAPPED:
                raise _members_unknown(identity, unread) from None
            raise

    def judge(
        self, identity: Identity, *, unmapped: bool, attributes: tuple[VomsAttributes, ...] = (), address: str = ""
    ) -> Standing:
        """The standing by what is known now. Raises as `admit`; with `unmapped` a stranger gets an empty standing."""
        if self._bans is None:
            raise self._ban_error or Exhausted("BAN_LIST_UNREADABLE", "the ban list was not read yet; try again")
        try:
            fqans = [fqan for found in attributes for fqan in found.fqans]
            vos = {found.vo for found in attributes} | self._vos_by_map(identity)
            self._bans.check(identity, now=self._clock.now(), fqans=fqans, vos=vos, address=address)
            by_name = self.by_name(identity.subject, identity.issuer)
            if by_name is not None:
                return by_name
            for found in attributes:
                if (refusal := self._vos.refusal(found.vo)) is not None:
                    raise refusal
            return self._mapped(identity, attributes, unmapped=unmapped)
        except SecurityError as error:
            raise from_security(error) from error

    def by_name(self, subject: DistinguishedName, issuer: DistinguishedName) -> Standing | None:
        """The standing of an agent or operator of this grid; None for everybody else. Raises Refused ISSUER_NOT_OWN for
        such a name that another authority gave."""
        standing = self._named(subject)
        if standing is not None and issuer != self._authority:
            raise Refused(
                "ISSUER_NOT_OWN",
                f"{subject} is the name of an agent or operator of this grid, which only {self._authority} gives, but "
                f"its certificate is from {issuer}: remove that authority from this host, or narrow its namespace",
                subject=subject,
                issuer=issuer,
            )
        return standing

    def _named(self, subject: DistinguishedName) -> Standing | None:
        own = len(self._organisation.rdns)
        rest = subject.rdns[own:]
        if not subject.startswith(self._organisation) or len(rest) != 2 or any(len(rdn) != 1 for rdn in rest):
            return None
        (unit_type, unit), (name_type, name) = rest[0][0], rest[1][0]
        if unit_type != "OU" or name_type != "CN" or unit == USERS:
            return None
        if unit == OPERATORS:
            return Standing(is_administrator=True)
        kind, slash, agent = name.partition("/")
        if not slash or not agent or not kind.isidentifier():
            return None
        return Standing(agent_kind=kind, agent_site=unit, agent_name=agent)

    def _mapped(self, identity: Identity, attributes: tuple[VomsAttributes, ...], *, unmapped: bool) -> Standing:
        by_groups = self._group_path is not None
        try:
            accounts = (
                accounts_by_groups(identity, [fqan for found in attributes for fqan in found.fqans], self._groups)
                if by_groups
                else self._by_map_file(identity, attributes)
            )
        except MappingError:
            if unmapped:
                return Standing()
            raise
        if not accounts:
            if unmapped:
                return Standing()
            raise not_mapped(str(identity.subject), issuer=str(identity.issuer), serial=f"{identity.serial:X}")
        account = accounts[0]
        pool = account[1:] if account.startswith(".") else ""
        vo = attributes[0].vo if by_groups else pool
        if self._pool is not None and pool:
            account = self._pool.lease(identity.subject, pool, per_pool=by_groups)
        return Standing(account=account, vo=vo)

    def _vos_by_map(self, identity: Identity) -> set[str]:
        """The VO that the map file gives the person, if the proxy names none."""
        return {account[1:] for account in self._map.accounts_of(identity.subject)[:1] if account.startswith(".")}

    def _by_map_file(self, identity: Identity, attributes: tuple[VomsAttributes, ...]) -> tuple[str, ...]:
        """The person's accounts; for somebody of several VOs, that of the VO in the proxy first. Raises MappingError of
        the first VO where none of them is let in."""
        mapped = self._map.accounts_of(identity.subject)
        refusals = {account: self._vos.refusal(account[1:]) for account in mapped if account.startswith(".")}
        accounts = [account for account in mapped if refusals.get(account) is None]
        if not accounts and refusals:
            raise next(refusal for refusal in refusals.values() if refusal is not None)
        wanted = [f".{found.vo}" for found in attributes]
        return tuple(sorted(accounts, key=lambda account: account not in wanted))


def _members_unknown(identity: Identity, vos: Sequence[str]) -> Unavailable:
    """Nobody can say yet that this is no member."""
    return Unavailable(
        "MEMBERS_UNKNOWN",
        f"{identity.subject} is in no member list read so far, and those of {', '.join(vos)} were not read here yet; "
        f"try again in a moment",
        subject=identity.subject,
        retry_after_s=MEMBERS_PAUSE_S,
    )


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
