"""Operators read and check an agent's audit log through this service, which every agent has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gridfabric.security.v1 import audit_pb2 as pb
from gridfabric.security.v1 import audit_pb2_grpc

from fabric import audit
from fabric.clock import from_us, utc_text
from fabric.errors import InvalidRequest
from fabric.rpc.rules import administrator
from fabric.rpc.server import RpcService

MAX_ABOUT = 100
MAX_ABOUT_LENGTH = 4096
MAX_ENTRIES = 10_000
"""Of one answer, if the caller gave no smaller limit."""
BATCH = 200
"""Entries that a thread looks up at once."""
TELL_S = 1.0
"""How far it is, this often."""
READERS = 2
"""Looks at a log at one moment; each may read hundreds of MB."""


class AuditTrail(audit_pb2_grpc.AuditTrailServicer):
    """Reads files only; what is written meanwhile is not disturbed."""

    def __init__(self, file: audit.AuditFile) -> None:
        self._file = file
        self._gate = asyncio.Semaphore(READERS)

    async def Search(self, request: pb.SearchAuditRequest, context: Any) -> AsyncIterator[pb.AuditEntry]:
        """See the proto."""
        about = [value for value in request.about if value]
        nothing = not about and not request.since_us
        if nothing or len(about) > MAX_ABOUT or max(map(len, about), default=0) > MAX_ABOUT_LENGTH:
            raise InvalidRequest(
                "SEARCH_INVALID",
                f"name 1 to {MAX_ABOUT} DNs, jobs, files or hosts, each below {MAX_ABOUT_LENGTH} bytes, or a time",
            )
        limit = min(request.limit, MAX_ENTRIES) if request.limit > 0 else MAX_ENTRIES
        try:
            since = utc_text(from_us(request.since_us)) if request.since_us else ""
            until = utc_text(from_us(request.until_us)) if request.until_us else ""
        except (OverflowError, ValueError) as error:
            raise InvalidRequest("SEARCH_INVALID", "a time of this search is none; give microseconds of UTC") from error
        async with self._gate:
            with self._file.reading(request.since_us / 1e6) as (_, descriptors):
                lines = audit.search(descriptors, about, since=since, until=until, limit=limit)

                def some() -> list[str]:
                    found: list[str] = []
                    for line in lines:
                        found.append(line)
                        if not line or len(found) == BATCH:
                            break
                    return found

                while found := await asyncio.to_thread(some):
                    for line in found:
                        yield pb.AuditEntry(json=line)

    async def Verify(self, request: pb.VerifyAuditRequest, context: Any) -> AsyncIterator[pb.VerifyAuditResponse]:
        """See the proto."""
        look = audit.Look()
        witnessed = audit.Head(request.witnessed, request.witnessed_hash) if request.witnessed else None

        def verify() -> audit.Verdict:
            with self._file.reading() as (head, descriptors):
                return audit.verify(descriptors, head, look, witnessed)

        async with self._gate:
            verifying = asyncio.ensure_future(asyncio.to_thread(verify))
            try:
                while not verifying.done():
                    await asyncio.wait([verifying], timeout=TELL_S)
                    yield pb.VerifyAuditResponse(read_bytes=look.read_bytes, total_bytes=look.total_bytes)
            finally:
                look.is_wanted = False  # the thread closes its files
        found = verifying.result()
        yield pb.VerifyAuditResponse(
            is_verdict=True,
            first=found.first,
            last=found.last,
            last_hash=found.last_hash,
            entries=found.entries,
            problems=found.problems,
            oldest_at=found.oldest_at,
        )


def audit_service(file: audit.AuditFile) -> RpcService:
    """The service for a server."""
    registration: Any = audit_pb2_grpc
    rules = {"Search": administrator, "Verify": administrator}
    return RpcService(AuditTrail(file), registration.add_AuditTrailServicer_to_server, rules)
