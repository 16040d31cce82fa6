"""The storage element over real TLS and sessions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import subprocess
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gridfabric.storage.v1 import storage_pb2 as pb
from gridfabric.storage.v1 import storage_pb2_grpc
from support.grid import LabGrid
from support.waiting import until

from agents.storage import client
from agents.storage.model import Checksums
from agents.storage.overlap import AHEAD_PIECES
from fabric.errors import (
    AlreadyExists,
    Conflict,
    DataCorrupted,
    DeadlineExceeded,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Refused,
    Unauthenticated,
    Unavailable,
)
from fabric.rpc.delegation import delegate

DATA = random.Random(1).randbytes(3_000_017)


def sums(data: bytes) -> Checksums:
    return Checksums(f"{zlib.adler32(data):08x}", hashlib.sha256(data).hexdigest())


def wire_sums(data: bytes) -> pb.Checksums:
    return pb.Checksums(adler32=sums(data).adler32, sha256=sums(data).sha256)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, vos=["cms", "atlas"]) as made:
        for name, vo in (("alice", "cms"), ("carol", "cms"), ("bob", "atlas")):
            made.user(name, vo=vo)  # known before any agent reads the map file
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "events.root"
    path.write_bytes(DATA)
    return path


async def start(lab: LabGrid, site: str = "CERN", **options: Any) -> Any:
    proxy = lab.user("alice")
    await lab.start("storage", site=site, options={"reserve_bytes": 0, **options})
    return await lab.channel("storage", site=site, credential=proxy)


def on_disk(lab: LabGrid, site: str = "CERN") -> list[Path]:
    return [p for p in (lab.directory / "agents" / f"storage.{site}" / "pool").rglob("*") if p.is_file()]


async def raw_put(channel: Any, *messages: pb.PutRequest) -> pb.PutResponse:
    call = storage_pb2_grpc.StorageStub(channel).Put()
    async with call:
        if all([await call.send(message) for message in messages]):
            await call.done_writing()
        return await call


def header(size: int, put_id: str = "p1", vo: str = "cms", **more: Any) -> pb.PutRequest:
    return pb.PutRequest(header=pb.PutHeader(vo=vo, size_bytes=size, put_id=put_id, **more))


def trailer(data: bytes) -> pb.PutRequest:
    return pb.PutRequest(trailer=pb.PutTrailer(checksums=wire_sums(data)))


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_round_trip_ranges_stat_list_space_and_removal(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    channel = await start(lab, quota_bytes=10_000_000)
    seen: list[int] = []
    stored = await client.put_file(channel, source, "cms", name_hint="/grid/cms/events.root", progress=seen.append)
    assert (stored.size_bytes, stored.checksums, sum(seen)) == (len(DATA), sums(DATA), len(DATA))
    surl = client.parse_surl(stored.surl)
    assert (surl.host, surl.port, surl.vo) == ("localhost", lab.port("storage.CERN"), "cms")

    target = tmp_path / "back.root"
    assert (await client.get_file(channel, stored.surl, target, expected=stored.checksums)).checksums == sums(DATA)
    assert target.read_bytes() == DATA
    for offset, length in [(0, 1), (0, 0), (1 << 20, 1 << 20), (len(DATA) - 3, 100), (len(DATA), 0), (5, 2_500_000)]:
        end = offset + length if length else len(DATA)
        assert await client.read_range(channel, stored.surl, offset, length) == DATA[offset:end]
    await refused(InvalidRequest, "RANGE_INVALID", client.read_range(channel, stored.surl, len(DATA) + 1))
    await refused(InvalidRequest, "RANGE_INVALID", client.read_range(channel, stored.surl, -1))

    info = await client.stat(channel, stored.surl)
    assert (info.size_bytes, info.checksums, info.vo) == (len(DATA), sums(DATA), "cms")
    assert (info.name_hint, info.owner.endswith("/CN=alice")) == ("/grid/cms/events.root", True)
    assert [file.surl async for file in client.list_files(channel, "cms")] == [stored.surl]
    usage = {vo.vo: vo for vo in (await client.space(channel)).vos}
    assert (usage["cms"].used_bytes, usage["cms"].files, usage["cms"].quota_bytes) == (len(DATA), 1, 10_000_000)
    assert usage["cms"].available_bytes == 10_000_000 - len(DATA) and usage["atlas"].files == 0

    await client.remove(channel, stored.surl)
    await client.remove(channel, stored.surl)
    await refused(NotFound, "FILE_NOT_FOUND", client.stat(channel, stored.surl))
    await refused(NotFound, "FILE_NOT_FOUND", client.get_file(channel, stored.surl, tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()


async def test_the_physical_path_has_nothing_of_the_name(lab: LabGrid, source: Path) -> None:
    channel = await start(lab)
    hint = "/grid/cms/" + "../" * 3 + "n" * 255
    stored = await client.put_file(channel, source, "cms", name_hint=hint)
    (path,) = {p for p in on_disk(lab) if p.parent.name != "incoming"}
    file_id = client.parse_surl(stored.surl).file_id
    assert path.parts[-4:] == ("data", file_id[:2], file_id[2:4], file_id)


@pytest.mark.parametrize(
    ("messages", "kind", "reason"),
    [
        ([header(5), pb.PutRequest(data=b"123456"), trailer(b"123456")], InvalidRequest, "SIZE_MISMATCH"),
        ([header(5), pb.PutRequest(data=b"1234"), trailer(b"1234")], InvalidRequest, "SIZE_MISMATCH"),
        ([header(5), pb.PutRequest(data=b"12345")], InvalidRequest, "CHECKSUM_MISSING"),
        ([header(5), pb.PutRequest(data=b"12345"), trailer(b"12346")], DataCorrupted, "CHECKSUM_MISMATCH"),
        ([header(5, checksums=wire_sums(b"x")), pb.PutRequest(data=b"12345"), trailer(b"12345")], DataCorrupted,
         "CHECKSUM_MISMATCH"),
        ([header(5), pb.PutRequest(trailer=pb.PutTrailer())], InvalidRequest, "CHECKSUM_INVALID"),
        ([header(5), header(5)], InvalidRequest, "STREAM_MALFORMED"),
        ([header(5), pb.PutRequest()], InvalidRequest, "STREAM_MALFORMED"),
        ([pb.PutRequest(data=b"12345")], InvalidRequest, "STREAM_MALFORMED"),
        ([], InvalidRequest, "STREAM_MALFORMED"),
        ([header(-1)], InvalidRequest, "SIZE_INVALID"),
        ([header(5, put_id="")], InvalidRequest, "PUT_ID_INVALID"),
        ([header(5, vo="atlas")], Refused, "OTHER_VO"),
        ([header(5, vo="../etc")], InvalidRequest, "VO_INVALID"),
    ],
)  # fmt: skip
async def test_bad_uploads_leave_nothing(lab: LabGrid, messages: Any, kind: type[GridError], reason: str) -> None:
    channel = await start(lab)
    error = await refused(kind, reason, raw_put(channel, *messages))
    assert on_disk(lab) == []
    assert lab.agents["storage.CERN"].agent.element.admission.running == 0
    (line,) = lab.audit("storage.CERN", "call.refused")
    assert (line["sentence"], line["reason"]) == (error.sentence, reason)


async def test_larger_than_quota_or_disk_is_refused_before_the_first_byte(lab: LabGrid) -> None:
    channel = await start(lab, quota_bytes=1000, vo_quota_bytes={"atlas": 10**18})
    error = await refused(Exhausted, "QUOTA_EXCEEDED", raw_put(channel, header(1001)))
    assert (error.facts["quota_bytes"], error.facts["announced_bytes"]) == ("1000", "1001")
    atlas = await lab.channel("storage", credential=lab.user("bob", vo="atlas"))
    error = await refused(Exhausted, "DISK_FULL", raw_put(atlas, header(10**17, vo="atlas")))
    assert 0 < int(error.facts["available_bytes"]) < 10**17
    assert lab.agents["storage.CERN"].agent.element.bytes_in == 0
    await raw_put(channel, header(1000), pb.PutRequest(data=b"x" * 1000), trailer(b"x" * 1000))


async def test_a_repeat_answers_the_same_surl(lab: LabGrid, source: Path) -> None:
    channel = await start(lab)
    first = await client.put_file(channel, source, "cms", put_id="one")
    assert await client.put_file(channel, source, "cms", put_id="one") == first
    known = await raw_put(channel, header(len(DATA), "one", checksums=wire_sums(DATA)))
    assert known.surl == first.surl
    source.write_bytes(DATA[::-1])
    await refused(Conflict, "PUT_ID_REUSED", client.put_file(channel, source, "cms", put_id="one"))
    usage = {vo.vo: vo for vo in (await client.space(channel)).vos}
    assert usage["cms"].files == 1


async def test_who_may_not(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    alice = await start(lab)
    stored = await client.put_file(alice, source, "cms")
    other_vo = await lab.channel("storage", credential=lab.user("bob", vo="atlas"))
    for attempt in (
        client.stat(other_vo, stored.surl),
        client.read_range(other_vo, stored.surl),
        client.remove(other_vo, stored.surl),
        client.put_file(other_vo, source, "cms"),
    ):
        await refused(Refused, "OTHER_VO", attempt)
    forged = stored.surl.replace("/cms/", "/atlas/")
    await refused(NotFound, "FILE_NOT_FOUND", client.stat(other_vo, forged))
    stranger = await lab.channel("storage", credential=lab.user("eve", vo=None))
    await refused(Refused, "NOT_MAPPED", client.stat(stranger, stored.surl))
    for kind in ("broker", "gatekeeper", "storage"):
        agent = await lab.channel("storage", credential=lab.service(kind, site="RAL"))
        await refused(Refused, "USER_REQUIRED", client.read_range(agent, stored.surl))
        assert (await client.space(agent)).total_bytes > 0
    nobody = await lab.channel("storage")
    await refused(Unauthenticated, "SESSION_MISSING", client.stat(nobody, stored.surl))
    limited = await lab.channel("storage", credential=lab.user("alice", limited=True))
    await client.get_file(limited, stored.surl, tmp_path / "limited")
    assert (tmp_path / "limited").read_bytes() == DATA
    colleague = await lab.channel("storage", credential=lab.user("carol"))
    await client.remove(colleague, stored.surl)


async def test_removal_by_the_owner_alone_where_the_site_says_so(lab: LabGrid, source: Path) -> None:
    alice = await start(lab, removal="owner")
    stored = await client.put_file(alice, source, "cms")
    carol = await lab.channel("storage", credential=lab.user("carol"))
    await refused(Refused, "NOT_OWNER", client.remove(carol, stored.surl))
    await client.remove(alice, stored.surl)


async def test_a_surl_of_another_element_is_not_served(lab: LabGrid) -> None:
    channel = await start(lab)
    await refused(NotFound, "SURL_ELSEWHERE", client.stat(channel, f"srm://elsewhere:1/cms/{'0' * 32}"))
    for text in ("/etc/passwd", "srm://localhost:1/cms/../../etc/passwd", "srm://localhost:1/cms/" + "0" * 33):
        await refused(InvalidRequest, "SURL_INVALID", client.stat(channel, text))


async def test_a_damaged_file_is_not_delivered_as_good(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    channel = await start(lab)
    stored = await client.put_file(channel, source, "cms")
    (path,) = {p for p in on_disk(lab) if p.parent.name != "incoming"}
    rotten = bytearray(DATA)
    rotten[1_500_000] ^= 1
    path.write_bytes(rotten)
    target = tmp_path / "out"
    await refused(DataCorrupted, "CHECKSUM_MISMATCH", client.get_file(channel, stored.surl, target))
    path.write_bytes(DATA[:-1])
    await refused(DataCorrupted, "FILE_DAMAGED", client.get_file(channel, stored.surl, target))
    path.write_bytes(DATA)  # marked, until a scrubber or a repair has looked at all of it
    await refused(DataCorrupted, "FILE_DAMAGED", client.get_file(channel, stored.surl, target))
    lost = await client.put_file(channel, source, "cms")
    next(p for p in on_disk(lab) if p.parent.name != "incoming" and p != path).unlink()
    await refused(DataCorrupted, "FILE_LOST", client.get_file(channel, lost.surl, target))
    assert {p.name for p in tmp_path.iterdir()} & {"out"} == set() and not list(tmp_path.glob(".out*"))


async def test_a_wrong_expectation_is_noticed_before_the_first_byte(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    channel = await start(lab)
    stored = await client.put_file(channel, source, "cms")
    wrong = Checksums("00000001", stored.checksums.sha256)
    await refused(
        DataCorrupted, "CHECKSUM_MISMATCH", client.get_file(channel, stored.surl, tmp_path / "x", expected=wrong)
    )


async def test_third_party_copy_with_the_users_delegated_proxy(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    cern = await start(lab)
    ral = await start(lab, "RAL")
    stored = await client.put_file(cern, source, "cms")
    await refused(NotFound, "DELEGATION_MISSING", client.copy(ral, stored.surl, "cms"))
    await delegate(ral, lab.user("alice"))
    made = await client.copy(ral, stored.surl, "cms", expected=stored.checksums, put_id="copy")
    assert made.checksums == stored.checksums and made.surl != stored.surl
    assert await client.copy(ral, stored.surl, "cms", expected=stored.checksums, put_id="copy") == made
    await client.get_file(ral, made.surl, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert len([f async for f in client.list_files(ral, "cms")]) == 1

    wrong = Checksums(stored.checksums.adler32, "0" * 64)
    await refused(DataCorrupted, "SOURCE_DIFFERS", client.copy(ral, stored.surl, "cms", expected=wrong))
    await refused(InvalidRequest, "SOURCE_IS_HERE", client.copy(cern, stored.surl, "cms"))
    gone = stored.surl[:-4] + "ffff"
    error = await refused(NotFound, "FILE_NOT_FOUND", client.copy(ral, gone, "cms"))
    assert error.facts["side"] == "source"
    await refused(InvalidRequest, "RATE_INVALID", client.copy(ral, stored.surl, "cms", max_bytes_per_s=1))

    await client.take_back(await lab.channel("storage", site="RAL", credential=lab.user("carol")), "copy", "cms")
    assert len([f async for f in client.list_files(ral, "cms")]) == 1
    for _ in range(2):
        await client.take_back(ral, "copy", "cms")
    assert [f async for f in client.list_files(ral, "cms")] == [] and on_disk(lab, "RAL") == []


async def test_many_small_copies_by_one_call_each_with_its_verdict(lab: LabGrid, source: Path) -> None:
    cern = await start(lab)
    ral = await start(lab, "RAL")
    contents = [b"one", b"", b"x" * (1 << 20), b"y" * (1 << 20), b"z" * (1 << 20), b"six"]
    small = [client.SmallFile(data, sums(data), f"p{number}") for number, data in enumerate(contents)]
    stored = await client.put_small(cern, small, "cms")
    large = await client.put_file(cern, source, "cms")

    def copies(**changed: Any) -> list[client.SmallCopy]:
        made = [
            client.SmallCopy(kept.surl, kept.size_bytes, kept.checksums, f"c{number}")
            for number, kept in enumerate(stored)
            if isinstance(kept, client.Stored)
        ]
        made[0] = replace(made[0], **changed)
        return made

    await refused(NotFound, "DELEGATION_MISSING", client.copy_small(ral, copies(), "cms"))
    await delegate(ral, lab.user("alice"))
    told: list[Any] = []
    made = await client.copy_small(ral, copies(), "cms", tell=told.extend)
    assert [one.checksums for one in made if isinstance(one, client.Stored)] == [sums(data) for data in contents]
    assert told == made
    assert await client.copy_small(ral, copies(), "cms") == made
    there = [(file.surl, file.size_bytes) async for file in client.list_files(ral, "cms")]
    assert sorted(there) == sorted((one.surl, len(data)) for one, data in zip(made, contents, strict=True))  # type: ignore[union-attr]

    for changed, kind, reason, side in (
        ({"checksums": sums(b"other")}, DataCorrupted, "SOURCE_DIFFERS", "source"),
        ({"source_surl": stored[0].surl[:-4] + "ffff"}, NotFound, "FILE_NOT_FOUND", "source"),  # type: ignore[union-attr]
        ({"source_surl": large.surl, "checksums": large.checksums}, InvalidRequest, "FILE_LARGE", "source"),
        ({"put_id": "c1"}, Conflict, "PUT_ID_REUSED", None),
    ):
        first, *others = await client.copy_small(ral, copies(**{"put_id": "new", **changed}), "cms")
        assert isinstance(first, kind) and (first.reason, first.facts.get("side")) == (reason, side)
        assert others == made[1:]
    for changed, reason in (
        ({"source_surl": made[0].surl}, "SOURCE_IS_HERE"),  # type: ignore[union-attr]
        ({"source_surl": "srm://localhost:1/cms/" + "0" * 32}, "SOURCES_MIXED"),
        ({"source_surl": stored[0].surl.replace("/cms/", "/atlas/")}, "SOURCES_MIXED"),  # type: ignore[union-attr]
        ({"source_surl": "/etc/passwd"}, "SURL_INVALID"),
    ):
        await refused(InvalidRequest, reason, client.copy_small(ral, copies(**changed), "cms"))
    await refused(InvalidRequest, "TOO_MANY_FILES", client.copy_small(ral, 43 * copies(), "cms"))
    await refused(InvalidRequest, "RATE_INVALID", client.copy_small(ral, copies(), "cms", max_bytes_per_s=1))
    bob = await lab.channel("storage", site="RAL", credential=lab.user("bob", vo="atlas"))
    await refused(Refused, "OTHER_VO", client.copy_small(bob, copies(), "cms"))
    assert len([file async for file in client.list_files(ral, "cms")]) == len(contents)

    await lab.stop("storage.CERN")
    error = await refused(Unavailable, "SERVER_UNREACHABLE", client.copy_small(ral, copies(), "cms", patience_s=0))
    assert error.facts["side"] == "source"


async def test_a_copy_with_a_speed_limit_tells_how_far_it_is_and_is_taken_back(lab: LabGrid, tmp_path: Path) -> None:
    cern = await start(lab)
    ral = await start(lab, "RAL")
    (tmp_path / "large").write_bytes(bytes(12 << 20))
    stored = await client.put_file(cern, tmp_path / "large", "cms")
    await delegate(ral, lab.user("alice"))
    told: asyncio.Queue[int] = asyncio.Queue()
    rate = 256 << 10
    copy = asyncio.create_task(
        client.copy(ral, stored.surl, "cms", put_id="slow", progress=told.put_nowait, max_bytes_per_s=rate)
    )
    moved = 0
    async with asyncio.timeout(60):
        while not moved:
            moved += await told.get()
    assert moved < 12 << 20
    await client.take_back(ral, "slow", "cms")
    await refused(Conflict, "PUT_TAKEN_OVER", copy)
    assert on_disk(lab, "RAL") == []


async def test_a_copy_goes_on_at_the_byte_where_its_source_broke(lab: LabGrid, tmp_path: Path) -> None:
    cern = await start(lab)
    ral = await start(lab, "RAL")
    data = random.Random(3).randbytes(20 << 20)
    (tmp_path / "large").write_bytes(data)
    stored = await client.put_file(cern, tmp_path / "large", "cms")
    await delegate(ral, lab.user("alice"))
    element = lab.agents["storage.CERN"].agent.element  # type: ignore[attr-defined]
    read, offsets = element.read, list[int]()

    async def breaks(file: Any, offset: int, *more: Any) -> Any:
        offsets.append(offset)
        sent = 0
        async for piece in read(file, offset, *more):
            sent += len(piece)
            if len(offsets) < 3 and sent > 7 << 20:
                raise Unavailable("POOL_UNUSABLE", "the disk went away")
            yield piece

    element.read = breaks
    copied = await client.copy(ral, stored.surl, "cms", patience_s=0.0)
    assert copied.checksums == stored.checksums and len(offsets) == 3
    assert offsets[0] == 0 < offsets[1] < offsets[2] < len(data)
    assert await client.read_range(ral, copied.surl) == data


async def test_a_copy_of_a_rotten_source_is_refused_and_leaves_nothing(lab: LabGrid, source: Path) -> None:
    cern = await start(lab)
    ral = await start(lab, "RAL")
    await delegate(ral, lab.user("alice"))
    stored = await client.put_file(cern, source, "cms")
    (path,) = {p for p in on_disk(lab) if p.parent.name != "incoming"}
    path.write_bytes(DATA[:-1] + b"\0")
    await refused(DataCorrupted, "CHECKSUM_MISMATCH", client.copy(ral, stored.surl, "cms"))
    assert on_disk(lab, "RAL") == []


async def test_a_copy_from_a_source_that_is_down_says_so(lab: LabGrid, source: Path) -> None:
    cern = await start(lab)
    ral = await start(lab, "RAL")
    await delegate(ral, lab.user("alice"))
    stored = await client.put_file(cern, source, "cms")
    await lab.stop("storage.CERN")
    with pytest.raises(GridError) as caught:
        await client.copy(ral, stored.surl, "cms", patience_s=0)
    assert type(caught.value).status_name == "UNAVAILABLE"
    assert str(lab.port("storage.CERN")) in caught.value.sentence


async def test_a_stalled_upload_frees_its_space(lab: LabGrid) -> None:
    channel = await start(lab, stall_timeout_s=0.05)
    call = storage_pb2_grpc.StorageStub(channel).Put()
    async with call:
        await call.write(header(1000))
        await call.write(pb.PutRequest(data=b"x"))
        await refused(DeadlineExceeded, "TRANSFER_STALLED", call)
    assert on_disk(lab) == []
    assert all(vo.reserved_bytes == 0 for vo in (await client.space(channel)).vos)


async def test_a_caller_that_goes_away_leaves_nothing(lab: LabGrid) -> None:
    channel = await start(lab)
    element = lab.agents["storage.CERN"].agent.element
    call = storage_pb2_grpc.StorageStub(channel).Put()
    async with call:
        await call.write(header(2000))
        for _ in range(AHEAD_PIECES):
            await call.write(pb.PutRequest(data=b"x" * 100))
        await until(lambda: [p.stat().st_size for p in on_disk(lab)] == [100 * AHEAD_PIECES])
    await until(lambda: element.admission.running == 0 and not on_disk(lab))
    assert all(vo.reserved_bytes == 0 for vo in (await client.space(channel)).vos)


async def test_too_many_transfers_wait_their_turn(lab: LabGrid, source: Path) -> None:
    channel = await start(lab, max_transfers=2)
    made = await asyncio.gather(*(client.put_file(channel, source, "cms") for _ in range(6)))
    assert len({stored.surl for stored in made}) == 6
    call = storage_pb2_grpc.StorageStub(channel)
    hanging = [call.Put() for _ in range(2)]
    for number, one in enumerate(hanging):
        await one.write(header(10, f"h{number}"))
        await one.write(pb.PutRequest(data=b"x"))
    element = lab.agents["storage.CERN"].agent.element
    await until(lambda: element.admission.running == 2)
    error = await refused(Exhausted, "TOO_MANY_TRANSFERS", client.put_file(channel, source, "cms", patience_s=0))
    assert error.retry_after_s
    for one in hanging:
        one.cancel()


async def test_everything_is_there_after_a_restart(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    channel = await start(lab)
    stored = await client.put_file(channel, source, "cms", put_id="one")
    await lab.stop("storage.CERN")
    channel = await start(lab)
    assert await client.put_file(channel, source, "cms", put_id="one") == stored
    await client.get_file(channel, stored.surl, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == DATA


async def test_local_files_that_cannot_be_used(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    channel = await start(lab)
    await refused(InvalidRequest, "FILE_UNREADABLE", client.put_file(channel, tmp_path / "none", "cms"))
    await refused(InvalidRequest, "FILE_UNREADABLE", client.put_file(channel, tmp_path, "cms"))
    stored = await client.put_file(channel, source, "cms")
    await refused(InvalidRequest, "FILE_UNWRITABLE", client.get_file(channel, stored.surl, tmp_path / "no" / "dir"))
    (tmp_path / "dir").mkdir()
    await refused(InvalidRequest, "FILE_UNWRITABLE", client.get_file(channel, stored.surl, tmp_path / "dir"))
    os.truncate(source, 0)
    assert (await client.put_file(channel, source, "cms")).size_bytes == 0


async def test_the_element_publishes_itself(lab: LabGrid, source: Path) -> None:
    channel = await start(lab, quota_bytes=100_000_000)
    await client.put_file(channel, source, "cms")
    agent = lab.agents["storage.CERN"].agent
    await agent._measure()
    entries = {str(entry.dn): entry.attributes for entry in agent.entries()}
    unique_id = f"localhost:{lab.port('storage.CERN')}"
    area = next(e for dn, e in entries.items() if dn.lower().startswith("gluesalocalid=cms"))
    assert area["GlueSAStateUsedSpace"] == (str(len(DATA) // 1024),)
    assert area["GlueSAStateAvailableSpace"] == (str((100_000_000 - len(DATA)) // 1024),)
    assert area["GlueSAAccessControlBaseRule"] == ("VO:cms",)
    assert any(e.get("GlueSEUniqueID") == (unique_id,) for e in entries.values())
    assert any(e.get("GlueServiceType") == ("org.gridfabric.storage",) for e in entries.values())


@pytest.fixture
def small_disk(lab: LabGrid) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    path = lab.directory / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)], capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def mounted(*command: object) -> None:
    await asyncio.to_thread(subprocess.run, [str(word) for word in command], check=True)


async def test_a_disk_that_fills_up_and_fails(lab: LabGrid, source: Path, tmp_path: Path, small_disk: Path) -> None:
    """Refuses by number before, and by ENOSPC when a neighbour took the space meanwhile; serves on; recovers alone."""
    channel = await start(lab, pools=[str(small_disk)], reserve_bytes=1 << 20)
    first = await client.put_file(channel, source, "cms")
    neighbour = small_disk / "neighbour"
    neighbour.write_bytes(bytes(3 << 20))
    error = await refused(Exhausted, "DISK_FULL", client.put_file(channel, source, "cms"))
    assert int(error.facts["available_bytes"]) < len(DATA)
    neighbour.unlink()
    call = storage_pb2_grpc.StorageStub(channel).Put()
    async with call:
        await call.send(header(len(DATA), "racing"))
        await until(lambda: lab.agents["storage.CERN"].agent.element.admission.running == 1)
        with contextlib.suppress(OSError):
            neighbour.write_bytes(bytes(8 << 20))
        for begin in range(0, len(DATA), 1 << 20):
            if not await call.send(pb.PutRequest(data=DATA[begin : begin + (1 << 20)])):
                break
        await call.send(trailer(DATA))
        await refused(Exhausted, "DISK_FULL", call)
    await client.get_file(channel, first.surl, tmp_path / "still")
    assert (tmp_path / "still").read_bytes() == DATA
    neighbour.unlink()
    second = await client.put_file(channel, source, "cms")

    # Read-only, as the kernel makes a disk that fails: reads go on, what is removed leaves the disk later.
    await mounted("mount", "-o", "remount,ro", small_disk)
    await refused(Unavailable, "NO_POOL", client.put_file(channel, source, "cms", patience_s=0))
    await client.get_file(channel, first.surl, tmp_path / "still")
    await client.remove(channel, second.surl)
    on_disk = [path for path in (small_disk / "data").rglob("*") if path.is_file()]
    await mounted("mount", "-o", "remount,rw", small_disk)
    element = lab.agents["storage.CERN"].agent.element
    assert (len(on_disk), await element.collect_garbage()) == (2, 1)
    await client.remove(channel, (await client.put_file(channel, source, "cms")).surl)

    # Gone: nothing is written where it was, nothing is said to be lost, and it is all there when the disk is back.
    away = lab.directory / "away"
    away.mkdir()
    await mounted("mount", "--bind", small_disk, away)
    await mounted("umount", "-l", small_disk)
    await refused(Unavailable, "NO_POOL", client.put_file(channel, source, "cms", patience_s=0))
    await refused(Unavailable, "POOL_UNUSABLE", client.get_file(channel, first.surl, tmp_path / "gone"))
    assert (await client.stat(channel, first.surl)).damage == "" and list(small_disk.iterdir()) == []
    await mounted("mount", "--bind", away, small_disk)
    await mounted("umount", "-l", away)
    await client.get_file(channel, first.surl, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == DATA
    await client.put_file(channel, source, "cms")


async def test_of_mirrored_pools_one_disk_fails(lab: LabGrid, source: Path, tmp_path: Path, small_disk: Path) -> None:
    """Read-only, rotten, gone: users read on from the other disk; nothing new is kept in one pool only."""
    channel = await start(lab, pools=[str(small_disk), "pool"], copies=2)
    stored = await client.put_file(channel, source, "cms")
    (mirrored,) = [path for path in (small_disk / "data").rglob("*") if path.is_file()]
    assert mirrored.read_bytes() == DATA == next(path for path in on_disk(lab) if "data" in path.parts).read_bytes()

    async def read_back() -> None:
        await client.get_file(channel, stored.surl, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == DATA
        assert (await client.stat(channel, stored.surl)).damage == ""

    await mounted("mount", "-o", "remount,ro", small_disk)
    await refused(Unavailable, "TOO_FEW_POOLS", client.put_file(channel, source, "cms", patience_s=0))
    await read_back()
    await mounted("mount", "-o", "remount,rw", small_disk)
    agent = lab.agents["storage.CERN"].agent
    mirrored.write_bytes(b"")
    await read_back()
    assert await agent.scrubber.round()  # where no reader met it
    await until(lambda: [path.stat().st_size for path in (small_disk / "data").rglob("?" * 32)] == [len(DATA)])
    await mounted("umount", "-l", small_disk)
    await read_back()
    await refused(Unavailable, "TOO_FEW_POOLS", client.put_file(channel, source, "cms", patience_s=0))
    assert list(small_disk.iterdir()) == [] and agent.health().numbers["damaged_files"] == 0
    await mounted("mount", "-t", "tmpfs", "-o", "size=8m", "none", small_disk)  # for the fixture's umount


async def test_space_is_reserved_for_both_doors(lab: LabGrid, source: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(17 << 20))
    held = len(DATA) + (17 << 20)
    channel = await start(lab, quota_bytes=held + 1)
    bob = await lab.channel("storage", credential=lab.user("bob", vo="atlas"))
    left, until_us = await client.reserve_space(channel, "run7", "cms", held, 3600)
    assert left == held and until_us > 0
    await refused(Exhausted, "QUOTA_EXCEEDED", client.put_file(channel, source, "cms", patience_s=0))
    await refused(Refused, "OTHER_VO", client.reserve_space(bob, "run8", "cms", 1, 60))
    await refused(Refused, "OTHER_VO", client.release_space(bob, "run7", "cms"))
    await client.put_file(channel, source, "cms", reservation="run7")
    await client.put_file(channel, tmp_path / "large", "cms", reservation="run7")
    assert (await client.reserve_space(channel, "run7", "cms", 1, 3600))[0] == 0
    for _ in range(2):
        await client.release_space(channel, "run7", "cms")
    await refused(NotFound, "RESERVATION_UNKNOWN", client.put_file(channel, source, "cms", reservation="run7"))
    assert [line["id"] for line in lab.audit("storage.CERN", "storage.reserved")] == ["run7"] * 2


async def test_names_by_grpc(lab: LabGrid, source: Path) -> None:
    channel = await start(lab)
    bob = await lab.channel("storage", credential=lab.user("bob", vo="atlas"))

    async def listed(path: str) -> list[tuple[str, str]]:
        return [
            (entry.name, entry.file.surl if entry.file else "")
            async for entry in client.list_directory(channel, path, 2)
        ]

    for path in ("/cms/run", "/cms/run/a%20b", "/cms/empty"):
        await client.make_directory(channel, path)
    await refused(AlreadyExists, "NAME_EXISTS", client.make_directory(channel, "/cms/run"))
    await refused(Conflict, "PARENT_MISSING", client.make_directory(channel, "/cms/no/a"))
    await refused(Refused, "OTHER_VO", client.make_directory(bob, "/cms/bob"))
    for path in ("/cms/%2e%2e/x", "/cms/a%2fb", "/cms/a%00b", "/cms/" + "x" * 256, "/cms/a%0ab", "/cms/%ff"):
        await refused(InvalidRequest, "NAME_INVALID", client.make_directory(channel, path))

    # a file without a name gets one, another one, and gives it up
    files = [await client.put_file(channel, source, "cms") for _ in range(2)]
    first, second = [f"/cms/{client.parse_surl(file.surl).file_id}" for file in files]
    await client.rename(channel, first, "/cms/run/file")
    assert await listed("/cms/run") == [("a b", ""), ("file", files[0].surl)]
    await refused(Conflict, "PRECONDITION_FAILED", client.rename(channel, second, "/cms/run/file"))
    await refused(Refused, "OTHER_VO", client.rename(bob, second, "/atlas/mine"))
    await refused(NotFound, "FILE_NOT_FOUND", client.rename(channel, "/cms/" + "0" * 32, "/cms/none"))
    await client.rename(channel, first, "/cms/run/a%20b/moved")
    await client.rename(channel, "/cms/run", "/cms/empty/run")
    assert [name for name, _ in await listed("/cms")] == ["empty"]
    assert (await client.stat(channel, path="/cms/empty/run/a%20b/moved")).surl == files[0].surl
    await client.rename(channel, second, "/cms/empty/run/a%20b/moved", overwrite=True)
    assert [file.surl async for file in client.list_files(channel, "cms")] == [files[1].surl]
    await refused(Conflict, "MOVE_INTO_ITSELF", client.rename(channel, "/cms/empty", "/cms/empty/run/x"))
    await refused(Conflict, "DIRECTORY_NOT_EMPTY", client.remove_directory(channel, "/cms/empty"))
    await refused(NotFound, "NOT_A_DIRECTORY", listed("/cms/empty/run/a%20b/moved"))
    await refused(Refused, "OTHER_VO", client.rename(bob, "/cms/empty", "/cms/bob"))
    await client.remove(channel, files[1].surl)
    for path in ("/cms/empty/run/a%20b", "/cms/empty/run", "/cms/empty"):
        await client.remove_directory(channel, path)
    await refused(NotFound, "NAME_NOT_FOUND", client.remove_directory(channel, "/cms/empty"))
    assert await listed("/cms") == []
    assert len(lab.audit("storage.CERN", "storage.moved")) == 4


async def test_the_information_system_shows_it(lab: LabGrid, source: Path) -> None:
    lab.plan("storage")
    await lab.start("information", options={"level": "site"})
    channel = await start(lab)
    publisher = lab.agents["storage.CERN"].agent._publisher
    await until(lambda: publisher.is_current)
    del channel
