"""Section `names`: the catalogue's store alone, as it grows; whether a question costs the same in a large catalogue."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from agents.catalog.access import Caller
from agents.catalog.model import MAX_LOOKUP, MAX_PAGE, Content, NewFile, Replica
from agents.catalog.names import MAX_COMPONENT_LENGTH, Lfn
from agents.catalog.store import CatalogStore, metadata
from bench.measure import Bench
from fabric.store import Store

CALLER = Caller("/O=Bench/OU=Users/CN=production", "cms", ())
CONTENT = Content(1 << 30, "0a0b0c0d", "ab" * 32)
WIDE = 100_000
"""Files of one directory; all others have a thousand."""
NARROW = 1000
SINGLES = 2000


def run(bench: Bench, sizes: Sequence[int]) -> None:
    """Filled up to each size through the store's own bulk path, and asked at each. Some of the names have as many
    characters as a name may have."""
    asyncio.run(_run(bench, sizes or (bench.size(100_000, 20_000), bench.size(1_000_000, 40_000))))


async def _run(bench: Bench, sizes: Sequence[int]) -> None:
    path = bench.folder / "names.db"
    store = Store(path, metadata)
    try:
        made = 0
        for size in sorted(sizes):
            await _fill(bench, CatalogStore(store), made, size)
            made = max(made, size)
            await _ask(bench, CatalogStore(store), path, made)
    finally:
        await store.close()


def name_of(number: int) -> Lfn:
    """Of the file with this number."""
    directory = "wide" if number < WIDE else f"run{number // NARROW:07d}"
    name = f"file-{number:09d}"
    if number % 10 == 0:
        name += "-" + "x" * (MAX_COMPONENT_LENGTH - len(name) - 1)
    return Lfn(f"/grid/cms/bench/{directory}/{name}")


def _new(number: int) -> NewFile:
    """Its GUID is as random as others are."""
    guid = str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))
    replica = Replica(f"srm://se{number % 192}.bench.invalid:8443/cms/{guid.replace('-', '')}", "", number)
    return NewFile(name_of(number), guid, CONTENT, replica, CALLER, True, number)


async def _fill(bench: Bench, catalogue: CatalogStore, made: int, size: int) -> None:
    starts = range(made, size, MAX_LOOKUP)
    last = starts[-10:]
    costs: list[float] = []
    for start in starts:
        new = [_new(number) for number in range(start, min(start + MAX_LOOKUP, size))]
        began = time.process_time()
        refused = [error for error in await catalogue.register_many(new) if error is not None]
        if refused:
            raise refused[0]
        if start in last:
            costs.append(1e6 * (time.process_time() - began) / len(new))
    if costs:
        bench.add(f"names_{size}_register", f"{size} names: one more, {MAX_LOOKUP} a call", "us", costs)


async def _ask(bench: Bench, catalogue: CatalogStore, path: Path, size: int) -> None:
    chance = random.Random(1)
    wide = min(WIDE, size)
    bench.say(f"  ({size} names: {path.stat().st_size >> 20} MiB)")

    async def measure(key: str, title: str, items: int, work: Callable[[], Awaitable[int]]) -> None:
        costs: list[float] = []
        for _ in range(bench.trials):
            began = time.process_time()
            found = await work()
            costs.append(1e6 * (time.process_time() - began) / items)
            if found != items:
                raise RuntimeError(f"{title}: {found} found of {items}")
        bench.add(f"names_{size}_{key}", f"{size} names: {title}", "us", costs)

    async def alone() -> int:
        asked = [name_of(chance.randrange(size)) for _ in range(SINGLES)]
        return sum([len(await catalogue.lookup([lfn], [], CALLER)) for lfn in asked])

    async def at_once() -> int:
        asked = [name_of(chance.randrange(size)) for _ in range(SINGLES)]
        found = await asyncio.gather(*(catalogue.lookup([lfn], [], CALLER) for lfn in asked))
        return sum(map(len, found))

    async def in_bulk() -> int:
        numbers = chance.sample(range(size), SINGLES)
        parts = [numbers[start : start + MAX_LOOKUP] for start in range(0, SINGLES, MAX_LOOKUP)]
        return sum([len(await catalogue.lookup(list(map(name_of, part)), [], CALLER)) for part in parts])

    async def listed() -> int:
        count, after = 0, ""
        while page := await catalogue.page(Lfn("/grid/cms/bench/wide"), CALLER, after, MAX_PAGE):
            count, after = count + len(page), page[-1].lfn.rpartition("/")[2]
        return count

    await measure("lookup", "one looked up", SINGLES, alone)
    await measure("lookup_at_once", "one looked up, many askers", SINGLES, at_once)
    await measure("lookup_many", f"one looked up, {MAX_LOOKUP} a call", SINGLES, in_bulk)
    await measure("list", f"an entry of a directory of {wide}", wide, listed)
