"""What other agents and the ``grid`` command ask of bookkeeping."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as pb
from gridfabric.bookkeeping.v1 import bookkeeping_pb2_grpc as pb_grpc

ENDED_STATES = frozenset({pb.JOB_STATE_DONE, pb.JOB_STATE_CLEARED, pb.JOB_STATE_ABORTED, pb.JOB_STATE_CANCELLED})
MAX_IDS = 2000
"""Job ids in one Query of ``query``; more are asked in turn."""


def state_name(state: int) -> str:
    """``JOB_STATE_DONE`` as ``DONE``."""
    return pb.JobState.Name(state).removeprefix("JOB_STATE_")  # pyright: ignore[reportArgumentType]


def event_name(event_type: int) -> str:
    """``EVENT_TYPE_DONE`` as ``DONE``."""
    return pb.EventType.Name(event_type).removeprefix("EVENT_TYPE_")  # pyright: ignore[reportArgumentType]


def state_number(name: str) -> int:
    """``DONE`` as its number. Raises ValueError for an unknown name."""
    return int(pb.JobState.Value(f"JOB_STATE_{name.upper()}"))


class BookkeepingClient:
    """Calls over one channel. Every method raises GridError subclasses."""

    def __init__(self, channel: Any) -> None:
        self._stub = pb_grpc.BookkeepingStub(channel)

    async def record(self, events: Sequence[pb.Event]) -> pb.RecordResponse:
        """Events of the calling agent; may be repeated."""
        return await self._stub.Record(pb.RecordRequest(events=events))

    async def history(self, job_id: str) -> pb.HistoryResponse:
        """A job and all its events, oldest first."""
        return await self._stub.History(pb.HistoryRequest(job_id=job_id))

    async def query(
        self,
        *,
        job_ids: Sequence[str] = (),
        owner: str = "",
        state: int = 0,
        ce: str = "",
        vo: str = "",
        since_us: int = 0,
        until_us: int = 0,
        include_parents: bool = False,
        limit: int = 100_000,
    ) -> list[pb.JobSummary]:
        """Every job that fits, all pages, at most ``limit``. By id: in the order of registration; else newest first."""
        found: list[pb.JobSummary] = []
        starts: Iterable[int] = range(0, len(job_ids), MAX_IDS) if job_ids else (0,)
        for start in starts:
            token = ""
            while True:
                request = pb.QueryRequest(
                    job_ids=job_ids[start : start + MAX_IDS],
                    owner=owner,
                    state=state,  # pyright: ignore[reportArgumentType]
                    ce=ce,
                    vo=vo,
                    since_us=since_us,
                    until_us=until_us,
                    include_parents=include_parents,
                    page_size=min(5000, max(1, limit - len(found))),
                    page_token=token,
                )
                response = await self._stub.Query(request)
                found.extend(response.jobs)
                token = response.next_page_token
                if not token or len(found) >= limit:
                    break
            if len(found) >= limit:
                break
        return found[:limit]

    async def statistics(self, since_us: int, until_us: int, by: Sequence[str] = ()) -> list[pb.Statistics]:
        """How the jobs submitted in that time fared, grouped by some of `vo`, `ce`, `owner`, `state`."""
        request = pb.StatisticsRequest(since_us=since_us, until_us=until_us, by=by)
        return list((await self._stub.Statistics(request)).groups)

    async def usage(self, since_us: int, until_us: int, by: Sequence[str] = ()) -> list[pb.UsageSum]:
        """What the runs that ended in that time used, grouped by some of `accounting.GROUPS`."""
        return list((await self._stub.Usage(pb.UsageRequest(since_us=since_us, until_us=until_us, by=by))).groups)

    async def usage_records(self, since_us: int, until_us: int) -> AsyncIterator[pb.UsageRecord]:
        """Every usage record of that time, the oldest first."""
        token = ""
        while True:
            request = pb.UsageRecordsRequest(since_us=since_us, until_us=until_us, page_token=token)
            response = await self._stub.UsageRecords(request)
            for record in response.records:
                yield record
            token = response.next_page_token
            if not token:
                return

    async def reconcile(self, since_us: int, until_us: int) -> pb.ReconcileResponse:
        """Accounting held against bookkeeping; for administrators."""
        return await self._stub.Reconcile(pb.ReconcileRequest(since_us=since_us, until_us=until_us))

    async def watch(self, job_ids: Sequence[str]) -> AsyncIterator[list[pb.JobSummary]]:
        """The present state of the jobs (children of parents), then each change, put together."""
        async for response in self._stub.Watch(pb.WatchRequest(job_ids=job_ids)):
            yield list(response.jobs)
