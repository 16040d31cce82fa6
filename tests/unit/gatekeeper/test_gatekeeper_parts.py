"""Description checks, the sandbox area, rows and leases of a gatekeeper."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from agents.gatekeeper import store as rows
from agents.gatekeeper import wire
from agents.gatekeeper.accounts import Accounts
from agents.gatekeeper.config import GatekeeperOptions, PoolOptions, QueueOptions
from agents.gatekeeper.model import DescriptionInvalidError, Hold, Job, State, Usage
from agents.gatekeeper.sandbox import SandboxArea
from agents.gatekeeper.workers import WorkerPool, _Link
from fabric.errors import Exhausted, GridError, InvalidRequest, NotFound, Refused
from fabric.logs import null_logger
from fabric.store import Store
from fabric.vos import Vos
from security.proxies import new_request
from security.testing import NOW, TestGrid
from security.vos import EVERYWHERE, Vo, VoList

OPTIONS = GatekeeperOptions()


def job(**more: Any) -> pb.Job:
    fields: dict[str, Any] = {"executable": "/bin/true", "vo": "cms", **more}
    return pb.Job(job_id="https://h:1/x", attempt=1, description=pb.JobDescription(**fields))


def check(one: pb.Job, vo: str = "cms") -> None:
    wire.check_job(one, OPTIONS, OPTIONS.every_queue()["long"], ("cms", "atlas"), vo)


def test_limits_of_the_queue_are_filled_in() -> None:
    one = job(limits=pb.Limits(wall_s=10))
    check(one)
    assert one.description.limits.wall_s == 10
    assert one.description.limits.memory_bytes == OPTIONS.max_memory_bytes


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("executable", {"executable": ""}),
        ("executable", {"executable": "/bin/../../x"}),
        ("executable", {"executable": "run.sh"}),
        ("executable", {"executable": "/bin/tr\nue"}),
        ("arguments", {"arguments": ["x"] * 1001}),
        ("arguments", {"arguments": ["a\0b"]}),
        ("prologue", {"prologue": pb.Script(executable="p.sh")}),
        ("prologue", {"prologue": pb.Script(arguments=["x"])}),
        ("epilogue", {"epilogue": pb.Script(executable="/bin/../x")}),
        ("epilogue's arguments", {"epilogue": pb.Script(executable="/bin/true", arguments=["a\0b"])}),
        ("data access protocols", {"data_access_protocols": ["https"] * 21}),
        ("data access protocol", {"data_access_protocols": ["a\nb"]}),
        ("environment", {"environment": {"1A": "x"}}),
        ("environment", {"environment": {"A=B": "x"}}),
        ("StdOutput", {"std_output": "../out"}),
        ("StdError", {"std_error": "/tmp/err"}),
        ("StdOutput", {"std_output": "a/b"}),
        ("StdInput", {"std_input": "nowhere"}),
        ("output sandbox", {"output_sandbox": ["a", "a"]}),
        ("output sandbox", {"output_sandbox": [".gridfabric-x"]}),
        ("output sandbox", {"output_sandbox": ["x" * 201]}),
        ("output data", {"output_data": [pb.DataOutput(file="../x", lfn="/grid/x")]}),
        ("input sandbox", {"input_sandbox": [pb.SandboxFile(name="a/b", sha256="0" * 64)]}),
        ("input sandbox", {"input_sandbox": [pb.SandboxFile(name="a", sha256="0" * 64, size_bytes=1 << 40)]}),
        ("input data", {"input_data": ["x"] * 1001}),
        ("limit cpu_s", {"limits": pb.Limits(cpu_s=-1)}),
        ("limit disk_bytes", {"limits": pb.Limits(disk_bytes=1 << 60)}),
        ("vo", {"vo": "lhcb"}),
        ("vo", {"vo": "atlas"}),
        ("size", {"environment": {"A": "x" * 70_000}}),
    ],
)
def test_descriptions_that_are_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(DescriptionInvalidError) as caught:
        check(job(**fields))
    assert caught.value.facts["field"] == field


@given(st.text(max_size=40))
def test_an_accepted_name_stays_inside(name: str) -> None:
    try:
        wire.check_name(name, "output sandbox")
    except DescriptionInvalidError:
        return
    path = os.path.normpath(os.path.join("/job", name))
    assert path.startswith("/job/")
    assert path == f"/job/{name}"


# ---- sandbox area


def area(tmp_path: Path, **more: Any) -> SandboxArea:
    made = SandboxArea(tmp_path / "area", **{"max_bytes": 1000, "max_files": 3, "max_file_bytes": 500, **more})
    made.open(set())
    return made


def put(made: SandboxArea, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    upload = made.begin(sha256, len(data))
    upload.write(data)
    upload.finish()
    return sha256


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    made = area(tmp_path)
    sha256 = put(made, b"hello")
    assert made.path(sha256).read_bytes() == b"hello"
    assert (made.files, made.bytes) == (1, 5)
    upload = made.begin("0" * 64, 5)
    upload.write(b"hello")
    with pytest.raises(InvalidRequest, match="SHA-256"):
        upload.finish()
    upload = made.begin("0" * 64, 5)
    upload.write(b"hel")
    with pytest.raises(InvalidRequest, match="announced"):
        upload.finish()
    upload = made.begin("0" * 64, 2)
    with pytest.raises(InvalidRequest):
        upload.write(b"hel")
    upload.abandon()
    assert (made.files, made.bytes) == (1, 5)
    assert not list((tmp_path / "area" / "incoming").iterdir())
    assert not made.path("0" * 64).exists()


def test_the_same_file_twice_counts_once(tmp_path: Path) -> None:
    made = area(tmp_path)
    assert put(made, b"a") == put(made, b"a")
    assert (made.files, made.bytes) == (1, 1)


def test_bytes_and_inodes_are_bounded(tmp_path: Path) -> None:
    made = area(tmp_path)
    with pytest.raises(InvalidRequest) as large:
        made.begin("0" * 64, 501)
    assert large.value.reason == "SANDBOX_FILE_TOO_LARGE"
    put(made, b"1" * 400)
    put(made, b"2" * 400)
    with pytest.raises(Exhausted) as full:
        made.begin("0" * 64, 400)
    assert full.value.reason == "SANDBOX_AREA_FULL"
    put(made, b"3")
    with pytest.raises(Exhausted):
        made.begin("0" * 64, 0)
    made.remove([(hashlib.sha256(b"3").hexdigest(), 1)])
    put(made, b"4")


def test_at_start_rows_and_files_are_compared(tmp_path: Path) -> None:
    made = area(tmp_path)
    kept, dropped = put(made, b"kept"), put(made, b"dropped")
    (tmp_path / "area" / "incoming" / "half").touch()
    again = SandboxArea(tmp_path / "area", max_bytes=1000, max_files=3, max_file_bytes=500)
    assert again.open({kept, "1" * 64}) == ({"1" * 64}, 1)
    assert (again.files, again.bytes) == (1, 4)
    assert not again.path(dropped).exists()
    with pytest.raises(NotFound):
        again.open_file(dropped)


# ---- rows


def row(job_id: str, **more: Any) -> Job:
    return Job(job_id, 2, "alice", "cms", "cms001", 61001, 61001, 5, **more)


async def test_rows_give_back_what_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "g.db", rows.metadata)
    queued = row("a", sequence=1, blocked_by=Hold("w", 1, 3))
    done = row("b", state=State.DONE, sequence=4, usage=Usage(1.5, 0.5, 0.25, 1 << 20), exit_code=3, sentence="x")
    await store.write(lambda c: rows.insert_jobs(c, [(queued, b"A", ["0" * 64]), (done, b"B", [])]))
    await store.write(lambda c: rows.set_sequence(c, 9))
    live, attempts, sequence = await store.read(rows.load)
    assert (live, attempts, sequence) == ([queued], {"a": 2, "b": 2}, 9)
    assert await store.read(lambda c: rows.find_jobs(c, ["b", "x"])) == {"b": done}
    assert await store.read(lambda c: rows.descriptions(c, ["a"])) == {"a": b"A"}
    assert [one.job_id for one in await store.read(lambda c: rows.changed_after(c, "alice", 1, 10))] == ["b"]
    assert await store.read(lambda c: rows.changed_after(c, "bob", 0, 10)) == []
    await store.write(lambda c: rows.purge(c, ["b"], 77))
    assert await store.read(lambda c: rows.find_jobs(c, ["b"])) == {}
    assert (await store.read(rows.load))[1] == {"a": 2, "b": 2}
    assert await store.write(lambda c: rows.forget_fences(c, 78)) == ["b"]
    await store.close()


async def test_the_cleaner_takes_only_what_no_job_uses(tmp_path: Path) -> None:
    store = Store(tmp_path / "g.db", rows.metadata)
    used, unused, fresh = "1" * 64, "2" * 64, "3" * 64
    for sha256, at_us in ((used, 1), (unused, 1), (fresh, 50)):
        await store.write(lambda c, s=sha256, a=at_us: rows.sandbox_put(c, s, 7, a))
    await store.write(lambda c: rows.insert_jobs(c, [(row("a"), b"", [used, used])]))
    assert await store.write(lambda c: rows.sandbox_take_unused(c, 10, 100)) == [(unused, 7)]
    await store.write(lambda c: rows.release_inputs(c, ["a"]))
    await store.write(lambda c: rows.put_outputs(c, [("a", "big", 7, fresh, None), ("a", "small", 1, "x", b"1")]))
    assert await store.write(lambda c: rows.sandbox_take_unused(c, 100, 100)) == [(used, 7)]
    assert await store.read(lambda c: rows.output_list(c, "a")) == [("big", 7, fresh, True), ("small", 1, "x", False)]
    await store.write(lambda c: rows.purge(c, ["a"], 1))
    assert await store.write(lambda c: rows.sandbox_take_unused(c, 100, 100)) == [(fresh, 7)]
    await store.close()


# ---- accounts

ALICE, BOB = "/C=XX/O=Grid/OU=Users/CN=Alice", "/C=XX/O=Grid/OU=Users/CN=Bob"


def accounts(tmp_path: Path, **more: Any) -> Accounts:
    made = Accounts(tmp_path / "gridmapdir", GatekeeperOptions(**more), null_logger())
    made.create(vos(tmp_path, ("cms", 0), ("atlas", 1)))
    return made


def vos(tmp_path: Path, *known: tuple[str, int], dissolved: frozenset[str] = frozenset()) -> Vos:
    """The VOs that a gatekeeper knows, by name and number."""
    ended = datetime(2026, 1, 1, tzinfo=UTC)
    listed = VoList(
        tuple(
            Vo(name, number, (), frozenset({EVERYWHERE}), ended if name in dissolved else None)
            for name, number in known
        )
    )
    return Vos(listed, tmp_path / "vos.json", "CERN", null_logger())


async def test_accounts_have_numbers_of_their_pool(tmp_path: Path) -> None:
    made = accounts(tmp_path, account_mode="pool")
    first, second = made.map(ALICE, ".cms"), made.map(BOB, ".atlas")
    assert (first.name, first.uid, first.gid) == ("cms001", 61001, 61001)
    assert (second.name, second.uid) == ("atlas001", 62001)
    assert made.map(ALICE, ".cms") == first
    assert made.map(ALICE, "cms001") == first  # a session that leased before
    with pytest.raises(Refused):
        made.map(BOB, "root")
    with pytest.raises(Refused):
        made.map(BOB, "no-such-account-7")


async def test_a_new_vo_gets_a_pool_and_a_dissolved_one_never_gives_its_numbers_away(tmp_path: Path) -> None:
    made = accounts(tmp_path, account_mode="pool")
    assert made.map(BOB, ".atlas").uid == 62001
    made.create(vos(tmp_path, ("cms", 0), ("atlas", 1), ("lhcb", 2), dissolved=frozenset({"atlas"})))
    assert made.map(ALICE, ".lhcb").uid == 63001
    assert made.in_use("atlas001") == "" and made.map(BOB, "atlas001").uid == 62001  # still looked through
    again = Accounts(tmp_path / "gridmapdir", GatekeeperOptions(account_mode="pool"), null_logger())
    again.create(vos(tmp_path, ("atlas", 1), ("lhcb", 2), dissolved=frozenset({"atlas"})))
    assert again.map(ALICE, ".lhcb").uid == 63001


async def test_the_caller_mode_only_records_the_lease(tmp_path: Path) -> None:
    made = accounts(tmp_path, account_mode="caller", pools=(PoolOptions("cms", prefix="prd", count=1),))
    assert made.map(ALICE, ".prd").uid == -1
    assert made.leases() == 1
    with pytest.raises(GridError) as full:
        made.map(BOB, ".prd")
    assert full.value.reason == "POOL_EXHAUSTED"


async def test_leases_without_jobs_are_given_back_after_the_linger(tmp_path: Path) -> None:
    made = accounts(tmp_path, account_mode="caller")
    made.map(ALICE, ".cms")
    made.map(BOB, ".cms")
    for name in os.listdir(tmp_path / "gridmapdir"):
        os.utime(tmp_path / "gridmapdir" / name, (1, 1))

    async def owners() -> set[str]:
        await asyncio.sleep(0)
        return {ALICE}

    await made.release(owners, 100.0, 5.0)
    assert made.leases() == 2
    made.submitting[BOB] += 1
    await made.release(owners, 106.0, 5.0)
    assert made.leases() == 2
    made.submitting.clear()
    await made.release(owners, 107.0, 5.0)
    await made.release(owners, 112.0, 5.0)
    assert made.leases() == 1
    await made.release(owners, 113.0, 0.0)
    assert made.leases() == 1


async def test_a_delegation_that_was_refreshed_within_the_second_is_a_new_one(tmp_path: Path) -> None:
    grid = TestGrid(tmp_path)
    owner = "/CN=alice"
    delegations = {owner: grid.proxy("alice")}
    context = SimpleNamespace(delegations=delegations, clock=SimpleNamespace(now=lambda: NOW), log=null_logger())
    pool = WorkerPool(context, None, 1.0, str)
    machine = SimpleNamespace(workers={"w": SimpleNamespace(held=["j"])}, jobs={"j": SimpleNamespace(owner=owner)})
    pool.driver = cast("Any", SimpleNamespace(machine=machine))
    link = pool._links["w"] = _Link("w", 1)
    await pool._grant(link, owner, new_request()[1])
    await pool.renew()
    assert len(link.proxies) == 1
    refreshed = grid.proxy("alice")
    assert refreshed.not_after == delegations[owner].not_after
    delegations[owner] = refreshed
    await pool.renew()
    await pool.renew()
    assert [proxy.reason for proxy in link.proxies] == ["", ""]


def test_queues_have_their_own_limits_and_else_the_gatekeepers() -> None:
    short = QueueOptions("short", max_wall_s=60, access=("/cms/Role=production",), priority=5)
    queues = GatekeeperOptions(queues=(short, QueueOptions("long")), max_cpu_s=10).every_queue()
    assert list(queues) == ["short", "long"]
    assert (queues["short"].max_wall_s, queues["short"].max_cpu_s) == (60, 10)
    assert (queues["long"].max_wall_s, queues["long"].access) == (24 * 3600, ())
    one = job(limits=pb.Limits(wall_s=61))
    with pytest.raises(DescriptionInvalidError) as caught:
        wire.check_job(one, OPTIONS, queues["short"], ("cms",), "cms")
    assert "queue short's limit" in caught.value.sentence


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("a-b",), ("a/b",), ("x" * 65,)])
def test_names_of_queues_are_checked(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        GatekeeperOptions(queues=tuple(map(QueueOptions, names))).every_queue()
    assert caught.value.reason == "SETTINGS_INVALID"
