"""The HTTPS/WebDAV door of the storage element: real TLS, real proxies, the agent's own session rules."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until
from support.webdav import Door

from agents.storage import client
from agents.storage.model import Checksums
from fabric.errors import from_details
from fabric.rpc.delegation import delegate
from fabric.tls_door import TlsClosed
from security.credentials import Credential

LARGE = random.Random(1).randbytes(20_000_003)


def sums(data: bytes) -> Checksums:
    return Checksums(f"{zlib.adler32(data):08x}", hashlib.sha256(data).hexdigest())


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path, vos=["cms", "atlas"]) as made:
        for name, vo in (("alice", "cms"), ("carol", "cms"), ("bob", "atlas")):
            made.user(name, vo=vo)
        yield made


async def start(lab: LabGrid, **options: Any) -> Any:
    proxy = lab.user("alice")
    await lab.start("storage", options={"reserve_bytes": 0, **options})
    return await lab.channel("storage", credential=proxy)


async def test_a_large_file_goes_by_the_https_door_and_back(lab: LabGrid, tmp_path: Path) -> None:
    channel = await start(lab)
    source, target = tmp_path / "large", tmp_path / "back"
    source.write_bytes(LARGE)
    moved: list[int] = []
    async with asyncio.timeout(60):
        stored = await client.put_file(channel, source, "cms", name_hint="large", progress=moved.append)
        assert (stored.checksums, sum(moved)) == (sums(LARGE), len(LARGE))
        assert await client.get_file(channel, stored.surl, target, expected=sums(LARGE)) == stored
        assert await client.read_range(channel, stored.surl, 3, 17 << 20) == LARGE[3 : 3 + (17 << 20)]
    assert target.read_bytes() == LARGE
    await until(lambda: len(lab.audit("storage.CERN", "storage.get")) == 2)  # said after the last byte
    lines = [line for event in ("storage.put", "storage.get") for line in lab.audit("storage.CERN", event)]
    assert [line["door"] for line in lines] == ["https"] * 3
    assert {line["peer"] for line in lines} == {"/C=XX/O=TestGrid/OU=Users/CN=alice"}


@pytest.fixture
async def opened(lab: LabGrid) -> AsyncIterator[Callable[..., Any]]:
    doors: list[Door] = []

    async def make(credential: Credential | None = None) -> Door:
        doors.append(await Door.open(lab, credential or lab.user("alice")))
        return doors[-1]

    yield make
    for door in doors:
        door.stream.close()


def on_disk(lab: LabGrid) -> list[Path]:
    return [p for p in (lab.directory / "agents" / "storage.CERN" / "pool").rglob("*") if p.is_file()]


def reason_of(headers: dict[str, str]) -> str:
    """Of a refusal, as our own client reads it."""
    error = from_details(base64.b64decode(headers["grid-error"]))
    assert error is not None
    return error.reason


async def test_one_connection_carries_many_requests(lab: LabGrid, opened: Any) -> None:
    await start(lab)
    door = await opened()
    status, headers, _ = await door.ask("PUT /cms/a HTTP/1.1\nContent-Length: 5", b"hello")
    assert (status, headers["location"]) == (201, "/cms/a")
    by_id = headers["content-location"]
    status, _, _ = await door.ask("PUT /cms/a HTTP/1.1\nContent-Length: 3\nIf-None-Match: *\nExpect: 100-continue")
    assert status == 412
    assert (await door.ask(f"GET {by_id} HTTP/1.1"))[2] == b"hello"
    assert (await door.ask("GET /cms/a HTTP/1.1\nRange: bytes=1-2"))[::2] == (206, b"el")
    status, headers, _ = await door.ask("HEAD /cms/a HTTP/1.1\nWant-Digest: adler32")
    assert (status, headers["digest"], headers["content-length"]) == (200, "adler32=062c0215", "5")
    status, _, _ = await door.ask("PUT /cms/a HTTP/1.1\nContent-Length: 3", b"new")
    assert status == 204 and (await door.ask("GET /cms/a HTTP/1.1"))[2] == b"new"
    assert (await door.ask(f"GET {by_id} HTTP/1.1"))[0] == 404
    for head, expected in [
        ("MKCOL /cms/d HTTP/1.1", 201), ("MKCOL /cms/d HTTP/1.1", 409), ("DELETE /cms/no HTTP/1.1", 404),
        ("MOVE /cms/a HTTP/1.1\nDestination: /cms/d/b", 201), ("DELETE /cms/d HTTP/1.1", 409),
        ("MOVE /cms/d/b HTTP/1.1\nDestination: /atlas/b", 403), ("DELETE /cms/d/b HTTP/1.1", 204),
        ("DELETE /cms/d HTTP/1.1", 204), ("OPTIONS * HTTP/1.1", 200), ("LOCK /cms/a HTTP/1.1", 405),
        ("PROPFIND /cms/ HTTP/1.1", 403), ("GET / HTTP/1.1", 400), ("GET /cms/%2e%2e/x HTTP/1.1", 400),
    ]:  # fmt: skip
        assert (head, (await door.ask(head))[0]) == (head, expected)
    await until(lambda: on_disk(lab) == [])
    events = [line["event"] for line in lab.audit("storage.CERN") if line["event"].startswith("storage.")]
    assert events.count("storage.put") == 2 and "storage.moved" in events and "storage.removed" in events


@pytest.mark.parametrize(
    ("head", "body", "status", "reason"),
    [
        ("PUT /cms/a HTTP/1.1", b"", 411, "LENGTH_REQUIRED"),
        ("PUT /cms/a HTTP/1.1\nTransfer-Encoding: chunked", b"0\r\n\r\n", 411, "LENGTH_REQUIRED"),
        ("POST /cms/ HTTP/1.1\nTransfer-Encoding: chunked\nX-Expected-Entity-Length: " + "9" * 5000, b"", 411,
         "LENGTH_REQUIRED"),
        ("PUT /cms/no/a HTTP/1.1\nContent-Length: 5", b"hello", 409, "PARENT_MISSING"),
        ("PUT /atlas/a HTTP/1.1\nContent-Length: 5", b"hello", 403, "OTHER_VO"),
        ("PUT /cms/ HTTP/1.1\nContent-Length: 5", b"hello", 400, "NAME_RESERVED"),
        ("PUT /cms/" + "a" * 32 + " HTTP/1.1\nContent-Length: 5", b"hello", 400, "NAME_RESERVED"),
        ("PUT /cms/a HTTP/1.1\nContent-Length: 999999999999", b"hello", 507, "QUOTA_EXCEEDED"),
        ("PUT /cms/a HTTP/1.1\nContent-Length: 5\nDigest: adler32=1", b"hello", 400, "CHECKSUM_MISMATCH"),
        ("PUT /cms/a HTTP/1.1\nContent-Length: 5\nContent-MD5: " + "A" * 22 + "==", b"hello", 400, "CHECKSUM_MISMATCH"),
        ("PUT /cms/a HTTP/1.1\nContent-Length: 5\nContent-Range: bytes 0-4/9", b"hello", 415, "BODY_NOT_UNDERSTOOD"),
        ("PUT /cms/a HTTP/1.1\nContent-Length: 5\nExpect: money", b"hello", 417, "EXPECTATION_UNKNOWN"),
        ("POST /cms/a HTTP/1.1\nContent-Length: 5", b"hello", 405, "METHOD_UNKNOWN"),
        ("POST /cms/ HTTP/1.1\nTransfer-Encoding: chunked\nX-Expected-Entity-Length: 5", b"3\r\nabc\r\n0\r\n\r\n", 400,
         "SIZE_MISMATCH"),
        ("POST /cms/ HTTP/1.1\nTransfer-Encoding: chunked\nX-Expected-Entity-Length: 2", b"3\r\nabc\r\n0\r\n\r\n", 400,
         "SIZE_MISMATCH"),
        ("GET /cms/" + "f" * 32 + " HTTP/1.1", b"", 404, "FILE_NOT_FOUND"),
        ("PROPFIND /cms HTTP/1.1\nDepth: 0\nContent-Length: 99999", b"x" * 99999, 415, "BODY_NOT_UNDERSTOOD"),
        ("GET /cms/a HTTP/1.1\nContent-Length: 1\nTransfer-Encoding: chunked", b"", 400, "HTTP_MALFORMED"),
        ("GET /cms/a HTTP/1.1" + "\nx: y" * 1000, b"", 431, "HTTP_HEAD_TOO_LARGE"),
        ("\x16\x03\x01 garbage", b"", 400, "HTTP_MALFORMED"),
    ],
)  # fmt: skip
async def test_refusals_leave_nothing_and_say_why(
    lab: LabGrid, opened: Any, head: str, body: bytes, status: int, reason: str
) -> None:
    await start(lab, quota_bytes=1_000_000)
    found, headers, text = await (await opened()).ask(head, body)
    assert found == status, text
    assert reason_of(headers) == reason, text
    lines = lab.audit("storage.CERN", "call.refused")
    assert [(line["reason"], line["sentence"]) for line in lines] == [(reason, text.decode().strip())]
    await until(lambda: on_disk(lab) == [])


async def test_who_is_not_let_in_reads_why(lab: LabGrid, opened: Any) -> None:
    await start(lab)
    stranger = lab.user("mallory", vo=None)
    revoked = lab.user("eve")
    lab.revoke(lab.user_certificate("eve"))
    for credential, reason in [(stranger, "NOT_MAPPED"), (lab.operator(), "OTHER_VO")]:
        status, headers, text = await (await opened(credential)).ask("GET /cms/a HTTP/1.1")
        assert (status, reason_of(headers)) == (403, reason), text
    door = await Door.open(lab, None)
    status, _, text = await door.ask("GET /cms/a HTTP/1.1")
    door.stream.close()
    assert status == 403 and b"without a certificate" in text

    for _ in range(400):  # the agent looks at the list of revoked certificates now and then
        status, _, text = await (await opened(revoked)).ask("GET /cms/a HTTP/1.1")
        if status == 403:
            break
        await asyncio.sleep(0.05)
    assert b"revoked" in text


async def test_a_ban_ends_an_upload_that_is_under_way(lab: LabGrid, opened: Any) -> None:
    await start(lab)
    door, idle = await opened(), await opened()
    await door.say("PUT /cms/a HTTP/1.1\nContent-Length: 5000000\nExpect: 100-continue")
    assert (await door.answer())[0] == 100
    await door.stream.write(b"x" * 100_000)
    assert (await idle.ask("OPTIONS / HTTP/1.1"))[0] == 200
    lab.ban("alice")
    status, _, text = await door.answer()
    assert status == 403 and b"banned" in text
    assert await door.hangs_up() and await idle.hangs_up()
    await until(lambda: on_disk(lab) == [])
    status, _, text = await (await opened()).ask("GET /cms/a HTTP/1.1")
    assert status == 403 and b"banned" in text


async def test_a_client_that_sends_nothing_more_is_cut_and_leaves_nothing(lab: LabGrid, opened: Any) -> None:
    await start(lab, stall_timeout_s=0.2)
    door = await opened()
    status, _, text = await door.ask("PUT /cms/a HTTP/1.1\nContent-Length: 5000000", b"x" * 70_000)
    assert status == 408 and b"no data arrived for 0.2 s" in text
    assert await door.hangs_up()
    await until(lambda: on_disk(lab) == [])


async def test_a_client_that_reads_nothing_is_cut_and_sees_that_it_is_not_whole(lab: LabGrid, opened: Any) -> None:
    channel = await start(lab)
    (lab.directory / "large").write_bytes(LARGE * 2)
    surl = (await client.put_file(channel, lab.directory / "large", "cms")).surl
    element = lab.agents["storage.CERN"].agent.element
    element.config = replace(element.config, stall_timeout_s=0.2)
    door = await opened()
    await door.say(f"GET /cms/{client.parse_surl(surl).file_id} HTTP/1.1")
    await until(lambda: lab.audit("storage.CERN", "call.refused"))
    assert [line["reason"] for line in lab.audit("storage.CERN", "call.refused")] == ["TRANSFER_STALLED"]
    with pytest.raises((TlsClosed, ConnectionError)):
        await door.answer()


async def test_the_door_is_published(lab: LabGrid) -> None:
    await start(lab)
    port = str(lab.port("storage.CERN", "http"))
    shown = [
        (entry.first("GlueSEAccessProtocolType"), entry.first("GlueSEAccessProtocolPort"))
        for entry in lab.agents["storage.CERN"].agent.entries()
        if entry.first("GlueSEAccessProtocolType")
    ]
    assert shown == [("gridfabric", str(lab.port("storage.CERN"))), ("https", port)]


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(lab: LabGrid, opened: Any) -> None:
    await start(lab)
    door = await opened()
    await door.say("PUT /cms/a HTTP/1.1\nContent-Length: 5000000", b"x" * 2_000_000)
    await until(lambda: on_disk(lab) != [])
    door.stream.close()
    await until(lambda: on_disk(lab) == [])
    assert (await (await opened()).ask("HEAD /cms/a HTTP/1.1"))[0] == 404


async def test_a_reader_keeps_the_file_that_is_replaced_meanwhile(lab: LabGrid, opened: Any) -> None:
    await start(lab)
    reader, writer = await opened(), await opened()
    assert (await writer.ask(f"PUT /cms/a HTTP/1.1\nContent-Length: {len(LARGE)}", LARGE))[0] == 201
    await reader.say("GET /cms/a HTTP/1.1")
    assert (await writer.ask("PUT /cms/a HTTP/1.1\nContent-Length: 3", b"new"))[0] == 204
    assert (await reader.answer())[2] == LARGE
    assert (await reader.ask("GET /cms/a HTTP/1.1"))[2] == b"new"


async def test_third_party_copies_both_ways_in_the_users_name(lab: LabGrid, opened: Any) -> None:
    lab.plan("storage", site="RAL")
    await start(lab)
    await lab.start("storage", site="RAL", options={"reserve_bytes": 0})
    url = f"https://localhost:{lab.port('storage.RAL', 'http')}/cms"
    here, alice = await opened(), lab.user("alice")
    assert (await here.ask(f"PUT /cms/a HTTP/1.1\nContent-Length: {len(LARGE)}", LARGE))[0] == 201

    status, _, text = await here.ask(f"COPY /cms/b HTTP/1.1\nSource: {url}/a")
    assert status == 404 and b"delegat" in text
    await delegate(await lab.channel("storage", credential=alice), alice)
    assert await here.copy(f"COPY /cms/a HTTP/1.1\nDestination: {url}/a") == "success: Created"
    assert await here.copy(f"COPY /cms/b HTTP/1.1\nSource: {url}/a") == "success: Created"
    assert (await here.ask("GET /cms/b HTTP/1.1"))[2] == LARGE
    (copied,) = lab.audit("storage.CERN", "storage.copied")
    assert (copied["source"], copied["peer"]) == (f"{url}/a", str(lab.user_certificate("alice").identity))
    assert {line["peer"] for line in lab.audit("storage.RAL", "storage.get")} == {copied["peer"]}

    assert (await here.ask(f"COPY /cms/b HTTP/1.1\nSource: {url}/a\nOverwrite: F"))[0] == 412
    assert (await here.ask(f"COPY /cms/c HTTP/1.1\nSource: {url}/no"))[0] == 404
    assert "no directory /cms/no" in await here.copy(f"COPY /cms/a HTTP/1.1\nDestination: {url}/no/a")
    for wrong in ("http://localhost:1/x", "https://u@localhost/x", "https:///x", "https://localhost:99999/x", "/cms/a"):
        assert (await here.ask(f"COPY /cms/c HTTP/1.1\nSource: {wrong}"))[0] == 400
    assert (await here.ask("COPY /cms/c HTTP/1.1\nSource: https://localhost:1/x"))[0] == 503
    await lab.stop("storage.RAL")
    assert (await here.ask("HEAD /cms/c HTTP/1.1"))[0] == 404
