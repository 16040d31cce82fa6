"""Scratch directories against hostile payloads, the sandbox cache, owners' proxies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.worker import scratch
from agents.worker.proxies import OwnerProxies
from agents.worker.sandbox_cache import SandboxCache
from fabric.clock import SystemClock
from fabric.errors import DataCorrupted, GridError, Refused
from security.proxies import create_proxy, sign_request
from security.testing import TestGrid

KEY = "0123456789abcdef0123456789abcdef"


def make(root: Path, **files: bytes) -> Path:
    return scratch.create(root, KEY, uid=-1, gid=-1, files=files, inputs=[])


def test_a_directory_is_closed_and_holds_its_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"#!/bin/sh\n")
    inputs = [scratch.Input("run.sh", source, True), scratch.Input("data", source, False)]
    path = scratch.create(tmp_path, KEY, uid=-1, gid=-1, files={".x509_proxy": b"P"}, inputs=inputs)
    modes = {name: os.stat(path / name).st_mode & 0o777 for name in os.listdir(path)}
    assert modes == {".x509_proxy": 0o600, "run.sh": 0o700, "data": 0o600}
    assert os.stat(path).st_mode & 0o777 == 0o700
    (path / "run.sh").write_bytes(b"changed")
    assert source.read_bytes() == b"#!/bin/sh\n"


def test_making_it_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    path = make(tmp_path)
    (path / "sub").mkdir()
    (path / "sub" / "file").touch()
    make(tmp_path, a=b"1")
    assert os.listdir(path) == ["a"]


def test_output_is_read_without_following_links(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = make(tmp_path, good=b"good")
    (path / "sub").mkdir()
    (path / "sub" / "deep").write_text("deep")
    os.symlink(secret, path / "link")
    os.symlink(tmp_path, path / "folder")
    os.mkfifo(path / "fifo")
    for name, content in (("good", b"good"), ("sub/deep", b"deep")):
        descriptor = scratch.open_output(tmp_path, KEY, name, -1)
        assert os.read(descriptor, 100) == content
        os.close(descriptor)
    for name in ("link", "folder/secret", "fifo", "sub"):
        with pytest.raises(scratch.OutputError):
            os.close(scratch.open_output(tmp_path, KEY, name, -1))
    with pytest.raises(FileNotFoundError):
        scratch.open_output(tmp_path, KEY, "missing", -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="another account needs root")
def test_only_files_of_the_jobs_own_account_are_output(tmp_path: Path) -> None:
    path = scratch.create(tmp_path, KEY, uid=61001, gid=61001, files={"own": b"x"}, inputs=[])
    assert os.stat(path).st_uid == 61001
    os.close(scratch.open_output(tmp_path, KEY, "own", 61001))
    (path / "roots").write_text("x")
    with pytest.raises(scratch.OutputError):
        scratch.open_output(tmp_path, KEY, "roots", 61001)


def test_everything_can_be_removed(tmp_path: Path) -> None:
    path = make(tmp_path, a=b"1")
    deep = os.open(path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    (path / "closed").mkdir()
    (path / "closed" / "file").touch()
    os.chmod(path / "closed", 0)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "stays").touch()
    os.symlink(outside, path / "link")
    scratch.remove(tmp_path, KEY)
    assert not path.exists()
    assert (outside / "stays").exists()
    scratch.remove(tmp_path, KEY)


def test_a_renewed_proxy_replaces_the_old_one_and_follows_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    path = make(tmp_path, **{".x509_proxy": b"old"})
    os.unlink(path / ".x509_proxy")
    os.symlink(target, path / ".x509_proxy")
    os.symlink(target, path / ".x509_proxy.new")
    scratch.replace_file(tmp_path, KEY, ".x509_proxy", b"new", uid=-1, gid=-1)
    assert (path / ".x509_proxy").read_bytes() == b"new"
    assert not (path / ".x509_proxy").is_symlink()
    assert target.read_text() == "untouched"


def test_usage_counts_bytes_and_inodes(tmp_path: Path) -> None:
    path = make(tmp_path, a=b"x" * 10_000)
    (path / "d").mkdir()
    for number in range(50):
        (path / "d" / str(number)).touch()
    size, inodes = scratch.usage(path, 1000)
    assert size >= 10_000
    assert inodes == 52
    assert scratch.usage(path, 10)[1] == 11


def test_scratch_goes_where_accounts_can_walk(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    state = closed / "state"
    state.mkdir(parents=True)
    os.chmod(closed, 0o700)
    assert scratch.choose_root("", state, for_others=False) == state / "scratch"
    assert scratch.choose_root("/x/y", state, for_others=True) == Path("/x/y")
    elsewhere = scratch.choose_root("", state, for_others=True)
    assert elsewhere.parent == Path("/var/tmp") and (state / "scratch").readlink() == elsewhere
    assert scratch.choose_root("", state, for_others=True) == elsewhere
    assert scratch.choose_root("", state, for_others=False) == state / "scratch"
    assert not (state / "scratch").is_symlink()


def test_a_mirror_follows_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.0").write_text("A")
    os.symlink("a.0", source / "hash.0")
    assert scratch.mirror(source, target) == 2
    assert scratch.mirror(source, target) == 0
    assert (target / "hash.0").read_text() == "A"
    (source / "hash.0").unlink()
    assert scratch.mirror(source, target) == 1
    assert os.listdir(target) == ["a.0"]


# ---- cache


class Server:
    """Gives files by their hash and counts."""

    def __init__(self, *contents: bytes) -> None:
        self.files = {hashlib.sha256(data).hexdigest(): data for data in contents}
        self.calls = 0
        self.damage = False

    async def fetch(self, sha256: str) -> AsyncIterator[bytes]:
        self.calls += 1
        data = self.files[sha256]
        for start in range(0, len(data), 4):
            await asyncio.sleep(0)
            yield b"????" if self.damage else data[start : start + 4]


async def test_a_file_is_fetched_once_for_many(tmp_path: Path) -> None:
    server = Server(b"content")
    (sha256,) = server.files
    cache = SandboxCache(tmp_path / "c", max_bytes=100, max_files=3, fetch=server.fetch)
    cache.open()
    paths = await asyncio.gather(*(cache.get(sha256, 7) for _ in range(5)))
    assert server.calls == 1
    assert {path.read_bytes() for path in paths} == {b"content"}
    again = SandboxCache(tmp_path / "c", max_bytes=100, max_files=3, fetch=server.fetch)
    again.open()
    assert again.cached(sha256) is not None


async def test_damage_is_noticed_and_bounds_are_kept(tmp_path: Path) -> None:
    contents = [bytes([65 + number]) * 40 for number in range(4)]
    server = Server(*contents)
    cache = SandboxCache(tmp_path / "c", max_bytes=100, max_files=3, fetch=server.fetch)
    cache.open()
    server.damage = True
    with pytest.raises(DataCorrupted):
        await cache.get(next(iter(server.files)), 40)
    assert os.listdir(tmp_path / "c") == []
    server.damage = False
    for sha256 in server.files:
        await cache.get(sha256, 40)
    assert len(os.listdir(tmp_path / "c")) == 2


# ---- proxies


async def test_one_request_per_owner_and_renewal_with_the_same_key(tmp_path: Path) -> None:
    owner = "/C=XX/O=TestGrid/OU=Users/CN=alice"
    now = datetime.now(UTC)
    with contextlib.closing(TestGrid(tmp_path, now=now)) as grid:
        delegated = create_proxy(grid.user(owner), lifetime=timedelta(hours=2), now=now)
        asked: list[tuple[str, bytes]] = []
        renewed: list[str] = []
        proxies = OwnerProxies(
            ask=lambda who, pem: asked.append((who, pem)),
            clock=SystemClock(),
            renewed=lambda who, _credential: renewed.append(who),
        )
        waiting = [asyncio.ensure_future(proxies.get(owner)) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(asked) == 1
        chain = sign_request(asked[0][1], delegated, lifetime=timedelta(hours=1), now=now, limited=True)
        proxies.granted(owner, chain, "", "")
        first, *_ = await asyncio.gather(*waiting)
        assert await proxies.get(owner) is first
        assert len(asked) == 1
        chain = sign_request(asked[0][1], delegated, lifetime=timedelta(hours=2), now=now, limited=True)
        proxies.granted(owner, chain, "", "")
        assert renewed == [owner, owner]
        assert (await proxies.get(owner)).not_after > first.not_after
        refused = asyncio.ensure_future(proxies.get("/C=XX/O=TestGrid/OU=Users/CN=bob"))
        await asyncio.sleep(0)
        proxies.granted("/C=XX/O=TestGrid/OU=Users/CN=bob", b"", "DELEGATION_MISSING", "nothing was delegated")
        with pytest.raises(Refused) as caught:
            await refused
        error: GridError = caught.value
        assert (error.reason, error.sentence) == ("DELEGATION_MISSING", "nothing was delegated")
