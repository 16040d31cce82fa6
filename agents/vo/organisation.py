"""What the VO server does, by whatever door it was asked: change members, keep the LDAP tree true, issue attributes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from agents.vo import machine
from agents.vo import store as rows
from agents.vo.config import VoConfig
from agents.vo.directory import MemberDirectory
from agents.vo.issuing import Issued, Issuer, Lookup, Wanted
from agents.vo.model import MANAGER_ROLE, Aup, Member, MemberState
from fabric.authorisation import Judge
from fabric.clock import Clock, from_us, to_us, utc_text
from fabric.errors import Exhausted, GridError, InvalidRequest, Refused
from fabric.logs import Logger
from fabric.rpc.peer import Peer, require_identity
from fabric.store import Store
from security.validation import Identity
from security.voms import VomsAttributes

MAX_AUP_BYTES = 64 * 1024


class Organisation:
    """One VO. The LDAP tree changes after the store did, in the order of the commits."""

    def __init__(
        self,
        config: VoConfig,
        store: Store,
        directory: MemberDirectory,
        issuer: Issuer,
        judge: Judge,
        clock: Clock,
        log: Logger,
    ) -> None:
        self.config, self.vo = config, config.vo
        self.store, self.directory = store, directory
        self._issuer, self._judge = issuer, judge
        self._clock, self._log = clock, log
        self._changing = asyncio.Lock()
        self._aup = Aup()
        self._enforced = 0
        """Version of the policy that the tree enforces."""
        self.issued = 0
        self.requests = 0

    @property
    def aup(self) -> Aup:
        """The current acceptable use policy."""
        return self._aup

    def now_us(self) -> int:
        """The clock."""
        return to_us(self._clock.now())

    # -- start and time ----------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Before the ports open: declared groups and roles exist, and the tree is made."""

        def declare(connection: rows.sa.Connection) -> None:
            for group in sorted(self.config.groups):
                rows.add_group(connection, self.vo, group)
            for role in self.config.roles:
                rows.add_role(connection, role)

        self.store.write_sync(declare)
        self._aup = self.store.read_sync(rows.current_aup)
        self._show_all(self.store.read_sync(lambda connection: list(rows.every(connection))))

    async def watch(self) -> None:
        """For ever: memberships end, and grace periods."""
        while True:
            await self.sweep()
            await asyncio.sleep(self.config.sweep_s)

    async def sweep(self) -> None:
        """What time alone has changed."""
        now_us = self.now_us()
        for member in await self.store.read(lambda connection: rows.ended(connection, now_us)):
            await self.change(member.subject, machine.EndReached(), by="the clock", again=True)
        if self._enforced != self._aup.version and now_us >= self._aup.required_at_us:
            async with self._changing:
                self._show_all(await self.store.read(lambda connection: list(rows.every(connection))))
        self.requests = await self.store.read(lambda connection: rows.count(connection, MemberState.REQUESTED))

    def _show_all(self, members: Iterable[Member]) -> None:
        if self.now_us() >= self._aup.required_at_us:
            self._enforced = self._aup.version
        for member in members:
            self._show(member)

    def _show(self, member: Member) -> None:
        if machine.objection(self.vo, member, self._aup, self.now_us()) is None:
            self.directory.put(member)
        else:
            self.directory.remove(member.subject)

    # -- changes -----------------------------------------------------------------------------------------------------

    async def add(self, member: Member, by: str) -> Member:
        """A manager adds somebody, or renews particulars."""

        def put(connection: rows.sa.Connection) -> Member:
            rows.require_fqans(connection, self.vo, member.groups)
            return rows.put(connection, member, self.config.max_members)

        async with self._changing:
            kept = await self.store.write(put)
            self._show(kept)
        self._log.audit("member.added", vo=self.vo, subject=kept.subject, by=by, groups=list(kept.groups))
        return kept

    async def request(self, member: Member) -> Member:
        """Somebody asks to become a member; a second time changes nothing."""

        def put(connection: rows.sa.Connection) -> tuple[Member, bool]:
            known = rows.find(connection, member.subject)
            if known is not None:
                return known, False
            if rows.count(connection, MemberState.REQUESTED) >= self.config.max_requests:
                raise Exhausted(
                    "REQUESTS_EXHAUSTED",
                    f"{self.config.max_requests} people wait for a decision of {self.vo}; ask again later, or write to "
                    "its managers",
                    retry_after_s=3600,
                )
            return rows.put(connection, member, self.config.max_members), True

        async with self._changing:
            kept, is_new = await self.store.write(put)
        if is_new:
            self._log.audit("member.requested", vo=self.vo, subject=kept.subject, by=kept.subject)
        return kept

    async def remove(self, subject: str, by: str) -> None:
        """Out. Idempotent."""
        async with self._changing:
            removed = await self.store.write(lambda connection: rows.remove(connection, subject))
            self.directory.remove(subject)
        if removed:
            self._log.audit("member.removed", vo=self.vo, subject=subject, by=by)

    async def change(self, subject: str, event: machine.Event, by: str, *, again: bool = False) -> Member:
        """One event of a membership's life. With `again`, an event that no longer fits is not an error."""

        def step(connection: rows.sa.Connection) -> tuple[Member, Member]:
            before = rows.get(connection, self.vo, subject)
            after = machine.apply(before, event, rows.current_aup(connection), now_us)
            rows.save(connection, after)
            return before, after

        now_us = self.now_us()
        try:
            async with self._changing:
                before, after = await self.store.write(step)
                self._show(after)
        except GridError:
            if again:
                return await self.store.read(lambda connection: rows.get(connection, self.vo, subject))
            raise
        self._log.audit(
            f"member.{_AUDITED[type(event)]}",
            vo=self.vo,
            subject=subject,
            by=by,
            before=before.state.value,
            after=after.state.value,
            reason=after.reason or None,
            aup_version=after.aup_version or None,
            expires_at=utc_text(from_us(after.expires_at_us)) if after.expires_at_us else None,
        )
        return after

    async def edit(
        self, subject: str, what: str, by: str, alter: Callable[[rows.sa.Connection, Member], Member], **facts: object
    ) -> Member:
        """Change a member's groups or attributes; `what` is the word of the audit log."""

        def step(connection: rows.sa.Connection) -> tuple[bool, Member]:
            before = rows.get(connection, self.vo, subject)
            after = alter(connection, before)
            rows.save(connection, after)
            return before != after, after

        async with self._changing:
            changed, after = await self.store.write(step)
            self._show(after)
        if changed:
            self._log.audit(f"member.{what}", vo=self.vo, subject=subject, by=by, **facts)
        return after

    async def edit_all(
        self, alter: Callable[[rows.sa.Connection], list[Member]], what: str, by: str, name: str
    ) -> None:
        """Remove a group or role from everybody."""
        async with self._changing:
            changed = await self.store.write(alter)
            for member in changed:
                self._show(member)
        self._log.audit(what, vo=self.vo, name=name, by=by, members=len(changed))

    async def define(self, alter: Callable[[rows.sa.Connection], bool], what: str, by: str, name: str) -> None:
        """Make a group or role."""
        async with self._changing:
            is_new = await self.store.write(alter)
        if is_new:
            self._log.audit(what, vo=self.vo, name=name, by=by)

    async def publish_aup(self, text: str, grace_s: float, by: str) -> Aup:
        """The next version of the acceptable use policy. Raises InvalidRequest AUP_INVALID."""
        if not text.strip() or len(text.encode()) > MAX_AUP_BYTES:
            raise InvalidRequest("AUP_INVALID", f"an acceptable use policy has between 1 and {MAX_AUP_BYTES} bytes")
        if not 0 <= grace_s <= 366 * 86400:
            raise InvalidRequest("AUP_INVALID", "the grace of an acceptable use policy is between 0 and 366 days")
        now_us = self.now_us()
        required_us = now_us + int(timedelta(seconds=grace_s).total_seconds() * 1e6)
        async with self._changing:
            self._aup = await self.store.write(lambda c: rows.publish_aup(c, text, now_us, required_us))
            self._show_all(await self.store.read(lambda connection: list(rows.every(connection))))
        self._log.audit(
            "aup.published", vo=self.vo, version=self._aup.version, by=by, required_at=utc_text(from_us(required_us))
        )
        return self._aup

    # -- questions ---------------------------------------------------------------------------------------------------

    async def look_up(self, subject: str) -> Lookup:
        """The member, if there is one, and the policy."""
        return await self.store.read(lambda c: Lookup(rows.find(c, subject), rows.current_aup(c)))

    async def require_manager(self, peer: Peer) -> None:
        """A manager whose role is still held: attribute certificates outlive a suspension. Operators pass.

        Raises Refused MANAGER_REQUIRED or why the person is in no good standing.
        """
        if peer.is_administrator:
            return
        known = await self.look_up(peer.subject)
        member = self._issuer.member_in_good_standing(peer.subject, known, self._clock.now())
        if manager_fqan(self.vo) not in member.groups:
            raise Refused(
                "MANAGER_REQUIRED",
                f"{peer.subject} no longer holds {manager_fqan(self.vo)}; ask another manager of {self.vo}",
                subject=peer.subject,
            )

    # -- attributes --------------------------------------------------------------------------------------------------

    async def issue(
        self, identity: Identity, carried: Sequence[VomsAttributes], wanted: Wanted, door: str, address: str = ""
    ) -> Issued:
        """An attribute certificate for a verified chain, which has these verified attributes. Raises GridError."""
        # bans of the person, of what the chain has and of where it comes from; maps are no concern of this server
        self._judge.judge(identity, unmapped=True, attributes=tuple(carried), address=address)
        known = await self.look_up(str(identity.subject))
        issued = self._issuer.issue(identity, carried, known, wanted, self._clock.now())
        # bans of what would be given: it does not leave this server
        given = VomsAttributes(self.vo, issued.fqans, identity.subject, "", issued.not_after)
        self._judge.judge(identity, unmapped=True, attributes=(given,), address=address)
        self.issued += 1
        self._log.audit(
            "attributes.issued",
            vo=self.vo,
            peer=str(identity.subject),
            leaf=str(identity.leaf_subject),
            serial=f"{issued.serial:X}",
            fqans=list(issued.fqans),
            not_after=utc_text(issued.not_after),
            door=door,
        )
        return issued

    async def issue_to_peer(self, peer: Peer, wanted: Wanted) -> Issued:
        """As `issue`, for a session; refusals are audited by the RPC server."""
        return await self.issue(require_identity(peer), peer.attributes, wanted, "rpc", peer.address)


def manager_fqan(vo: str) -> str:
    """The role whose holders manage the VO."""
    return f"/{vo}/Role={MANAGER_ROLE}"


def is_manager_fqan(fqan: str) -> bool:
    """True if it lets its holders manage some VO."""
    return fqan.count("/") == 2 and fqan.endswith(f"/Role={MANAGER_ROLE}")


_AUDITED = {
    machine.AupSigned: "aup_signed",
    machine.Approved: "approved",
    machine.Suspended: "suspended",
    machine.Restored: "restored",
    machine.Renewed: "renewed",
    machine.EndReached: "expired",
}
