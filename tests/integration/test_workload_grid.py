"""A workload on a real site with broker, bookkeeping, information, gatekeeper and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.history import events_of

from agents.bookkeeping.client import ENDED_STATES, BookkeepingClient, event_name, state_name
from agents.bookkeeping.machine import history_problems
from agents.broker.client import BrokerClient
from agents.gatekeeper import client as gatekeeper_client
from fabric.rpc.delegation import delegate


class Grid:
    """One site with everything."""

    def __init__(self, lab: LabGrid) -> None:
        self.lab = lab

    async def start(self) -> None:
        lab = self.lab
        lab.user("alice")
        for kind in ("information", "bookkeeping", "broker", "gatekeeper", "worker"):
            lab.plan(kind)
        await lab.start("information", options={"heartbeat_s": 0.5})
        for kind in ("bookkeeping", "broker", "gatekeeper"):
            await lab.start(kind)
        await lab.start("worker", options={"slots": 4})

    async def broker(self) -> BrokerClient:
        proxy = self.lab.user("alice")
        channel = await self.lab.channel("broker", credential=proxy)
        await delegate(channel, proxy)
        return BrokerClient(channel)

    async def bookkeeping(self) -> BookkeepingClient:
        return BookkeepingClient(await self.lab.channel("bookkeeping", credential=self.lab.user("alice")))

    async def ended(self, job_ids: list[str], timeout_s: float = 40.0) -> list[Any]:
        client = await self.bookkeeping()
        async with asyncio.timeout(timeout_s):
            while True:
                jobs = await client.query(job_ids=job_ids)
                if len(jobs) == len(job_ids) and all(job.state in ENDED_STATES for job in jobs):
                    return jobs
                await asyncio.sleep(0.1)


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[Grid]:
    async with LabGrid(tmp_path) as lab:
        yield Grid(lab)


async def test_a_real_job_from_jdl_to_output(grid: Grid, tmp_path: Path) -> None:
    await grid.start()
    broker = await grid.broker()
    (tmp_path / "run.sh").write_text('#!/bin/sh\necho "hello $1 $WORD"\ncat data\nexit 7\n')
    (tmp_path / "data").write_text("some data\n")
    jdl = """[ Executable = "run.sh"; Arguments = "'big world'"; InputSandbox = {"run.sh", "data"};
      StdOutput = "out"; StdError = "err"; OutputSandbox = {"out", "err"}; Environment = {"WORD=again"}; ]"""
    job_id = (await broker.submit(jdl, tmp_path)).job_id
    (job,) = await grid.ended([job_id])
    assert (state_name(job.state), job.exit_code, job.vo, job.worker) == ("DONE", "7", "cms", "worker.CERN")
    async with asyncio.timeout(60):  # bookkeeping may know before the broker does
        while (place := (await broker.locate([job_id]))[0]).state != "DONE":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    host, _, port = place.gatekeeper.rpartition(":")
    channel = await grid.lab.channels.get(host, int(port), grid.lab.user("alice"))
    files = await gatekeeper_client.output_files(channel, job_id)
    assert files["out"] == b"hello big world again\nsome data\n"
    await broker.clear([job_id])
    client = await grid.bookkeeping()
    async with asyncio.timeout(60):
        while await gatekeeper_client.status(channel, [job_id]):  # noqa: ASYNC110  other agents' doing
            await asyncio.sleep(0.05)
        while state_name((await client.query(job_ids=[job_id]))[0].state) != "CLEARED":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    history = await client.history(job_id)
    assert history_problems(events_of(history)) == []
    usual = ["REGISTERED", "ENQUEUED", "MATCHED", "TRANSFERRED", "RUNNING", "DONE", "CLEARED"]
    assert [event_name(event.type) for event in history.events] == usual


async def test_cancel_kills_the_running_process(grid: Grid) -> None:
    await grid.start()
    broker = await grid.broker()
    job_id = (await broker.submit('Executable = "/bin/sleep"; Arguments = "300";')).job_id
    async with asyncio.timeout(60):
        while (await broker.locate([job_id]))[0].state != "RUNNING":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await broker.cancel([job_id])
    (job,) = await grid.ended([job_id])
    assert state_name(job.state) == "CANCELLED"
