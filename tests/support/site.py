"""One computing element with a worker, without Ray: real TLS, real sessions, real processes."""

from __future__ import annotations

import asyncio
from typing import Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid

from agents.gatekeeper import client
from fabric.ids import unique_id
from fabric.rpc.delegation import delegate

FAST: dict[str, Any] = {"heartbeat_s": 0.5}
ENDED = (pb.JOB_STATE_DONE, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)


def job(*arguments: str, executable: str = "/bin/sh", **more: Any) -> pb.Job:
    """A job that writes out and err."""
    more.setdefault("output_sandbox", ["out", "err"])
    description = pb.JobDescription(
        executable=executable, arguments=arguments, std_output="out", std_error="err", vo="cms", **more
    )
    return pb.Job(job_id=f"https://localhost:9000/{unique_id()}", attempt=1, description=description)


class Site:
    """One CE with a worker, and Alice."""

    def __init__(self, lab: LabGrid) -> None:
        self.lab = lab
        self.alice = lab.user("alice")
        self.channel: Any = None

    async def start(self, worker: dict[str, Any] | None = None, gatekeeper: dict[str, Any] | None = None) -> None:
        self.lab.plan("gatekeeper")
        self.lab.plan("worker")
        await self.lab.start("gatekeeper", options={**FAST, **(gatekeeper or {})})
        await self.lab.start("worker", options={"slots": 4, "disk_check_s": 0.1, **(worker or {})})
        self.channel = await self.lab.channel("gatekeeper", credential=self.alice)
        await delegate(self.channel, self.alice)

    async def submit(self, *jobs: pb.Job) -> None:
        outcomes = await client.submit(self.channel, jobs)
        assert all(outcome.accepted for outcome in outcomes), outcomes

    async def ended(self, *jobs: pb.Job, seconds: float = 20) -> list[pb.JobUpdate]:
        """The last update of each."""
        wanted = {one.job_id: None for one in jobs}
        found: dict[str, pb.JobUpdate] = {}
        async with asyncio.timeout(seconds):
            async for update in client.watch(self.channel):
                if update.job_id in wanted and update.state in ENDED:
                    found[update.job_id] = update
                if len(found) == len(wanted):
                    break
        return [found[one.job_id] for one in jobs]

    async def reaches(self, one: pb.Job, state: int, seconds: float = 20) -> pb.JobUpdate:
        async with asyncio.timeout(seconds):
            async for update in client.watch(self.channel):
                if update.job_id == one.job_id and update.state == state:
                    return update
        raise AssertionError

    async def run(self, one: pb.Job) -> pb.JobUpdate:
        await self.submit(one)
        return (await self.ended(one))[0]
