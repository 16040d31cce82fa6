"""A starter killed with SIGKILL while jobs are under way. The agents: tests/drills/test_failpoints.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid

from agents.gatekeeper import client
from fabric.errors import GridError
from fabric.ids import unique_id
from fabric.rpc.delegation import delegate

ROOT = Path(__file__).parents[2]
ENDED = (pb.JOB_STATE_DONE, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)


class Processes:
    """A gatekeeper and a worker as two processes."""

    def __init__(self, lab: LabGrid) -> None:
        self.lab = lab
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.options: dict[str, dict[str, Any]] = {
            "gatekeeper": {"heartbeat_s": 0.5, "lease_linger_s": 0.2},
            "worker": {"slots": 4, "term_grace_s": 0.2, "reconnect_max_s": 0.2},
        }
        self.alice = lab.user("alice")
        lab.plan("gatekeeper")
        lab.plan("worker")

    async def start(self, kind: str) -> None:
        name = f"{kind}.CERN"
        path = self.lab.directory / f"{name}.json"
        path.write_text(json.dumps(self.lab.settings(name, options=self.options[kind])))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto" / "gen")))}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fabric.agent", str(path), stdout=asyncio.subprocess.PIPE, env=environment
        )
        self.running[kind] = process
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert b"ready" in line, line

    async def stop(self) -> None:
        for process in reversed(list(self.running.values())):
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)

    async def channel(self) -> Any:
        channel = await self.lab.channel("gatekeeper", credential=self.alice)
        await delegate(channel, self.alice)
        return channel

    async def ended(self, job_ids: list[str], seconds: float = 40) -> dict[str, pb.JobUpdate]:
        """Watches again whenever the gatekeeper goes away, as a broker does."""
        found: dict[str, pb.JobUpdate] = {}
        after = 0
        async with asyncio.timeout(seconds):
            while len(found) < len(job_ids):
                try:
                    async for update in client.watch(
                        await self.lab.channel("gatekeeper", credential=self.alice), after
                    ):
                        after = max(after, update.sequence)
                        if update.state in ENDED:
                            found[update.job_id] = update
                        if len(found) == len(job_ids):
                            break
                except GridError:
                    await asyncio.sleep(0.05)
        return found


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every account may write to."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    async with LabGrid(tmp_path) as lab:
        site = Processes(lab)
        await site.start("gatekeeper")
        await site.start("worker")
        try:
            yield site
        finally:
            await site.stop()


def counting_job(shared: Path, number: int, script: str) -> pb.Job:
    line = f"echo line >> {shared}/{number}; {script}; echo {number}"
    description = pb.JobDescription(
        executable="/bin/sh", arguments=["-c", line], std_output="out", output_sandbox=["out"], vo="cms"
    )
    return pb.Job(job_id=f"https://localhost:9000/{unique_id()}", attempt=1, description=description)


async def test_a_killed_starter_accounts_for_its_jobs_and_leaves_no_process(processes: Processes, shared: Path) -> None:
    channel = await processes.channel()
    sleep = f"sleep 300.{os.getpid()}"  # of this test alone
    long = [counting_job(shared, number, f"(setsid {sleep} &) ; {sleep}") for number in range(2)]
    waiting = [counting_job(shared, number, "true") for number in range(10, 20)]
    assert all(outcome.accepted for outcome in await client.submit(channel, long))
    async with asyncio.timeout(60):
        while sorted(path.name for path in shared.iterdir() if path.read_text()) != ["0", "1"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    worker = processes.lab.directory / "agents" / "worker.CERN"
    os.kill(int((worker / "starter.pid").read_text()), signal.SIGKILL)
    assert all(outcome.accepted for outcome in await client.submit(channel, waiting))
    ends = await processes.ended([job.job_id for job in [*long, *waiting]])
    for job in long:
        assert (ends[job.job_id].state, ends[job.job_id].reason) == (pb.JOB_STATE_FAILED, "STARTER_LOST")
        assert ends[job.job_id].started
    assert {ends[job.job_id].state for job in waiting} == {pb.JOB_STATE_DONE}
    assert {path.read_text().count("\n") for path in shared.iterdir()} == {1}
    assert sleep not in command_lines()


def command_lines() -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append(Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
            except OSError:
                continue
    return found
