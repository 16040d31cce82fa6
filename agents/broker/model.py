"""What the broker talks about: job descriptions, job states, and the plain data between its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, IntEnum
from typing import Any

from agents.broker.jdl_syntax import join_terms

PARAMETER_MARK = "_PARAM_"
"""Replaced in every string of a parametric job."""
DEFAULT_RETRY_COUNT = 1
"""How often a job that had started is run again after a failure that was not its own."""
DEFAULT_SHALLOW_RETRY_COUNT = 3
"""How often a job that never started is sent elsewhere."""


class JobType(Enum):
    """What one JDL makes."""

    NORMAL = "normal"
    """One job."""
    PARAMETRIC = "parametric"
    """One job for each parameter."""
    COLLECTION = "collection"
    """One job for each node."""
    DAG = "dag"
    """One job for each node; a node waits until those it depends on have ended well."""


class NodeFailure(Enum):
    """What a node of a DAG that does not end well (ABORTED, CANCELLED, or an exit code other than 0) means."""

    STOP = "stop"
    """What depends on it, at any distance, is aborted; the rest goes on."""
    IGNORE = "ignore"
    """Nothing: what depends on it runs."""
    ABORT = "abort"
    """Every node that has not ended is cancelled."""


class JobState(IntEnum):
    """The broker's states of a job (gLite L&B user guide, "job states")."""

    BLOCKED = 0
    """A node of a DAG that waits for others; SUBMITTED to bookkeeping."""
    WAITING = 1
    """Registered and queued for matching."""
    READY = 2
    """A CE was chosen; the job is on its way there."""
    SCHEDULED = 3
    """The gatekeeper has acknowledged it."""
    RUNNING = 4
    """Its process was started."""
    DONE = 5
    """Its process has ended; the output is at the CE."""
    ABORTED = 6
    """Given up; the reason is typed."""
    CANCELLED = 7
    """Ended by its owner."""
    CLEARED = 8
    """The owner has the output; the CE may forget the job."""


ENDED = frozenset({JobState.DONE, JobState.ABORTED, JobState.CANCELLED, JobState.CLEARED})
AT_CE = frozenset({JobState.SCHEDULED, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class OutputData:
    """A file to upload and register when the job has ended."""

    file: str
    lfn: str = ""
    storage_element: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the job asks at most; 0 is the queue's own limit."""

    wall_s: int = 0
    cpu_s: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class JobDescription:
    """One job as its JDL says; strings may hold ``_PARAM_`` until ``with_parameter``."""

    executable: str
    arguments: tuple[str, ...] = ()
    std_input: str = ""
    std_output: str = ""
    std_error: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    input_sandbox: tuple[str, ...] = ()
    """Paths or URLs as the user wrote them; the job sees their last parts."""
    output_sandbox: tuple[str, ...] = ()
    input_data: tuple[str, ...] = ()
    output_data: tuple[OutputData, ...] = ()
    data_access_protocols: tuple[str, ...] = ()
    prologue: str = ""
    """Run before the executable, in its place and limits; empty: none."""
    prologue_arguments: tuple[str, ...] = ()
    epilogue: str = ""
    epilogue_arguments: tuple[str, ...] = ()
    requirements: str = ""
    """ClassAd text, empty for the default."""
    rank: str = ""
    """ClassAd text, empty for the default."""
    fuzzy_rank: bool = False
    """Drawn by lot, a better rank more often, instead of always the best."""
    expires_at_s: int = 0
    """Seconds since 1970: not matched any more from then on; 0: the broker's own limit."""
    retry_count: int = DEFAULT_RETRY_COUNT
    shallow_retry_count: int = DEFAULT_SHALLOW_RETRY_COUNT
    vo: str = ""
    limits: Limits = Limits()
    name: str = ""
    node_failure: NodeFailure = NodeFailure.STOP
    slots: int = 1
    """More: a gang, started that often at once or not at all."""
    hosts: int = 1
    """On at least so many worker nodes."""
    slots_per_host: int = 1
    """At least so many on each of them."""
    mpi: bool = False
    """By mpirun, where the workers have it."""
    perusal_s: int = 0
    """What it has written in `perusal_files` is copied so often to `perusal_se` (empty: the close one); 0: never."""
    perusal_files: tuple[str, ...] = ()
    perusal_se: str = ""
    extra: tuple[tuple[str, str], ...] = ()
    """Attributes this broker does not know, as ClassAd text: Requirements may use them."""

    def marked(self) -> tuple[str, ...]:
        """The fields in which ``_PARAM_`` stands."""
        return tuple(item.name for item in fields(self) if _has_mark(getattr(self, item.name)))

    def with_parameter(self, parameter: str, marked: tuple[str, ...] | None = None) -> JobDescription:
        """The same with ``_PARAM_`` replaced everywhere; ``marked`` saves looking where, for many jobs of one kind."""
        chosen = self.marked() if marked is None else marked
        if not chosen:
            return self
        quoted = parameter.replace("\\", "\\\\").replace('"', '\\"')
        return replace(
            self,
            **{name: _put(getattr(self, name), quoted if name in _EXPRESSIONS else parameter) for name in chosen},
        )


_EXPRESSIONS = frozenset({"requirements", "rank", "extra"})
"""Fields with ClassAd text: the parameter stands in string literals there."""


def _has_mark(value: object) -> bool:
    if isinstance(value, str):
        return PARAMETER_MARK in value
    if isinstance(value, OutputData):
        return any(map(_has_mark, (value.file, value.lfn, value.storage_element)))
    return isinstance(value, tuple) and any(map(_has_mark, value))


def _put(value: Any, parameter: str) -> Any:
    if isinstance(value, str):
        return value.replace(PARAMETER_MARK, parameter)
    if isinstance(value, OutputData):
        return OutputData(*(_put(text, parameter) for text in (value.file, value.lfn, value.storage_element)))
    return tuple(_put(item, parameter) for item in value)


@dataclass(frozen=True, slots=True)
class JobTemplate:
    """What one JDL describes: one job, one per parameter, or one per node."""

    type: JobType
    descriptions: tuple[JobDescription, ...]
    """One, or for a collection one per node."""
    parameters: tuple[str, ...] = ()
    """For a parametric job."""
    edges: tuple[tuple[int, int], ...] = ()
    """For a DAG: (parent, child), numbers of descriptions."""

    def __len__(self) -> int:
        return len(self.parameters) if self.type is JobType.PARAMETRIC else len(self.descriptions)

    def parts(self) -> Iterator[tuple[int, str]]:
        """(index of the description, parameter) of each job, in order."""
        if self.type is JobType.PARAMETRIC:
            return ((0, parameter) for parameter in self.parameters)
        return ((index, "") for index in range(len(self.descriptions)))

    def jobs(self) -> Iterator[JobDescription]:
        """Each job's own description, in order."""
        marked = [description.marked() for description in self.descriptions]
        for index, parameter in self.parts():
            description = self.descriptions[index]
            yield description.with_parameter(parameter, marked[index]) if parameter else description

    @property
    def vo(self) -> str:
        return self.descriptions[0].vo


@dataclass(frozen=True, slots=True)
class SandboxFile:
    """An input sandbox file that the broker holds."""

    name: str
    """As InputSandbox writes it; the job sees its last part."""
    sha256: str
    size_bytes: int
    executable: bool = False


@dataclass(frozen=True, slots=True)
class ComputingElement:
    """A computing element as the information system shows it, and where to reach it.

    ``attributes`` are the GLUE 1.3 names that JDL writes after ``other.``, of the CE and its cluster.
    """

    id: str
    host: str
    port: int
    site: str
    attributes: Mapping[str, object]
    vos: tuple[str, ...] = ()
    """Whose members are all let in."""
    free_slots: int = 0
    running: int = 0
    waiting: int = 0
    alive: bool = True
    close_storage: tuple[str, ...] = ()
    fqans: tuple[str, ...] = ()
    """Groups and roles of other VOs that are let in."""
    produced_at_us: int = 0
    """When the CE counted, by its own clock; 0 if it was not told."""

    @property
    def gatekeeper(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def slots(self) -> int:
        return max(0, self.free_slots + self.running)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Jobs that match alike."""

    id: int
    requirements: str
    rank: str
    vo: str
    owner: str
    input_data: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    excluded: tuple[str, ...] = ()
    """CEs where these jobs have failed; used again only if nothing else matches."""
    fqans: tuple[str, ...] = ()
    """The owner's groups and roles in `vo` when these jobs were submitted, sorted."""
    fuzzy_rank: bool = False
    expires_at_s: int = 0
    """Seconds since 1970: given up from then on, if they still wait; 0: the broker's own limit."""
    not_before_s: int = 0
    """Seconds since 1970: not matched before; 0: at once."""

    @staticmethod
    def of(job: JobDescription, vo: str, owner: str, fqans: tuple[str, ...]) -> Cluster:
        """Of a job before its first attempt; id 0 until it is stored."""
        return Cluster(
            0, _with_limits(job), job.rank, vo, owner, job.input_data, job.extra,
            fqans=fqans, fuzzy_rank=job.fuzzy_rank, expires_at_s=job.expires_at_s,
        )  # fmt: skip


def _with_limits(job: JobDescription) -> str:
    """Requirements, and that the queue lets the job run as long as it asks for, on as many slots. GLUE counts whole
    minutes."""
    limits = (("MaxWallClockTime", job.limits.wall_s), ("MaxCPUTime", job.limits.cpu_s))
    terms = [f"other.GlueCEPolicy{name} >= {math.ceil(asked_s / 60)}" for name, asked_s in limits if asked_s]
    if job.slots > 1:
        terms.append(f"other.GlueCEInfoTotalCPUs >= {job.slots}")
        terms.append('Member("GRIDFABRIC-GANG", other.GlueHostApplicationSoftwareRunTimeEnvironment)')
    return join_terms([job.requirements, *terms] if job.requirements else terms) if terms else job.requirements


@dataclass(frozen=True, slots=True)
class MatchOutcome:
    """What ``list-match`` says of one CE."""

    ce: str
    matches: bool
    rank: float = 0.0
    failing_term: str = ""
    explanation: str = ""
    change: str = ""
    """What to write for it to match: the smallest change for each failing term."""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """An event for bookkeeping; names of types as in the proto, without their prefix."""

    type: str
    attempt: int
    fields: Mapping[str, str] = field(default_factory=dict)
