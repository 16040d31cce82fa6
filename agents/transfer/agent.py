"""The transfer agent, put together."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from gridfabric.transfer.v1 import transfer_pb2_grpc

from agents.transfer import store as rows
from agents.transfer.config import TransferOptions
from agents.transfer.core import TransferCore
from agents.transfer.effects import Effects
from agents.transfer.elements import Elements
from agents.transfer.renewal import TransferRenewals
from agents.transfer.servicer import RULES, TransferServicer
from agents.transfer.subscriptions import Subscriptions
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.glue13 import agent_entries
from fabric.ldap import Entry
from fabric.rpc.server import RpcService
from fabric.settings import parse_options

MAX_PUBLISHED = 100
"""Links in the information tree."""


class TransferAgent(Agent):
    """Everything acknowledged is in ``transfer.db``; all else is made again at a start."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        options = parse_options(TransferOptions, settings.options)
        elements = Elements(settings.endpoints("storage"), options.caps_mb_per_s)
        store = context.store("transfer", rows.metadata)
        effects = Effects(context, options)
        self.core = TransferCore(context, options, store, elements, effects)
        self.subscriptions = Subscriptions(context, options, store, self.core, effects)
        self.renewals = TransferRenewals(context, options, self._owners)
        effects.not_renewed = self.renewals.failures
        self.servicer = TransferServicer(self.core, self.subscriptions, store, clock=context.clock, log=context.log)
        self.services = [RpcService(self.servicer, transfer_pb2_grpc.add_TransfersServicer_to_server, RULES)]
        context.delegations  # noqa: B018  offers the Delegation service

    async def start(self) -> None:
        """Go on with what is not at an end."""
        await self.core.start()
        await self.subscriptions.start()
        self.context.spawn(self.renewals.run(), "renewal of proxies")
        self.context.publisher.follow(self.entries)

    def _owners(self) -> Iterator[str]:
        """Those whose proxy is needed."""
        yield from self.core.owners
        yield from self.subscriptions.owners

    def entries(self) -> list[Entry]:
        """GlueService; of the links with most to do GlueServiceData."""
        name = self.core.elements.name
        busiest = heapq.nlargest(MAX_PUBLISHED, self.core.links, key=lambda link: len(link.waiting) + link.active)
        data = tuple(
            (
                f"channel:{name(link.source)}-{name(link.destination)}",
                f"active={link.active} limit={link.optimiser.limit} queued={len(link.waiting)} "
                f"mb_per_s={link.optimiser.bytes_per_s / 1e6:.0f} finished={link.finished} failed={link.failed}",
            )
            for link in busiest
        )
        return agent_entries(self.context.settings, self.context.vos.served, data=data)

    def health(self) -> AgentHealth:
        """How much waits and runs."""
        core = self.core
        numbers = {
            "open": float(len(core.items)),
            "active": float(core.links.active),
            "unwanted": float(len(core.unwanted)),
            "links": float(len(list(core.links))),
            "finished": float(core.finished),
            "proxies_renewed": float(self.renewals.renewed),
            "renewals_failed": float(self.renewals.failed),
        }
        return AgentHealth(AgentState.GREEN, numbers=numbers)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises InvalidRequest SETTINGS_INVALID."""
    return TransferAgent(context)
