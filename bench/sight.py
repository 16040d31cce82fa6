"""Section `sight`: questions to the top of a small grid, and how long the changes that jobs make take to get there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from gridfabric.bookkeeping.v1 import bookkeeping_pb2

from agents.user_interface import jobs
from agents.user_interface.connection import Grid
from bench import helpers, limits
from bench.lab import Lab
from bench.measure import Bench
from fabric.ldap.client import LdapClient

BASE = "o=grid"
FILTER = "(objectClass=GlueCE)"
RUNNING = "GlueCEStateRunningJobs"
POLL_S = 0.005
SIGHT_S = 30.0
"""Deadline for a change to be seen."""
SLEEP_JDL = 'Executable = "/bin/sleep"; Arguments = "1.5";'


def run(bench: Bench, lab: Lab) -> None:
    """Search rates by one connection and by four; the delay of changes that jobs make."""
    limits.need(bench, "tcp_echo")
    host, port = lab.services.one("top", "ldap")
    search = helpers.ldap_request(BASE, FILTER)
    order = {"host": host, "port": port, "requests": [search], "seconds": bench.size(2, 1)}
    for clients, name in ((1, "one connection"), (4, "four")):
        values = [sum(one["rate"] for one in helpers.together("ldap", [order] * clients)) for _ in range(bench.trials)]
        title = f"LDAP searches {FILTER} at the top, {name}"
        bench.add(f"searches_{clients}", title, "1/s", values, limit="tcp_echo", note="one entry each")
    delays = asyncio.run(_delays(lab, host, port, bench.size(5, 2)))
    bench.add("delay", "a job's start or end to its sight at the top", "ms", [1000 * delay for delay in delays])


async def _delays(lab: Lab, host: str, port: int, count: int) -> list[float]:
    """Seconds from the gatekeeper's event to the first answer of the top that shows it."""
    found: list[float] = []
    async with lab.open() as grid, await LdapClient.connect(host, port) as client:
        await _seen(client, 0)
        for _ in range(count):
            submitted = await jobs.submit(grid, SLEEP_JDL, Path())
            began = await _seen(client, 1)
            ended = await _seen(client, 0)
            await jobs.follow(grid, [submitted.job_id], lambda _: None, timeout_s=SIGHT_S)
            started_at, ended_at = await _events(grid, submitted.job_id)
            found += [max(0.0, began - started_at), max(0.0, ended - ended_at)]
    return found


async def _seen(client: LdapClient, running: int) -> float:
    """When (by the wall clock) the top first said that so many jobs run."""
    async with asyncio.timeout(SIGHT_S):
        while True:
            entries = await client.search(BASE, FILTER, attributes=[RUNNING])
            if sum(int(_value(entry.attributes.get(RUNNING, ("0",)))) for entry in entries) == running:
                return time.time()
            await asyncio.sleep(POLL_S)


def _value(values: Sequence[str]) -> str:
    return values[0] if values else "0"


async def _events(grid: Grid, job_id: str) -> tuple[float, float]:
    """When the job began to run and when it was done, by the clock of whoever reported it: this machine's."""
    history = await (await jobs.bookkeeping(grid, [job_id])).history(job_id)
    by_type = {event.type: event.at_us / 1e6 for event in history.events}
    return by_type[bookkeeping_pb2.EVENT_TYPE_RUNNING], by_type[bookkeeping_pb2.EVENT_TYPE_DONE]
