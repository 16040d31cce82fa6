"""What a worker talks about. No wire, no rows, no processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a job is on this node."""

    PREPARING = "PREPARING"
    """Durable here; its directory, proxy and input are being put in place."""
    READY = "READY"
    """Prepared, waits for a slot."""
    STARTING = "STARTING"
    """Handed to the starter, which forks it as soon as a slot is free."""
    RUNNING = "RUNNING"
    """The starter has forked it."""
    COLLECTING = "COLLECTING"
    """Its process ended; output is gathered and moved."""
    REPORTED = "REPORTED"
    """The result is fixed and told; everything is kept until the gatekeeper acknowledges it."""


BEFORE_START = frozenset({Phase.PREPARING, Phase.READY})
IN_SLOT = frozenset({Phase.STARTING, Phase.RUNNING})


@dataclass(frozen=True, slots=True)
class Name:
    """A hand-out: job, the broker's attempt, the gatekeeper's run."""

    job_id: str
    attempt: int
    run: int

    @property
    def key(self) -> str:
        """Name of the job's directories: no character of a stranger's choice in a path."""
        return hashlib.sha256(f"{self.job_id}\n{self.attempt}\n{self.run}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of the output sandbox."""

    name: str
    size_bytes: int
    sha256: str
    data: bytes | None
    """None: sent to the gatekeeper before the report."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended, as it is reported."""

    at_us: int
    exit_code: int = 0
    reason: str = ""
    sentence: str = ""
    failed: bool = False
    """Not run to its end by no fault of the payload."""
    started: bool = False
    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    outputs: tuple[OutputFile, ...] = ()


@dataclass(slots=True)
class Job:
    """One hand-out on this node. Owned by the machine."""

    key: str
    name: Name
    owner: str
    order: Any
    """The order as it came; the machine does not look inside."""
    phase: Phase = Phase.PREPARING
    busy: bool = False
    """A background step (prepare, collect) works on its files: they are not removed before it is done."""
    kill_reason: str = ""
    at_once: bool = False
    """Killed without a grace, as its owner is believed no more."""
    pid: int = 0
    started_at_us: int = 0
    ready_since: float = 0.0
    exit_record: dict[str, Any] | None = None
    result: Result | None = None
    acknowledged: bool = False
    slots: int = 1
    waits_for_go: bool = False
    """A part of a gang, which starts when the gatekeeper says that all parts are ready."""
    withdrawing: bool = False
    """The starter was asked to give it back unforked."""


# ---- what happens


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order came and is durable here."""

    job: Job


@dataclass(frozen=True, slots=True)
class Prepared:
    """Its directory is complete."""

    key: str


@dataclass(frozen=True, slots=True)
class GoAhead:
    """Every part of its gang is ready."""

    name: Name


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """It cannot be given its files, proxy or account."""

    key: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The starter forked it."""

    key: str
    pid: int
    at_us: int


@dataclass(frozen=True, slots=True)
class StartRefused:
    """The starter could not or would not fork it."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """Its exit record is on disk."""

    key: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProcessLost:
    """It was started, perhaps, and nobody can say how it ended."""

    key: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class NotRunning:
    """The starter does not have it and never started it (an answer to a kill, or found at recovery)."""

    key: str


@dataclass(frozen=True, slots=True)
class Collected:
    """Output gathered and moved, or given up: the result."""

    key: str
    result: Result


@dataclass(frozen=True, slots=True)
class KillAsked:
    """The gatekeeper (or this node: DISK, WORKER_STOPPED) wants it stopped; `at_once`: without a grace."""

    name: Name
    reason: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class AcknowledgedByGatekeeper:
    """Its report is durable at the gatekeeper."""

    name: Name


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """A new stream to the gatekeeper: it knows nothing yet."""


@dataclass(frozen=True, slots=True)
class Looked:
    """Time passed."""

    monotonic: float


Event = (
    Ordered | Prepared | GoAhead | PrepareFailed | ProcessStarted | StartRefused | ProcessEnded | ProcessLost
    | NotRunning | Collected
    | KillAsked | AcknowledgedByGatekeeper | LinkOpened | Looked
)  # fmt: skip


# ---- what is to be done


@dataclass(slots=True)
class Commands:
    """What one event, or several, came to. Keys and jobs in order."""

    prepare: list[Job] = field(default_factory=list)
    start: list[Job] = field(default_factory=list)
    kill: list[Job] = field(default_factory=list)
    """For their `kill_reason`, `at_once` or with a grace."""
    collect: list[Job] = field(default_factory=list)
    withdraw: list[str] = field(default_factory=list)
    """Take these back from the starter if it has not forked them."""
    report_ready: list[Job] = field(default_factory=list)
    """Parts of gangs that wait for the others."""
    report_started: list[Job] = field(default_factory=list)
    report: list[Job] = field(default_factory=list)
    give_back: list[Job] = field(default_factory=list)
    """Forget it durably, then tell the gatekeeper that it never ran."""
    forget: list[Job] = field(default_factory=list)
    """Forget it durably, then remove what it left."""
    unknown: list[tuple[Name, str]] = field(default_factory=list)
    """Asked to kill what is not here: say so, with this reason."""
