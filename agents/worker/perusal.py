"""Perusal: what a job has written so far, copied to a storage element at intervals, for a look at it later.

    <job's folder in the catalogue>/<attempt>/<file>/<offset, 15 digits>: the bytes of the file from this offset on

    <job's folder in the catalogue>/wanted/<file>/: a directory that the owner makes while the job runs: that one, too

The catalogue is what is remembered of it: after a restart the next copy begins where its last entry ends.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from agents.worker import scratch
from agents.worker.data import DataMover
from agents.worker.model import Job, Phase
from agents.worker.proxies import OwnerProxies
from fabric.errors import GridError

MAX_PIECE_BYTES = 16 * 1024 * 1024
"""Copied of one file at a time; the rest at the next."""
MAX_ADDED = 10
"""Files that are asked for while the job runs."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""Of one file; the output sandbox, or OutputData, has all of it at the end."""


def folder_of(vo: str, job_id: str) -> str:
    """Where the copies of a job are, in the catalogue."""
    return f"/grid/{vo}/perusal/{job_id.rpartition('/')[2]}"


def wanted_folder(vo: str, job_id: str) -> str:
    """Where the owner says which files he wants to see besides."""
    return f"{folder_of(vo, job_id)}/wanted"


class Perusal:
    """Of all jobs here that want it."""

    def __init__(self, root: Path, data: DataMover, proxies: OwnerProxies, log: Any) -> None:
        self._root, self._data, self._proxies, self._log = root, data, proxies, log
        self._running: set[str] = set()

    async def run(self, job: Job) -> None:
        """While it runs. A copy that fails is made at the next interval; it never harms the job."""
        if job.key in self._running:
            return
        self._running.add(job.key)
        wanted = job.order.description.perusal
        offsets: dict[str, int] | None = None
        try:
            while True:
                await asyncio.sleep(wanted.interval_s)
                if job.phase is not Phase.RUNNING:
                    return
                try:
                    offsets = await self._copy(job, offsets)
                except (GridError, OSError) as error:
                    offsets = None  # what is there says how far it has come
                    self._log.warning("perusal.failed", job_id=job.name.job_id, detail=str(error))
        finally:
            self._running.discard(job.key)

    async def _copy(self, job: Job, offsets: dict[str, int] | None) -> dict[str, int]:
        description = job.order.description
        credential = await self._proxies.get(job.owner)
        folder = f"{folder_of(description.vo, job.name.job_id)}/{job.name.attempt}"
        found: dict[str, int] = {}
        asked_for = await self._data.names_in(wanted_folder(description.vo, job.name.job_id), MAX_ADDED, credential)
        for name in dict.fromkeys((*description.perusal.files, *asked_for)):
            at = f"{folder}/{name}"
            offset = (offsets or {}).get(name)
            if offset is None:
                offset = await self._data.end_of_pieces(at, credential)
            piece = await asyncio.to_thread(self._piece, job, name, offset)
            if piece:
                descriptor = os.memfd_create("perusal", os.MFD_CLOEXEC)
                try:
                    await asyncio.to_thread(_fill, descriptor, piece)
                    await self._data.keep(
                        descriptor,
                        # another piece from the same offset is another file: its end is in the name
                        file=f"{name}.{job.name.attempt}.{offset}-{offset + len(piece)}",
                        lfn=f"{at}/{offset:015}",
                        wanted=description.perusal.storage_element,
                        vo=description.vo,
                        job_id=job.name.job_id,
                        attempt=job.name.attempt,
                        credential=credential,
                    )
                finally:
                    os.close(descriptor)
                self._log.info("perusal.copied", job_id=job.name.job_id, file=name, offset=offset, bytes=len(piece))
            found[name] = offset + len(piece)
        return found

    def _piece(self, job: Job, name: str, offset: int) -> bytes:
        if offset >= MAX_FILE_BYTES:
            return b""
        return scratch.read_output(self._root, job.key, name, job.order.uid, offset, MAX_PIECE_BYTES)


def _fill(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
