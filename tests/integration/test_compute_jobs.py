"""Gatekeeper and worker together: real TLS, real sessions, real processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents.gatekeeper import client
from fabric.errors import GridError
from fabric.ids import unique_id
from fabric.rpc.delegation import delegate
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid

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


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with LabGrid(tmp_path) as lab:
        yield Site(lab)


async def test_a_job_runs_and_its_output_comes_back(site: Site) -> None:
    await site.start()
    one = job("-c", 'echo hello $USER; id -u; pwd; echo "$X509_USER_PROXY" >&2; exit 3')
    update = await site.run(one)
    assert (update.state, update.exit_code, update.reason) == (pb.JOB_STATE_DONE, 3, "")
    assert update.worker == "worker.CERN"
    files = await client.output_files(site.channel, one.job_id)
    lines = files["out"].decode().split("\n")
    assert lines[0] == "hello cms001"
    assert lines[1] == ("61001" if os.geteuid() == 0 else str(os.geteuid()))
    assert files["err"].decode().strip() == f"{lines[2]}/.x509_proxy"
    await client.purge(site.channel, [one.job_id])
    assert await client.status(site.channel, [one.job_id]) == []
