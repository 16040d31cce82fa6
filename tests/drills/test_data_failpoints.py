"""Data services killed at every write point: transfer agent, catalogue and the destination of copies die by SIGKILL at
each of their failpoints while a user stores, replicates, cancels and removes. What was acknowledged is there, whole,
and registered once; of the rest nothing is left.

A storage element's other steps (pools moved, tapes) are killed in tests/unit/storage, puts of users in
tests/integration/test_data_kill.py.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.nursery import Child, Nursery
from support.ordeal import patiently
from support.transfers import FAST, Desk
from support.waiting import until

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.storage import failpoints as storage_points
from agents.transfer import failpoints as transfer_points
from fabric.errors import Unavailable
from fabric.ids import unique_id
from fabric.rpc.delegation import delegate

STORE = ("store.ran", "store.committed")
STORAGE = [name for name in storage_points.NAMES if name.split(".")[1] in ("put", "together", "remove")]
POINTS = {
    "storage.RAL": [*STORE, *STORAGE],
    "transfer.CERN": [*STORE, *transfer_points.NAMES],
    "catalog.CERN": [*STORE],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "storage.RAL": {"reserve_bytes": 0},
    "transfer.CERN": FAST | {"caps_mb_per_s": {"CNAF > *": 0.3}},
    "catalog.CERN": {},
}
LARGE = random.Random(6).randbytes(17 << 20)
"""A copy of it goes on after a kill. Small files go together."""
SLOW = LARGE[: 3 << 19]
"""Cancelled while it is copied."""


class Trial:
    """Agents that die, and what a user was told."""

    def __init__(self, desk: Desk, nursery: Nursery) -> None:
        self.desk, self._nursery = desk, nursery
        self.deaths: list[str] = []
        self.replicated: dict[str, bytes] = {}
        """By LFN: files that were told to have a copy at RAL."""
        self.removed: dict[str, bytes] = {}
        """Those whose copy was told to be removed again."""
        self.cancelled: set[str] = set()

    def begin(self, name: str, failpoint: str = "") -> Child:
        return self._nursery.start(self.desk.lab.settings(name, options=OPTIONS[name]), failpoint=failpoint)

    async def die_at_each(self, name: str) -> Child:
        points = random.Random(name).sample(POINTS[name], len(POINTS[name]))
        for point in points:
            status = await self.begin(name, point).ended(120)
            assert status == -signal.SIGKILL, f"{name} with {point} ended with {status}"
            self.deaths.append(point)
        alive = self.begin(name)
        await alive.ready()
        return alive

    # -- the user ----------------------------------------------------------------------------------------------------

    async def use_until(self, enough: asyncio.Event) -> None:
        await patiently(self._delegate)
        number = 0
        while number == 0 or not enough.is_set():
            number += 1
            files = {f"{number}-{i}": f"{number} {i} ".encode() * 100 for i in range(2)} | {
                f"{number}-large": LARGE[number:]
            }
            lfns = {await self._put(name, data): data for name, data in files.items()}
            slow = await self._put(f"{number}-slow", SLOW[number:], site="CNAF")
            await asyncio.gather(self._replicate(lfns), self._cancel(slow))
            await self._remove(next(iter(lfns)))

    async def _delegate(self) -> None:
        desk = self.desk
        await delegate(await desk.lab.channel("transfer", credential=desk.alice), desk.alice)

    async def _put(self, name: str, data: bytes, site: str = "CERN") -> str:
        path = self.desk.folder / "upload"
        path.write_bytes(data)
        stored = await storage.put_file(await self.desk.element(site), path, "cms")
        content = catalog.Content(stored.size_bytes, stored.checksums.adler32, stored.checksums.sha256)
        guid, lfn = catalog.new_guid(), f"/grid/cms/{name}"

        async def register() -> None:
            await catalog.register(await self._names(), lfn, guid, content, surl=stored.surl)

        await patiently(register)
        return f"lfn:{lfn}"

    async def _submit(self, lfns: list[str]) -> str:
        job_id = unique_id()

        async def submit() -> None:
            assert await (await self.desk.transfers()).submit(job_id, lfns, "RAL") == (len(lfns), [])

        await patiently(submit)
        return job_id

    async def _replicate(self, lfns: dict[str, bytes]) -> None:
        job_id = await self._submit(list(lfns))

        async def finished() -> None:
            states = [file.state for file in await self.desk.files(job_id)]
            if states != ["FINISHED"] * len(lfns):
                raise Unavailable("NOT_YET", f"the transfers are {states}")

        await patiently(finished)
        self.replicated |= lfns

    async def _cancel(self, lfn: str) -> None:
        """In the middle of the copy, or before it began."""
        job_id = await self._submit([lfn])

        async def began() -> None:
            (file,) = await self.desk.files(job_id)
            if file.state == "SUBMITTED":
                raise Unavailable("NOT_YET", "the copy has not begun")

        async def cancel() -> None:
            await (await self.desk.transfers()).cancel(job_id)
            (file,) = await self.desk.files(job_id)
            assert file.state == "CANCELED", file

        await patiently(began)
        await patiently(cancel)
        self.cancelled.add(lfn)

    async def _remove(self, lfn: str) -> None:
        """The copy at RAL, as `grid data rm --at` does."""

        async def remove() -> None:
            for surl in await self.desk.replicas(lfn):
                if surl.startswith(self._ral):
                    await storage.remove(await self.desk.element("RAL"), surl)
                    await catalog.remove_replica(await self._names(), lfn, surl)

        await patiently(remove)
        self.removed[lfn] = self.replicated.pop(lfn)

    @property
    def _ral(self) -> str:
        return f"srm://localhost:{self.desk.lab.port('storage.RAL')}/"

    async def _names(self) -> Any:
        return await self.desk.lab.channel("catalog", credential=self.desk.alice)

    # -- judgement ---------------------------------------------------------------------------------------------------

    async def judge(self) -> None:
        """Everybody is alive."""
        at_ral: dict[str, str] = {}
        for lfn in [*self.replicated, *self.removed, *self.cancelled]:
            there = [surl for surl in await self.desk.replicas(lfn) if surl.startswith(self._ral)]
            assert len(there) == (lfn in self.replicated), (lfn, there)
            at_ral |= dict.fromkeys(there, lfn)
        for surl, lfn in at_ral.items():
            target = self.desk.folder / "download"
            await storage.get_file(await self.desk.element("RAL"), surl, target)
            assert target.read_bytes() == self.replicated[lfn]

        async def nothing_else() -> bool:
            return sorted(await self.desk.on("RAL")) == sorted(at_ral)

        await until(nothing_else, "nothing is left of what was cancelled")
        pool = self.desk.lab.directory / "agents" / "storage.RAL" / "pool"
        for place in ("incoming", "partial"):
            await until(lambda place=place: not list((pool / place).iterdir()), f"{place} is empty")
        assert len([path for path in (pool / "data").rglob("*") if path.is_file()]) == len(at_ral)


@pytest.mark.timeout(600)
async def test_killed_at_every_write_point_of_data(tmp_path: Path) -> None:
    async with LabGrid(tmp_path / "lab") as lab, Nursery() as nursery:
        for name in ("storage.CERN", "storage.CNAF", *POINTS):
            kind, site = name.split(".")
            lab.plan(kind, site=site)
        for site in ("CERN", "CNAF"):
            await lab.start("storage", site=site, options={"reserve_bytes": 0})
        trial, enough = Trial(Desk(lab, tmp_path), nursery), asyncio.Event()
        async with asyncio.TaskGroup() as users:
            users.create_task(trial.use_until(enough))
            async with asyncio.TaskGroup() as deaths:
                dying = [deaths.create_task(trial.die_at_each(name)) for name in POINTS]
            enough.set()
        await trial.judge()
        for child in dying:
            await child.result().kill(signal.SIGTERM)
        assert len(trial.deaths) == sum(map(len, POINTS.values()))
        print(f"{len(trial.deaths)} deaths, {len(trial.replicated)} files replicated, {len(trial.removed)} removed")
