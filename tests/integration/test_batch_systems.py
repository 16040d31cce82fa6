"""Every batch system behind a gatekeeper keeps the same promises. Slurm is a real one, started for this module."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support import slurm as private_slurm
from support.grid import LabGrid
from support.site import MPI_SUM, Site, job
from support.waiting import until

from agents.gatekeeper import client
from agents.user_interface.batch_records import compare, slurm_runs
from agents.worker import payloads
from fabric.errors import Conflict, NotFound

SYSTEMS = ("fabric", "fork", "slurm")
ENDLESS = "while :; do sleep 0.2; done"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cluster() -> Iterator[private_slurm.Slurm]:
    yield from private_slurm.started()


@pytest.fixture(params=SYSTEMS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    batch = request.param
    worker = {"batch": "slurm", "batch_poll_s": 0.1} if batch == "slurm" else {"slots": 4}
    if batch == "slurm":
        cluster = request.getfixturevalue("cluster")
        worker |= {"slurm_conf": str(cluster.configuration), "slots": 0}
    async with LabGrid(tmp_path) as lab:
        made = Site(lab)
        made.worker_options = worker
        made.gatekeeper_options = {"batch": batch}
        yield made


async def test_exit_code_output_and_account(site: Site, request: pytest.FixtureRequest) -> None:
    await site.start()
    one = job("-c", 'echo hello $USER; id -u; echo "$X509_USER_PROXY" >&2; exit 3')
    await site.submit(one)
    (update,) = await site.ended(one, seconds=60)
    assert (update.state, update.exit_code, update.reason) == (pb.JOB_STATE_DONE, 3, ""), update
    files = await client.output_files(site.channel, one.job_id)
    expected = "61001" if os.geteuid() == 0 else str(os.geteuid())
    assert files["out"].decode().split("\n")[:2] == ["hello cms001", expected]
    assert files["err"].decode().strip().endswith("/.x509_proxy")
    if site.gatekeeper_options["batch"] == "slurm":  # its own record is found again by what accounting knows
        cluster: private_slurm.Slurm = request.getfixturevalue("cluster")
        used = lb.UsageRecord(job_id=one.job_id, attempt=one.attempt, wall_s=update.usage.wall_s, ended_at_us=1)

        def known() -> bool:
            return not compare(slurm_runs(cluster.completions, "jobcomp.log"), [used], (1, 2)).unbacked

        await until(known, "Slurm wrote that it ended", deadline_s=30)


async def test_prologue_and_epilogue_run_around_the_program(site: Site) -> None:
    await site.start()

    def scripts(before: str, after: str) -> dict[str, pb.Script]:
        return {
            "prologue": pb.Script(executable="/bin/sh", arguments=["-c", before]),
            "epilogue": pb.Script(executable="/bin/sh", arguments=["-c", after]),
        }

    good = job(
        "-c", "echo program $(cat made); id -u; exit 3", **scripts("id -u; echo it > made", "echo after; exit 4")
    )
    bad = job("-c", "echo program", **scripts("echo not here; exit 5", "echo after"))
    gone = job(executable="/nonexistent", **scripts("true", "echo after"))
    await site.submit(good, bad, gone)
    ends = await site.ended(good, bad, gone, seconds=60)
    assert [(end.state, end.exit_code, end.reason, end.started) for end in ends] == [
        (pb.JOB_STATE_DONE, 3, "", True),
        (pb.JOB_STATE_FAILED, 5, "PROLOGUE_FAILED", True),
        (pb.JOB_STATE_FAILED, 127, "EXEC_FAILED", True),
    ], ends
    assert [end.sentence for end in ends[:2]] == [
        "the epilogue /bin/sh ended with 4",
        "the prologue /bin/sh ended with 5; the job was not started",
    ]
    out = [(await client.output_files(site.channel, one.job_id))["out"].decode() for one in (good, bad)]
    uid = str(61001 if os.geteuid() == 0 else os.geteuid())
    assert out[0].split("\n") == [uid, "program it", uid, "after", ""]
    assert out[1] == "not here\n"


async def test_what_is_published_names_the_batch_system(site: Site) -> None:
    await site.start()
    batch = site.gatekeeper_options["batch"]
    entry = await site.published("GlueCE", GlueCEInfoTotalCPUs="4", GlueCEInfoLRMSType=batch)
    assert entry["GlueCEUniqueID"][0].endswith(f"/jobmanager-{batch}-long")


async def test_cancel_before_and_after_the_start(site: Site) -> None:
    await site.start({"term_grace_s": 0.2})
    running = [job("-c", "trap '' TERM; sleep 300 & wait; sleep 300") for _ in range(4)]
    waiting = job("-c", "echo never")
    await site.submit(*running)
    for one in running:
        await site.reaches(one, pb.JOB_STATE_RUNNING, 60)
    await site.submit(waiting)
    await client.cancel(site.channel, [waiting.job_id, running[0].job_id])
    ends = await site.ended(waiting, running[0], seconds=60)
    assert [(end.state, end.reason) for end in ends] == [(pb.JOB_STATE_CANCELLED, "CANCELLED")] * 2
    assert [end.started for end in ends] == [False, True]
    await client.cancel(site.channel, [one.job_id for one in running])
    await site.ended(*running, seconds=60)


async def test_limits_end_a_job_with_a_typed_reason(site: Site) -> None:
    await site.start({"term_grace_s": 0.2})
    slow = job("-c", "echo begun; sleep 300", limits=pb.Limits(wall_s=1))
    spinning = job("-c", "while :; do :; done", limits=pb.Limits(cpu_s=1))
    await site.submit(slow, spinning)
    ends = await site.ended(slow, spinning, seconds=60)
    assert [(end.state, end.reason) for end in ends] == [
        (pb.JOB_STATE_DONE, "WALL_TIME"),
        (pb.JOB_STATE_DONE, "CPU_TIME"),
    ]
    assert (await client.output_files(site.channel, slow.job_id))["out"] == b"begun\n"


async def test_restarts_of_worker_and_gatekeeper_run_nothing_twice(site: Site, tmp_path: Path) -> None:
    await site.start({"stop_policy": "leave"})
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        log, gate = Path(name) / "log", Path(name) / "gate"
        jobs = [job("-c", f"echo x >> {log}; while ! [ -e {gate} ]; do sleep 0.1; done; echo done") for _ in range(3)]
        await site.submit(*jobs)
        for one in jobs:
            await site.reaches(one, pb.JOB_STATE_RUNNING, 60)
        for agent in ("worker", "gatekeeper"):
            await site.lab.stop(f"{agent}.CERN")
            await site.lab.start(agent, options=getattr(site, f"{agent}_options"))
        gate.touch()
        site.channel = await site.lab.channel("gatekeeper", credential=site.alice)
        ends = await site.ended(*jobs, seconds=60)
        assert [(end.state, end.exit_code) for end in ends] == [(pb.JOB_STATE_DONE, 0)] * 3, ends
        assert log.read_text() == "x\n" * 3


async def test_the_fate_of_a_job_is_told_when_the_worker_is_away(site: Site) -> None:
    await site.start({"stop_policy": "leave"})
    one = job("-c", "sleep 1; echo late; exit 7")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING, 60)
    await site.lab.stop("worker.CERN")
    await site.lab.start("worker", options=site.worker_options)
    update = (await site.ended(one, seconds=60))[0]
    assert (update.state, update.exit_code) == (pb.JOB_STATE_DONE, 7)
    assert (await client.output_files(site.channel, one.job_id))["out"] == b"late\n"


@pytest.mark.parametrize("site", ("fabric", "fork"), indirect=True)  # it never reaches the batch system
async def test_a_held_job_waits_and_a_released_one_runs(site: Site) -> None:
    await site.start(gatekeeper={"max_running": 1})
    first, held = job("-c", "sleep 300"), job("-c", "echo ran")
    await site.submit(first)
    await site.reaches(first, pb.JOB_STATE_RUNNING, 60)
    await site.submit(held)
    await client.hold(site.channel, [held.job_id])
    with pytest.raises(Conflict, match="only jobs that wait can"):
        await client.hold(site.channel, [first.job_id])
    with pytest.raises(NotFound):
        await client.hold(await site.lab.channel("gatekeeper", credential=site.lab.user("bob")), [held.job_id])
    await client.cancel(site.channel, [first.job_id])
    await site.ended(first, seconds=60)
    later = job("-c", "exit 0")
    await site.submit(later)
    (after,) = await site.ended(later, seconds=60)  # before the held one
    assert after.state == pb.JOB_STATE_DONE, after
    (status,) = await client.status(site.channel, [held.job_id])
    assert (status.state, status.reason) == (pb.JOB_STATE_QUEUED, "HELD")
    await client.release(site.channel, [held.job_id])
    assert (await site.ended(held, seconds=60))[0].state == pb.JOB_STATE_DONE


@pytest.mark.parametrize("site", ("slurm",), indirect=True)
async def test_queues_are_partitions_of_slurm(site: Site, cluster: private_slurm.Slurm) -> None:
    queues = [{"name": "short", "max_wall_s": 600, "partition": "short"}, {"name": "long"}]
    await site.start({"partitions": {"short": "short"}}, {"queues": queues})
    await site.published("GlueCE", GlueCEInfoTotalCPUs="4", GlueCEName="short")  # nodes of two partitions count once
    jobs = [job("-c", "sleep 300") for _ in range(2)]
    for one, queue in zip(jobs, ("short", "long"), strict=True):
        one.queue = queue
    await site.submit(*jobs)
    for one in jobs:
        await site.reaches(one, pb.JOB_STATE_RUNNING, 60)
    listing = await asyncio.to_thread(
        subprocess.run,
        ["squeue", "--noheader", "--format=%P %k"],
        env={"PATH": os.environ["PATH"], "SLURM_CONF": str(cluster.configuration)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert {f"{queue} {one.job_id}" for one, queue in zip(jobs, ("short", "grid"), strict=True)} <= {
        line.strip() for line in listing.stdout.splitlines()
    }
    await client.cancel(site.channel, [one.job_id for one in jobs])
    await site.ended(*jobs, seconds=60)


@pytest.mark.parametrize("site", ("slurm",), indirect=True)
async def test_a_gang_runs_on_two_nodes_of_slurm(site: Site, cluster: private_slurm.Slurm) -> None:
    await site.start({"term_grace_s": 0.5})
    await site.published("GlueCE", GlueCEInfoTotalCPUs="4")

    def gang(script: str, **more: Any) -> pb.Job:
        return job("-c", script, **{"slots": 4, "hosts": 2, **more})

    roomy = pb.Limits(memory_bytes=500 * 2**20)
    told = gang(
        'echo "$GRIDFABRIC_RANK of $GRIDFABRIC_SIZE"; cat "$GRIDFABRIC_MACHINEFILE"; id -u',
        slots_per_host=2,
        limits=roomy,
    )
    failing = gang(f'[ "$GRIDFABRIC_RANK" = 3 ] && exit 7; {ENDLESS}')
    slow = gang(ENDLESS, slots=3, limits=pb.Limits(wall_s=1))
    await site.submit(told, failing, slow)
    ends = await site.ended(told, failing, slow, seconds=90)
    assert [(end.state, end.exit_code, end.reason) for end in ends[:2]] == [
        (pb.JOB_STATE_DONE, 0, ""), (pb.JOB_STATE_DONE, 7, ""),
    ], ends  # fmt: skip
    assert (ends[2].state, ends[2].reason) == (pb.JOB_STATE_DONE, "WALL_TIME"), ends
    why = ends[1].sentence  # it may also name the output of a rank that was stopped before it had any
    assert "rank 3 ended with 7; " in why and why.endswith("the other ranks were stopped"), why
    files = await client.output_files(site.channel, told.job_id)
    uid = str(61001 if os.geteuid() == 0 else os.geteuid())
    for rank, name in enumerate(("out", "out.1", "out.2", "out.3")):
        said = files[name].decode().splitlines()
        assert said == [f"{rank} of 4", "one slots=2", "two slots=2", uid], files

    refused = await client.submit(site.channel, [gang("", slots=5, hosts=1, slots_per_host=2)])
    assert [(one.reason, "multiple of the 2" in one.sentence) for one in refused] == [("DESCRIPTION_INVALID", True)]

    def processes(*wanted: str) -> list[int]:
        """With all of these in their environment or command."""
        found = []
        for pid in payloads.all_pids():
            with contextlib.suppress(OSError):
                said = b"\0".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
                found += [pid] if all(text.encode() in said for text in wanted) else []
        return found

    cancelled, dying = gang(ENDLESS, slots=2, hosts=1), gang(ENDLESS, slots=2)
    await site.submit(cancelled, dying)
    for one in (cancelled, dying):
        await site.reaches(one, pb.JOB_STATE_RUNNING, 60)
    await client.cancel(site.channel, [cancelled.job_id])
    (end,) = await site.ended(cancelled, seconds=60)
    assert (end.state, end.reason) == (pb.JOB_STATE_CANCELLED, "CANCELLED"), end
    await until(lambda: not processes(f"GRIDFABRIC_JOB_ID={cancelled.job_id}"), "its ranks are gone", deadline_s=30)
    of_second = processes(str(cluster.configuration), "SLURM_NODEID=1\0", "agents.worker.parts")
    (shepherd,) = (pid for pid in of_second if (one := payloads.read_process(pid)) and one.ppid in of_second)
    os.kill(shepherd, signal.SIGKILL)
    (end,) = await site.ended(dying, seconds=60)
    assert (end.state, end.reason) == (pb.JOB_STATE_FAILED, "BATCH_LOST"), end
    await until(lambda: not processes(f"GRIDFABRIC_JOB_ID={dying.job_id}"), "its ranks are gone", deadline_s=30)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no Open MPI here (Debian: openmpi-bin)")
@pytest.mark.parametrize("site", ("slurm",), indirect=True)
async def test_mpirun_starts_the_ranks_of_two_nodes_of_slurm(site: Site) -> None:
    await site.start({"term_grace_s": 0.5})
    await site.published("GlueCE", GlueCEInfoTotalCPUs="4")
    # the nodes of this test are one host, on which Open MPI's ranks would take each other's shared memory
    over_tcp = {"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "lo"}
    adds = job("-c", MPI_SUM, executable="/usr/bin/python3", slots=4, hosts=2, mpi=True, environment=over_tcp)
    await site.submit(adds)
    (end,) = await site.ended(adds, seconds=60)
    files = await client.output_files(site.channel, adds.job_id)
    assert (end.state, end.exit_code, end.reason) == (pb.JOB_STATE_DONE, 0, ""), (end, files)
    assert sorted(files["out"].decode().splitlines()) == [
        f"{rank} 4 1111 {rank} {rank % 2} worker.CERN True" for rank in range(4)
    ]
