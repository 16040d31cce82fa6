"""Files of jobs as they grow: pulled from the worker piece by piece, as fast as the reader takes them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb

from agents.gatekeeper import store as rows
from agents.gatekeeper import wire
from agents.gatekeeper.driver import Driver
from agents.gatekeeper.model import ON_WORKER, Job
from agents.gatekeeper.workers import WorkerPool
from fabric.errors import Exhausted, InvalidRequest, NotFound

if TYPE_CHECKING:
    from agents.gatekeeper.servicer import Sandbox

MAX_READERS = 64
MAX_READERS_PER_OWNER = 16
LOOK_S = 0.2
"""How often a job that has nothing to read is looked at."""
SIGN_OF_LIFE_S = 10.0


class Following:
    """All readers of one gatekeeper. Nothing is kept about a reader but that it is there."""

    def __init__(self, pool: WorkerPool, driver: Driver, store: Any, sandbox: Sandbox) -> None:
        self._pool, self._driver, self._store, self._sandbox = pool, driver, store, sandbox
        self._readers: Counter[str] = Counter()

    async def follow(self, job: Job, request: pb.FollowRequest) -> AsyncIterator[pb.FollowResponse]:
        """Of one attempt, until it has ended. Raises NotFound NO_STREAM, InvalidRequest, Exhausted."""
        if request.offset < 0:
            raise InvalidRequest("OFFSET_INVALID", f"an offset of {request.offset} is before the beginning of the file")
        with self._reader(job.owner):
            name = await self._file_name(job, request)
            offset = request.offset if request.attempt in (0, job.attempt) else 0
            all_read = False
            told: Any = None
            told_at = 0.0
            while (live := self._driver.machine.jobs.get(job.job_id)) is not None and live.attempt == job.attempt:
                data = b""
                if live.state in ON_WORKER and not all_read:
                    peeked = await self._pool.peek(live, name, offset)
                    if peeked is not None:
                        data, all_read = peeked.data, peeked.over and not peeked.data
                if data or live.state is not told or time.monotonic() - told_at > SIGN_OF_LIFE_S:
                    told, told_at = live.state, time.monotonic()
                    yield pb.FollowResponse(
                        attempt=job.attempt, state=wire.WIRE_STATE[live.state], offset=offset, data=data
                    )
                    offset += len(data)
                else:
                    await asyncio.sleep(LOOK_S)
            ended = await self._settled(job)
            last = pb.FollowResponse(attempt=job.attempt, ended=True)
            if ended is None:
                last.lost = not all_read
            else:
                last.state = wire.WIRE_STATE[ended.state]  # pyright: ignore[reportAttributeAccessIssue]
                last.lost = ended.started and not all_read
                async for data in self._kept(job.job_id, name, offset):
                    last.lost = False
                    yield pb.FollowResponse(attempt=job.attempt, state=last.state, offset=offset, data=data)
                    offset += len(data)
            last.offset = offset
            yield last

    @contextlib.contextmanager
    def _reader(self, owner: str) -> Iterator[None]:
        if self._readers.total() >= MAX_READERS or self._readers[owner] >= MAX_READERS_PER_OWNER:
            raise Exhausted(
                "FOLLOW_LIMIT",
                f"{self._readers[owner]} files of yours, {self._readers.total()} in all, are followed here already, of "
                f"{MAX_READERS_PER_OWNER} and {MAX_READERS}; end one, or try later",
                retry_after_s=10,
            )
        self._readers[owner] += 1
        try:
            yield
        finally:
            self._readers[owner] -= 1
            self._readers += Counter()  # owners without readers go

    async def _file_name(self, job: Job, request: pb.FollowRequest) -> str:
        if request.WhichOneof("file") == "name":
            wire.check_name(request.name, "file to follow")
            return request.name
        read = await self._store.read(lambda connection: rows.descriptions(connection, [job.job_id]))
        description = pb.JobDescription.FromString(read.get(job.job_id, b""))
        name = description.std_error if request.std_error else description.std_output
        if not name:
            stream = "StdError" if request.std_error else "StdOutput"
            raise NotFound("NO_STREAM", f"{job.job_id} has no {stream}: what it writes there goes nowhere; name a file")
        return name

    async def _settled(self, job: Job) -> Job | None:
        """Its row with how it ended; None if it is purged or another attempt has its place."""
        while True:
            row = (await self._store.read(lambda c: rows.find_jobs(c, [job.job_id]))).get(job.job_id)
            if row is None or row.attempt != job.attempt:
                return None
            if row.ended:
                return row
            await asyncio.sleep(LOOK_S)  # it has ended and is being written

    async def _kept(self, job_id: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """What the output sandbox has of a file from there on; one empty piece for nothing, none without that file."""
        files = await self._store.read(lambda connection: rows.output_list(connection, job_id))
        for kept, _, sha256, in_area in files:
            if kept != name:
                continue
            if in_area:
                async for piece in self._sandbox.pieces(sha256, offset):
                    yield piece
            else:
                data = await self._store.read(lambda connection: rows.output_data(connection, job_id, name))
                yield (data or b"")[offset:]
