"""Section `jobs`: trivial jobs through everything that a real one passes, beside plain fork and exec."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from agents.bookkeeping.client import ENDED_STATES
from agents.user_interface import jobs
from agents.user_interface.connection import Grid
from bench import limits
from bench.lab import Lab, since
from bench.measure import Bench, Table, show

MANY = 'JobType = "Parametric"; Parameters = {count}; ParameterStart = 0; ParameterStep = 1; Executable = "/bin/true";'
NOWHERE = 'Requirements = other.GlueCEUniqueID == "nowhere";'
ONE = 'Executable = "/bin/true";'
TRIAL_S = 300.0
"""Deadline of one trial."""
SETTLE_S = 2.0
"""After the last job is DONE: agents acknowledge, purge and checkpoint; that is part of what a job costs."""


def run(bench: Bench, lab: Lab) -> None:
    """Many jobs at once, with the CPU time of every part; then one at a time."""
    limits.need(bench, "fork_exec", "fork_exec_parallel")
    asyncio.run(_run(bench, lab))


async def _run(bench: Bench, lab: Lab) -> None:
    async with lab.open() as grid:
        await until_done(grid, ONE)  # sessions, proxies and accounts are there
        await _many(bench, lab, grid, bench.size(2000, 300))
        await _bulk(bench, lab, grid, bench.size(10_000, 2000))
        latencies = [(await until_done(grid, ONE))[1] * 1000 for _ in range(bench.size(20, 5))]
        bench.add("latency", "one job, submit to DONE", "ms", latencies)


async def until_done(grid: Grid, jdl: str) -> tuple[float, float]:
    """Seconds from the call of submit to its answer, and to every job DONE in bookkeeping. Raises RuntimeError."""
    began = time.perf_counter()
    async with asyncio.timeout(TRIAL_S):
        submitted = await jobs.submit(grid, jdl, Path())
        accepted = time.perf_counter() - began
        states = await jobs.follow(grid, [submitted.job_id], lambda _: None)
    seconds = time.perf_counter() - began
    bad = [job for job in states.values() if job.state not in ENDED_STATES or not jobs.succeeded(job)]
    if bad or len(states) != len(submitted.jobs):
        raise RuntimeError(f"{len(bad)} of {len(states)} jobs did not end well: {bad[0].reason if bad else 'missing'}")
    return accepted, seconds


async def _many(bench: Bench, lab: Lab, grid: Grid, count: int) -> None:
    accept, done, costs = [], [], []
    for _ in range(bench.trials):
        before = lab.cpu()
        accepted, seconds = await until_done(grid, MANY.format(count=count))
        await asyncio.sleep(SETTLE_S)
        costs.append({name: cpu / count * 1000 for name, cpu in since(before, lab.cpu()).items()})
        accept.append(count / accepted)
        done.append(count / seconds)
    title = f"{count} jobs of /bin/true through the broker, submit to all DONE"
    bench.add("jobs", title, "jobs/s", done, limit="fork_exec_parallel", note="authenticated, durable at every step")
    bench.add("accepted", f"jobs accepted by the broker, one submission of {count}", "jobs/s", accept)
    everything = "CPU per job, all processes of the grid and the client"
    bench.add("job_cpu", everything, "ms", [sum(cost.values()) for cost in costs], limit="fork_exec_cpu")
    bench.tables.append(_cost_table(costs))


async def _bulk(bench: Bench, lab: Lab, grid: Grid, count: int) -> None:
    """Jobs that no CE takes, cancelled afterwards: what it takes to accept them, and nothing else."""
    rates, costs = [], []
    for _ in range(bench.short_trials):
        before, began = lab.cpu(), time.perf_counter()
        submitted = await jobs.submit(grid, MANY.format(count=count) + NOWHERE, Path())
        rates.append(count / (time.perf_counter() - began))
        spent = since(before, lab.cpu())
        costs.append((spent["broker.LAB"] + spent["client"]) / count * 1000)
        await jobs.cancel(grid, [submitted.job_id])
        async with asyncio.timeout(TRIAL_S):
            await jobs.follow(grid, [submitted.job_id], lambda _: None)
        await asyncio.sleep(SETTLE_S)
    bench.add(
        "accepted_bulk", f"jobs accepted by the broker, one submission of {count}, no CE for them", "jobs/s", rates
    )
    bench.add("accepted_bulk_cpu", "CPU per accepted job, broker and client, until the answer", "ms", costs)


def _cost_table(costs: list[dict[str, float]]) -> Table:
    """By part, the dearest first; medians of the trials."""
    middle = {name: sorted(cost.get(name, 0.0) for cost in costs)[len(costs) // 2] for name in costs[0]}
    total = sum(middle.values()) or 1.0
    rows = sorted(middle.items(), key=lambda item: -item[1])
    return Table(
        "CPU per job, by part",
        ("part", "ms per job", "share"),
        tuple((name, show(value), f"{100 * value / total:.0f} %") for name, value in rows),
    )
