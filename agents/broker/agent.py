"""The broker agent, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import sqlalchemy as sa
from gridfabric.bookkeeping.v1 import bookkeeping_pb2_grpc as lb_grpc
from gridfabric.broker.v1 import broker_pb2_grpc

from agents.broker import journal, tables, wire
from agents.broker import store as rows
from agents.broker.blacklist import EVERYBODY
from agents.broker.config import BrokerOptions
from agents.broker.core import BrokerCore
from agents.broker.journal import Journal
from agents.broker.sandbox import SandboxStore
from agents.broker.servicer import RULES, BrokerServicer
from agents.broker.tables import LogLine
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.errors import Conflict
from fabric.glue13 import agent_entries
from fabric.information import Subscriber
from fabric.information_publisher import connector
from fabric.outbox import Outbox, OutboxItem
from fabric.rpc.server import RpcService
from fabric.settings import parse_options

OBJECT_CLASSES = ("GlueCE", "GlueCluster", "GlueSubCluster", "GlueSite", "GlueCESEBindGroup", "GlueSE", "GlueSA")
"""What matching needs of the tree."""
REGISTERED_AT_ONCE = 500
"""Jobs of a submission that bookkeeping is waited for: of many it takes longer to hear than the broker to keep them."""
MAX_WAITS = 10
"""Of `registered_wait_s` each, if something was heard in the one before."""


class BrokerAgent(Agent):
    """Everything acknowledged is in ``broker.db`` and ``sandbox/``; all else is made again at a start."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self.options = parse_options(BrokerOptions, settings.options)
        self.store = context.store("broker", tables.metadata, tables.MIGRATIONS, rebuilt=True)
        alone = len(settings.endpoints("broker")) < 2
        kept = Journal(context.store("submissions", journal.metadata, rebuilt=True)) if alone else None
        self.outbox = Outbox(self.store, settings.name, log=context.log)
        self._delivered_sequence = self._forgotten_sequence = 0
        self._delivered = asyncio.Condition()
        sandbox = SandboxStore(context.state_dir / "sandbox", self.options.max_file_bytes)
        self.subscriber = Subscriber(
            settings.endpoints("top") or settings.endpoints("information"),
            connector(context),
            log=context.log,
            clock=context.clock,
            object_classes=OBJECT_CLASSES,
            on_change=lambda changed, removed: self.core.information_changed(),
        )
        self.core = BrokerCore(
            context, self.options, self.store, sandbox, self._log, self.subscriber.view.elements, self._recorded,
            self._forget_events, kept,
        )  # fmt: skip
        self.servicer = BrokerServicer(self.core, self._job_id_prefix(), self._registered)
        self.services = [RpcService(self.servicer, broker_pb2_grpc.add_BrokerServicer_to_server, RULES)]
        context.delegations  # noqa: B018  offers the Delegation service

    def _job_id_prefix(self) -> str:
        """Job ids name the bookkeeping server that knows the job (L&B job id)."""
        settings = self.context.settings
        endpoints = settings.endpoints("bookkeeping")
        host, port = (endpoints[0].host, endpoints[0].rpc) if endpoints else (settings.advertise, settings.rpc_port)
        return f"https://{host}:{port}/"

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _log(self, connection: sa.Connection, lines: Sequence[LogLine]) -> None:
        self.outbox.add(connection, wire.log_payloads(lines))

    async def _deliver(self, batch: Sequence[OutboxItem]) -> None:
        endpoint, epoch = self.context.settings.endpoint("bookkeeping"), self.core.succession.epoch
        channel = await self.context.channels.get(endpoint.host, endpoint.rpc)
        left = (item for item in batch if item.sequence > self._forgotten_sequence)
        try:
            await lb_grpc.BookkeepingStub(channel).Record(wire.record_request(left, epoch))
        except Conflict as error:
            if error.reason == "BROKER_FENCED":
                self.core.succession.fenced()
            raise
        async with self._delivered:
            self._delivered_sequence = batch[-1].sequence
            self._delivered.notify_all()

    async def _registered(self, jobs: int) -> None:
        """Wait a little for bookkeeping to have what was logged of so many jobs, the last ones; of many, of the first
        of them. Longer while it is behind and gets on: a broker that takes jobs faster than bookkeeping is slowed."""
        if self.options.registered_wait_s <= 0 or not self.context.settings.endpoints("bookkeeping"):
            return
        later = max(0, jobs - REGISTERED_AT_ONCE) * rows.LINES_OF_A_NEW_JOB
        sequence = await self.store.read(_last_sequence) - later
        for _ in range(MAX_WAITS):
            before = self._delivered_sequence
            if await self._heard(sequence, self.options.registered_wait_s) or self._delivered_sequence == before:
                return

    async def _recorded(self, limit_s: float) -> bool:
        """Wait for bookkeeping to have what was logged until now; False when it has not in time."""
        return await self._heard(await self.store.read(_last_sequence), limit_s)

    async def _heard(self, sequence: int, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s), self._delivered:
                await self._delivered.wait_for(lambda: self._delivered_sequence >= sequence)
        except TimeoutError:
            self.context.log.info("bookkeeping.behind", waiting=self.outbox.waiting)
            return False
        return True

    def _forget_events(self, last: int) -> None:
        """What was read of them to be sent now is not sent."""
        self._forgotten_sequence = last

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.core.start()
        self.context.spawn(self.subscriber.run(), "information")
        if self.context.settings.endpoints("bookkeeping"):
            self.context.spawn(self.outbox.run(self._deliver), "events to bookkeeping")
        self.context.publisher.follow(lambda: agent_entries(self.context.settings, self.context.vos.served))

    async def stop(self) -> None:
        await self.core.stop()
        if self.context.settings.endpoints("bookkeeping"):
            try:
                await asyncio.wait_for(self.outbox.drained(), 2.0)
            except TimeoutError:
                self.context.log.warning("events.left", detail="bookkeeping did not take all events; they are kept")

    def health(self) -> AgentHealth:
        core = self.core
        board = core.board
        listed = [item for item in core.blacklist.listings(core.now_s) if item.owner == EVERYBODY]
        numbers = {
            "waiting": float(sum(board.waiting.values())),
            "pending": float(sum(load.pending for load in board.loads.values())),
            "running": float(sum(load.running for load in board.loads.values())),
            "ended": float(board.ended),
            "delivered": float(core.delivered),
            "illegal_events": float(board.refused),
            "links": float(core.links),
            "proxies_renewed": float(core.renewals.renewed),
            "renewals_failed": float(core.renewals.failed),
            "ces": float(len(core.ces)),
            "ces_usable": float(sum(ce.alive for ce in core.ces.values())),
            "ces_listed": float(len(listed)),
            "events_waiting": float(self.outbox.waiting),
        }
        problems: list[str] = []
        if numbers["waiting"] and not numbers["ces_usable"]:
            problems.append("jobs wait and no computing element is usable")
        troubles = core.troubles()
        if troubles:
            gatekeeper, why = next(iter(troubles.items()))
            problems.append(f"{len(troubles)} gatekeeper(s) do not take jobs, for instance {gatekeeper}: {why}")
        if listed:
            problems.append(f"{len(listed)} CE(s) failed jobs: {listed[0].ce} {listed[0].sentence}")
        if core.succession.trouble:
            problems.append(f"{core.succession.lacking} submissions have no copy elsewhere: {core.succession.trouble}")
        if self.outbox.last_error is not None:
            problems.append(f"{self.outbox.waiting} events wait for bookkeeping: {self.outbox.last_error.sentence}")
        state = AgentState.DEGRADED if problems else AgentState.GREEN
        return AgentHealth(state, "; ".join(problems), numbers)


def _last_sequence(connection: sa.Connection) -> int:
    """Of what waits for bookkeeping; 0 if nothing does."""
    return int(connection.exec_driver_sql("SELECT max(sequence) FROM outbox").scalar_one() or 0)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises InvalidRequest SETTINGS_INVALID."""
    return BrokerAgent(context)
