"""Payloads that misbehave, for real and within bounds: each is killed and told why, nothing is left, and the neighbours
do not notice."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Container, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid
from support.site import ENDED, Site, job
from support.waiting import until

from agents.gatekeeper import client
from agents.worker import payloads
from fabric.rpc.delegation import delegate

MIB = 1024**2


BLACK_HOLE = (
    "Production: worker.CERN: BLACK_HOLE: 6 of the last 6 jobs failed within 5 s, the last with EXEC_FAILED; "
    "no jobs for 300 s"
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with LabGrid(tmp_path) as lab:
        made = Site(lab)
        await made.start(
            {
                "slots": 8, "term_grace_s": 0.2, "processes": 40, "max_scratch_inodes": 300, "disk_check_s": 0.05,
                "clean_every_s": 0.2,
            }
        )  # fmt: skip
        yield made


def of_jobs(site: Site) -> set[str]:
    """Processes and directories that belong to any job of this worker."""
    runner = site.lab.agents["worker.CERN"].agent.runner  # type: ignore[attr-defined]
    here = runner._strange()
    starter = int((runner.state_dir / "starter.pid").read_text())
    return here | {str(pid) for pid in payloads.descendants(starter) if not payloads._is_zombie(pid)}


async def submitted_by(site: Site, name: str, one: pb.Job) -> Any:
    """Hand in a job of somebody with an account of his own; returns his channel."""
    user = site.lab.user(name)
    channel = await site.lab.channel("gatekeeper", credential=user)
    await delegate(channel, user)
    (outcome,) = await client.submit(channel, [one])
    assert outcome.accepted, outcome
    return channel


async def reaches(channel: Any, one: pb.Job, states: Container[int]) -> pb.JobUpdate:
    """The update that brings a job to one of these states."""
    async with asyncio.timeout(60):
        async for update in client.watch(channel):
            if update.job_id == one.job_id and update.state in states:
                return update
    raise AssertionError


ABUSES = {
    "fork bomb": ("exec perl -e 'while (1) { defined(fork()) or select(undef, undef, undef, 0.1) }'", "PROCESSES", {}),
    "leaves the session": ("for i in $(seq 60); do setsid sleep 600 & done; sleep 600", "PROCESSES", {}),
    "ignores signals": ("trap '' TERM INT HUP QUIT; while :; do sleep 600; done", "WALL_TIME", {"wall_s": 1}),
    "fills the disk": (
        "i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero > f$((i % 100)); done", "DISK", {"disk_bytes": 8 * MIB}
    ),
    "fills the i-nodes": ("mkdir d; i=0; while :; do i=$((i+1)); : > d/$i; done", "INODES", {}),
    "prints without end": ("exec yes", "FILE_SIZE|DISK", {"disk_bytes": 2 * MIB}),
}  # fmt: skip


@pytest.fixture
def gate() -> Iterator[Path]:
    """A file that is not there yet, where every account can see it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name) / "open"


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.geteuid() != 0, reason="without root nothing but the watch bounds a fork bomb")
async def test_abuse_is_ended_with_its_reason_and_leaves_nothing(site: Site, gate: Path) -> None:
    neighbour = job("-c", f"while ! [ -e {gate} ]; do sleep 0.1; done; echo untouched > mine; cat mine")
    beside = await submitted_by(site, "neighbour", neighbour)
    await reaches(beside, neighbour, {pb.JOB_STATE_RUNNING})

    async def abuse(name: str, script: str, reasons: str, limits: dict[str, int]) -> None:
        one = job("-c", script, limits=pb.Limits(**limits))
        channel = await submitted_by(site, name, one)
        end = await reaches(channel, one, ENDED)
        assert end.state == pb.JOB_STATE_DONE and end.reason in reasons.split("|"), (name, end)
        assert "the job was stopped" in end.sentence, name
        if end.reason == "FILE_SIZE":
            assert len((await client.output_files(channel, one.job_id))["out"]) == limits["disk_bytes"]

    await asyncio.gather(*(abuse(name, *what) for name, what in ABUSES.items()))
    gate.touch()
    end = await reaches(beside, neighbour, ENDED)
    assert (end.state, end.exit_code, end.reason) == (pb.JOB_STATE_DONE, 0, "")
    assert (await client.output_files(beside, neighbour.job_id))["out"] == b"untouched\n"
    await until(lambda: not of_jobs(site))


async def test_a_daemon_does_not_outlive_its_job(site: Site) -> None:
    one = job("-c", "(setsid nohup env -i /bin/sleep 600 </dev/null >/dev/null 2>&1 &) ; echo gone")
    update = await site.run(one)
    assert (update.state, update.exit_code) == (pb.JOB_STATE_DONE, 0)
    await until(lambda: not of_jobs(site))


async def test_what_no_job_has_is_cleaned_and_what_a_job_has_is_not(site: Site, gate: Path) -> None:
    one = job("-c", f"echo kept > file; while ! [ -e {gate} ] && [ -e file ]; do sleep 0.1; done; cat file")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING)
    runner = site.lab.agents["worker.CERN"].agent.runner  # type: ignore[attr-defined]
    directory, record = runner.root / ("d" * 32), runner.state_dir / "jobs" / ("e" * 32)
    (directory / "deep").mkdir(parents=True)
    record.touch()
    await until(lambda: not directory.exists() and not record.exists())
    gate.touch()
    (end,) = await site.ended(one)
    assert end.exit_code == 0
    assert (await client.output_files(site.channel, one.job_id))["out"] == b"kept\n"


async def test_a_black_hole_is_stopped_and_published_and_the_other_worker_goes_on(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        site = Site(lab)
        lab.plan("worker", name="good.CERN")
        await site.start({"black_hole_jobs": 6})
        program = "/opt/exp_soft/cms/not-on-this-node"
        jobs = [job(executable=program) for _ in range(6)]
        await submitted_by(site, "bob", jobs[0])
        await site.submit(*jobs[1:])
        ends = await site.ended(*jobs[1:])
        assert {(end.state, end.reason) for end in ends} == {(pb.JOB_STATE_FAILED, "EXEC_FAILED")}
        status = await site.published("GlueService", GlueServiceStatusInfo=BLACK_HOLE)
        assert status["GlueServiceStatus"] == ["OK"]
        later = job("-c", "exit 0")
        await site.submit(later)
        await lab.start("worker", name="good.CERN", options=site.worker_options)
        (end,) = await site.ended(later)
        assert (end.state, end.worker) == (pb.JOB_STATE_DONE, "good.CERN")
