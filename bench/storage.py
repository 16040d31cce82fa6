"""Section `storage`: files to and from a storage element, checked end to end, beside streams that check nothing."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from agents.storage import client as storage
from agents.user_interface.connection import Grid
from agents.user_interface.data import Element, lookup, replicate_all
from agents.user_interface.trees import TreeGet, TreePut
from bench import limits
from bench.lab import VO, Lab, since
from bench.measure import Bench, Table, timed
from fabric.settings import Endpoint

MB = 1_000_000
STREAMS = 4
SMALL_BYTES = 10_000
SMALL_AT_ONCE = 16
CLEAN_S = 120.0
"""Deadline of a removal of what was measured."""


def run(bench: Bench, lab: Lab) -> None:
    """Large files by one stream and by four, then many small files and copies of them."""
    limits.need(bench, "tls", "grpc", "disk", "small_files", "sha256")
    asyncio.run(_run(bench, lab))


async def _run(bench: Bench, lab: Lab) -> None:
    element, far = sorted(lab.services.all("storage"), key=lambda each: each.site == "FAR")
    async with lab.open() as grid:
        channel = await grid.channel_to(element.host, element.rpc)
        await _large(bench, channel, 1, bench.size(512, 128) << 20)
        await _large(bench, channel, STREAMS, bench.size(256, 64) << 20)
        await _small(bench, channel, bench.size(1000, 200))
        await _together(bench, grid, _element(element))
        await _copies(bench, lab, grid, _element(element), _element(far))


def _element(found: Endpoint) -> Element:
    return Element(found.name, found.site, found.host, found.rpc)


async def _large(bench: Bench, channel: Any, streams: int, size: int) -> None:
    sources = _files(bench.folder / f"large-{streams}", streams, size)
    up, down = [], []
    for _ in range(bench.trials):
        seconds, stored = await timed(_put_all(channel, sources, streams))
        up.append(streams * size / MB / seconds)
        seconds, _ = await timed(_get_all(channel, stored, sources, streams))
        down.append(streams * size / MB / seconds)
        await _remove_all(channel, stored)
    for source in sources:
        source.unlink()
    name = "one stream" if streams == 1 else f"{streams} streams of one client"
    note = "sha256 and adler32 on both sides, on disk before the answer"
    bench.add(f"upload_{streams}", f"upload, {name}", "MB/s", up, limit="tls", note=note)
    bench.add(f"download_{streams}", f"download to a file, {name}", "MB/s", down, limit="tls")


async def _small(bench: Bench, channel: Any, count: int) -> None:
    sources = _files(bench.folder / "many", count, SMALL_BYTES)
    up, down = [], []
    for _ in range(bench.trials):
        seconds, stored = await timed(_put_all(channel, sources, SMALL_AT_ONCE))
        up.append(count / seconds)
        seconds, _ = await timed(_get_all(channel, stored, sources, SMALL_AT_ONCE))
        down.append(count / seconds)
        await _remove_all(channel, stored)
    title = f"10 kB files {{}}, {SMALL_AT_ONCE} under way"
    bench.add("small_put", title.format("put"), "1/s", up, limit="small_files")
    bench.add("small_get", title.format("got"), "1/s", down)


async def _together(bench: Bench, grid: Grid, element: Element) -> None:
    """A directory as `grid data put -r` and `get -r` move it, catalogue and all."""
    count = bench.size(3000, 500)
    source = bench.folder / "together"
    _files(source, count, SMALL_BYTES)
    up, down = [], []
    for trial in range(bench.trials):
        lfn = f"lfn:/grid/{VO}/bench/{uuid.uuid4().hex}"
        put = TreePut(grid, element)
        seconds, _ = await timed(put.run(source, lfn))
        up.append(put.tally.done / seconds)
        back = TreeGet(grid, element, force=False)
        seconds, _ = await timed(back.run(lfn, bench.folder / f"together-{trial}"))
        down.append(back.tally.done / seconds)
        if (put.tally.failed, back.tally.failed) != (0, 0) or back.tally.done != count:
            raise RuntimeError(f"{put.tally} {back.tally}")
    note = "many by one call"
    bench.add("tree_put", "10 kB files put and registered, grid data put -r", "1/s", up, limit="small_files", note=note)
    bench.add("tree_get", "10 kB files got, grid data get -r", "1/s", down)


async def _copies(bench: Bench, lab: Lab, grid: Grid, source: Element, target: Element) -> None:
    """Third-party copies as `grid data replicate` asks for them, registered; and what a file costs each process."""
    count = bench.size(3000, 500)
    folder = bench.folder / "copies"
    _files(folder, count, SMALL_BYTES)
    rates: list[float] = []
    used: dict[str, float] = {}
    for _ in range(bench.trials):
        lfn = f"lfn:/grid/{VO}/bench/{uuid.uuid4().hex}"
        await TreePut(grid, source).run(folder, lfn)
        names = [f"{lfn}/{path.name}" for path in folder.iterdir()]
        before = lab.cpu()
        seconds, failures = await timed(_replicate(grid, names, target))
        if failures:
            raise failures[0]
        rates.append(count / seconds)
        for process, cpu_s in since(before, lab.cpu()).items():
            used[process] = used.get(process, 0.0) + cpu_s / count / bench.trials
    bench.add("copies", "10 kB files copied by storage elements and registered", "1/s", rates)
    rows = tuple((name, f"{1e6 * cpu_s:.0f}") for name, cpu_s in used.items() if cpu_s >= 1e-5)
    bench.tables.append(Table("Processor time of a third-party copy of 10 kB", ("process", "us/file"), rows))


async def _replicate(grid: Grid, lfns: Sequence[str], target: Element) -> list[Exception]:
    return await replicate_all(grid, await lookup(grid, lfns), target)


def _files(folder: Path, count: int, size: int) -> list[Path]:
    folder.mkdir()
    piece = os.urandom(min(size, 1 << 20))
    paths = [folder / f"file-{number}" for number in range(count)]
    for path in paths:
        with path.open("wb") as file:
            for _ in range(size // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())  # else the disk would write it while we measure
    return paths


async def _each(calls: Sequence[Callable[[], Awaitable[Any]]], at_once: int) -> list[Any]:
    gate = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await call()

    return await asyncio.gather(*(one(call) for call in calls))


async def _put_all(channel: Any, sources: Sequence[Path], at_once: int) -> list[storage.Stored]:
    return await _each([lambda p=path: storage.put_file(channel, p, VO) for path in sources], at_once)


async def _get_all(channel: Any, stored: Sequence[storage.Stored], sources: Sequence[Path], at_once: int) -> list[Any]:
    pairs = [(file.surl, path.with_suffix(".back")) for file, path in zip(stored, sources, strict=True)]
    result = await _each([lambda s=surl, t=target: storage.get_file(channel, s, t) for surl, target in pairs], at_once)
    for _, target in pairs:
        target.unlink()
    return result


async def _remove_all(channel: Any, stored: Sequence[storage.Stored]) -> None:
    async with asyncio.timeout(CLEAN_S):
        await _each([lambda s=file.surl: storage.remove(channel, s) for file in stored], SMALL_AT_ONCE)
