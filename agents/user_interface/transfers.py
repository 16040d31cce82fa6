"""`grid transfer` and subscriptions: the queue of the transfer agent."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agents.transfer.client import ENDED, TransferClient, TransferState
from agents.user_interface import console, data
from agents.user_interface.connection import as_operator, open_for_user
from agents.user_interface.exits import Ended, ExitCode, describe
from agents.user_interface.progress import Bar
from fabric.errors import GridError
from fabric.ids import unique_id
from security.errors import SecurityError

POLL_S = 1.0


@asynccontextmanager
async def _opened(operator: bool, state: Path | None, environ: Mapping[str, str]) -> AsyncIterator[TransferClient]:
    async with as_operator(state, environ) if operator else open_for_user(environ, state) as grid:
        yield TransferClient(await grid.channel("transfer"))


async def submit_command(
    lfns: Sequence[str],
    to: str,
    source: str,
    priority: int,
    *,
    wait: bool,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid transfer submit`."""
    names = [data.check_name(lfn) for lfn in lfns]
    async with open_for_user(environ) as grid:
        names = await data.files_of(grid, names)
        channel = await grid.channel("transfer")
        await grid.delegate(channel)
        client, job_id = TransferClient(channel), unique_id()
        accepted, refused = await client.submit(job_id, names, to, source=source, priority=priority)
        console.say(f"{job_id}  {accepted} files")
        for file in refused:
            console.warn(file.sentence)
        if wait:
            await _follow(client, job_id)
        if as_json:
            wrong = [{"name": file.name, "reason": file.reason, "sentence": file.sentence} for file in refused]
            console.print_json({"id": job_id, "accepted": accepted, "refused": wrong})
        if refused or (wait and await _failures(client, job_id)):
            raise Ended(ExitCode.FAILED)


async def _failures(client: TransferClient, job_id: str) -> int:
    files = (await client.job(job_id)).files
    return sum(count for state, count in files.items() if state != TransferState.FINISHED)


async def _follow(client: TransferClient, job_id: str) -> None:
    """Until every file has ended."""
    job = await client.job(job_id)
    with Bar("files", sum(job.files.values())) as bar:
        while True:
            moved = f"{console.bytes_text(job.moved_bytes)} of {console.bytes_text(job.size_bytes)}"
            ended = sum(count for state, count in job.files.items() if state in ENDED)
            bar.update(ended, f"{moved}  {_counts(job.files)}")
            if _is_over(job):
                return
            await asyncio.sleep(POLL_S)
            job = await client.job(job_id)


def _counts(files: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(files.items()))


def _is_over(job: Any) -> bool:
    return all(state in ENDED for state in job.files)


def _job_data(job: Any) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "owner": job.owner,
        "vo": job.vo,
        "destination": job.destination,
        "priority": job.priority,
        "submitted_at": console.time_us_text(job.submitted_at_us),
        "files": dict(job.files),
        "size_bytes": job.size_bytes,
        "moved_bytes": job.moved_bytes,
    }


def _file_data(file: Any) -> dict[str, Any]:
    return {
        "lfn": f"lfn:{file.lfn}",
        "guid": file.guid,
        "size_bytes": file.size_bytes,
        "moved_bytes": file.moved_bytes,
        "state": file.state,
        "attempt": file.attempt,
        "source": file.source,
        "surl": file.surl,
        "reason": file.reason,
        "sentence": file.sentence,
        "ended_at": console.time_us_text(file.ended_at_us),
    }


async def status_command(
    job_id: str | None,
    *,
    wait: bool,
    operator: bool,
    state: Path | None,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid transfer status`."""
    async with _opened(operator, state, environ) as client:
        if job_id is None:
            jobs = [_job_data(job) for job in await client.jobs()]
            if as_json:
                console.print_json(jobs)
                return
            rows = [
                [
                    job["id"], job["submitted_at"], job["destination"], job["priority"],
                    _counts(job["files"]),
                    f"{console.bytes_text(job['moved_bytes'])} of {console.bytes_text(job['size_bytes'])}",
                ]
                for job in jobs
            ]  # fmt: skip
            console.print_table(["ID", "SUBMITTED", "TO", "PRIORITY", "FILES", "MOVED"], rows)
            return
        if wait:
            await _follow(client, job_id)
        job = _job_data(await client.job(job_id))
        files = [_file_data(file) async for file in client.files(job_id)]
        failed = wait and bool(await _failures(client, job_id))
    if as_json:
        console.print_json({**job, "list": files})
    else:
        rows = [
            [
                file["state"], file["attempt"], f"{console.bytes_text(file['moved_bytes'])} of "
                f"{console.bytes_text(file['size_bytes'])}", file["source"], file["lfn"], file["sentence"],
            ]
            for file in files
        ]  # fmt: skip
        console.print_table(["STATE", "ATTEMPT", "MOVED", "FROM", "LFN", "WHY"], rows)
    if failed:
        raise Ended(ExitCode.FAILED)


async def cancel_command(
    ids: Sequence[str], *, operator: bool, state: Path | None, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid transfer cancel`."""
    rows: list[dict[str, Any]] = []
    failures: list[Exception] = []
    async with _opened(operator, state, environ) as client:
        for job_id in ids:
            try:
                rows.append({"id": job_id, "canceled": await client.cancel(job_id)})
            except (GridError, SecurityError) as error:
                failures.append(error)
                rows.append({"id": job_id, "error": describe(error)})
    data.print_rows(rows, failures, lambda row: f"{row['id']}  {row['canceled']} files ended", as_json=as_json)


async def report_command(
    since_s: float, *, operator: bool, state: Path | None, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid transfer report`."""
    async with _opened(operator, state, environ) as client:
        found = await client.report(int((time.time() - since_s) * 1e6))
    rows = [_fields(row) for row in found]
    if as_json:
        console.print_json(rows)
        return
    console.print_table(
        ["FROM", "TO", "STATE", "REASON", "FILES", "SIZE", "ATTEMPTS"],
        [[*list(row.values())[:5], console.bytes_text(row["size_bytes"]), row["attempts"]] for row in rows],
    )


async def channels_command(
    *, operator: bool, state: Path | None, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid transfer channels`."""
    async with _opened(operator, state, environ) as client:
        found = await client.channels()
    if as_json:
        console.print_json([_fields(link) for link in found])
        return
    console.print_table(
        ["FROM", "TO", "ACTIVE", "LIMIT", "QUEUED", "MB/S", "FILES/S", "CAP", "DONE", "FAILED", "WHY"],
        [
            [
                link.source, link.destination, link.active, link.limit, link.queued, link.bytes_per_s / 1e6,
                link.files_per_s, f"{link.cap_bytes_per_s / 1e6:g} MB/s" if link.cap_bytes_per_s else "",
                link.finished, link.failed, link.why,
            ]
            for link in found
        ],
    )  # fmt: skip


async def subscribe_command(
    directory: str, at: str, copies: int, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data subscribe`."""
    name = data.check_lfn(directory)
    async with open_for_user(environ) as grid:
        channel = await grid.channel("transfer")
        await grid.delegate(channel)
        made = await TransferClient(channel).subscribe(unique_id(), name, at, copies)
    if as_json:
        console.print_json({"id": made.id, "directory": name, "at": at, "copies": copies})
    else:
        print(made.id)


async def unsubscribe_command(
    ids: Sequence[str], *, operator: bool, state: Path | None, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data unsubscribe`."""
    async with _opened(operator, state, environ) as client:
        for subscription_id in ids:
            await client.unsubscribe(subscription_id)
    if as_json:
        console.print_json({"ended": list(ids)})


async def subscriptions_command(
    *, operator: bool, state: Path | None, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data subscriptions`."""
    async with _opened(operator, state, environ) as client:
        found = await client.subscriptions()
    if as_json:
        console.print_json([_fields(one) for one in found])
        return
    console.print_table(
        ["ID", "DIRECTORY", "AT", "COPIES", "FILES", "BEHIND", "LAG", "WHY"],
        [
            [
                one.id, f"lfn:{one.directory}", one.at, one.copies, one.files, one.queued,
                console.hours_text(one.lag_s), one.cause,
            ]
            for one in found
        ],
    )  # fmt: skip


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
