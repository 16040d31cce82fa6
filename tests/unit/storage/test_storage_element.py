from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.storage import element as element_module
from agents.storage.model import Announced, Checksums, byte_range, parse_checksums
from fabric.errors import (
    Conflict,
    DataCorrupted,
    DeadlineExceeded,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Unavailable,
)

from .conftest import Bench, announced, stream, sums

DATA = bytes(range(256)) * 20


async def read_all(element: Any, file: Any, offset: int = 0, length: int = 0) -> bytes:
    start, size = byte_range(file.size_bytes, offset, length)
    return b"".join([piece async for piece in element.read(file, start, size)])


async def reserved(element: Any) -> int:
    return sum(use.reserved_bytes for use, _ in (await element.space()).vos)


async def test_a_file_comes_back_as_it_went_in(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA, name_hint="/grid/cms/../../etc/passwd")
    assert (file.size_bytes, file.checksums, file.vo) == (len(DATA), sums(DATA), "cms")
    assert await read_all(element, await element.get(file.file_id, "cms")) == DATA
    assert await reserved(element) == 0


async def test_an_empty_file_is_a_file(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, b"")
    assert file.checksums.adler32 == "00000001"
    assert await read_all(element, file) == b""


async def test_the_path_is_the_id_and_nothing_of_the_name(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA, name_hint="/grid/cms/higgs.root")
    (path,) = [p for p in bench.on_disk() if p.startswith("data/")]
    assert re.fullmatch(r"data/([0-9a-f]{2})/([0-9a-f]{2})/\1\2[0-9a-f]{28}", path)
    assert path.endswith(file.file_id)


@given(size=st.integers(0, 300), offset=st.integers(-5, 310), length=st.integers(-5, 310))
def test_a_range_is_what_a_slice_would_be(size: int, offset: int, length: int) -> None:
    data = os.urandom(size)
    if offset < 0 or length < 0 or offset > size:
        with pytest.raises(InvalidRequest):
            byte_range(size, offset, length)
    else:
        start, count = byte_range(size, offset, length)
        assert data[start : start + count] == data[offset : offset + length if length else size]
        assert len(data[start : start + count]) == count


async def test_ranges_across_pieces(bench: Bench, upload: Any) -> None:
    data = os.urandom((1 << 20) * 5 + 17)
    element = await bench.start()
    file = await upload(element, data)
    for offset, length in [(0, 1), (len(data), 0), (len(data) - 1, 0), ((1 << 20) - 1, 2), (17, 1 << 22), (3, 0)]:
        end = offset + length if length else len(data)
        assert await read_all(element, file, offset, length) == data[offset:end]


@pytest.mark.parametrize(
    ("parts", "kind", "reason"),
    [
        ((DATA, b"x", sums(DATA + b"x")), InvalidRequest, "SIZE_MISMATCH"),
        ((DATA[:-1], sums(DATA[:-1])), InvalidRequest, "SIZE_MISMATCH"),
        ((DATA,), InvalidRequest, "CHECKSUM_MISSING"),
        ((), InvalidRequest, "SIZE_MISMATCH"),
        ((DATA, Checksums("00000001", sums(DATA).sha256)), DataCorrupted, "CHECKSUM_MISMATCH"),
        ((DATA, Checksums(sums(DATA).adler32, "0" * 64)), DataCorrupted, "CHECKSUM_MISMATCH"),
        ((DATA[::-1], sums(DATA)), DataCorrupted, "CHECKSUM_MISMATCH"),
    ],
)
async def test_what_is_not_whole_leaves_nothing(bench: Bench, parts: Any, kind: type[GridError], reason: str) -> None:
    element = await bench.start()
    with pytest.raises(kind) as caught:
        await element.put(announced(DATA), stream(*parts))
    assert caught.value.reason == reason
    assert bench.on_disk() == [] and await reserved(element) == 0 and element.admission.running == 0
    with pytest.raises(NotFound):
        await element.get("0" * 32, "cms")


async def test_a_checksum_in_the_header_binds_the_trailer(bench: Bench) -> None:
    element = await bench.start()
    with pytest.raises(DataCorrupted):
        await element.put(announced(DATA, checksums=Checksums("00000001", "0" * 64)), stream(DATA, sums(DATA)))
    assert bench.on_disk() == []


async def test_refused_before_the_first_byte(bench: Bench) -> None:
    element = await bench.start(quota_bytes=100, vo_quota_bytes={"big": 10**18})

    async def untouched() -> Any:
        raise AssertionError("the stream was read")
        yield

    with pytest.raises(Exhausted) as caught:
        await element.put(announced(b"x" * 101), untouched())
    assert (caught.value.reason, caught.value.facts["quota_bytes"]) == ("QUOTA_EXCEEDED", "100")
    with pytest.raises(Exhausted) as caught:
        await element.put(Announced("big", 10**17, "p", "/CN=x"), untouched())
    assert caught.value.reason == "DISK_FULL"
    assert int(caught.value.facts["available_bytes"]) > 0
    for wrong in ({"put_id": ""}, {"put_id": "x" * 65}, {"put_id": "a\nb"}):
        with pytest.raises(InvalidRequest):
            await element.put(announced(b"", **wrong), untouched())


async def test_a_repeat_gives_the_same_file_and_keeps_one(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    first = await upload(element, DATA)
    assert await upload(element, DATA) == first
    assert await element.put(announced(DATA, checksums=sums(DATA)), stream()) == first
    with pytest.raises(Conflict) as caught:
        await upload(element, DATA[::-1])
    assert caught.value.reason == "PUT_ID_REUSED"
    assert (await upload(element, DATA, owner="/O=EDG/CN=bob")).file_id != first.file_id
    await element.stop()
    await element.close()
    assert len([p for p in bench.on_disk() if p.startswith("data/")]) == 2


async def test_a_repeat_takes_over_from_a_hanging_upload(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    begun, never = asyncio.Event(), asyncio.Event()

    async def hanging() -> Any:
        yield DATA[:1000]
        begun.set()
        await never.wait()

    first = asyncio.create_task(element.put(announced(DATA), hanging()))
    await begun.wait()
    file = await upload(element, DATA)
    with pytest.raises(Conflict) as caught:
        await first
    assert caught.value.reason == "PUT_TAKEN_OVER"
    assert await read_all(element, file) == DATA
    assert await reserved(element) == 0


async def test_a_cancelled_upload_leaves_nothing(bench: Bench) -> None:
    element = await bench.start()
    begun = asyncio.Event()

    async def hanging() -> Any:
        yield DATA
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(element.put(announced(DATA), hanging()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.on_disk() == [] and await reserved(element) == 0 and element.admission.running == 0


async def test_cancelled_twice_leaves_nothing_either(bench: Bench) -> None:
    element = await bench.start()
    begun, busy = asyncio.Event(), threading.Event()

    async def hanging() -> Any:
        yield DATA
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(element.put(announced(DATA), hanging()))
    await begun.wait()
    waiting = [element._io(busy.wait) for _ in range(element_module.IO_THREADS)]  # no thread is free to clean up
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    busy.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*waiting)
    await element.stop()
    await element.close()
    assert bench.on_disk() == []
    assert element._ledger.use_of("cms").reserved_bytes == 0


async def test_a_stalled_upload_is_ended(bench: Bench) -> None:
    element = await bench.start(stall_timeout_s=0.01)

    async def stalled() -> Any:
        yield DATA[:10]
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded) as caught:
        await element.put(announced(DATA), stalled())
    assert caught.value.reason == "TRANSFER_STALLED"
    assert bench.on_disk() == [] and await reserved(element) == 0


async def test_transfers_are_bounded_in_all_and_for_one_user(bench: Bench, upload: Any) -> None:
    element = await bench.start(max_transfers=2, max_transfers_per_user=1)
    with element.admission.transfer("/O=EDG/CN=ann"):
        with pytest.raises(Exhausted) as caught:
            await upload(element, DATA)
        assert caught.value.retry_after_s == 1
        await upload(element, DATA, owner="/O=EDG/CN=bob")
        with element.admission.transfer("/O=EDG/CN=bob"), pytest.raises(Exhausted):
            await upload(element, DATA, owner="/O=EDG/CN=eve")
    await upload(element, DATA)


async def test_thousands_of_open_uploads_cost_little_and_leave_nothing(bench: Bench, upload: Any) -> None:
    element = await bench.start()

    async def open_for_ever() -> AsyncIterator[bytes]:
        yield DATA[:1]
        await asyncio.Event().wait()

    def put(number: int) -> asyncio.Task[Any]:
        header = announced(DATA, f"p{number}", owner=f"/O=EDG/CN={number % 50}")
        return asyncio.create_task(element.put(header, open_for_ever()))

    uploads = [put(number) for number in range(2000)]
    refused, going = await asyncio.wait(uploads, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    while len(going) > element.config.max_transfers:
        more, going = await asyncio.wait(going, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        refused |= more
    reasons = {getattr(upload.exception(), "reason", "") for upload in refused}
    assert (reasons, element.admission.running) == ({"TOO_MANY_TRANSFERS"}, element.config.max_transfers)
    for upload_task in going:
        upload_task.cancel()
    await asyncio.wait(going)
    assert bench.on_disk() == [] and await reserved(element) == 0 and not element._uploads
    await upload(element, DATA)


async def test_other_vo_sees_nothing(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    with pytest.raises(NotFound):
        await element.get(file.file_id, "atlas")
    assert await element.remove(file.file_id, "atlas", lambda f: None) is False
    assert await element.page("atlas", "", 10) == []


async def test_removal_frees_quota_and_disk_and_may_be_repeated(bench: Bench, upload: Any) -> None:
    element = await bench.start(quota_bytes=len(DATA))
    file = await upload(element, DATA)
    with pytest.raises(Exhausted):
        await upload(element, DATA, "p2")
    assert await element.remove(file.file_id, "cms", lambda f: None) is True
    assert await element.remove(file.file_id, "cms", lambda f: None) is False
    await upload(element, DATA, "p2")
    await element.stop()
    await element.close()
    assert len(bench.on_disk()) == 1


async def test_a_reader_is_not_disturbed_by_removal(bench: Bench, upload: Any) -> None:
    data = os.urandom(1 << 23)
    element = await bench.start()
    file = await upload(element, data)
    reader = element.read(file, 0, len(data))
    got = [await anext(reader)]
    await element.remove(file.file_id, "cms", lambda f: None)
    got += [piece async for piece in reader]
    assert b"".join(got) == data


async def test_a_reader_that_leaves_early_holds_no_descriptor(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, os.urandom(1 << 23))
    before = len(os.listdir("/proc/self/fd"))
    reader = element.read(file, 0, file.size_bytes)
    await anext(reader)
    await reader.aclose()
    await element.pools.measure()
    await element.stop()
    await element.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_lost_and_damaged_files_say_so(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    path = bench.root / "pool" / "data" / file.file_id[:2] / file.file_id[2:4] / file.file_id
    path.write_bytes(DATA[:-1])
    with pytest.raises(DataCorrupted) as caught:
        await read_all(element, file)
    assert caught.value.reason == "FILE_DAMAGED"
    path.unlink()
    with pytest.raises(DataCorrupted) as caught:
        await read_all(element, file)
    assert caught.value.reason == "FILE_LOST"


async def test_a_restart_keeps_what_was_acknowledged_and_clears_the_rest(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    kept = await upload(element, DATA)
    await bench.stop()
    incoming, data = bench.root / "pool" / "incoming", bench.root / "pool" / "data"
    half, linked = "a" * 32, "b" * 32
    (incoming / half).write_bytes(b"half")
    (incoming / linked).write_bytes(DATA)
    (data / "bb" / "bb").mkdir(parents=True)
    os.link(incoming / linked, data / "bb" / "bb" / linked)
    os.link(data / kept.file_id[:2] / kept.file_id[2:4] / kept.file_id, incoming / kept.file_id)
    (incoming / "lost+found").write_bytes(b"not ours")
    element = await bench.start()
    assert [p for p in bench.on_disk() if not p.endswith("lost+found")] == [
        f"data/{kept.file_id[:2]}/{kept.file_id[2:4]}/{kept.file_id}"
    ]
    assert await read_all(element, kept) == DATA
    ((use, _),) = (await element.space()).vos
    assert (use.used_bytes, use.files, use.reserved_bytes) == (len(DATA), 1, 0)


async def test_bytes_of_a_removal_cut_short_are_collected(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    file = await upload(element, DATA)
    await element._files.remove(file.file_id)
    await bench.stop()
    assert len(bench.on_disk()) == 1
    element = await bench.start()
    assert bench.on_disk() == []
    assert await element.collect_garbage() == 0


async def test_pools_fill_by_free_space_and_a_lost_one_is_left_out(bench: Bench, upload: Any, monkeypatch: Any) -> None:
    element = await bench.start(pools=["disk1", "disk2"])
    first, second = (element.pools._open[str(bench.root / name)] for name in ("disk1", "disk2"))
    measured = second.measure()
    monkeypatch.setattr(first, "measure", lambda: None)
    assert (await upload(element, DATA)).pool == second.name
    await element.pools.measure()
    assert element.pools.missing == [first.name]
    monkeypatch.setattr(second, "measure", lambda: None)
    with pytest.raises(Unavailable):
        await upload(element, DATA, "p2")
    monkeypatch.setattr(second, "measure", lambda: measured)
    await upload(element, DATA, "p2")


async def test_a_full_disk_refuses_writes_serves_reads_and_recovers(
    bench: Bench, upload: Any, monkeypatch: Any
) -> None:
    element = await bench.start()
    file = await upload(element, DATA)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Exhausted) as caught:
        await upload(element, DATA, "p2")
    assert caught.value.reason == "DISK_FULL"
    assert len([p for p in bench.on_disk() if file.file_id not in p]) == 0 and await reserved(element) == 0
    assert await read_all(element, file) == DATA
    monkeypatch.undo()
    await upload(element, DATA, "p2")


async def test_pages_cover_everything_once(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    made = {(await upload(element, b"x", f"p{n}")).file_id for n in range(7)}
    seen: list[str] = []
    while page := await element.page("cms", seen[-1] if seen else "", 3):
        seen += [file.file_id for file in page]
    assert seen == sorted(made)


def test_checksums_need_both_and_exact_length() -> None:
    good = sums(DATA)
    assert parse_checksums(good.adler32.upper(), good.sha256.upper()) == good
    for adler32, sha256 in [("", good.sha256), (good.adler32, ""), ("xyzxyzxy", good.sha256), ("1" * 9, "1" * 64)]:
        with pytest.raises(InvalidRequest):
            parse_checksums(adler32, sha256)


async def test_a_stop_ends_uploads_with_a_reason_to_try_again(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    begun = asyncio.Event()

    async def hanging() -> Any:
        yield DATA
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(element.put(announced(DATA), hanging()))
    await begun.wait()
    await element.stop()
    with pytest.raises(Unavailable) as caught:
        await task
    assert caught.value.reason == "SERVER_STOPPING" and bench.on_disk() == []
    with pytest.raises(Unavailable):
        await upload(element, DATA)


async def test_a_disk_that_is_not_mounted_is_left_out_until_it_is_back(
    bench: Bench, upload: Any, monkeypatch: Any
) -> None:
    pools = ["disk1", "disk2"]
    element = await bench.start(pools=pools)
    files = [await upload(element, DATA, f"p{n}") for n in range(2)]
    lost = Path(files[0].pool)
    await bench.stop()
    away = lost.with_name("away")
    lost.rename(away)
    element = await bench.start(pools=pools)
    await element.pools.measure()
    assert element.pools.missing == [str(lost)]
    with pytest.raises(Unavailable) as caught:
        await read_all(element, files[0])
    assert caught.value.reason == "POOL_UNUSABLE"
    assert (await upload(element, DATA, "p9")).pool != str(lost)
    assert not (lost / "data").exists()
    if lost.exists():
        lost.rmdir()
    away.rename(lost)
    monkeypatch.setattr(element_module, "COLLECT_EVERY_S", 0.001)
    collecting = asyncio.create_task(element.keep_collecting())
    while element.pools.missing:
        await element.pools.measure()
    collecting.cancel()
    assert await read_all(element, files[0]) == DATA


async def test_many_repeats_at_once_make_one_file(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    results = await asyncio.gather(*(upload(element, DATA) for _ in range(12)), return_exceptions=True)
    kept = {result.file_id for result in results if not isinstance(result, BaseException)}
    assert len(kept) == 1
    assert {r.reason for r in results if isinstance(r, GridError)} <= {"PUT_TAKEN_OVER"}
    assert [use.files for use, _ in (await element.space()).vos] == [1]
    await bench.stop()
    assert len(bench.on_disk()) == 1
