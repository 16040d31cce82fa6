"""The gRPC side: who may publish under which name, and streams to followers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from gridfabric.information.v1 import information_pb2 as pb
from gridfabric.information.v1 import information_pb2_grpc

from agents.information import wire
from agents.information.queries import HistoryQueries
from agents.information.service import InformationService
from fabric.clock import Clock
from fabric.errors import Conflict, InvalidRequest, NotFound, Refused
from fabric.ldap import Scope, parse_dn
from fabric.ldap.filters import ANY_ENTRY
from fabric.logs import Logger
from fabric.rpc.peer import Peer, current_peer

GATHER_S = 0.1
"""Least time between two changes that a follower is sent: the first goes at once, what follows soon goes together."""
ANSWERS = 2.5
"""Answers to signs of life in the time that a producer waits for one: as long as its entries stand."""


class InformationServicer(information_pb2_grpc.InformationServicer):
    """See information.proto."""

    def __init__(
        self,
        service: InformationService,
        *,
        heartbeat_s: float,
        queries: HistoryQueries | None = None,
        clock: Clock,
        log: Logger,
        peer_of: Callable[[object], Peer] = current_peer,
    ) -> None:
        self._service = service
        self._heartbeat_s = heartbeat_s
        self._queries = queries
        self._clock = clock
        self._log = log
        self._peer_of = peer_of

    async def Publish(
        self, request_iterator: AsyncIterator[pb.PublishRequest], context: object
    ) -> AsyncIterator[pb.PublishResponse]:
        """A producer's stream."""
        peer = self._peer_of(context)
        stream, opened = None, ""
        was_news, answered_at = True, 0.0
        async for request in request_iterator:
            # Asked for each message: refusing before one is read would race with the client's writing.
            name, site = self._may_publish(peer, request.producer)
            if request.sequence <= 0:
                raise InvalidRequest("BAD_SEQUENCE", f"{name} sent sequence {request.sequence}; sequences start at 1")
            if stream is None:
                opened, stream = name, self._service.open_stream(name, site)
            elif name != opened:
                raise Refused(
                    "OTHER_PRODUCER",
                    f"{peer.subject} publishes as {opened} on this stream; {name} needs one of its own",
                    subject=peer.subject,
                    producer=name,
                )
            elif not self._service.is_current_stream(name, stream):
                raise Conflict("NEWER_STREAM", f"{name} publishes on a newer stream; this one is closed", producer=name)
            publication, unreadable = wire.publication(request)
            for rejection in unreadable[:10]:
                self._log.warning("entry.rejected", producer=name, dn=rejection.dn, reason=rejection.reason)
            outcome = await self._service.publish(name, stream, publication)
            is_news = bool(request.snapshot or request.changed or request.removed_dns or request.withdraw)
            now = self._clock.monotonic()
            is_due = is_news or was_news or outcome.resend_snapshot
            was_news = is_news
            if not is_due and now - answered_at < publication.valid_for_s / ANSWERS:
                continue  # not each sign of life is answered
            answered_at = now
            yield pb.PublishResponse(
                acknowledged_sequence=outcome.acknowledged,
                resend_snapshot=outcome.resend_snapshot,
                resend_dns=map(str, outcome.unknown),
            )

    def _may_publish(self, peer: Peer, wanted: str) -> tuple[str, str]:
        """The name to publish under, and the site that the entries are of. Raises Refused."""
        machine = self._service.machine
        if not peer.agent_kind or not peer.agent_site or not peer.agent_name:
            raise Refused(
                "SERVICE_REQUIRED", f"{peer.subject} may not publish: only services of a site do", subject=peer.subject
            )
        if machine.level == "site":
            if peer.agent_site != machine.site:
                raise Refused(
                    "OTHER_SITE",
                    f"{peer.subject} of site {peer.agent_site} may not publish under site {machine.site}; "
                    "publish at its own site's information server",
                    subject=peer.subject,
                    site=machine.site,
                )
            name, site = peer.agent_name, peer.agent_site
        elif peer.agent_kind != "information":
            raise Refused(
                "SERVICE_REQUIRED",
                f"{peer.subject} may not publish at the {machine.level} level: only information servers do; "
                f"publish at the information server of {peer.agent_site}",
                subject=peer.subject,
            )
        else:
            is_region = peer.agent_name in machine.regions
            name = site = peer.agent_name if is_region else peer.agent_site
            way = machine.ways.get(name)
            if way is not None or (name not in machine.producers and (is_region or machine.level == "region")):
                raise Refused(
                    "OTHER_WAY",
                    f"{peer.subject} may not publish at {machine.name}: {name} publishes at {way or 'another server'}",
                    subject=peer.subject,
                )
            if is_region and machine.ways.get(wanted) == name:
                name = site = wanted
        if wanted != name:
            raise Refused(
                "OTHER_PRODUCER",
                f"{peer.subject} may publish as {name} only, and wanted to publish as {wanted[:200]!r}"
                + (", which is not of its region" if name in machine.regions else ""),
                subject=peer.subject,
                producer=wanted[:200],
            )
        return name, site

    async def Subscribe(self, request: pb.SubscribeRequest, context: object) -> AsyncIterator[pb.SubscribeResponse]:
        """A follower's stream."""
        feed, tree = self._service.feed, self._service.machine.tree
        subscription, follower = feed.open(request.object_classes), wire.Follower()
        try:
            everything = tree.search(parse_dn(""), Scope.SUBTREE, ANY_ENTRY)
            entries = [entry for entry in everything if entry is not None and subscription.wants(entry)]
            for message in follower.snapshot_messages(subscription.sequence, entries):
                yield message
            while True:
                change = await subscription.next(self._heartbeat_s)
                for message in follower.change_messages(subscription.sequence, change):
                    yield message
                if change:
                    await asyncio.sleep(GATHER_S)
        finally:
            feed.close(subscription)

    async def Query(self, request: pb.QueryRequest, context: object) -> AsyncIterator[pb.QueryResponse]:
        """A query of the history."""
        if self._queries is None:
            raise NotFound(
                "NO_HISTORY",
                f"the information server of {self._service.machine.site} keeps no history; ask a top server that does",
                site=self._service.machine.site,
            )
        subject = str(self._peer_of(context).identity)
        async for message in self._queries.answer(request.sql, subject, continuous=request.continuous):
            yield message
