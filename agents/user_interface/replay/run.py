"""`grid bench replay`: users of a log's groups submit what the log says, when it says so, through the real broker."""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from agents.bookkeeping.client import ENDED_STATES, BookkeepingClient, state_name
from agents.broker.client import BrokerClient
from agents.user_interface import console, endpoints, information
from agents.user_interface.connection import administrator
from agents.user_interface.drill import lab
from agents.user_interface.drill.ground import Ground
from agents.user_interface.drill.people import Person
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from agents.user_interface.jobs import succeeded
from agents.user_interface.replay import report, swf
from agents.user_interface.replay.report import ReplayedJob, Run
from agents.user_interface.signals import terminate_as_interrupt
from fabric.errors import DeadlineExceeded, Exhausted, GridError, NotFound, Unavailable
from fabric.ids import unique_id

_DESCRIPTION = """
[grid]
name = "replay"
mode = "lab"
organisation = "/O=Replay"
[[vo]]
name = "cms"
[[vo]]
name = "atlas"
[[vo]]
name = "lhcb"
[[site]]
name = "EAST"
top = {}
information = {}
broker = {}
bookkeeping = {}
gatekeeper = {}
worker = { slots = SLOTS }
[[site]]
name = "WEST"
information = {}
gatekeeper = {}
worker = { slots = SLOTS }
"""
LEAST_SLOTS, MOST_SLOTS = 8, 2000
"""Of each of its two sites."""
USED = 2 / 3
"""The part of the slots that the log's jobs would keep busy if they came evenly."""
SHIPPED = "synthetic.swf"
MAX_SPEED = 1e6
MAX_RUN_S = 3600.0
"""Of one job, by the clock of this machine."""
MAX_SPAN_S = 24 * 3600.0
PEOPLE_PER_VO = 6
"""Users of a log share so many people of each VO."""
JOBS_PER_JDL = 200
"""What one user has due at a moment is submitted together."""
GATHER_S = 0.1
ASKED_AT_ONCE = 2000
"""Jobs whose states are asked for together."""
PATIENCE_S = 300.0
"""After the work should be over at the latest, one job after another on each slot: how long is waited for its end, or
that a submission is taken."""
POLL_S = 0.5
RECORDS_WITHIN_S = 60.0
"""Usage records come to bookkeeping a little after the ends that they are about."""


@dataclass(frozen=True, slots=True)
class Due:
    """A job of the log at this grid."""

    at_s: float
    """Since the replay's beginning."""
    run_s: float


@dataclass
class Score:
    """What the broker has acknowledged: VO by job id; and how it went."""

    vo_of: dict[str, str] = field(default_factory=dict)
    late_s: list[float] = field(default_factory=list)
    """How much later than the log says each job was acknowledged."""
    repeated: int = 0
    """Submissions that were repeated because a service was away or asked for patience."""


def run(trace: Path | None, *, speed: float, limit: int | None, burn: bool, state: Path | None, out: Path,
        as_json: bool) -> None:  # fmt: skip
    """Replay a log and write the report. Exit 1 if a job was lost or run twice."""
    if not 0 < speed <= MAX_SPEED:
        raise UsageProblem(f"--speed is above 0 and at most {MAX_SPEED:g}, not {speed:g}")
    with resources.as_file(resources.files(__package__) / SHIPPED) as shipped:
        log = swf.read(trace or shipped, limit or swf.MAX_JOBS)
    check_span(log, speed)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with terminate_as_interrupt(), lab.running(state, text=description(log)) as folder:
        jobs, slots, score = asyncio.run(_play(log, folder, speed, burn))
    found = {
        "trace": trace.name if trace else SHIPPED,
        "speed": speed,
        "left_out": log.left_out,
        "parallel_as_one": sum(job.processors > 1 for job in log.jobs),
        "submissions_repeated": score.repeated,
        "late_p90_s": round(report.quantile(sorted(score.late_s), 0.9), 3),
        **report.figures(jobs, slots),
    }
    (out / report.JSON_FILE).write_text(json.dumps(found, indent=2), "utf-8")
    report.draw(jobs, slots, out / report.PLOT_FILE)
    if as_json:
        console.print_json(found)
    else:
        report.show(found, out)
    if found["lost"] or found["run_twice"]:
        raise Ended(ExitCode.FAILED)


def description(log: swf.Trace) -> str:
    """The grid that is started for a log, with slots for its jobs."""
    span_s = log.jobs[-1].submitted_s - log.jobs[0].submitted_s
    busy = sum(job.run_s for job in log.jobs) / max(1.0, span_s)
    slots = min(MOST_SLOTS, max(LEAST_SLOTS, math.ceil(busy / USED / 2)))
    return _DESCRIPTION.replace("SLOTS", str(slots))


def check_span(log: swf.Trace, speed: float) -> None:
    """Refuse what would take days. Raises UsageProblem."""
    span_s = (log.jobs[-1].submitted_s - log.jobs[0].submitted_s) / speed
    longest_s = max(job.run_s for job in log.jobs) / speed
    if span_s > MAX_SPAN_S:
        raise UsageProblem(f"the jobs come over {span_s / 3600:.0f} hours at --speed {speed:g}; give more")
    if longest_s > MAX_RUN_S:
        raise UsageProblem(f"the longest job runs {longest_s / 3600:.1f} hours at --speed {speed:g}; give more")


def cast(log: swf.Trace, vos: Sequence[str], speed: float) -> dict[tuple[str, int], list[Due]]:
    """What each person submits: by (VO, number of the person in it), in order of time.

    Groups of the log become VOs, and their users people, the largest first and each in turn.
    """
    groups = [group for group, _ in Counter(job.group for job in log.jobs).most_common()]
    vo_of = {group: vos[place % len(vos)] for place, group in enumerate(groups)}
    users = Counter((vo_of[job.group], job.group, job.user) for job in log.jobs)
    number_of: dict[tuple[int, int], int] = {}
    in_vo: Counter[str] = Counter()
    for (vo, group, user), _ in users.most_common():
        number_of[group, user] = in_vo[vo] % PEOPLE_PER_VO
        in_vo[vo] += 1
    begin_s = log.jobs[0].submitted_s
    parts: dict[tuple[str, int], list[Due]] = defaultdict(list)
    for job in log.jobs:
        due = Due((job.submitted_s - begin_s) / speed, job.run_s / speed)
        parts[vo_of[job.group], number_of[job.group, job.user]].append(due)
    return dict(parts)


def describe(jobs: Sequence[Due], burn: bool) -> str:
    """JDL of one job, or of a collection."""
    nodes = [_payload(job.run_s, burn) for job in jobs]
    if len(nodes) == 1:
        return nodes[0]
    return 'Type = "Collection"; Nodes = {' + ",\n".join(f"[ {node} ]" for node in nodes) + "};"


def _payload(run_s: float, burn: bool) -> str:
    if not burn:
        return f'Executable = "/bin/sleep"; Arguments = "{run_s:.3f}";'
    loop = f"timeout {run_s:.3f} sh -c 'while :; do :; done'; true"
    return f'Executable = "/bin/sh"; Arguments = {{"-c", "{loop}"}};'


async def _play(log: swf.Trace, state: Path, speed: float, burn: bool) -> tuple[list[ReplayedJob], int, Score]:
    services = endpoints.read_file(state / endpoints.ENDPOINTS_FILE)
    if not services.vos:
        raise NotFound("VO_UNKNOWN", "this grid has no VO, and jobs are a VO's; describe one")
    with tempfile.TemporaryDirectory(prefix="gridfabric-replay-") as folder:
        ground = Ground(services, administrator(state), state, Path(folder), seed=0, speed=1.0)
        async with ground, ground.playing("replay"):
            parts = cast(log, services.vos, speed)
            needed = Counter(vo for vo, _ in parts)
            console.say(f"{len(log.jobs)} jobs of {len(parts)} people in {len(needed)} VOs")
            await ground.enrol(needed)
            people = {key: await ground.member("user", key[0]) for key in parts}
            slots = information.slots_of(await information.computing_elements(services.one("top", "ldap")))
            worked_s = sum(due.run_s for part in parts.values() for due in part)
            patience_s = PATIENCE_S + worked_s / max(1, slots)
            score = Score()
            began, began_us = time.monotonic(), time.time_ns() // 1000
            async with asyncio.TaskGroup() as group:
                for key, person in people.items():
                    group.create_task(_submit_all(person, key[0], parts[key], burn, began, patience_s, score))
            console.say(f"submitted within {time.monotonic() - began:.1f} s; waiting for the end of all")
            client = BookkeepingClient(await ground.operator.channel("bookkeeping"))
            return await _collect(client, score, began_us, patience_s), slots, score


async def _submit_all(
    person: Person, vo: str, jobs: Sequence[Due], burn: bool, began: float, patience_s: float, score: Score
) -> None:
    """One person's part of the log, in time; what is due together goes together."""
    channel = await person.grid.channel("broker")
    await person.grid.delegate(channel)
    client = BrokerClient(channel)
    left = list(jobs)
    while left:
        await asyncio.sleep(max(0.0, left[0].at_s - (time.monotonic() - began)))
        now_s = time.monotonic() - began + GATHER_S
        batch = [job for job in left[:JOBS_PER_JDL] if job.at_s <= now_s]
        del left[: len(batch)]
        job_ids = await _submit(client, describe(batch, burn), patience_s, score)
        score.vo_of.update(dict.fromkeys(job_ids, vo))
        now_s = time.monotonic() - began
        score.late_s.extend(max(0.0, now_s - job.at_s) for job in batch)


async def _submit(client: BrokerClient, jdl: str, patience_s: float, score: Score) -> Sequence[str]:
    """Job ids. Repeated under the same submission id while the broker is away or asks for patience."""
    submission_id, deadline = unique_id(), time.monotonic() + patience_s
    while True:
        try:
            answer = await client.submit(jdl, submission_id=submission_id)
            return list(answer.children) or [answer.job_id]
        except (Exhausted, Unavailable, DeadlineExceeded) as error:
            if time.monotonic() > deadline:
                raise
            score.repeated += 1
            await asyncio.sleep(max(POLL_S, error.retry_after_s or 0.0))


async def _collect(client: BookkeepingClient, score: Score, began_us: int, patience_s: float) -> list[ReplayedJob]:
    """Wait for the end of all jobs, as long as there is patience; then what is known of each."""
    summaries: dict[str, Any] = {}
    deadline, left = time.monotonic() + patience_s, deque(score.vo_of)
    while left and time.monotonic() < deadline:
        some = [left.popleft() for _ in range(min(len(left), ASKED_AT_ONCE))]
        try:
            summaries.update({job.job_id: job for job in await client.query(job_ids=some)})
        except GridError as error:
            console.say(f"bookkeeping does not answer: {error.sentence}")
        unfinished = [job_id for job_id in some if job_id not in summaries or not _ended(summaries[job_id])]
        left.extend(unfinished)
        if 2 * len(unfinished) > len(some):
            await asyncio.sleep(POLL_S)
    runs = await _runs(client, summaries, began_us)
    found: list[ReplayedJob] = []
    for job_id, vo in score.vo_of.items():
        job = summaries.get(job_id)
        if job is None:
            found.append(ReplayedJob(vo, 0.0))
            continue
        submitted_s = (job.submitted_at_us - began_us) / 1e6
        found.append(
            ReplayedJob(vo, submitted_s, state_name(job.state), _ended(job), succeeded(job), job.attempt, runs[job_id])
        )
    return found


def _ended(job: Any) -> bool:
    return job.state in ENDED_STATES


async def _runs(client: BookkeepingClient, summaries: dict[str, Any], began_us: int) -> dict[str, list[Run]]:
    """By job id: what its usage records say. Waits a little for those of jobs that went well."""
    expected = {job_id for job_id, job in summaries.items() if succeeded(job)}
    deadline = time.monotonic() + RECORDS_WITHIN_S
    while True:
        runs: dict[str, list[Run]] = defaultdict(list)
        async for record in client.usage_records(began_us, time.time_ns() // 1000 + 60_000_000):
            if record.job_id in summaries and record.started_at_us:
                started_s, ended_s = ((at - began_us) / 1e6 for at in (record.started_at_us, record.ended_at_us))
                runs[record.job_id].append(Run(started_s, max(started_s, ended_s), record.outcome == "DONE"))
        if expected <= runs.keys() or time.monotonic() > deadline:
            return runs
        await asyncio.sleep(POLL_S)
