"""The transfer agent between real storage elements and a real catalogue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.transfers import FAST, Desk
from support.waiting import until

from agents.catalog import client as catalog
from agents.myproxy.client import MyProxyClient
from agents.storage import client as storage
from agents.transfer.machine import Chosen, Copied, Registered
from agents.user_interface import console, transfers
from agents.user_interface.endpoints import ENDPOINTS_FILE
from agents.user_interface.exits import Ended
from fabric.errors import AlreadyExists, Exhausted, GridError, InvalidRequest, NotFound, Refused
from fabric.ids import unique_id
from fabric.rpc.delegation import delegate

RENEWING = {"renew_look_s": 0.05, "renew_retry_s": 0.1}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with LabGrid(tmp_path / "lab", vos=("cms", "atlas")) as lab:
        yield Desk(lab, tmp_path)


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_files_are_copied_verified_and_registered_once(desk: Desk) -> None:
    await desk.start()
    lfns = [await desk.put(f"f{number}") for number in range(5)]
    job_id = await desk.submit(lfns, "RAL")
    assert await (await desk.transfers()).submit(job_id, lfns, "RAL") == (5, [])  # again: nothing more
    files = await desk.ended(job_id)
    assert [file.state for file in files] == ["FINISHED"] * 5
    assert sorted(file.surl for file in files) == sorted(await desk.on("RAL"))
    for lfn, file in zip(lfns, files, strict=True):
        assert file.surl in await desk.replicas(lfn) and len(await desk.replicas(lfn)) == 2
        assert file.moved_bytes == file.size_bytes and file.attempt == 1

    again = await desk.ended(await desk.submit(lfns[:1], "storage.RAL"))
    assert [(file.state, file.reason) for file in again] == [("FINISHED", "ALREADY_THERE")]
    published = [entry.first("GlueServiceDataValue") for entry in desk.lab.agents["transfer.CERN"].agent.entries()]  # type: ignore[attr-defined]
    assert len(published) == 2 and "queued=0" in published[1] and "finished=5" in published[1]
    (channel,) = await (await desk.transfers()).channels()
    assert (channel.source, channel.destination, channel.finished) == ("storage.CERN", "storage.RAL", 5)
    rows = await (await desk.transfers()).report(0)
    assert {(row.state, row.reason): row.files for row in rows} == {
        ("FINISHED", ""): 5,
        ("FINISHED", "ALREADY_THERE"): 1,
    }
    assert {line["job_id"] for line in desk.lab.audit("transfer.CERN", "transfer.submitted")} >= {job_id}

    # two jobs for the same copy make one
    lfns = [await desk.put(f"t{number}") for number in range(3)]
    jobs = [await desk.submit(lfns, "RAL") for _ in range(3)]
    for job_id in jobs:
        assert {file.state for file in await desk.ended(job_id)} == {"FINISHED"}
    await desk.clean()
    assert len(await desk.on("RAL")) == 8
    assert [len(await desk.replicas(lfn)) for lfn in lfns] == [2, 2, 2]


async def test_the_command_follows_a_directory_to_its_end(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    await desk.start()
    for name in ("d/a", "d/e/b"):
        await desk.put(name)
    desk.alice.save(desk.folder / "proxy.pem")
    known = {"endpoints": desk.lab.settings("catalog.CERN")["endpoints"], "vos": ["cms"]}
    (desk.folder / ENDPOINTS_FILE).write_text(json.dumps(known))
    environ = {
        "X509_USER_PROXY": str(desk.folder / "proxy.pem"),
        "X509_CERT_DIR": str(desk.lab.certificates),
        "GRIDFABRIC_ENDPOINTS": str(desk.folder / ENDPOINTS_FILE),
    }

    async def call(command: Any, *arguments: Any, **options: Any) -> Any:
        capsys.readouterr()
        await command(*arguments, as_json=True, environ=environ, **options)
        return json.loads(capsys.readouterr().out)

    console.mode.as_json = True
    try:
        made = await call(transfers.submit_command, ["lfn:/grid/cms/d"], "RAL", "", 0, wait=True)
        assert (made["accepted"], made["refused"]) == (2, [])
        own: dict[str, Any] = {"operator": False, "state": None}
        shown = await call(transfers.status_command, made["id"], wait=True, **own)
        assert shown["files"] == {"FINISHED": 2} and shown["moved_bytes"] == shown["size_bytes"]
        assert [file["lfn"] for file in shown["list"]] == ["lfn:/grid/cms/d/a", "lfn:/grid/cms/d/e/b"]
        assert [job["id"] for job in await call(transfers.status_command, None, wait=False, **own)] == [made["id"]]
        assert (await call(transfers.report_command, 3600.0, **own))[0]["files"] == 2
        assert (await call(transfers.channels_command, **own))[0]["finished"] == 2
        assert (await call(transfers.cancel_command, [made["id"]], **own))[0]["canceled"] == 0
        kept = await call(transfers.subscribe_command, "lfn:/grid/cms/d/", "RAL", 1)
        (shown,) = await call(transfers.subscriptions_command, **own)
        assert (shown["id"], shown["directory"], shown["copies"]) == (kept["id"], "/grid/cms/d", 1)
        await call(transfers.unsubscribe_command, [kept["id"]], **own)
        assert await call(transfers.subscriptions_command, **own) == []
        with pytest.raises(Ended):
            await call(transfers.cancel_command, [unique_id()], **own)
        with pytest.raises(NotFound):
            await call(transfers.submit_command, ["lfn:/grid/cms/none"], "RAL", "", 0, wait=True)
    finally:
        console.mode.as_json = False


async def test_what_is_wrong_is_said_for_each_file_and_to_whom_it_belongs(desk: Desk) -> None:
    await desk.start(max_attempts=3)
    lfn = await desk.put("w")
    transfers = await desk.transfers()
    names = await desk.lab.channel("catalog", credential=desk.alice)
    await catalog.make_directory(names, "/grid/cms/d")
    accepted, wrong = await transfers.submit(unique_id(), [lfn, "lfn:/grid/cms/none"], "RAL")
    assert (accepted, [one.reason for one in wrong]) == (1, ["LFN_NOT_FOUND"])
    accepted, wrong = await transfers.submit(unique_id(), [lfn], "RAL", source="CNAF")
    assert accepted == 0 and wrong[0].reason in ("NO_REPLICA",)
    await refused(NotFound, "SE_UNKNOWN", transfers.submit(unique_id(), [lfn], "MARS"))
    await refused(InvalidRequest, "JOB_ID_INVALID", transfers.submit("x", [lfn], "RAL"))
    await refused(InvalidRequest, "PRIORITY_INVALID", transfers.submit(unique_id(), [lfn], "RAL", priority=11))
    await refused(Refused, "OTHER_VO", transfers.submit(unique_id(), ["lfn:/grid/atlas/x"], "RAL"))

    job_id = await desk.submit([lfn], "CNAF")
    bob = await desk.transfers(desk.lab.user("bob"))
    await refused(NotFound, "DELEGATION_MISSING", bob.submit(unique_id(), [lfn], "RAL"))
    await delegate(await desk.lab.channel("transfer", credential=desk.lab.user("bob")), desk.lab.user("bob"))
    await refused(AlreadyExists, "JOB_ID_TAKEN", bob.submit(job_id, [lfn], "CNAF"))
    await refused(NotFound, "JOB_UNKNOWN", bob.job(job_id))
    await refused(NotFound, "JOB_UNKNOWN", bob.cancel(job_id))
    assert await bob.jobs() == [] and await bob.report(0) == []
    operator = await desk.transfers(desk.lab.operator())
    assert job_id in [job.job_id for job in await operator.jobs()]
    await refused(Refused, "USER_REQUIRED", operator.submit(unique_id(), [lfn], "RAL"))


async def test_another_replica_is_read_where_one_is_gone_and_without_any_nothing_is_left(desk: Desk) -> None:
    await desk.start(max_attempts=3)
    lfn = await desk.put("f")
    assert (await desk.ended(await desk.submit([lfn], "RAL")))[0].state == "FINISHED"
    (first,) = await desk.on("CERN")
    await storage.remove(await desk.element("CERN"), first)  # the catalogue does not know
    (file,) = await desk.ended(await desk.submit([lfn], "CNAF"))
    assert file.state == "FINISHED" and file.source == "storage.RAL"

    lfn = await desk.put("n")
    (surl,) = await desk.on("CERN")
    await storage.remove(await desk.element("CERN"), surl)
    (file,) = await desk.ended(await desk.submit([lfn], "RAL"))
    assert (file.state, file.reason, file.attempt) == ("FAILED", "FILE_NOT_FOUND", 3)
    await desk.clean()
    assert len(await desk.on("RAL")) == 1 and await desk.replicas(lfn) == [surl]


async def test_of_small_files_that_go_together_each_has_an_end_of_its_own(desk: Desk) -> None:
    await desk.start(max_attempts=2, max_per_link=1)
    lfns = [await desk.put(f"f{number}") for number in range(8)]
    await desk.ended(await desk.submit(lfns[:1], "CNAF"))
    for lost in [(await desk.replicas(lfn))[0] for lfn in lfns[:2]]:
        await storage.remove(await desk.element("CERN"), lost)  # the catalogue does not know
    effects, batches, go_on = desk.core()._effects, list[int](), asyncio.Event()
    copy = effects.copy_together

    async def copy_later(prepared: Any, files: Any, *more: Any) -> Any:
        batches.append(len(files))
        await go_on.wait()
        return await copy(prepared, files, *more)

    effects.copy_together = copy_later

    async def two_jobs(first: list[str], second: list[str], under_way: int) -> tuple[str, str]:
        """While the only place of the link is taken, so that they go together."""
        go_on.clear()
        await desk.submit([await desk.put(f"first{len(batches)}")], "RAL")
        await until(lambda: len(batches) == under_way, "a place that is taken")
        return await desk.submit(first, "RAL", source="CERN"), await desk.submit(second, "RAL", source="CERN")

    one, other = await two_jobs(lfns[:5], lfns[5:], 1)
    go_on.set()
    files = await desk.ended(one)
    assert [(file.state, file.reason) for file in files] == [("FAILED", "FILE_NOT_FOUND")] * 2 + [("FINISHED", "")] * 3
    assert {(file.state, file.attempt) for file in await desk.ended(other)} == {("FINISHED", 1)}
    assert batches[:2] == [1, 8]
    (file,) = await desk.ended(await desk.submit(lfns[:1], "RAL"))
    assert (file.state, file.source) == ("FINISHED", "storage.CNAF")

    # one job is cancelled while files of both are under way
    lfns = [await desk.put(f"g{number}") for number in range(4)]
    one, other = await two_jobs(lfns[:2], lfns[2:], len(batches) + 1)
    under_way = asyncio.Event()

    async def copy_never(prepared: Any, files: Any, *more: Any) -> Any:
        effects.copy_together = copy
        assert len(files) == 4
        under_way.set()
        return await asyncio.Event().wait()

    effects.copy_together = copy_never
    go_on.set()
    async with asyncio.timeout(60):
        await under_way.wait()
    assert await (await desk.transfers()).cancel(one) == 2
    assert {file.state for file in await desk.ended(one)} == {"CANCELED"}
    assert {(file.state, file.attempt) for file in await desk.ended(other)} == {("FINISHED", 1)}
    await desk.clean()
    assert [len(await desk.replicas(lfn)) for lfn in lfns] == [1, 1, 2, 2]


async def test_cancelled_in_the_middle_nothing_stays(desk: Desk) -> None:
    await desk.start(caps_mb_per_s={"CERN > *": 0.3}, max_queued_per_owner=4)
    lfn = await desk.put("large", data=bytes(12 << 20))
    rest = [await desk.put(f"f{number}") for number in range(3)]
    job_id = await desk.submit([lfn, *rest], "RAL", priority=1)

    async def moving() -> bool:
        return any(file.moved_bytes > 0 and file.state == "ACTIVE" for file in await desk.files(job_id))

    await until(moving, "the first bytes")
    assert (await refused(Exhausted, "QUEUE_FULL", (await desk.transfers()).submit(unique_id(), rest, "CNAF"))).facts
    await (await desk.transfers()).cancel(job_id)
    files = await desk.ended(job_id)
    assert files[0].state == "CANCELED"
    await desk.clean()
    whole = sorted(file.surl for file in files if file.state == "FINISHED")
    assert sorted(await desk.on("RAL")) == whole
    assert await (await desk.transfers()).cancel(job_id) == 0

    # who is banned has no transfers any more
    job_id = await desk.submit([await desk.put("large2", data=bytes(12 << 20)), await desk.put("b")], "RAL")
    delegations = desk.core()._context.delegations
    assert delegations.jobs_of(str(desk.alice.identity)) == [job_id]
    assert await delegations.stop_jobs(str(desk.alice.identity), "BANNED", "banned by CERN") == 2
    assert {(file.state, file.reason) for file in await desk.ended(job_id)} == {("CANCELED", "BANNED")}
    await desk.clean()
    assert sorted(await desk.on("RAL")) == whole


async def test_killed_at_any_write_there_is_one_copy_and_it_is_registered(desk: Desk) -> None:
    await desk.start()
    # without a proxy files wait, and with another one they go on
    owner = str(desk.alice.identity)
    held = asyncio.Event()
    prepare = desk.core()._effects.prepare

    async def once_without(who: str, names: list[str]) -> Any:
        if not held.is_set():
            desk.core()._context.delegations.destroy(owner, "default")
            held.set()
        return await prepare(who, names)

    desk.core()._effects.prepare = once_without
    lfn = await desk.put("p")
    job_id = await desk.submit([lfn], "RAL")
    await until(lambda: desk.core()._held, "a file that waits for a proxy")
    (file,) = await desk.files(job_id)
    assert (file.state, file.reason, file.attempt) == ("SUBMITTED", "DELEGATION_MISSING", 1)
    await refused(NotFound, "DELEGATION_MISSING", (await desk.transfers()).submit(unique_id(), [lfn], "CNAF"))
    await delegate(await desk.lab.channel("transfer", credential=desk.alice), desk.alice)
    assert [file.state for file in await desk.ended(job_id)] == ["FINISHED"]

    for kind in (Chosen, Copied, Registered):
        for kept in (False, True):
            lfn = await desk.put(f"{kind.__name__}-{kept}")
            reached = desk.stop_at(kind, kept)
            job_id = await desk.submit([lfn], "RAL")
            async with asyncio.timeout(60):
                await reached.wait()
            await desk.lab.stop("transfer.CERN")
            await desk.lab.start("transfer", options=FAST)
            (file,) = await desk.ended(job_id)
            assert (file.state, file.attempt) == ("FINISHED", 1)
            assert (await desk.replicas(lfn))[1:] == [file.surl]
    assert len(await desk.on("RAL")) == 7

    # killed before a copy was removed, it is removed later
    lfn = await desk.put("c")
    reached = desk.stop_at(Copied, kept=False)
    job_id = await desk.submit([lfn], "RAL")
    async with asyncio.timeout(60):
        await reached.wait()
    assert len(await desk.on("RAL")) == 8
    desk.core()._effects.take_back = lambda job, put_id: asyncio.Event().wait()
    assert await (await desk.transfers()).cancel(job_id) == 1
    await desk.lab.stop("transfer.CERN")
    await desk.lab.start("transfer", options=FAST)
    assert [file.state for file in await desk.files(job_id)] == ["CANCELED"]
    await until(lambda: gone(desk, 7), "the removal")
    assert len(await desk.replicas(lfn)) == 1


async def test_a_restart_goes_on_with_what_was_there(desk: Desk) -> None:
    await desk.start(caps_mb_per_s={"CERN > *": 4})
    lfn = await desk.put("large", data=bytes(20 << 20))
    rest = [await desk.put(f"f{number}") for number in range(3)]
    job_id = await desk.submit([lfn, *rest], "RAL")

    async def moving() -> bool:
        return any(file.moved_bytes > 4 << 20 for file in await desk.files(job_id))

    await until(moving, "the first bytes")
    await desk.lab.stop("transfer.CERN")
    await desk.lab.stop("storage.RAL")
    (beginning,) = (desk.lab.directory / "agents" / "storage.RAL" / "pool" / "partial").iterdir()
    size_bytes = beginning.stat().st_size
    await desk.lab.start("transfer", options=FAST)
    await desk.lab.start("storage", site="RAL", options={"reserve_bytes": 0})
    files = await desk.ended(job_id)
    assert {file.state for file in files} == {"FINISHED"}
    assert sorted(await desk.on("RAL")) == sorted(file.surl for file in files)
    assert [len(await desk.replicas(name)) for name in (lfn, *rest)] == [2] * 4
    read = [line["size_bytes"] for line in desk.lab.audit("storage.CERN", "storage.get") if "size_bytes" in line]
    assert size_bytes > 0 and read[-1] == (20 << 20) - size_bytes  # only what was not there


async def test_what_is_subscribed_gets_its_copies_now_and_later(desk: Desk) -> None:
    desk.lab.plan("myproxy")
    await desk.start(**RENEWING)
    first = await desk.put("s/old")
    other = await desk.put("other")
    transfers, key = await desk.transfers(), unique_id()
    for directory, at, copies in (("/grid/cms/s", "RAL", 2), ("/grid/cms/s", "", 1), ("/grid/cms/s", "!RAL", 1)):
        await refused(InvalidRequest, "SUBSCRIPTION_INVALID", transfers.subscribe(key, directory, at, copies))
    await refused(NotFound, "DIRECTORY_NOT_FOUND", transfers.subscribe(key, "/grid/cms/none", "*", 1))
    await refused(Refused, "OTHER_VO", transfers.subscribe(key, "/grid/atlas", "*", 1))
    for _ in range(2):
        await transfers.subscribe(key, "/grid/cms/s", "*,!CERN", 2)
    await refused(AlreadyExists, "SUBSCRIPTION_ID_TAKEN", transfers.subscribe(key, "/grid/cms/s", "*", 1))

    async def complete(lfn: str, copies: int = 3) -> bool:
        return len(await desk.replicas(lfn)) == copies

    await until(lambda: complete(first), "copies of what was there")
    second = await desk.put("s/deep/new", site="RAL")
    await until(lambda: complete(second, 2), "copies of what is new")
    (lost,) = [surl for surl in await desk.replicas(second) if surl in await desk.on("CNAF")]
    await storage.remove(await desk.element("CNAF"), lost)
    names = await desk.lab.channel("catalog", credential=desk.alice)
    await catalog.remove_replica(names, second, lost)
    await until(lambda: complete(second, 2), "the copy that was lost")

    await desk.lab.stop("transfer.CERN")
    third = await desk.put("s/later")
    await desk.lab.start("transfer", options=FAST | RENEWING)
    await until(lambda: complete(third), "copies of what came while the agent was away")
    assert await complete(other, 1)

    async def caught_up() -> bool:
        (one,) = await (await desk.transfers()).subscriptions()
        return (one.files, one.queued, one.lag_s, one.cause) == (3, 0, 0.0, "")

    await until(caught_up, "no lag")
    await renewed_for_a_subscription(desk)
    desk.core()._context.delegations.destroy(str(desk.alice.identity), "default")
    await desk.lab.stop("catalog.CERN")  # what is open ends

    async def says_why() -> bool:
        (one,) = await (await desk.transfers()).subscriptions()
        return "has delegated nothing" in one.cause

    await until(says_why, "the cause of a lag")
    bob = await desk.transfers(desk.lab.user("bob"))
    await bob.unsubscribe(key)
    assert await bob.subscriptions() == [] and len(await (await desk.transfers()).subscriptions()) == 1
    for _ in range(2):
        await (await desk.transfers()).unsubscribe(key)
    assert await (await desk.transfers()).subscriptions() == []


async def renewed_for_a_subscription(desk: Desk) -> None:
    """Its owner's proxy is about to end: renewed, as soon as the credential store is there."""
    lab, owner = desk.lab, str(desk.alice.identity)
    renewals, delegations = lab.agents["transfer.CERN"].agent.renewals, desk.core()._context.delegations  # type: ignore[attr-defined]
    assert (renewals.renewed, renewals.failed) == (0, 0)  # there is time
    await delegate(await lab.channel("transfer", credential=desk.alice), desk.alice, lifetime=timedelta(minutes=3))
    await until(lambda: "cannot be reached" in renewals.failures.get(owner, ""), "a failed renewal")
    await lab.start("myproxy", options={"scrypt_log2_n": 10, "key_type": "ec-p256"})
    port = lab.port("myproxy.CERN", "myproxy")
    await MyProxyClient("localhost", port, lab._trust, lab.grid.policy, lab.clock, desk.alice).put(owner)
    await until(lambda: renewals.renewed, "a renewal")
    assert delegations.get(owner).not_after > lab.clock.now() + timedelta(hours=11)
    (line,) = lab.audit("transfer.CERN", "proxy.renewed")
    assert line["owner"] == owner and not renewals.failures
    lfn = await desk.put("s/renewed")

    async def copied() -> bool:
        return len(await desk.replicas(lfn)) == 3

    await until(copied, "copies with the renewed proxy")


async def gone(desk: Desk, left: int) -> bool:
    return len(await desk.on("RAL")) == left
