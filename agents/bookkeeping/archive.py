"""Jobs that ended long ago go from the database to files: one line of JSON for each, with its whole history.

Written first and forgotten second: who is killed in between writes the same again. `zcat archive/*.jsonl.gz` reads all
of it; a job of which an event came late is there twice.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.bookkeeping import store as rows
from agents.bookkeeping.config import BookkeepingOptions
from agents.bookkeeping.model import JobState
from agents.bookkeeping.store import Finished
from fabric import failpoints
from fabric.clock import Clock, from_us, to_us, utc_text
from fabric.errors import GridError
from fabric.logs import Logger
from fabric.store import Store
from security.errors import os_error_text
from security.files import sync_directory, write_atomic

BATCH = 2_000
"""Jobs in one file."""
_PAUSE_S = 0.05
"""Between files, so that who records events is served first."""


class Archive:
    """The folder of such files; `run` fills it for as long as the agent lives."""

    def __init__(self, store: Store, folder: Path, options: BookkeepingOptions, clock: Clock, log: Logger) -> None:
        self._store, self._folder, self._options, self._clock, self._log = store, folder, options, clock, log
        self.moved = 0
        """Jobs moved since the start."""

    async def run(self) -> None:
        """Look for such jobs every `archive_every_s`."""
        if not self._options.archive_after_days:
            return
        while True:
            pause_s = self._options.archive_every_s
            try:
                if await self.move() == BATCH:
                    pause_s = _PAUSE_S
            except (GridError, OSError) as error:
                why = error.sentence if isinstance(error, GridError) else os_error_text(error)
                self._log.error("archive.failed", folder=str(self._folder), sentence=why)
            await asyncio.sleep(pause_s)

    async def move(self) -> int:
        """Move up to BATCH jobs; how many it were. Raises OSError and what the store raises."""
        before_us = to_us(self._clock.now()) - int(self._options.archive_after_days * 86_400e6)
        found = await self._store.read(lambda connection: rows.finished(connection, before_us, BATCH))
        if not found:
            return 0
        path = await asyncio.to_thread(self._write, found)
        failpoints.reached("bookkeeping.archive.written")
        gone = await self._store.write(lambda connection: rows.forget(connection, found))
        self.moved += gone
        self._log.info("archive.written", path=str(path), jobs=gone)
        return gone

    def _write(self, found: Sequence[Finished]) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"jobs-{found[0].row:012d}-{found[-1].row:012d}.jsonl.gz"
        lines = "".join(json.dumps(_as_data(job), ensure_ascii=False) + "\n" for job in found)
        write_atomic(path, gzip.compress(lines.encode(), 6), 0o600)
        sync_directory(self._folder)
        return path


def _as_data(job: Finished) -> dict[str, Any]:
    record = job.record
    return {
        "job_id": record.job_id,
        "owner": record.owner,
        "vo": record.vo,
        "name": record.name,
        "parent": record.parent,
        "state": JobState(record.state).name,
        "reason": record.reason,
        "exit_code": record.exit_code,
        "ce": record.ce,
        "worker": record.worker,
        "attempt": record.attempt,
        "submitted_at": _moment(record.submitted_at_us),
        "ended_at": _moment(record.changed_at_us),
        "wall_s": record.wall_s,
        "cpu_s": record.cpu_s,
        "events": [
            {
                "at": _moment(event.at_us),
                "type": event.type.name,
                "attempt": event.attempt,
                "source": event.source,
                "sequence": event.sequence,
                **event.fields,
            }
            for event in job.events
        ],
    }


def _moment(microseconds: int) -> str:
    try:
        return utc_text(from_us(microseconds))
    except OverflowError:  # an event may carry any number
        return str(microseconds)
