"""`grid accounting`: what was used, by whom and where, from the usage records at bookkeeping."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb

from agents.user_interface import audit, batch_records, console
from agents.user_interface.batch_records import Differences
from agents.user_interface.connection import as_operator, open_for_user
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from agents.user_interface.jobs import bookkeeping, window_us
from security.errors import os_error_text
from security.files import read_bounded

APEL_HEADER = "APEL-individual-job-message: v0.3"
MAX_APEL_RECORDS = 1_000
"""Records in one message, as APEL's own client writes them."""
BAR_WIDTH = 30
MAX_BATCH_BYTES = 1024 * 1024 * 1024
"""Of a batch system's records: some millions of jobs."""
EDGE_S = 10
"""Records of one end may come so much later on one way than on the other."""


async def report_command(
    since_s: int,
    by: Sequence[str],
    chart: Path | None,
    *,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid accounting report`: sums of wall and processor time, by group; a chart as PNG or SVG."""
    async with open_for_user(environ) as grid:
        sums = await (await bookkeeping(grid)).usage(*window_us(since_s), by)
    rows = [
        {
            **{name: one.group[name] for name in by},
            "runs": one.runs,
            "succeeded": one.succeeded,
            "wall_hours": round(one.wall_s / 3600, 3),
            "cpu_hours": round(one.cpu_s / 3600, 3),
            "core_hours": round(one.core_s / 3600, 3),
            "efficiency": round(one.cpu_s / one.core_s, 3) if one.core_s else None,
        }
        for one in sums
    ]
    if chart is not None and rows:
        draw(rows, by, chart)
    if as_json:
        console.print_json(rows)
    elif not rows:
        print("nothing was used in that time")
    else:
        most = max(row["core_hours"] for row in rows) or 1.0
        shown = [[*row.values(), "#" * round(BAR_WIDTH * row["core_hours"] / most)] for row in rows]
        console.print_table([*(name.replace("_", " ") for name in rows[0]), ""], shown)


def draw(rows: Sequence[Mapping[str, Any]], by: Sequence[str], path: Path) -> None:
    """Core hours of each group as bars; with months, a bar for each month with a part for each other group."""
    from matplotlib.figure import Figure

    others = [name for name in by if name != "month"]
    along = "month" if "month" in by else ""
    places = sorted({row[along] for row in rows}) if along else [_label(row, others) for row in rows]
    figure = Figure(figsize=(max(6.0, 0.5 * len(places)), 4.5), layout="constrained")
    axes = figure.subplots()
    if along:
        floor = dict.fromkeys(places, 0.0)
        for group in sorted({_label(row, others) for row in rows}):
            heights = {row[along]: row["core_hours"] for row in rows if _label(row, others) == group}
            at = list(heights)
            axes.bar(at, [heights[place] for place in at], bottom=[floor[place] for place in at], label=group or "all")
            for place in at:
                floor[place] += heights[place]
        axes.legend(fontsize="small")
    else:
        axes.bar(places, [row["core_hours"] for row in rows])
        axes.tick_params(axis="x", labelrotation=30)
    axes.set_ylabel("core hours")
    axes.set_title("Resources used" + (f" by {', '.join(by)}" if by else ""))
    figure.savefig(path)


def _label(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return " ".join(str(row[name]) for name in names)


async def export_command(
    since_s: int, until_s: int, folder: Path, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid accounting export`: usage records as APEL messages, one file for every thousand."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []

    def write(records: Sequence[lb.UsageRecord]) -> None:
        path = folder / f"apel-{len(files) + 1:06d}.msg"
        path.write_text(apel_message(records), encoding="utf-8")
        files.append({"file": str(path), "records": len(records)})

    async with open_for_user(environ) as grid:
        batch: list[lb.UsageRecord] = []
        records: AsyncIterator[lb.UsageRecord] = (await bookkeeping(grid)).usage_records(*window_us(since_s, until_s))
        async for record in records:
            batch.append(record)
            if len(batch) == MAX_APEL_RECORDS:
                write(batch)
                batch = []
        if batch:
            write(batch)
    if as_json:
        console.print_json(files)
    else:
        for file in files:
            print(f"{file['file']}: {file['records']} records")
        if not files:
            print("nothing was used in that time")


def apel_message(records: Sequence[lb.UsageRecord]) -> str:
    """Usage records in APEL's job record format 0.3: key-value lines, `%%` between records."""
    return f"{APEL_HEADER}\n" + "".join(_apel_record(record) + "%%\n" for record in records)


def _apel_record(record: lb.UsageRecord) -> str:
    group, _, role = record.fqan.partition("/Role=")
    fields = {
        "Site": record.site,
        "SubmitHost": record.ce,
        "MachineName": record.ce.partition("/")[0],
        "Queue": record.ce.rpartition("-")[2],
        "LocalJobId": record.local_id or f"{record.job_id.rpartition('/')[2]}.{record.attempt}",
        "LocalUserId": record.account,
        "GlobalUserName": record.owner,
        "FQAN": record.fqan,
        "VO": record.vo,
        "VOGroup": group,
        "VORole": f"Role={role.partition('/')[0]}" if role else "",
        "WallDuration": round(record.wall_s),
        "CpuDuration": round(record.user_s + record.system_s),
        "Processors": record.processors,
        "NodeCount": 1,
        "StartTime": record.started_at_us // 1_000_000,
        "EndTime": record.ended_at_us // 1_000_000,
        "InfrastructureDescription": "APEL-GRIDFABRIC",
        "InfrastructureType": "grid",
        "MemoryReal": record.memory_bytes // 1024,
        "ServiceLevelType": "HEPscore23",
        "ServiceLevel": 1,
    }
    lines = (f"{name}: {_one_line(str(value))}" for name, value in fields.items() if value != "")
    return "".join(f"{line}\n" for line in lines)


def _one_line(text: str) -> str:
    """A value cannot begin a line, or a record, of its own."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


async def check_command(
    since_s: int,
    state: Path | None,
    batch: Path | None = None,
    site: str = "",
    *,
    workers: bool = False,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid accounting check`: usage records held against the jobs of bookkeeping, and against what the batch system of
    a site and the workers wrote themselves; exit 1 where they disagree."""
    window = window_us(since_s)
    around, settled = window_us(since_s + EDGE_S), window_us(since_s, EDGE_S)
    missing: dict[str, str] = {}
    third: dict[str, Differences] = {}
    async with as_operator(state, environ) as grid:
        client = await bookkeeping(grid)
        found = await client.reconcile(*window)
        records = [one async for one in client.usage_records(*around)] if batch or workers else []
        if batch is not None:
            mine = [one for one in records if one.site == site and "/jobmanager-slurm-" in one.ce]
            runs = batch_records.slurm_runs(_text_of(batch), str(batch))
            third["batch"] = batch_records.compare(runs, mine, settled)
        if workers:
            entries, silent = await audit.of_event(grid, "job.ended", around[0])
            missing = {name: sentence for name, sentence in silent.items() if not _is_no_worker(name)}
            heard = {str(entry["agent"]) for entry in entries}
            mine = [one for one in records if one.worker in heard]
            third["workers"] = batch_records.compare(batch_records.worker_runs(entries), mine, settled)
    problems = {"missing": found.missing, "doubled": found.doubled, "unregistered": found.unregistered}
    if as_json:
        counted = {name: list(ids) for name, ids in problems.items()}
        both = {"runs": found.runs, "done_jobs": found.done_jobs}
        times = {"wall_s": found.wall_s, "done_wall_s": found.done_wall_s}
        console.print_json({**both, **times, **counted, **{name: asdict(one) for name, one in third.items()}})
    else:
        print(f"{found.runs} runs of {found.wall_s:.1f} s, {found.done_jobs} jobs done of {found.done_wall_s:.1f} s")
        words = {"missing": "done without a record", "doubled": "done twice", "unregistered": "known to no broker"}
        for name, ids in problems.items():
            for job_id in ids:
                print(f"{job_id}: {words[name]}")
        for name, one in third.items():
            _tell(f"the batch system of {site}" if name == "batch" else "the workers", one)
    if any(problems.values()) or any(one.unaccounted or one.unbacked or one.differing for one in third.values()):
        raise Ended(ExitCode.FAILED)
    console.end_with_missing(missing)


def _is_no_worker(name: str) -> bool:
    """Of an agent; a site of which nobody answers is named alone, and may have some."""
    return "." in name and not name.startswith("worker")


def _tell(who: str, found: Differences) -> None:
    print(f"{found.runs} runs held against {who}")
    for local_id in found.unaccounted:
        print(f"{local_id}: ran, and has no usage record")
    for job_id in found.unbacked:
        print(f"{job_id}: has a usage record, and {who} did not run it")
    for job_id, how in found.differing.items():
        print(f"{job_id}: {how}")


def _text_of(path: Path) -> str:
    try:
        return read_bounded(path, MAX_BATCH_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UsageProblem(f"{path} cannot be read ({os_error_text(error)})") from error
