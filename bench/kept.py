"""Section `kept`: a storage element with many files, without its doors; what it holds in memory, and whether a file
costs the same beside many others."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from agents.storage.config import parse_config
from agents.storage.element import StorageElement
from agents.storage.framing import Piece
from agents.storage.model import Announced, Checksums, StoredFile
from agents.storage.pool import Hasher
from agents.storage.store import MIGRATIONS, FileStore, metadata
from bench.measure import Bench
from fabric.clock import SystemClock
from fabric.logs import null_logger
from fabric.store import Store

OWNER = "/O=Bench/OU=Users/CN=production"
TOGETHER = 5000
PAGE = 1000
NEW = 256
"""Small files that are put, by one call, and removed again."""
DATA = bytes(10_000)


def run(bench: Bench, sizes: Sequence[int]) -> None:
    """Rows for so many files, their bytes left out; then an element in a process of its own works with them."""
    for size in sorted(sizes or (bench.size(1_000_000, 20_000),)):
        folder = bench.folder / f"kept-{size}"
        folder.mkdir()
        asyncio.run(_fill(folder, size))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found: dict[str, Any] = pool.apply(_work, (str(folder), size, bench.trials))
        bench.add(f"kept_{size}_memory", f"{size} files: memory of the process, at most", "MB", found["memory"])
        bench.add(f"kept_{size}_start", f"{size} files: until it is open", "ms", found["start"])
        bench.add(f"kept_{size}_listed", f"{size} files: one listed, {PAGE} a page", "us", found["listed"])
        bench.add(f"kept_{size}_put", f"{size} files: one of 10 kB more, {NEW} a call", "us", found["put"])
        bench.add(f"kept_{size}_removed", f"{size} files: one removed", "us", found["removed"])


async def _fill(folder: Path, size: int) -> None:
    store = Store(folder / "files.db", metadata, MIGRATIONS)
    try:
        pool, sums = str(folder / "pool"), Checksums("0a0b0c0d", "ab" * 32)
        (folder / "pool" / "data").mkdir(parents=True)
        for start in range(0, size, TOGETHER):
            names = [uuid.uuid4().hex for _ in range(min(TOGETHER, size - start))]
            await FileStore(store).add_many(
                [StoredFile(name, "cms", 10_000, sums, OWNER, f"put-{name}", "f", pool, start, name) for name in names]
            )
    finally:
        await store.close()


def _work(folder: str, size: int, trials: int) -> dict[str, list[float]]:
    return asyncio.run(_measure(Path(folder), size, trials))


async def _measure(folder: Path, size: int, trials: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"start": [], "listed": [], "put": [], "removed": []}
    store = Store(folder / "files.db", metadata, MIGRATIONS)
    config = parse_config({"reserve_bytes": 0}, folder)
    element = StorageElement(config, FileStore(store), log=null_logger(), clock=SystemClock())

    async def cost(key: str, scale: float, items: int, work: Callable[[], Awaitable[object]]) -> None:
        began = time.process_time()
        await work()
        found[key].append(scale * (time.process_time() - began) / items)

    async def listed() -> None:
        after, count = "", 0
        while page := await element.page("cms", after, PAGE):
            after, count = page[-1].file_id, count + len(page)
        if count != size:
            raise RuntimeError(f"{count} of {size} files were listed")

    hasher = Hasher()
    hasher.update(DATA)
    kept: list[StoredFile] = []

    async def put() -> None:
        new: list[tuple[Announced, Piece]] = [
            (Announced("cms", len(DATA), uuid.uuid4().hex, OWNER, "f", hasher.checksums()), DATA) for _ in range(NEW)
        ]
        kept[:] = [file for file in await element.put_many(OWNER, new) if isinstance(file, StoredFile)]

    async def removed() -> None:
        for file in kept:
            await element.remove(file.file_id, "cms", lambda file: None)

    try:
        await cost("start", 1e3, 1, element.start)
        for _ in range(trials):
            await cost("listed", 1e6, size, listed)
            await cost("put", 1e6, NEW, put)
            await cost("removed", 1e6, NEW, removed)
    finally:
        await element.stop()
        await element.close()
        await store.close()
    return found | {"memory": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]}
