"""Broker model to and from protobuf; the only file with both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb_pb
from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk_pb

from agents.broker import machine
from agents.broker.jdl import local_name
from agents.broker.model import ENDED, ComputingElement, JobDescription, JobState, MatchOutcome, SandboxFile
from agents.broker.tables import JobRow, LogLine
from fabric.errors import InvalidRequest
from fabric.glue13 import CeView
from fabric.outbox import OutboxItem

MAX_FIELD_LENGTH = 500
"""Characters of a field in an event."""
PAYLOAD_NOT_STARTED = frozenset({"PROLOGUE_FAILED", "EXEC_FAILED"})
"""Failures of a job that had a process, and its executable had none: a retry is a shallow one."""


def computing_element(view: CeView) -> ComputingElement:
    """A CE as the information system shows it."""
    return ComputingElement(
        id=view.unique_id,
        host=str(view.attributes.get("GlueCEInfoHostName", "")),
        port=view.integer("GlueCEInfoGatekeeperPort"),
        site=view.site,
        attributes=view.attributes,
        vos=view.vos,
        fqans=view.fqans,
        free_slots=view.integer("GlueCEStateFreeJobSlots"),
        running=view.integer("GlueCEStateRunningJobs"),
        waiting=view.integer("GlueCEStateWaitingJobs"),
        alive=view.is_usable,
        close_storage=view.close_storage,
        produced_at_us=view.produced_at_us,
    )


_EVENT_TYPES = {name.removeprefix("EVENT_TYPE_"): number for name, number in lb_pb.EventType.items()}


def log_payloads(lines: Sequence[LogLine]) -> list[bytes]:
    """Events as they lie in the outbox, still without source and sequence.

    What many jobs have in common is encoded once: a message may be put together of parts that have some of its fields.
    """
    common: dict[tuple[int, int], bytes] = {}
    payloads: list[bytes] = []
    for line in lines:
        event = line.event
        key = (id(event), line.at_us)
        body = common.get(key)
        if body is None:
            fields = {name: value[:MAX_FIELD_LENGTH] for name, value in event.fields.items()}
            made = lb_pb.Event(at_us=line.at_us, type=_EVENT_TYPES[event.type], attempt=event.attempt, fields=fields)  # pyright: ignore[reportArgumentType]
            body = common[key] = made.SerializeToString()
        payloads.append(lb_pb.Event(job_id=line.job_id).SerializeToString() + body)
    return payloads


def record_request(items: Iterable[OutboxItem], epoch: int) -> lb_pb.RecordRequest:
    """What lay in the outbox, for bookkeeping."""
    request = lb_pb.RecordRequest(epoch=epoch)
    for item in items:
        event = request.events.add()
        event.MergeFromString(item.payload)
        event.source, event.sequence = item.source, item.sequence
    return request


def sandbox_files(request: pb.SubmitRequest) -> dict[str, SandboxFile]:
    """By the name that InputSandbox gives them. Raises InvalidRequest SANDBOX_PATH_ESCAPE, SANDBOX_NAME_TWICE."""
    found: dict[str, SandboxFile] = {}
    for item in request.input_sandbox:
        name = local_name(item.name)
        if name in ("", ".", "..") or "\\" in name or "\0" in item.name or len(name.encode()) > 255:
            raise InvalidRequest(
                "SANDBOX_PATH_ESCAPE",
                f"the input sandbox file {item.name[:200]!r} would leave the job's directory; give a plain file name",
                name=item.name[:200],
            )
        if item.name in found:
            raise InvalidRequest(
                "SANDBOX_NAME_TWICE", f"the input sandbox file {item.name!r} is given twice", name=item.name
            )
        found[item.name] = SandboxFile(item.name, item.sha256, item.size_bytes, item.executable)
    return found


def gatekeeper_job(
    row: JobRow,
    description: JobDescription,
    files: Mapping[str, SandboxFile],
    vo: str,
    address_of: Callable[[str], str],
) -> gk_pb.Job:
    """A job as its gatekeeper gets it; ``description`` already has the job's parameter. ``address_of`` a storage
    element: a site's agents know no others by name."""
    queue = row.job.ce.partition("/jobmanager-")[2].partition("-")[2]
    job = gk_pb.Job(job_id=row.job_id, attempt=row.job.attempt, queue=queue)
    wire = job.description
    wire.executable = description.executable
    wire.arguments.extend(description.arguments)
    wire.std_input, wire.std_output, wire.std_error = (
        description.std_input, description.std_output, description.std_error,
    )  # fmt: skip
    for name, value in description.environment:
        wire.environment[name] = value
    for path in description.input_sandbox:
        file, name = files[path], local_name(path)
        wire.input_sandbox.add(
            name=name,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            executable=file.executable or name in (description.executable, description.prologue, description.epilogue),
        )
    wire.output_sandbox.extend(description.output_sandbox)
    wire.input_data.extend(description.input_data)
    for item in description.output_data:
        wire.output_data.add(file=item.file, lfn=item.lfn, storage_element=address_of(item.storage_element))
    for script, program, arguments in (
        (wire.prologue, description.prologue, description.prologue_arguments),
        (wire.epilogue, description.epilogue, description.epilogue_arguments),
    ):
        if program:
            script.executable = program
            script.arguments.extend(arguments)
    wire.data_access_protocols.extend(description.data_access_protocols)
    limits = description.limits
    wire.limits.wall_s, wire.limits.cpu_s = limits.wall_s, limits.cpu_s
    wire.limits.memory_bytes, wire.limits.disk_bytes = limits.memory_bytes, limits.disk_bytes
    if description.slots > 1:
        wire.slots, wire.hosts, wire.mpi = description.slots, description.hosts, description.mpi
        wire.slots_per_host = description.slots_per_host
    if description.perusal_s:
        wire.perusal.interval_s = description.perusal_s
        wire.perusal.files.extend(description.perusal_files)
        wire.perusal.storage_element = address_of(description.perusal_se)
    wire.vo = vo
    return job


def update_event(update: gk_pb.JobUpdate) -> machine.Event | None:
    """What a gatekeeper's update means to the machine; None for a state that this version does not know."""
    state = update.state
    if state in (gk_pb.JOB_STATE_QUEUED, gk_pb.JOB_STATE_ASSIGNED):
        return machine.Accepted(update.attempt)
    if state == gk_pb.JOB_STATE_RUNNING:
        return machine.Started(update.attempt, update.worker)
    if state == gk_pb.JOB_STATE_DONE:
        return machine.Ended(update.attempt, update.exit_code, update.reason)
    if state == gk_pb.JOB_STATE_FAILED:
        started = update.started and update.reason not in PAYLOAD_NOT_STARTED
        return machine.Failed(update.attempt, update.reason or "FAILED", update.sentence, started)
    if state == gk_pb.JOB_STATE_CANCELLED:
        return machine.CancelledAtCe(update.attempt, update.reason)
    return None


_KNOWN_STATES = {
    lb_pb.JOB_STATE_WAITING: JobState.WAITING,
    lb_pb.JOB_STATE_READY: JobState.READY,
    lb_pb.JOB_STATE_SCHEDULED: JobState.SCHEDULED,
    lb_pb.JOB_STATE_RUNNING: JobState.RUNNING,
    lb_pb.JOB_STATE_DONE: JobState.DONE,
    lb_pb.JOB_STATE_CLEARED: JobState.CLEARED,
    lb_pb.JOB_STATE_ABORTED: JobState.ABORTED,
    lb_pb.JOB_STATE_CANCELLED: JobState.CANCELLED,
}


def known_job(summary: lb_pb.JobSummary) -> machine.Job:
    """A job of another broker as bookkeeping knows it; BLOCKED stands for one that is registered and no more."""
    state = _KNOWN_STATES.get(summary.state, JobState.BLOCKED)
    ce = summary.ce if state not in (JobState.BLOCKED, JobState.WAITING) else ""
    failed = f"EXIT_{summary.exit_code}" if summary.exit_code not in ("", "0") else ""
    return machine.Job(
        state,
        attempt=max(1, summary.attempt),
        ce=ce,
        gatekeeper=ce.partition("/")[0],
        sent=state is JobState.READY,
        purge=state in (JobState.DONE, JobState.CLEARED),
        reason=(summary.reason or failed) if state in ENDED or state is JobState.WAITING else "",
    )


def match_to_wire(outcome: MatchOutcome, ce: ComputingElement) -> pb.Match:
    return pb.Match(
        ce=outcome.ce,
        matches=outcome.matches,
        rank=outcome.rank,
        failing_term=outcome.failing_term,
        explanation=outcome.explanation,
        change=outcome.change,
        site=ce.site,
        free_slots=ce.free_slots,
    )


def location_to_wire(row: JobRow, waiting_for: str) -> pb.JobLocation:
    job = row.job
    return pb.JobLocation(
        job_id=row.job_id,
        ce=job.ce,
        gatekeeper=job.gatekeeper if job.state not in (JobState.WAITING, JobState.READY) else "",
        state=job.state.name,
        attempt=job.attempt,
        waiting_for=waiting_for,
    )
