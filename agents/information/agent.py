"""The information agent, put together: the tree, its gRPC door, its LDAP door."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

from gridfabric.information.v1 import information_pb2_grpc

from agents.information.config import InformationOptions
from agents.information.divergence import TopState, TopWatcher
from agents.information.feed import Feed
from agents.information.history import Recorder, metadata
from agents.information.long_lived import LongLived
from agents.information.machine import InformationMachine, MachineLimits, site_dn
from agents.information.model import ProducerState
from agents.information.queries import HistoryQueries
from agents.information.referrals import Referrals
from agents.information.service import InformationService
from agents.information.servicer import InformationServicer
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.clock import utc_text
from fabric.context import AgentContext
from fabric.database_reader import ForReading, address, lend
from fabric.errors import InvalidRequest
from fabric.glue2_tree import GlueDirectory
from fabric.glue13 import service_entries, site_entries
from fabric.glue_model import Service, Site
from fabric.glue_schema import GLUE_SCHEMA
from fabric.information import Publisher
from fabric.information_publisher import InformationPublisher, connector
from fabric.information_tree import DOMAINS, GLUE, GRID
from fabric.ldap import AliasedSource, Entry, LdapLimits, LdapServer
from fabric.ldap_tls import name_behind, server_tls
from fabric.rpc import rules
from fabric.rpc.server import RpcService
from fabric.settings import Endpoint, parse_options
from fabric.store import Store

TICK_S = 2.0
"""Leases are looked at when the next one ends, and this often for producers that came meanwhile."""
SHORTEST_TICK_S = 0.05


class InformationAgent(Agent):
    """The information server of a site, of a region or at the top: see InformationOptions.level.

    The tree is soft state: producers send theirs again within seconds. A top server keeps its history on disk.
    """

    def __init__(self, context: AgentContext) -> None:
        self.context = context
        settings = context.settings
        self.options = options = parse_options(InformationOptions, settings.options)
        regions = [endpoint.name for endpoint in settings.endpoints("region")]
        ways = {name: region for region, names in options.below.items() for name in names}
        if self.is_top:
            expected = [*(endpoint.site for endpoint in settings.endpoints("information")), *regions]
        else:
            expected = [*options.sites, *options.regions, *ways]
        limits = MachineLimits(
            options.grace_s,
            options.forget_s,
            options.longest_valid_for_s,
            options.max_producers,
            options.max_entries,
            options.max_attributes,
            options.max_entry_bytes,
        )
        machine = InformationMachine(
            options.level,
            settings.site,
            context.clock.now(),
            limits,
            expected,
            ways=ways,
            regions=regions,
            name=settings.name,
        )
        self.service = InformationService(machine, Feed(options.max_subscribers), clock=context.clock, log=context.log)
        self._recorder: Recorder | None = None
        queries: HistoryQueries | None = None
        if self.is_top and options.history_s:
            store = context.store("history", metadata, database=options.history_database)
            self._recorder = Recorder(context, self.service, store, options.history_s, options.history_tuples)
            queries = HistoryQueries(self._for_reading(store), self._recorder)
        servicer = InformationServicer(
            self.service, heartbeat_s=options.heartbeat_s, queries=queries, clock=context.clock, log=context.log
        )
        # Publish looks closer than a rule can: which site and which name depends on the level.
        self.services = [
            RpcService(
                servicer,
                information_pb2_grpc.add_InformationServicer_to_server,
                {
                    "Publish": rules.authenticated,
                    "Subscribe": rules.authenticated,
                    "Query": rules.any_of(rules.user, rules.any_service, rules.administrator),
                },
            )
        ]
        directory = GlueDirectory(machine.tree, context.clock)
        # EDG, LCG and EGI clients ask a site by its own name directly below the suffix.
        aliases = {
            GRID.child("mds-vo-name", settings.site): site_dn(settings.site),
            GLUE.child("GLUE2DomainID", settings.site): DOMAINS.child("GLUE2DomainID", settings.site),
        }
        self.ldap = LdapServer(
            AliasedSource(directory, aliases) if options.level == "site" else directory,
            host=settings.listen,
            port=settings.ports.get("ldap", 0),
            limits=LdapLimits(connections=options.max_ldap_connections),
            schema=GLUE_SCHEMA,
            tls=server_tls(context),
            ldaps_port=settings.ports.get("ldaps"),
            external=name_behind(context),
            refer=Referrals(machine, settings.endpoints("information"), settings.endpoints("top")),
            on_event=self._ldap_event,
        )
        others = [top for top in settings.endpoints("top") if top.name != settings.name] if self.is_top else []
        self._tops = [TopWatcher(context, self.service, other, options.divergence_after_s) for other in others]
        self._above: list[Publisher] = []
        """Towards the next level: see `InformationService.above`, and of a region for itself."""
        self._itself: InformationPublisher | None = None
        """Of a region or a top server: at its site, as other agents."""

    @property
    def is_top(self) -> bool:
        """True at the top level."""
        return self.options.level == "top"

    async def start(self) -> None:
        context, settings = self.context, self.context.settings
        await self.ldap.start()
        own = self._own_entries(context.clock.now())
        if self.options.level != "site":
            self._itself = InformationPublisher(context, own, resource_level=False)
            await self._itself.start()
        if self.is_top:
            if self._recorder is not None:
                context.spawn(self._recorder.run(), "keep the history")
            for watcher in self._tops:
                context.spawn(watcher.run(), f"compare with {watcher.other.name}")
        elif self.options.level == "region":
            for name in list(self.service.machine.producers):
                context.spawn(self.service.relay(name, self._publisher(name), self.options.grace_s), f"forward {name}")
            self._above = [self._publisher(settings.name)]
            context.spawn(self._above[0].run(), "publish the region")
        else:
            self._above = [self._publisher(settings.site)]
            self.service.above[settings.site] = self._above[0]
            self.service.publish_own(settings.name, lambda _: own)
            context.spawn(self._above[0].run(), "forward to the next level")
        context.spawn(self._tick(), "expire")

    async def stop(self) -> None:
        if self._itself is not None:
            await self._itself.stop()
        for publisher in self._above:  # a region does not take back its sites: they are lost until it is back
            await publisher.withdraw()
        await self.ldap.close()

    def health(self) -> AgentHealth:
        machine = self.service.machine
        states = [producer.status.state for producer in machine.producers.values() if not producer.is_own]
        lost = sum(state in (ProducerState.UNREACHABLE, ProducerState.GONE) for state in states)
        cut_off = any(not publisher.connected for publisher in self._above) and bool(self._servers_above())
        unheard = [watcher.other.name for watcher in self._tops if watcher.reading().state is TopState.UNREACHABLE]
        details = [f"{lost} producers unreachable"] if lost else ["not heard by the next level"] if cut_off else []
        details += [f"the top server {name} is not heard" for name in unheard]
        numbers = {
            "entries": len(machine.tree),
            "producers": len(states),
            "current": sum(state is ProducerState.CURRENT for state in states),
            "subscribers": len(self.service.feed),
            "changes": machine.tree.version,
            "differing": sum(watcher.reading().differing for watcher in self._tops),
            "ldap_connections": self.ldap.connections,
            "ldap_searches": self.ldap.stats.searches,
        }
        return AgentHealth(AgentState.GREEN, "; ".join(details), numbers)

    def _servers_above(self) -> tuple[Endpoint, ...]:
        settings, region = self.context.settings, self.options.region
        if not region:
            return settings.endpoints("top")
        found = tuple(one for one in settings.endpoints("region") if one.name == region)
        if not found:
            raise InvalidRequest(
                "SETTINGS_INVALID", f"{settings.name} publishes at {region}, which is no region server"
            )
        return found

    def _publisher(self, name: str) -> Publisher:
        """Towards the next level, as this site or region."""
        return Publisher(
            name,
            self._servers_above(),
            connector(self.context),
            log=self.context.log,
            clock=self.context.clock,
            refresh_s=self.options.refresh_s,
            valid_for_s=self.options.valid_for_s,
        )

    async def _tick(self) -> None:
        long_lived = LongLived(self.context.clock)
        while True:
            due = self.service.machine.next_due()
            left_s = (due - self.context.clock.now()).total_seconds() if due is not None else TICK_S
            await asyncio.sleep(min(max(left_s, SHORTEST_TICK_S), TICK_S))
            self.service.tick()
            long_lived.look(self.service.machine.tree.version)

    def _for_reading(self, store: Store) -> Path | ForReading:
        """Where queries of users find the history."""
        url, role = self.options.history_database, self.options.history_reader
        if not url:
            return Path(store.name)
        if not role:
            raise InvalidRequest(
                "SETTINGS_INVALID",
                "history_database needs history_reader, the role as which queries of users run: CREATE ROLE name LOGIN",
            )
        store.write_sync(lambda connection: lend(connection, "history", role, tuple(metadata.tables)))
        return address(url, "history", role)

    def _own_entries(self, now: datetime) -> list[Entry]:
        settings, options = self.context.settings, self.options
        service = Service(
            unique_id=f"{settings.name}_bdii_{options.level}",
            kind=f"bdii_{options.level}",
            endpoint=f"ldap://{settings.advertise}:{self.ldap.port}/"
            + (f"mds-vo-name={settings.site},mds-vo-name=local,o=grid" if options.level == "site" else "o=grid"),
            site=settings.site,
            started=utc_text(now),
        )
        entries = service_entries(service)
        if options.level == "site":
            site = Site(
                settings.site,
                options.description,
                options.email,
                options.location,
                options.latitude,
                options.longitude,
                options.web,
                options.sponsors,
                options.other_info,
            )
            entries = [*site_entries(site), *entries]
        return entries

    def _ldap_event(self, name: str, fields: dict[str, object]) -> None:
        error = fields.pop("error", None)
        if isinstance(error, BaseException):
            self.context.log.exception(name, error, **fields)
        else:
            self.context.log.info(name, **fields)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises InvalidRequest SETTINGS_INVALID."""
    return InformationAgent(context)
