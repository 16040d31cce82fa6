"""Authorities of a whole grid in Ray, used only through the `grid` command: nothing is lost while a key is rolled over,
and OpenSSL and curl read the directory at every step."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.whole_grid import GRID, Lab, running_lab, until

from security.certificates import issuer_among

DESCRIPTION = """
[grid]
name = "authorities"
mode = "lab"
organisation = "/O=Lab"
[[vo]]
name = "cms"
[[site]]
name = "LAB"
top = {}
information = {}
broker = {}
bookkeeping = {}
catalog = {}
keystore = {}
storage = {}
gatekeeper = {}
worker = { slots = 4 }
[[site]]
name = "TAPES"
information = {}
keystore = {}
storage = { tape = { vos = ["cms"], mount_s = 0, seek_s = 0, high_water = 0, low_water = 0 } }
[[site]]
name = "KEYS"
keystore = {}
"""
CURL_NOT_TRUSTED, CURL_NO_HTTP = 60, (1, 52, 56, 92)
pytestmark = [
    pytest.mark.grid,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("openssl") is None or shutil.which("curl") is None, reason="no openssl or curl"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab(DESCRIPTION) as lab:
        yield lab


def submit(lab: Lab, name: str) -> str:
    """A job that ends well once `let_end` is called with its name."""
    command = f"while [ ! -e {lab.folder}/{name}.end ]; do sleep 0.2; done; echo {name}"
    (lab.folder / f"{name}.jdl").write_text(
        f'Executable = "/bin/sh"; Arguments = "-c \\"{command}\\""; StdOutput = "out"; OutputSandbox = {{"out"}};'
    )
    return str(lab.json("job", "submit", f"{name}.jdl")[0]["job_id"])


def let_end(lab: Lab, name: str, job: str) -> None:
    (lab.folder / f"{name}.end").touch()
    lab.grid("job", "wait", job)
    assert state(lab, job) == "DONE"


def state(lab: Lab, job: str) -> str:
    return str(lab.json("job", "status", job)[0]["state"])


def endpoints(lab: Lab) -> list[dict[str, Any]]:
    """Every agent with a gRPC port."""
    found = json.loads((lab.state / "endpoints.json").read_text())["endpoints"]
    return [one for several in found.values() for one in several if one.get("rpc")]


def authorities(lab: Lab) -> list[x509.Certificate]:
    """Those of the directory, oldest key first."""
    folder = lab.state / "certificates"
    return [x509.load_pem_x509_certificate(path.read_bytes()) for path in sorted(folder.glob("*.[0-9]"))]


def live_on(lab: Lab, authority: x509.Certificate) -> bool:
    """Whether every agent shows a certificate that this key signed."""
    for one in endpoints(lab):
        leaf = ssl.get_server_certificate((one["host"], one["rpc"]), timeout=5)
        if issuer_among(x509.load_pem_x509_certificate(leaf.encode()), [authority]) is None:
            return False
    return True


def openssl_accepts(lab: Lab, certificate: Path) -> bool:
    folder = str(lab.state / "certificates")
    done = subprocess.run(
        ["openssl", "verify", "-crl_check", "-CApath", folder, str(certificate)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode == 0


def curl_accepts(lab: Lab) -> bool:
    """Whether curl believes the certificate of an agent; that it speaks gRPC does not matter here."""
    server, folder = endpoints(lab)[0], str(lab.state / "certificates")
    url = f"https://{server['host']}:{server['rpc']}/"
    done = subprocess.run(["curl", "-s", "--capath", folder, url], capture_output=True, timeout=30, check=False)
    assert done.returncode in (0, CURL_NOT_TRUSTED, *CURL_NO_HTTP)
    return done.returncode != CURL_NOT_TRUSTED


class Copies(threading.Thread):
    """Files on their way to the storage element, one after the other, until told to stop."""

    def __init__(self, lab: Lab, name: str) -> None:
        super().__init__(daemon=True)
        self.lab, self.prefix, self.stopped = lab, name, threading.Event()
        self.done: list[str] = []
        self.failures: list[str] = []
        (lab.folder / f"{name}.bin").write_bytes(bytes(range(256)) * 4096 * 8)

    def run(self) -> None:
        while not self.stopped.is_set():
            lfn = f"/grid/cms/{self.prefix}-{len(self.done) + len(self.failures)}"
            command = [str(GRID), "data", "put", f"{self.prefix}.bin", lfn]
            put = subprocess.run(
                command, env=self.lab.environment, cwd=self.lab.folder, capture_output=True, text=True, timeout=90,
                check=False,
            )  # fmt: skip
            (self.failures if put.returncode else self.done).append(put.stderr if put.returncode else lfn)


def test_a_job_reads_what_is_on_tape_and_what_is_encrypted(lab: Lab) -> None:
    (lab.folder / "patients").write_text("patient 7")
    lab.grid("data", "put", "--encrypt", "patients", "lfn:/grid/cms/patients", "--se", "LAB")
    lab.grid("data", "put", "patients", "lfn:/grid/cms/raw/run1", "--se", "TAPES")

    def on_tape() -> bool:
        return lab.json("data", "stat", "lfn:/grid/cms/raw/run1")["replicas"][0]["locality"] == "NEARLINE"

    until(on_tape, 60, "the file is on tape only")
    (lab.folder / "read.jdl").write_text(
        'Executable = "/bin/cat"; Arguments = "patients run1"; StdOutput = "out"; OutputSandbox = {"out"};'
        'InputData = {"lfn:/grid/cms/patients", "lfn:/grid/cms/raw/run1"}; DataAccessProtocol = {"https"};'
    )
    job = lab.json("job", "submit", "read.jdl")[0]["job_id"]
    lab.grid("job", "wait", job)
    (fetched,) = lab.json("job", "output", job)
    assert Path(lab.folder, fetched["directory"], "out").read_text() == "patient 7patient 7"
    used = [line for line in lab.json("audit", "--since", "1h")["entries"] if line["event"] == "keystore.used"]
    assert {line["peer"] for line in used} == {"/O=Lab/OU=Users/CN=alice"} and len(used) >= 2

    lab.grid("data", "rm", "lfn:/grid/cms/patients", "lfn:/grid/cms/raw/run1")
    removed = [line for line in lab.json("audit", "--since", "1h")["entries"] if line["event"] == "keystore.removed"]
    assert len(removed) == 3, removed


def test_jobs_and_files_do_not_notice_a_roll_over(lab: Lab) -> None:
    old = authorities(lab)[-1]
    started = {name: agent["pid"] for name, agent in lab.agents().items() if "pid" in agent}
    job = submit(lab, "through")
    until(lambda: state(lab, job) == "RUNNING", 90, "the job runs")
    copies = Copies(lab, "during")
    copies.start()
    made = lab.json("ca", "rollover", "grid")
    assert len(made["keys"]) == 2
    until(lambda: len(authorities(lab)) == 2, 60, "both keys stand in the directory")
    new = next(one for one in authorities(lab) if one != old)
    until(lambda: live_on(lab, new), 60, "every agent has renewed its certificate")
    assert curl_accepts(lab)
    let_end(lab, "through", job)
    refused = lab.grid("ca", "retire", "grid", codes=(1,))
    assert "retired" not in refused
    assert [one["subject"] for one in lab.json("ca", "retire", "grid", "--dry-run")["live_on_it"]] == [
        "/O=Lab/OU=Users/CN=alice"
    ]
    alice = lab.folder / "alice"
    shutil.copy(alice / "usercert.pem", lab.folder / "old.pem")
    lab.grid("user", "add", "alice", "--renew", "--out", str(alice))
    assert openssl_accepts(lab, lab.folder / "old.pem") and openssl_accepts(lab, alice / "usercert.pem")
    copies.stopped.set()
    copies.join(timeout=120)
    assert copies.done and copies.failures == []
    for lfn in {copies.done[0], copies.done[-1]}:
        lab.grid("data", "get", lfn, str(lab.folder / "back.bin"))
        assert (lab.folder / "back.bin").read_bytes() == (lab.folder / "during.bin").read_bytes()
        (lab.folder / "back.bin").unlink()
    assert {name: agent["pid"] for name, agent in lab.agents().items() if "pid" in agent} == started


def test_the_end_of_the_old_key(lab: Lab) -> None:
    shutil.copy(lab.folder / "proxy.pem", lab.folder / "old-proxy.pem")
    lab.grid("proxy", "init")
    job = submit(lab, "past")
    until(lambda: state(lab, job) == "RUNNING", 90, "the job runs")
    (held,) = lab.json("ca", "retire", "grid", "--dry-run")["live_on_it"]
    assert (held["subject"], held["renewed"]) == ("/O=Lab/OU=Users/CN=alice", True)
    lab.grid("ca", "retire", "grid", codes=(1,))
    assert len(authorities(lab)) == 2
    lab.grid("ca", "retire", "grid", "--now")
    assert len(authorities(lab)) == 1
    assert not openssl_accepts(lab, lab.folder / "old.pem") and openssl_accepts(lab, lab.folder / "alice/usercert.pem")
    assert curl_accepts(lab)
    thief = Lab(lab.folder)
    thief.environment = {**lab.environment, "X509_USER_PROXY": str(lab.folder / "old-proxy.pem")}
    thief.grid("job", "status", job, codes=(1, 3, 4, 5))
    let_end(lab, "past", job)
    lab.grid("user", "add", "carol", "--out", str(lab.folder / "carol"))  # the operator's certificate is new, too


def test_an_authority_comes_and_goes(lab: Lab) -> None:
    """What its people had running when it went: the drill `ca-removed`."""
    lab.grid("ca", "create", "partner", "--under", "grid")
    made = lab.json("user", "add", "bob", "--ca", "partner", "--out", str(lab.folder / "bob"))
    assert made["subject"] == "/O=Lab/OU=Users/OU=partner/CN=bob"
    assert openssl_accepts(lab, lab.folder / "bob/usercert.pem")
    hit = lab.json("ca", "remove", "partner", "--dry-run")
    assert [one["subject"] for one in hit["people"]] == [made["subject"]]
    lab.grid("ca", "remove", "grid", codes=(1, 4, 5, 6))
    lab.grid("ca", "remove", "partner")
    assert not openssl_accepts(lab, lab.folder / "bob/usercert.pem")
    assert [one["name"] for one in lab.json("ca", "ls")] == ["grid"]
