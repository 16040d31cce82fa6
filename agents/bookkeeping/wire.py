"""Bookkeeping model to and from protobuf; the only file with both."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as pb

from agents.bookkeeping import accounting
from agents.bookkeeping.accounting import Reconciliation, UsageQuery, UsageRecord, UsageSum
from agents.bookkeeping.machine import parent_state
from agents.bookkeeping.model import (
    GROUPS,
    MAX_EVENTS,
    MAX_FIELDS_BYTES,
    MAX_JOB_ID_LENGTH,
    MAX_PAGE_SIZE,
    Event,
    EventType,
    JobQuery,
    JobRecord,
    JobState,
    Statistics,
    StatisticsQuery,
)
from fabric.errors import InvalidRequest

_TYPES = {int(item): item for item in EventType}
_AT_MOST_US = 1 << 62


def events_from_wire(request: pb.RecordRequest) -> list[Event]:
    """The events of a request. Raises InvalidRequest EVENT_INVALID naming the first that cannot be read."""
    if len(request.events) > MAX_EVENTS:
        raise InvalidRequest(
            "TOO_MANY_EVENTS", f"{len(request.events)} events in one call, at most {MAX_EVENTS}; send smaller batches"
        )
    found: list[Event] = []
    for item in request.events:
        kind = _TYPES.get(item.type)
        if (
            kind is None
            or not 0 < len(item.job_id) <= MAX_JOB_ID_LENGTH
            or not 0 < len(item.source) <= MAX_JOB_ID_LENGTH
            or item.sequence < 1
            or not 0 < item.at_us < _AT_MOST_US
            or not 0 <= item.attempt < 1_000_000
            or item.ByteSize() > MAX_FIELDS_BYTES
        ):
            raise InvalidRequest(
                "EVENT_INVALID",
                f"event {item.sequence} of {item.source[:80]!r} about job {item.job_id[:80]!r} cannot be read: "
                + _problem(item, kind),
            )
        found.append(Event(item.job_id, item.source, item.sequence, item.at_us, kind, item.attempt, dict(item.fields)))
    return found


def _problem(item: pb.Event, kind: EventType | None) -> str:
    if kind is None:
        return f"type {item.type} is unknown"
    if (
        not item.job_id
        or not item.source
        or len(item.job_id) > MAX_JOB_ID_LENGTH
        or len(item.source) > MAX_JOB_ID_LENGTH
    ):
        return "it needs a job id and a source, both short"
    if item.sequence < 1:
        return "its sequence must be 1 or more"
    if not 0 < item.at_us < _AT_MOST_US:
        return "its time is missing or absurd"
    if not 0 <= item.attempt < 1_000_000:
        return "its attempt is absurd"
    return f"it is larger than {MAX_FIELDS_BYTES} bytes"


def event_to_wire(event: Event) -> pb.Event:
    return pb.Event(
        job_id=event.job_id,
        source=event.source,
        sequence=event.sequence,
        at_us=event.at_us,
        type=int(event.type),  # pyright: ignore[reportArgumentType]
        attempt=event.attempt,
        fields=dict(event.fields),
    )


def summary_to_wire(record: JobRecord, children: Mapping[int, int] | None = None) -> pb.JobSummary:
    """A job; with ``children`` (state: how many) its state is the children's."""
    state = record.state
    if children and record.state not in (JobState.CLEARED, JobState.CANCELLED, JobState.ABORTED):
        state = int(parent_state(children))
    summary = pb.JobSummary(
        job_id=record.job_id,
        owner=record.owner,
        vo=record.vo,
        state=state,  # pyright: ignore[reportArgumentType]
        ce=record.ce,
        worker=record.worker,
        attempt=record.attempt,
        exit_code=record.exit_code,
        reason=record.reason,
        submitted_at_us=record.submitted_at_us,
        changed_at_us=record.changed_at_us,
        parent=record.parent,
        name=record.name,
        wall_s=record.wall_s,
        cpu_s=record.cpu_s,
    )
    for key, count in (children or {}).items():
        summary.children[JobState(key).name] = count
    return summary


def query_from_wire(request: pb.QueryRequest, default_page_size: int) -> JobQuery:
    """Raises InvalidRequest QUERY_INVALID."""
    if not 0 <= request.page_size <= MAX_PAGE_SIZE:
        raise InvalidRequest("QUERY_INVALID", f"page_size is {request.page_size}, at most {MAX_PAGE_SIZE}")
    if request.state not in {int(state) for state in JobState}:
        raise InvalidRequest("QUERY_INVALID", f"state {request.state} is unknown")
    return JobQuery(
        job_ids=tuple(request.job_ids),
        owner=request.owner,
        state=int(request.state),
        ce=request.ce,
        since_us=request.since_us,
        until_us=request.until_us,
        vo=request.vo,
        include_parents=request.include_parents,
        page_size=request.page_size or default_page_size,
        after=page_from_token(request.page_token),
    )


def page_token(after: int) -> str:
    return base64.urlsafe_b64encode(after.to_bytes(8, "big")).decode() if after else ""


def page_from_token(token: str) -> int:
    if not token:
        return 0
    try:
        raw = base64.urlsafe_b64decode(token.encode())
    except (binascii.Error, ValueError, UnicodeError):
        raw = b""
    if len(raw) != 8 or raw[0] & 0x80:
        raise InvalidRequest("QUERY_INVALID", "the page token is not one that was given out; begin again without it")
    return int.from_bytes(raw, "big")


def query_response(
    records: Iterable[JobRecord], children: Mapping[str, Mapping[int, int]], after: int
) -> pb.QueryResponse:
    return pb.QueryResponse(
        jobs=[summary_to_wire(record, children.get(record.job_id)) for record in records],
        next_page_token=page_token(after),
    )


def statistics_query(request: pb.StatisticsRequest) -> StatisticsQuery:
    """Raises InvalidRequest QUERY_INVALID."""
    return StatisticsQuery(*_time(request.since_us, request.until_us), _groups(request.by, GROUPS))


def _groups(given: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    by = tuple(dict.fromkeys(given))
    if unknown := [name for name in by if name not in known]:
        raise InvalidRequest(
            "QUERY_INVALID", f"jobs cannot be grouped by {unknown[0][:80]!r}, only by {', '.join(known)}"
        )
    return by


def _time(since_us: int, until_us: int) -> tuple[int, int]:
    if not 0 < since_us < until_us < _AT_MOST_US:
        raise InvalidRequest("QUERY_INVALID", "name a time: since before until")
    return since_us, until_us


def statistics_response(groups: Iterable[Statistics], by: tuple[str, ...]) -> pb.StatisticsResponse:
    return pb.StatisticsResponse(
        groups=[
            pb.Statistics(
                group={
                    name: JobState(int(value)).name if name == "state" else str(value)
                    for name, value in zip(by, one.group, strict=True)
                },
                jobs=one.jobs,
                ended=one.ended,
                succeeded=one.succeeded,
                resubmitted=one.resubmitted,
                started=one.started,
                wait_mean_s=one.wait_mean_s,
                wait_median_s=one.wait_median_s,
                wait_p90_s=one.wait_p90_s,
                wait_max_s=one.wait_max_s,
                wall_s=one.wall_s,
                cpu_s=one.cpu_s,
            )
            for one in groups
        ]
    )


def usage_query(request: pb.UsageRequest | pb.UsageRecordsRequest | pb.ReconcileRequest) -> UsageQuery:
    """Raises InvalidRequest QUERY_INVALID."""
    by = _groups(request.by, accounting.GROUPS) if isinstance(request, pb.UsageRequest) else ()
    return UsageQuery(*_time(request.since_us, request.until_us), by)


def usage_response(sums: Iterable[UsageSum], by: tuple[str, ...]) -> pb.UsageResponse:
    return pb.UsageResponse(
        groups=[
            pb.UsageSum(
                group=dict(zip(by, one.group, strict=True)),
                runs=one.runs,
                succeeded=one.succeeded,
                wall_s=one.wall_s,
                cpu_s=one.cpu_s,
                core_s=one.core_s,
            )
            for one in sums
        ]
    )


def usage_records_response(records: Iterable[UsageRecord], token: str) -> pb.UsageRecordsResponse:
    return pb.UsageRecordsResponse(records=[pb.UsageRecord(**asdict(one)) for one in records], next_page_token=token)


def reconcile_response(found: Reconciliation) -> pb.ReconcileResponse:
    return pb.ReconcileResponse(**asdict(found))
