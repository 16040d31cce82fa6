"""The methods of the Bookkeeping service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as pb
from gridfabric.bookkeeping.v1 import bookkeeping_pb2_grpc as pb_grpc

from agents.bookkeeping import accounting, brokers, wire
from agents.bookkeeping import store as rows
from agents.bookkeeping.config import BookkeepingOptions
from agents.bookkeeping.model import MAX_JOB_ID_LENGTH, Event, EventType, JobQuery, JobRecord, Reader
from agents.bookkeeping.watchers import Watchers
from fabric import failpoints
from fabric.clock import Clock
from fabric.errors import Exhausted, InvalidRequest, NotFound, Refused
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import administrator, any_of, any_service, services, user
from fabric.store import Store
from fabric.vos import Vos

_readers = any_of(
    user,
    any_service,
    administrator,
)
RULES = {
    "Record": services("broker", "gatekeeper", "worker"),
    "History": _readers,
    "Query": _readers,
    "Watch": _readers,
    "Statistics": _readers,
    "Usage": _readers,
    "UsageRecords": _readers,
    "Reconcile": administrator,
    "BeginEpoch": services("broker"),
    "EndEpoch": services("broker"),
    "HoldLease": services("broker"),
}


class BookkeepingServicer(pb_grpc.BookkeepingServicer):
    """Decode, read or write, encode."""

    def __init__(self, store: Store, options: BookkeepingOptions, vos: Vos, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._leases = brokers.Leases(clock.monotonic())
        self._options = options
        self._vos = vos
        self._watchers = Watchers()
        self.recorded = 0
        """Events kept since the start, for health."""
        self.duplicates = 0

    @property
    def watching(self) -> int:
        return self._watchers.count

    def _reader(self) -> Reader:
        peer = current_peer()
        if peer.agent_kind or peer.is_administrator:
            return Reader(peer.subject, is_service=True)
        if peer.vo:
            return Reader(peer.subject, (peer.vo,))
        # A map file without VO names is one that was built for this grid's only VO.
        return Reader(peer.subject, self._vos.served if len(self._vos.served) == 1 else ())

    async def Record(self, request: pb.RecordRequest, context: Any) -> pb.RecordResponse:
        batch = wire.events_from_wire(request)
        peer = current_peer()
        _check_sources(batch, peer)
        if not batch:
            return pb.RecordResponse()

        def record(connection: Any) -> rows.Recorded:
            if peer.agent_kind == "broker":
                brokers.require_epoch(connection, peer.agent_name, request.epoch)
            return rows.record(connection, batch)

        done = await self._store.write(record)
        failpoints.reached("bookkeeping.record.committed")
        self.recorded += done.new
        self.duplicates += done.duplicates
        self._watchers.publish(done.changed)
        return pb.RecordResponse(recorded=done.new, duplicates=done.duplicates)

    async def BeginEpoch(self, request: pb.BeginEpochRequest, context: Any) -> pb.BeginEpochResponse:
        name = current_peer().agent_name
        _require_name(request.successor)
        lease_s = request.lease_s
        if not 0 <= lease_s <= brokers.MAX_LEASE_S:  # also what is no number
            raise InvalidRequest("LEASE_INVALID", f"a lease lasts from 0 to {brokers.MAX_LEASE_S} s, not {lease_s} s")

        def begin(connection: Any) -> tuple[int, str]:
            brokers.set_lease(connection, name, lease_s)
            return brokers.begin(connection, name, max(0, request.epoch), request.successor)

        epoch, taken_by = await self._store.write(begin)
        self._leases.heard(name, lease_s, self._clock.monotonic())
        return pb.BeginEpochResponse(epoch=epoch, taken_by=taken_by)

    async def EndEpoch(self, request: pb.EndEpochRequest, context: Any) -> pb.EndEpochResponse:
        by = current_peer().agent_name
        _require_name(request.broker)
        if request.broker == by:
            raise InvalidRequest("BROKER_INVALID", f"{by} cannot take over from itself")

        def end(connection: Any) -> int:
            if request.lapsed:
                brokers.require_lapsed(connection, self._leases, request.broker, by, self._clock.monotonic())
            return brokers.end(connection, request.broker, by)

        return pb.EndEpochResponse(epoch=await self._store.write(end))

    async def HoldLease(self, request: pb.HoldLeaseRequest, context: Any) -> pb.HoldLeaseResponse:
        name = current_peer().agent_name

        def hold(connection: Any) -> float:
            brokers.require_epoch(connection, name, request.epoch)
            return brokers.lease_of(connection, name)

        self._leases.heard(name, await self._store.read(hold), self._clock.monotonic())
        return pb.HoldLeaseResponse()

    async def History(self, request: pb.HistoryRequest, context: Any) -> pb.HistoryResponse:
        reader = self._reader()

        def read(connection: Any) -> tuple[JobRecord | None, dict[int, int], list[Event]]:
            record = rows.get(connection, request.job_id)
            if record is None or not reader.may_read(record.owner, record.vo):
                return None, {}, []
            counts = rows.children_counts(connection, [request.job_id]) if record.is_parent else {}
            return record, counts.get(request.job_id, {}), rows.history(connection, request.job_id)

        record, children, events = await self._store.read(read)
        if record is None:
            days = self._options.archive_after_days
            raise NotFound(
                "JOB_UNKNOWN",
                f"no job {request.job_id[:120]!r} that {reader.identity} may read; check the id and whose job it is"
                + (f"; what ended more than {days:g} days ago is in the archive" if days else ""),
                job_id=request.job_id,
            )
        return pb.HistoryResponse(
            job=wire.summary_to_wire(record, children), events=[wire.event_to_wire(event) for event in events]
        )

    async def Query(self, request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        wanted = wire.query_from_wire(request, self._options.default_page_size)
        if len(wanted.job_ids) > self._options.max_watched_jobs:
            raise InvalidRequest("QUERY_INVALID", f"at most {self._options.max_watched_jobs} job ids in one query")
        reader = self._reader()

        def read(connection: Any) -> tuple[list[JobRecord], dict[str, dict[int, int]], int]:
            found, after = rows.query(connection, wanted, reader)
            parents = [record.job_id for record in found if record.is_parent]
            return found, rows.children_counts(connection, parents) if parents else {}, after

        return wire.query_response(*await self._store.read(read))

    async def Statistics(self, request: pb.StatisticsRequest, context: Any) -> pb.StatisticsResponse:
        wanted = wire.statistics_query(request)
        reader = self._reader()
        found = await self._store.read(lambda connection: rows.statistics(connection, wanted, reader))
        return wire.statistics_response(found, wanted.by)

    async def Usage(self, request: pb.UsageRequest, context: Any) -> pb.UsageResponse:
        wanted = wire.usage_query(request)
        reader = self._reader()
        found = await self._store.read(lambda connection: accounting.sums(connection, wanted, reader))
        return wire.usage_response(found, wanted.by)

    async def UsageRecords(self, request: pb.UsageRecordsRequest, context: Any) -> pb.UsageRecordsResponse:
        wanted = wire.usage_query(request)
        reader, token = self._reader(), request.page_token
        page, token = await self._store.read(lambda connection: accounting.records(connection, wanted, reader, token))
        return wire.usage_records_response(page, token)

    async def Reconcile(self, request: pb.ReconcileRequest, context: Any) -> pb.ReconcileResponse:
        wanted = wire.usage_query(request)
        return wire.reconcile_response(
            await self._store.read(lambda connection: accounting.reconcile(connection, wanted))
        )

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        limit = self._options.max_watched_jobs
        if not 0 < len(request.job_ids) <= limit:
            raise InvalidRequest("QUERY_INVALID", f"name between 1 and {limit} jobs to watch")
        if self._watchers.count >= self._options.max_watchers:
            raise Exhausted(
                "TOO_MANY_WATCHERS", f"{self._watchers.count} watch already; ask again or use Query", retry_after_s=5
            )
        reader = self._reader()
        watcher = self._watchers.add(request.job_ids)
        try:
            # Registered first, read second: a change in between comes twice rather than never.
            for record in await self._present(tuple(request.job_ids), reader):
                watcher.pending.setdefault(record.job_id, record)
            watcher.changed.set()
            first = True
            while True:
                await watcher.changed.wait()
                visible = [record for record in watcher.take() if reader.may_read(record.owner, record.vo)]
                for start in range(0, len(visible), 2000):
                    jobs = [wire.summary_to_wire(record) for record in visible[start : start + 2000]]
                    yield pb.WatchResponse(jobs=jobs)
                if first and not visible:
                    yield pb.WatchResponse()
                first = False
                await asyncio.sleep(self._options.watch_interval_s)
        finally:
            self._watchers.remove(watcher)

    async def _present(self, job_ids: tuple[str, ...], reader: Reader) -> list[JobRecord]:
        found: list[JobRecord] = []
        after = 0
        while True:
            wanted = JobQuery(job_ids=job_ids, page_size=5000, after=after)
            page, after = await self._store.read(
                lambda connection, wanted=wanted: rows.query(connection, wanted, reader)
            )
            found.extend(page)
            if not after or len(found) >= self._options.max_watched_jobs:
                return found


def _require_name(name: str) -> None:
    if len(name) > MAX_JOB_ID_LENGTH:
        raise InvalidRequest("BROKER_INVALID", f"a broker's name has at most {MAX_JOB_ID_LENGTH} characters")


def _check_sources(batch: Sequence[Event], peer: Peer) -> None:
    """An agent speaks for itself only, and registration and verdicts are the broker's."""
    for event in batch:
        if event.source != peer.agent_name:
            raise Refused(
                "SOURCE_MISMATCH",
                f"{peer.subject} sent an event of source {event.source!r}; an agent records under its own name",
                source=event.source,
            )
        if peer.agent_kind != "broker" and event.type in (EventType.REGISTERED, EventType.CLEARED):
            raise Refused(
                "EVENT_NOT_YOURS",
                f"{peer.subject} sent {event.type.name} of job {event.job_id}; only a broker records that",
                job_id=event.job_id,
            )
