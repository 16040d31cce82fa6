"""One of several brokers: its epoch at bookkeeping, copies of its jobs at its successor, and taking over from another.

See docs/workload.md, *Takeover*. The only broker of a grid has no successor and no epoch; all of this costs it nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import sqlalchemy as sa
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb_pb
from gridfabric.bookkeeping.v1 import bookkeeping_pb2_grpc as lb_grpc
from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.broker.v1 import broker_pb2_grpc as pb_grpc
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk_pb
from gridfabric.security.v1 import security_pb2 as security_pb
from gridfabric.security.v1 import security_pb2_grpc

from agents.broker import copies, machine, wire
from agents.broker.copies import Copy, Pending
from agents.broker.model import SandboxFile
from agents.broker.tables import Change
from fabric.bell import Bell
from fabric.clock import from_us
from fabric.errors import (
    Conflict,
    DeadlineExceeded,
    GridError,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from fabric.rpc.delegation import DEFAULT_ID
from fabric.rpc.probe import fetch_server_chain

if TYPE_CHECKING:
    from agents.broker.core import BrokerCore
    from fabric.settings import Endpoint
    from security.credentials import Credential

AWAY = (Unavailable, DeadlineExceeded)
COPIED_ID = "copied"
"""Of the delegation that comes with copies: never passed on because it changed, or two brokers would do so for ever."""
BATCH = 20
"""Submissions copied or adopted in one step."""
MAX_DROPPED = 1000
COPY_WAIT_S = 5.0
"""An answer to a user waits this long for the copy at the successor."""
RECORDED_WAIT_S = 10.0
"""Jobs wait this long for bookkeeping to know where they go."""
PAUSE_S = 0.5
LOOK_S = 30.0
LEASE_STEPS = 6
"""How often a lease is renewed in its time."""


class ProxiesDue:
    """Owners whose proxy of now the successor may not have, longest due first. Pure.

    An owner leaves *before* the proxy is read: one that is renewed while the older one is under way is due once more.
    """

    def __init__(self) -> None:
        self._owners: dict[str, None] = {}

    def add(self, owners: Iterable[str]) -> None:
        """They have other proxies than before, or the sending of theirs failed."""
        self._owners.update(dict.fromkeys(owners))

    def first(self, most: int) -> list[str]:
        """At most so many; they stay."""
        return list(itertools.islice(self._owners, most))

    def taken(self, owner: str) -> None:
        """This one's proxy is read and sent now."""
        self._owners.pop(owner, None)


class Succession:
    """``run`` is its life: begin an epoch, open the core, and when the epoch is over hand everything over."""

    def __init__(
        self, core: BrokerCore, recorded: Callable[[float], Awaitable[bool]], forget_events: Callable[[int], None]
    ) -> None:
        """`recorded`: waits, at most that long, for bookkeeping to have every event of until now; False if it has not.

        `forget_events`: those up to this number are not for bookkeeping any more.
        """
        self._core, self._recorded, self._forget_events = core, recorded, forget_events
        self.name = core.context.settings.name
        self._brokers = {item.name: item for item in core.context.settings.endpoints("broker")}
        self.successor = self._successor_of(self.name)
        self.epoch = 0
        """Of this broker; 0 until it has begun one, and of a grid's only broker."""
        self.store = ""
        """What the store is called in which copies are kept here; one that was lost had another name."""
        self._over: dict[str, int] = {}
        """Brokers from which this one has taken over, and the highest epoch of theirs that is over."""
        self._fenced = asyncio.Event()
        self._news, self._sent = Bell(), Bell()
        self._delegated: dict[str, bytes] = {}
        """By owner: fingerprint of the proxy that the successor has had."""
        self._due = ProxiesDue()
        self._taking = asyncio.Lock()
        self.trouble = ""
        """Why copies do not get on; empty if they do."""
        self.lacking = 0
        """How many submissions had no complete copy then."""

    def _successor_of(self, name: str) -> Endpoint | None:
        """The next in the grid's list, the first for the last; None for the only broker."""
        names = list(self._brokers)
        if name not in names or len(names) < 2:
            return None
        return self._brokers[names[(names.index(name) + 1) % len(names)]]

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what is kept; the only broker of a grid begins at once."""
        core = self._core
        self._over = await core.store.read(copies.epochs)
        self.epoch = self._over.pop(self.name, 0)
        self.store = await core.store.write(lambda connection: copies.own_store(connection, self.name))
        core.context.delegations.on_change(self._proxy_changed)
        if self.successor is None:
            await core.open()

    async def run(self) -> None:
        """Until the agent ends."""
        core = self._core
        while True:
            if not core.is_open:
                await self._begin()
                self._fenced.clear()
                await core.open()
                if self.successor is not None:
                    self._due.add(core.board.owners)  # renewed just before it was killed, and not sent
                    core.run(self._finish_takeovers(), "takeovers")
                    core.run(self._mirror(), "copies")
                    if core.options.lease_s:
                        core.run(self._hold_lease(), "lease")
                        core.run(self._watch_leases(), "leases of others")
            await self._fenced.wait()
            core.log.warning("broker.fenced", epoch=self.epoch)
            await core.close()

    def fenced(self) -> None:
        """Somebody said that this broker's epoch is over."""
        self._fenced.set()

    async def _begin(self) -> None:
        """Have an epoch at bookkeeping; what is here of earlier ones is handed over. Tries for ever."""
        core = self._core
        while True:
            try:
                successor = self.successor.name if self.successor else ""
                request = lb_pb.BeginEpochRequest(
                    epoch=self.epoch, successor=successor, lease_s=core.options.lease_s if successor else 0
                )
                answer = await (await self._bookkeeping()).BeginEpoch(request)
                if not answer.taken_by:
                    await core.store.write(lambda c, epoch=answer.epoch: copies.set_epoch(c, self.name, epoch))
                    self.epoch = answer.epoch
                    core.context.solved("epoch")
                    return
                core.context.problem("epoch", f"{answer.taken_by} has taken over; jobs are handed over to it")
                await self._hand_over(answer.taken_by, answer.epoch - 1)
                self.epoch = answer.epoch
            except GridError as error:
                core.log.warning("broker.not_begun", reason=error.reason, sentence=error.sentence)
                core.context.problem("epoch", f"it takes no jobs yet: {error.sentence}")
                await asyncio.sleep(error.retry_after_s or PAUSE_S)

    async def _hand_over(self, to: str, over: int) -> None:
        """Everything that is here goes to the broker that has taken over, which passes over what it has already."""
        core = self._core
        receiver = self._brokers.get(to)
        if receiver is None:
            raise NotFound(
                "BROKER_UNKNOWN", f"{to}, which has taken over from {self.name}, is no broker of this grid now"
            )
        await core.store.write(copies.all_changed)
        self._delegated.clear()
        while await self._copy_some(receiver, self.epoch, over):
            pass
        self._forget_events(await core.store.write(lambda c: copies.forget_all(c, self.name, over + 1)))
        core.log.audit("broker.handed_over", to=to, epoch=over)

    async def _bookkeeping(self) -> Any:
        endpoint = self._core.context.settings.endpoint("bookkeeping")
        return lb_grpc.BookkeepingStub(await self._core.context.channels.get(endpoint.host, endpoint.rpc))

    # -- what others see of the epoch ----------------------------------------------------------------------------------

    def stamp(self, request: gk_pb.SubmitRequest) -> gk_pb.SubmitRequest:
        """Say to a gatekeeper who submits, and whose epochs are over."""
        if self.epoch:
            request.broker.broker, request.broker.epoch = self.name, self.epoch
            for name, epoch in self._over.items():
                request.over.add(broker=name, epoch=epoch)
        return request

    async def recorded(self) -> None:
        """Returns when bookkeeping knows every place that was chosen. Raises Unavailable BOOKKEEPING_BEHIND."""
        if self.successor is None:
            return
        if not await self._recorded(RECORDED_WAIT_S):
            raise Unavailable(
                "BOOKKEEPING_BEHIND",
                "bookkeeping has not taken the events of these jobs yet, and none is sent before; see whether it runs",
            )

    # -- copies --------------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """A copy lacks something."""
        self._news.ring()

    def _proxy_changed(self, owner: str, delegation_id: str) -> None:
        if delegation_id == DEFAULT_ID:
            self.renewed(owner)

    def renewed(self, owner: str) -> None:
        """The successor needs the owner's proxy of now."""
        if self.successor is not None and owner in self._core.board.owners:
            self._due.add([owner])
            self._news.ring()

    async def copied(self, owner: str) -> None:
        """Wait until the successor has everything of an owner, not for ever: one that is away holds nobody up."""
        if self.successor is None:
            return
        try:
            async with asyncio.timeout(COPY_WAIT_S):
                while not self.trouble:
                    heard = self._sent.rung
                    if not await self._core.store.read(lambda connection: copies.lacking(connection, owner)):
                        return
                    await self._sent.wait(COPY_WAIT_S, heard)
        except TimeoutError:
            self._core.log.info("copies.behind", owner=owner)

    async def _mirror(self) -> None:
        core, successor = self._core, self.successor
        assert successor is not None
        while True:
            heard = self._news.rung
            try:
                while await self._copy_some(successor, self.epoch):
                    pass
                self.trouble = ""
            except GridError as error:
                if not self.trouble:
                    core.log.warning("copies.wait", successor=successor.name, sentence=error.sentence)
                self.lacking = await core.store.read(copies.lacking)
                self.trouble = error.sentence
                self._sent.ring()
                await asyncio.sleep(PAUSE_S)
                continue
            await self._news.wait(LOOK_S, heard)

    async def _copy_some(self, to: Endpoint, epoch: int, over: int = 0) -> bool:
        """The oldest copies and proxies that lack; False if nothing got on: then the receiver is asked all the same
        whether this epoch is over, or told so."""
        core = self._core
        batch, dropped = await core.store.read(lambda c: (copies.pending(c, BATCH), copies.dropped(c, MAX_DROPPED)))
        files: dict[str, dict[str, SandboxFile]] = {owner: {} for owner in self._due.first(BATCH)}
        proxies = 0
        for item in batch:
            new = item.copy.submission
            files.setdefault(new.owner, {}).update({file.sha256: file for file in new.files})
        for owner, wanted in files.items():
            self._due.taken(owner)
            try:
                await self._send_for(owner, to, wanted, handed_over=over > 0)
                proxies += 1
            except GridError as error:
                self._due.add([owner])  # tried again at the next look
                if isinstance(error, AWAY):
                    raise
                # what concerns this owner alone: the copy goes without
                core.log.warning("copy.incomplete", owner=owner, reason=error.reason, sentence=error.sentence)
        channel = await core.context.channels.get(to.host, to.rpc)
        answer = await pb_grpc.BrokerStub(channel).Keep(_messages(batch, dropped, epoch, over))
        if answer.over >= epoch > over:
            self.fenced()

        def note(connection: sa.Connection) -> bool:
            if copies.at_store(connection, to.name, answer.store):
                copies.copied(connection, batch, dropped)
                return True
            return False

        if not await core.store.write(note):
            core.log.warning("copies.anew", at=to.name)
            self._delegated.clear()
            return True
        self._sent.ring()
        return bool(batch or dropped or proxies)

    async def _send_for(
        self, owner: str, to: Endpoint, files: dict[str, SandboxFile], *, handed_over: bool = False
    ) -> None:
        """In the owner's name: a proxy, if it is another one than before, and the files that are not there.

        `handed_over`: who has taken over may have renewed the proxy meanwhile; one that lasts longer stays.
        """
        core = self._core
        credential = core.credential(owner)
        channel = await core.context.channels.get(to.host, to.rpc, credential=credential)
        if not (handed_over and await _lasts_longer(channel, credential)):
            had = self._delegated.get(owner, b"")
            self._delegated[owner] = await core.delegate_to(to.host, to.rpc, owner, had, COPIED_ID)
        if not files:
            return
        stub = pb_grpc.BrokerStub(channel)
        answer = await stub.MissingSandbox(pb.MissingSandboxRequest(sha256=list(files)))
        for sha256 in answer.sha256:
            if sha256 in files and core.sandbox.has(sha256):
                await stub.PutSandbox(core.sandbox.messages(files[sha256], pb.PutSandboxRequest))

    async def keep(self, broker: str, epoch: int, over: int, taken: Sequence[Copy], unneeded: Sequence[str]) -> int:
        """Another broker's copies. Those of an epoch that is over are jobs of this broker from now on.

        Returns the highest epoch of that broker that is over.
        """
        core = self._core
        if broker not in self._brokers or broker == self.name:
            raise NotFound("BROKER_UNKNOWN", f"{broker} is no broker of this grid that {self.name} knows")
        if over:
            core.require_open()
            await self._end(broker, over)
        if epoch <= self._over.get(broker, 0):
            await self._adopt(broker, taken)
        else:
            await core.store.write(lambda connection: copies.keep(connection, broker, epoch, taken, unneeded))
        return self._over.get(broker, 0)

    # -- takeover ------------------------------------------------------------------------------------------------------

    async def take_over(self, broker: str, *, force: bool) -> tuple[int, int]:
        """Every job of which there is a copy: (submissions, jobs that have not ended). May be repeated."""
        core = self._core
        core.require_open()
        endpoint, successor = self._brokers.get(broker), self._successor_of(broker)
        if endpoint is None or successor is None or broker == self.name:
            known = ", ".join(name for name in self._brokers if name != self.name)
            raise NotFound(
                "BROKER_UNKNOWN", f"{self.name} knows no other broker {broker[:80]!r}, only: {known or 'none'}"
            )
        if successor.name != self.name:
            raise Conflict("NOT_SUCCESSOR", f"the copies of {broker}'s jobs are at {successor.name}; ask that one")
        if not force and await _answers(endpoint):
            raise Conflict("BROKER_ALIVE", f"{broker} answers, so it keeps its jobs; stop it, or say --force")
        answer = await (await self._bookkeeping()).EndEpoch(lb_pb.EndEpochRequest(broker=broker))
        return await self._end_audited(broker, answer.epoch, "operator")

    async def _hold_lease(self) -> None:
        """Be heard of at bookkeeping."""
        core = self._core
        while True:
            try:
                request = lb_pb.HoldLeaseRequest(epoch=self.epoch)
                await (await self._bookkeeping()).HoldLease(request, timeout=self._lease_step_s)
            except Conflict:
                self.fenced()
            except GridError as error:
                core.log.warning("lease.not_held", reason=error.reason, sentence=error.sentence)
            await asyncio.sleep(self._lease_step_s)

    async def _watch_leases(self) -> None:
        """Take over by itself from whom this one is the successor of, when bookkeeping says that nothing is heard."""
        core = self._core
        others = [name for name in self._brokers if (found := self._successor_of(name)) and found.name == self.name]
        while True:
            for broker in others:
                try:
                    request = lb_pb.EndEpochRequest(broker=broker, lapsed=True)
                    answer = await (await self._bookkeeping()).EndEpoch(request, timeout=self._lease_step_s)
                    await self._end_audited(broker, answer.epoch, "lease")
                except (Conflict, NotFound):
                    pass  # it is alive, has no lease, has never begun, or is another one's
                except GridError as error:
                    core.log.warning("lease.not_asked", broker=broker, reason=error.reason, sentence=error.sentence)
            await asyncio.sleep(self._lease_step_s)

    @property
    def _lease_step_s(self) -> float:
        return self._core.options.lease_s / LEASE_STEPS

    async def _end_audited(self, broker: str, over: int, why: str) -> tuple[int, int]:
        core, before = self._core, self._over.get(broker, 0)
        done = await core.shielded(self._end(broker, over))  # goes on though who asked for it has left
        if over == before and not done[0]:
            return done  # nothing new
        core.log.audit("broker.taken_over", broker=broker, epoch=over, by=why, submissions=done[0], jobs=done[1])
        return done

    async def _finish_takeovers(self) -> None:
        """What was begun before this broker was started again."""
        for broker, over in list(self._over.items()):
            while True:
                try:
                    await self._end(broker, over)
                    break
                except GridError as error:
                    self._core.log.warning("takeover.waits", broker=broker, sentence=error.sentence)
                    await asyncio.sleep(error.retry_after_s or PAUSE_S)

    async def _end(self, broker: str, over: int) -> tuple[int, int]:
        """A broker's epochs up to this one are over: durable first, then its copies are adopted."""
        core = self._core
        async with self._taking:
            if over > self._over.get(broker, 0):
                await core.store.write(lambda connection: copies.set_epoch(connection, broker, over))
                self._over[broker] = over
            submissions = jobs = 0
            while batch := await core.store.read(lambda connection: copies.kept(connection, broker, over, BATCH)):
                done = await self._adopt(broker, batch)
                submissions, jobs = submissions + done[0], jobs + done[1]
        return submissions, jobs

    async def _adopt(self, broker: str, taken: Sequence[Copy]) -> tuple[int, int]:
        if not taken:
            return 0, 0
        self._core.require_open()
        known = await self.known(item.submission.parent_id for item in taken)
        return await self.adopt(broker, taken, known, known.keys(), f"taken over from {broker}")

    async def adopt(
        self,
        broker: str,
        taken: Sequence[Copy],
        known: Mapping[str, machine.Job],
        registered: Collection[str],
        told: str,
    ) -> tuple[int, int]:
        """Have these submissions, in the states of `known`: (submissions, jobs that have not ended)."""
        core = self._core
        count = 0

        def change(connection: sa.Connection) -> list[Change]:
            nonlocal count
            adopted = copies.adopt(connection, broker, taken, known, registered, told, core.now_us, core.sink)
            count = adopted.submissions
            return list(adopted.changes)

        changes = await core.commit(change)
        unfinished = {item.job_id: item for item in changes if item.before is None}
        for owner, gatekeeper in {(item.owner, item.after.gatekeeper) for item in unfinished.values()}:
            if gatekeeper:
                await core.link(owner, gatekeeper).follow_anew()
        self.changed()
        return count, len(unfinished)

    async def known(self, parents: Iterable[str]) -> dict[str, machine.Job]:
        """What bookkeeping knows of the jobs of these submissions that are registered there, by job id."""
        found = await self._query(lb_pb.QueryRequest(job_ids=list(parents), page_size=5000))
        return {job.job_id: wire.known_job(job) for job in found if job.owner}

    async def in_state(self, state: lb_pb.JobState) -> list[lb_pb.JobSummary]:
        """All jobs that bookkeeping has in this state."""
        return await self._query(lb_pb.QueryRequest(state=state, page_size=5000))

    async def _query(self, request: lb_pb.QueryRequest) -> list[lb_pb.JobSummary]:
        stub = await self._bookkeeping()
        found: list[lb_pb.JobSummary] = []
        while True:
            answer = await stub.Query(request)
            found.extend(answer.jobs)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token


PIECE_BYTES = 1024 * 1024
MAX_KEPT_BYTES = 64 * 1024 * 1024
"""Packed, of one submission."""


async def _answers(endpoint: Endpoint) -> bool:
    """Whether a broker is alive: it takes part in a new connection."""
    try:
        await fetch_server_chain(endpoint.host, endpoint.rpc)
    except Unavailable:
        return False
    return True


async def _lasts_longer(channel: grpc.aio.Channel, credential: Credential) -> bool:
    """Whether the copied proxy there ends later than this one of the same owner."""
    try:
        shown = await security_pb2_grpc.DelegationStub(channel).Show(
            security_pb.DelegationShowRequest(delegation_id=COPIED_ID)
        )
    except (NotFound, Unauthenticated):
        return False
    return from_us(shown.expires_at_us) > credential.not_after


async def _messages(
    batch: Sequence[Pending], dropped: Sequence[str], epoch: int, over: int
) -> AsyncIterator[pb.KeepRequest]:
    yield pb.KeepRequest(epoch=epoch, over=over, dropped=dropped)
    for item in batch:
        body = await asyncio.to_thread(copies.encode, item.copy)
        for start in range(0, len(body), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            yield pb.KeepRequest(data=piece, last=start + PIECE_BYTES >= len(body))


async def read_copies(requests: AsyncIterator[pb.KeepRequest]) -> tuple[int, int, list[Copy], list[str]]:
    """(epoch, highest epoch that is over, copies, job ids not needed any more). Raises InvalidRequest COPY_INVALID."""
    epoch = over = 0
    taken: list[Copy] = []
    dropped: list[str] = []
    body = bytearray()
    async for message in requests:
        epoch, over = message.epoch or epoch, message.over or over
        dropped.extend(message.dropped)
        body += message.data
        if len(body) > MAX_KEPT_BYTES or len(dropped) > MAX_DROPPED or (len(taken) >= BATCH and message.data):
            raise InvalidRequest(
                "COPY_INVALID", f"a call carries at most {BATCH} submissions, {MAX_KEPT_BYTES} bytes each"
            )
        if message.last:
            taken.append(await asyncio.to_thread(copies.decode, bytes(body)))
            body.clear()
    if body:
        raise InvalidRequest("COPY_INVALID", "the call ended in the middle of a submission; send it again")
    return epoch, over, taken, dropped
