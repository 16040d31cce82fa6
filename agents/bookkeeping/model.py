"""Events, job records and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

MAX_EVENTS = 2000
"""Events in one Record call."""
MAX_FIELDS_BYTES = 16 * 1024
"""Of one event."""
MAX_JOB_ID_LENGTH = 256
MAX_PAGE_SIZE = 5000


class EventType(IntEnum):
    """What happened; numbers as on the wire."""

    REGISTERED = 1
    """The broker took the job."""
    ENQUEUED = 2
    """The broker queued it for matching."""
    MATCHED = 3
    """A CE was chosen."""
    TRANSFERRED = 4
    """The gatekeeper has acknowledged it."""
    RUNNING = 5
    """Its process was started."""
    DONE = 6
    """Its process ended."""
    RESUBMISSION = 7
    """It will be matched again; ``attempt`` is the new one."""
    CANCEL_REQUESTED = 8
    """Its owner wants it ended."""
    CANCELLED = 9
    """It was ended by its owner."""
    ABORTED = 10
    """The grid gave it up."""
    CLEARED = 11
    """The output was fetched."""
    NOTE = 12
    """Something worth reading; no change of state."""


class JobState(IntEnum):
    """The gLite L&B states; numbers as on the wire."""

    UNSPECIFIED = 0
    """Only events that say nothing of the state have come so far."""
    SUBMITTED = 1
    """Registered."""
    WAITING = 2
    """Waits for matching."""
    READY = 3
    """Matched, on its way."""
    SCHEDULED = 4
    """Queued at the CE."""
    RUNNING = 5
    """Its process runs."""
    DONE = 6
    """Its process has ended."""
    CLEARED = 7
    """The owner has the output."""
    ABORTED = 8
    """Given up by the grid."""
    CANCELLED = 9
    """Ended by its owner."""


ENDED = frozenset({JobState.DONE, JobState.CLEARED, JobState.ABORTED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history. (source, sequence) is unique."""

    job_id: str
    source: str
    sequence: int
    at_us: int
    type: EventType
    attempt: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class JobRecord:
    """A job as computed from its events. Values with a ``_rank`` came from the event of the highest rank so far."""

    job_id: str
    owner: str = ""
    vo: str = ""
    name: str = ""
    parent: str = ""
    is_parent: int = 0
    state: int = 0
    state_rank: int = -1
    changed_at_us: int = 0
    submitted_at_us: int = 0
    attempt: int = 0
    ce: str = ""
    ce_rank: int = -1
    worker: str = ""
    worker_rank: int = -1
    exit_code: str = ""
    exit_rank: int = -1
    wall_s: float = 0.0
    cpu_s: float = 0.0
    reason: str = ""
    reason_rank: int = -1
    started_at_us: int = 0
    """When its process was started for the first time; 0: not yet."""


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs are wanted; empty fields do not restrict."""

    job_ids: tuple[str, ...] = ()
    owner: str = ""
    state: int = 0
    ce: str = ""
    since_us: int = 0
    until_us: int = 0
    vo: str = ""
    include_parents: bool = False
    page_size: int = 1000
    after: int = 0
    """The last row of the page before."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who asks: a service sees all, a user its own jobs and those of its VOs."""

    identity: str
    vos: tuple[str, ...] = ()
    is_service: bool = False

    def may_read(self, owner: str, vo: str) -> bool:
        return self.is_service or (owner != "" and (owner == self.identity or vo in self.vos))


GROUPS = ("vo", "ce", "owner", "state")
"""What statistics can be grouped by."""


@dataclass(frozen=True, slots=True)
class StatisticsQuery:
    """Jobs submitted from `since_us` to `until_us`, grouped by some of GROUPS."""

    since_us: int
    until_us: int
    by: tuple[str, ...] = ()


@dataclass(slots=True)
class Statistics:
    """How a group of jobs fared. Waiting is from submission to the first start of the process."""

    group: tuple[str | int, ...]
    jobs: int = 0
    ended: int = 0
    succeeded: int = 0
    resubmitted: int = 0
    started: int = 0
    wait_mean_s: float = 0.0
    wait_median_s: float = 0.0
    wait_p90_s: float = 0.0
    wait_max_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
