"""The store of a grid's only broker made anew after damage, see docs/workload.md, *A damaged database*.

The journal has what each job is, bookkeeping how far it has come, and the gatekeepers what bookkeeping was not told: a
job that bookkeeping takes for waiting is matched again only when every gatekeeper has said that it does not have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb_pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk_pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc as gk_grpc

from agents.broker import copies, machine
from agents.broker import store as rows
from agents.broker.copies import Copy
from agents.broker.journal import Journal
from agents.broker.model import JobState, LogEvent
from agents.broker.tables import LogLine
from fabric.errors import GridError, NotFound, Refused, Unauthenticated, Unavailable

if TYPE_CHECKING:
    import sqlalchemy as sa

    from agents.broker.core import BrokerCore
    from security.credentials import Credential

BATCH = 20
"""Submissions compared, or taken up again, in one step."""
ASKED_AT_ONCE = 16
"""Gatekeepers."""
IDS_PER_CALL = 1000
ANSWER_S = 20.0
AGAIN_S = 2.0

_AT_CE = (lb_pb.JOB_STATE_READY, lb_pb.JOB_STATE_SCHEDULED, lb_pb.JOB_STATE_RUNNING)
_UNFINISHED = (lb_pb.JOB_STATE_SUBMITTED, lb_pb.JOB_STATE_WAITING, *_AT_CE)
_UNPLACED = (JobState.BLOCKED, JobState.WAITING)


class Rebuild:
    """`prepare` before the broker is open, `run` after. Where nothing was lost, both are one count."""

    def __init__(self, core: BrokerCore, journal: Journal) -> None:
        self._core, self._journal = core, journal
        self._left: dict[str, list[str]] = {}
        """By owner: submissions that are still to be taken up."""
        self.done = 0
        """Submissions taken up since the start."""

    def require(self, owner: str) -> None:
        """Raises Unavailable BROKER_REBUILDING while jobs of this owner are not back."""
        if owner in self._left:
            raise Unavailable(
                "BROKER_REBUILDING",
                f"the database of {self._core.context.settings.name} was damaged and is made anew; "
                f"{len(self._left[owner])} submissions of {owner} are not back yet; try again soon",
                retry_after_s=2,
            )

    async def prepare(self) -> None:
        """Find what the store lacks, and what the journal lacks."""
        core = self._core
        if await self._journal.count() == await core.store.read(copies.count_submissions):
            return
        here = await core.store.read(copies.submission_ids)
        known = await self._journal.owners()
        for job_id, owner in known.items():
            if job_id not in here:
                self._left.setdefault(owner, []).append(job_id)
        missing = [key for job_id, key in here.items() if job_id not in known]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            found = await core.store.read(lambda connection, part=part: copies.whole(connection, part))
            await self._journal.add([item.submission for item in found])
        for job_ids in self._left.values():  # files that jobs will need are not strays
            for start in range(0, len(job_ids), BATCH):
                batch = await self._journal.load(job_ids[start : start + BATCH])
                await core.store.write(lambda connection, batch=batch: self._note_files(connection, batch))

    def _note_files(self, connection: sa.Connection, batch: Sequence[Copy]) -> None:
        core = self._core
        for item in batch:
            new = item.submission
            for file in new.files:
                if core.sandbox.has(file.sha256):
                    rows.add_file(connection, new.owner, file.sha256, file.size_bytes, core.now_us)

    async def run(self) -> None:
        """Until every submission is back."""
        core = self._core
        if {"broker", "submissions"} <= core.context.set_aside.keys():
            core.run(self._tell_what_is_lost(), "what is lost")
        while self._left:
            for owner in list(self._left):
                try:
                    await self._take_up(owner)
                except GridError as error:
                    waits = f"{sum(map(len, self._left.values()))} submissions are still to be taken up again"
                    core.log.warning("rebuild.waits", owner=owner, reason=error.reason, sentence=error.sentence)
                    core.context.problem("rebuild", f"its database was damaged; {waits}: {error.sentence}")
            if self._left:
                await asyncio.sleep(AGAIN_S)
        core.context.solved("rebuild")
        if self.done:
            core.log.audit("broker.rebuilt", submissions=self.done)

    async def _take_up(self, owner: str) -> None:
        left = self._left[owner]
        while left:
            batch = await self._journal.load(left[:BATCH])
            known = await self._core.succession.known(item.submission.parent_id for item in batch)
            unplaced = [
                job_id
                for item in batch
                for job_id in item.submission.job_ids
                if job_id not in known or known[job_id].state in _UNPLACED
            ]
            registered = frozenset(known)
            for job_id, there in (await self._places(owner, unplaced)).items():
                if job_id not in known or there.attempt >= known[job_id].attempt:
                    known[job_id] = there
            name = self._core.context.settings.name
            told = "taken up again: the broker's database was damaged"
            await self._core.succession.adopt(name, batch, known, registered, told)
            self.done += len(batch)
            del left[:BATCH]
        del self._left[owner]

    async def _tell_what_is_lost(self) -> None:
        """Both files were damaged: what bookkeeping has of unfinished jobs is all that is left of them."""
        core = self._core
        while True:
            try:
                left = [job for state in _UNFINISHED for job in await core.succession.in_state(state)]
                break
            except GridError as error:
                core.log.warning("rebuild.waits", reason=error.reason, sentence=error.sentence)
                await asyncio.sleep(AGAIN_S)
        lost = sum([await self._lost(job) for job in left])
        core.log.audit("broker.not_rebuilt", jobs=lost)
        if lost:
            core.context.problem(
                "rebuild", f"both of its databases were damaged; {lost} unfinished jobs are lost, see their histories"
            )

    async def _lost(self, job: lb_pb.JobSummary) -> int:
        core = self._core
        if await core.store.read(lambda connection: rows.load_jobs(connection, [job.job_id])):
            return 0  # submitted since
        text = f"the databases of {core.context.settings.name} were damaged and what this job is cannot be made anew"
        if job.ce and job.state in _AT_CE:
            event = LogEvent("NOTE", job.attempt, {"text": f"{text}; at {job.ce} it goes on, and nobody follows it"})
        else:
            event = LogEvent(
                "ABORTED", job.attempt, {"reason": "BROKER_STORE_LOST", "text": f"{text}; submit it again"}
            )
        line = LogLine(job.job_id, core.now_us, event)
        await core.store.write(lambda connection: core.sink(connection, [line]))
        return 1

    async def _places(self, owner: str, job_ids: Sequence[str]) -> dict[str, machine.Job]:
        """Which of these jobs gatekeepers have, as jobs that are there. Raises if one could not be asked."""
        core = self._core
        if not job_ids:
            return {}
        try:
            credential = core.credential(owner)
        except (NotFound, Unauthenticated):
            return {}  # without a proxy nothing can be sent either: these jobs will be given up
        if not core.ces:
            raise Unavailable("CES_UNKNOWN", "no CE is known yet, so none can be asked which jobs it has")
        ces = {ce.gatekeeper: ce.id for ce in core.ces.values() if ce.port}
        limit = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(gatekeeper: str) -> Mapping[str, int]:
            async with limit:
                return await self._attempts(gatekeeper, credential, job_ids)

        found: dict[str, machine.Job] = {}
        answers = await asyncio.gather(*map(ask, ces))
        for (gatekeeper, ce), attempts in zip(ces.items(), answers, strict=True):
            for job_id, attempt in attempts.items():
                if job_id not in found or found[job_id].attempt < attempt:
                    found[job_id] = machine.Job(JobState.SCHEDULED, attempt, ce, gatekeeper)
        return found

    async def _attempts(self, gatekeeper: str, credential: Credential, job_ids: Sequence[str]) -> dict[str, int]:
        """By job that this gatekeeper has: the attempt."""
        host, _, port = gatekeeper.rpartition(":")
        found: dict[str, int] = {}
        try:
            channel = await self._core.context.channels.get(host, int(port), credential=credential)
            stub = gk_grpc.GatekeeperStub(channel)
            for start in range(0, len(job_ids), IDS_PER_CALL):
                request = gk_pb.StatusRequest(job_ids=job_ids[start : start + IDS_PER_CALL])
                answer = await stub.Status(request, timeout=ANSWER_S)
                found.update({job.job_id: job.attempt for job in answer.jobs})
        except (Refused, Unauthenticated) as error:
            if "peer" in error.facts:  # it is the gatekeeper that is not to be trusted
                raise
            return {}  # who is not let in has no jobs there
        return found
