"""Between the model and protobuf."""

from __future__ import annotations

from collections.abc import Mapping

from gridfabric.transfer.v1 import transfer_pb2 as pb

from agents.transfer.links import Link
from agents.transfer.model import FileRecord, Job, Subscription
from agents.transfer.store import Outcome
from agents.transfer.subscriptions import Lag


def job_to_wire(job: Job, destination: str, files: Mapping[str, int], size_bytes: int, moved_bytes: int) -> pb.Job:
    """A job to the storage element of this name, with what its files come to."""
    return pb.Job(
        job_id=job.job_id, owner=job.owner, vo=job.vo, destination=destination, priority=job.priority,
        submitted_at_us=job.submitted_at_us, files=dict(files), size_bytes=size_bytes, moved_bytes=moved_bytes,
    )  # fmt: skip


def file_to_wire(file: FileRecord, source: str) -> pb.File:
    """A file of a job, from the storage element of this name."""
    return pb.File(
        lfn=file.lfn, guid=file.guid, size_bytes=file.size_bytes, state=file.state.value, attempt=file.attempt,
        source=source, surl=file.surl, reason=file.reason, sentence=file.sentence, moved_bytes=file.moved_bytes,
        submitted_at_us=file.submitted_at_us, ended_at_us=file.ended_at_us,
    )  # fmt: skip


def outcome_to_wire(row: Outcome) -> pb.ReportRow:
    """One line of a report."""
    return pb.ReportRow(
        source=row.source, destination=row.destination, state=row.state, reason=row.reason, files=row.files,
        size_bytes=row.size_bytes, attempts=row.attempts,
    )  # fmt: skip


def channel_to_wire(link: Link, source: str, destination: str) -> pb.Channel:
    """A link under the names of its storage elements."""
    return pb.Channel(
        source=source, destination=destination, active=link.active, queued=len(link.waiting),
        limit=link.optimiser.limit, bytes_per_s=link.optimiser.bytes_per_s, files_per_s=link.optimiser.files_per_s,
        cap_bytes_per_s=int(link.cap.bytes_per_s) if link.cap is not None else 0, finished=link.finished,
        failed=link.failed, why=link.optimiser.why,
    )  # fmt: skip


def subscription_to_wire(one: Subscription, lag: Lag | None) -> pb.Subscription:
    """A subscription, with how far it is behind if that is known."""
    found = pb.Subscription(
        id=one.subscription_id, directory=one.directory, at=one.at, copies=one.copies, owner=one.owner, vo=one.vo,
        created_at_us=one.created_at_us,
    )  # fmt: skip
    if lag is not None:
        found.files, found.queued, found.lag_s, found.cause = lag.files, lag.queued, lag.lag_s, lag.cause
    return found
