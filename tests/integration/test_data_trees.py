"""Whole directories into the grid and back: many small files at a time, each with its own verdict."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until

from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.user_interface import console, data, imports, reconciliation, trees, usage
from agents.user_interface.connection import open_for_user
from agents.user_interface.endpoints import ENDPOINTS_FILE
from agents.user_interface.exits import Ended, UsageProblem
from fabric.errors import GridError, Refused, Unavailable

LFN = "lfn:/grid/cms/user/run"
RANDOM = random.Random(7)


class Desk:
    """A user, a catalogue, two storage elements, and a directory of files."""

    def __init__(self, lab: LabGrid, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.lab, self.folder, self._capsys = lab, folder, capsys
        self.tree = folder / "run"
        self.environ = {
            "X509_USER_PROXY": str(folder / "proxy.pem"),
            "X509_CERT_DIR": str(lab.certificates),
            "GRIDFABRIC_ENDPOINTS": str(folder / ENDPOINTS_FILE),
        }

    def put_command(self, se: str = "CERN", lfn: str = LFN) -> Any:
        return trees.put_tree_command(self.tree, lfn, se, as_json=True, environ=self.environ)

    async def put(self, se: str = "CERN", lfn: str = LFN) -> dict[str, Any]:
        return await self.call(self.put_command(se, lfn))

    async def get(self, target: Path, **options: Any) -> dict[str, Any]:
        options = {"se": None, "force": False, **options}
        return await self.call(trees.get_tree_command(LFN, target, as_json=True, environ=self.environ, **options))

    async def call(self, command: Any) -> dict[str, Any]:
        self._capsys.readouterr()
        try:
            await command
        except Ended:
            pass
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    async def at(self, site: str) -> list[str]:
        channel = await self.lab.channel("storage", site=site, credential=self.lab.user("alice"))
        return [file.surl async for file in storage.list_files(channel, "cms")]


@pytest.fixture
async def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Desk]:
    async with LabGrid(tmp_path / "lab") as lab:
        lab.user("alice").save(tmp_path / "proxy.pem")
        for kind, site in (("catalog", "CERN"), ("storage", "CERN"), ("storage", "RAL")):
            lab.plan(kind, site=site)
        for kind, site in (("catalog", "CERN"), ("storage", "CERN"), ("storage", "RAL")):
            await lab.start(kind, site=site, options={"reserve_bytes": 0} if kind == "storage" else None)
        known = {"endpoints": lab.settings("catalog.CERN")["endpoints"], "vos": ["cms"]}
        (tmp_path / ENDPOINTS_FILE).write_text(json.dumps({**known, "certificates": str(lab.certificates)}))
        made = Desk(lab, tmp_path, capsys)
        (made.tree / "sub" / "deep").mkdir(parents=True)
        for number in range(260):
            (made.tree / f"f{number:03d}").write_bytes(RANDOM.randbytes(RANDOM.randrange(2600)))
        (made.tree / "sub" / "deep" / "größe").write_bytes(b"umlaut")
        (made.tree / "sub" / "large").write_bytes(RANDOM.randbytes(storage.SMALL_BYTES + 1))
        console.mode.as_json = True
        yield made
        console.mode.as_json = False


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_directory_put_twice_at_once_is_there_once_and_comes_back(desk: Desk) -> None:
    (desk.tree / "sub" / "large").rename(desk.folder / "large")
    twice = await asyncio.gather(*(desk.put_command() for _ in range(2)))
    assert twice == [None, None]
    assert len(await desk.at("CERN")) == 261
    (desk.folder / "large").rename(desk.tree / "sub" / "large")
    done = await desk.put()
    assert (done["done"], done["already"], done["failed"]) == (1, 261, 0)
    assert done["size_bytes"] == storage.SMALL_BYTES + 1
    back = desk.folder / "back"
    assert (await desk.get(back))["done"] == 262
    assert contents(back) == contents(desk.tree)
    again = await desk.put()
    assert (again["done"], again["already"], again["failed"]) == (0, 262, 0)
    (back / "f000").unlink()
    (back / "f001").write_bytes(b"mine")
    some = await desk.get(back)
    assert (some["done"], some["already"], some["failed"]) == (1, 260, 1)
    assert (back / "f001").read_bytes() == b"mine"
    assert some["failures"][0]["error"]["reason"] == "FILE_EXISTS"
    assert (await desk.get(back, force=True))["done"] == 1
    assert contents(back) == contents(desk.tree)
    assert len(await desk.at("CERN")) == 262
    await a_tree_is_copied_measured_and_removed(desk)


async def a_tree_is_copied_measured_and_removed(desk: Desk) -> None:
    options: dict[str, Any] = {"as_json": True, "environ": desk.environ}
    sub, size_bytes = f"{LFN}/sub", storage.SMALL_BYTES + 1 + len(b"umlaut")
    for expected in (2, 0):  # again: nothing is left to be done
        copied = await desk.call(data.replicate_command([sub], "RAL", recursive=True, **options))
        assert sum(row["copied"] for row in copied) == expected
    found = await desk.call(usage.tree_command(LFN, 1, **options))
    counts = {row["lfn"]: (row["files"], row["replicas"], row["without_replica"]) for row in found["directories"]}
    assert counts == {LFN: (262, 264, 0), sub: (2, 4, 0)}
    at = {row["site"]: (row["files"], row["size_bytes"]) for row in found["storage_elements"]}
    assert at["RAL"] == (2, size_bytes) and at["CERN"] == (262, found["directories"][0]["size_bytes"])
    deep = (await desk.call(usage.tree_command(LFN, 2, **options)))["directories"]
    assert [row["lfn"] for row in deep] == [LFN, sub, f"{sub}/deep"]

    removed = await desk.call(data.remove_command([sub], "RAL", recursive=True, **options))
    assert len(removed) == 2 and await desk.at("RAL") == []
    assert len(await desk.call(data.remove_command([f"{sub}/"], None, recursive=True, **options))) == 4
    assert len(await desk.at("CERN")) == 260
    gone = await desk.call(data.remove_command([sub, f"{LFN}/f000"], None, recursive=True, **options))
    assert [("error" in row, row["lfn"]) for row in gone] == [(True, sub), (False, f"{LFN}/f000")]
    with pytest.raises(UsageProblem, match="all that a VO keeps"):
        await data.remove_command(["lfn:/grid/cms"], None, recursive=True, **options)


async def test_a_dump_is_imported_and_again(desk: Desk) -> None:
    def line(number: int, **change: Any) -> dict[str, Any]:
        surls = [f"srm://{host}:1/cms/{number}" for host in ("cern", "ral")]
        guid = f"{number:08x}-0000-4000-8000-000000000000"
        sums = {"adler32": "0a0b0c0d", "sha256": "ab" * 32}
        return {"lfn": f"{LFN}/d{number}", "guid": guid, "size": number, "surls": surls, **sums, **change}

    async def run(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        dump = desk.folder / name
        dump.write_text("".join(json.dumps(one) + "\n" for one in lines))
        return await desk.call(imports.import_command(dump, as_json=True, environ=desk.environ))

    good = [line(number) for number in range(1100)]
    assert (await run("half", good[:500]))["done"] == 500
    bad = [
        line(2000, lfn="/grid/atlas/x"), line(2001, surls=good[3]["surls"]), line(2002, adler32="?"),
        line(7, size=8), line(2003, guid="", lfn=good[1]["lfn"]),
    ]  # fmt: skip
    for _ in range(2):
        report = await run("all", [*good, *bad, line(3000, guid="", surls=[])])
        reasons = {row["name"]: row["error"]["reason"] for row in report["failures"]}
        assert (report["done"], report["failed"], report["size_bytes"]) == (1101, 5, sum(range(1100)) + 3000)
        expected = ["OTHER_VO", "SURL_TAKEN", "CHECKSUM_INVALID", "CONTENT_DIFFERS", "LFN_TAKEN"]
        assert reasons == {f"line {1101 + number}": reason for number, reason in enumerate(expected)}
    options: dict[str, Any] = {"as_json": True, "environ": desk.environ}
    for name, surls in ((good[1099]["lfn"], good[1099]["surls"]), (f"{LFN}/d3000", [])):
        (found,) = await desk.call(data.locate_command([name], **options))  # type: ignore[misc]
        assert [replica["surl"] for replica in found["replicas"]] == surls  # type: ignore[index]
    await desk.lab.stop("catalog.CERN")
    with pytest.raises(Unavailable):
        await imports.import_command(desk.folder / "all", **options)


async def test_a_directory_is_replicated_in_batches_and_again_after_registrations_were_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.put()
    async with open_for_user(desk.environ) as grid:
        ral = await data.find_element(grid, "RAL")
        names = await grid.channel("catalog")

        async def files() -> list[catalog.Entry]:
            listed = [entry.lfn async for entry in catalog.list_directory(names, LFN) if not entry.is_directory]
            return await data.lookup(grid, [f"lfn:{lfn}" for lfn in [*listed[:40], f"{LFN[4:]}/sub/large"]])

        async def away(*_: object) -> None:
            raise Unavailable("SERVER_UNREACHABLE", "the catalogue is away")

        with monkeypatch.context() as patch:
            patch.setattr(catalog, "add_replica_many", away)
            patch.setattr(catalog, "add_replica", away)
            assert len(await data.replicate_all(grid, await files(), ral)) == 41
        copied: dict[str, str | None] = {}
        assert (
            await data.replicate_all(grid, await files(), ral, lambda file, surl: copied.update({file.lfn: surl})) == []
        )
        assert sorted(map(str, copied.values())) == sorted(await desk.at("RAL"))
        assert {len(file.replicas) for file in await files()} == {2}
        again: list[str | None] = []
        assert await data.replicate_all(grid, await files(), ral, lambda file, surl: again.append(surl)) == []
        assert again == [None] * 41


async def test_each_file_that_cannot_be_put_is_named_and_the_others_go(desk: Desk) -> None:
    (desk.tree / "bad\x07name").write_bytes(b"x")
    os.mkfifo(desk.tree / "fifo")
    (desk.tree / "away").symlink_to("nowhere")
    names = await desk.lab.channel("catalog", credential=desk.lab.user("alice"))
    content = catalog.Content(5, "0" * 8, "0" * 64)
    await catalog.register(names, f"{LFN}/f007", catalog.new_guid(), content)
    await catalog.register(names, f"{LFN}/sub/deep", catalog.new_guid(), content)
    done = await desk.put()
    assert (done["done"], done["failed"]) == (260, 5)
    assert sorted((Path(one["name"]).name, one["error"]["reason"]) for one in done["failures"]) == [
        ("away", "SYSTEM"), ("bad\x07name", "LFN_INVALID"), ("f007", "LFN_EXISTS"), ("fifo", "USAGE"),
        ("größe", "LFN_TAKEN"),
    ]  # fmt: skip
    assert len(await desk.at("CERN")) == 260


async def test_what_was_stored_before_is_found_again_and_what_is_gone_is_read_elsewhere(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = catalog.register_many, 0

    async def away(channel: Any, files: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Unavailable("SERVER_UNREACHABLE", "the catalogue cannot be reached; try again when it is up")
        return await real(channel, files)

    monkeypatch.setattr(catalog, "register_many", away)
    with pytest.raises(Unavailable):
        await desk.put()
    stored = await desk.at("CERN")
    assert stored
    done = await desk.put()
    assert done["failed"] == 0
    assert done["done"] + done["already"] == 262
    at_last = await desk.at("CERN")
    assert len(at_last) == 262
    assert set(stored) <= set(at_last)

    await desk.put(se="RAL", lfn=f"{LFN}2")
    alice = desk.lab.user("alice")
    names = await desk.lab.channel("catalog", credential=alice)
    channel = await desk.lab.channel("storage", credential=alice)
    for name in ("f001", "f002"):
        here, there = [(await catalog.replicas(names, f"{lfn}/{name}")) for lfn in (LFN, f"{LFN}2")]
        surl = there.replicas[0].surl
        await catalog.remove(names, f"{LFN}2/{name}", force=True)
        await catalog.add_replica(names, f"{LFN}/{name}", surl, here.content.size_bytes, here.content.adler32)  # type: ignore[union-attr]
        await storage.remove(channel, here.replicas[0].surl)
    back = desk.folder / "back"
    assert (await desk.get(back))["failed"] == 0
    assert contents(back) == contents(desk.tree)
    assert (await desk.get(desk.folder / "here", se="CERN"))["failed"] == 2


async def test_many_by_one_call_has_limits_and_asks_who_it_is(desk: Desk) -> None:
    alice, bob = desk.lab.user("alice"), desk.lab.user("bob", vo="atlas")
    small = storage.SmallFile(b"x", storage.checksums_of(b"x"), "p")
    channel = await desk.lab.channel("storage", credential=alice)
    for files in ([], [small] * (storage.MAX_TOGETHER + 1)):
        with pytest.raises(GridError) as refused:
            await storage.put_small(channel, files, "cms")
        assert refused.value.reason == "TOO_MANY_FILES"
    (large,) = await storage.put_small(channel, [storage.SmallFile(bytes(2 << 20), small.checksums, "q")], "cms")
    assert isinstance(large, GridError)
    assert large.reason == "FILE_LARGE"
    (kept,) = await storage.put_small(channel, [small], "cms")
    assert isinstance(kept, storage.Stored)
    theirs = await desk.lab.channel("storage", credential=bob)
    with pytest.raises(Refused):
        await storage.put_small(theirs, [small], "cms")
    with pytest.raises(Refused):
        await storage.get_small(theirs, [kept.surl])
    (gone,) = await storage.get_small(channel, [kept.surl[:-1] + ("0" if kept.surl[-1] != "0" else "1")])
    assert isinstance(gone, GridError)
    names = await desk.lab.channel("catalog", credential=bob)
    (error,) = await catalog.register_many(
        names,
        [catalog.NewFile("lfn:/grid/cms/x", catalog.new_guid(), catalog.Content(1, "0" * 8, "0" * 64), kept.surl)],
    )
    assert isinstance(error, Refused)
    with pytest.raises(UsageProblem):
        await trees.put_tree_command(desk.tree / "f000", LFN, None, as_json=True, environ=desk.environ)


async def test_dark_and_lost_files_are_told_and_repaired(desk: Desk) -> None:
    for path in desk.tree.glob("f*[1-9]"):
        path.unlink()
    await desk.put()
    await desk.put(se="RAL", lfn=f"{LFN}2")
    alice = desk.lab.user("alice")
    names = await desk.lab.channel("catalog", credential=alice)
    here = await desk.lab.channel("storage", credential=alice)
    file, other, third = [(await catalog.replicas(names, f"{LFN}/{name}")) for name in ("f000", "f010", "f020")]
    twin = await catalog.replicas(names, f"{LFN}2/f000")
    assert file.content is not None
    await catalog.remove(names, f"{LFN}2/f000", force=True)
    await catalog.add_replica(
        names, f"{LFN}/f000", twin.replicas[0].surl, file.content.size_bytes, file.content.adler32
    )
    for gone in (file, other):
        await storage.remove(here, gone.replicas[0].surl)
    await catalog.remove(names, f"{LFN}/f020", force=True)

    async def audit(dark: str, lost: str, grace: str = "1s") -> dict[str, Any]:
        return await desk.call(
            reconciliation.audit_command(
                "CERN", dark, lost, grace, None, as_json=True, environ=desk.environ, settle_s=0
            )
        )

    young = await audit("remove", "report", "1h")
    assert (young["dark"], young["lost"], young["left"]) == (0, 2, 2)
    dark_one = next(f for f in [await storage.stat(here, third.replicas[0].surl)])
    await until_older(dark_one.created_at_us)
    found = await audit("report", "report")
    assert sorted((row["kind"], row["surl"]) for row in found["differences"]) == sorted(
        [("dark", third.replicas[0].surl), *(("lost", gone.replicas[0].surl) for gone in (file, other))]
    )
    mended = await audit("register", "replicate")
    assert (mended["dark"], mended["lost"], mended["repaired"], mended["left"]) == (1, 2, 2, 1)
    assert [row["error"]["reason"] for row in mended["differences"] if "error" in row] == ["NO_REPLICA"]
    file_id = storage.parse_surl(third.replicas[0].surl).file_id
    assert (await catalog.replicas(names, f"lfn:/grid/cms/lost+found/{file_id}")).replicas[0].surl == dark_one.surl
    assert len((await catalog.replicas(names, f"{LFN}/f000")).replicas) == 2
    assert (await audit("report", "unlist"))["left"] == 0
    assert (await catalog.replicas(names, f"{LFN}/f010")).replicas == ()
    await catalog.remove(names, f"lfn:/grid/cms/lost+found/{file_id}", force=True)
    assert (await audit("remove", "report"))["repaired"] == 1
    assert not await storage.exists(here, dark_one.surl)
    bob = await desk.lab.channel("catalog", credential=desk.lab.user("bob", vo="atlas"))
    with pytest.raises(Refused):
        await catalog.replicas_at(bob, "localhost:1", "cms")


async def until_older(created_at_us: int) -> None:
    """Until the file is older than a second."""
    await until(lambda: time.time() * 1e6 > created_at_us + 1.1e6, "the file to be a second old")
