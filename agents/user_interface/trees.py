"""`grid data put -r` and `get -r`: whole directories, small files many by one call.

Both may be ended at any moment and called again: what is there already, with the same bytes, is left alone. A put has
an id made from its name and its bytes, so what was stored and not registered before is found again and not stored
twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.data import Element
from agents.user_interface.exits import Ended, UsageProblem, describe, exit_code
from agents.user_interface.progress import moving
from fabric.errors import AlreadyExists, GridError, InvalidRequest
from security import sealing
from security.errors import SecurityError, os_error_text

T = TypeVar("T")

WORKERS = 3
"""Batches under way: while one is written to the disk there, another is read here."""
SHOWN_FAILURES = 100
"""Failures that are kept for the report; all are counted, and told on stderr as they come."""


@dataclass
class Tally:
    """What became of the files so far."""

    done: int = 0
    already: int = 0
    size_bytes: int = 0
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    first: Exception | None = None
    progress: Callable[[int], None] = lambda moved: None

    def add(self, size_bytes: int) -> None:
        """One more file is there."""
        self.done += 1
        self.size_bytes += size_bytes
        self.progress(size_bytes)

    def fail(self, name: str, error: Exception) -> None:
        """One more was refused."""
        self.failed += 1
        self.first = self.first or error
        found = describe(error)
        console.warn(f"{name}: {found['sentence']}")
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append({"name": name, "error": found})

    def report(self, verb: str, *, as_json: bool) -> None:
        """Print it. Raises Ended if something failed."""
        if as_json:
            counts = {"done": self.done, "already": self.already, "size_bytes": self.size_bytes, "failed": self.failed}
            console.print_json({**counts, "failures": self.failures})
        else:
            already = f", {self.already} were there already" if self.already else ""
            failed = f", {self.failed} failed" if self.failed else ""
            print(f"{self.done} files {verb} ({console.bytes_text(self.size_bytes)}){already}{failed}")
        if self.first is not None:
            raise Ended(exit_code(self.first))


async def work_off(batches: AsyncGenerator[T], work: Callable[[T], Awaitable[None]]) -> None:
    """`work` on each batch, WORKERS at a time; no batch is made before somebody is free for it."""
    one_asks = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with one_asks:
                batch = await anext(batches, None)
            if batch is None:
                return
            await work(batch)

    try:
        async with aclosing(batches), asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _together(files: AsyncGenerator[T], size_of: Callable[[T], int]) -> AsyncGenerator[list[T]]:
    """Small files in batches of one call, each large one by itself."""
    batch: list[T] = []
    batch_bytes = 0
    async with aclosing(files):
        async for file in files:
            size_bytes = size_of(file)
            if size_bytes > storage.SMALL_BYTES:
                yield [file]
                continue
            if len(batch) == storage.MAX_TOGETHER or batch_bytes + size_bytes > storage.MAX_TOGETHER_BYTES:
                yield batch
                batch, batch_bytes = [], 0
            batch.append(file)
            batch_bytes += size_bytes
    if batch:
        yield batch


# -- into the grid ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the tree, with the name that it is to have."""

    path: Path
    lfn: str
    size_bytes: int


async def put_tree_command(
    source: Path, lfn: str, se: str | None, *, as_json: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid data put -r`."""
    name = data.check_lfn(lfn).rstrip("/")
    if not source.is_dir():
        raise UsageProblem(f"{source} is not a directory; leave out -r for a single file", path=source)
    async with open_for_user(environ) as grid:
        data.require_vo(grid)
        tree = TreePut(grid, await data.find_element(grid, se))
        with moving(name) as tree.tally.progress:
            await tree.run(source, name)
    tree.tally.report("put", as_json=as_json)


class TreePut:
    """One run of `grid data put -r`."""

    def __init__(self, grid: Grid, element: Element) -> None:
        self.tally = Tally()
        self._grid, self._element = grid, element

    async def run(self, source: Path, lfn: str) -> None:
        """Every regular file below `source` gets its name below `lfn`."""
        self._names = await self._grid.channel("catalog")
        self._storage = await self._grid.channel_to(self._element.host, self._element.port)
        await work_off(_together(self._files(source, lfn), lambda file: file.size_bytes), self._put)

    async def _files(self, source: Path, lfn: str) -> AsyncGenerator[LocalFile]:
        found = _files(source, lfn)
        while (file := await asyncio.to_thread(next, found, None)) is not None:
            if isinstance(file, LocalFile):
                yield file
            else:
                self.tally.fail(*file)

    async def _put(self, batch: list[LocalFile]) -> None:
        known = await self._known([file.lfn for file in batch])
        missing = [file for file in batch if file.lfn not in known]
        for file in batch:
            if file.lfn in known:
                await self._compare(file, known[file.lfn])
        if len(missing) == 1 and missing[0].size_bytes > storage.SMALL_BYTES:
            await self._put_large(missing[0])
        elif missing:
            await self._put_small(missing)

    async def _known(self, lfns: Sequence[str]) -> dict[str, catalog.Entry]:
        found, _ = await catalog.lookup(self._names, lfns)
        by_path = {entry.lfn: entry for entry in found}
        paths = {lfn: catalog.parse_lfn(lfn).path for lfn in lfns}
        return {lfn: by_path[path] for lfn, path in paths.items() if path in by_path}

    async def _compare(self, file: LocalFile, entry: catalog.Entry) -> None:
        content = data.content_of(entry) if entry.content is not None else None
        try:
            same = content is not None and content.size_bytes == file.size_bytes and entry.replicas
            sums = await asyncio.to_thread(storage.checksums_of_file, file.path) if same else None
        except GridError as error:
            self.tally.fail(str(file.path), error)
            return
        if sums is not None and sums == data.checksums_of(entry):
            self.tally.already += 1
        else:
            self._taken(file)

    def _taken(self, file: LocalFile) -> None:
        self.tally.fail(
            str(file.path),
            AlreadyExists(
                "LFN_EXISTS", f"{file.lfn} is there already and is something else; remove it, or put under another name"
            ),
        )

    async def _put_small(self, files: Sequence[LocalFile]) -> None:
        read = await asyncio.to_thread(lambda: [self._read(file) for file in files])
        whole = [(file, small) for file, small in zip(files, read, strict=True) if isinstance(small, storage.SmallFile)]
        for file, small in zip(files, read, strict=True):
            if isinstance(small, GridError):
                self.tally.fail(str(file.path), small)
        if not whole:
            return
        outcomes = await storage.put_small(self._storage, [small for _, small in whole], self._grid.vo)
        stored: list[tuple[LocalFile, storage.Stored]] = []
        for (file, _), outcome in zip(whole, outcomes, strict=True):
            if isinstance(outcome, GridError):
                self.tally.fail(str(file.path), outcome)
            else:
                stored.append((file, outcome))
        if stored:
            await self._register(stored)

    def _read(self, file: LocalFile) -> storage.SmallFile | GridError:
        try:
            small = storage.small_file(file.path, "", file.path.name[:200])
        except GridError as error:
            return error
        return storage.SmallFile(small.data, small.checksums, put_id_of(file.lfn, small.checksums), small.name_hint)

    async def _put_large(self, file: LocalFile) -> None:
        try:
            sums = await asyncio.to_thread(storage.checksums_of_file, file.path)
            stored = await storage.put_file(
                self._storage, file.path, self._grid.vo, name_hint=file.path.name[:200],
                put_id=put_id_of(file.lfn, sums),
            )  # fmt: skip
        except GridError as error:
            self.tally.fail(str(file.path), error)
            return
        await self._register([(file, stored)])

    async def _register(self, stored: Sequence[tuple[LocalFile, storage.Stored]]) -> None:
        new = [
            catalog.NewFile(
                file.lfn,
                catalog.new_guid(),
                catalog.Content(kept.size_bytes, kept.checksums.adler32, kept.checksums.sha256),
                kept.surl,
            )
            for file, kept in stored
        ]
        refused: list[tuple[LocalFile, storage.Stored, GridError]] = []
        for (file, kept), error in zip(stored, await catalog.register_many(self._names, new), strict=True):
            if error is None:
                self.tally.add(kept.size_bytes)
            else:
                refused.append((file, kept, error))
        if refused:
            await self._not_registered(refused)

    async def _not_registered(self, refused: Sequence[tuple[LocalFile, storage.Stored, GridError]]) -> None:
        """Somebody else was first, perhaps this very command in another shell. What nobody names goes."""
        known = await self._known([file.lfn for file, _, _ in refused])
        listed, _ = await catalog.lookup(self._names, [kept.surl for _, kept, _ in refused])
        surls = {replica.surl for entry in listed for replica in entry.replicas}
        for file, kept, error in refused:
            if kept.surl not in surls:
                with suppress(GridError):  # it will be found as a dark file
                    await storage.remove(self._storage, kept.surl)
            entry = known.get(file.lfn)
            if entry is None or entry.content is None or data.checksums_of(entry) != kept.checksums:
                self.tally.fail(str(file.path), error)
            else:
                self.tally.already += 1


def _files(source: Path, lfn: str) -> Iterator[LocalFile | tuple[str, Exception]]:
    """Below a directory, in order of name; or why one cannot be put. Links to directories are not followed."""
    unreadable: list[OSError] = []
    for folder, directories, names in os.walk(source, onerror=unreadable.append):
        directories.sort()
        place = PurePosixPath(lfn) / Path(folder).relative_to(source).as_posix()
        for name in sorted(names):
            path = Path(folder, name)
            try:
                found = path.stat()
                if not stat.S_ISREG(found.st_mode):
                    raise UsageProblem(f"{path} is not a regular file and was left out", path=path)
                wanted = f"{place}/{name}"
                catalog.parse_file_lfn(wanted)
            except (OSError, UsageProblem, InvalidRequest) as error:
                yield str(path), error
            else:
                yield LocalFile(path, wanted, found.st_size)
    yield from ((str(error.filename), error) for error in unreadable)


def put_id_of(lfn: str, checksums: storage.Checksums) -> str:
    """The id of the put of these bytes under this name, the same in every run."""
    return hashlib.sha256(f"{lfn}\0{checksums.sha256}".encode()).hexdigest()


# -- out of the grid -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file of the catalogue and where it goes."""

    entry: catalog.Entry
    path: Path


async def get_tree_command(
    lfn: str,
    target: Path | None,
    se: str | None,
    *,
    force: bool,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid data get -r`."""
    name = data.check_lfn(lfn).rstrip("/")
    target = target or Path(PurePosixPath(name).name)
    async with open_for_user(environ) as grid:
        element = await data.find_element(grid, se) if se is not None else None
        tree = TreeGet(grid, element, force=force)
        with moving(name) as tree.tally.progress:
            await tree.run(name, target)
    tree.tally.report("fetched", as_json=as_json)


class TreeGet:
    """One run of `grid data get -r`: from `element`, or wherever a replica can be read."""

    def __init__(self, grid: Grid, element: Element | None, *, force: bool) -> None:
        self.tally = Tally()
        self._grid, self._element, self._force = grid, element, force

    async def run(self, lfn: str, target: Path) -> None:
        """Every file below the directory `lfn` comes to its place below `target`."""
        self._names = await self._grid.channel("catalog")
        await work_off(
            _together(self._files(lfn, target), lambda file: data.content_of(file.entry).size_bytes), self._get
        )

    async def _files(self, lfn: str, target: Path) -> AsyncGenerator[WantedFile]:
        async with aclosing(catalog.walk(lambda: self._grid.channel("catalog"), lfn)) as pages:
            async for directory, entries in pages:
                place = target / directory.removeprefix(lfn).lstrip("/")
                await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True)
                for entry in entries:
                    if entry.content is not None:
                        # Not `..`, no slash in it, whatever the catalogue says.
                        yield WantedFile(entry, place / catalog.parse_lfn(entry.lfn).name)

    async def _get(self, batch: list[WantedFile]) -> None:
        missing: list[WantedFile] = []
        states = await asyncio.to_thread(lambda: [_is_there(wanted, self._force) for wanted in batch])
        for wanted, there in zip(batch, states, strict=True):
            if isinstance(there, Exception):
                self.tally.fail(data.lfn_of(wanted.entry), there)
            elif there:
                self.tally.already += 1
            else:
                missing.append(wanted)
        if not missing:
            return
        found, _ = await catalog.lookup(self._names, [data.lfn_of(wanted.entry) for wanted in missing])
        complete = {entry.lfn: entry for entry in found}
        places: dict[tuple[str, int], list[tuple[WantedFile, str]]] = {}
        for wanted in missing:
            file = WantedFile(complete.get(wanted.entry.lfn, wanted.entry), wanted.path)
            replicas = self._replicas(file.entry)
            if not replicas or data.content_of(file.entry).size_bytes > storage.SMALL_BYTES:
                await self._get_alone(file)
            else:
                places.setdefault(data.door(replicas[0].surl), []).append((file, replicas[0].surl))
        for place, files in places.items():
            await self._get_small(place, files)

    def _replicas(self, entry: catalog.Entry) -> list[catalog.Replica]:
        return [r for r in entry.replicas if self._element is None or data.is_at(r, self._element)]

    async def _get_small(self, place: tuple[str, int], files: Sequence[tuple[WantedFile, str]]) -> None:
        try:
            channel = await self._grid.channel_to(*place)
            found = await storage.get_small(channel, [surl for _, surl in files])
        except (GridError, SecurityError):
            found = [None] * len(files)
        whole: list[tuple[WantedFile, bytes]] = []
        for (wanted, _), got in zip(files, found, strict=True):
            is_plain = isinstance(got, tuple) and not sealing.is_sealed(got[0])
            if is_plain and got[1] == data.checksums_of(wanted.entry):
                whole.append((wanted, got[0]))
            else:
                await self._get_alone(wanted)  # another replica may be good, or it is encrypted
        for (wanted, content), error in zip(whole, await asyncio.to_thread(_write_all, whole), strict=True):
            if error is None:
                self.tally.add(len(content))
            else:
                self.tally.fail(data.lfn_of(wanted.entry), error)

    async def _get_alone(self, wanted: WantedFile) -> None:
        try:
            await data.fetch(self._grid, wanted.entry, wanted.path, self._element)
        except (GridError, SecurityError) as error:
            self.tally.fail(data.lfn_of(wanted.entry), error)
        else:
            self.tally.add(data.content_of(wanted.entry).size_bytes)


def _is_there(wanted: WantedFile, force: bool) -> bool | Exception:
    """Whether a local file has these bytes, or why it cannot get them."""
    path = wanted.path
    try:
        size_bytes = path.stat().st_size
        same = size_bytes == data.content_of(wanted.entry).size_bytes
        if same and storage.checksums_of_file(path) == data.checksums_of(wanted.entry):
            return True
    except FileNotFoundError:
        return False
    except (GridError, OSError) as error:
        return error
    if force:
        return False
    return AlreadyExists("FILE_EXISTS", f"{path} is there and is another file; use --force to replace it")


def _write_all(files: Sequence[tuple[WantedFile, bytes]]) -> list[InvalidRequest | None]:
    return [_write(wanted.path, content) for wanted, content in files]


def _write(path: Path, content: bytes) -> InvalidRequest | None:
    """The whole file, or nothing of it."""
    partial = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        return InvalidRequest(
            "FILE_UNWRITABLE", f"{path} cannot be written ({os_error_text(error)}); choose another place"
        )
    return None
