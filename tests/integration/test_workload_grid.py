"""A workload on a real site with broker, bookkeeping, information, gatekeeper and worker; kill -9 of the first two."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid

from agents.bookkeeping.client import ENDED_STATES, BookkeepingClient, event_name, state_name
from agents.bookkeeping.machine import history_problems
from agents.bookkeeping.model import Event, EventType
from agents.broker.client import BrokerClient
from agents.gatekeeper import client as gatekeeper_client
from fabric.errors import GridError
from fabric.rpc.delegation import delegate

ROOT = Path(__file__).parents[2]


class Grid:
    """One site with everything; the broker and bookkeeping may be processes of their own, to be killed."""

    def __init__(self, lab: LabGrid) -> None:
        self.lab = lab
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, *, apart: bool = False, slots: int = 4) -> None:
        lab = self.lab
        lab.user("alice")
        for kind in ("information", "bookkeeping", "broker", "gatekeeper", "worker"):
            lab.plan(kind)
        await lab.start("information", options={"heartbeat_s": 0.5})
        for kind in ("bookkeeping", "broker"):
            if apart:
                self.launch(f"{kind}.CERN")
            else:
                await lab.start(kind)
        await lab.start("gatekeeper")
        await lab.start("worker", options={"slots": slots})

    def launch(self, name: str) -> None:
        path = self.lab.directory / f"{name}.json"
        path.write_text(json.dumps(self.lab.settings(name)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto/gen")])}
        with (self.lab.directory / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "fabric.agent", str(path)], env=environment, stdout=out, stderr=out
            )

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    async def broker(self) -> BrokerClient:
        proxy = self.lab.user("alice")
        channel = await self.lab.channel("broker", credential=proxy)
        await patiently(lambda: delegate(channel, proxy))
        return BrokerClient(channel)

    async def bookkeeping(self) -> BookkeepingClient:
        return BookkeepingClient(await self.lab.channel("bookkeeping", credential=self.lab.user("alice")))

    async def ended(self, job_ids: list[str], timeout_s: float = 40.0) -> list[Any]:
        client = await self.bookkeeping()
        async with asyncio.timeout(timeout_s):
            while True:
                jobs = await patiently(lambda: client.query(job_ids=job_ids))
                if len(jobs) == len(job_ids) and all(job.state in ENDED_STATES for job in jobs):
                    return jobs
                await asyncio.sleep(0.1)


async def patiently(call: Any, seconds: float = 30.0) -> Any:
    """As a user does while a service is started again."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except GridError as error:
                if (
                    type(error).__name__ not in ("Unavailable", "DeadlineExceeded")
                    and error.reason != "SESSION_UNKNOWN"
                ):
                    raise
                await asyncio.sleep(0.2)


def problems(history: Any) -> list[str]:
    events = [
        Event(
            item.job_id, item.source, item.sequence, item.at_us, EventType(item.type), item.attempt, dict(item.fields)
        )
        for item in history.events
    ]
    return history_problems(events)


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[Grid]:
    async with LabGrid(tmp_path) as lab:
        made = Grid(lab)
        try:
            yield made
        finally:
            for name in list(made.processes):
                made.kill(name)


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
    assert problems(history) == []
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


@pytest.fixture
def marks() -> Iterator[Path]:
    """A folder that pool accounts can write to; pytest closes its own to others each time that one starts somewhere."""
    with tempfile.TemporaryDirectory(prefix="marks-", dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


async def test_kill_of_broker_and_bookkeeping_loses_and_doubles_nothing(grid: Grid, marks: Path) -> None:
    await grid.start(apart=True)
    broker = await grid.broker()
    jdl = f"""Executable = "/bin/sh"; Parameters = 60; Arguments = "-c 'echo x >> {marks}/_PARAM_; sleep 0.1'";"""
    answer = await broker.submit(jdl, submission_id="one")
    # The answer may have been lost: asking again gives the same jobs.
    grid.kill("broker.CERN")
    grid.launch("broker.CERN")
    again = await patiently(lambda: broker.submit(jdl, submission_id="one"))
    assert list(again.children) == list(answer.children)
    await asyncio.sleep(1.0)
    grid.kill("bookkeeping.CERN")
    grid.launch("bookkeeping.CERN")
    await asyncio.sleep(0.5)
    grid.kill("broker.CERN")
    grid.launch("broker.CERN")
    jobs = await grid.ended(list(answer.children))
    assert Counter(state_name(job.state) for job in jobs) == {"DONE": 60}
    assert {path.name: path.read_text() for path in marks.iterdir()} == {str(n): "x\n" for n in range(60)}
    client = await grid.bookkeeping()
    for job in jobs:
        found: list[str] = ["not asked"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):  # the broker that was killed delivers what it had logged, a little later
                while found := problems(await client.history(job.job_id)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        assert found == []
    parent = await client.history(answer.job_id)
    assert dict(parent.job.children) == {"DONE": 60}
