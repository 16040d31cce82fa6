"""`grid job perusal`: what was copied of a running job's files at intervals, put together again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb

from agents.bookkeeping.client import ENDED_STATES
from agents.catalog import client as catalog
from agents.user_interface import console, data, jobs
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.exits import UsageProblem
from fabric.errors import NotFound

MAX_ADDED = 10
"""Files that are asked for while the job runs; workers look at no more."""


def _folder(vo: str, job_id: str) -> str:
    """Of a job's copies, as workers make it (agents/worker/perusal.py)."""
    return f"/grid/{vo}/perusal/{job_id.rpartition('/')[2]}"


async def pieces_of(grid: Grid, vo: str, job_id: str) -> dict[str, list[catalog.Entry]]:
    """File to its pieces in order, of the last attempt that has any. Raises NotFound PERUSAL_NOTHING."""
    folder = _folder(vo, job_id)
    attempts: dict[int, dict[str, list[catalog.Entry]]] = {}
    try:
        async with aclosing(catalog.walk(lambda: grid.channel("catalog"), folder)) as pages:
            async for directory, entries in pages:
                where = PurePosixPath(directory).relative_to(folder).parts
                if len(where) == 2 and where[0].isascii() and where[0].isdecimal():
                    attempts.setdefault(int(where[0]), {}).setdefault(where[1], []).extend(
                        entry for entry in entries if not entry.is_directory and _offset(entry) is not None
                    )
    except NotFound:
        attempts.clear()
    if not attempts:
        raise NotFound(
            "PERUSAL_NOTHING",
            f"nothing of {job_id} has been copied (yet): its JDL needs PerusalFileEnable = true, and the first copy "
            "comes after PerusalTimeInterval; grid job follow shows what a running job writes",
        )
    return attempts[max(attempts)]


def _offset(piece: catalog.Entry) -> int | None:
    name = PurePosixPath(piece.lfn).name
    return int(name) if name.isdecimal() and name.isascii() else None


async def fetch(grid: Grid, pieces: list[catalog.Entry], target: Path) -> int:
    """Write a file's pieces one after the other; the bytes written, up to the first that is missing."""
    size = 0
    part = target.with_name(f".{target.name[:200]}.piece")
    with target.open("wb") as file:
        for entry in sorted(pieces, key=lambda entry: entry.lfn):
            if _offset(entry) != size:
                break
            (found,) = await data.lookup(grid, [data.lfn_of(entry)])
            await data.fetch(grid, found, part, None)
            size += file.write(part.read_bytes())
            part.unlink()
    return size


async def set_command(
    job_id: str, names: Sequence[str], *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job perusal --set`: these files of a running job are copied, too, from the next interval on."""
    for name in names:
        if "/" in name or name in (".", "..") or not name:
            raise UsageProblem(f"{name!r} is no plain name; files right in the job's directory can be copied")
    jobs.check_ids([job_id])
    async with open_for_user(environ) as grid:
        summary = await _only(grid, job_id)
        if summary.state in ENDED_STATES:
            raise UsageProblem(f"{job_id} has ended; what was copied of it is fetched by grid job perusal {job_id}")
        folder = f"{_folder(summary.vo, job_id)}/wanted"
        channel = await grid.channel("catalog")
        before: set[str] = set()
        with suppress(NotFound):
            before = {PurePosixPath(entry.lfn).name async for entry in catalog.list_directory(channel, folder)}
        if len(before | set(names)) > MAX_ADDED:
            raise UsageProblem(f"at most {MAX_ADDED} files are added; {', '.join(sorted(before))} are already")
        for name in names:
            await catalog.make_directory(channel, f"{folder}/{name}", make_parents=True)
    if as_json:
        console.print_json({"job_id": job_id, "added": sorted(before | set(names))})
    else:
        print(f"from its next interval on {', '.join(names)} of {job_id} will be copied, if it has PerusalFileEnable")


async def _only(grid: Grid, job_id: str) -> lb.JobSummary:
    summaries = await jobs.summaries(grid, [job_id])
    if summaries[0].job_id != job_id:
        raise UsageProblem(f"{job_id} is {len(summaries)} jobs; name one of them: grid job status {job_id}")
    return summaries[0]


async def perusal_command(
    job_id: str, directory: Path, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """Into a folder with the job's name."""
    jobs.check_ids([job_id])
    rows: list[dict[str, Any]] = []
    async with open_for_user(environ) as grid:
        found = await pieces_of(grid, (await _only(grid, job_id)).vo, job_id)
        folder = directory / job_id.rpartition("/")[2]
        folder.mkdir(parents=True, exist_ok=True)
        for name, pieces in sorted(found.items()):
            size = await fetch(grid, pieces, folder / name)
            rows.append({"name": name, "size_bytes": size, "path": str(folder / name)})
    if as_json:
        console.print_json({"job_id": job_id, "files": rows})
        return
    for row in rows:
        print(f"{row['path']}  {console.bytes_text(row['size_bytes'])}")
