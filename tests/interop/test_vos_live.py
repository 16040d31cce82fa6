"""A VO made, used and dissolved on a running grid of three sites, with `grid` commands and Debian's voms-proxy-init,
without a restart, usually within half a minute; afterwards nothing of it works."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.whole_grid import GRID, Lab, running_lab, until

SITES = ("CERN", "RAL", "NIKHEF")
DESCRIPTION = """
[grid]
name = "vos"
mode = "lab"
organisation = "/O=Lab"
[[vo]]
name = "cms"
[[site]]
name = "CERN"
top = {}
information = {}
broker = {}
bookkeeping = {}
catalog = {}
storage = {}
gatekeeper = {}
worker = { slots = 2 }
[[site]]
name = "RAL"
information = {}
gatekeeper = {}
worker = { slots = 1 }
[[site]]
name = "NIKHEF"
information = {}
gatekeeper = {}
worker = { slots = 1 }
"""
BOB = "/O=Lab/OU=Users/CN=bob"
MARK = "4711.4711"
"""An argument of the payload by which its process is found."""
pytestmark = [
    pytest.mark.grid,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("voms-proxy-init") is None, reason="not installed: voms-proxy-init"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab(DESCRIPTION) as lab:
        yield lab


def shell_of(lab: Lab, name: str, **more: str) -> Lab:
    """Another user's shell."""
    theirs = Lab(lab.folder)
    theirs.environment = {**lab.environment, **more} | {
        "X509_USER_CERT": str(lab.folder / name / "usercert.pem"),
        "X509_USER_KEY": str(lab.folder / name / "userkey.pem"),
        "X509_USER_PROXY": str(lab.folder / f"{name}.pem"),
    }
    return theirs


def run(lab: Lab, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=lab.environment, cwd=lab.folder, capture_output=True, text=True, timeout=60, check=False
    )


def payloads() -> list[int]:
    """Processes with the mark among their arguments."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if MARK.encode() in words:
            found.append(int(folder.name))
    return found


def test_a_vo_lives_and_dies(lab: Lab) -> None:
    agents = {agent["name"]: agent["restarts"] for agent in lab.json("status")["agents"]}
    began = time.monotonic()
    made = lab.json("vo", "create", "atlas")
    assert (made["state"], made["sites"], made["server"]) == ("open", [], "vo.cms")
    lab.grid("vo", "accept", "atlas", *(word for site in SITES for word in ("--site", site)))
    with ThreadPoolExecutor(3) as pool:
        bob = pool.submit(lab.grid, "user", "add", "bob", "--vo", "atlas", "--out", str(lab.folder / "bob"))
        others = [
            pool.submit(lab.grid, "vo", "member", "add", f"/O=Lab/OU=Users/CN=member {number}", "--vo", "atlas")
            for number in range(9)
        ]
        for future in (bob, *others):
            future.result()
    variables = lab.json("env")
    theirs = shell_of(lab, "bob", **variables | {"GRIDFABRIC_VO": "atlas"})
    until(lambda: '"atlas"' in Path(variables["VOMS_USERCONF"]).read_text(), 60, "vomses names the VO")
    asked = ("voms-proxy-init", "-voms", "atlas", "-valid", "2:00", "-out", theirs.environment["X509_USER_PROXY"])
    done = run(theirs, *asked)
    assert done.returncode == 0, (done.stdout, done.stderr)

    (lab.folder / "id.jdl").write_text('Executable = "/usr/bin/id"; StdOutput = "out"; OutputSandbox = {"out"};')
    (lab.folder / "long.jdl").write_text(f'Executable = "/bin/sleep"; Arguments = "{MARK}";')
    (lab.folder / "never.jdl").write_text(
        'Executable = "/bin/true"; Requirements = other.GlueCEStateFreeJobSlots > 99;'
    )
    job = theirs.json("job", "submit", "id.jdl")[0]["job_id"]
    long, never = (theirs.json("job", "submit", f"{name}.jdl")[0]["job_id"] for name in ("long", "never"))
    theirs.grid("job", "wait", job)
    assert theirs.json("job", "status", job)[0]["exit_code"] == 0
    theirs.grid("data", "put", "id.jdl", "lfn:/grid/atlas/id.jdl")
    until(lambda: payloads() and theirs.json("job", "status", long)[0]["state"] == "RUNNING", 60, "the job runs")
    would = lab.json("vo", "dissolve", "atlas", "--dry-run")
    assert len(would["members"]) == 10 and {hit["job_id"] for hit in would["jobs"]} == {long, never}
    assert lab.json("delegation", "ls", "--dn", BOB)["delegations"]

    dissolved = time.monotonic()
    lab.grid("vo", "dissolve", "atlas", "--reason", "merged into cms")
    until(lambda: not payloads(), 60, "no process of the VO is left")
    gone_s = time.monotonic() - dissolved
    until(lambda: not lab.json("vo", "dissolve", "atlas", "--dry-run")["jobs"], 60, "no job is under way")
    refused = run(theirs, str(GRID), "job", "submit", "id.jdl")
    assert refused.returncode == 1 and "the VO atlas was dissolved at" in refused.stderr, refused.stderr
    took_s = time.monotonic() - began
    print(f"made, used and dissolved in {took_s:.1f} s; last process gone {gone_s:.2f} s after the command began")
    assert {agent["name"]: agent["restarts"] for agent in lab.json("status")["agents"]} == agents

    # nothing of it works, at any door
    for command in (
        ("job", "status", long),
        ("data", "get", "lfn:/grid/atlas/id.jdl", "back.jdl"),
        ("proxy", "init", "--voms", "atlas"),
    ):
        refused = run(theirs, str(GRID), *command)
        assert refused.returncode != 0 and "Traceback" not in refused.stderr, command
        assert "merged into cms" in refused.stderr or "VO atlas" in refused.stderr, (command, refused.stderr)
    late = run(theirs, *asked)
    assert late.returncode != 0
    host, port = made["voms"].split(":")
    with pytest.raises(OSError, match="refused"), socket.create_connection((host, int(port)), timeout=5):
        pass
    found = run(lab, "ldapsearch", "-x", "-LLL", "-H", f"ldap://{variables['GRIDFABRIC_VO_LDAP']}", "-b", "o=atlas")
    assert "dn:" not in found.stdout
    assert '"atlas"' not in Path(variables["VOMS_USERCONF"]).read_text()
    assert not list(Path(variables["X509_VOMS_DIR"]).glob("atlas/*.lsc"))
    assert (lab.state / "sites" / "CERN" / "vo.cms" / "vo-atlas.db").exists()  # the history stays
