"""Files on tape and on disk: archived, purged, staged, at every step killed; with real files and a clock of our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import until

from agents.storage.element import StorageElement
from agents.storage.model import StoredFile
from agents.storage.nearline import LEAST_PIN_S, Locality, Nearline
from agents.storage.tape import FileLibrary
from agents.storage.tape_rows import TapeRows
from fabric.errors import DataCorrupted, Exhausted, InvalidRequest, Unavailable
from fabric.logs import null_logger

from .conftest import Bench, stream

DATA = random.Random(8).randbytes(50_000)
TAPE = {"vos": ["cms"], "mount_s": 0, "seek_s": 0, "mb_per_s": 1e9}
ANN = "/O=EDG/CN=ann"


class Tapes:
    """A storage element with tapes, again and again on the same directory."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.passed_s = 0.0

    async def start(self, **options: Any) -> tuple[StorageElement, Nearline]:
        tape = {**TAPE, **options.pop("tape", {})}
        self.element = await self.bench.start(tape=tape, **options)
        config = self.element.config.tape
        assert config is not None
        self.library = FileLibrary(config, pause=self._pass)
        self.rows = TapeRows(self.bench.store)
        self.nearline = Nearline(
            self.element, self.bench.files, self.rows, self.library, config,
            log=null_logger(), clock=self.bench.clock,
        )  # fmt: skip
        await self.nearline.start()
        return self.element, self.nearline

    async def _pass(self, seconds: float) -> None:
        self.passed_s += seconds
        await asyncio.sleep(0)

    async def read(self, file: StoredFile) -> bytes:
        return b"".join([bytes(piece) async for piece in self.element.read(file, 0, file.size_bytes)])

    async def now(self, file: StoredFile) -> StoredFile:
        return await self.element.get(file.file_id, file.vo)

    async def locality(self, file: StoredFile) -> Locality:
        return (await self.nearline.localities([await self.now(file)]))[file.file_id]

    async def nearline_file(self, upload: Any, data: bytes = DATA, put_id: str = "p1") -> StoredFile:
        """A file that is on tape only."""
        file: StoredFile = await upload(self.element, data, put_id)
        await self.nearline.archive()
        assert await self.element.purge(file)
        return await self.now(file)

    async def ask(self, *files: StoredFile, owner: str = ANN, pin_s: float = 0.0) -> Any:
        return await self.nearline.bring_online(files, owner, "cms", pin_s)

    @contextlib.asynccontextmanager
    async def driving(self) -> AsyncIterator[None]:
        drives = [asyncio.create_task(self.nearline.drive()) for _ in range(self.nearline.readers)]
        try:
            yield
        finally:
            for drive in drives:
                drive.cancel()
            await asyncio.gather(*drives, return_exceptions=True)

    async def staged(self, *files: StoredFile, owner: str = ANN, pin_s: float = 0.0) -> None:
        await self.ask(*files, owner=owner, pin_s=pin_s)
        async with self.driving():
            await until(lambda: not self.nearline.waiting, "everything staged")

    def records(self) -> list[Path]:
        return sorted(path for path in (self.bench.root / "tapes").rglob("*") if path.is_file())


@pytest.fixture
async def tapes(bench: Bench) -> Tapes:
    return Tapes(bench)


def used(report: Any) -> list[tuple[int, int]]:
    return [(use.used_bytes, use.files) for use, _ in report.vos]


async def test_a_file_goes_to_tape_leaves_the_disk_and_comes_back(tapes: Tapes, upload: Any) -> None:
    element, nearline = await tapes.start()
    file = await upload(element, DATA)
    assert await tapes.locality(file) is Locality.ONLINE
    assert not await element.purge(file)  # there is no copy
    assert await nearline.archive() == 1
    assert await nearline.archive() == 0
    assert await tapes.locality(file) is Locality.ONLINE_AND_NEARLINE
    assert nearline.on_tape_bytes("cms") == len(DATA)
    held = element.read(file, 0, file.size_bytes)
    first = bytes(await anext(held))
    assert await element.purge(file)
    assert not await element.purge(file)
    assert first + b"".join([bytes(piece) async for piece in held]) == DATA
    assert (await tapes.locality(file), tapes.bench.on_disk()) == (Locality.NEARLINE, [])
    assert used(await element.space()) == [(0, 1)]
    with pytest.raises(Unavailable) as caught:
        await tapes.read(file)  # as it was looked up before
    assert caught.value.reason == "FILE_NEARLINE"
    (staging,) = await tapes.ask(await tapes.now(file))
    assert staging.retry_after_s >= 1 and "is being staged, 0 files come before it" in staging.sentence
    await tapes.staged(await tapes.now(file))
    assert await tapes.read(await tapes.now(file)) == DATA
    assert (await tapes.locality(file), used(await element.space())) == (Locality.ONLINE_AND_NEARLINE, [(len(DATA), 1)])
    assert not await element.purge(await tapes.now(file))  # pinned for who asked
    tapes.bench.clock.advance(LEAST_PIN_S + 1)
    assert await element.purge(await tapes.now(file))


async def test_files_of_other_vos_stay_on_disk_and_those_from_before_go_to_tape(tapes: Tapes, upload: Any) -> None:
    element = await tapes.bench.start()
    old = await upload(element, DATA, "old")
    await tapes.bench.stop()
    element, nearline = await tapes.start()
    other = await upload(element, DATA, "other", vo="atlas")
    assert await nearline.archive() == 1
    assert [await tapes.locality(file) for file in (old, other)] == [Locality.ONLINE_AND_NEARLINE, Locality.ONLINE]
    assert not await element.purge(other)


async def test_several_who_want_one_file_cost_one_reading_and_one_mount(tapes: Tapes, upload: Any) -> None:
    _, nearline = await tapes.start(tape={"mount_s": 100, "seek_s": 10})
    files = [await tapes.nearline_file(upload, DATA + bytes([n]), f"p{n}") for n in range(4)]
    await tapes.bench.stop()
    tapes.passed_s = 0.0
    _, nearline = await tapes.start(tape={"mount_s": 100, "seek_s": 10})
    for owner in ("a", "b", "c"):
        await tapes.ask(*reversed(files), owner=owner)
    assert nearline.waiting == 4
    async with tapes.driving():
        await until(lambda: not nearline.waiting, "everything staged")
    assert tapes.library.mounts == 1
    assert 100 <= tapes.passed_s < 120
    for number, file in enumerate(files):
        assert await tapes.read(await tapes.now(file)) == DATA + bytes([number])
        assert not await tapes.element.purge(await tapes.now(file))


async def test_requests_and_pins_outlive_a_restart_and_can_be_released(tapes: Tapes, upload: Any) -> None:
    _, nearline = await tapes.start()
    one, two = [await tapes.nearline_file(upload, DATA + bytes([n]), f"p{n}") for n in range(2)]
    await tapes.ask(one, two, pin_s=5000)
    await nearline.release([two], ANN)
    await nearline.release([two], ANN)
    assert nearline.waiting == 1
    await tapes.bench.stop()
    element, nearline = await tapes.start()
    assert nearline.waiting == 1
    await tapes.staged()
    now = await tapes.now(one)
    assert await nearline.pinned_until_us(now) > 0 and not await element.purge(now)
    await nearline.release([now], "/O=EDG/CN=somebody else")
    assert not await element.purge(now)
    await nearline.release([now], ANN)
    assert await element.purge(now)
    assert await tapes.locality(two) is Locality.NEARLINE


async def test_water_marks_decide_what_leaves_the_disk_and_when(tapes: Tapes, upload: Any) -> None:
    size = len(DATA)
    element, nearline = await tapes.start(quota_bytes=10 * size, tape={"high_water": 0.75, "low_water": 0.5})
    files = []
    for number in range(7):
        files.append(await upload(element, DATA, f"p{number}"))
        tapes.bench.clock.advance(1)
    await nearline.archive()
    await nearline.purge()
    assert used(await element.space()) == [(7 * size, 7)]  # below high water
    files.append(await upload(element, DATA, "new"))  # not on tape yet
    nearline.note_read(files[0])
    await tapes.ask(files[1], pin_s=5000)
    await nearline.purge()
    places = [await tapes.locality(file) for file in files]
    assert used(await element.space()) == [(5 * size, 8)]
    assert [number for number, place in enumerate(places) if place is Locality.NEARLINE] == [2, 3, 4]
    assert places[7] is Locality.ONLINE


async def test_a_put_that_needs_the_room_gets_it_and_one_that_cannot_have_it_is_refused(
    tapes: Tapes, upload: Any
) -> None:
    size = len(DATA)
    element, nearline = await tapes.start(quota_bytes=2 * size, tape={"high_water": 1.0, "low_water": 1.0})
    one = await upload(element, DATA, "p1")
    tapes.bench.clock.advance(1)
    two = await upload(element, DATA, "p2")
    with pytest.raises(Exhausted) as caught:
        await upload(element, DATA, "third")
    assert caught.value.reason == "QUOTA_EXCEEDED"
    await nearline.archive()
    three = await upload(element, DATA, "third")
    assert used(await element.space()) == [(2 * size, 3)]
    await tapes.ask(two, three, pin_s=5000)
    with pytest.raises(Exhausted):
        await upload(element, DATA, "fourth")  # one is pinned, the other on disk only
    (staging,) = await tapes.ask(await tapes.now(one))
    async with tapes.driving():
        await until(lambda: nearline._queue.get(one.file_id).obstacle, "tried")  # type: ignore[union-attr]
    (staging,) = await tapes.ask(await tapes.now(one))
    assert "do not fit" in staging.sentence and staging.retry_after_s > 0
    with pytest.raises(Exhausted):
        await upload(element, DATA * 3, "too large for all of it")


async def test_a_damaged_file_with_a_tape_copy_is_staged_again(tapes: Tapes, upload: Any) -> None:
    element, nearline = await tapes.start()
    file = await upload(element, DATA)
    await nearline.archive()
    await tapes.ask(file, pin_s=5000)
    tapes.bench.bytes_of(file).write_bytes(DATA[:-1])
    with pytest.raises(DataCorrupted):
        await tapes.read(file)
    damaged = await tapes.now(file)
    assert (damaged.damage, await tapes.locality(file)) == ("FILE_DAMAGED", Locality.NEARLINE)
    await tapes.staged(damaged)
    assert await tapes.read(await tapes.now(file)) == DATA


@pytest.mark.parametrize("harm", ["changed", "gone"])
async def test_a_tape_copy_that_is_no_good_is_never_served(tapes: Tapes, upload: Any, harm: str) -> None:
    element, nearline = await tapes.start()
    file = await tapes.nearline_file(upload)
    (record,) = tapes.records()
    if harm == "gone":
        record.unlink()
    else:
        record.write_bytes(DATA[:-1] + b"\0")
    await tapes.staged(file)
    lost = await tapes.now(file)
    assert (lost.damage, await tapes.locality(file), tapes.bench.on_disk()) == ("FILE_LOST", Locality.LOST, [])
    (staging,) = await tapes.ask(lost)
    assert (staging.retry_after_s, nearline.waiting, nearline.on_tape_bytes("cms")) == (0, 0, 0)
    assert await element.repair(lost, stream(DATA))  # from another replica
    assert await tapes.read(await tapes.now(file)) == DATA
    assert await nearline.archive() == 1
    assert used(await element.space()) == [(len(DATA), 1)]


async def test_a_damaged_file_never_gets_to_tape(tapes: Tapes, upload: Any) -> None:
    element, nearline = await tapes.start()
    file = await upload(element, DATA)
    tapes.bench.bytes_of(file).write_bytes(DATA[:-1] + b"\0")
    assert await nearline.archive() == 0
    assert tapes.records() == [] and not await element.purge(file)
    assert await tapes.locality(file) is Locality.ONLINE


async def test_what_is_removed_leaves_the_tape_too(tapes: Tapes, upload: Any) -> None:
    element, nearline = await tapes.start()
    file, other = await tapes.nearline_file(upload), await tapes.nearline_file(upload, DATA + b"2", "p2")
    await tapes.ask(file, other)
    assert await element.remove(file.file_id, "cms", lambda _: None)
    await nearline.collect_garbage()
    assert len(tapes.records()) == 1 and nearline.on_tape_bytes("cms") == len(DATA) + 1
    async with tapes.driving():
        await until(lambda: not nearline.waiting, "everything staged")
    assert used(await element.space()) == [(len(DATA) + 1, 1)]


async def test_full_tapes_and_full_queues_say_so(tapes: Tapes, upload: Any) -> None:
    element, nearline = await tapes.start(tape={"cartridges": 1, "cartridge_bytes": 60_000, "max_requests": 20})
    files = [await upload(element, DATA, f"p{n}") for n in range(2)]
    with pytest.raises(Exhausted, match="all 1 tapes of "):
        await nearline.archive()
    places = [await tapes.locality(file) for file in files]
    assert sorted(places) == [Locality.ONLINE, Locality.ONLINE_AND_NEARLINE]
    on_tape = files[places.index(Locality.ONLINE_AND_NEARLINE)]
    assert await element.remove(on_tape.file_id, "cms", lambda _: None)
    await nearline.collect_garbage()
    assert await nearline.archive() == 1  # a tape whose last record went is as new
    await tapes.bench.stop()

    element, nearline = await tapes.start(tape={"max_requests": 20})
    many = [await tapes.nearline_file(upload, DATA[:9] + bytes([n]), f"m{n}") for n in range(3)]
    with pytest.raises(Exhausted) as caught:
        await tapes.ask(*many)
    assert caught.value.reason == "STAGE_QUEUE_FULL" and "2 for one user" in caught.value.sentence
    assert nearline.waiting == 0
    await tapes.ask(*many[:2])
    await tapes.ask(*many[:2])
    assert nearline.waiting == 2


@pytest.mark.parametrize(
    "tape",
    [{"vos": ["cms"], "drives": 0}, {"vos": ["cms"], "low_water": 0.9, "high_water": 0.5}, {"drives": 1},
     {"vos": ["cms"], "shares": {"cms": 0}}, {"vos": ["cms"], "mont_s": 1}],
)  # fmt: skip
async def test_options_that_make_no_sense_are_refused(bench: Bench, tape: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="tape"):
        await bench.start(tape=tape)


CHILD = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from unit.storage.conftest import Bench
from unit.storage.test_storage_nearline import Tapes
from fabric import failpoints

async def main(failpoint):
    tapes = Tapes(Bench(Path(sys.argv[2]) / failpoint))
    element, nearline = await tapes.start()
    failpoints.arm(failpoint)
    await nearline.archive()
    file = (await tapes.bench.files.all_files("", 1))[0]
    if file.pool:
        await element.purge(file)
    else:
        await tapes.staged(file)

for failpoint in sys.argv[3:]:
    child = os.fork()
    if not child:
        asyncio.run(main(failpoint))
        os._exit(0)
    print(failpoint, os.waitpid(child, 0)[1])
"""
ARCHIVING = ("storage.archive.written", "storage.archive.committed", "storage.purge.committed")
STAGING = ("storage.renew.written", "storage.renew.linked", "storage.renew.committed")


async def test_killed_at_any_step_nothing_is_lost_or_half_there(tmp_path: Path, upload: Any) -> None:
    """One process forks one for each step: to start Python six times would cost more than all the rest here."""
    for failpoint in (*ARCHIVING, *STAGING):
        (tmp_path / failpoint).mkdir()
        tapes = Tapes(Bench(tmp_path / failpoint))
        element, nearline = await tapes.start()
        file = await upload(element, DATA)
        if failpoint in STAGING:
            await nearline.archive()
            assert await element.purge(file)
        await tapes.bench.stop()
    tests = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests.parent / 'proto' / 'gen'}"}
    child = [sys.executable, "-c", CHILD, str(tests), str(tmp_path), *ARCHIVING, *STAGING]
    ended = await asyncio.to_thread(subprocess.run, child, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines() == [f"{name} {int(signal.SIGKILL)}" for name in (*ARCHIVING, *STAGING)], ended
    for failpoint in (*ARCHIVING, *STAGING):
        await check_after_kill(tmp_path / failpoint, failpoint)


async def check_after_kill(root: Path, failpoint: str) -> None:
    tapes = Tapes(Bench(root))
    element, nearline = await tapes.start()
    await nearline.archive()
    assert len(tapes.records()) == 1, failpoint
    (file,) = await tapes.bench.files.all_files("", 9)
    assert bool(file.pool) == (failpoint not in ("storage.purge.committed", *STAGING[:2])), failpoint
    assert len(tapes.bench.on_disk()) == bool(file.pool), failpoint
    assert used(await element.space()) == [(len(DATA) * bool(file.pool), 1)], failpoint
    assert nearline.waiting == (failpoint in STAGING), failpoint  # who asked still waits
    await tapes.staged(file)
    assert await tapes.read(await tapes.now(file)) == DATA
    await tapes.bench.stop()
