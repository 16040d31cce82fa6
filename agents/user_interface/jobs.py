"""`grid job`: submit, follow and collect jobs through broker, bookkeeping and gatekeeper."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb

from agents.bookkeeping.client import ENDED_STATES, BookkeepingClient, event_name, state_name, state_number
from agents.gatekeeper import client as gatekeeper
from agents.user_interface import brokers, console
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.endpoints import parse_address
from agents.user_interface.exits import Ended, ExitCode, UsageProblem, describe, exit_code
from agents.user_interface.output import get_output
from fabric.errors import Conflict, GridError, NotFound, Unavailable
from security.errors import SecurityError

if TYPE_CHECKING:
    from gridfabric.broker.v1.broker_pb2 import CancelOutcome, JobLocation, SubmitResponse

    from agents.broker.client import BrokerClient

MAX_JDL_BYTES = 1024 * 1024
POLL_S = 0.5
"""Pause before the watch of jobs is opened again after bookkeeping went away."""
CLEAR_PATIENCE_S = 15.0
CLEAR_PAUSE_S = 0.1
MAX_WATCHED = 10_000
"""Jobs of one's own that `grid job watch` looks at without being told which."""
REGISTERED_WITHIN_S = 600.0
"""Bookkeeping has heard of all jobs of a submission this long after it."""
MAX_LOCATED = 100
"""Waiting jobs of which `grid job status` asks the broker why."""
FETCHES_AT_ONCE = 8
"""Output sandboxes fetched side by side."""


@dataclass(frozen=True)
class Submitted:
    """What the broker answered to one JDL."""

    file: str
    job_id: str
    children: tuple[str, ...]

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs that run: the children, or the job itself."""
        return self.children or (self.job_id,)


def read_jdl(path: Path) -> str:
    """A job description. Raises OSError, UsageProblem."""
    with path.open("rb") as file:
        data = file.read(MAX_JDL_BYTES + 1)
    if len(data) > MAX_JDL_BYTES:
        raise UsageProblem(f"{path} is too long: a job description has at most {MAX_JDL_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageProblem(f"{path} is not a text in UTF-8 (byte {error.start})") from None


async def submit(grid: Grid, jdl: str, folder: Path, file: str = "") -> Submitted:
    """Submit one description; its sandbox files are looked for in `folder`. Raises GridError."""
    response = await brokers.submit(grid, jdl, folder)
    return Submitted(file, response.job_id, tuple(response.children))


def bookkeeping_address(grid: Grid, job_ids: Sequence[str]) -> tuple[str, int]:
    """The bookkeeping server: the one configured, else the one that the first job's id names."""
    try:
        return grid.services.one("bookkeeping")
    except NotFound:
        for job_id in job_ids:
            rest = job_id.partition("://")[2].partition("/")[0]
            if rest:
                return parse_address(rest, "the job id's server")
        raise


async def bookkeeping(grid: Grid, job_ids: Sequence[str] = ()) -> BookkeepingClient:
    """A client of the bookkeeping server that knows these jobs."""
    host, port = bookkeeping_address(grid, job_ids)
    return BookkeepingClient(await grid.channel_to(host, port))


def check_ids(job_ids: Iterable[str]) -> None:
    """Refuse what cannot be a job id, before anything is sent. Raises UsageProblem."""
    for job_id in job_ids:
        if not job_id.startswith("https://") or "/" not in job_id[8:].strip("/") or len(job_id) > 400:
            raise UsageProblem(
                f"{job_id[:100]!r} is not a job id; it looks like https://host:port/Vx3k0Z2mQ1y8bN7cT5dR9w"
            )


async def summaries(grid: Grid, job_ids: Sequence[str]) -> list[lb.JobSummary]:
    """The present state of jobs; children stand for their parent. Raises NotFound for an id nobody knows."""
    found = await (await bookkeeping(grid, job_ids)).query(job_ids=job_ids)
    known = {job.job_id for job in found} | {job.parent for job in found}
    missing = [job_id for job_id in job_ids if job_id not in known]
    if missing:
        raise NotFound("JOB_UNKNOWN", f"bookkeeping knows no job {missing[0]}", job_id=missing[0], missing=len(missing))
    return found


def succeeded(job: lb.JobSummary) -> bool:
    """Ended well: DONE (or CLEARED after it) with exit code 0."""
    return job.state in (lb.JOB_STATE_DONE, lb.JOB_STATE_CLEARED) and job.exit_code in ("0", "")


async def follow(
    grid: Grid,
    job_ids: Sequence[str],
    on_change: Callable[[Mapping[str, lb.JobSummary]], Awaitable[None] | None],
    *,
    timeout_s: float | None = None,
) -> dict[str, lb.JobSummary]:
    """Watch jobs until all have ended, also those of a parent that bookkeeping has not heard of yet; survives restarts
    of bookkeeping. Raises TimeoutError."""
    client = await bookkeeping(grid, job_ids)
    states: dict[str, lb.JobSummary] = {job.job_id: job for job in await summaries(grid, job_ids)}
    expected = await _number_of(client, job_ids, states.values())

    def have_ended() -> bool:
        return len(states) >= expected and all(job.state in ENDED_STATES for job in states.values())

    async def watch() -> None:
        while True:
            try:
                async for changed in client.watch(job_ids):
                    for job in changed:
                        states[job.job_id] = job
                    result = on_change(states)
                    if result is not None:
                        await result
                    if have_ended():
                        return
            except Unavailable:
                pass
            await asyncio.sleep(POLL_S)

    first = on_change(states)
    if first is not None:
        await first
    if not have_ended():
        async with asyncio.timeout(timeout_s):
            await watch()
    return states


async def _number_of(client: BookkeepingClient, job_ids: Sequence[str], known: Iterable[lb.JobSummary]) -> int:
    """How many jobs these are. A new parent says how many it has, of which bookkeeping may not have heard of all yet;
    of an old one some may be in the archive."""
    alone, children = 0, Counter[str]()
    for job in known:
        if job.parent in job_ids and job.job_id not in job_ids:
            children[job.parent] += 1
        else:
            alone += 1
    for parent, heard in children.items():
        events = (await client.history(parent)).events
        new_us = (time.time() - REGISTERED_WITHIN_S) * 1e6
        told = next((event.fields["jobs"] for event in events if "jobs" in event.fields and event.at_us > new_us), "")
        children[parent] = max(heard, int(told) if told.isdecimal() else 0)
    return alone + children.total()


def reason_of(job: lb.JobSummary) -> str:
    """Why a job is in its state; nothing where that would only repeat the state, as in CANCELLED: CANCELLED."""
    return "" if job.reason == state_name(job.state) else job.reason


def as_data(job: lb.JobSummary) -> dict[str, Any]:
    """A summary as plain data."""
    return {
        "job_id": job.job_id,
        "name": job.name,
        "state": state_name(job.state),
        "exit_code": int(job.exit_code) if job.exit_code.lstrip("-").isdigit() else None,
        "reason": reason_of(job),
        "ce": job.ce,
        "worker": job.worker,
        "attempt": job.attempt,
        "owner": job.owner,
        "vo": job.vo,
        "parent": job.parent,
        "submitted_at": console.time_us_text(job.submitted_at_us),
        "changed_at": console.time_us_text(job.changed_at_us),
        "wall_s": round(job.wall_s, 3),
        "cpu_s": round(job.cpu_s, 3),
    }


def print_jobs(jobs: Sequence[lb.JobSummary], *, as_json: bool) -> None:
    """Summaries for a person or a program."""
    if as_json:
        console.print_json([as_data(job) for job in jobs])
        return
    if not jobs:
        print("no jobs")
        return
    rows = [
        [
            job.job_id,
            state_name(job.state),
            job.exit_code,
            job.ce,
            job.attempt,
            console.time_us_text(job.changed_at_us),
            reason_of(job),
        ]
        for job in jobs
    ]
    console.print_table(["JOB", "STATE", "EXIT", "CE", "ATTEMPT", "CHANGED", "REASON"], rows)


def _about(name: str, sentence: str) -> str:
    """A sentence that says what it is about."""
    return sentence if name in sentence else f"{name}: {sentence}"


async def submit_command(
    files: Sequence[Path], ids: Path | None, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job submit`: each file on its own; what was accepted is always printed, even if a later one is refused."""
    if ids is not None:
        with ids.open("a", encoding="utf-8"):  # refused now, not when the jobs are submitted and their ids lost
            pass
    texts: list[tuple[Path, str]] = []
    done: list[Submitted] = []
    failures: list[tuple[Path, Exception]] = []
    for path in files:
        try:
            texts.append((path, read_jdl(path)))
        except (OSError, UsageProblem) as error:
            failures.append((path, error))
    if texts:
        async with open_for_user(environ) as grid:
            for path, text in texts:
                try:
                    done.append(await submit(grid, text, path.resolve().parent, str(path)))
                except (GridError, SecurityError, OSError, UsageProblem) as error:
                    failures.append((path, error))
    failures.sort(key=lambda failure: files.index(failure[0]))
    if as_json:
        rows: list[dict[str, Any]] = [{"file": s.file, "job_id": s.job_id, "children": list(s.children)} for s in done]
        rows += [{"file": str(path), "error": describe(error)} for path, error in failures]
        console.print_json(rows)
    else:
        for submitted in done:
            print(submitted.job_id, flush=True)
    if ids is not None:
        with ids.open("a", encoding="utf-8") as file:
            file.writelines(f"{submitted.job_id}\n" for submitted in done)
    for path, error in failures:
        console.warn(_about(str(path), describe(error)["sentence"]))
    if failures:
        raise Ended(exit_code(failures[0][1]))


async def status_command(
    job_ids: Sequence[str],
    state: str | None,
    ce: str | None,
    since_s: int | None,
    limit: int,
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid job status`."""
    check_ids(job_ids)
    try:
        wanted = state_number(state) if state else 0
    except ValueError:
        raise UsageProblem(f"{state!r} is no job state; states are SUBMITTED WAITING READY SCHEDULED RUNNING DONE "
                           "CLEARED ABORTED CANCELLED") from None  # fmt: skip
    async with open_for_user(environ) as grid:
        if job_ids:
            found = await summaries(grid, job_ids)
            found = [job for job in found if (not wanted or job.state == wanted) and (not ce or job.ce == ce)]
            await _say_why_they_wait(grid, found)
        else:
            client = await bookkeeping(grid)
            since_us = window_us(since_s)[0] if since_s else 0
            found = await client.query(owner=grid.identity, state=wanted, ce=ce or "", since_us=since_us, limit=limit)
    print_jobs(found[:limit], as_json=as_json)


async def _say_why_they_wait(grid: Grid, jobs: Sequence[lb.JobSummary]) -> None:
    """The reason of jobs that wait is what their broker says now, if it answers."""
    states = (lb.JOB_STATE_WAITING, lb.JOB_STATE_READY)
    queued = lb.JOB_STATE_SCHEDULED  # with a reason: held there
    waiting = [job for job in jobs if job.state in states or (job.state == queued and not job.reason)][:MAX_LOCATED]
    if not waiting:
        return
    try:
        places = {place.job_id: place for _, place in await located(grid, [job.job_id for job in waiting])}
    except (GridError, SecurityError) as error:
        console.warn(f"why jobs wait is not known: {describe(error)['sentence']}")
        return
    for job in waiting:
        if job.job_id in places and places[job.job_id].waiting_for:
            job.reason = places[job.job_id].waiting_for


def end_with_failed(ended: Sequence[lb.JobSummary]) -> None:
    """Say how the first of these that did not end well ended. Raises Ended JOB_FAILED if there is one."""
    bad = [job for job in ended if not succeeded(job)]
    if bad:
        first = bad[0]
        code = f" with exit code {first.exit_code}" if first.exit_code else ""
        why = f": {reason}" if (reason := reason_of(first)) else ""
        console.warn(
            f"{len(bad)} of {len(ended)} jobs did not succeed; {first.job_id} is {state_name(first.state)}{code}{why}"
        )
        raise Ended(ExitCode.JOB_FAILED)


async def wait_command(
    job_ids: Sequence[str], timeout_s: float | None, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job wait`."""
    check_ids(job_ids)
    shown = ""

    def show(states: Mapping[str, lb.JobSummary]) -> None:
        nonlocal shown
        counts: dict[str, int] = {}
        for job in states.values():
            counts[state_name(job.state)] = counts.get(state_name(job.state), 0) + 1
        text = "  ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        if text != shown and not as_json:
            print(text, flush=True)
        shown = text

    async with open_for_user(environ) as grid:
        try:
            states = await follow(grid, job_ids, show, timeout_s=timeout_s)
        except TimeoutError:
            raise TimeoutError(f"not all jobs have ended after {timeout_s:g} s ({shown}); they go on running") from None
    if as_json:
        print_jobs(list(states.values()), as_json=True)
    end_with_failed(list(states.values()))


async def watch_command(
    job_ids: Sequence[str], timeout_s: float | None, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job watch`: a line for each change of state, until all have ended."""
    check_ids(job_ids)
    known: dict[str, tuple[int, int]] = {}

    def show(states: Mapping[str, lb.JobSummary]) -> None:
        news = [job for job in states.values() if known.get(job.job_id) != (job.state, job.attempt)]
        for job in sorted(news, key=lambda job: job.changed_at_us):
            known[job.job_id] = (job.state, job.attempt)
            if as_json:
                print(json.dumps(as_data(job), ensure_ascii=False), flush=True)
            else:
                words = [console.time_us_text(job.changed_at_us), f"{state_name(job.state):9}", job.job_id, job.ce]
                print("  ".join(word for word in [*words, reason_of(job)] if word), flush=True)

    async with open_for_user(environ) as grid:
        wanted = list(job_ids)
        if not wanted:
            wanted = [job["job_id"] for job in await jobs_under_way(grid, owner=grid.identity, limit=MAX_WATCHED)]
        if not wanted:
            if not as_json:
                print("no job of yours is under way")
            return
        try:
            await follow(grid, wanted, show, timeout_s=timeout_s)
        except TimeoutError:
            raise TimeoutError(f"not all jobs have ended after {timeout_s:g} s; they go on") from None


def window_us(since_s: int, until_s: int = 0) -> tuple[int, int]:
    """The time from so many seconds ago until so many seconds ago."""
    now = time.time()
    return int((now - since_s) * 1e6), int((now - until_s) * 1e6)


async def stats_command(
    since_s: int, by: Sequence[str], *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job stats`: how the jobs of a time fared."""
    async with open_for_user(environ) as grid:
        groups = await (await bookkeeping(grid)).statistics(*window_us(since_s), by)
    rows = [
        {
            **{name: one.group[name] for name in by},
            "jobs": one.jobs,
            "per_hour": round(one.jobs * 3600 / since_s, 1),
            "ended": one.ended,
            "succeeded": one.succeeded,
            "resubmitted": one.resubmitted,
            "wait_median_s": round(one.wait_median_s, 1),
            "wait_p90_s": round(one.wait_p90_s, 1),
            "wait_max_s": round(one.wait_max_s, 1),
            "wall_s": round(one.wall_s, 1),
            "cpu_s": round(one.cpu_s, 1),
        }
        for one in groups
    ]
    if as_json:
        console.print_json(rows)
    elif not rows:
        print("no jobs in that time")
    else:
        console.print_table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])


async def hold_command(
    job_ids: Sequence[str], *, release: bool, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job hold` and `grid job release`: at the gatekeeper that has the job. The first refusal ends it."""
    check_ids(job_ids)
    done = []
    async with open_for_user(environ) as grid:
        ids = [job.job_id for job in await summaries(grid, job_ids)]
        places = {place.job_id: place for _, place in await located(grid, ids)}
        for job_id in ids:
            place = places.get(job_id)
            if place is None or not place.gatekeeper:
                state = place.state.upper() if place is not None else "unknown"
                raise Conflict("JOB_NOT_WAITING", f"{job_id} is {state}, and not at a computing element", job_id=job_id)
            host, port = parse_address(place.gatekeeper, "the gatekeeper's address")
            channel = await grid.channel_to(host, port)
            await (gatekeeper.release if release else gatekeeper.hold)(channel, [job_id])
            done.append({"job_id": job_id, "held": not release})
            if not as_json:
                console.say(f"{'released' if release else 'held'}: {job_id}")
    if as_json:
        console.print_json(done)


async def located(grid: Grid, job_ids: Sequence[str]) -> list[tuple[BrokerClient, JobLocation]]:
    """Which broker has each of these jobs, and where it says that it is; unknown ids are left out. Raises GridError."""

    async def locate(channel: Any, ids: list[str]) -> tuple[list[tuple[BrokerClient, JobLocation]], set[str]]:
        client = brokers.client_of(channel)
        places = await client.locate(ids)
        return [(client, place) for place in places], set(ids) - {place.job_id for place in places}

    return (await brokers.ask(grid, job_ids, locate))[0]


async def fetch_output(grid: Grid, job_id: str, folder: Path, *, clear: bool) -> list[dict[str, Any]]:
    """Fetch one job's output sandbox into `folder`. Returns name, size and sha256 of each file. Raises GridError."""
    found = [item for item in await located(grid, [job_id]) if item[1].job_id == job_id]
    if not found:
        raise NotFound("JOB_UNKNOWN", f"the broker knows no job {job_id}", job_id=job_id)
    client, location = found[0]
    if location.state.upper() == "CLEARED":
        raise NotFound(
            "OUTPUT_CLEARED", f"the output of {job_id} was fetched before and is cleared; --keep leaves it at the site"
        )
    if not location.gatekeeper:
        raise NotFound(
            "NO_OUTPUT", f"{job_id} is {location.state.upper()} and has no output at any site (yet)", job_id=job_id
        )
    host, port = parse_address(location.gatekeeper, "the gatekeeper's address")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files = await get_output(await grid.channel_to(host, port), job_id, folder)
    except Unavailable:  # a connection that broke is made anew once
        files = await get_output(await grid.channel_to(host, port), job_id, folder)
    if clear:
        await _clear(client, job_id)
    return [{"name": f.name, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in files]


async def _clear(client: BrokerClient, job_id: str) -> None:
    """Tell the broker that the output is here. It may hear a little later than bookkeeping that the job has ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CLEAR_PATIENCE_S
    while True:
        try:
            return await client.clear([job_id])
        except Conflict:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(CLEAR_PAUSE_S)


async def output_command(
    job_ids: Sequence[str], directory: Path, *, keep: bool, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job output`: a folder for each job; every job is tried, the first failure decides the exit code."""
    check_ids(job_ids)
    results: dict[str, dict[str, Any]] = {}
    failures: list[Exception] = []
    async with open_for_user(environ) as grid:
        ids = [job.job_id for job in await summaries(grid, job_ids)]
        gate = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def one(job_id: str) -> None:
            folder = directory / job_id.rpartition("/")[2]
            try:
                async with gate:
                    files = await fetch_output(grid, job_id, folder, clear=not keep)
                results[job_id] = {"job_id": job_id, "directory": str(folder), "files": files}
            except (GridError, SecurityError, OSError) as error:
                failures.append(error)
                results[job_id] = {"job_id": job_id, "error": describe(error)}

        async with asyncio.TaskGroup() as group:
            for job_id in ids:
                group.create_task(one(job_id))
    ordered = [results[job_id] for job_id in ids]
    if as_json:
        console.print_json(ordered)
    for row in ordered:
        if "error" in row:
            console.warn(_about(row["job_id"], row["error"]["sentence"]))
        elif not as_json:
            print(f"{row['directory']}: {', '.join(file['name'] for file in row['files']) or 'no files'}")
    if failures:
        raise Ended(exit_code(failures[0]))


async def cancel(grid: Grid, job_ids: Sequence[str]) -> tuple[list[CancelOutcome], list[str]]:
    """End jobs, each at the broker that has it: (outcomes, ids that no broker knows). Raises GridError."""

    async def ask(channel: Any, ids: list[str]) -> tuple[list[CancelOutcome], set[str]]:
        outcomes = await brokers.client_of(channel).cancel(ids)
        unknown = {outcome.job_id for outcome in outcomes if outcome.outcome == "unknown"}
        return [outcome for outcome in outcomes if outcome.job_id not in unknown], unknown

    return await brokers.ask(grid, job_ids, ask)


async def cancel_command(job_ids: Sequence[str], *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid job cancel`."""
    check_ids(job_ids)
    async with open_for_user(environ) as grid:
        outcomes, unknown = await cancel(grid, job_ids)
    rows = [{"job_id": outcome.job_id, "outcome": outcome.outcome} for outcome in outcomes]
    rows += [{"job_id": job_id, "outcome": "unknown"} for job_id in unknown]
    if as_json:
        console.print_json(rows)
    else:
        for row in rows:
            print(f"{row['job_id']}: {row['outcome']}")
    if unknown:
        raise NotFound("JOB_UNKNOWN", f"the broker knows no job {unknown[0]} of yours", job_id=unknown[0])


async def resubmit(grid: Grid, job_id: str) -> SubmitResponse:
    """Submit again what did not end well, at the broker that has it. Raises GridError."""

    async def ask(channel: Any, ids: list[str]) -> tuple[list[SubmitResponse], set[str]]:
        await grid.delegate(channel)
        try:
            return [await brokers.client_of(channel).resubmit(job_id)], set()
        except NotFound as error:
            refusals.append(error)
            return [], set(ids)

    refusals: list[NotFound] = []
    answers, _ = await brokers.ask(grid, [job_id], ask)
    if not answers:
        raise refusals[0]
    return answers[0]


async def resubmit_command(
    job_id: str, ids: Path | None, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job resubmit`."""
    check_ids([job_id])
    async with open_for_user(environ) as grid:
        response = await resubmit(grid, job_id)
    if ids is not None:
        with ids.open("a", encoding="utf-8") as file:
            file.write(f"{response.job_id}\n")
    if as_json:
        console.print_json({"job_id": response.job_id, "children": list(response.children)})
    else:
        print(response.job_id)


async def history_command(job_id: str, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid job history`."""
    check_ids([job_id])
    async with open_for_user(environ) as grid:
        answer = await (await bookkeeping(grid, [job_id])).history(job_id)
    data = history_data(answer)
    if as_json:
        console.print_json(data)
        return
    print(f"{job_id}  {data['job']['state']}")
    rows = [
        [event["at"], event["event"], event["attempt"], event["source"], _fields_text(event["fields"])]
        for event in data["events"]
    ]
    console.print_table(["TIME", "EVENT", "ATTEMPT", "SOURCE", "FIELDS"], rows)


def history_data(answer: lb.HistoryResponse) -> dict[str, Any]:
    """A job's history as plain data."""
    return {
        "job": as_data(answer.job),
        "events": [
            {
                "at": console.time_us_text(event.at_us),
                "event": event_name(event.type),
                "attempt": event.attempt,
                "source": event.source,
                "sequence": event.sequence,
                "fields": dict(event.fields),
            }
            for event in answer.events
        ],
    }


def _fields_text(fields: Mapping[str, str]) -> str:
    return "  ".join(
        f"{name}={value}" for name, value in sorted(fields.items()) if name not in ("owner", "vo") and value
    )


async def list_match_command(file: Path, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid job list-match`."""
    text = read_jdl(file)
    async with open_for_user(environ) as grid:
        folder = file.resolve().parent
        _, found = await brokers.first(grid, lambda channel: brokers.client_of(channel).list_match(text, folder))
    matches = list(found)
    matches.sort(key=lambda match: (not match.matches, -match.rank, match.ce))
    if as_json:
        names = ("ce", "matches", "rank", "failing_term", "explanation", "change")
        console.print_json([{name: getattr(match, name) for name in names} for match in matches])
    else:
        rows = [
            [m.ce, "yes" if m.matches else "no", f"{m.rank:g}" if m.matches else "",
             " : ".join(filter(None, (m.failing_term, m.explanation))), m.change]
            for m in matches
        ]  # fmt: skip
        console.print_table(["CE", "SUITS", "RANK", "WHY NOT", "SMALLEST CHANGE"], rows)
    if not any(match.matches for match in matches):
        raise NotFound(
            "NO_MATCH", "no computing element suits this job" if matches else "no computing element is known"
        )


async def jobs_under_way(grid: Grid, **wanted: Any) -> list[dict[str, str]]:
    """Jobs that have not ended, `wanted` as for `BookkeepingClient.query`."""
    return [
        {"job_id": job.job_id, "owner": job.owner, "state": state_name(job.state), "ce": job.ce}
        for job in await (await bookkeeping(grid)).query(**wanted)
        if job.state not in ENDED_STATES
    ]


def print_under_way(jobs: Sequence[dict[str, str]], unknown: Sequence[str]) -> None:
    """The end of what a dry run says: jobs under way, and what could not be asked."""
    if jobs:
        console.print_table(("job", "state", "owner"), [(job["job_id"], job["state"], job["owner"]) for job in jobs])
    for sentence in unknown:
        console.warn(f"not known: {sentence}")
