"""Damaged files get the bytes of another replica without a user; nobody reads anything else that way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until

from agents.catalog import client as catalog
from agents.storage import client
from agents.storage import reconciler as reconciler_module
from agents.storage.model import Checksums
from agents.storage.reconciler import YOUNG_S
from fabric.clock import ManualClock
from fabric.errors import DataCorrupted, GridError, InvalidRequest, NotFound, Refused, Unavailable
from fabric.rpc.delegation import delegate

DATA = bytes(range(256)) * 5000
LFN = "/grid/cms/run"


class Desk:
    """Two storage elements that keep a file of alice, and their catalogue."""

    def __init__(self, lab: LabGrid, folder: Path) -> None:
        self.lab, self.folder, self.alice = lab, folder, lab.user("alice")

    async def start(self, *names: str) -> None:
        for name in names:
            kind, site = name.split(".")
            await self.lab.start(kind, site=site, options={"reserve_bytes": 0} if kind == "storage" else None)

    async def element(self, site: str, credential: Any = None) -> Any:
        return await self.lab.channel("storage", site=site, credential=credential or self.alice)

    async def put(self, name: str, site: str = "CERN", data: bytes = DATA) -> client.Stored:
        path = self.folder / name
        path.write_bytes(data)
        return await client.put_file(await self.element(site), path, "cms")

    async def keep_two(self) -> tuple[client.Stored, client.Stored]:
        """A file at CERN and its replica at RAL, listed."""
        cern, ral = await self.put("file"), await self.element("RAL")
        await delegate(ral, self.alice)
        copy = await client.copy(ral, cern.surl, "cms")
        names = await self.lab.channel("catalog", credential=self.alice)
        content = catalog.Content(cern.size_bytes, cern.checksums.adler32, cern.checksums.sha256)
        await catalog.register(names, LFN, catalog.new_guid(), content, surl=cern.surl)
        await catalog.add_replica(names, LFN, copy.surl, copy.size_bytes, copy.checksums.adler32)
        return cern, copy

    def agent(self, site: str) -> Any:
        return self.lab.agents[f"storage.{site}"].agent

    async def damage(self, site: str, surl: str) -> None:
        """Its bytes rot, and the scrubber sees it."""
        element, parsed = self.agent(site).element, client.parse_surl(surl)
        file = await element.get(parsed.file_id, parsed.vo)
        path = Path(file.pool) / "data" / file.disk_id[:2] / file.disk_id[2:4] / file.disk_id
        path.write_bytes(DATA[:-1] + b"\0")
        await element.mark(file, "FILE_DAMAGED")

    async def state(self, site: str, surl: str) -> str:
        return (await client.stat(await self.element(site), surl)).damage

    async def read(self, site: str, surl: str) -> bytes:
        return await client.read_range(await self.element(site), surl)

    async def try_again(self, site: str) -> None:
        """As after the pause between two attempts."""
        self.agent(site).repairer._not_before.clear()
        await self.agent(site).repairer.round()


class Settable(ManualClock):
    """An operator's clock."""

    def set(self, days: float) -> None:
        self._now += timedelta(days=days)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with LabGrid(tmp_path / "lab", vos=("cms", "atlas")) as lab:
        made = Desk(lab, tmp_path)
        lab.user("bob", vo="atlas")
        for name in ("catalog.CERN", "storage.CERN", "storage.RAL", "storage.CNAF"):
            lab.plan(name.split(".")[0], site=name.split(".")[1])
        await made.start("catalog.CERN", "storage.CERN", "storage.RAL")
        yield made


def content_of(stored: client.Stored) -> catalog.Content:
    return catalog.Content(stored.size_bytes, stored.checksums.adler32, stored.checksums.sha256)


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_damage_is_repaired_from_the_other_element_without_a_user(desk: Desk) -> None:
    cern, ral = await desk.keep_two()
    await desk.damage("CERN", cern.surl)

    async def intact() -> bool:
        return await desk.state("CERN", cern.surl) == ""

    await until(intact, "the repair")
    assert await desk.read("CERN", cern.surl) == DATA
    (repaired,) = await until(lambda: desk.lab.audit("storage.CERN", "storage.repaired"), "its line in the trail")
    assert (repaired["surl"], repaired["source"]) == (cern.surl, ral.surl)
    (given,) = await until(lambda: desk.lab.audit("storage.RAL", "storage.get"), "the other one's line")
    assert given["peer"].endswith("CN=storage/storage.CERN") and given["target"] == cern.surl
    assert desk.agent("CERN").repairer.repaired == 1


async def test_what_cannot_be_repaired_yet_is_not_served_and_not_given_up(desk: Desk) -> None:
    cern, _ = await desk.keep_two()
    await desk.lab.stop("storage.RAL")
    await desk.damage("CERN", cern.surl)
    await desk.try_again("CERN")
    assert await desk.state("CERN", cern.surl) == "FILE_DAMAGED"
    await refused(DataCorrupted, "FILE_DAMAGED", desk.read("CERN", cern.surl))
    await desk.lab.stop("catalog.CERN")
    await desk.start("storage.RAL")
    await desk.try_again("CERN")
    assert await desk.state("CERN", cern.surl) == "FILE_DAMAGED"
    assert desk.lab.audit("storage.CERN", "storage.file_lost") == []
    await desk.start("catalog.CERN")

    async def mended() -> bool:
        await desk.try_again("CERN")
        return await desk.state("CERN", cern.surl) == ""

    await until(mended, "the repair")
    assert await desk.read("CERN", cern.surl) == DATA


async def test_a_file_without_a_good_replica_is_lost_and_told_once(desk: Desk) -> None:
    cern, ral = await desk.keep_two()
    ring = [desk.agent(site).element.damage_found for site in ("CERN", "RAL")]
    for bell in ring:
        bell.ring = lambda: None  # nobody looks before both are bad
    await desk.damage("CERN", cern.surl)
    await desk.damage("RAL", ral.surl)
    for _ in range(2):
        await desk.try_again("CERN")
    assert await desk.state("CERN", cern.surl) == "FILE_LOST"
    assert len(desk.lab.audit("storage.CERN", "storage.file_lost")) == 1
    await refused(DataCorrupted, "FILE_LOST", desk.read("CERN", cern.surl))
    await desk.agent("CERN").scrubber.round()
    assert await desk.state("CERN", cern.surl) == "FILE_LOST"


async def test_an_element_reads_nothing_that_it_does_not_keep(desk: Desk) -> None:
    cern, ral = await desk.keep_two()
    alone = await desk.put("alone", data=b"alone")
    at_ral = await desk.put("unlisted", "RAL")
    names = await desk.lab.channel("catalog", credential=desk.alice)
    short = catalog.Content(alone.size_bytes, alone.checksums.adler32, alone.checksums.sha256)
    await catalog.register(names, f"{LFN}-alone", catalog.new_guid(), short, surl=alone.surl)
    lab = desk.lab

    async def get(credential: Any, surl: str, repairs: str, expected: Checksums | None = cern.checksums) -> bytes:
        channel = await desk.element("CERN", credential)
        async with client.open_file(channel, surl, repairs=repairs, expected=expected) as opened:
            return b"".join([bytes(piece) async for piece in opened.pieces()])

    ral_host, other = lab.service("storage", site="RAL"), lab.service("storage", site="CNAF")
    assert await get(ral_host, cern.surl, ral.surl) == DATA
    for credential, surl, repairs in (
        (other, cern.surl, ral.surl),  # another element's replica
        (other, cern.surl, cern.surl),
        (ral_host, cern.surl, cern.surl),
        (ral_host, cern.surl, at_ral.surl),  # the same bytes, but not listed
        (ral_host, alone.surl, ral.surl),  # listed, for another file
        (ral_host, cern.surl, ral.surl.replace("/cms/", "/atlas/")),
        (ral_host, cern.surl[:-4] + "ffff", ral.surl),  # not even whether it is there
        (lab.service("storage", "storage.NEW", "RAL"), cern.surl, ral.surl),
    ):
        await refused(Refused, "REPLICA_UNPROVEN", get(credential, surl, repairs))
    await refused(DataCorrupted, "SOURCE_DIFFERS", get(ral_host, cern.surl, ral.surl, alone.checksums))
    await refused(InvalidRequest, "CHECKSUM_INVALID", get(ral_host, cern.surl, ral.surl, None))
    await refused(InvalidRequest, "SURL_INVALID", get(ral_host, cern.surl, "/etc/passwd"))
    await refused(NotFound, "SURL_ELSEWHERE", get(ral_host, ral.surl, ral.surl))
    await refused(Refused, "USER_REQUIRED", get(ral_host, cern.surl, ""))
    for kind in ("broker", "gatekeeper", "catalog"):
        await refused(Refused, "USER_REQUIRED", get(lab.service(kind, site="RAL"), cern.surl, ral.surl))
    await refused(Refused, "OTHER_VO", get(lab.user("bob", vo="atlas"), cern.surl, ral.surl))

    asked = await lab.channel("catalog", credential=ral_host)
    assert len((await catalog.lookup(asked, [ral.surl]))[0]) == 1
    guid = f"guid:{(await catalog.replicas(names, LFN)).guid}"
    for wanted in ([cern.surl], [ral.surl, alone.surl], [LFN], [guid]):
        await refused(Refused, "ELSEWHERE", catalog.lookup(asked, wanted))
    stranger = await lab.channel("catalog", credential=lab.service("storage", "storage.NEW", "RAL"))
    await refused(Refused, "ELSEWHERE", catalog.lookup(stranger, [ral.surl]))

    await lab.stop("catalog.CERN")
    await refused(Refused, "REPLICA_UNPROVEN", get(ral_host, cern.surl, ral.surl))
    given = await until(lambda: len(found := lab.audit("storage.CERN", "storage.get")) > 1 and found, "both lines")
    assert len(given) == 2  # the copy to RAL, and the one that was proven


async def test_the_element_finds_what_only_one_of_the_two_has_and_removes_nothing_before_its_time(desk: Desk) -> None:
    cern, _ = await desk.keep_two()
    dark, back, other = [await desk.put(name, data=name.encode()) for name in ("dark", "back", "other")]
    lost = await desk.put("lost", data=b"lost")
    names = await desk.lab.channel("catalog", credential=desk.alice)
    await catalog.register(names, f"{LFN}-lost", catalog.new_guid(), content_of(lost), surl=lost.surl)
    element, reconciler = desk.agent("CERN").element, desk.agent("CERN").reconciler
    await element._files.remove(client.parse_surl(lost.surl).file_id)
    operator = await desk.element("CERN", desk.lab.operator())
    clock = reconciler._clock = Settable(datetime.now(UTC))

    async def no_pause(seconds: float) -> None: ...

    async def found() -> set[tuple[str, str]]:
        await reconciler.round()
        return {(stray.kind, stray.surl) for stray in (await client.reconcile(operator)).examples}

    reconciler._pause = no_pause
    assert await found() == {("lost", lost.surl)}  # young files may be on their way into the catalogue
    clock.advance(2 * YOUNG_S)
    everything = {("lost", lost.surl), *(("dark", file.surl) for file in (dark, back, other))}
    assert await found() == everything == await found()
    assert {line["surl"] for line in desk.lab.audit("storage.CERN", "storage.dark_found")} == {
        dark.surl, back.surl, other.surl
    }  # fmt: skip
    reconciler._config = replace(reconciler._config, dark="remove")
    for days in (30, -60, 30):
        clock.set(days)
        assert await found() == everything  # a clock that was set makes nothing old
    reconciler._config = replace(reconciler._config, dark="report")
    clock.advance(30 * 86400)
    assert await found() == everything  # by default nothing is removed, ever
    reconciler._config = replace(reconciler._config, dark="remove")
    await catalog.register(names, f"{LFN}-back", catalog.new_guid(), content_of(back), surl=back.surl)
    assert await found() == {("lost", lost.surl)}
    gone = {line["surl"] for line in desk.lab.audit("storage.CERN", "storage.dark_removed")}
    assert gone == {dark.surl, other.surl} and reconciler.removed == 2
    assert await desk.read("CERN", back.surl) == b"back" and await desk.read("CERN", cern.surl) == DATA
    await refused(NotFound, "FILE_NOT_FOUND", desk.read("CERN", dark.surl))
    await refused(Refused, "ADMINISTRATOR_REQUIRED", client.reconcile(await desk.element("CERN")))

    # made anew from the other replica, under the same SURL; without one a file stays as it is told
    cern_id = client.parse_surl(cern.surl).file_id
    file = await element.get(cern_id, "cms")
    await element._remove(cern_id)
    before = {vo.vo: (vo.files, vo.used_bytes) for vo in (await client.space(operator)).vos}["cms"]
    assert await found() == {("lost", lost.surl), ("lost", cern.surl)}
    reconciler._config = replace(reconciler._config, lost="repair")
    assert await found() == {("lost", lost.surl), ("lost", cern.surl)}  # not yet
    clock.advance(2 * 86400)
    assert await found() == {("lost", lost.surl)}

    async def made_anew() -> bool:
        return not await desk.state("CERN", cern.surl)

    await until(made_anew, "the file")
    assert await desk.read("CERN", cern.surl) == DATA and await found() == {("lost", lost.surl)}
    again = await element.get(cern_id, "cms")
    assert (again.size_bytes, again.checksums, again.owner) == (file.size_bytes, file.checksums, file.owner)
    after = {vo.vo: (vo.files, vo.used_bytes) for vo in (await client.space(operator)).vos}["cms"]
    assert after == (before[0] + 1, before[1] + len(DATA))
    (line,) = desk.lab.audit("storage.CERN", "storage.lost_expected")
    assert line["surl"] == cern.surl


async def test_many_dark_files_at_once_are_left_to_a_person_and_silence_proves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [await desk.put(f"dark{number}", data=b"%d" % number) for number in range(3)]
    reconciler = desk.agent("CERN").reconciler
    clock = reconciler._clock = ManualClock(datetime.now(UTC) + timedelta(days=1))

    async def no_pause(seconds: float) -> None: ...

    reconciler._pause = no_pause
    reconciler._config = replace(reconciler._config, dark="remove")
    await reconciler.round()
    clock.advance(30 * 86400)
    monkeypatch.setattr(reconciler_module, "HELD_LEAST", 2)
    await reconciler.round()
    assert "3 of 3 files of VO cms are not in the catalogue" in reconciler.held and reconciler.dark == 3
    monkeypatch.setattr(reconciler_module, "HELD_LEAST", 3)
    await desk.lab.stop("catalog.CERN")
    with pytest.raises(Unavailable):
        await reconciler.round()
    assert await desk.read("CERN", files[0].surl) == b"0" and reconciler.removed == 0
    await desk.start("catalog.CERN")

    async def ended() -> bool:
        with contextlib.suppress(Unavailable):
            await reconciler.round()
            return True
        return False

    await until(ended, "a round with the catalogue that is back")
    assert (reconciler.held, reconciler.dark, reconciler.removed) == ("", 0, 3)


async def test_an_element_is_told_of_its_own_replicas_only(desk: Desk) -> None:
    cern, ral = await desk.keep_two()
    own = await desk.lab.channel("catalog", credential=desk.lab.service("storage", site="CERN"))
    addresses = [file.surl.removeprefix("srm://").partition("/")[0] for file in (cern, ral)]
    assert await catalog.replicas_at(own, addresses[0], "cms") == ([cern.surl], False)
    for address in (addresses[1], f"{addresses[0]}0", "nowhere:1"):
        await refused(Refused, "ELSEWHERE", catalog.replicas_at(own, address, "cms"))
    broker = await desk.lab.channel("catalog", credential=desk.lab.service("broker"))
    await refused(Refused, "USER_REQUIRED", catalog.replicas_at(broker, addresses[0], "cms"))
