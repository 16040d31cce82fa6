"""The broker's heart: matching passes, links to gatekeepers, proxies and clean-up around one store.

Everything that must survive is in the store; this object can be thrown away and made again at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from cryptography.hazmat.primitives.hashes import SHA256

from agents.broker import machine, why, wire
from agents.broker import store as rows
from agents.broker.blacklist import Blacklist
from agents.broker.board import Board
from agents.broker.config import BrokerOptions
from agents.broker.input_staging import Input, InputStaging, storage_elements_of
from agents.broker.journal import Journal
from agents.broker.link import Link
from agents.broker.matching import (
    CompiledCe,
    CompiledCluster,
    Room,
    Shares,
    match_pass,
    room_of,
    used_slots,
    why_chosen,
)
from agents.broker.model import ComputingElement, JobDescription, JobState
from agents.broker.rebuild import Rebuild
from agents.broker.renewal import JobRenewals
from agents.broker.sandbox import SandboxStore
from agents.broker.succession import COPIED_ID, Succession
from agents.broker.tables import Change, JobRow, LogSink
from fabric import failpoints
from fabric.clock import from_us, to_us
from fabric.errors import GridError, NotFound, Unauthenticated, Unavailable
from fabric.glue13 import CeView
from fabric.pace import Pace
from fabric.rpc.delegation import DEFAULT_ID, delegate
from fabric.store import Store
from security.errors import Reason, SecurityError

if TYPE_CHECKING:
    from fabric.context import AgentContext
    from security.credentials import Credential

T = TypeVar("T")

MAX_DESCRIPTIONS = 5000
"""Decoded descriptions kept in memory."""
MAX_CLUSTERS = 50_000
"""Compiled clusters kept in memory."""
MAX_MATCH_INTERVAL_S = 0.1
"""Between two passes while many jobs are matched."""
MAX_ASSIGN = 5000
"""Jobs given to CEs in one transaction."""
CLUSTERS_S = 3600.0
"""How often it is looked for clusters without jobs: that reads every job."""
ON_LOOP_MATCHES = 500
"""Matches made on the event loop; more go to a thread."""
PROXY_MISSING_GRACE_S = 60.0
"""An owner without any delegated proxy (destroyed, or not yet read) is waited for this long."""
PROXY_BATCH = 2000
VOS_S = 60.0
"""VOs are looked at after every change, and this often besides."""
NO_CE: frozenset[str] = frozenset()
BLAMES_S = 1.0
"""What is held against CEs is written this long after it has changed: a broker that is killed forgets so much of it."""
REPLICAS_VALID_S = 30.0
"""Answers of the catalogue are believed this long."""
CATALOGUE_S = 5.0
"""It has so long to answer; matching goes on without it."""


class BrokerCore:
    """State and loops. Methods are called on the agent's event loop only."""

    def __init__(
        self,
        context: AgentContext,
        options: BrokerOptions,
        store: Store,
        sandbox: SandboxStore,
        sink: LogSink,
        views: Callable[[], Mapping[str, CeView]],
        recorded: Callable[[float], Awaitable[bool]],
        forget_events: Callable[[int], None],
        journal: Journal | None = None,
    ) -> None:
        """`journal`: of a grid's only broker."""
        self.context = context
        self.options = options
        self.store = store
        self.sandbox = sandbox
        self.sink = sink
        self.log = context.log
        self.board = Board()
        self.descriptions: dict[int, JobDescription] = {}
        self.delivered = 0
        self._held_up: dict[int, str] = {}
        """Per cluster that was left out of the last pass: why."""
        self._offered: dict[str, int] = {}
        """By CE: how many jobs it could take in the last pass."""
        self.ces: dict[str, ComputingElement] = {}
        self._views = views
        self._views_seen: Mapping[str, CeView] | None = None
        self._compiled_ces: dict[str, CompiledCe] = {}
        self._clusters: dict[int, CompiledCluster] = {}
        self._clusters_looked_at_s = -math.inf
        self._version = 0
        """Counts changes of CEs."""
        self._ce_versions: dict[str, int] = {}
        """By CE id, also of CEs that are gone: the version that changed it last."""
        self._links: dict[tuple[str, str], Link] = {}
        self._blocked: dict[str, tuple[float, str]] = {}
        self.blacklist = Blacklist(options.blame_half_life_s)
        self.suspects: set[str] = set()
        """Gatekeepers that did not answer lately: they get one job at a time until they do."""
        self._match_wanted = asyncio.Event()
        self._matched = 0
        """Jobs given to CEs by the last pass."""
        self._proxies_wanted = asyncio.Event()
        self._proxy_missing_since: dict[str, float] = {}
        self._proxy_warned: dict[str, int] = {}
        self.renewals = JobRenewals(context, options, store, sink, lambda owner: self.succession.renewed(owner))
        self._commits: set[asyncio.Task[object]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_open = False
        self.succession = Succession(self, recorded, forget_events)
        self.journal = journal
        self.rebuild = Rebuild(self, journal) if journal is not None else None
        self._replicas: dict[str, tuple[float, frozenset[str]]] = {}
        self._inputs = InputStaging(context, self.credential, self.run, self._match_wanted.set)
        self._chance = random.Random()
        self.stopping = False

    # -- time, proxies -------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self.context.clock.monotonic()

    @property
    def now_us(self) -> int:
        return to_us(self.context.clock.now())

    def credential(self, owner: str) -> Credential:
        """The user's delegated proxy; where he has given none here, the one that came with copies of his jobs.

        Raises NotFound DELEGATION_MISSING, Unauthenticated DELEGATION_EXPIRED.
        """
        return self._delegation(owner)[1]

    def _delegation(self, owner: str) -> tuple[str, Credential]:
        delegations = self.context.delegations
        try:
            return DEFAULT_ID, delegations.get(owner)
        except (NotFound, Unauthenticated):
            with contextlib.suppress(NotFound, Unauthenticated):
                return COPIED_ID, delegations.get(owner, COPIED_ID)
            raise

    @staticmethod
    def fingerprint(credential: Credential) -> bytes:
        return credential.certificate.fingerprint(SHA256())

    def look_at_proxies(self) -> None:
        """Someone's proxy is missing or has expired."""
        self._proxies_wanted.set()

    async def delegate_to(self, host: str, port: int, owner: str, had: bytes, delegation_id: str = DEFAULT_ID) -> bytes:
        """Give the service there the user's proxy of now, if that is not the one it `had`; returns its fingerprint."""
        credential = self.credential(owner)
        fingerprint = self.fingerprint(credential)
        if fingerprint != had:
            channel = await self.context.channels.get(host, port, credential=credential)
            left = credential.not_after - self.context.clock.now()
            await delegate(channel, credential, delegation_id, lifetime=max(timedelta(seconds=1), left))
        return fingerprint

    def delegation_changed(self, owner: str) -> None:
        """A user has renewed (or destroyed) the proxy: gatekeepers get the new one."""
        self._proxy_missing_since.pop(owner, None)
        for (link_owner, _), link in self._links.items():
            if link_owner == owner:
                link.wake()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """The only broker of a grid is open at once; one of several when its epoch has begun."""
        self.context.delegations.on_change(lambda owner, _: self.delegation_changed(owner))
        if self.rebuild is not None:
            await self.rebuild.prepare()
        await self._drop_strays()
        await self.succession.start()
        self.context.spawn(self.succession.run(), "succession")

    async def open(self) -> None:
        """Count what is unfinished, and begin to do it again."""
        counts = await self.store.read(rows.counts)
        self.board = Board(counts)
        self.board.reported(self.ces, {})
        kept = await self.store.read(lambda connection: rows.blames(connection, self.now_us))
        self.blacklist = Blacklist(self.options.blame_half_life_s, kept, self.now_s)
        self.is_open = True
        for owner, gatekeeper in counts.links:
            self.link(owner, gatekeeper).wake()
        self._match_wanted.set()
        self.run(self._match_loop(), "match")
        self.run(self._proxy_loop(), "proxies")
        self.run(self._janitor_loop(), "janitor")
        self.run(self._vo_loop(), "VOs")
        self.run(self._blame_loop(), "blames")
        if self.rebuild is not None:
            self.run(self.rebuild.run(), "rebuild")

    async def close(self) -> None:
        """Leave all jobs alone: they are another broker's."""
        self.is_open = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._commits:
            await asyncio.wait(self._commits)
        self.board = Board()

    def run(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """A task that ends when the broker is closed."""
        task = self.context.spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def require_open(self) -> None:
        """Raises Unavailable BROKER_NOT_READY."""
        if not self.is_open:
            raise Unavailable(
                "BROKER_NOT_READY",
                f"{self.context.settings.name} has not begun: bookkeeping has to tell it whether its jobs are still "
                "its own; ask another broker, or try again soon",
                retry_after_s=2,
            )

    async def stop(self) -> None:
        """Take nothing more up; wait for commits that are under way."""
        self.stopping = True
        if self._commits:
            await asyncio.wait(self._commits, timeout=5.0)
        await self._keep_blames()

    async def commit(self, change: Callable[[sa.Connection], list[Change]]) -> list[Change]:
        """Write, then count and wake whoever is concerned; also when the caller is cancelled meanwhile."""
        return await self.shielded(self._commit(change))

    async def submit(self, new: rows.Submission) -> rows.Submitted:
        """Durable when it returns."""

        async def write() -> rows.Submitted:
            to_copy = self.succession.successor is not None

            def keep(connection: sa.Connection) -> rows.Submitted:
                self.require_open()  # else it could be forgotten with what was handed over
                return rows.submit(connection, new, self.sink, to_copy=to_copy)

            if self.rebuild is not None:
                self.rebuild.require(new.owner)
            done = await self.store.write(keep)
            if self.journal is not None and done.changes:
                await self.journal.add([new])
            failpoints.reached("broker.submit.committed")
            self._committed(done.changes)
            self.succession.changed()
            return done

        return await self.shielded(write())

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Go on with it though the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return await asyncio.shield(task)

    async def _commit(self, change: Callable[[sa.Connection], list[Change]]) -> list[Change]:
        def keep(connection: sa.Connection) -> list[Change]:
            self.require_open()
            return change(connection)

        changes = await self.store.write(keep)
        self._committed(changes)
        return changes

    def _committed(self, changes: Sequence[Change]) -> None:
        if self.board.apply(changes, self.now_s):
            self._match_wanted.set()
        touched: set[tuple[str, str]] = set()
        for change in changes:
            after = change.after
            if change.refused:
                self.log.error("job.illegal_event", job_id=change.job_id, state=after.state.name)
            before = change.before
            if before is not None and change.cause:
                self._failed_at(before.ce, change)
            elif before is not None and after.state is JobState.DONE and before.state is not JobState.DONE:
                self.blacklist.ended(before.ce, change.owner, self.now_s)
            if after.gatekeeper and (
                (after.state is JobState.READY and not after.sent) or after.cancelling
                or (after.state is JobState.CLEARED and after.purge)
            ):  # fmt: skip
                touched.add((change.owner, after.gatekeeper))
        for owner, gatekeeper in touched:
            self.link(owner, gatekeeper).wake()

    def _failed_at(self, ce: str, change: Change) -> None:
        listing = self.blacklist.failed(ce, change.owner, change.cause, self.now_s)
        if listing is not None:
            self.log.warning(
                "ce.listed", ce=ce, owner=listing.owner, cause=listing.cause, failures=listing.failures,
                for_s=round(listing.left_s), job_id=change.job_id,
            )  # fmt: skip

    async def _blame_loop(self) -> None:
        while True:
            await asyncio.sleep(BLAMES_S)
            await self._guarded("blames", self._keep_blames())

    async def _keep_blames(self) -> None:
        changed = self.blacklist.changed(self.now_s)
        if changed:
            await self.store.write(lambda connection: rows.keep_blames(connection, changed, self.now_us))

    # -- links ---------------------------------------------------------------------------------------------------------

    def link(self, owner: str, gatekeeper: str) -> Link:
        """The link of a user to a gatekeeper, made if need be."""
        key = (owner, gatekeeper)
        found = self._links.get(key)
        if found is None:
            found = self._links[key] = Link(self, owner, gatekeeper)
            self.run(found.run(), f"link {gatekeeper} for {owner}")
        return found

    def forget(self, link: Link) -> None:
        """A link has ended."""
        key = (link.owner, link.gatekeeper)
        if self._links.get(key) is link:
            del self._links[key]

    @property
    def links(self) -> int:
        return len(self._links)

    def troubles(self) -> dict[str, str]:
        """Gatekeepers that do not get on, and why."""
        found = {link.gatekeeper: link.trouble for link in self._links.values() if link.trouble}
        found.update({key: why for key, (until, why) in self._blocked.items() if until > self.now_s})
        return found

    def trouble_of(self, owner: str, gatekeeper: str) -> str:
        link = self._links.get((owner, gatekeeper))
        return link.trouble if link is not None else ""

    def block(self, gatekeeper: str, seconds: float, reason: str) -> None:
        """Give a CE nothing new for a while."""
        until = self.now_s + seconds
        self._blocked[gatekeeper] = (max(until, self._blocked.get(gatekeeper, (0.0, ""))[0]), reason)
        asyncio.get_running_loop().call_later(seconds + 0.01, self._match_wanted.set)

    def answers(self, gatekeeper: str) -> None:
        """A session with it stands."""
        if gatekeeper in self.suspects:
            self.suspects.discard(gatekeeper)
            self.unblock(gatekeeper)

    def unblock(self, gatekeeper: str) -> None:
        self._blocked.pop(gatekeeper, None)
        self._match_wanted.set()

    def remember_descriptions(self, loaded: Mapping[int, JobDescription]) -> None:
        if len(self.descriptions) + len(loaded) > MAX_DESCRIPTIONS:
            self.descriptions.clear()
        self.descriptions.update(loaded)

    # -- matching ------------------------------------------------------------------------------------------------------

    def information_changed(self) -> None:
        """The tree has changed."""
        self._match_wanted.set()

    async def _match_loop(self) -> None:
        pace = Pace(self.options.match_interval_s, MAX_MATCH_INTERVAL_S)
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._match_wanted.wait()
            except TimeoutError:
                if not self.board.waiting:
                    continue
            self._match_wanted.clear()
            if not self.stopping:
                await self._guarded("matching", self._match_once())
            pace.took(self._matched)
            self._matched = 0
            await pace.gather()

    async def _guarded(self, name: str, work: Coroutine[None, None, None]) -> None:
        """One turn of a loop that must go on: what goes wrong is logged, degrades the agent, and is tried again."""
        try:
            await work
            self.context.solved(name)
        except GridError as error:
            self.log.warning("loop.failed", loop=name, reason=error.reason, sentence=error.sentence)
            self.context.problem(name, f"{name} does not get on: {error.sentence}")
            await asyncio.sleep(0.5)
        except Exception as error:
            self.log.exception("loop.defect", error, loop=name)
            self.context.problem(name, f"{name} does not get on (a defect; see the log): {error}")
            await asyncio.sleep(1.0)

    async def _match_once(self) -> None:
        await self._look_at_ces()
        waiting = dict(self.board.waiting)
        if not waiting:
            return
        await self._compile(waiting)
        await self._give_up_expired(waiting)
        if not self.ces:
            return
        known = [self._clusters[key].cluster for key in waiting if key in self._clusters]
        self._held_up = paused = self._inputs.obstacles(known) | self._paused(waiting)
        shunned = {owner: self.blacklist.shunned(owner, self.now_s) for owner in self.board.owners}
        found = {
            key: compiled.candidates(shunned.get(compiled.cluster.owner, NO_CE))
            for key in waiting
            if key not in paused and (compiled := self._clusters.get(key)) is not None
        }
        waiting = {key: count for key, count in waiting.items() if key in found}
        own_rank = {key for key in waiting if not self._clusters[key].has_default_rank}
        fuzzy = {key: self._chance for key in waiting if self._clusters[key].cluster.fuzzy_rank}
        rooms = self._rooms()
        self._offered = {ce: room.free + room.queue for ce, room in rooms.items()}
        outcome = match_pass(waiting, found, own_rank, rooms, fuzzy, self._shares(waiting))
        given = _bounded(outcome.given, MAX_ASSIGN)
        if given:
            choices = {
                key: [
                    (machine.Matched(ce, self.ces[ce].gatekeeper, why_chosen(found[key], ce)), count)
                    for ce, count in shares.items()
                ]
                for key, shares in given.items()
            }
            self._matched = len(
                await self.commit(lambda connection: rows.assign(connection, choices, self.now_us, self.sink))
            )
            failpoints.reached("broker.match.committed")
            if given != outcome.given:
                self._match_wanted.set()

    def _paused(self, waiting: Mapping[int, int]) -> dict[int, str]:
        """Clusters whose pause after a failure is not over, and until when it lasts."""
        now_s = self.now_us / 1e6
        known = ((key, self._clusters[key].cluster.not_before_s) for key in waiting if key in self._clusters)
        return {
            key: f"waits after a failure until {from_us(at_s * 1_000_000):%H:%M:%S} UTC"
            for key, at_s in known
            if at_s > now_s
        }

    def why_waits(self, key: int) -> str:
        """Why the jobs of a cluster wait, in one sentence."""
        if not self.ces:
            return "no CE is known yet; is an information server up?"
        compiled = self._clusters.get(key)
        if compiled is None or compiled.seen < 0:
            return "it has not been matched yet"
        if key in self._held_up:
            return self._held_up[key]
        matching = list(dict(compiled.ranks))  # a matching pass may be changing them in its thread
        if not matching:
            return why.no_ce_matches(compiled, list(self._compiled_ces.values()))
        owner = compiled.cluster.owner
        by_gatekeeper = self.troubles()
        troubles = {
            ce: by_gatekeeper[self.ces[ce].gatekeeper]
            for ce in matching
            if ce in self.ces and self.ces[ce].gatekeeper in by_gatekeeper
        }
        troubles |= {ce: item.sentence for ce, item in self.blacklist.for_owner(owner, self.now_s).items()}
        used = sum(count for (whose, _), count in self.board.links.items() if whose == owner)
        return why.no_room([self.ces[ce] for ce in matching if ce in self.ces], self._offered, troubles, used)

    async def _give_up_expired(self, waiting: dict[int, int]) -> None:
        """Jobs whose ExpiryTime has passed are not matched any more."""
        now_s = self.now_us / 1e6
        known = {key: self._clusters[key].cluster for key in waiting if key in self._clusters}
        for key in [key for key, cluster in known.items() if 0 < cluster.expires_at_s <= now_s]:
            del waiting[key]
            await self._abort_all(
                lambda connection, key=key: rows.waiting_of(connection, key, PROXY_BATCH),
                "JOB_EXPIRED",
                "no computing element had taken the job when its ExpiryTime came",
                cluster=str(key),
            )

    async def _look_at_ces(self) -> None:
        views = self._views()
        if views is self._views_seen:
            return
        self._views_seen = views
        before = self.ces
        self.ces = {key: wire.computing_element(view) for key, view in views.items()}
        self.board.reported(self.ces, before)
        self._version += 1
        for key in before.keys() - self.ces.keys():
            self._compiled_ces.pop(key, None)
            self._ce_versions[key] = self._version
        for key, ce in self.ces.items():
            old = before.get(key)
            if old is None or old.attributes != ce.attributes or old.alive != ce.alive:
                self._compiled_ces[key] = CompiledCe(ce)
                self._ce_versions[key] = self._version
        for key, old in before.items():
            ce = self.ces.get(key)
            if old.alive and (ce is None or not ce.alive):
                status = "is not in the information tree any more" if ce is None else "does not take jobs any more"
                self.log.warning("ce.lost", ce=key, detail=status)
                for owner, gatekeeper in list(self.board.links):
                    if gatekeeper == old.gatekeeper:
                        self.context.spawn(
                            self.link(owner, gatekeeper).take_back(f"CE_LOST: {key} {status}"), f"take back from {key}"
                        )

    async def _compile(self, waiting: Mapping[int, int]) -> None:
        """Parse clusters not seen yet, and find candidates for those that have none since the tree changed."""
        missing = [key for key in waiting if key not in self._clusters]
        if missing:
            if len(self._clusters) + len(missing) > MAX_CLUSTERS:
                self._clusters = {key: value for key, value in self._clusters.items() if key in waiting}
            loaded = await self.store.read(lambda connection: rows.load_clusters(connection, missing))
            self._clusters.update({key: CompiledCluster(cluster) for key, cluster in loaded.items()})
        now_s = self.now_s
        todo: list[tuple[CompiledCluster, int]] = []
        for key in waiting:
            compiled = self._clusters.get(key)
            if compiled is not None:
                if compiled.cluster.input_data and now_s - compiled.matched_at > REPLICAS_VALID_S:
                    compiled.seen, compiled.matched_at = -1, now_s
                if compiled.seen < self._version:
                    todo.append((compiled, compiled.seen))
        if not todo:
            return
        wanted = {lfn for compiled, _ in todo for lfn in compiled.cluster.input_data}
        replicas = await self._find_replicas(wanted) if wanted else {}
        version, ces = self._version, dict(self._compiled_ces)
        changed = {
            seen: [key for key, at in self._ce_versions.items() if at > seen] for seen in {seen for _, seen in todo}
        }

        def match() -> None:
            for compiled, seen in todo:
                compiled.update(changed[seen], ces, replicas)
                compiled.seen = version

        if sum(len(changed[seen]) for _, seen in todo) <= ON_LOOP_MATCHES:
            match()
        else:
            await asyncio.to_thread(match)

    def _shares(self, waiting: Mapping[int, int]) -> Shares:
        used: dict[str, int] = {}
        for (owner, _), count in self.board.links.items():
            used[owner] = used.get(owner, 0) + count
        return Shares({key: self._clusters[key].cluster.owner for key in waiting}, used)

    def _rooms(self) -> dict[str, Room]:
        now_s, options = self.now_s, self.options
        self._blocked = {key: value for key, value in self._blocked.items() if value[0] > now_s}
        rooms: dict[str, Room] = {}
        probed = self.blacklist.probed(now_s)
        used = Counter[str]()
        for key, ce in self.ces.items():
            used[ce.gatekeeper] += used_slots(ce, self.board.load(key))
        for key, ce in self.ces.items():
            if ce.alive and ce.port and ce.gatekeeper not in self._blocked:
                load = self.board.load(key)
                load.ended_per_s, kept = self.board.rate(key, now_s), load.ended_per_s
                elsewhere = used[ce.gatekeeper] - used_slots(ce, load)
                rooms[key] = room_of(
                    ce, load, options.queue_ahead_s, options.queue_factor, options.queue_least, elsewhere
                )
                load.ended_per_s = kept
                if ce.gatekeeper in self.suspects or key in probed:
                    busy = load.pending or (key in probed and load.running)
                    probe = 0 if busy else min(1, rooms[key].free + rooms[key].queue)
                    rooms[key] = Room(probe, 0, rooms[key].slots)
        return rooms

    def storage_address(self, wanted: str) -> str:
        """host:port of a storage element of this grid by its name, site or host; anything else as it is."""
        found = self.context.settings.endpoint_meant("storage", wanted)
        return found.address if found is not None else wanted

    async def _find_replicas(self, lfns: set[str]) -> dict[str, frozenset[str]]:
        """Storage elements that have these files, as far as the catalogue can be asked now."""
        now_s = self.now_s
        self._replicas = {key: value for key, value in self._replicas.items() if now_s - value[0] < REPLICAS_VALID_S}
        unknown = sorted(lfns - self._replicas.keys())[:1000]
        endpoints = self.context.settings.endpoints("catalog")
        if unknown and endpoints:
            try:
                channel = await self.context.channels.get(endpoints[0].host, endpoints[0].rpc)
                async with asyncio.timeout(CATALOGUE_S):
                    found = await storage_elements_of(channel, unknown)
                self._replicas.update({name: (now_s, where) for name, where in found.items()})
            except GridError as error:
                self.log.warning("catalogue.not_asked", reason=error.reason, sentence=error.sentence)
            except TimeoutError:
                self.log.warning("catalogue.not_asked", reason="NO_ANSWER", within_s=CATALOGUE_S)
        return {lfn: self._replicas[lfn][1] for lfn in lfns if lfn in self._replicas}

    async def compiled_for_question(
        self, cluster: CompiledCluster
    ) -> tuple[list[CompiledCe], dict[str, frozenset[str]]]:
        """What ``list-match`` needs: every CE, and where the input files are."""
        await self._look_at_ces()
        wanted = set(cluster.cluster.input_data)
        return list(self._compiled_ces.values()), await self._find_replicas(wanted) if wanted else {}

    async def _inputs_of(self, owner: str) -> set[Input]:
        """The input of an owner's unfinished jobs."""

        def read(connection: sa.Connection) -> set[Input]:
            clusters = rows.load_clusters(connection, rows.clusters_unfinished(connection, owner)).values()
            return {(cluster.owner, cluster.input_data) for cluster in clusters}

        return await self.store.read(read)

    # -- proxies -------------------------------------------------------------------------------------------------------

    async def _proxy_loop(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.options.proxy_poll_s):
                    await self._proxies_wanted.wait()
            except TimeoutError:
                pass
            self._proxies_wanted.clear()
            await self._guarded("proxies", self._check_proxies())
            await asyncio.sleep(0.05)

    async def _check_proxies(self) -> None:
        for owner in list(self.board.owners):
            await self._check_proxy(owner)

    async def _check_proxy(self, owner: str) -> None:
        try:
            name, credential = self._delegation(owner)
        except GridError as error:
            if error.reason == "DELEGATION_EXPIRED":
                await self._abort_of(owner, "PROXY_EXPIRED", error.sentence)
            elif error.reason == "DELEGATION_MISSING":
                since = self._proxy_missing_since.setdefault(owner, self.now_s)
                if self.now_s - since >= PROXY_MISSING_GRACE_S:
                    await self._abort_of(owner, "PROXY_MISSING", error.sentence)
            return
        self._proxy_missing_since.pop(owner, None)
        self.renewals.look(owner, name, credential)
        ends_us = to_us(credential.not_after)
        left_s = (ends_us - self.now_us) / 1e6
        if left_s < self.options.proxy_warning_s and self._proxy_warned.get(owner) != ends_us:
            self._proxy_warned[owner] = ends_us
            text = (
                f"the delegated proxy ends at {credential.not_after:%Y-%m-%d %H:%M:%S} UTC; delegate a new one before"
            )
            self.log.warning("proxy.ends_soon", owner=owner, left_s=round(left_s))

            def note(connection: sa.Connection) -> None:
                found = rows.unfinished_of(connection, owner, PROXY_BATCH)
                rows.note(connection, found, text, self.now_us, self.sink)

            await self.store.write(note)

    async def _abort_of(self, owner: str, reason: str, sentence: str) -> None:
        """Nothing can be done in the owner's name any more."""
        await self._abort_all(
            lambda connection: rows.unfinished_of(connection, owner, PROXY_BATCH), reason, sentence, owner=owner
        )

    async def _vo_loop(self) -> None:
        """Jobs of a VO that was dissolved come to no end of their own."""
        ended: set[str] = set()
        while True:
            heard = self.context.judged.rung
            for vo, refusal in self.context.vos.refused().items():
                if refusal.reason is Reason.VO_DISSOLVED and vo not in ended:
                    await self._guarded("VOs", self._abort_of_vo(vo, refusal, ended))
            await self.context.judged.wait(VOS_S, heard)

    async def _abort_of_vo(self, vo: str, refusal: SecurityError, ended: set[str]) -> None:
        await self._abort_all(
            lambda connection: rows.unfinished_of_vo(connection, vo, PROXY_BATCH),
            refusal.reason.value,
            refusal.sentence,
            vo=vo,
        )
        ended.add(vo)  # no more can come

    async def _abort_all(
        self, find: Callable[[sa.Connection], list[JobRow]], reason: str, sentence: str, **whose: str
    ) -> None:
        """Until nothing more is found."""
        total = 0
        while True:

            def change(connection: sa.Connection) -> list[Change]:
                found = find(connection)
                rows.note(connection, found, sentence, self.now_us, self.sink)
                return rows.step_rows(
                    connection,
                    [(row, (machine.GivenUp(reason, sentence),)) for row in found],
                    self.now_us + 1,
                    self.sink,
                )

            changes = await self.commit(change)
            total += len(changes)
            if len(changes) < PROXY_BATCH:
                break
        if total:
            self.log.warning("jobs.aborted", **whose, reason=reason, jobs=total)

    # -- clean-up ------------------------------------------------------------------------------------------------------

    async def _janitor_loop(self) -> None:
        while True:
            await asyncio.sleep(self.options.janitor_interval_s)
            await self._guarded("clean-up", self.clean())

    async def clean(self) -> None:
        """Drop files and jobs that nobody needs any more."""
        now_us = self.now_us
        files_before = now_us - int(self.options.sandbox_keep_s * 1e6)
        jobs_before = now_us - int(self.options.job_keep_s * 1e6)
        expired_before = now_us - int(self.options.match_expiry_s * 1e6)

        def expire(connection: sa.Connection) -> list[Change]:
            found = rows.waiting_since(connection, expired_before, PROXY_BATCH)
            sentence = f"no computing element was found within {self.options.match_expiry_s / 3600:g} hours"
            given_up = (machine.GivenUp("NO_COMPATIBLE_RESOURCES", sentence),)
            return rows.step_rows(connection, [(row, given_up) for row in found], now_us, self.sink)

        while await self.commit(expire):
            pass
        while old := await self.store.read(lambda connection: rows.old_submissions(connection, jobs_before)):
            if self.journal is not None:
                await self.journal.drop(list(old), jobs_before)
            await self.store.write(lambda connection, old=old: rows.drop_submissions(connection, old.values()))
        await self._inputs.release_unneeded(self._inputs_of)
        if self.now_s >= self._clusters_looked_at_s + CLUSTERS_S:
            self._clusters_looked_at_s = self.now_s
            await self.store.write(rows.drop_unused_clusters)
        gone = await self.store.write(lambda connection: rows.drop_unused_files(connection, files_before))
        for sha256 in gone:
            self.sandbox.remove(sha256)

    async def _drop_strays(self) -> None:
        """Files that were adopted but not recorded when the broker was killed. Only before anybody can upload."""
        known = await self.store.read(rows.known_hashes)
        for sha256 in await asyncio.to_thread(lambda: list(self.sandbox.hashes())):
            if sha256 not in known:
                self.sandbox.remove(sha256)


def _bounded(given: Mapping[int, Mapping[str, int]], most: int) -> dict[int, dict[str, int]]:
    """The first ``most`` jobs of a pass."""
    kept: dict[int, dict[str, int]] = {}
    for cluster, shares in given.items():
        for ce, count in shares.items():
            take = min(count, most)
            if take > 0:
                kept.setdefault(cluster, {})[ce] = take
                most -= take
    return kept
