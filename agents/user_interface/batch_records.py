"""What batch systems themselves wrote of the jobs that they ran, held against usage records. Pure.

Slurm: a file of `JobCompType=jobcomp/filetxt`, or what `sacct --parsable2` prints. The name of a batch job is made of
the run's key, and the key of job id, attempt and hand-out (agents/worker/model.py, `JobName.key`), so a record is found
again without any help of Slurm's. Own workers: the line that each writes into its audit log at the end of a job.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb

from agents.user_interface.exits import UsageProblem
from fabric.clock import to_us

SLACK_S, SLACK = 5.0, 0.1
"""Times agree within so many seconds and such a part: a batch system also counts its own steps."""
HAND_OUTS = 16
"""Of one attempt that are looked for."""
NEVER_RAN = frozenset({"PENDING", "CANCELLED"})
"""States of Slurm in which a job without any time has never been on a node."""
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "PENDING", "CONFIGURING", "REQUEUED"})

_NAME = re.compile(r"gf-[0-9a-f]{8}-([0-9a-f]{32})\Z")
_PAIR = re.compile(r"(\w+)=(\S*)")
_COLUMNS = ("JobName", "State", "Start", "End")


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One run as a batch system has it."""

    local_id: str
    wall_s: float
    """0: it is not known."""
    ended_at_us: int
    """0: it is not known."""


@dataclass(slots=True)
class Differences:
    """Job ids, or for runs without a usage record what the batch system calls them, with what differs."""

    runs: int = 0
    """Usage records that were compared."""
    unaccounted: list[str] = field(default_factory=list)
    """Ran in the batch system, and there is no usage record."""
    unbacked: list[str] = field(default_factory=list)
    """Usage records of runs that the batch system does not have."""
    differing: dict[str, str] = field(default_factory=dict)
    """Job ids whose times differ."""


def slurm_runs(text: str, where: str) -> dict[str, BatchRun]:
    """By key: our runs in a file of Slurm's that were on a node and have ended. Raises UsageProblem."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and "|" in lines[0]:
        names = lines[0].split("|")
        if not set(_COLUMNS) <= set(names):
            raise UsageProblem(
                f"{where} lacks columns; make it by: sacct --parsable2 --format=JobID,{','.join(_COLUMNS)}"
            )
        rows: Iterable[Mapping[str, str]] = [dict(zip(names, line.split("|"), strict=False)) for line in lines[1:]]
    else:
        rows = [_from_completion(dict(_PAIR.findall(line)), where) for line in lines]
    found: dict[str, BatchRun] = {}
    for row in rows:
        name, state = _NAME.match(row["JobName"]), row["State"].split(" ")[0]
        if name is None or state in RUNNING:
            continue
        start, end = _moment(row["Start"]), _moment(row["End"])
        wall_s = max(0.0, (end - start).total_seconds()) if start and end else 0.0
        if wall_s == 0 and state in NEVER_RAN:
            continue
        run = BatchRun(f"{row.get('JobID', '?')} ({row['JobName']})", wall_s, to_us(end) if end else 0)
        before = found.get(name[1])
        if before is None or before.wall_s < wall_s:  # a copy that found the claim taken ended at once
            found[name[1]] = run
    return found


def _from_completion(pairs: Mapping[str, str], where: str) -> Mapping[str, str]:
    try:
        return {
            "JobID": pairs["JobId"], "JobName": pairs["Name"], "State": pairs["JobState"],
            "Start": pairs["StartTime"], "End": pairs["EndTime"],
        }  # fmt: skip
    except KeyError as error:
        raise UsageProblem(f"{where} is no record of Slurm's jobcomp/filetxt or sacct: a line has no {error}") from None


def keys_of(record: lb.UsageRecord) -> list[str]:
    """The keys that this run may have."""
    return [_key(record.job_id, record.attempt, run) for run in range(HAND_OUTS)]


def compare(batch: Mapping[str, BatchRun], records: Sequence[lb.UsageRecord], window: tuple[int, int]) -> Differences:
    """For what ended in that time (microseconds); records and runs from around it only explain others."""
    found, known = Differences(), set[str]()
    for record in records:
        keys = keys_of(record)
        known.update(keys)
        if not window[0] <= record.ended_at_us < window[1]:
            continue
        found.runs += 1
        runs = [batch[key] for key in keys if key in batch]
        if not runs:
            found.unbacked.append(record.job_id)
            continue
        wall_s = max(run.wall_s for run in runs)
        if record.processors <= 1 and wall_s and abs(wall_s - record.wall_s) > SLACK_S + SLACK * record.wall_s:
            found.differing[record.job_id] = f"{record.wall_s:.0f} s accounted for, {wall_s:.0f} s in the batch system"
    found.unaccounted = sorted(
        run.local_id for key, run in batch.items() if key not in known and window[0] <= run.ended_at_us < window[1]
    )
    return found


def worker_runs(entries: Iterable[Mapping[str, object]]) -> dict[str, BatchRun]:
    """By key, as `slurm_runs`: from the `job.ended` lines of workers' audit logs; the first hand-out stands for all."""
    found: dict[str, BatchRun] = {}
    for entry in entries:
        job_id, wall_s = str(entry.get("job_id", "")), entry.get("wall_s")
        if not isinstance(wall_s, int | float) or not wall_s:
            continue  # it never ran
        key = _key(job_id, entry.get("attempt"), 0)
        if key not in found or found[key].wall_s < wall_s:
            ended = _moment(str(entry.get("at")))
            found[key] = BatchRun(f"{job_id} at {entry.get('agent', '?')}", float(wall_s), to_us(ended) if ended else 0)
    return found


def _key(job_id: str, attempt: object, run: int) -> str:
    return hashlib.sha256(f"{job_id}\n{attempt}\n{run}".encode()).hexdigest()[:32]


def _moment(text: str) -> datetime | None:
    """Slurm writes local times without a zone."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
