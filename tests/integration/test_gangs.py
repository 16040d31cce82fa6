"""A job of several slots over two workers: real processes, started together, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid
from support.site import MPI_SUM, Site, job

from agents.gatekeeper import client

WAIT = "while :; do sleep 0.2; done"


def gang(script: str, slots: int = 4, hosts: int = 2, **more: object) -> pb.Job:
    return job("-c", script, slots=slots, hosts=hosts, **more)


async def test_a_gang_starts_on_both_workers_and_ends_as_one(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        site = Site(lab)
        await site.start({"slots": 2, "term_grace_s": 0.5})
        await lab.start("worker", name="worker.two", options=site.worker_options)
        await site.published("GlueCE", GlueCEInfoTotalCPUs="4")

        told = gang('echo "$GRIDFABRIC_RANK of $GRIDFABRIC_SIZE"; wc -l < "$GRIDFABRIC_MACHINEFILE"; exit 0')
        (end,) = (await site.submit(told), await site.ended(told, seconds=60))[1]
        assert (end.state, end.exit_code, end.reason) == (pb.JOB_STATE_DONE, 0, ""), end
        files = await client.output_files(site.channel, told.job_id)
        said = {name: files[name].split() for name in ("out", "out.1", "out.2", "out.3")}
        assert said == {"out" + (f".{n}" if n else ""): [b"%d" % n, b"of", b"4", b"2"] for n in range(4)}

        failing = gang(f'[ "$GRIDFABRIC_RANK" = 3 ] && exit 7; {WAIT}')
        behind = gang("exit 0", slots=3)  # it needs slots of the one before it, and waits for its end
        await site.submit(failing, behind)
        end, after = await site.ended(failing, behind, seconds=60)
        assert (end.state, end.exit_code, "rank 3 ended with 7; the other ranks" in end.sentence) == (
            pb.JOB_STATE_DONE, 7, True,
        ), end  # fmt: skip
        assert (after.state, after.exit_code) == (pb.JOB_STATE_DONE, 0), after

        endless = gang(f"echo begun; {WAIT}")
        await site.submit(endless)
        await site.reaches(endless, pb.JOB_STATE_RUNNING, 60)
        await lab.stop("worker.two")  # its ranks are killed with it: one part's end is the gang's
        (end,) = await site.ended(endless, seconds=60)
        assert (end.state, end.reason) == (pb.JOB_STATE_FAILED, "WORKER_STOPPED"), end

        refused = await client.submit(site.channel, [gang("exit 0", slots=1, hosts=2), gang("exit 0", slots=2000)])
        assert [one.reason for one in refused] == ["DESCRIPTION_INVALID"] * 2
        small = gang("exit 0", slots=2, hosts=1)
        assert (await site.run(small)).state == pb.JOB_STATE_DONE
        cancelled = gang(WAIT, slots=2, hosts=1)
        await site.submit(cancelled)
        await site.reaches(cancelled, pb.JOB_STATE_RUNNING, 60)
        await client.cancel(site.channel, [cancelled.job_id])
        (end,) = await site.ended(cancelled, seconds=60)
        assert (end.state, end.reason) == (pb.JOB_STATE_CANCELLED, "CANCELLED"), end


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no Open MPI here (Debian: openmpi-bin)")
async def test_mpirun_starts_the_ranks_of_both_workers(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        site = Site(lab)
        await site.start({"slots": 2, "term_grace_s": 0.5})
        await lab.start("worker", name="worker.two", options=site.worker_options)
        await site.published("GlueCE", GlueCEInfoTotalCPUs="4")

        # two workers of this test are one host, on which Open MPI's ranks would take each other's shared memory
        over_tcp = {"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "lo"}
        adds = job("-c", MPI_SUM, executable="/usr/bin/python3", slots=4, hosts=2, mpi=True, environment=over_tcp)
        await site.submit(adds)
        (end,) = await site.ended(adds, seconds=60)
        files = await client.output_files(site.channel, adds.job_id)
        assert (end.state, end.exit_code, end.reason) == (pb.JOB_STATE_DONE, 0, ""), (end, files)
        first, second = end.worker, next(name for name in ("worker.CERN", "worker.two") if name != end.worker)
        assert sorted(files["out"].decode().splitlines()) == [
            f"{rank} 4 1111 {rank} {rank % 2} {first if rank < 2 else second} True" for rank in range(4)
        ]

        failing = gang(f'[ "$GRIDFABRIC_RANK" = 3 ] && exit 7; {WAIT}', mpi=True)
        await site.submit(failing)
        (end,) = await site.ended(failing, seconds=60)
        assert (end.state, end.exit_code, end.reason) == (pb.JOB_STATE_DONE, 7, ""), end

        endless = gang(f'[ "$GRIDFABRIC_RANK" = 3 ] && echo begun; {WAIT}', mpi=True)
        await site.submit(endless)
        request = pb.FollowRequest(job_id=endless.job_id)
        async with asyncio.timeout(60), contextlib.aclosing(client.follow(site.channel, request)) as read:
            async for piece in read:
                if b"begun" in piece.data:
                    break
        await client.cancel(site.channel, [endless.job_id])
        (end,) = await site.ended(endless, seconds=60)
        assert (end.state, end.reason) == (pb.JOB_STATE_CANCELLED, "CANCELLED"), end
