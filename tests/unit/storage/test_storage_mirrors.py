"""Mirrored pools: each file in several pools, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.storage.config import parse_config
from agents.storage.drain import PoolKeeper
from agents.storage.mirrors import GONE_S, Mirrors
from agents.storage.model import StoredFile
from agents.storage.scrubber import Scrubber
from fabric.errors import Conflict, DataCorrupted, Exhausted, InvalidRequest, Unavailable
from fabric.logs import null_logger

from .conftest import Bench, announced, stream, sums

DATA = random.Random(5).randbytes(300_000)
LARGE = random.Random(6).randbytes(9 << 20)


async def start(bench: Bench, *pools: str, **options: Any) -> tuple[Any, Mirrors]:
    element = await bench.start(pools=list(pools), **{"copies": 2, **options})
    return element, Mirrors(element, bench.files, log=null_logger(), clock=bench.clock)


async def read(element: Any, file: StoredFile, offset: int = 0) -> bytes:
    return b"".join([bytes(piece) async for piece in element.read(file, offset, file.size_bytes - offset)])


async def pools_of(bench: Bench, file: StoredFile) -> list[str]:
    copies = await bench.files.copies(file.file_id)
    assert len({copy.pool for copy in copies}) == len(copies)
    return sorted(Path(copy.pool).name for copy in copies)


def counts(bench: Bench, *pools: str) -> list[int]:
    """Files kept; a name in incoming/ goes some time after its put was answered."""
    return [sum(path.startswith("data/") for path in bench.on_disk(pool)) for pool in pools]


def flip(bench: Bench, copy: StoredFile) -> None:
    path = bench.bytes_of(copy)
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


async def settled(bench: Bench) -> Any:
    """A restart: what is on disk then is what rows mean."""
    await bench.stop()
    return await start(bench, "a", "b", "c")


async def test_a_file_is_in_two_pools_when_its_put_is_answered_and_counts_once(bench: Bench, upload: Any) -> None:
    element, _ = await start(bench, "a", "b", pool_bytes=700_000, quota_bytes=2_000_000)
    before = await element.space(("cms",))
    assert before.vos[0][1] == 700_000  # each byte twice
    one = await upload(element, DATA)
    (two,) = await element.put_many("/O=EDG/CN=ann", [(announced(DATA[:9], "p2", checksums=sums(DATA[:9])), DATA[:9])])
    assert await pools_of(bench, one) == await pools_of(bench, two) == ["a", "b"]
    for copy in await bench.files.copies(one.file_id):
        assert bench.bytes_of(copy).read_bytes() == DATA
    for again in range(2):
        (use, available), report = (await element.space()).vos[0], await element.space()
        assert (use.used_bytes, use.files, available) == (300_009, 2, 399_991), again
        assert (report.stored_bytes, report.free_bytes) == (600_018, 1_400_000 - 600_018)
        await bench.stop()
        element, _ = await start(bench, "a", "b", pool_bytes=700_000, quota_bytes=2_000_000)
        assert counts(bench, "a", "b") == [2, 2]
    with pytest.raises(Exhausted):
        await upload(element, random.Random(1).randbytes(400_000), "p3")
    assert (await element.space()).vos[0][0].reserved_bytes == 0 and counts(bench, "a", "b") == [2, 2]
    assert await element.remove(one.file_id, "cms", lambda file: None)
    assert counts(bench, "a", "b") == [1, 1] and (await element.space()).stored_bytes == 18


async def test_a_put_that_cannot_have_all_copies_is_refused_and_says_why(bench: Bench, upload: Any) -> None:
    element, _ = await start(bench, "a", "b", vo_copies={"atlas": 1})
    shutil.rmtree(bench.root / "b")
    with pytest.raises(Unavailable) as caught:
        await upload(element, DATA)
    assert caught.value.reason == "TOO_FEW_POOLS" and "add a pool" in caught.value.sentence
    assert counts(bench, "a") == [0] and (await element.space(("cms",))).vos[0][0].reserved_bytes == 0
    assert await upload(element, DATA, vo="atlas")
    for options in ({"copies": 3}, {"vo_copies": {"cms": 3}}, {"vo_copies": {"cms": 0}}):
        with pytest.raises(InvalidRequest, match="different pools"):
            parse_config({"pools": ["a", "b"], **options}, bench.root)
    tape = {"vos": ["lhcb"]}
    assert parse_config({"pools": ["a", "b"], "copies": 2, "tape": tape}, bench.root).copies_of("lhcb") == 1


async def test_readers_go_on_from_the_other_copy_also_in_the_middle(bench: Bench, upload: Any) -> None:
    element, mirrors = await start(bench, "a", "b", "c")
    file = await upload(element, LARGE)
    path = bench.bytes_of(file)
    reading = element.read(file, 0, file.size_bytes)
    got = bytes(await anext(reading))
    os.truncate(path, 5 << 20)
    got += b"".join([bytes(piece) async for piece in reading])
    assert got == LARGE
    now = await element.get(file.file_id, "cms")
    assert now.damage == "" and now.pool != file.pool and not path.exists()
    assert len(await bench.files.copies(file.file_id)) == 1
    await mirrors.round(await mirrors.good_pools())
    assert len(await pools_of(bench, file)) == 2 and mirrors.missing == 0
    assert await read(element, file, 100) == LARGE[100:]
    for copy in await bench.files.copies(file.file_id):  # the last copy is not thrown away
        bench.bytes_of(copy).write_bytes(b"")
    with pytest.raises(DataCorrupted):
        await read(element, file)
    assert (await element.get(file.file_id, "cms")).damage == "FILE_DAMAGED"
    assert await element.repair(await element.get(file.file_id, "cms"), stream(LARGE))
    await mirrors.round(await mirrors.good_pools())
    assert len(await pools_of(bench, file)) == 2 and await read(element, file) == LARGE
    await settled(bench)
    assert sum(counts(bench, "a", "b", "c")) == 2


async def test_a_pool_that_is_gone_is_replaced_and_what_is_too_much_goes_when_it_is_back(
    bench: Bench, upload: Any
) -> None:
    element, mirrors = await start(bench, "a", "b", "c")
    files = [await upload(element, DATA + bytes([i]), f"p{i}") for i in range(6)]
    (bench.root / "c").rename(bench.root / "away")
    for i, file in enumerate(files):
        assert await read(element, file) == DATA + bytes([i])
    assert await element.get_many(files) == [DATA + bytes([i]) for i in range(6)]
    await mirrors.round(await mirrors.good_pools())  # it may be back in a moment
    assert "c" in {name for file in files for name in await pools_of(bench, file)}
    bench.clock.advance(GONE_S)
    await mirrors.round(await mirrors.good_pools())
    assert [await pools_of(bench, file) for file in files] == [["a", "b"]] * 6 and not mirrors.obstacle
    used = (await element.space()).vos[0][0]
    assert (used.used_bytes, used.files) == (6 * 300_001, 6)
    (bench.root / "away").rename(bench.root / "c")
    await element.collect_garbage()
    assert counts(bench, "a", "b", "c") == [6, 6, 0]
    shutil.rmtree(bench.root / "b")
    shutil.rmtree(bench.root / "c")
    await mirrors.good_pools()
    bench.clock.advance(GONE_S)
    await mirrors.round(await mirrors.good_pools())
    assert mirrors.missing == 6 and "6 files have too few copies" in mirrors.obstacle
    assert await read(element, files[0]) == DATA + b"\0"


async def test_the_scrubber_mends_a_rotten_copy_from_the_other(bench: Bench, upload: Any) -> None:
    element, mirrors = await start(bench, "a", "b", "c")
    first, second, both = [await upload(element, DATA + bytes([i]), f"p{i}") for i in range(3)]
    flip(bench, first)
    flip(bench, (await bench.files.copies(second.file_id))[1])
    for copy in await bench.files.copies(both.file_id):
        flip(bench, copy)

    async def at_once(_: float) -> None:
        """Instead of a rest."""

    scrubber = Scrubber(element, bench.files, log=null_logger(), clock=bench.clock, pause=at_once)
    heard = element.copy_lost.rung
    assert await scrubber.round()
    assert element.copy_lost.rung == heard + 3
    assert [file.file_id for file in await bench.files.damaged("", 9)] == [both.file_id]
    await mirrors.round(await mirrors.good_pools())
    assert [len(await pools_of(bench, file)) for file in (first, second, both)] == [2, 2, 1]
    assert (await read(element, first), await read(element, second)) == (DATA + b"\0", DATA + b"\1")
    assert mirrors.missing == 0  # of the third no copy is whole: another element's replica is asked


async def test_a_rotten_main_copy_is_found_while_a_missing_one_is_made(bench: Bench, upload: Any) -> None:
    element, mirrors = await start(bench, "a", "b", "c", copies=3)
    file = await upload(element, DATA)
    await element.drop_copy((await bench.files.copies(file.file_id))[2])
    flip(bench, file)
    await mirrors.round(await mirrors.good_pools())
    await mirrors.round(await mirrors.good_pools())
    assert await pools_of(bench, file) == ["a", "b", "c"]
    for copy in await bench.files.copies(file.file_id):
        assert bench.bytes_of(copy).read_bytes() == DATA


async def test_no_reader_sees_a_gap_while_pools_go_come_back_and_drain(bench: Bench, upload: Any) -> None:
    element, mirrors = await start(bench, "a", "b", "c")
    keeper = PoolKeeper(element, bench.files, log=null_logger())
    contents = {f"p{i}": random.Random(i).randbytes(2000 * i + 1) for i in range(6)}
    files = {name: await upload(element, data, name) for name, data in contents.items()}
    reads, ended = 0, False

    async def reader(seed: int) -> None:
        nonlocal reads
        chance = random.Random(seed)
        while not ended:
            name = chance.choice(list(files))
            file = files[name] if chance.random() < 0.5 else await element.get(files[name].file_id, "cms")
            if chance.random() < 0.3:
                assert await element.get_many([file]) == [contents[name]]
            else:
                assert await read(element, file) == contents[name]
            reads += 1

    async def trouble() -> None:
        nonlocal ended
        chance = random.Random(7)
        for turn in range(9):
            pool = bench.root / chance.choice("abc")
            what = ("drain", "away", "rot")[turn % 3]
            if what == "drain":
                await keeper.drain(str(pool))
                await keeper.empty(str(pool))
                assert not counts(bench, pool.name)[0]
                await keeper.add(str(pool))
            elif what == "away":
                pool.rename(bench.root / "away")
                await mirrors.good_pools()
                bench.clock.advance(GONE_S)
                await mirrors.round(await mirrors.good_pools())
                (bench.root / "away").rename(pool)
                await element.collect_garbage()
            else:
                for copy in await bench.files.in_one_pool(str(pool), "", 100):
                    bench.bytes_of(copy).unlink()
                    await element.mark(copy, "FILE_LOST")
            await mirrors.round(await mirrors.good_pools())
            assert [len(await pools_of(bench, file)) for file in files.values()] == [2] * 6, (turn, what)
        ended = True

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for seed in range(3):
            group.create_task(reader(seed))
        group.create_task(trouble())
    assert reads and sum(counts(bench, "a", "b", "c")) == 12
    (use, _) = (await element.space()).vos[0]
    assert (use.files, use.used_bytes) == (6, sum(map(len, contents.values())))
    assert (await element.space()).stored_bytes == 2 * use.used_bytes


async def test_a_drain_that_would_leave_too_few_copies_is_refused(bench: Bench, upload: Any) -> None:
    element, mirrors = await start(bench, "a", "b")
    keeper = PoolKeeper(element, bench.files, log=null_logger())
    file = await upload(element, DATA)
    with pytest.raises(Conflict, match="up to 2 copies in different pools"):
        await keeper.drain(str(bench.root / "a"))
    (bench.root / "c").mkdir()
    c = await keeper.add(str(bench.root / "c"))
    shutil.rmtree(bench.root / "a")  # a disk that will not come back can be drained, too
    await keeper.drain(str(bench.root / "a"))
    await keeper.empty(str(bench.root / "a"))
    await keeper.remove(str(bench.root / "a"))
    assert await pools_of(bench, file) == ["b", "c"]
    assert {report.path: report.files for report in await keeper.report()} == {str(bench.root / "b"): 1, c: 1}
    await mirrors.round(await mirrors.good_pools())
    assert not mirrors.missing


async def test_the_number_of_copies_may_be_changed(bench: Bench, upload: Any) -> None:
    element, _ = await start(bench, "a", "b", copies=1)
    file = await upload(element, DATA)
    for copies in (2, 1):
        await bench.stop()
        element, mirrors = await start(bench, "a", "b", copies=copies)
        await mirrors.round(await mirrors.good_pools())
        assert len(await pools_of(bench, file)) == copies == sum(counts(bench, "a", "b"))
        assert await read(element, await element.get(file.file_id, "cms")) == DATA


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from unit.storage.conftest import Bench, announced, stream, sums
from fabric import failpoints

async def main():
    bench = Bench(Path(sys.argv[2]))
    element = await bench.start(pools=["a", "b", "c"], copies=2)
    failpoints.arm(sys.argv[3])
    (file,) = await bench.files.all_files("", 1)
    new, what = b"new" * 1000, sys.argv[3].split(".")[1]
    if what == "put":
        await element.put(announced(new, "new"), stream(new, sums(new)))
    elif what == "together":
        await element.put_many("ann", [(announced(new, "new", owner="ann", checksums=sums(new)), new)])
    elif what == "renew":
        await element.add_copy(file)
    elif what == "drop":
        await element.drop_copy(file)
    else:
        await element.remove(file.file_id, "cms", lambda file: None)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "failpoint",
    ["storage.put.linked", "storage.together.linked", "storage.renew.committed", "storage.drop.committed",
     "storage.remove.committed"],
)  # fmt: skip
async def test_killed_anywhere_disks_hold_what_rows_mean(bench: Bench, upload: Any, failpoint: str) -> None:
    element, _ = await start(bench, "a", "b", "c")
    file = await upload(element, DATA)
    await bench.stop()
    tests = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests.parent / 'proto' / 'gen'}"}
    child = [sys.executable, "-c", CHILD, str(tests), str(bench.root), failpoint]
    ended = await asyncio.to_thread(subprocess.run, child, env=environ, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    element, mirrors = await start(bench, "a", "b", "c")
    _, what, step = failpoint.split(".")
    committed = step == "committed"
    rows = await bench.files.all_files("", 9)
    assert len(rows) == 1 + (committed * {"put": 1, "together": 1, "remove": -1}.get(what, 0))
    copies = [copy for row in rows for copy in await bench.files.copies(row.file_id)]
    assert len(copies) == 2 * len(rows) + (committed * {"renew": 1, "drop": -1}.get(what, 0))
    assert sorted(map(str, map(bench.bytes_of, copies))) == sorted(
        str(bench.root / pool / path) for pool in "abc" for path in bench.on_disk(pool)
    )
    for row in rows:
        expected = DATA if row.file_id == file.file_id else b"new" * 1000
        for copy in await bench.files.copies(row.file_id):
            assert await read(element, replace(copy, damage="")) == expected
    await mirrors.round(await mirrors.good_pools())
    assert sum(counts(bench, "a", "b", "c")) == 2 * len(rows)
