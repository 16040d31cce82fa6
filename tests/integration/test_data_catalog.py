"""The catalogue over real TLS and sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.catalog.v1 import catalog_pb2 as pb
from gridfabric.catalog.v1 import catalog_pb2_grpc
from support.grid import LabGrid

from agents.catalog import client
from agents.catalog.client import Content
from fabric.errors import AlreadyExists, Conflict, DataCorrupted, GridError, InvalidRequest, NotFound, Refused

CONTENT = Content(10, "0a0b0c0d", "ab" * 32)
SURL = "srm://localhost:1/cms/" + "0" * 32


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, vos=["cms", "atlas"]) as made:
        for name, vo in (("alice", "cms"), ("carol", "cms"), ("bob", "atlas")):
            made.user(name, vo=vo)  # known before any agent reads the map file
        yield made


async def start(lab: LabGrid, **options: Any) -> Any:
    await lab.start("catalog", options=options)
    return await lab.channel("catalog", credential=lab.user("alice"))


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def test_a_file_from_registration_to_removal(lab: LabGrid) -> None:
    channel = await start(lab)
    guid = client.new_guid()
    made = await client.register(channel, "lfn:/grid/cms/run1/e.root", guid, CONTENT, surl=SURL)
    assert (made.lfn, made.guid, made.content) == ("/grid/cms/run1/e.root", guid, CONTENT)
    assert made.owner.endswith("/CN=alice")
    assert [(r.surl, r.storage_element) for r in made.replicas] == [(SURL, "localhost:1")]
    assert await client.register(channel, "/grid/cms/run1/e.root", guid, CONTENT, surl=SURL) == made
    for name in ("/grid/cms/run1/e.root", f"guid:{guid}", "lfn:/grid/cms/run1/e.root"):
        assert await client.replicas(channel, name) == made
    second = "srm://other:2/cms/" + "1" * 32
    for name in ("/grid/cms/run1/e.root", f"guid:{guid}"):
        await client.add_replica(channel, name, second, 10, "0A0B0C0D")
    await refused(
        DataCorrupted, "CONTENT_DIFFERS", client.add_replica(channel, f"guid:{guid}", SURL[:-1] + "9", 11, "0a0b0c0d")
    )
    assert [r.surl for r in (await client.replicas(channel, f"guid:{guid}")).replicas] == [SURL, second]
    assert [e.lfn async for e in client.list_directory(channel, "/grid/cms/run1")] == ["/grid/cms/run1/e.root"]
    await refused(Conflict, "HAS_REPLICAS", client.remove(channel, "/grid/cms/run1/e.root"))
    for surl in (SURL, second, second):
        await client.remove_replica(channel, "/grid/cms/run1/e.root", surl)
    await client.remove(channel, "/grid/cms/run1/e.root")
    await client.remove(channel, "/grid/cms/run1/e.root", missing_ok=True)
    await refused(NotFound, "LFN_NOT_FOUND", client.remove(channel, "/grid/cms/run1/e.root"))
    await refused(NotFound, "LFN_NOT_FOUND", client.replicas(channel, "/grid/cms/run1/e.root"))
    await client.remove(channel, "/grid/cms/run1")
    await refused(Conflict, "DIRECTORY_KEPT", client.remove(channel, "/grid/cms"))


async def test_a_taken_name_says_whose_it_is(lab: LabGrid) -> None:
    channel = await start(lab)
    first = await client.register(channel, "/grid/cms/x", client.new_guid(), CONTENT)
    carol = await lab.channel("catalog", credential=lab.user("carol"))
    error = await refused(AlreadyExists, "LFN_TAKEN", client.register(carol, "/grid/cms/x", client.new_guid(), CONTENT))
    assert (error.facts["guid"], error.facts["owner"]) == (first.guid, first.owner)
    (line,) = lab.audit("catalog.CERN", "call.refused")
    assert line["sentence"] == error.sentence


async def test_other_vos_names_and_files_are_out_of_reach(lab: LabGrid) -> None:
    alice = await start(lab)
    file = await client.register(alice, "/grid/cms/x", client.new_guid(), CONTENT, surl=SURL)
    bob = await lab.channel("catalog", credential=lab.user("bob", vo="atlas"))
    for attempt in (
        client.register(bob, "/grid/cms/y", client.new_guid(), CONTENT),
        client.list_page(bob, "/grid/cms"),
        client.lookup(bob, ["/grid/cms/x"]),
        client.make_directory(bob, "/grid/cms/d"),
        client.remove(bob, "/grid/cms/x", force=True),
        client.remove_replica(bob, "/grid/cms/x", SURL),
        client.add_replica(bob, "/grid/cms/x", SURL, 10, "0a0b0c0d"),
    ):
        await refused(Refused, "OTHER_VO", attempt)
    assert await client.lookup(bob, [f"guid:{file.guid}"]) == ([], [f"guid:{file.guid}"])
    assert await client.lookup(bob, [SURL, SURL[:-1]]) == ([], [SURL, SURL[:-1]])
    assert [e.lfn for e in (await client.lookup(alice, [SURL]))[0]] == [file.lfn]
    await refused(NotFound, "LFN_NOT_FOUND", client.remove_replica(bob, f"guid:{file.guid}", SURL))
    assert [e.lfn async for e in client.list_directory(bob, "/grid")] == ["/grid/cms"]
    assert [e.lfn async for e in client.list_directory(bob, "/grid/atlas")] == []
    stranger = await lab.channel("catalog", credential=lab.user("eve", vo=None))
    await refused(Refused, "NOT_MAPPED", client.list_page(stranger, "/grid"))


async def test_the_broker_may_look_and_not_touch(lab: LabGrid) -> None:
    channel = await start(lab)
    file = await client.register(channel, "/grid/cms/x", client.new_guid(), CONTENT, surl=SURL)
    broker = await lab.channel("catalog", credential=lab.service("broker"))
    assert await client.lookup(broker, ["/grid/cms/x", "/grid/atlas/y"]) == ([file], ["/grid/atlas/y"])
    await refused(Refused, "USER_REQUIRED", client.register(broker, "/grid/cms/z", client.new_guid(), CONTENT))
    worker = await lab.channel("catalog", credential=lab.service("worker"))
    await refused(Refused, "USER_REQUIRED", client.lookup(worker, ["/grid/cms/x"]))
    limited = await lab.channel("catalog", credential=lab.user("alice", limited=True))
    await client.register(limited, "/grid/cms/from-a-job", client.new_guid(), CONTENT)


async def test_removal_by_the_owner_alone_where_the_grid_says_so(lab: LabGrid) -> None:
    channel = await start(lab, removal="owner")
    await client.register(channel, "/grid/cms/x", client.new_guid(), CONTENT)
    carol = await lab.channel("catalog", credential=lab.user("carol"))
    await refused(Refused, "NOT_OWNER", client.remove(carol, "/grid/cms/x"))
    await client.remove(channel, "/grid/cms/x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lfn": "/grid/cms/../atlas/x"}, "LFN_INVALID"),
        ({"lfn": "/grid/cms/" + "x" * 256}, "LFN_INVALID"),
        ({"lfn": "/grid/cms/a\u202eb"}, "LFN_INVALID"),
        ({"lfn": "/grid/cms"}, "LFN_INVALID"),
        ({"guid": "42"}, "GUID_INVALID"),
        ({"size_bytes": -1}, "SIZE_INVALID"),
        ({"adler32": "xyz"}, "CHECKSUM_INVALID"),
        ({"sha256": ""}, "CHECKSUM_INVALID"),
        ({"replica": pb.Replica(surl="../../etc/passwd")}, "SURL_INVALID"),
        ({"replica": pb.Replica(surl="srm://h:1/a b")}, "SURL_INVALID"),
    ],
)
async def test_malformed_registrations(lab: LabGrid, change: dict[str, Any], reason: str) -> None:
    channel = await start(lab)
    good = {
        "lfn": "/grid/cms/x", "guid": client.new_guid(), "size_bytes": 1, "adler32": "00000001", "sha256": "0" * 64,
        "make_parents": True,
    }  # fmt: skip
    stub = catalog_pb2_grpc.CatalogueStub(channel)
    await refused(InvalidRequest, reason, stub.Register(pb.RegisterRequest(**{**good, **change})))
    assert [e async for e in client.list_directory(channel, "/grid/cms")] == []
    await stub.Register(pb.RegisterRequest(**good))


async def test_names_of_255_characters_and_pages(lab: LabGrid) -> None:
    channel = await start(lab)
    names = [f"/grid/cms/big/{n:03d}" + "漢" * 252 for n in range(250)]
    await asyncio.gather(*(client.register(channel, lfn, client.new_guid(), CONTENT) for lfn in reversed(names)))
    page, after = await client.list_page(channel, "/grid/cms/big", page_size=100)
    assert [e.lfn for e in page] == names[:100] and after
    await client.remove(channel, names[99])  # the name that the next page begins after
    page, after = await client.list_page(channel, "/grid/cms/big", after, page_size=100)
    assert [e.lfn for e in page] == names[100:200]
    assert [e.lfn async for e in client.list_directory(channel, "/grid/cms/big", 77)] == names[:99] + names[100:]
    found, unknown = await client.lookup(channel, names)
    assert ([e.lfn for e in found], unknown) == (names[:99] + names[100:], [names[99]])
    too_many = pb.LookupRequest(lfns=["/grid/cms/x"] * 1001)
    await refused(InvalidRequest, "TOO_MANY_NAMES", catalog_pb2_grpc.CatalogueStub(channel).Lookup(too_many))


async def test_answers_stay_below_the_message_limit(lab: LabGrid) -> None:
    channel = await start(lab)
    deep = "/grid/cms" + ("/" + "漢" * 254) * 15
    names = [f"{deep}/{n:03d}" for n in range(400)]  # 12 kB each: 4.6 MB together
    await asyncio.gather(*(client.register(channel, lfn, client.new_guid(), CONTENT) for lfn in names))
    assert [e.lfn async for e in client.list_directory(channel, deep)] == names
    found, unknown = await client.lookup(channel, names)
    assert ([e.lfn for e in found], unknown) == (names, [])


async def test_everything_is_there_after_a_restart(lab: LabGrid) -> None:
    channel = await start(lab)
    made = await client.register(channel, "/grid/cms/a/b", client.new_guid(), CONTENT, surl=SURL)
    await lab.stop("catalog.CERN")
    channel = await start(lab)
    assert await client.replicas(channel, "/grid/cms/a/b") == made


async def test_the_catalogue_publishes_itself(lab: LabGrid) -> None:
    await start(lab)
    (entry,) = lab.agents["catalog.CERN"].agent.entries()
    assert entry.attributes["GlueServiceType"] == ("org.gridfabric.catalog",)
    assert entry.attributes["GlueServiceEndpoint"] == (f"grpc://localhost:{lab.port('catalog.CERN')}",)


PRODUCTION = "/cms/Role=production"


def grant(who: str, *rights: str) -> client.Grant:
    return client.Grant.of(who, rights, "cms")


async def test_a_directory_for_groups_and_people(lab: LabGrid) -> None:
    lab.plan("vo", name="vo.cms")
    owner = await start(lab)
    plain = await lab.channel("catalog", credential=lab.user("carol"))
    producer = await lab.channel("catalog", credential=lab.user("carol", fqans=["/cms", PRODUCTION]))
    await client.make_directory(owner, "/grid/cms/mc/run1", make_parents=True)
    file = await client.register(owner, "/grid/cms/mc/run1/a", client.new_guid(), CONTENT, surl=SURL)
    await client.set_access(owner, "/grid/cms/mc", [grant(PRODUCTION, "list", "add", "remove")])

    async def attempts(channel: Any) -> list[str]:
        """The reason of each refusal, empty where there is none."""
        found: list[str] = []
        for attempt in (
            client.list_page(channel, "/grid/cms/mc/run1"),
            client.lookup(channel, ["/grid/cms/mc/run1/a"]),
            client.register(channel, "/grid/cms/mc/run1/b", client.new_guid(), CONTENT),
            client.make_directory(channel, "/grid/cms/mc/run2"),
            client.add_replica(channel, f"guid:{file.guid}", SURL, 10, "0a0b0c0d"),
            client.remove_replica(channel, "/grid/cms/mc/run1/a", SURL, dry_run=True),
            client.remove(channel, "/grid/cms/mc/run1/a", force=True),
        ):
            try:
                await attempt
                found.append("")
            except Refused as error:
                found.append(error.reason)
        return found

    assert await attempts(plain) == ["ACCESS_DENIED"] * 7
    assert await client.lookup(plain, [SURL]) == ([], [SURL])
    assert [e.lfn for e in (await client.lookup(producer, [SURL]))[0]] == [file.lfn]
    error = await refused(Refused, "ACCESS_DENIED", client.list_page(plain, "/grid/cms/mc"))
    assert "grid proxy init --voms cms:/cms/Role=production" in error.sentence
    assert "access list of /grid/cms/mc" in error.sentence and "shows no groups or roles" in error.sentence
    line = lab.audit("catalog.CERN", "call.refused")[-1]
    assert (line["reason"], line["sentence"]) == ("ACCESS_DENIED", error.sentence)
    assert await client.lookup(plain, [f"guid:{file.guid}"]) == ([], [f"guid:{file.guid}"])
    assert [entry.lfn async for entry in client.list_directory(plain, "/grid/cms")] == ["/grid/cms/mc"]
    assert await attempts(producer) == [""] * 7

    carol = str(lab.user_certificate("carol").identity)
    await client.set_access(owner, "/grid/cms/mc", [grant(carol, "list"), grant("/cms", "list")])
    await client.list_page(plain, "/grid/cms/mc/run1")
    error = await refused(Refused, "ACCESS_DENIED", client.make_directory(producer, "/grid/cms/mc/run3"))
    assert "grid data acl set lfn:/grid/cms/mc" in error.sentence
    await client.set_access(owner, "/grid/cms/mc", [])
    await client.make_directory(plain, "/grid/cms/mc/run3")


async def test_who_may_change_an_access_list(lab: LabGrid) -> None:
    lab.plan("vo", name="vo.cms")
    alice = await start(lab)
    carol = await lab.channel("catalog", credential=lab.user("carol"))
    manager = await lab.channel("catalog", credential=lab.user("carol", fqans=["/cms", "/cms/Role=VO-Admin"]))
    bob = await lab.channel("catalog", credential=lab.user("bob", vo="atlas"))
    operator = await lab.channel("catalog", credential=lab.operator())
    await client.make_directory(alice, "/grid/cms/d")
    closed = [grant(PRODUCTION, "list")]
    await refused(Refused, "ACL_NOT_YOURS", client.set_access(carol, "/grid/cms/d", closed))
    await refused(Refused, "ACL_NOT_YOURS", client.set_access(alice, "/grid/cms", closed))
    await refused(Refused, "OTHER_VO", client.set_access(bob, "/grid/cms/d", closed))
    await refused(Refused, "OTHER_VO", client.access_of(bob, "/grid/cms/d"))
    await refused(NotFound, "LFN_NOT_FOUND", client.set_access(manager, "/grid/cms/nothing", closed))
    await refused(InvalidRequest, "LFN_INVALID", client.set_access(operator, "/grid", closed))
    for channel in (alice, manager, operator):
        made = await client.set_access(channel, "/grid/cms/d", closed)
        assert (made.carried_by, made.grants) == ("/grid/cms/d", tuple(closed))
    await refused(Refused, "ACCESS_DENIED", client.access_of(carol, "/grid/cms/d"))
    await client.set_access(operator, "/grid/cms", [grant("/cms", "list")])
    await refused(Refused, "ACCESS_DENIED", client.make_directory(alice, "/grid/cms/e"))
    await client.make_directory(manager, "/grid/cms/e")
    assert (await client.access_of(alice, "/grid/cms/e")).carried_by == "/grid/cms"
    sets = lab.audit("catalog.CERN", "catalog.access_set")
    assert sets[0]["grants"] == [f"list:{PRODUCTION}"] and sets[0]["lfn"] == "/grid/cms/d"
    await client.remove(manager, "/grid/cms/d")  # and with it the list: a new one of that name does not inherit it
    await client.make_directory(manager, "/grid/cms/d")
    assert (await client.access_of(manager, "/grid/cms/d")).carried_by == "/grid/cms"


async def test_nonsense_is_no_access_list(lab: LabGrid) -> None:
    channel = await start(lab)
    await client.make_directory(channel, "/grid/cms/d")
    for who, rights in (
        ("/cms", ["read"]),
        ("/cms", []),
        ("/atlas", ["list"]),
        ("/cmsx/Role=production", ["list"]),
        ("alice", ["list"]),
        ("", ["list"]),
        ("/" + "x" * 2000, ["list"]),
        ("/O=x\x00/CN=alice", ["list"]),
    ):
        with pytest.raises(InvalidRequest) as caught:
            client.Grant.of(who, rights, "cms")
        assert caught.value.reason == "ACL_INVALID"
        request = pb.SetAccessRequest(lfn="/grid/cms/d", grants=[pb.Grant(who=who, rights=rights)])
        await refused(InvalidRequest, "ACL_INVALID", catalog_pb2_grpc.CatalogueStub(channel).SetAccess(request))
    many = [pb.Grant(who=f"/cms/g{n}", rights=["list"]) for n in range(101)]
    request = pb.SetAccessRequest(lfn="/grid/cms/d", grants=many)
    await refused(InvalidRequest, "ACL_INVALID", catalog_pb2_grpc.CatalogueStub(channel).SetAccess(request))
    assert (await client.access_of(channel, "/grid/cms/d")).carried_by == ""
