"""The methods of the Broker service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.broker.v1 import broker_pb2_grpc as pb_grpc

from agents.broker import copies, machine, why, wire
from agents.broker import store as rows
from agents.broker.core import BrokerCore
from agents.broker.jdl import normalise
from agents.broker.matching import CompiledCluster, close_files, explain
from agents.broker.model import (
    ENDED,
    Cluster,
    ComputingElement,
    JobState,
    JobTemplate,
    JobType,
    MatchOutcome,
    SandboxFile,
)
from agents.broker.quotas import SubmissionRate
from agents.broker.sandbox import checked_hash, file_too_large
from agents.broker.succession import read_copies
from agents.broker.tables import Change, JobRow
from fabric.errors import Conflict, Exhausted, InvalidRequest, NotFound, Refused, from_security
from fabric.ids import unique_id
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import administrator, full_user, services, user
from security.voms import is_within

RULES = {
    "PutSandbox": full_user,
    "MissingSandbox": full_user,
    "Submit": full_user,
    "Resubmit": full_user,
    "Cancel": full_user,
    "Clear": full_user,
    "ListMatch": user,
    "Locate": user,
    "Keep": services("broker"),
    "TakeOver": administrator,
}
MAX_IDS = 20_000
"""Job ids in one call."""
MAX_FILES = 20_000
MAX_TOLD = 50
"""Clusters of which one call is told why their jobs wait."""
LARGE_JDL = 20_000
"""Characters from which on a JDL is parsed in a thread."""
IDS_PER_STEP = 2000


class BrokerServicer(pb_grpc.BrokerServicer):
    """Decode, ask the core, encode."""

    def __init__(self, core: BrokerCore, job_id_prefix: str, registered: Callable[[int], Awaitable[None]]) -> None:
        self._core = core
        self._prefix = job_id_prefix
        self._registered = registered
        self._uploads = asyncio.Semaphore(16)
        self._rate = SubmissionRate(core.options.submissions_per_s)

    # -- sandbox -------------------------------------------------------------------------------------------------------

    async def MissingSandbox(self, request: pb.MissingSandboxRequest, context: Any) -> pb.MissingSandboxResponse:
        if len(request.sha256) > MAX_FILES:
            raise InvalidRequest("TOO_MANY_FILES", f"at most {MAX_FILES} files in one question")
        owner = current_peer().subject
        asked = list(dict.fromkeys(checked_hash(item) for item in request.sha256))
        core = self._core
        held = await core.store.write(lambda connection: rows.held_files(connection, owner, asked, core.now_us))
        return pb.MissingSandboxResponse(
            sha256=[item for item in asked if item not in held or not core.sandbox.has(item)]
        )

    async def PutSandbox(
        self, request_iterator: AsyncIterator[pb.PutSandboxRequest], context: Any
    ) -> pb.PutSandboxResponse:
        core = self._core
        owner = current_peer().subject
        async with self._uploads:
            upload = None
            sha256, size_bytes = "", 0
            try:
                async for message in request_iterator:
                    if upload is None:
                        sha256, size_bytes = message.sha256, message.size_bytes
                        await self._check_kept(owner, size_bytes)
                        upload = core.sandbox.begin(sha256, size_bytes)
                    if message.data:
                        await asyncio.to_thread(upload.write, message.data)
                if upload is None:
                    raise InvalidRequest("SANDBOX_EMPTY", "the upload had no message; send the checksum and size first")
                await asyncio.to_thread(upload.adopt)
            except BaseException:
                if upload is not None:
                    upload.discard()
                raise
        await core.store.write(lambda connection: rows.add_file(connection, owner, sha256, size_bytes, core.now_us))
        return pb.PutSandboxResponse()

    async def _check_kept(self, owner: str, size_bytes: int) -> None:
        most = self._core.options.max_kept_sandbox_bytes
        kept = await self._core.store.read(lambda connection: rows.kept_bytes(connection, owner))
        if kept + size_bytes > most:
            raise Exhausted(
                "SANDBOX_LIMIT_OWNER",
                f"{owner} has {kept} bytes of input sandbox files here, at most {most}; those of ended jobs go an hour "
                "after their last use; put large files on a storage element",
                retry_after_s=60,
            )

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        peer = current_peer()
        core = self._core
        if not 0 < len(request.submission_id) <= 128:
            raise InvalidRequest("SUBMISSION_ID_MISSING", "give a random submission id of at most 128 characters")
        if len(request.input_sandbox) > MAX_FILES:
            raise InvalidRequest("TOO_MANY_FILES", f"at most {MAX_FILES} input sandbox files in one submission")
        core.require_open()
        self._rate.take(peer.subject, core.now_s)
        core.credential(peer.subject)  # refuses who has delegated nothing
        template = await _parse(request.jdl, request.node_files)
        return await self._accept(peer, request.submission_id, request.jdl, template, wire.sandbox_files(request))

    async def Resubmit(self, request: pb.ResubmitRequest, context: Any) -> pb.SubmitResponse:
        peer = current_peer()
        core = self._core
        if not 0 < len(request.submission_id) <= 128:
            raise InvalidRequest("SUBMISSION_ID_MISSING", "give a random submission id of at most 128 characters")
        core.require_open()
        self._rate.take(peer.subject, core.now_s)
        core.credential(peer.subject)  # refuses who has delegated nothing
        shown = request.job_id[:120]
        rest = await core.store.read(lambda connection: rows.rest_of(connection, peer.subject, request.job_id))
        if rest is None:
            raise NotFound(
                "JOB_UNKNOWN", f"{peer.subject} has submitted no {shown!r} here; name what grid job submit printed"
            )
        if rest.unfinished:
            raise Conflict(
                "JOB_NOT_ENDED", f"{rest.unfinished} jobs of {shown} are under way; wait for them, or cancel them"
            )
        if not rest.template.descriptions:
            raise Conflict("NOTHING_TO_RESUBMIT", f"every job of {shown} has ended well")
        return await self._accept(peer, request.submission_id, rest.jdl, rest.template, rest.files)

    async def _accept(
        self, peer: Peer, submission_id: str, jdl: str, template: JobTemplate, files: Mapping[str, SandboxFile]
    ) -> pb.SubmitResponse:
        """Check, and keep."""
        core = self._core
        vo = self._vo(template, peer)
        for item in template.descriptions:
            if item.expires_at_s and item.expires_at_s * 1_000_000 <= core.now_us:
                raise InvalidRequest("JOB_EXPIRED", "ExpiryTime has passed; give a time to come, or leave it out")
            core.renewals.server_of(item.extra)  # refuses a credential store that will not be used
        template = replace(template, descriptions=tuple(replace(item, vo=vo) for item in template.descriptions))
        used = self._check_sandbox(template, files)
        await self._check_held(peer.subject, used)
        await self._check_limits(peer.subject, vo, len(template))
        job_ids = tuple(self._prefix + unique_id() for _ in range(len(template)))
        parent = job_ids[0] if template.type is JobType.NORMAL else self._prefix + unique_id()
        done = await core.submit(
            rows.Submission(
                peer.subject, submission_id, jdl, vo, template, used, parent, job_ids, core.now_us, _fqans_in(vo, peer)
            )
        )
        core.log.audit_each(
            "jobs.submitted",
            "children",
            list(done.children),
            **peer.trail,
            vo=vo,
            job_id=done.job_id,
            jobs=len(template),
            again=not done.changes,
        )
        await asyncio.gather(self._registered(len(template)), core.succession.copied(peer.subject))
        return pb.SubmitResponse(job_id=done.job_id, children=done.children)

    def _vo(self, template: JobTemplate, peer: Peer) -> str:
        vos = self._core.context.vos.served
        named = {item.vo for item in template.descriptions if item.vo}
        if len(named) > 1:
            raise InvalidRequest("VO_AMBIGUOUS", f"the nodes name several VOs ({', '.join(sorted(named))}); name one")
        vo = next(iter(named), "") or peer.vo or (vos[0] if vos else "")
        if (refusal := self._core.context.vos.refusal(vo)) is not None:
            raise from_security(refusal)
        if vos and vo not in vos:
            raise InvalidRequest("VO_UNKNOWN", f"this broker serves {', '.join(vos)}, not the VO {vo!r}", vo=vo)
        if peer.vo and vo != peer.vo:
            raise Refused("VO_NOT_MEMBER", f"{peer.subject} is a member of {peer.vo}, not of {vo}", vo=vo)
        return vo

    def _check_sandbox(self, template: JobTemplate, files: Mapping[str, SandboxFile]) -> tuple[SandboxFile, ...]:
        """Every job finds its files, within the limits. Files that no job names are left out."""
        options = self._core.options
        used: dict[str, SandboxFile] = {}
        alike = not any("input_sandbox" in item.marked() for item in template.descriptions)
        for description in template.descriptions if alike else template.jobs():
            total = 0
            for path in description.input_sandbox:
                file = files.get(path)
                if file is None:
                    raise InvalidRequest(
                        "SANDBOX_FILE_MISSING",
                        f"the JDL names {path!r} in InputSandbox, and the submission does not have it; upload it",
                        name=path,
                    )
                if path not in used:
                    checked_hash(file.sha256)
                    if file.size_bytes > options.max_file_bytes:
                        raise file_too_large(path, file.size_bytes, options.max_file_bytes)
                    used[path] = file
                total += file.size_bytes
            if total > options.max_sandbox_bytes:
                raise Exhausted(
                    "SANDBOX_TOO_LARGE",
                    f"the input sandbox of one job has {total} bytes, at most {options.max_sandbox_bytes} are taken; "
                    "put large files on a storage element and name them in InputData",
                    size_bytes=total,
                    limit_bytes=options.max_sandbox_bytes,
                )
        return tuple(used.values())

    async def _check_held(self, owner: str, files: Sequence[SandboxFile]) -> None:
        if not files:
            return
        core = self._core
        hashes = list({item.sha256 for item in files})
        held = await core.store.write(lambda connection: rows.held_files(connection, owner, hashes, core.now_us))
        for file in files:
            path = core.sandbox.path(file.sha256)
            if file.sha256 not in held or not path.is_file():
                raise Conflict(
                    "SANDBOX_NOT_UPLOADED",
                    f"the input sandbox file {file.name!r} (sha256 {file.sha256}) is not here; upload it first",
                    name=file.name,
                    sha256=file.sha256,
                )
            if path.stat().st_size != file.size_bytes:
                raise InvalidRequest(
                    "SANDBOX_SIZE_MISMATCH",
                    f"the input sandbox file {file.name!r} has {path.stat().st_size} bytes, not {file.size_bytes}",
                    name=file.name,
                )

    async def _check_limits(self, owner: str, vo: str, count: int) -> None:
        options = self._core.options
        owners = self._core.board.owners
        mine, everyone = owners.get(owner, 0), sum(owners.values())
        if mine + count > options.max_jobs_per_owner:
            raise Exhausted(
                "JOB_LIMIT_OWNER",
                f"{owner} has {mine} unfinished jobs here, at most {options.max_jobs_per_owner}; wait for some to end",
                retry_after_s=30,
            )
        if everyone + count > options.max_jobs:
            raise Exhausted(
                "JOB_LIMIT",
                f"this broker holds {everyone} unfinished jobs and takes {options.max_jobs}; try again later",
                retry_after_s=30,
            )
        if everyone + count > options.max_jobs_per_vo:  # else no VO can have so many
            theirs = await self._core.store.read(lambda connection: rows.count_of_vo(connection, vo))
            if theirs + count > options.max_jobs_per_vo:
                raise Exhausted(
                    "JOB_LIMIT_VO",
                    f"the VO {vo} has {theirs} unfinished jobs here, at most {options.max_jobs_per_vo}; wait for some "
                    "to end",
                    retry_after_s=30,
                )

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        owner = current_peer().subject
        found = await self._own(request.job_ids, owner)
        core = self._core
        outcomes: dict[str, str] = {}
        for job_id, row in found.items():
            outcomes[job_id] = (
                "unknown" if row is None else ("already-ended" if row.job.state in ENDED else "cancelling")
            )
        asked = [job_id for job_id, outcome in outcomes.items() if outcome == "cancelling"]
        for start in range(0, len(asked), IDS_PER_STEP):
            ids = asked[start : start + IDS_PER_STEP]

            def change(connection: sa.Connection, ids: list[str] = ids) -> list[Change]:  # type: ignore[assignment]
                if core.succession.successor is not None:
                    copies.changed(connection, ids)
                steps = [(job_id, machine.CancelAsked()) for job_id in ids]
                return rows.step_ids(connection, steps, core.now_us, core.sink, owner=owner)

            await core.commit(change)
        if asked:
            if core.journal is not None:
                await core.journal.cancelled(asked, core.now_us)
            core.succession.changed()
            await core.succession.copied(owner)
            core.log.audit("jobs.cancel", peer=owner, jobs=len(asked), first=asked[0])
        return pb.CancelResponse(
            outcomes=[pb.CancelOutcome(job_id=job_id, outcome=outcome) for job_id, outcome in outcomes.items()]
        )

    async def _own(self, job_ids: Sequence[str], owner: str) -> dict[str, JobRow | None]:
        """Jobs by id, children for parents; None for unknown ids. Raises Refused JOB_NOT_YOURS."""
        self._core.require_open()
        if not 0 < len(job_ids) <= MAX_IDS:
            raise InvalidRequest("JOB_IDS_MISSING", f"name between 1 and {MAX_IDS} jobs")

        def read(connection: sa.Connection) -> dict[str, JobRow | None]:
            expanded = list(dict.fromkeys(rows.expand(connection, list(job_ids))))
            known = rows.load_jobs(connection, expanded)
            return {job_id: known.get(job_id) for job_id in expanded}

        found = await self._core.store.read(read)
        if self._core.rebuild is not None and None in found.values():
            self._core.rebuild.require(owner)
        for job_id, row in found.items():
            if row is not None and row.owner != owner:
                raise Refused(
                    "JOB_NOT_YOURS", f"{owner} may not do this with job {job_id}: it is {row.owner}'s", job_id=job_id
                )
        return found

    async def Locate(self, request: pb.LocateRequest, context: Any) -> pb.LocateResponse:
        found = await self._own(request.job_ids, current_peer().subject)
        told: dict[int, str] = {}
        return pb.LocateResponse(
            jobs=[wire.location_to_wire(row, self._waits_for(row, told)) for row in found.values() if row is not None]
        )

    def _waits_for(self, row: JobRow, told: dict[int, str]) -> str:
        """Why a job does not go on; `told`: by cluster, what was found for other jobs of this call."""
        core = self._core
        job = row.job
        if job.state is JobState.WAITING:
            if row.cluster not in told:
                told[row.cluster] = core.why_waits(row.cluster) if len(told) < MAX_TOLD else "ask for it alone"
            return told[row.cluster] + (f" (matched again after {job.reason})" if job.reason else "")
        if job.state is JobState.BLOCKED:
            return "the nodes of its DAG that it depends on have not ended yet"
        if job.state in ENDED:
            return ""
        trouble, ce = core.trouble_of(row.owner, job.gatekeeper), core.ces.get(job.ce)
        if trouble or job.state is not JobState.SCHEDULED or ce is None:
            return trouble
        return f"queued at the CE: {why.use_of(ce)}"

    async def Clear(self, request: pb.ClearRequest, context: Any) -> pb.ClearResponse:
        owner = current_peer().subject
        found = await self._own(request.job_ids, owner)
        core = self._core
        for job_id, row in found.items():
            if row is None:
                raise NotFound("JOB_UNKNOWN", f"the broker knows no job {job_id[:120]!r}; check the id", job_id=job_id)
            if row.job.state not in ENDED:
                raise Conflict(
                    "JOB_NOT_ENDED",
                    f"job {job_id} is {row.job.state.name}; fetch its output when it is DONE",
                    job_id=job_id,
                )
        done = [job_id for job_id, row in found.items() if row is not None and row.job.state is JobState.DONE]
        for start in range(0, len(done), IDS_PER_STEP):
            part = [(job_id, machine.OutputFetched()) for job_id in done[start : start + IDS_PER_STEP]]

            def change(connection: sa.Connection, part: list[tuple[str, machine.Event]] = part) -> list[Change]:  # type: ignore[assignment]
                return rows.step_ids(connection, part, core.now_us, core.sink, owner=owner)

            await core.commit(change)
        return pb.ClearResponse()

    async def Keep(self, request_iterator: AsyncIterator[pb.KeepRequest], context: Any) -> pb.KeepResponse:
        broker = current_peer().agent_name
        epoch, over, taken, unneeded = await read_copies(request_iterator)
        succession = self._core.succession
        over = await succession.keep(broker, epoch, over, taken, unneeded)
        return pb.KeepResponse(over=over, store=succession.store)

    async def TakeOver(self, request: pb.TakeOverRequest, context: Any) -> pb.TakeOverResponse:
        submissions, jobs = await self._core.succession.take_over(request.broker, force=request.force)
        return pb.TakeOverResponse(submissions=submissions, jobs=jobs)

    async def ListMatch(self, request: pb.ListMatchRequest, context: Any) -> pb.ListMatchResponse:
        peer = current_peer()
        template = await _parse(request.jdl, request.node_files)
        vo = self._vo(template, peer)
        description = next(template.jobs())
        compiled = CompiledCluster(Cluster.of(description, vo, peer.subject, _fqans_in(vo, peer)))
        ces, replicas = await self._core.compiled_for_question(compiled)

        def explain_all() -> list[tuple[MatchOutcome, ComputingElement]]:
            return [(explain(compiled, ce, close_files(compiled.cluster, ce.ce, replicas)), ce.ce) for ce in ces]

        outcomes = await asyncio.to_thread(explain_all)
        listed = self._core.blacklist.for_owner(peer.subject, self._core.now_s)
        outcomes = [
            (replace(outcome, explanation=listed[ce.id].sentence), ce)
            if outcome.matches and ce.id in listed
            else (outcome, ce)
            for outcome, ce in outcomes
        ]
        outcomes.sort(key=lambda item: (not item[0].matches, -item[0].rank, item[0].ce))
        return pb.ListMatchResponse(matches=[wire.match_to_wire(outcome, ce) for outcome, ce in outcomes])


def _fqans_in(vo: str, peer: Peer) -> tuple[str, ...]:
    return tuple(sorted({fqan for fqan in peer.fqans if is_within(fqan, f"/{vo}")}))


async def _parse(text: str, node_files: Mapping[str, str]) -> JobTemplate:
    files = dict(node_files)
    if len(text) + sum(map(len, files.values())) < LARGE_JDL:
        return normalise(text, files)
    return await asyncio.to_thread(normalise, text, files)
