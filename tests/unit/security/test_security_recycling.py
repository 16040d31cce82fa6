"""Pool accounts are given to the next person only when nothing of the last one is left."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from security import leftovers
from security.errors import MappingError, Reason
from security.gridmapdir import GridMapDir, encode_subject
from security.leftovers import leftovers_of
from security.names import DistinguishedName

ADA = DistinguishedName.parse("/O=Grid/CN=Ada")
BOB = DistinguishedName.parse("/O=Grid/CN=Bob")
EVE = DistinguishedName.parse("/O=Grid/CN=Eve: with a colon")


@pytest.fixture
def pool(tmp_path: Path) -> GridMapDir:
    made = GridMapDir(tmp_path / "gridmapdir")
    made.create_accounts("cms", 2)
    made.create_accounts("prd", 1)
    return made


def nothing(account: str) -> str:
    return ""


def test_an_account_without_leftovers_goes_to_the_next_person(pool: GridMapDir) -> None:
    asked: list[str] = []

    def in_use(account: str) -> str:
        asked.append(account)
        with pytest.raises(MappingError):  # while it is looked at nobody can take it
            for other in (BOB, EVE):
                pool.lease(other, "cms")
        return ""

    assert pool.lease(ADA, "cms") == "cms001"
    (lease,) = pool.leases()
    assert pool.recycle(lease, in_use) == "" and asked == ["cms001"]
    assert pool.account_of(ADA) is None
    assert pool.lease(EVE, "cms") == "cms001", "Bob took the other one while it was looked at"


@pytest.mark.parametrize("why", ["processes 17", "files /tmp/x", "2 jobs"])
def test_an_account_with_leftovers_stays_with_its_owner(pool: GridMapDir, why: str) -> None:
    pool.lease(ADA, "cms")
    pool.lease(BOB, "cms")
    for lease in pool.leases():
        assert pool.recycle(lease, lambda _: why) == why
    assert (pool.account_of(ADA), pool.account_of(BOB)) == ("cms001", "cms002")
    with pytest.raises(MappingError) as caught:
        pool.lease(EVE, "cms")
    assert caught.value.reason == Reason.POOL_EXHAUSTED and "release unused ones" in caught.value.sentence
    assert not list(pool.directory.glob(".recycling-*"))


def test_a_lease_that_is_used_at_that_moment_is_kept(pool: GridMapDir) -> None:
    pool.lease(ADA, "cms")
    (lease,) = pool.leases()
    later = (lease.used_at + timedelta(seconds=5)).timestamp()
    os.utime(pool.directory / "cms001", (later, later))
    assert pool.recycle(lease, nothing) == "it was used again"
    assert pool.account_of(ADA) == "cms001"


def test_somebody_who_comes_back_while_leftovers_are_found_gets_another_account(pool: GridMapDir) -> None:
    pool.lease(ADA, "cms")
    (lease,) = pool.leases()

    def in_use(account: str) -> str:
        assert pool.lease(ADA, "cms") == "cms002"
        return "processes 17"

    assert pool.recycle(lease, in_use) == "processes 17"
    with pytest.raises(MappingError):  # the first has leftovers of hers, so nobody may have it
        pool.lease(BOB, "cms")
    assert pool.free_interrupted(lambda _: "processes 17") == ()
    with pytest.raises(MappingError):
        pool.lease(BOB, "cms")
    assert pool.free_interrupted(nothing) == ("cms001",)
    assert pool.lease(BOB, "cms") == "cms001"


def test_a_look_that_fails_keeps_the_lease(pool: GridMapDir) -> None:
    pool.lease(ADA, "cms")
    (lease,) = pool.leases()

    def in_use(account: str) -> str:
        raise OSError("no /proc")

    with pytest.raises(OSError):
        pool.recycle(lease, in_use)
    assert pool.account_of(ADA) == "cms001" and not list(pool.directory.glob(".recycling-*"))


def test_a_lease_that_is_gone_is_not_recycled_twice(pool: GridMapDir) -> None:
    pool.lease(ADA, "cms")
    (lease,) = pool.leases()
    assert pool.recycle(lease, nothing) == ""
    assert "given back" in pool.recycle(lease, nothing)
    pool.lease(BOB, "cms")
    assert "given back" in pool.recycle(lease, nothing), "the account is another person's now"
    assert pool.account_of(BOB) == "cms001"


def test_a_crash_while_recycling_loses_no_account(pool: GridMapDir) -> None:
    pool.lease(ADA, "cms")
    os.link(pool.directory / "cms001", pool.directory / ".recycling-cms001")
    assert pool.free_interrupted(lambda _: "files") == ("cms001",), "the lease was still there: nothing had happened"
    assert pool.account_of(ADA) == "cms001"
    os.link(pool.directory / "cms001", pool.directory / ".recycling-cms001")
    pool.release(ADA)
    assert pool.free_interrupted(lambda _: "files") == ()
    assert pool.free_interrupted(nothing) == ("cms001",)
    assert pool.lease(BOB, "cms") == "cms001"


def test_one_person_may_hold_an_account_of_each_pool_where_roles_decide(pool: GridMapDir) -> None:
    assert pool.lease(EVE, "cms", per_pool=True) == "cms001"
    assert pool.lease(EVE, "prd", per_pool=True) == "prd001"
    assert pool.lease(EVE, "cms", per_pool=True) == "cms001"
    name = str(EVE).lower()
    assert [(lease.subject, lease.pool) for lease in pool.leases()] == [(name, "cms"), (name, "prd")]
    assert pool.account_of(EVE) is None and pool.account_of(EVE, "prd") == "prd001"
    first, second = pool.leases()
    assert pool.recycle(second, nothing) == "" and pool.account_of(EVE, "cms") == "cms001"
    assert pool.recycle(first, nothing) == "" and pool.leases() == ()


def test_what_a_globus_gatekeeper_leased_is_seen_and_recycled(pool: GridMapDir) -> None:
    """Globus makes the same hard link with the same name (gridmapdir.c); it never removes one."""
    os.link(pool.directory / "cms002", pool.directory / encode_subject(ADA))
    (lease,) = pool.leases()
    assert (lease.account, lease.pool, lease.subject) == ("cms002", "", str(ADA).lower())
    assert pool.lease(ADA, "cms") == "cms002"
    (lease,) = pool.leases()
    assert pool.recycle(lease, nothing) == "" and os.stat(pool.directory / "cms002").st_nlink == 1


# What is left on a host

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for files and processes of another account")
NOBODY_UID = 61_998


def test_files_are_found_where_everybody_may_write(tmp_path: Path) -> None:
    uid = os.getuid()
    (tmp_path / "closed").mkdir(mode=0o755)
    assert leftovers_of(uid + 7, [tmp_path, tmp_path / "missing"], proc=_proc(tmp_path)) == leftovers.Leftovers()
    found = leftovers_of(uid, [tmp_path], proc=_proc(tmp_path))
    assert str(tmp_path / "closed") in found.files and "files" in found.sentence


def _proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    proc.mkdir(exist_ok=True)
    return proc


@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_a_process_counts_by_any_of_its_four_uids(tmp_path: Path, column: int) -> None:
    proc = _proc(tmp_path)
    uids = ["Uid:", "1", "1", "1", "1"]
    uids[column] = "4711"
    (proc / "17").mkdir()
    (proc / "17" / "status").write_text("Name:\tx\n" + "\t".join(uids) + "\n")
    (proc / "18").mkdir()  # ended: no status any more
    (proc / "self").mkdir()
    assert leftovers_of(4711, [], proc=proc).processes == (17,)
    assert not leftovers_of(471, [], proc=proc)


def test_what_cannot_be_looked_through_counts_as_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be looked through" in leftovers_of(1, [], proc=tmp_path / "no-proc").sentence
    monkeypatch.setattr(leftovers, "MAX_ENTRIES", 3)
    crowded = tmp_path / "crowded"
    crowded.mkdir()
    for number in range(4):
        (crowded / str(number)).touch()
    assert "more than 3 files" in leftovers_of(4711, [crowded], proc=_proc(tmp_path)).sentence


@ROOT
def test_a_real_process_and_a_real_file_of_another_account(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, user=NOBODY_UID)
    try:
        assert leftovers_of(NOBODY_UID, []).processes == (process.pid,)
    finally:
        process.communicate()
    assert not leftovers_of(NOBODY_UID, [tmp_path])
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    left = tmp_path / "open" / "x509up"
    left.touch()
    os.chown(left, NOBODY_UID, NOBODY_UID)
    assert leftovers_of(NOBODY_UID, [tmp_path]).files == (str(left),)
