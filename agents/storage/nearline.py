"""Tapes behind the disks of a storage element: what goes to tape, what comes back, what leaves the disk.

```
 put ─► ONLINE ──archive, verified──► ONLINE_AND_NEARLINE ──above high water──► NEARLINE
            ▲                              ▲                                       │
            └── its tape copy is no good ──┴────────── staged, verified ◄──────────┘ (asked for)
```

Each arrow is one transaction; before it the old state holds, after it the new one, and what a crash leaves over is
found at the start: a record that no row knows is verified and used, bytes that no row means are garbage. Requests and
pins are rows too. A file leaves the disk only in a transaction that has seen its verified tape copy and no pin.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum

from agents.storage.config import TapeConfig
from agents.storage.element import StorageElement
from agents.storage.model import StoredFile
from agents.storage.space import VoUse
from agents.storage.stage_queue import Run, StageQueue, Waiting
from agents.storage.store import FileStore
from agents.storage.tape import TapeLibrary
from agents.storage.tape_rows import StageRequest, TapeCopy, TapeRows
from fabric import failpoints
from fabric.bell import Bell
from fabric.clock import Clock, to_us
from fabric.errors import DataCorrupted, Exhausted, GridError, Unavailable
from fabric.logs import Logger

PAGE = 100
LOOK_AGAIN_S = 30.0
"""How long work waits that cannot go on: tapes away, no room on disk."""
LEAST_PIN_S = 600.0
"""A file that was staged stays on disk this long at least: its reader has to come back."""
ASK_AGAIN_S = (1, 300)
"""Bounds of the time after which somebody is told to ask again."""


class Locality(StrEnum):
    """Where the bytes of a file are: TFileLocality of SRM 2.2."""

    ONLINE = "ONLINE"
    """On disk."""
    NEARLINE = "NEARLINE"
    """On tape."""
    ONLINE_AND_NEARLINE = "ONLINE_AND_NEARLINE"
    """Both, and so it may leave the disk."""
    LOST = "LOST"
    """Nowhere any more, or damaged on disk and on no tape."""


@dataclass(frozen=True, slots=True)
class Staging:
    """How it stands with a file that somebody wants on disk."""

    file: StoredFile
    locality: Locality
    ahead: int = 0
    """Files that come before it; 0 also where it is on disk."""
    retry_after_s: int = 0
    """0: it is on disk."""
    obstacle: str = ""

    @property
    def sentence(self) -> str:
        """What its reader is told."""
        why = f" ({self.obstacle})" if self.obstacle else ""
        return (
            f"file {self.file.file_id} of VO {self.file.vo} is on tape and is being staged, {self.ahead} files come "
            f"before it{why}; ask again in {self.retry_after_s} s"
        )


class Nearline:
    """The tapes of one storage element. `start` before the element takes puts; the `keep_...` and `drive` coroutines
    are background tasks that end only by cancellation."""

    def __init__(
        self,
        element: StorageElement,
        files: FileStore,
        rows: TapeRows,
        library: TapeLibrary,
        config: TapeConfig,
        *,
        log: Logger,
        clock: Clock,
    ) -> None:
        self._element, self._files, self._rows, self._library = element, files, rows, library
        self._config, self._log, self._clock = config, log, clock
        self._queue = StageQueue(config.shares)
        self._asked, self._kept, self._fuller = Bell(), Bell(), Bell()
        self._later: dict[str, float] = {}
        self._used: set[str] = set()
        self._purging = asyncio.Lock()
        self._on_tape: Counter[str] = Counter()
        self.obstacle = ""
        """Why nothing is archived now; else empty."""

    async def start(self) -> None:
        """Read the labels, take up what was asked for before. Raises Unavailable(TAPE_UNUSABLE)."""
        await self._library.start()
        await self._rows.enrol(self._config.vos)
        self._on_tape = Counter(await self._rows.use_by_vo())
        for request in await self._rows.requests():
            self._queue.add(request)
        self._element.make_room = self.make_room

    @property
    def waiting(self) -> int:
        """Files that somebody waits for."""
        return len(self._queue)

    @property
    def readers(self) -> int:
        """How many `drive` tasks to run: where there are several drives, one is left for writing."""
        return max(self._library.drives - 1, 1)

    def on_tape_bytes(self, vo: str) -> int:
        """Of verified copies."""
        return self._on_tape[vo]

    def tapes_bytes(self) -> int:
        """What the tapes hold when full."""
        return self._library.size_bytes()

    def keeps(self, vo: str) -> bool:
        """Whether files of this VO go to tape."""
        return vo in self._config.vos

    # -- where files are ---------------------------------------------------------------------------------------------

    async def localities(self, files: Sequence[StoredFile]) -> dict[str, Locality]:
        """By id."""
        copies = await self._rows.copies([file.file_id for file in files])
        return {file.file_id: locality_of(file, copies.get(file.file_id)) for file in files}

    async def pinned_until_us(self, file: StoredFile) -> int:
        """When it may leave the disk, as far as pins go; 0 if nobody has pinned it."""
        return await self._rows.pinned_until_us(file.file_id, self._now_us())

    def note_read(self, file: StoredFile) -> None:
        """It was read, and so others leave the disk before it."""
        if self.keeps(file.vo) and len(self._used) < PAGE * PAGE:
            self._used.add(file.file_id)

    # -- from tape to disk -------------------------------------------------------------------------------------------

    async def bring_online(self, files: Sequence[StoredFile], owner: str, vo: str, pin_s: float) -> list[Staging]:
        """Have these on disk, and for `pin_s` from then on; those that are there already are pinned now. Again: only
        says how it stands. Raises Exhausted(STAGE_QUEUE_FULL)."""
        pin_s = min(max(pin_s, LEAST_PIN_S), self._config.max_pin_s)
        copies = await self._rows.copies([file.file_id for file in files])
        by_id = {file.file_id: locality_of(file, copies.get(file.file_id)) for file in files}
        for file in files:
            if file.damage and by_id[file.file_id] is Locality.NEARLINE and file.pool:
                await self._element.purge(file)
        online = [each for each, found in by_id.items() if found in (Locality.ONLINE, Locality.ONLINE_AND_NEARLINE)]
        await self._rows.pin([each for each in online if each in copies], owner, self._now_us() + int(pin_s * 1e6))
        wanted = [file for file in files if by_id[file.file_id] is Locality.NEARLINE]
        new = [file.file_id for file in wanted if self._is_new(file.file_id, owner)]
        self._require_room(len(new), vo, owner)
        if new:
            await self._rows.ask(new, owner, pin_s, self._now_us())
            for file in wanted:
                copy = copies[file.file_id]
                self._queue.add(StageRequest(file.file_id, owner, vo, file.size_bytes, copy.tape, copy.position))
            self._asked.ring()
        ahead = self._queue.ahead([file.file_id for file in wanted])
        return [self._standing(file, by_id[file.file_id], ahead.get(file.file_id, (0, 0))) for file in files]

    def _is_new(self, file_id: str, owner: str) -> bool:
        waiting = self._queue.get(file_id)
        return waiting is None or owner not in waiting.owners

    def _require_room(self, new: int, vo: str, owner: str) -> None:
        mine, limit = self._queue.of_user(vo, owner), max(self._config.max_requests // 10, 1)
        if new and (len(self._queue) + new > self._config.max_requests or mine + new > limit):
            raise Exhausted(
                "STAGE_QUEUE_FULL",
                f"{len(self._queue)} files wait for a tape here, {mine} of them for {owner}, and {new} more are too "
                f"many (limits: {self._config.max_requests} in all, {limit} for one user); ask again later",
                retry_after_s=ASK_AGAIN_S[1],
            )

    def _standing(self, file: StoredFile, locality: Locality, ahead: tuple[int, int]) -> Staging:
        if locality is not Locality.NEARLINE:
            return Staging(file, locality)
        files, size_bytes = ahead
        config, drives = self._config, self.readers
        seconds = config.mount_s + config.seek_s + (file.size_bytes + size_bytes / drives) / (config.mb_per_s * 1e6)
        waiting = self._queue.get(file.file_id)
        obstacle = waiting.obstacle if waiting is not None else ""
        return Staging(file, locality, files, min(max(round(seconds), ASK_AGAIN_S[0]), ASK_AGAIN_S[1]), obstacle)

    async def release(self, files: Sequence[StoredFile], owner: str) -> None:
        """`owner` needs these no more: pins and requests end. Again: nothing changes."""
        await self._rows.release([file.file_id for file in files], owner)
        for file in files:
            self._queue.withdraw(file.file_id, owner)

    async def drive(self) -> None:
        """One drive's worth of staging: tape after tape."""
        while True:
            heard, now = self._asked.rung, self._clock.monotonic()
            self._later = {file_id: until for file_id, until in self._later.items() if until > now}
            run = self._queue.next(self._later)
            if run is None:
                await self._asked.wait(LOOK_AGAIN_S, heard)
                continue
            try:
                await self._read(run)
            finally:
                self._queue.end(run)
            self._asked.ring()  # who waited for this tape may have it

    async def _read(self, run: Run) -> None:
        for waiting in run.files:
            if self._queue.get(waiting.file_id) is not waiting:
                continue
            try:
                await self._stage(waiting)
            except GridError as error:
                waiting.obstacle = error.sentence
                self._later[waiting.file_id] = self._clock.monotonic() + LOOK_AGAIN_S
                self._log.warning("storage.stage_failed", file=waiting.file_id, tape=run.tape, reason=error.reason,
                                  sentence=error.sentence)  # fmt: skip

    async def _stage(self, waiting: Waiting) -> None:
        """Raises GridError for what may be different later."""
        file = await self._files.get(waiting.file_id)
        if file is not None and waiting.owners and not file.pool:
            try:
                await self._fetch(file)
            except DataCorrupted as error:
                await self._lose(file, error)
                self._queue.done(waiting, served=False)
                return
            self._log.info(
                "storage.staged", file=file.file_id, vo=file.vo, tape=waiting.tape, asked=len(waiting.owners)
            )
            self._fuller.ring()
        await self._rows.staged(waiting.file_id, self._now_us())
        self._queue.done(waiting, served=file is not None)

    async def _fetch(self, file: StoredFile) -> None:
        """Raises DataCorrupted if the tape copy is no good, tried twice."""
        for again in (True, False):
            record = await self._library.query(file.file_id)
            if record is None:
                raise DataCorrupted("TAPE_LOST", f"no tape has file {file.file_id}; read another replica")
            if not await self.make_room(file.vo, file.size_bytes):
                raise Exhausted(
                    "DISK_FULL",
                    f"{file.size_bytes} bytes do not fit into the disk space of VO {file.vo} here: what is there is "
                    "pinned, wanted or not on tape yet; release pins with: grid data stage --release",
                )
            try:
                async with aclosing(self._library.stage(record)) as batches:
                    await self._element.stage(file, batches)
                return
            except DataCorrupted:
                if not again:
                    raise

    async def _lose(self, file: StoredFile, error: GridError) -> None:
        """Its tape copy is no good, and it is not on disk."""
        await self._library.purge(file.file_id)
        await self._rows.lost(file.file_id)
        self._on_tape[file.vo] -= file.size_bytes
        await self._files.mark(file, "FILE_LOST", self._now_us())
        self._log.audit("storage.damage_found", file=file.file_id, vo=file.vo, name=file.name_hint, pool="tape",
                        reason=error.reason, sentence=error.sentence)  # fmt: skip

    # -- from disk to tape -------------------------------------------------------------------------------------------

    def kept(self) -> None:
        """A file came, or one that was here went: look for work."""
        self._kept.ring()
        self._fuller.ring()

    async def keep_archiving(self) -> None:
        """Background task: what is on disk only gets its tape copy, and what was removed leaves the tapes."""
        while True:
            heard = self._kept.rung
            try:
                await self.archive()
                await self.collect_garbage()
                self.obstacle = ""
            except GridError as error:
                self.obstacle = error.sentence
                self._log.error("storage.archive_failed", reason=error.reason, sentence=error.sentence)
            await self._kept.wait(LOOK_AGAIN_S, heard)

    async def archive(self) -> int:
        """Archive everything that waits for it, once through; how many files. Raises Exhausted(TAPES_FULL),
        Unavailable(TAPE_UNUSABLE)."""
        after, done = "", 0
        while page := await self._rows.to_archive(after, PAGE):
            for file_id in page:
                file = await self._files.get(file_id)
                if file is not None and file.pool:
                    done += await self._archive(file)
            after = page[-1]
        return done

    async def _archive(self, file: StoredFile) -> bool:
        try:
            async with aclosing(self._element.at_rest(file)) as batches:
                record = await self._library.archive(file, batches)
        except DataCorrupted as error:
            self._log.warning("storage.archive_refused", file=file.file_id, reason=error.reason,
                              sentence=error.sentence)  # fmt: skip
            return False  # the scrubber finds out which of the two is wrong
        except Unavailable as error:
            if error.reason == "POOL_UNUSABLE":
                return False
            raise
        failpoints.reached("storage.archive.written")
        if not await self._rows.archived(record):
            return False  # removed meanwhile, so its record is garbage
        failpoints.reached("storage.archive.committed")
        self._on_tape[file.vo] += file.size_bytes
        self._fuller.ring()
        self._log.info("storage.archived", file=file.file_id, vo=file.vo, tape=record.tape, position=record.position)
        return True

    async def collect_garbage(self) -> None:
        """Forget records of files that were removed. Raises Unavailable(TAPE_UNUSABLE)."""
        while page := await self._rows.garbage():
            for file_id, vo, size_bytes in page:
                await self._library.purge(file_id)
                await self._rows.collected(file_id)
                self._on_tape[vo] -= size_bytes

    # -- off the disk ------------------------------------------------------------------------------------------------

    async def keep_purging(self) -> None:
        """Background task: whenever something changes, VOs above their high water lose what was longest unused."""
        while True:
            heard = self._fuller.rung
            try:
                await self.purge()
            except GridError as error:
                self._log.error("storage.purge_failed", reason=error.reason, sentence=error.sentence)
            await self._fuller.wait(LOOK_AGAIN_S, heard)

    async def purge(self) -> None:
        """Come down to low water where it is above high water."""
        await self._rows.unpin_expired(self._now_us())
        for use, available_bytes in (await self._element.space(self._config.vos)).vos:
            if self.keeps(use.vo):
                await self._purge(use.vo, surplus_bytes(use, available_bytes, self._config))

    async def make_room(self, vo: str, size_bytes: int) -> bool:
        """Let files leave the disk until so many bytes more fit, beyond water marks; False if that cannot be."""
        if not self.keeps(vo):
            return False
        if await self._element.has_room(vo, size_bytes):
            return True
        await self._purge(vo, size_bytes)
        return await self._element.has_room(vo, size_bytes)

    async def _purge(self, vo: str, size_bytes: int) -> None:
        async with self._purging:
            used, self._used = self._used, set()
            await self._rows.used(used, self._now_us())
            freed = 0
            while freed < size_bytes and (page := await self._rows.oldest(vo, self._now_us(), PAGE)):
                before = freed
                for file_id in page:
                    file = await self._files.get(file_id)
                    if freed < size_bytes and file is not None and await self._element.purge(file):
                        freed += file.size_bytes
                if freed == before:
                    break

    def _now_us(self) -> int:
        return to_us(self._clock.now())


def locality_of(file: StoredFile, copy: TapeCopy | None) -> Locality:
    """What a row of each says. Damaged on disk is as good as not there."""
    on_tape = copy is not None and bool(copy.tape)
    if not file.pool or file.damage:
        return Locality.NEARLINE if on_tape else Locality.LOST
    return Locality.ONLINE_AND_NEARLINE if on_tape else Locality.ONLINE


def surplus_bytes(use: VoUse, available_bytes: int, config: TapeConfig) -> int:
    """What has to leave the disk to come down to low water; 0 below high water. The space of a VO is what it uses and
    what it could write besides."""
    held = use.used_bytes + use.reserved_bytes
    space_bytes = held + available_bytes
    if held <= config.high_water * space_bytes:
        return 0
    return int(held - config.low_water * space_bytes)
