"""Composition root of the storage element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agents.storage.config import parse_config
from agents.storage.door import WebDavDoor
from agents.storage.drain import PoolKeeper
from agents.storage.element import StorageElement
from agents.storage.framing import add_to_server
from agents.storage.manager import StorageManager
from agents.storage.memory import keep_buffers
from agents.storage.mirrors import Mirrors
from agents.storage.nearline import Nearline
from agents.storage.reconciler import Reconciler
from agents.storage.repair import Repairer, Replicas
from agents.storage.scrubber import MAX_DAMAGED, Scrubber
from agents.storage.servicer import RULES, StorageServicer
from agents.storage.space import SpaceReport
from agents.storage.store import MIGRATIONS, FileStore, metadata
from agents.storage.tape import FileLibrary
from agents.storage.tape_rows import TapeRows
from agents.storage.third_party import ThirdParty
from fabric import glue13, glue_model
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.clock import utc_text
from fabric.context import AgentContext
from fabric.errors import GridError
from fabric.information_publisher import InformationPublisher
from fabric.ldap import Entry
from fabric.rpc.server import RpcServer, RpcService
from fabric.tls_door import TlsDoor

MEASURE_S = 5.0
"""How often the disks are looked at without a reason; a file that came or went is one."""
SETTLE_S = 0.2
"""Several changes this close together are one measurement."""
GLUE_TYPE = "org.gridfabric.storage"
PROTOCOL = "gridfabric"


class StorageAgent(Agent):
    """One storage element."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = parse_config(settings.options, settings.state_dir, settings.grid)
        store, tape = context.store("storage", metadata, MIGRATIONS), self._config.tape
        files = FileStore(store, tape.vos if tape is not None else ())
        self.element = StorageElement(self._config, files, log=context.log, clock=context.clock)
        self.nearline = None
        if tape is not None:
            self.nearline = Nearline(
                self.element, files, TapeRows(store), FileLibrary(tape), tape,
                log=context.log, clock=context.clock,
            )  # fmt: skip
        context.close_at_end(self.element)
        self.keeper = PoolKeeper(self.element, files, log=context.log)
        self.mirrors = Mirrors(self.element, files, log=context.log, clock=context.clock)
        self.scrubber = Scrubber(self.element, files, log=context.log, clock=context.clock)
        keep_buffers()
        replicas = Replicas(context.channels, settings)
        self.manager = StorageManager(
            self.element,
            host=settings.advertise,
            port=settings.rpc_port,
            log=context.log,
            vos=context.vos,
            nearline=self.nearline,
        )
        self._third_party = ThirdParty(
            context.channels, context.delegations, context.settings.certificates, context.clock
        )
        self.reconciler = Reconciler(
            self.manager, store, context.channels, settings, context.vos, log=context.log, clock=context.clock
        )
        servicer = StorageServicer(
            self.manager,
            self.keeper,
            self.scrubber,
            self.reconciler,
            channels=context.channels,
            delegations=context.delegations,
            third_party=self._third_party,
            replicas=replicas,
            vos=context.vos,
        )
        self.repairer = Repairer(self.manager, files, replicas, context.channels, log=context.log, clock=context.clock)
        self.services = [RpcService(servicer, add_to_server, RULES)]
        self._space = SpaceReport(0, 0, 0, ())
        self._damaged = 0
        self._started_at = ""
        self._publisher: InformationPublisher | None = None

    async def start(self) -> None:
        """Recover, then measure, so that the first thing published is true."""
        await self.element.start()
        if self.nearline is not None:
            await self.nearline.start()
            self.context.spawn(self.nearline.keep_archiving(), "archive")
            self.context.spawn(self.nearline.keep_purging(), "purge")
            for number in range(self.nearline.readers):
                self.context.spawn(self.nearline.drive(), f"tape drive {number}")
        await self._measure()
        self.context.spawn(self._keep_measuring(), "measure space")
        self.context.spawn(self.element.keep_collecting(), "collect garbage")
        self.context.spawn(self.keeper.run(), "drain pools")
        self.context.spawn(self.mirrors.run(), "mirror files")
        if self._config.scrub_mb_per_s:
            self.context.spawn(self.scrubber.run(), "scrub")

    async def started(self) -> None:
        """Publish."""
        if self.context.rpc is not None:
            self.manager.port = self.context.rpc.port
            await self._open_door(self.context.rpc)
        if self._config.repair:
            self.context.spawn(self.repairer.run(), "repair")
        if self._config.reconcile_every_s and self.context.settings.endpoints("catalog"):
            self.context.spawn(self.reconciler.run(), "reconcile")
        self._started_at = utc_text(self.context.clock.now())
        self._publisher = InformationPublisher(self.context, self.entries, poll_s=MEASURE_S)
        await self._publisher.start()

    async def _open_door(self, rpc: RpcServer) -> None:
        settings = self.context.settings
        if "http" not in settings.ports:
            return
        door = WebDavDoor(
            self.manager,
            rpc.security_context.open_for,
            rpc.sessions,
            self._third_party,
            site=settings.site,
            log=self.context.log,
        )
        self.context.close_at_end(door)
        tls = TlsDoor(lambda: self.context.credential, door.serve, self.context.log)
        self.context.close_at_end(tls)
        await tls.start(settings.listen, settings.ports["http"])
        self.manager.door_port = tls.port

    async def stop(self) -> None:
        """Withdraw; end what is not complete, keep what is."""
        if self._publisher is not None:
            await self._publisher.stop()
        await self.element.stop()

    def health(self) -> AgentHealth:
        """Green also when full: a full disk is the users' matter, and its refusals say so."""
        element = self.element
        numbers = {
            "transfers": float(element.admission.running),
            "bytes_in": float(element.bytes_in),
            "bytes_out": float(element.bytes_out),
            "files": float(sum(use.files for use, _ in self._space.vos)),
            "used_bytes": float(sum(use.used_bytes for use, _ in self._space.vos)),
            "free_bytes": float(self._space.free_bytes),
            "damaged_files": float(self._damaged),
            "missing_copies": float(self.mirrors.missing),
            "scrubbed_bytes": float(self.scrubber.read_bytes),
            "repaired_files": float(self.repairer.repaired),
            "dark_files": float(self.reconciler.dark),
            "lost_replicas": float(self.reconciler.lost),
        }
        if self.nearline is not None:
            numbers |= {"staging": float(self.nearline.waiting)}
        return AgentHealth(AgentState.GREEN, numbers=numbers)

    def entries(self) -> Iterable[Entry]:
        """GlueSE with one GlueSA for each VO, and GlueService. GlueSEUniqueID is the `host:port` of the SURLs."""
        settings, space, served = self.context.settings, self._space, self.context.vos.served
        host, port = self.manager.host, self.manager.port
        unique_id = f"{host}:{port}"
        protocols = [glue_model.AccessProtocol(PROTOCOL, f"grpc://{unique_id}", port)]
        if self.manager.door_port:
            door = f"{host}:{self.manager.door_port}"
            protocols.append(glue_model.AccessProtocol("https", f"https://{door}", self.manager.door_port))
        areas = tuple(
            glue_model.StorageArea(
                local_id=use.vo,
                path=f"/{use.vo}",
                vos=(use.vo,) if use.vo in served else (),
                total_bytes=use.used_bytes + available,
                used_bytes=use.used_bytes,
                **self._tape_of(use.vo),
            )
            for use, available in space.vos
        )
        yield from glue13.se_entries(
            glue_model.StorageElement(
                unique_id=unique_id,
                site=settings.site,
                name=settings.name,
                port=port,
                architecture="disk" if self.nearline is None else "tape",
                areas=areas,
                total_bytes=space.stored_bytes + space.free_bytes,
                protocols=tuple(protocols),
            )
        )
        alarms = self._alarms()
        yield from glue13.service_entries(
            glue_model.Service(
                unique_id=f"{GLUE_TYPE}:{unique_id}",
                kind=GLUE_TYPE,
                endpoint=f"grpc://{unique_id}",
                site=settings.site,
                name=settings.name,
                vos=served,
                started=self._started_at,
                status="Warning" if alarms else "OK",
                status_info="; ".join(alarms),
            )
        )

    def _tape_of(self, vo: str) -> dict[str, Any]:
        """What a VO's space has on tape."""
        if self.nearline is None or not self.nearline.keeps(vo):
            return {}
        return {
            "nearline_total_bytes": self.nearline.tapes_bytes(),
            "nearline_used_bytes": self.nearline.on_tape_bytes(vo),
            "retention": "custodial",
            "latency": "nearline",
        }

    async def _keep_measuring(self) -> None:
        while True:
            await self.element.wait_for_change(MEASURE_S, SETTLE_S)
            if self.nearline is not None:
                self.nearline.kept()
            try:
                await self._measure()
            except GridError as error:
                self.context.log.warning("storage.measure_failed", reason=error.reason, sentence=error.sentence)
            if self._publisher is not None:
                self._publisher.poke()

    async def _measure(self) -> None:
        self._space = await self.element.space(self.context.vos.served)
        missing = self.element.pools.missing
        if missing:
            self.context.problem("pools", f"no answer from {', '.join(missing)}; look at the disks")
        else:
            self.context.solved("pools")
        if self.mirrors.obstacle:
            self.context.problem("copies", self.mirrors.obstacle)
        else:
            self.context.solved("copies")
        if self.nearline is not None and self.nearline.obstacle:
            self.context.problem("tapes", self.nearline.obstacle)
        else:
            self.context.solved("tapes")
        if self.reconciler.held:
            self.context.problem("dark files", self.reconciler.held)
        else:
            self.context.solved("dark files")
        self._damaged = await self.scrubber.damaged()
        if self._damaged:
            more = "; the scrubber waits, look at the disks" if self._damaged >= MAX_DAMAGED else ""
            self.context.problem(
                "damage", f"{self._damaged} files are damaged or lost; repair them with: grid data repair{more}"
            )
        else:
            self.context.solved("damage")

    def _alarms(self) -> list[str]:
        """What everybody may know; the names of disks are not part of it."""
        alarms = []
        if missing := len(self.element.pools.missing):
            alarms.append(f"pools that do not answer: {missing}")
        if self._damaged:
            alarms.append(f"files damaged or lost: {self._damaged}")
        return alarms


def build(context: AgentContext) -> StorageAgent:
    """See docs/architecture.md, section 3."""
    return StorageAgent(context)
