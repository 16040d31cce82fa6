"""Pools added, drained and taken out while files are read and written."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.storage.config import STRESS_GRID, parse_config
from agents.storage.drain import PoolKeeper
from agents.storage.failpoints import NAMES
from agents.storage.pools import PoolState
from fabric.errors import AlreadyExists, Conflict, DataCorrupted, Exhausted, InvalidRequest, NotFound
from fabric.logs import null_logger

from .conftest import Bench, announced, stream, sums

DATA = random.Random(4).randbytes(300_000)


async def start(bench: Bench, *pools: str, **options: Any) -> tuple[Any, PoolKeeper]:
    element = await bench.start(pools=list(pools), **options)
    return element, PoolKeeper(element, bench.files, log=null_logger())


async def read(element: Any, file: Any) -> bytes:
    return b"".join([bytes(piece) async for piece in element.read(file, 0, file.size_bytes)])


def counts(bench: Bench, *pools: str) -> list[int]:
    return [len(bench.on_disk(pool)) for pool in pools]


async def test_a_drained_pool_is_empty_its_files_are_elsewhere_and_it_stays_out(bench: Bench, upload: Any) -> None:
    element, keeper = await start(bench, "a")
    files = [await upload(element, DATA + bytes([i]), f"p{i}") for i in range(5)]
    used = (await element.space()).vos
    (bench.root / "b").mkdir()
    b = await keeper.add(str(bench.root / "b"))
    a = str(bench.root / "a")
    held = element.read(files[0], 0, files[0].size_bytes)
    first = bytes(await anext(held))
    await keeper.drain(a)
    await keeper.empty(a)
    assert counts(bench, "a", "b") == [0, 5]
    assert first + b"".join([bytes(piece) async for piece in held]) == DATA + b"\0"
    for number, file in enumerate(files):  # as they were looked up before the move
        assert await read(element, file) == DATA + bytes([number])
    assert [(report.path, report.state, report.files) for report in await keeper.report()] == [
        (a, PoolState.DRAINING, 0), (b, PoolState.OPEN, 5)
    ]  # fmt: skip
    assert (await element.space()).vos[0][0] == used[0][0]
    await keeper.remove(a)
    await keeper.remove(a)
    await bench.stop()
    element, keeper = await start(bench, "a")
    assert [report.path for report in await keeper.report()] == [b]
    assert (await upload(element, DATA, "new")).pool == b
    assert await read(element, await element.get(files[3].file_id, "cms")) == DATA + b"\3"
    assert await keeper.add(a) == a
    assert {report.path for report in await keeper.report()} == {a, b}


async def test_no_reader_sees_a_gap_while_everything_moves_to_and_fro(bench: Bench, upload: Any) -> None:
    element, keeper = await start(bench, "a", "b")
    contents = {f"p{i}": random.Random(i).randbytes(1000 * i + 1) for i in range(8)}
    files = {name: await upload(element, data, name) for name, data in contents.items()}
    reads, ended = 0, False

    async def reader(seed: int) -> None:
        nonlocal reads
        chance = random.Random(seed)
        while not ended:
            name = chance.choice(list(files))
            file = files[name] if chance.random() < 0.5 else await element.get(files[name].file_id, "cms")
            assert await read(element, file) == contents[name]
            reads += 1

    async def mover() -> None:
        nonlocal ended
        for turn in range(4):
            pool = str(bench.root / "ab"[turn % 2])
            await keeper.drain(pool)
            await keeper.empty(pool)
            assert not bench.on_disk("ab"[turn % 2])
            await keeper.add(pool)
            await element.pools.measure()
        ended = True

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for seed in range(4):
            group.create_task(reader(seed))
        group.create_task(mover())
    assert reads and sum(counts(bench, "a", "b")) == 8


async def test_removed_or_uploaded_while_it_moves(bench: Bench, upload: Any) -> None:
    element, keeper = await start(bench, "a", "b")
    file = await upload(element, DATA)
    await element.remove(file.file_id, "cms", lambda file: None)
    assert not await element.move(file)
    assert counts(bench, "a", "b") == [0, 0]
    blocked, seen = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[Any]:
        yield DATA
        seen.set()
        await blocked.wait()
        yield sums(DATA)

    putting = asyncio.create_task(element.put(announced(DATA, "slow"), slow()))
    await seen.wait()
    pool = next(str(bench.root / name) for name in "ab" if element.uploads_to(str(bench.root / name)))
    await keeper.drain(pool)
    await keeper.empty(pool)
    with pytest.raises(Conflict) as caught:
        await keeper.remove(pool)
    assert caught.value.reason == "POOL_NOT_EMPTY" and "1 are on their way" in caught.value.sentence
    blocked.set()
    late = await putting
    assert late.pool == pool
    await keeper.empty(pool)
    await keeper.remove(pool)
    assert await read(element, late) == DATA


async def test_a_damaged_file_stays_and_is_the_obstacle_until_it_is_repaired(bench: Bench, upload: Any) -> None:
    element, keeper = await start(bench, "a")
    file, other = await upload(element, DATA), await upload(element, DATA[:-1], "p2")
    bench.bytes_of(file).write_bytes(DATA[::-1])
    (bench.root / "b").mkdir()
    await keeper.add(str(bench.root / "b"))
    a = str(bench.root / "a")
    await keeper.drain(a)
    await keeper.empty(a)
    report = next(report for report in await keeper.report() if report.path == a)
    assert report.files == 1 and "damaged or lost; repair it" in report.obstacle
    assert await read(element, other) == DATA[:-1]
    damaged = await element.get(file.file_id, "cms")
    assert damaged.damage == "FILE_DAMAGED"
    for wrong in (DATA[:-1] + b"\0", DATA[:-1], DATA + b"\0"):
        with pytest.raises((DataCorrupted, InvalidRequest)):
            await element.repair(damaged, stream(wrong))
    assert await element.repair(damaged, stream(DATA))
    assert not await element.repair(damaged, stream(DATA))  # somebody was faster
    repaired = await element.get(file.file_id, "cms")
    assert (repaired.damage, repaired.checksums, await read(element, repaired)) == ("", file.checksums, DATA)
    assert counts(bench, "a", "b") == [0, 2]
    assert sum(use.reserved_bytes for use, _ in (await element.space()).vos) == 0


async def test_what_is_refused_says_why(bench: Bench, upload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    element, keeper = await start(bench, "a")
    a, b = str(bench.root / "a"), str(bench.root / "b")
    await upload(element, DATA)
    for path in (
        "relative",
        "/x/../y",
        "/a\nb",
        f"{a}/data",
        str(bench.root),
        "/nowhere/at/all",
        str(bench.root / "files.db"),
    ):
        with pytest.raises(InvalidRequest) as invalid:
            await keeper.add(path)
        assert invalid.value.reason == "POOL_INVALID", path
    (bench.root / "full").mkdir()
    (bench.root / "full" / "letter").touch()
    with pytest.raises(InvalidRequest, match="letter is there"):
        await keeper.add(str(bench.root / "full"))
    with pytest.raises(AlreadyExists):
        await keeper.add(a)
    with pytest.raises(NotFound, match="its pools: "):
        await keeper.drain(b)
    with pytest.raises(Conflict) as caught:
        await keeper.drain(a)
    assert caught.value.reason == "LAST_POOL"
    with pytest.raises(Conflict) as caught:
        await keeper.remove(a)
    assert caught.value.reason == "POOL_NOT_DRAINED"
    Path(b).mkdir()
    await keeper.add(b)
    small = element.pools.get(b)
    found = small.measure()
    monkeypatch.setattr(small, "measure", lambda: replace(found, device=-1, free_bytes=len(DATA) - 1))
    with pytest.raises(Exhausted, match="room for 299999"):
        await keeper.drain(a)
    assert element.pools.state_of(a) is PoolState.OPEN
    monkeypatch.setattr(small, "measure", lambda: replace(found, device=-1, free_bytes=len(DATA)))
    await keeper.drain(a)
    monkeypatch.setattr(small, "measure", lambda: replace(found, device=-1, free_bytes=0))
    await keeper.empty(a)  # somebody else filled that disk
    assert "do not fit" in (await keeper.report())[0].obstacle
    assert counts(bench, "a", "b") == [1, 0]


async def test_bounded_pools_fill_and_refuse_before_the_disk_does_and_go_on_when_there_is_room(
    bench: Bench, upload: Any
) -> None:
    element, _ = await start(bench, "a", "b", pool_bytes=700_000)
    files = [await upload(element, DATA, f"p{number}") for number in range(4)]
    assert sorted(Path(file.pool).name for file in files) == ["a", "a", "b", "b"]
    for _ in range(2):
        with pytest.raises(Exhausted, match="100000 bytes are free"):
            await upload(element, DATA, "p5")
        await bench.stop()
        element, _ = await start(bench, "a", "b", pool_bytes=700_000)
    report = await element.space()
    assert (report.total_bytes, report.free_bytes) == (1_400_000, 200_000)
    assert await read(element, files[0]) == DATA
    assert await element.remove(files[0].file_id, "cms", lambda file: None)
    assert (await upload(element, DATA, "p5")).pool == files[0].pool


def test_the_old_rule_is_refused_but_for_the_scenario_that_shows_it(tmp_path: Path) -> None:
    options = {"pools": ["a"], "planned_partitions": {"/grid/cms/jets": "a"}}
    with pytest.raises(InvalidRequest, match=r"rule of 2002.*Leave it out"):
        parse_config(options, tmp_path, "lab")
    assert parse_config(options, tmp_path, STRESS_GRID).planned_partitions == {"/grid/cms/jets": tmp_path / "a"}
    options["pools"] = ["b"]
    with pytest.raises(InvalidRequest, match="none of its pools"):
        parse_config(options, tmp_path, STRESS_GRID)


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from unit.storage.conftest import Bench
from fabric import failpoints

async def main():
    bench = Bench(Path(sys.argv[2]))
    element = await bench.start(pools=["a", "b"])
    failpoints.arm(sys.argv[3])
    await element.move((await bench.files.all_files("", 1))[0])

asyncio.run(main())
"""


@pytest.mark.parametrize("failpoint", [name for name in NAMES if ".renew." in name])
async def test_killed_while_a_file_moves_it_is_in_one_place(bench: Bench, upload: Any, failpoint: str) -> None:
    element, _ = await start(bench, "a", "b")
    file = await upload(element, DATA)
    await bench.stop()
    tests = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests.parent / 'proto' / 'gen'}"}
    child = [sys.executable, "-c", CHILD, str(tests), str(bench.root), failpoint]
    ended = await asyncio.to_thread(subprocess.run, child, env=environ, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(bench.on_disk("a") + bench.on_disk("b")) == 2 + (failpoint != "storage.renew.written")
    element, _ = await start(bench, "a", "b")
    assert len(bench.on_disk("a") + bench.on_disk("b")) == 1
    now = await element.get(file.file_id, "cms")
    assert (now.pool == file.pool) == (failpoint != "storage.renew.committed")
    assert await read(element, now) == DATA == await read(element, file)
