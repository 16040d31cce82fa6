"""How a host gets fresh revocation lists: all at once, each believed only by its signature, the last good one kept."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabric import unfetched
from fabric.http import Content, HttpServer, http_get
from fabric.logs import null_logger
from fabric.trust_updater import JITTER, LOCK_NAME, Source, TrustUpdater, published_urls
from security.errors import utc_text
from security.testing import NOW, TestGrid
from security.trust import subject_hash

DAY = timedelta(days=1)


class Log:
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **facts: self.lines.append((level, event, facts))

    def events(self, level: str) -> list[str]:
        return [event for found, event, _ in self.lines if found == level]


class Host:
    """A directory of authorities with its updater, and a web server with lists."""

    def __init__(self, grid: TestGrid) -> None:
        self.grid, self.log = grid, Log()
        self.lists: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.server = HttpServer(self._route, null_logger())
        self.stem = subject_hash(grid.ca.certificate)
        self.endpoints: list[Any] = []
        settings = SimpleNamespace(
            certificates=grid.trust_directory,
            fabric=SimpleNamespace(crl_refresh_s=0.01),
            endpoints=lambda kind: self.endpoints,
        )
        self.passed = timedelta(0)
        clock = SimpleNamespace(now=lambda: grid.now + self.passed)
        self.problems: dict[str, str] = {}
        self.context: Any = SimpleNamespace(
            settings=settings, clock=clock, log=self.log, trust=grid.trust_store, problem=self.problems.__setitem__,
            solved=lambda key: self.problems.pop(key, None),
        )  # fmt: skip
        self.updater = TrustUpdater(self.context, chance=random.Random(1))

    def _route(self, path: str) -> Content | None:
        self.asked.append(path)
        return Content(self.lists[path], etag=str(hash(self.lists[path]))) if path in self.lists else None

    def source(self, path: str = "", timeout_s: float = 2.0) -> Source:
        return Source("127.0.0.1", self.server.port, path or f"/crl/{self.stem}.r0", timeout_s)

    def serve(self, crl: bytes) -> None:
        self.lists[f"/crl/{self.stem}.r0"] = crl


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    grid = TestGrid(tmp_path / "grid")
    made = Host(grid)
    await made.server.start("127.0.0.1", 0)
    made.endpoints.append(SimpleNamespace(host="127.0.0.1", http=made.server.port))
    yield made
    await made.server.close()
    grid.close()


async def test_a_newer_list_is_installed_and_asked_for_again_by_its_tag(host: Host) -> None:
    alice = host.grid.user("alice").certificate
    host.grid.ca.revoke(alice.serial_number, "keyCompromise", NOW)
    host.serve(host.grid.ca.build_crl(NOW, DAY))
    await host.updater.fetch_all()
    crl = host.grid.trust.authorities[0].crl
    assert crl is not None and crl.revokes(alice.serial_number)
    stamp = host.grid.crl_path.stat().st_mtime_ns
    await host.updater.fetch_all()
    assert host.grid.crl_path.stat().st_mtime_ns == stamp
    assert host.log.events("info") == ["crl.installed"]


async def test_a_list_that_somebody_replaced_on_the_disk_comes_back(host: Host) -> None:
    older = host.grid.crl_path.read_bytes()
    host.grid.ca.revoke(host.grid.user("alice").certificate.serial_number, "keyCompromise", NOW)
    host.serve(host.grid.ca.build_crl(NOW, DAY))
    await host.updater.fetch_all()
    good = host.grid.crl_path.read_bytes()
    for bad in (older, b"garbage", host.grid.same_name_authority().build_crl(NOW, DAY)):
        host.grid.crl_path.write_bytes(bad)
        await host.updater.fetch_all()
        assert host.grid.crl_path.read_bytes() == good
    host.grid.crl_path.unlink()
    await host.updater.fetch_all()
    assert host.grid.crl_path.read_bytes() == good


@pytest.mark.parametrize("bad", ["older", "expired", "forged", "garbage", "future", "another authority's", "empty"])
async def test_the_last_good_list_stays(host: Host, bad: str) -> None:
    grid = host.grid
    older = grid.ca.build_crl(NOW, DAY)
    grid.publish_crl()
    before = grid.crl_path.read_bytes()
    host.serve(
        {
            "older": older,
            "expired": grid.ca.build_crl(NOW - 3 * DAY, DAY),
            "forged": grid.same_name_authority().build_crl(NOW, DAY),
            "garbage": b"<html>login</html>",
            "future": grid.ca.build_crl(NOW + DAY, DAY),
            "another authority's": grid.unknown_authority().build_crl(NOW, DAY),
            "empty": b"",
        }[bad]
    )
    await host.updater.fetch_all()
    assert grid.crl_path.read_bytes() == before
    assert [path.name for path in grid.trust_directory.glob("*.r*")] == [f"{host.stem}.r0"]
    assert host.log.events("warning") == ([] if bad == "older" else ["crl.refused"])


async def test_who_does_not_answer_delays_nobody(host: Host) -> None:
    """All are asked at once, each with its own deadline."""
    held: list[asyncio.StreamWriter] = []

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    host.serve(host.grid.ca.build_crl(NOW, DAY))
    slow = [Source("127.0.0.1", port, f"/{n}", 60) for n in range(3)]
    work = asyncio.create_task(host.updater.fetch([*slow, Source("127.0.0.1", port, "/late", 0.05), host.source()]))
    async with asyncio.timeout(60):
        told = {"crl.installed", "crl.not_fetched"}
        while len(held) < 4 or not told <= {*host.log.events("info"), *host.log.events("warning")}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not work.done()  # one list is there, one is given up, while the others are still waited for
        for writer in held:
            writer.close()
        await work
    assert host.log.events("warning") == ["crl.not_fetched"] * 4
    silent.close()


async def test_a_failure_is_told_once_and_its_end_too(host: Host) -> None:
    source = host.source("/later")
    for _ in range(3):
        await host.updater.fetch([source])
    assert host.log.events("warning") == ["crl.not_fetched"]
    assert host.log.events("debug") == ["crl.not_fetched"] * 2
    host.lists["/later"] = host.grid.ca.build_crl(NOW, DAY)
    await host.updater.fetch([source])
    assert host.log.events("info") == ["crl.installed", "crl.fetched_again"]


async def test_a_list_that_does_not_come_is_an_alarm_while_the_old_one_is_good(host: Host) -> None:
    other = TrustUpdater(host.context)  # another agent of the host, which does not try itself
    gone = host.source()
    for minutes, known in ((0, False), (4, False), (6, True), (60, True)):
        host.passed = timedelta(minutes=minutes)
        await host.updater.fetch([gone])
        other.tell()
        assert ("unfetched lists" in host.problems) == known, minutes
    sentence = host.problems["unfetched lists"]
    assert gone.url in sentence and f"since {utc_text(NOW)}" in sentence and "cannot be" in sentence
    assert host.log.events("error") == ["crl.unfetched"]
    assert unfetched.alarm(host.grid.trust_directory, NOW + timedelta(hours=6)) == ""  # nobody asks there any more
    host.serve(host.grid.ca.build_crl(NOW, DAY))
    await host.updater.fetch([gone])
    other.tell()
    assert "unfetched lists" not in host.problems


@pytest.mark.parametrize("since", ["soon", "2026-01-01T00:00:00", "", None])
async def test_a_record_that_is_nonsense_is_no_alarm_and_is_replaced(host: Host, since: str | None) -> None:
    record: Any = [] if since is None else {"http://x": {"since": since, "last": since, "sentence": ""}}
    (host.grid.trust_directory / unfetched.RECORD_NAME).write_text(json.dumps(record))
    assert unfetched.alarm(host.grid.trust_directory, NOW) == ""
    unfetched.note(host.grid.trust_directory, {"http://y": "no"}, (), NOW)
    assert list(unfetched.load(host.grid.trust_directory)) == ["http://y"]


async def test_addresses_beside_the_authority_are_used(host: Host) -> None:
    """The IGTF distribution: `.crl_url` one a line, `.info` with semicolons."""
    folder, port = host.grid.trust_directory, host.server.port
    (folder / f"{host.stem}.crl_url").write_text(f"# comment\nhttp://127.0.0.1:{port}/a.crl\n\n")
    (folder / f"{host.stem}.info").write_text(
        f"alias = Test\ncrl_url = http://127.0.0.1:{port}/b.der;http://127.0.0.1:{port}/a.crl\nstatus = operational\n"
    )
    host.lists["/b.der"] = host.grid.ca.build_crl(NOW, DAY)
    assert len(published_urls(folder, host.stem)) == 2
    await host.updater.fetch(host.updater.distribution_sources())
    assert sorted(host.asked) == ["/a.crl", "/b.der"]
    assert host.log.events("info") == ["crl.installed"]


@pytest.mark.parametrize(
    "url", ["https://a/crl", "ftp://a/crl", "file:///etc/passwd", "http://u:p@a/", "http://a b/", "http://a:x/", "?"]
)
async def test_other_addresses_are_told_and_not_asked(host: Host, url: str) -> None:
    (host.grid.trust_directory / f"{host.stem}.crl_url").write_text(f"{url}\n")
    assert host.updater.distribution_sources() == []
    assert host.log.events("warning") == ["crl.not_fetched"]


async def test_one_of_a_host_fetches_and_two_hosts_never_in_step(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = host.updater._take_turn(LOCK_NAME, 60)
    assert turn is not None
    assert TrustUpdater(host.context)._take_turn(LOCK_NAME, 60) is None
    import os

    os.close(turn)
    pauses: list[float] = []

    async def sleep(delay: float) -> None:
        pauses.append(delay)
        if len(pauses) > 20:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await host.updater._loop("never", 1.0, list)
    assert len(set(pauses)) > 15
    assert all(1 - JITTER / 2 <= pause <= (1 + JITTER / 2) * 3 for pause in pauses)


async def test_a_body_without_a_length_ends_with_the_connection(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert len((await http_get("127.0.0.1", port, "/")).body or b"") == 100_000
    from fabric.errors import Unavailable

    with pytest.raises(Unavailable, match="more than the 10 bytes"):
        await http_get("127.0.0.1", port, "/", max_bytes=10)
    server.close()
