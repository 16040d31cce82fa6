"""The methods of gridfabric.transfer.v1.Transfers: who asks, then the queue or the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from gridfabric.transfer.v1 import transfer_pb2 as pb
from gridfabric.transfer.v1 import transfer_pb2_grpc

from agents.transfer import store as rows
from agents.transfer import wire
from agents.transfer.core import TransferCore
from agents.transfer.machine import Canceled
from agents.transfer.model import (
    MAX_PRIORITY,
    MAX_SUBMITTED,
    PAGE,
    FileRecord,
    Job,
    Subscription,
    element_of,
    is_foreign,
)
from agents.transfer.subscriptions import Subscriptions
from fabric.clock import Clock, to_us
from fabric.errors import InvalidRequest, Refused
from fabric.ids import is_unique_id
from fabric.logs import Logger
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule, administrator, any_of, user
from fabric.store import Store

_readers = any_of(user, administrator)
RULES: dict[str, Rule] = {
    "Submit": user,
    "Status": _readers,
    "List": _readers,
    "Cancel": _readers,
    "Report": _readers,
    "Channels": _readers,
    "Subscribe": user,
    "Unsubscribe": _readers,
    "Subscriptions": _readers,
}
"""Transfers are their owner's; operators see and end everybody's."""


class TransferServicer(transfer_pb2_grpc.TransfersServicer):
    """Decode, feed or read, encode."""

    def __init__(
        self, core: TransferCore, subscriptions: Subscriptions, store: Store, *, clock: Clock, log: Logger
    ) -> None:
        self._core, self._subscriptions = core, subscriptions
        self._store, self._clock, self._log = store, clock, log

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        """See the proto."""
        peer = current_peer(context)
        names = list(dict.fromkeys(request.lfns))
        if not is_unique_id(request.job_id):
            raise InvalidRequest("JOB_ID_INVALID", "a transfer job has an id of 22 letters, digits, - or _")
        if not 0 < len(names) <= MAX_SUBMITTED:
            raise InvalidRequest(
                "TOO_MANY_FILES", f"submit between 1 and {MAX_SUBMITTED} files at once, not {len(names)}"
            )
        if abs(request.priority) > MAX_PRIORITY:
            raise InvalidRequest("PRIORITY_INVALID", f"a priority is between -{MAX_PRIORITY} and {MAX_PRIORITY}")
        if not peer.vo:
            raise Refused(
                "VO_REQUIRED", f"{peer.subject} is of no VO here, and files belong to VOs", subject=peer.subject
            )
        find = self._core.elements.find
        source = find(request.source) if request.source else ""
        job = Job(
            request.job_id, peer.subject, peer.vo, find(request.destination),
            element_of(source) if is_foreign(source) else source, request.priority, to_us(self._clock.now()),
        )  # fmt: skip
        accepted, refused = await self._core.submit(job, names)
        self._log.audit(
            "transfer.submitted", **peer.trail, job_id=job.job_id, vo=job.vo, destination=job.destination,
            files=accepted, refused=len(refused),
        )  # fmt: skip
        return pb.SubmitResponse(
            accepted=accepted,
            refused=[pb.RefusedFile(name=n, reason=e.reason, sentence=e.sentence) for n, e in refused.items()],
        )

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        """See the proto."""
        owner = _owner(current_peer(context))
        limit = min(request.page_size, PAGE) if request.page_size > 0 else PAGE
        name = self._core.elements.name

        def read(connection: sa.Connection) -> tuple[pb.Job, list[FileRecord]]:
            job = rows.require_job(connection, request.job_id, owner)
            summary = wire.job_to_wire(job, name(job.destination), *rows.counts(connection, job.job_id))
            return summary, rows.page(connection, job.job_id, request.after, limit)

        job, files = await self._store.read(read)
        return pb.StatusResponse(
            job=job,
            files=[wire.file_to_wire(now, name(now.source)) for now in map(self._now, files)],
            next=files[-1].number if len(files) == limit else 0,
        )

    def _now(self, file: FileRecord) -> FileRecord:
        """With what is not kept yet."""
        item = self._core.items.get(file.number)
        if item is None:
            return file
        return replace(file, state=item.transfer.state, source=item.transfer.source, moved_bytes=item.moved_bytes)

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:
        """See the proto."""
        owner, name = _owner(current_peer(context)), self._core.elements.name

        def read(connection: sa.Connection) -> list[pb.Job]:
            return [
                wire.job_to_wire(job, name(job.destination), *rows.counts(connection, job.job_id))
                for job in rows.jobs_of(connection, owner)
            ]

        return pb.ListResponse(jobs=await self._store.read(read))

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """See the proto."""
        peer = current_peer(context)
        job = await self._store.read(lambda connection: rows.require_job(connection, request.job_id, _owner(peer)))
        canceled = await self._core.cancel(job, Canceled("CANCELED", f"{peer.subject} canceled it"))
        self._log.audit("transfer.canceled", **peer.trail, job_id=job.job_id, owner=job.owner, files=canceled)
        return pb.CancelResponse(canceled=canceled)

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        """See the proto."""
        owner, name = _owner(current_peer(context)), self._core.elements.name
        found = await self._store.read(lambda connection: rows.outcomes(connection, owner, request.since_us))
        named = [row._replace(source=name(row.source), destination=name(row.destination)) for row in found]
        return pb.ReportResponse(rows=[wire.outcome_to_wire(row) for row in named])

    async def Channels(self, request: pb.ChannelsRequest, context: Any) -> pb.ChannelsResponse:
        """See the proto."""
        name = self._core.elements.name
        return pb.ChannelsResponse(
            channels=[
                wire.channel_to_wire(link, name(link.source), name(link.destination)) for link in self._core.links
            ]
        )

    async def Subscribe(self, request: pb.Subscription, context: Any) -> pb.Subscription:
        """See the proto."""
        peer = current_peer(context)
        if not is_unique_id(request.id):
            raise InvalidRequest("SUBSCRIPTION_INVALID", "a subscription has an id of 22 letters, digits, - or _")
        directory = request.directory.removeprefix("lfn:").rstrip("/")
        wanted = Subscription(
            request.id, peer.subject, peer.vo, directory, request.at, request.copies, to_us(self._clock.now())
        )
        await self._subscriptions.subscribe(wanted)
        self._log.audit(
            "transfer.subscribed", **peer.trail, subscription=wanted.subscription_id, directory=wanted.directory,
            at=wanted.at, copies=wanted.copies,
        )  # fmt: skip
        return wire.subscription_to_wire(wanted, None)

    async def Unsubscribe(self, request: pb.UnsubscribeRequest, context: Any) -> pb.UnsubscribeResponse:
        """See the proto."""
        peer = current_peer(context)
        await self._subscriptions.unsubscribe(request.id, _owner(peer))
        self._log.audit("transfer.unsubscribed", **peer.trail, subscription=request.id[:64])
        return pb.UnsubscribeResponse()

    async def Subscriptions(self, request: pb.SubscriptionsRequest, context: Any) -> pb.SubscriptionsResponse:
        """See the proto."""
        found = self._subscriptions.lags(_owner(current_peer(context)))
        return pb.SubscriptionsResponse(subscriptions=[wire.subscription_to_wire(one, lag) for one, lag in found])


def _owner(peer: Peer) -> str | None:
    """Whose transfers the caller may see; None: everybody's."""
    return None if peer.is_administrator else peer.subject
