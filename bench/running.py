"""Section `running`: many real processes at once over packed workers, counted by everybody, and all cancelled."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from agents.bookkeeping.client import state_name
from agents.user_interface import jobs
from agents.user_interface.connection import Grid
from bench.lab import Lab, since, uss
from bench.measure import Bench, Table, show
from clusters import processes

WORKERS = 40
JOBS = 20_000
MANY = 'JobType = "Parametric"; Parameters = {count}; Executable = "/bin/sleep"; Arguments = "86399";'
REACH_S = 1800.0
CANCEL_S = 600.0
LOOK_S = 1.0


def run(bench: Bench, lab: Lab, count: int) -> None:
    """Raises RuntimeError where somebody counts otherwise, or something is left."""
    asyncio.run(_run(bench, lab, count))


async def _run(bench: Bench, lab: Lab, count: int) -> None:
    async with lab.open() as grid:
        before, began = lab.cpu(), time.perf_counter()
        submitted = await jobs.submit(grid, MANY.format(count=count), Path())
        await _until(lambda: _are_running(lab, count), f"{count} processes run", REACH_S)
        await _states(grid, submitted, {"RUNNING": count})
        reached_s = time.perf_counter() - began
        bench.add("running", f"{count} processes running at once over {WORKERS} workers", "jobs/s", [count / reached_s])
        by_pid = {agent.pid: agent.name for agent in reversed(lab.agents)}  # of a pack its first agent
        shared = {agent.name for agent in lab.agents} - set(by_pid.values())
        used = since(before, lab.cpu())
        cost = {name: cpu / count * 1000 for name, cpu in used.items() if name not in shared}
        memory = {name: uss(pid) / 2**20 for pid, name in by_pid.items()}
        began = time.perf_counter()
        await jobs.cancel(grid, [submitted.job_id])
        await _states(grid, submitted, {"CANCELLED": count})
        bench.add("running_cancelled", f"{count} running jobs cancelled", "s", [time.perf_counter() - began])
    await _until(lambda: _are_running(lab, 0), "no process is left", CANCEL_S)
    parts = sorted({*cost, *memory}, key=lambda name: -cost.get(name, 0.0))
    rows = tuple((name, show(cost.get(name, 0.0)), show(memory.get(name, 0.0))) for name in parts)
    bench.tables.append(
        Table(
            f"{count} running jobs (a pack by its first agent)",
            ("part", "ms a job to start it", "MiB while they run"),
            rows,
        )
    )


def payloads(lab: Lab) -> int:
    """Processes of jobs that are alive: children of the workers' starters."""
    starters = {identity.pid for identity in processes.starters_below(lab.state)}
    found = 0
    for pid in psutil.pids():
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:  # it is gone
            continue
        state, parent, *_ = rest.split()
        found += name.endswith("(sleep") and state != "Z" and int(parent) in starters
    return found


async def _are_running(lab: Lab, count: int) -> bool:
    return await asyncio.to_thread(payloads, lab) == count


async def _states(grid: Grid, submitted: jobs.Submitted, wanted: dict[str, int]) -> None:
    """Bookkeeping counts these states and no others."""
    client = await jobs.bookkeeping(grid)

    async def counted() -> Counter[str]:
        found = (await client.history(submitted.job_id)).job.children
        return Counter({name: int(count) for name, count in found.items() if count})

    async def as_wanted() -> bool:
        return await counted() == wanted

    await _until(as_wanted, f"bookkeeping counts {wanted}", CANCEL_S)
    told = Counter(state_name(job.state) for job in await client.query(job_ids=[submitted.job_id]))
    if told != wanted:
        raise RuntimeError(f"bookkeeping counts {dict(told)} one by one, not {wanted}")


async def _until(condition: Callable[[], Awaitable[bool]], what: str, patience_s: float) -> None:
    """Raises RuntimeError."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                if await condition():
                    return
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise RuntimeError(f"not within {patience_s:g} s: {what}") from None
