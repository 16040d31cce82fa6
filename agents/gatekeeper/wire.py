"""Between the model and protobuf, and the check of a job description. The only file here with both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from gridfabric.bookkeeping.v1 import bookkeeping_pb2
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb

from agents.gatekeeper import gangs
from agents.gatekeeper.config import GatekeeperOptions, QueueOptions
from agents.gatekeeper.model import (
    ENDED,
    Closure,
    DescriptionInvalidError,
    Job,
    JobEnded,
    Outcome,
    State,
    Update,
    Usage,
)
from agents.gatekeeper.sandbox import require_sha256
from fabric.errors import InvalidRequest

MAX_DESCRIPTION_BYTES = 64 * 1024
MAX_ARGUMENTS = 1000
MAX_ARGUMENT_BYTES = 32 * 1024
MAX_ENVIRONMENT = 200
MAX_SANDBOX_FILES = 200
MAX_DATA_FILES = 1000
MAX_PROTOCOLS = 20
MAX_PERUSAL_FILES, MAX_PERUSAL_S = 10, 86_400
MAX_SLOTS = 1000
"""Of a gang."""
OPEN_MPI_FACT = "open_mpi"
"""Of a worker that has it."""
MAX_NAME_BYTES = 200
MAX_JOB_ID = 300
_TAG = re.compile(r"VO-[A-Za-z0-9._+-]{1,160}\Z")
MAX_REASON = 200
"""Characters of why a queue is shut."""
RESERVED_PREFIX = ".gridfabric"
"""Names in the job's directory that the worker itself uses."""
RESERVED_NAMES = frozenset({".BrokerInfo", ".x509_proxy"})

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_JOB_ID = re.compile(r"[A-Za-z0-9_:/.\-?=&%]+\Z")

WIRE_STATE = {state: pb.JobState.Value(f"JOB_STATE_{state.value}") for state in State}


# ---- job descriptions


def check_job(job: pb.Job, options: GatekeeperOptions, queue: QueueOptions, vos: Sequence[str], user_vo: str) -> None:
    """Refuse what cannot be run in this queue and fill in its limits. Raises DescriptionInvalidError."""
    if not 1 <= len(job.job_id) <= MAX_JOB_ID or not _JOB_ID.match(job.job_id):
        raise DescriptionInvalidError(
            "job_id", f"must be 1 to {MAX_JOB_ID} characters of a URL, not {job.job_id[:80]!r}"
        )
    if job.attempt < 1:
        raise DescriptionInvalidError("attempt", f"must be at least 1, not {job.attempt}")
    description = job.description
    if description.ByteSize() > MAX_DESCRIPTION_BYTES:
        raise DescriptionInvalidError("size", f"is over {MAX_DESCRIPTION_BYTES} bytes; put lists into a sandbox file")
    if description.vo not in vos:
        raise DescriptionInvalidError(
            "vo", f"is {description.vo!r}; this computing element serves {', '.join(vos) or 'none'}"
        )
    if user_vo and user_vo != description.vo:
        raise DescriptionInvalidError("vo", f"is {description.vo!r}, but the owner is mapped here for {user_vo}")
    _check_input(description, options)
    _check_program("executable", description.executable, description.arguments, description)
    for field, script in (("prologue", description.prologue), ("epilogue", description.epilogue)):
        if script.executable or script.arguments:
            _check_program(field, script.executable, script.arguments, description)
    _check_environment(description)
    _check_protocols(description.data_access_protocols)
    _check_streams(description)
    _check_output(description)
    _check_perusal(description.perusal)
    _check_limits(description.limits, queue)
    _check_gang(description, options, queue)


def _check_input(description: pb.JobDescription, options: GatekeeperOptions) -> None:
    if len(description.input_sandbox) > MAX_SANDBOX_FILES:
        raise DescriptionInvalidError("input sandbox", f"has more than {MAX_SANDBOX_FILES} files; pack them into one")
    total = 0
    names: set[str] = set()
    for file in description.input_sandbox:
        check_name(file.name, "input sandbox", plain=True)
        require_sha256(file.sha256)
        if file.name in names:
            raise DescriptionInvalidError("input sandbox", f"names {file.name!r} twice")
        names.add(file.name)
        if not 0 <= file.size_bytes <= options.max_sandbox_file_bytes:
            raise DescriptionInvalidError(
                "input sandbox",
                f"file {file.name!r} of {file.size_bytes} bytes is over {options.max_sandbox_file_bytes}",
            )
        total += file.size_bytes
    if total > options.max_input_sandbox_bytes:
        raise DescriptionInvalidError(
            "input sandbox", f"of {total} bytes is over {options.max_input_sandbox_bytes}; use a storage element"
        )
    if len(description.input_data) > MAX_DATA_FILES:
        raise DescriptionInvalidError("input data", f"names more than {MAX_DATA_FILES} files")
    for name in description.input_data:
        _check_text(name, "input data", 1024)


def _check_program(field: str, executable: str, arguments: Sequence[str], description: pb.JobDescription) -> None:
    _check_text(executable, field, 1024)
    if not executable.startswith("/"):
        check_name(executable.removeprefix("./"), field, plain=True)
        if executable.removeprefix("./") not in {file.name for file in description.input_sandbox}:
            raise DescriptionInvalidError(field, f"{executable!r} is neither an absolute path nor in the input sandbox")
    elif ".." in executable.split("/"):
        raise DescriptionInvalidError(field, f"{executable!r} escapes with '..'")
    named = "arguments" if field == "executable" else f"{field}'s arguments"
    if len(arguments) > MAX_ARGUMENTS or sum(map(len, arguments)) > MAX_ARGUMENT_BYTES:
        raise DescriptionInvalidError(named, f"are more than {MAX_ARGUMENTS} or {MAX_ARGUMENT_BYTES} characters")
    if any("\0" in argument for argument in arguments):
        raise DescriptionInvalidError(named, "hold a NUL character")


def _check_protocols(protocols: Sequence[str]) -> None:
    if len(protocols) > MAX_PROTOCOLS:
        raise DescriptionInvalidError("data access protocols", f"are more than {MAX_PROTOCOLS}")
    for protocol in protocols:
        _check_text(protocol, "data access protocol", 32)


def _check_environment(description: pb.JobDescription) -> None:
    if len(description.environment) > MAX_ENVIRONMENT:
        raise DescriptionInvalidError("environment", f"has more than {MAX_ENVIRONMENT} variables")
    for name, value in description.environment.items():
        if not _ENVIRONMENT_NAME.match(name) or "\0" in value:
            raise DescriptionInvalidError(
                "environment", f"variable {name[:80]!r} is not a name, or its value has a NUL"
            )


def _check_streams(description: pb.JobDescription) -> None:
    for field, name in (("StdOutput", description.std_output), ("StdError", description.std_error)):
        if name:
            check_name(name, field, plain=True)
    if description.std_input:
        check_name(description.std_input, "StdInput", plain=True)
        if description.std_input not in {file.name for file in description.input_sandbox}:
            raise DescriptionInvalidError("StdInput", f"{description.std_input!r} is not in the input sandbox")


def _check_output(description: pb.JobDescription) -> None:
    if len(description.output_sandbox) > MAX_SANDBOX_FILES:
        raise DescriptionInvalidError("output sandbox", f"has more than {MAX_SANDBOX_FILES} files; pack them into one")
    for name in description.output_sandbox:
        check_name(name, "output sandbox")
    if len(set(description.output_sandbox)) != len(description.output_sandbox):
        raise DescriptionInvalidError("output sandbox", "names a file twice")
    if len(description.output_data) > MAX_DATA_FILES:
        raise DescriptionInvalidError("output data", f"names more than {MAX_DATA_FILES} files")
    for output in description.output_data:
        check_name(output.file, "output data")
        if output.lfn:
            _check_text(output.lfn, "output data", 1024)
        _check_text(output.storage_element or "-", "output data", 256)


def _check_perusal(perusal: pb.Perusal) -> None:
    if not 0 <= perusal.interval_s <= MAX_PERUSAL_S or len(perusal.files) > MAX_PERUSAL_FILES:
        raise DescriptionInvalidError(
            "perusal", f"is of more than {MAX_PERUSAL_FILES} files, or not within 0 to {MAX_PERUSAL_S} s"
        )
    for name in perusal.files:
        check_name(name, "perusal", plain=True)
    _check_text(perusal.storage_element or "-", "perusal", 256)


def _check_limits(limits: pb.Limits, queue: QueueOptions) -> None:
    for name in ("wall_s", "cpu_s", "memory_bytes", "disk_bytes"):
        wanted, most = getattr(limits, name), getattr(queue, f"max_{name}")
        if not 0 <= wanted <= most:
            raise DescriptionInvalidError(
                f"limit {name}", f"of {wanted} is not within 0 to {most}, queue {queue.name}'s limit"
            )
        setattr(limits, name, wanted or most)


def _check_gang(description: pb.JobDescription, options: GatekeeperOptions, queue: QueueOptions) -> None:
    slots, hosts, each = description.slots or 1, description.hosts or 1, description.slots_per_host or 1
    if min(hosts, each) < 1 or not hosts * each <= slots <= MAX_SLOTS:
        raise DescriptionInvalidError(
            "slots",
            f"are {slots} on {hosts} hosts, {each} on each; write 1 to {MAX_SLOTS} slots, and no more hosts than slots",
        )
    if slots > 1 and options.batch == "slurm":
        if each > 1 and slots % each:
            raise DescriptionInvalidError("slots", f"are {slots}; Slurm needs a multiple of the {each} on each host")
        if description.prologue.executable or description.epilogue.executable:
            raise DescriptionInvalidError("prologue", "and epilogue of a job of several slots do not run in Slurm")
    most = min(filter(None, (queue.max_running, options.max_running)), default=slots)
    if slots > most:
        raise DescriptionInvalidError("slots", f"are {slots}; queue {queue.name} has at most {most} at a time")
    if slots > 1 and description.output_data:
        raise DescriptionInvalidError("output data", "are not moved for a job of several slots; let rank 0 move them")


def spread(description: pb.JobDescription, batch: str) -> tuple[int, int, int]:
    """Slots, least number of workers, least slots on each. One worker is a whole Slurm, which spreads them itself."""
    slots = max(1, description.slots)
    return (
        (slots, 1, slots)
        if batch == "slurm"
        else (slots, max(1, description.hosts), max(1, description.slots_per_host))
    )


def check_name(name: str, field: str, *, plain: bool = False) -> None:
    """A relative name inside the job's directory. `plain`: without folders. Raises DescriptionInvalidError."""
    _check_text(name, field, MAX_NAME_BYTES)
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\\" in name:
        raise DescriptionInvalidError(field, f"name {name!r} leads out of the job's directory; use a relative name")
    if plain and len(parts) > 1:
        raise DescriptionInvalidError(field, f"name {name!r} must not contain a folder")
    if parts[0] in RESERVED_NAMES or parts[0].startswith(RESERVED_PREFIX):
        raise DescriptionInvalidError(field, f"name {name!r} is reserved for the worker node")


def _check_text(text: str, field: str, limit: int) -> None:
    if not text or len(text.encode()) > limit or not text.isprintable():
        raise DescriptionInvalidError(
            field, f"value {text[:80]!r} is empty, longer than {limit} bytes or not printable"
        )


# ---- out


def outcome_to_wire(outcome: Outcome) -> pb.SubmitOutcome:
    """One line of a Submit's answer."""
    return pb.SubmitOutcome(
        job_id=outcome.job_id, accepted=outcome.accepted, reason=outcome.reason, sentence=outcome.sentence
    )


def update_to_wire(update: Update) -> pb.JobUpdate:
    """One state change."""
    wire = pb.JobUpdate(
        sequence=update.sequence,
        job_id=update.job_id,
        attempt=update.attempt,
        state=WIRE_STATE[update.state],
        at_us=update.at_us,
        exit_code=update.exit_code,
        reason=update.reason,
        sentence=update.sentence,
        worker=update.worker,
        started=update.started,
    )
    usage = update.usage
    if usage.wall_s or usage.max_rss_bytes:
        wire.usage.wall_s, wire.usage.user_s = usage.wall_s, usage.user_s
        wire.usage.system_s, wire.usage.max_rss_bytes = usage.system_s, usage.max_rss_bytes
    return wire


def run_to_wire(
    job: Job, run: int, description: bytes, worker: str, facts: Mapping[str, Mapping[str, str]]
) -> pb.RunJob:
    """The order to a worker, and where the other parts of a gang are. `facts`: what each worker told about itself."""
    order = pb.RunJob(
        job_id=job.job_id,
        attempt=job.attempt,
        run=run,
        description=pb.JobDescription.FromString(description),
        owner=job.owner,
        account=job.account,
        uid=job.uid,
        gid=job.gid,
        delegation=job.owner,
        queue=job.queue,
        first_rank=gangs.first_rank(job.parts, worker),
    )
    for part in job.parts:
        order.gang.add(host=facts.get(part.worker, {}).get("host", part.worker), ranks=part.ranks)
    if job.parts and order.description.mpi:
        order.open_mpi = all(OPEN_MPI_FACT in facts.get(part.worker, {}) for part in job.parts)
    return order


_EVENT_TYPE = {
    State.QUEUED: bookkeeping_pb2.EVENT_TYPE_TRANSFERRED,
    State.RUNNING: bookkeeping_pb2.EVENT_TYPE_RUNNING,
    State.DONE: bookkeeping_pb2.EVENT_TYPE_DONE,
    State.CANCELLED: bookkeeping_pb2.EVENT_TYPE_CANCELLED,
    # The broker decides what a failure here means for the job: another attempt, or the end.
    State.FAILED: bookkeeping_pb2.EVENT_TYPE_NOTE,
}


def events_to_wire(
    updates: Iterable[Update], source: str, site: str, ce_of: Callable[[str], str], accepted: set[str]
) -> list[bookkeeping_pb2.Event]:
    """What bookkeeping is told of these updates; `ce_of` gives a queue's CE. QUEUED counts only for the
    ids in `accepted`, not for a requeue.

    The end of a run says what it used: bookkeeping makes its usage record of that.
    """
    events = []
    for update in updates:
        kind = _EVENT_TYPE.get(update.state)
        if kind is None or (update.state is State.QUEUED and update.job_id not in accepted):
            continue
        ce = ce_of(update.queue)
        fields = {"ce": ce, "owner": update.owner, "vo": update.vo}
        if update.worker:
            fields["worker"] = update.worker
        if update.reason:
            fields["reason"] = update.reason
        if update.state is State.DONE or (update.state in ENDED and update.started):
            usage = update.usage
            fields |= {
                "site": site,
                "account": update.account,
                **({"fqan": update.fqan} if update.fqan else {}),
                "wall_s": f"{usage.wall_s:.3f}",
                "cpu_s": f"{usage.user_s + usage.system_s:.3f}",
                "user_s": f"{usage.user_s:.3f}",
                "system_s": f"{usage.system_s:.3f}",
                "memory_bytes": str(usage.max_rss_bytes),
                **({"processors": str(update.slots)} if update.slots > 1 else {}),
            }
        if update.state is State.DONE:
            fields["exit_code"] = str(update.exit_code)
            if update.sentence:
                fields["text"] = update.sentence[:500]
        if update.state is State.FAILED:
            fields["text"] = f"failed at {ce}: {update.reason} {update.sentence}"[:500]
        events.append(
            bookkeeping_pb2.Event(
                job_id=update.job_id,
                source=source,
                at_us=update.at_us,
                type=kind,
                attempt=update.attempt,
                fields=fields,
            )
        )
    return events


# ---- in


def check_tag(tag: str, vo: str) -> str:
    """A software tag of this VO. Raises InvalidRequest TAG_INVALID."""
    if not tag.startswith(f"VO-{vo}-") or len(tag) == len(f"VO-{vo}-") or not _TAG.match(tag):
        raise InvalidRequest(
            "TAG_INVALID",
            f"{tag[:80]!r} is no software tag of {vo}: VO-{vo}- and up to 100 letters, digits and . _ + -",
        )
    return tag


def closure_from_wire(request: pb.CloseRequest) -> Closure:
    """What an operator asks for. Raises InvalidRequest CLOSURE_INVALID."""
    closed = request.draining or request.begins_at_us
    if len(request.reason) > MAX_REASON or not request.reason.isprintable() or (closed and not request.reason):
        raise InvalidRequest(
            "CLOSURE_INVALID", f"a reason of 1 to {MAX_REASON} printable characters is needed: users are shown it"
        )
    if request.ends_at_us and not 0 < request.begins_at_us < request.ends_at_us:
        raise InvalidRequest("CLOSURE_INVALID", "a maintenance must begin before it ends")
    if min(request.begins_at_us, request.ends_at_us) < 0:
        raise InvalidRequest("CLOSURE_INVALID", "times of a maintenance are after 1970")
    return Closure(request.draining, request.reason, request.begins_at_us, request.ends_at_us)


def ended_from_wire(worker: str, wire: pb.Finished) -> JobEnded:
    """A worker's last report about a job, without its output."""
    usage = wire.usage
    return JobEnded(
        worker=worker,
        job_id=wire.job_id,
        attempt=wire.attempt,
        run=wire.run,
        at_us=wire.at_us,
        exit_code=wire.exit_code,
        reason=wire.reason[:63],
        sentence=wire.sentence[:1000],
        usage=Usage(usage.wall_s, usage.user_s, usage.system_s, usage.max_rss_bytes),
        failed=wire.failed,
        started=wire.started,
    )
