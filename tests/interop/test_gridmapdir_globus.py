"""The mapping library of Globus, which its gatekeeper calls, and ours on one map file and one gridmapdir."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from security.gridmapdir import GridMapDir
from security.mapfile import GridMapFile, MapEntry
from security.names import DistinguishedName

LIBRARY = "libglobus_gss_assist.so.3"


def _installed() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _installed(), reason="libglobus-gss-assist3 is not installed")

MAP = """
import ctypes, sys
library, user = ctypes.CDLL(sys.argv[1]), ctypes.c_char_p()
for name in sys.argv[2:]:
    code = library.globus_gss_assist_gridmap(name.encode(), ctypes.byref(user))
    print(user.value.decode() if code == 0 else "refused")
"""

PEOPLE = [
    "/O=Grid/CN=Ada Lovelace",
    "/O=Grid/OU=x.example.org/CN=host/ce.example.org",
    "/O=Grid/CN=Jos\u00e9 \u0141",
    "/DC=org/DC=example/CN=O'Neil (1), x+y/emailAddress=o@example.org",
    "/O=Grid/CN=Eve: 100%",
]


class Site:
    """One map file and one directory of leases."""

    def __init__(self, folder: Path, accounts: int, people: list[str]) -> None:
        self.map, self.pool = folder / "grid-mapfile", GridMapDir(folder / "gridmapdir")
        self.pool.create_accounts("cms", accounts)
        entries = tuple(MapEntry(DistinguishedName.parse(person), (".cms",)) for person in people)
        GridMapFile(entries).write(self.map)

    def globus(self, *people: str) -> list[str]:
        """The accounts that Globus gives for names as its gatekeeper has them."""
        names = [DistinguishedName.parse(person).openssl_oneline() for person in people]
        environment = {**os.environ, "GRIDMAP": str(self.map), "GRIDMAPDIR": str(self.pool.directory)}
        done = subprocess.run(
            [sys.executable, "-c", MAP, LIBRARY, *names], env=environment, capture_output=True, text=True, check=True,
            timeout=30,
        )  # fmt: skip
        return done.stdout.split()

    def ours(self, person: str) -> str:
        """The account that we give."""
        return self.pool.lease(DistinguishedName.parse(person), "cms")


@pytest.mark.parametrize("person", PEOPLE)
def test_both_see_the_same_lease(tmp_path: Path, person: str) -> None:
    site = Site(tmp_path, 3, PEOPLE)
    (theirs,) = site.globus(person)
    assert theirs.startswith("cms") and site.ours(person) == theirs
    (lease,) = site.pool.leases()
    assert lease.account == theirs and site.pool.recycle(lease, lambda _: "") == ""
    assert [site.ours(person)] == site.globus(person)


def test_neither_takes_what_the_other_has_leased_and_both_refuse_when_none_is_left(tmp_path: Path) -> None:
    site = Site(tmp_path, 4, PEOPLE)
    accounts = [site.ours(PEOPLE[0]), *site.globus(PEOPLE[1]), site.ours(PEOPLE[2]), *site.globus(PEOPLE[3])]
    assert len(set(accounts)) == 4
    assert site.globus(PEOPLE[4]) == ["refused"]
    with pytest.raises(Exception, match="all 4 accounts of the pool cms are leased"):
        site.ours(PEOPLE[4])


def test_globus_cannot_take_an_account_that_is_being_recycled(tmp_path: Path) -> None:
    site = Site(tmp_path, 1, PEOPLE)
    site.ours(PEOPLE[0])
    (lease,) = site.pool.leases()

    def in_use(account: str) -> str:
        assert site.globus(PEOPLE[1]) == ["refused"]
        return "processes 17"

    assert site.pool.recycle(lease, in_use) == "processes 17"
    assert site.globus(PEOPLE[1], PEOPLE[0]) == ["refused", "cms001"]
    (lease,) = site.pool.leases()
    assert site.pool.recycle(lease, lambda _: "") == "" and site.globus(PEOPLE[1]) == ["cms001"]


def test_both_at_once_never_give_one_account_to_two(tmp_path: Path) -> None:
    people = [f"/O=Grid/CN=person {number}" for number in range(40)]
    site = Site(tmp_path, 40, people)
    found: dict[str, str] = {}

    def lease_ours() -> None:
        for person in people[:20]:
            found[person] = site.ours(person)

    thread = threading.Thread(target=lease_ours)
    thread.start()
    found.update(zip(people[20:], site.globus(*people[20:]), strict=True))
    thread.join()
    assert len(found) == len(set(found.values())) == 40
    assert {str(lease.subject): lease.account for lease in site.pool.leases()} == {
        person.lower(): account for person, account in found.items()
    }
