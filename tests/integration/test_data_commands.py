"""`grid data` and `grid storage` on files that have several names, are damaged, or came by the other door."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until
from support.webdav import Door

from agents.keystore import client as keystore
from agents.storage import client
from agents.user_interface import console, data, files, metadata, secure, staging, storage
from agents.user_interface.endpoints import ENDPOINTS_FILE
from agents.user_interface.exits import Ended, UsageProblem
from fabric.errors import AlreadyExists, DataCorrupted, GridError, InvalidRequest, NotFound, Refused, Unavailable
from security import sealing, secret_sharing

DATA = random.Random(6).randbytes(700_001)
LFN = "lfn:/grid/cms/user/a"
TAPES = {"tape": {"vos": ["cms"], "mount_s": 0, "seek_s": 0}}
SUMS = {"adler32": f"{zlib.adler32(DATA):08x}", "sha256": hashlib.sha256(DATA).hexdigest()}


@dataclass
class Desk:
    """A user with a proxy, and the operator's state folder."""

    lab: LabGrid
    folder: Path
    capsys: pytest.CaptureFixture[str]
    environ: dict[str, str]

    async def call(self, command: Any, *arguments: Any, **options: Any) -> Any:
        """Run a user's command in JSON mode and give what it printed."""
        return await self.operate(command, *arguments, environ=self.environ, **options)

    async def operate(self, command: Any, *arguments: Any, **options: Any) -> Any:
        """The same for an operator's."""
        self.capsys.readouterr()
        try:
            await command(*arguments, as_json=True, **options)
        finally:
            captured = self.capsys.readouterr()
            self.printed, self.warned = json.loads(captured.out or "null"), captured.err
        return self.printed

    def bytes_of(self, surl: str) -> Path:
        """Where a file lies that was never moved."""
        parsed = client.parse_surl(surl)
        name = next(n for n in ("storage.CERN", "storage.RAL") if self.lab.port(n) == parsed.port)
        file_id = parsed.file_id
        return self.lab.directory / "agents" / name / "pool" / "data" / file_id[:2] / file_id[2:4] / file_id


@pytest.fixture
async def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Desk]:
    async with LabGrid(tmp_path / "lab") as lab:
        lab.user("alice").save(tmp_path / "proxy.pem")
        lab.operator().save(tmp_path / "admin.pem")
        for kind, site in (("catalog", "CERN"), ("storage", "CERN"), ("storage", "RAL")):
            lab.plan(kind, site=site)
        for kind, site in (("catalog", "CERN"), ("storage", "CERN"), ("storage", "RAL")):
            options: dict[str, Any] = {"reserve_bytes": 0, "repair": False} if kind == "storage" else {}
            await lab.start(kind, site=site, options=options | (TAPES if site == "RAL" else {}))
        known = {"endpoints": lab.settings("catalog.CERN")["endpoints"], "vos": ["cms"]}
        (tmp_path / ENDPOINTS_FILE).write_text(json.dumps({**known, "certificates": str(lab.certificates)}))
        (tmp_path / "a").write_bytes(DATA)
        environ = {
            "X509_USER_PROXY": str(tmp_path / "proxy.pem"),
            "X509_CERT_DIR": str(lab.certificates),
            "GRIDFABRIC_ENDPOINTS": str(tmp_path / ENDPOINTS_FILE),
        }
        console.mode.as_json = True
        yield Desk(lab, tmp_path, capsys, environ)
        console.mode.as_json = False


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_a_damaged_replica_is_shown_refused_and_repaired_from_the_other(desk: Desk) -> None:
    made = await desk.call(files.copy_command, str(desk.folder / "a"), LFN, "CERN", force=False)
    (cern,) = [replica["surl"] for replica in made["replicas"]]
    await desk.call(data.replicate_command, [LFN], "RAL")
    shown = await desk.call(files.stat_command, LFN)
    assert [replica["state"] for replica in shown["replicas"]] == ["intact", "intact"]
    ral = next(replica["surl"] for replica in shown["replicas"] if replica["surl"] != cern)
    assert (await desk.call(files.repair_command, [LFN], None))[0]["source"] == ""

    desk.bytes_of(cern).write_bytes(DATA[:-1] + b"\0")
    operator = await desk.lab.channel("storage", credential=desk.lab.operator())
    element = desk.lab.agents["storage.CERN"].agent
    await element.scrubber.round()  # type: ignore[attr-defined]
    await element._measure()  # type: ignore[attr-defined]
    assert "1 files are damaged or lost" in str(desk.lab.agents["storage.CERN"].health().detail)
    (service,) = [entry for entry in element.entries() if "GlueServiceStatus" in entry.attributes]  # type: ignore[attr-defined]
    assert service.first("GlueServiceStatus") == "Warning"
    assert service.first("GlueServiceStatusInfo") == "files damaged or lost: 1"
    with pytest.raises(Ended):
        await desk.operate(storage.scrub, "CERN", desk.folder, now=False)
    assert desk.printed["damaged"] == 1 and [e["surl"] for e in desk.printed["examples"]] == [cern]
    assert (await desk.call(files.stat_command, cern))["state"] == "damaged"
    alice = desk.lab.user("alice")
    channel = await desk.lab.channel("storage", credential=alice)
    await refused(DataCorrupted, "FILE_DAMAGED", client.get_file(channel, cern, desk.folder / "out"))
    door = await Door.open(desk.lab, alice)
    status, _, body = await door.ask(f"GET /cms/{client.parse_surl(cern).file_id} HTTP/1.1")
    assert status >= 400 and b"grid data repair" in body
    door.stream.close()
    assert (await desk.call(files.copy_command, LFN, str(desk.folder / "back"), None, force=False))["from"] == ral

    await refused(Refused, "USER_REQUIRED", client.repair(operator, cern, ral))
    await refused(InvalidRequest, "SOURCE_IS_HERE", client.repair(channel, cern, cern))
    await desk.call(files.copy_command, str(desk.folder / "a"), "lfn:/grid/cms/user/b", "RAL", force=False)
    (desk.folder / "c").write_bytes(DATA[::-1])
    other = await desk.call(
        files.copy_command,
        str(desk.folder / "c"),
        f"srm://localhost:{desk.lab.port('storage.RAL')}/cms/",
        None,
        force=False,
    )
    await refused(GridError, "DELEGATION_MISSING", client.repair(channel, cern, ral))
    (row,) = await desk.call(files.repair_command, [], "CERN")
    assert (row["surl"], row["source"]) == (cern, ral)
    await refused(DataCorrupted, "SOURCE_DIFFERS", client.repair(channel, cern, other["surl"]))
    assert (await desk.call(files.stat_command, cern))["state"] == "intact"
    assert (await client.get_file(channel, cern, desk.folder / "out")).checksums.sha256 == SUMS["sha256"]
    assert (await desk.operate(storage.scrub, "CERN", desk.folder, now=False))["damaged"] == 0
    assert desk.lab.audit("storage.CERN", "storage.damage_found")[0]["file"] == client.parse_surl(cern).file_id
    assert desk.lab.audit("storage.CERN", "storage.repaired")[0]["source"] == ral

    desk.bytes_of(ral).unlink()
    ral_channel = await desk.lab.channel("storage", site="RAL", credential=alice)
    await refused(DataCorrupted, "FILE_LOST", client.get_file(ral_channel, ral, desk.folder / "out"))
    rows = await desk.call(files.repair_command, [LFN], None)
    assert {row["surl"]: row["source"] for row in rows} == {cern: "", ral: cern}
    assert (await client.get_file(ral_channel, ral, desk.folder / "out")).checksums.sha256 == SUMS["sha256"]


async def test_a_file_put_by_curl_gets_a_logical_name(desk: Desk) -> None:
    door = await Door.open(desk.lab, desk.lab.user("alice"))
    assert (await door.ask("MKCOL /cms/run HTTP/1.1\nContent-Length: 0"))[0] == 201
    assert (await door.ask(f"PUT /cms/run/a%20b HTTP/1.1\nContent-Length: {len(DATA)}", DATA))[0] == 201
    door.stream.close()
    url = f"https://localhost:{desk.lab.port('storage.CERN', 'http')}/cms/run/a%20b"
    known = await desk.call(files.stat_command, url)
    assert known["lfn"] is None and known["sha256"] == SUMS["sha256"]
    made = await desk.call(files.register_command, url, LFN)
    assert [replica["surl"] for replica in made["replicas"]] == [known["surl"]]
    assert (await desk.call(files.stat_command, url))["lfn"] == LFN
    again = await desk.call(files.register_command, known["surl"], LFN)
    assert again["guid"] == made["guid"] and len(again["replicas"]) == 1
    for other in (f"{LFN}/", f"guid:{made['guid'].upper()}", known["surl"]):
        assert (await desk.call(data.locate_command, [other]))[0]["lfn"] == LFN
        (row,) = await desk.call(data.replicate_command, [other, LFN], "RAL")
        assert (row["lfn"], "error" in row) == (LFN, False)
    names = [str(desk.folder / "a"), LFN, f"guid:{made['guid']}", url, known["surl"]]
    rows = await desk.call(files.checksum_command, names)
    assert [(row["adler32"], row["sha256"]) for row in rows] == [(SUMS["adler32"], SUMS["sha256"])] * len(names)
    for number, name in enumerate(names[1:]):
        target = desk.folder / f"copy{number}"
        await desk.call(files.copy_command, name, str(target), None, force=False)
        assert target.read_bytes() == DATA
        with pytest.raises(AlreadyExists):
            await desk.call(files.copy_command, name, str(target), None, force=False)

    srm = f"srm://localhost:{desk.lab.port('storage.CERN')}"
    (desk.folder / "c").write_bytes(DATA[1:])
    stored = await desk.call(files.copy_command, str(desk.folder / "c"), f"{srm}/cms/", None, force=False)
    await refused(AlreadyExists, "LFN_EXISTS", desk.call(files.register_command, stored["surl"], LFN))
    await refused(NotFound, "NAME_NOT_FOUND", desk.call(files.stat_command, f"{srm}/cms/run/none"))
    await refused(NotFound, "IS_DIRECTORY", desk.call(files.stat_command, f"{srm}/cms/run"))
    await refused(Refused, "OTHER_VO", desk.call(files.stat_command, f"{srm}/atlas/x"))
    await refused(NotFound, "SE_UNKNOWN", desk.call(files.stat_command, "https://localhost:1/cms/x"))
    with pytest.raises(Ended):
        await desk.call(files.repair_command, [stored["surl"]], None)
    assert desk.printed[0]["error"]["reason"] == "NO_REPLICA"
    for source, target in (("a", "b"), (LFN, "lfn:/grid/cms/b"), ("a", f"{srm}/cms/chosen"), ("a", "guid:1-2")):
        with pytest.raises(UsageProblem):
            await desk.call(files.copy_command, source, target, None, force=False)
    bob = desk.lab.user("bob", vo=None)
    with pytest.raises(GridError):
        await client.stat(await desk.lab.channel("storage", credential=bob), path="/cms/run/a%20b")

    aliases = ["lfn:/grid/cms/best/a", "lfn:/grid/cms/best/b", "lfn:/grid/cms/best/c"]
    for name, alias in zip((LFN, f"guid:{made['guid']}", known["surl"]), aliases, strict=True):
        assert (await desk.call(data.link_command, name, alias))["guid"] == made["guid"]
    for name in (aliases[2], known["surl"]):
        assert await desk.call(data.aliases_command, name) == [LFN, *aliases]
    written = ["kind=raw", "run:int=42", "taken:time=2006-11-23T10:00:00Z", "e:real=1.5"]
    await desk.call(metadata.set_command, aliases[0], written, ())
    shown = await desk.call(metadata.set_command, known["surl"], (), ["e"])
    assert shown == await desk.call(metadata.get_command, LFN)
    assert {f"{name}:{one['type']}={one['value']}" for name, one in shown.items()} == {"kind:text=raw", *written[1:3]}
    for condition, expected in (
        ("run:int>41.5", None),
        ("run:real>41.5", [LFN]),
        ("taken:time<2006", None),
        ("kind!=raw", []),
    ):
        search = desk.call(metadata.find_command, "lfn:/grid/cms", ["kind=raw", condition])
        if expected is None:
            with pytest.raises(UsageProblem):
                await search
        else:
            assert await search == expected
    target = desk.folder / "by alias"
    await desk.call(data.get_command, aliases[0], target, None, force=False)
    assert target.read_bytes() == DATA
    assert (await desk.call(data.remove_command, aliases[:1], None))[0]["removed"] == []
    assert await desk.call(data.aliases_command, LFN) == [LFN, *aliases[1:]]
    assert (await desk.call(data.remove_command, [known["surl"]], None))[0]["removed"] == [known["surl"]]
    (left,) = await desk.call(data.locate_command, [aliases[1]])
    assert len(left["replicas"]) == 1
    await desk.call(data.remove_command, [f"guid:{made['guid']}"], None)
    await refused(NotFound, "LFN_NOT_FOUND", desk.call(data.locate_command, [aliases[1]]))
    assert await desk.call(data.list_command, "lfn:/grid/cms/best", long=False) == []


async def test_an_operator_adds_a_disk_and_takes_one_out(desk: Desk) -> None:
    made = await desk.call(files.copy_command, str(desk.folder / "a"), LFN, "CERN", force=False)
    surl = made["replicas"][0]["surl"]
    (pool,) = await desk.operate(storage.list_pools, "CERN", desk.folder)
    assert (pool["files"], pool["used_bytes"], pool["state"]) == (1, len(DATA), "open")
    (desk.folder / "disk2").mkdir()
    second = str(desk.folder / "disk2")
    await desk.operate(storage.change_pool, "add", "CERN", second, desk.folder)
    alice = await desk.lab.channel("storage", credential=desk.lab.user("alice"))
    for call in (client.pools(alice), client.add_pool(alice, "/x"), client.drain_pool(alice, second),
                 client.remove_pool(alice, second), client.scrub(alice, now=True)):  # fmt: skip
        await refused(Refused, "ADMINISTRATOR_REQUIRED", call)
    await desk.operate(storage.change_pool, "drain", "CERN", pool["path"], desk.folder)
    element = desk.lab.agents["storage.CERN"].agent.element  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while {"drained"} & {p["state"] for p in await desk.operate(storage.list_pools, "CERN", desk.folder)} == set():
            await element.wait_for_change(1, 0)
    await desk.operate(storage.change_pool, "rm", "CERN", pool["path"], desk.folder)
    (left,) = await desk.operate(storage.list_pools, "CERN", desk.folder)
    assert (left["path"], left["files"]) == (second, 1)
    assert (await client.get_file(alice, surl, desk.folder / "out")).checksums.sha256 == SUMS["sha256"]
    assert [line["event"] for line in desk.lab.audit("storage.CERN") if line["event"].startswith("storage.pool")] == [
        "storage.pool_added", "storage.pool_drained", "storage.pool_removed",
    ]  # fmt: skip


async def test_a_file_that_is_on_tape_is_staged_for_its_reader(desk: Desk) -> None:
    made = await desk.call(files.copy_command, str(desk.folder / "a"), LFN, "RAL", force=False)
    (surl,) = [replica["surl"] for replica in made["replicas"]]
    agent: Any = desk.lab.agents["storage.RAL"].agent
    shown = await desk.call(files.stat_command, LFN)
    assert shown["replicas"][0]["locality"] in ("ONLINE", "ONLINE_AND_NEARLINE")
    file = await agent.element.get(client.parse_surl(surl).file_id, "cms")
    await until(lambda: agent.element.purge(file), "its tape copy, and then its leaving the disk")
    assert (await desk.call(files.stat_command, surl))["locality"] == "NEARLINE"
    await agent._measure()
    published = {name: value for entry in agent.entries() for name, value in entry.attributes.items()}
    assert [published[name] for name in ("GlueSAAccessLatency", "GlueSARetentionPolicy", "GlueSEArchitecture")] == [
        ("nearline",), ("custodial",), ("tape",),
    ]  # fmt: skip
    assert published["GlueSATotalNearlineSize"] == ("40000",)

    got = await desk.call(data.get_command, LFN, desk.folder / "back", None, force=False)
    assert got["from"] == surl and (desk.folder / "back").read_bytes() == DATA
    assert "is on tape and is being staged, 0 files come before it; ask again in" in desk.warned

    (row,) = await desk.call(staging.stage_command, [LFN], None, wait=True, pin="2h", release=False)
    assert (row["state"], row["locality"]) == ("online", "ONLINE_AND_NEARLINE")
    assert (await desk.call(files.stat_command, surl))["pinned_until"] is not None
    (row,) = await desk.call(staging.stage_command, [row["surl"]], None, wait=False, pin=None, release=True)
    assert row["state"] == "released"
    assert (await desk.call(files.stat_command, surl))["pinned_until"] is None

    file = await agent.element.get(file.file_id, "cms")
    assert await agent.element.purge(file)
    door = await Door.open(desk.lab, desk.lab.user("alice"), "storage.RAL")
    status, headers, body = await door.ask(f"GET /cms/{file.file_id} HTTP/1.1")
    assert status == 503 and int(headers["retry-after"]) >= 1 and b"is being staged" in body
    door.stream.close()
    (row,) = await desk.call(staging.stage_command, [LFN], "RAL", wait=True, pin=None, release=False)
    assert row["state"] == "online"

    made = await desk.call(files.copy_command, str(desk.folder / "a"), f"{LFN}2", "CERN", force=False)
    (row,) = await desk.call(staging.stage_command, [f"{LFN}2"], None, wait=False, pin=None, release=False)
    assert (row["state"], row["locality"]) == ("online", "ONLINE")  # an element without tapes
    alice = await desk.lab.channel("storage", site="RAL", credential=desk.lab.user("alice"))
    await refused(NotFound, "FILE_NOT_FOUND", client.bring_online(alice, [surl[:-32] + "0" * 32]))
    await refused(InvalidRequest, "PIN_INVALID", client.bring_online(alice, [surl], -1))
    await refused(InvalidRequest, "TOO_MANY_NAMES", client.bring_online(alice, [surl] * 1001))
    mallory = await desk.lab.channel("storage", site="RAL", credential=desk.lab.user("mallory", vo="atlas"))
    for call in (client.bring_online, client.release):
        await refused(Refused, "OTHER_VO", call(mallory, [surl]))


SITES = ("CERN", "RAL", "CNAF")
BOB = "/C=XX/O=TestGrid/OU=Users/CN=bob"


async def test_an_encrypted_file_is_for_its_owner_and_whom_he_lets_in(desk: Desk) -> None:
    lab, back = desk.lab, desk.folder / "back"
    put = {"store": secure.put, "environ": desk.environ}
    await refused(
        NotFound, "KEYSTORES_MISSING", desk.call(data.put_command, desk.folder / "a", LFN, "CERN", store=secure.put)
    )
    for site in SITES:
        lab.plan("keystore", site=site)
    for site in SITES:
        await lab.start("keystore", site=site)
    known = json.loads((desk.folder / ENDPOINTS_FILE).read_text())
    known["endpoints"] = lab.settings("catalog.CERN")["endpoints"]
    (desk.folder / ENDPOINTS_FILE).write_text(json.dumps(known))
    lab.user("bob").save(desk.folder / "bob.pem")
    bob = {**desk.environ, "X509_USER_PROXY": str(desk.folder / "bob.pem")}

    made = await desk.call(data.put_command, desk.folder / "a", LFN, "CERN", store=secure.put)
    (surl,) = [replica["surl"] for replica in made["replicas"]]
    at_rest = desk.bytes_of(surl).read_bytes()
    assert sealing.is_sealed(at_rest) and DATA[:64] not in at_rest and made["sha256"] != SUMS["sha256"]
    await desk.call(data.get_command, LFN, back, None, force=False)
    assert back.read_bytes() == DATA and back.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in desk.folder.glob(".*")) == []

    def get(environ: dict[str, str]) -> Any:
        return desk.operate(data.get_command, LFN, back, None, force=True, environ=environ)

    back.write_bytes(b"what was here")
    await refused(Refused, "KEY_REFUSED", get(bob))
    assert back.read_bytes() == b"what was here"
    for who, change in ((BOB, BOB), ("/cms", "/cms")):
        shown = await desk.call(secure.readers_command, LFN, [who], grant=True)
        assert shown["readers"] == [who]
        await get(bob)
        assert back.read_bytes() == DATA
        assert (await desk.call(secure.readers_command, LFN, [change], grant=False))["readers"] == []
        await refused(Refused, "KEY_REFUSED", get(bob))
    await refused(Refused, "KEY_REFUSED", desk.operate(secure.readers_command, LFN, [BOB], grant=True, environ=bob))
    for nobody in ("bob", "/atlas", "/O=" + "x" * 2000):
        await refused(InvalidRequest, "READER_INVALID", desk.call(secure.readers_command, LFN, [nobody], grant=True))

    used = [line for site in SITES for line in lab.audit(f"keystore.{site}", "keystore.used")]
    assert {line["peer"] for line in used} == {str(lab.user_certificate("alice").identity), BOB}
    key_id = sealing.key_id_of(at_rest)
    channels = [await lab.channel("keystore", site=site, credential=lab.user("alice")) for site in SITES]
    shares = [await keystore.get_share(channel, key_id) for channel in channels]
    assert {threshold for _, threshold in shares} == {2}
    key = secret_sharing.combine([share for share, _ in shares])
    secrets = [key, *(share.values for share, _ in shares)]
    for path in (lab.directory / "agents").rglob("*"):
        content = b""
        with contextlib.suppress(OSError):  # directories, and what an agent has just put in another's place
            content = path.read_bytes()
        if not path.name.startswith("keystore.db"):
            assert not any(secret in content or secret.hex().encode() in content for secret in secrets), path

    # Who removes a file removes its key, if it is his.
    await desk.call(data.put_command, desk.folder / "a", f"{LFN}3", "CERN", store=secure.put)
    await desk.call(data.put_command, desk.folder / "a", f"{LFN}4", "CERN", store=secure.put)
    await desk.call(data.remove_command, [f"{LFN}3"], None)
    assert [len(lab.audit(f"keystore.{site}", "keystore.removed")) for site in SITES] == [1, 1, 1]
    await desk.operate(data.remove_command, [f"{LFN}4"], None, environ=bob)
    assert "3 shares of its key are not" in desk.warned

    # A whole key store is taken: its shares are not the key, and no two of them are of one key.
    stolen = (lab.directory / "agents" / "keystore.RAL" / "keystore.db").read_bytes()
    stolen += (lab.directory / "agents" / "keystore.RAL" / "keystore.db-wal").read_bytes()
    assert shares[1][0].values in stolen and key not in stolen
    assert not any(share.values in stolen for share, _ in (shares[0], shares[2]))
    for candidate in (shares[1][0].values, secret_sharing.combine([shares[1][0]])):
        with pytest.raises(sealing.SealError):
            sealing.unseal(candidate, desk.bytes_of(surl).open("rb"), (desk.folder / "stolen").open("wb"))

    # One that lies is outvoted, one that is away is not missed, and with two away nothing opens and the reason is said.
    ral: Any = lab.agents["keystore.RAL"].agent
    await ral.servicer._store._store.write(
        lambda connection: connection.exec_driver_sql("UPDATE shares SET share = zeroblob(32)")
    )
    await get(desk.environ)
    assert back.read_bytes() == DATA
    await lab.stop("keystore.RAL")
    await get(desk.environ)
    shown = await desk.call(secure.readers_command, LFN, [BOB], grant=True)
    assert (shown["key_stores"], shown["silent"]) == (2, 1)
    await get(bob)
    await refused(
        Unavailable, "SERVER_UNREACHABLE", desk.operate(data.put_command, desk.folder / "a", f"{LFN}2", "CERN", **put)
    )
    await lab.stop("keystore.CNAF")
    await refused(Unavailable, "KEYSTORES_AWAY", get(desk.environ))
    with pytest.raises(Unavailable):
        await desk.call(secure.readers_command, LFN, [BOB], grant=False)

    # Who is banned gets no share, although he is let in and has a session.
    await lab.start("keystore", site="CNAF")
    bobs = await lab.channel("keystore", site="CNAF", credential=lab.user("bob"))  # did not hear of the withdrawal
    await keystore.get_share(bobs, key_id)
    lab.ban("bob")

    async def is_banned() -> bool:
        try:
            await keystore.get_share(bobs, key_id)
        except GridError as error:
            return error.reason == "BANNED"
        return False

    await until(is_banned, "the ban")
    alices = await lab.channel("keystore", credential=lab.user("alice"))
    limited = await lab.channel("keystore", credential=lab.user("alice", limited=True))
    await refused(Refused, "LIMITED_PROXY", keystore.set_readers(limited, key_id, grant=[BOB]))
    await refused(Refused, "KEY_REFUSED", keystore.get_share(alices, bytes(16)))
    await refused(InvalidRequest, "KEY_ID_INVALID", keystore.get_share(alices, b"short"))
    share, new_id = secret_sharing.Share(1, bytes(32)), bytes(range(16))
    for wrong, threshold in (
        (share, 1),
        (share, 256),
        (secret_sharing.Share(0, bytes(32)), 2),
        (secret_sharing.Share(1, b""), 2),
    ):
        await refused(InvalidRequest, "SHARE_INVALID", keystore.put_share(alices, new_id, wrong, threshold))
    await keystore.put_share(alices, new_id, share, 2)
    await keystore.put_share(alices, new_id, share, 2)
    await refused(AlreadyExists, "KEY_EXISTS", keystore.put_share(alices, new_id, share, 3))
    await keystore.remove_share(alices, new_id)
    await keystore.remove_share(alices, new_id)
    await refused(Refused, "KEY_REFUSED", keystore.get_share(alices, new_id))
