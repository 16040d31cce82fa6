"""One computing element with a worker, without Ray: real TLS, real sessions, real processes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid

from agents.gatekeeper import client
from fabric.ids import unique_id
from fabric.ldap.client import LdapClient, LdapError
from fabric.rpc.delegation import delegate

FAST: dict[str, Any] = {"heartbeat_s": 0.5}
ENDED = (pb.JOB_STATE_DONE, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)

MPI_SUM = """
import ctypes, os
mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
world, number, total = (
    ctypes.byref(ctypes.c_char.in_dll(mpi, "ompi_mpi_" + name)) for name in ("comm_world", "int", "op_sum")
)
mpi.MPI_Init(None, None)
rank, size, found = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
mpi.MPI_Comm_rank(world, ctypes.byref(rank))
mpi.MPI_Comm_size(world, ctypes.byref(size))
own = ctypes.c_int(10 ** rank.value)
mpi.MPI_Allreduce(ctypes.byref(own), ctypes.byref(found), 1, number, total, world)
told = [os.environ[name] for name in ("GRIDFABRIC_RANK", "GRIDFABRIC_LOCAL_RANK", "GRIDFABRIC_WORKER")]
print(rank.value, size.value, found.value, *told, os.getcwd() == os.environ["HOME"], flush=True)
mpi.MPI_Finalize()
"""
"""MPI_Allreduce over all ranks."""


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
        self.worker_options: dict[str, Any] = {"slots": 4}
        self.gatekeeper_options: dict[str, Any] = {}

    async def start(self, worker: dict[str, Any] | None = None, gatekeeper: dict[str, Any] | None = None) -> None:
        self.lab.plan("gatekeeper")
        self.lab.plan("worker")
        self.gatekeeper_options |= {**FAST, **(gatekeeper or {})}
        self.worker_options |= {"disk_check_s": 0.1, **(worker or {})}
        await self.lab.start("gatekeeper", options=self.gatekeeper_options)
        await self.lab.start("worker", options=self.worker_options)
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

    async def published(self, object_class: str, **wanted: str) -> dict[str, list[str]]:
        """What the gatekeeper publishes as this class, as soon as its attributes have these values."""
        port = self.lab.port("gatekeeper.CERN", "ldap")
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(LdapError, OSError):
                    async with await LdapClient.connect("127.0.0.1", port) as ldap:
                        for entry in await ldap.search("mds-vo-name=resource,o=grid", f"(objectClass={object_class})"):
                            found = {name: list(values) for name, values in entry.attributes.items()}
                            if all(value in found.get(name, []) for name, value in wanted.items()):
                                return found
                await asyncio.sleep(0.05)
