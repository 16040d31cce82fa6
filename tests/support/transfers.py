"""A transfer agent between real storage elements and a real catalogue, with a user and her files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from support.grid import LabGrid
from support.waiting import until

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.transfer.client import ENDED, TransferClient
from fabric.ids import unique_id
from fabric.rpc.delegation import delegate

SITES = ("CERN", "RAL", "CNAF")
FAST = {"retry_first_s": 0.05, "retry_max_s": 0.2, "tune_every_s": 0.2}


class Desk:
    """Alice, her files, and the agents."""

    def __init__(self, lab: LabGrid, folder: Path) -> None:
        self.lab, self.folder, self.alice = lab, folder, lab.user("alice")

    async def start(self, **options: Any) -> None:
        kinds = [("catalog", "CERN"), *(("storage", site) for site in SITES), ("transfer", "CERN")]
        for kind, site in kinds:
            self.lab.plan(kind, site=site)
        for kind, site in kinds:
            own: dict[str, Any] = {"storage": {"reserve_bytes": 0}, "transfer": FAST | options}.get(kind, {})
            await self.lab.start(kind, site=site, options=own)
        await delegate(await self.lab.channel("transfer", credential=self.alice), self.alice)

    async def transfers(self, credential: Any = None) -> TransferClient:
        return TransferClient(await self.lab.channel("transfer", credential=credential or self.alice))

    async def element(self, site: str) -> Any:
        return await self.lab.channel("storage", site=site, credential=self.alice)

    async def put(self, name: str, site: str = "CERN", data: bytes = b"") -> str:
        path = self.folder / "upload"
        path.write_bytes(data or name.encode() * 1000)
        stored = await storage.put_file(await self.element(site), path, "cms")
        content = catalog.Content(stored.size_bytes, stored.checksums.adler32, stored.checksums.sha256)
        names = await self.lab.channel("catalog", credential=self.alice)
        await catalog.register(names, f"/grid/cms/{name}", catalog.new_guid(), content, surl=stored.surl)
        return f"lfn:/grid/cms/{name}"

    async def replicas(self, lfn: str) -> list[str]:
        names = await self.lab.channel("catalog", credential=self.alice)
        return [replica.surl for replica in (await catalog.replicas(names, lfn)).replicas]

    async def on(self, site: str) -> list[str]:
        return [file.surl async for file in storage.list_files(await self.element(site), "cms")]

    async def submit(self, lfns: list[str], to: str, **more: Any) -> str:
        job_id = unique_id()
        accepted, refused = await (await self.transfers()).submit(job_id, lfns, to, **more)
        assert (accepted, refused) == (len(lfns), [])
        return job_id

    async def files(self, job_id: str) -> list[Any]:
        return [file async for file in (await self.transfers()).files(job_id)]

    async def ended(self, job_id: str) -> list[Any]:
        async def all_ended() -> list[Any]:
            files = await self.files(job_id)
            return files if all(file.state in ENDED for file in files) else []

        return await until(all_ended, "the end of the transfers")

    def core(self) -> Any:
        return self.lab.agents["transfer.CERN"].agent.core  # type: ignore[attr-defined]

    def stop_at(self, kind: type, kept: bool) -> asyncio.Event:
        """The agent stands still for ever before, or after, it keeps such an event."""
        core, reached = self.core(), asyncio.Event()
        apply_all = core._apply_all

        async def apply(events: Any) -> Any:
            if not any(isinstance(event, kind) for _, event in events):
                return await apply_all(events)
            if kept:
                await apply_all(events)
            reached.set()
            return await asyncio.Event().wait()

        core._apply_all = apply
        return reached

    async def clean(self) -> None:
        await until(lambda: not self.core().unwanted, "the removal of unwanted copies")
