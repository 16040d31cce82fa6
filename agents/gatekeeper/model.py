"""What a gatekeeper talks about: jobs, workers, what happened to them, and what is to be done. No wire, no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agents.gatekeeper.gangs import Parts, Phase
from fabric.errors import GridError, InvalidRequest
from security.errors import Reason


class State(StrEnum):
    """Where a job is. The last three are ends."""

    QUEUED = "QUEUED"
    """Durable here, waits for a slot."""
    ASSIGNED = "ASSIGNED"
    """Sent to a worker, which has not yet said that it started it."""
    RUNNING = "RUNNING"
    """The payload's process was started."""
    DONE = "DONE"
    """The process ended and its output is here."""
    FAILED = "FAILED"
    """It could not be run to its end, or was lost; the reason is typed."""
    CANCELLED = "CANCELLED"
    """Stopped by its owner, the broker or the site."""


ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED})
ON_WORKER = frozenset({State.ASSIGNED, State.RUNNING})


@dataclass(frozen=True, slots=True)
class Usage:
    """What the payload used. Seconds and bytes."""

    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Hold:
    """One hand-out of one attempt to one worker. `run` fences an order that came to nothing from the next one."""

    worker: str
    attempt: int
    run: int


@dataclass(slots=True)
class Job:
    """One attempt of one job, as this CE sees it. Owned by the machine; others only read.

    Invariant: `worker` and `run` name the current hand-out when ASSIGNED or RUNNING, the last one afterwards.
    """

    job_id: str
    attempt: int
    owner: str
    """Identity (DN) of the end entity."""
    vo: str
    account: str
    uid: int
    gid: int
    accepted_at_us: int
    state: State = State.QUEUED
    run: int = 0
    worker: str = ""
    cancel_reason: str = ""
    """Not empty once a cancellation was accepted."""
    returns: int = 0
    """How often workers gave it back unstarted."""
    started: bool = False
    started_at_us: int = 0
    ended_at_us: int = 0
    changed_at_us: int = 0
    exit_code: int = 0
    reason: str = ""
    sentence: str = ""
    usage: Usage = NO_USAGE
    sequence: int = 0
    """Of the newest update."""
    blocked_by: Hold | None = None
    """An older attempt that may still run on a worker: this one waits until that is certain to be over."""
    priority: int = 0
    """Among the jobs of its VO here; higher goes first."""
    wall_s: int = 0
    """Its limit. 0: not known."""
    held: bool = False
    """Its owner, or the site, wants it to wait until it is released."""
    fqan: str = ""
    """The primary one of its owner's attributes at submission, for accounting."""
    queue: str = ""
    slots: int = 1
    """More: a gang, which starts on all of them or on none."""
    hosts: int = 1
    """Of a gang: on at least so many workers."""
    slots_per_host: int = 1
    """At least so many on each of them."""
    parts: Parts = ()
    """Of a gang that is ASSIGNED or RUNNING: who has which ranks. `worker` has rank 0."""

    @property
    def places(self) -> list[tuple[str, int]]:
        """Workers that have it, or a part that has not ended, with the slots that it takes there."""
        if not self.parts:
            return [(self.worker, 1)]
        return [(part.worker, part.ranks) for part in self.parts if part.phase is not Phase.ENDED]

    @property
    def ended(self) -> bool:
        """No further change will come."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class QueueRules:
    """The bounds of one queue; 0: none of its own."""

    max_queued: int = 0
    max_running: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a site has decided about its queues."""

    worker_lost_us: int
    max_queued: int
    max_running: int = 0
    """Jobs on workers at a time; 0: as many as there are slots."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """VO to its part of the hand-outs, relative to the others; 1 where nothing is said."""
    queues: Mapping[str, QueueRules] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closure:
    """Whether, why and when the site keeps a queue, or all of them, shut. The usual one is open.

    `draining`: nothing new is accepted; what waits is run. A maintenance has a beginning and perhaps an end: jobs that
    cannot end before it, by their wall time limit, wait until it is over, and during it nothing starts.
    """

    draining: bool = False
    reason: str = ""
    begins_at_us: int = 0
    """0: no maintenance."""
    ends_at_us: int = 0
    """0: until it is taken back."""

    def holds(self, now_us: int) -> bool:
        """Whether the maintenance is now."""
        return bool(self.begins_at_us) and self.begins_at_us <= now_us < (self.ends_at_us or now_us + 1)

    def leaves_time_for(self, job: Job, now_us: int) -> bool:
        """Whether a job that starts now ends before the maintenance."""
        return not self.begins_at_us or now_us + job.wall_s * 1_000_000 <= self.begins_at_us


KILL_REASONS = frozenset(
    {
        Reason.CERTIFICATE_REVOKED.value, Reason.PROXY_REVOKED.value, Reason.BANNED.value, Reason.NOT_MAPPED.value,
        Reason.VO_DISSOLVED.value, Reason.VO_NOT_ACCEPTED.value, Reason.UNKNOWN_CA.value,
    }
)  # fmt: skip
"""Why jobs of somebody who is believed no more are stopped, without a grace."""

# ---- what happens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """An authenticated, mapped, validated job arrived."""

    job: Job


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The owner, the broker for the owner, or the site wants it stopped."""

    job_id: str
    reason: str = "CANCELLED"


@dataclass(frozen=True, slots=True)
class HoldAsked:
    """It shall wait."""

    job_id: str


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    """It need not wait any more."""

    job_id: str


@dataclass(frozen=True, slots=True)
class ClosureAsked:
    """An operator shuts or opens a queue, or with an empty name all of them."""

    closure: Closure
    queue: str = ""


@dataclass(frozen=True, slots=True)
class WorkerArrived:
    """A worker opened its stream and said what it holds."""

    worker: str
    stream: int
    slots: int
    held: tuple[tuple[str, int, int], ...] = ()
    """(job id, attempt, run)."""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker's stream ended, for whatever reason. Its jobs may well go on."""

    worker: str
    stream: int


@dataclass(frozen=True, slots=True)
class CreditGiven:
    """A worker said how many jobs it takes beyond those it holds, having seen `seen` orders of this stream."""

    worker: str
    stream: int
    slots: int
    seen: int
    unfit: str = ""
    busy: int = 0


@dataclass(frozen=True, slots=True)
class PartReady:
    """A worker has prepared its part of a gang."""

    worker: str
    job_id: str
    attempt: int
    run: int


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A worker started the payload's process."""

    worker: str
    job_id: str
    attempt: int
    run: int
    at_us: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A worker is done with a job. `failed`: not run to its end by no fault of the payload."""

    worker: str
    job_id: str
    attempt: int
    run: int
    at_us: int
    exit_code: int = 0
    reason: str = ""
    sentence: str = ""
    usage: Usage = NO_USAGE
    failed: bool = False
    started: bool = True


@dataclass(frozen=True, slots=True)
class JobReturned:
    """A worker gives an order back that it never started."""

    worker: str
    job_id: str
    attempt: int
    run: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Purged:
    """The owner has the output, or it is too old."""

    job_id: str


Event = (
    Submitted
    | CancelAsked
    | HoldAsked
    | ReleaseAsked
    | ClosureAsked
    | WorkerArrived
    | WorkerLeft
    | CreditGiven
    | PartReady
    | JobStarted
    | JobEnded
    | JobReturned
    | Ticked
    | Purged
)

# ---- what is to be done, after what changed is durable --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunOnWorker:
    """Send the job to the worker."""

    worker: str
    stream: int
    job: Job
    run: int


@dataclass(frozen=True, slots=True)
class KillOnWorker:
    """Tell the worker to stop this hand-out, if it has it."""

    worker: str
    stream: int
    job_id: str
    attempt: int
    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class AcknowledgeWorker:
    """The worker may forget this hand-out."""

    worker: str
    stream: int
    job_id: str
    attempt: int
    run: int


@dataclass(frozen=True, slots=True)
class GoOnWorker:
    """Every part of the gang is ready: the worker starts its own."""

    worker: str
    stream: int
    job_id: str
    attempt: int
    run: int


@dataclass(frozen=True, slots=True)
class Update:
    """One state change, as `Watch` and bookkeeping tell it: a copy of what they need."""

    sequence: int
    job_id: str
    attempt: int
    owner: str
    vo: str
    state: State
    at_us: int
    worker: str = ""
    exit_code: int = 0
    reason: str = ""
    sentence: str = ""
    usage: Usage = NO_USAGE
    started: bool = False
    account: str = ""
    fqan: str = ""
    queue: str = ""
    slots: int = 1


Command = RunOnWorker | GoOnWorker | KillOnWorker | AcknowledgeWorker


@dataclass(slots=True)
class Turn:
    """What one batch of events came to: rows to write in one transaction, then commands and updates to carry out."""

    accepted: list[Job] = field(default_factory=list)
    """New rows (an older attempt's row of the same id is replaced)."""
    changed: dict[str, Job] = field(default_factory=dict)
    """Rows that differ now, by job id; includes the accepted ones."""
    ended: list[Job] = field(default_factory=list)
    ended_by_report: list[tuple[Job, JobEnded]] = field(default_factory=list)
    """Ends whose report carries output to keep."""
    purged: list[str] = field(default_factory=list)
    closures: dict[str, Closure] | None = None
    """By queue, "" for all of them; to be kept when they changed."""
    updates: list[Update] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    """One for each Submitted, in order."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one submitted job."""

    job_id: str
    accepted: bool
    new: bool = False
    reason: str = ""
    sentence: str = ""


class DescriptionInvalidError(InvalidRequest):
    """The job description cannot be run here, ever; says which field and why."""

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__("DESCRIPTION_INVALID", f"the job description's {field_name} {problem}", field=field_name)


def failure_of(error: GridError) -> tuple[str, str]:
    """Reason and sentence of an error, for an outcome."""
    return error.reason, error.sentence
