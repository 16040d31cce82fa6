"""Two sites on three machines, each site with a Ray of its own, and a fourth machine with only the `grid` command."""

import json
import os
import shutil
from pathlib import Path

import pytest
from multihost.namespaces import STATE, Network, wait_until, why_not

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.timeout(420),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made"),
]

DESCRIPTION = """
[grid]
name = "wide"
mode = "hosts"
organisation = "/O=Wide"

[authority]
site = "A"

[[vo]]
name = "cms"
site = "A"

[[site]]
name = "A"
location = "Geneva, Switzerland"
top = {}
information = {}
broker = {}
bookkeeping = {}
catalog = {}
storage = {}
gatekeeper = {}
worker = { host = "a2", slots = 2 }
[[site.host]]
name = "a1"
address = "10.77.0.1"
[[site.host]]
name = "a2"
address = "10.77.0.2"

[[site]]
name = "B"
location = "Bologna, Italy"
information = {}
storage = {}
gatekeeper = {}
worker = { slots = 2 }
[[site.host]]
name = "b1"
address = "10.77.0.3"
"""

WHERE = """
[
  Executable = "/bin/sh";
  Arguments = "-c 'ip -4 -o addr show eth0; echo done'";
  StdOutput = "out.txt";
  StdError = "err.txt";
  OutputSandbox = {"out.txt", "err.txt"};
  %s
]
"""

JOIN = """
import sys
from pathlib import Path
from clusters import deploy, load
print(deploy.host_join(load.load(sys.argv[1]), Path(sys.argv[2]), invitation=Path(sys.argv[3])))
"""
INVITE_HOST = """
import sys
from pathlib import Path
from clusters import deploy
deploy.invite(Path(sys.argv[1]), "A", "a2").save(Path(sys.argv[2]))
"""


class Wide:
    """The running grid with its four machines."""

    def __init__(self, network: Network, shared: Path) -> None:
        self.network, self.shared = network, shared
        self.a1, self.a2 = network.host("a1", "10.77.0.1"), network.host("a2", "10.77.0.2")
        self.b1, self.ui = network.host("b1", "10.77.0.3"), network.host("ui", "10.77.0.4")
        self.description = shared / "wide.toml"
        self.description.write_text(DESCRIPTION)

    def start(self) -> None:
        """Site A, its second machine, site B; then a certificate and addresses for the user's machine."""
        shared, state = self.shared, STATE / "state"
        self.a1.grid("up", str(self.description), "--site", "A", "--detach", timeout_s=150)
        self.a1.python(INVITE_HOST, str(state), str(shared / "a2.json"))
        self.a2.python(JOIN, str(self.description), str(state), str(shared / "a2.json"))
        self.a1.grid("host", "invite", "B", "--out", str(shared / "B.json"))
        self.b1.grid(
            "up",
            str(self.description),
            "--site",
            "B",
            "--invitation",
            str(shared / "B.json"),
            "--detach",
            timeout_s=150,
        )
        self.a1.grid("user", "add", "Ada Lovelace", "--out", str(shared / "ada"))
        self.a1.grid("env", "--file", str(shared / "endpoints.json"))
        shutil.copytree(self.a1.private / "state" / "certificates", shared / "certificates")

    def user(self, *arguments: str, timeout_s: float = 90, check: bool = True):
        """A `grid` command on the user's machine."""
        env = {
            "GRIDFABRIC_STATE": "/nonexistent",
            "GRIDFABRIC_ENDPOINTS": str(self.shared / "endpoints.json"),
            "X509_CERT_DIR": str(self.shared / "certificates"),
            "X509_USER_CERT": str(self.shared / "ada" / "usercert.pem"),
            "X509_USER_KEY": str(self.shared / "ada" / "userkey.pem"),
            "X509_USER_PROXY": str(self.ui.private / "proxy"),
        }
        return self.ui.grid(*arguments, timeout_s=timeout_s, env=env, check=check)

    def submit(self, requirements: str = "") -> str:
        """A job that tells the address of the machine on which it runs; its id."""
        jdl = self.shared / "where.jdl"
        jdl.write_text(WHERE % (f"Requirements = {requirements};" if requirements else ""))
        (answer,) = json.loads(self.user("job", "submit", str(jdl), "--json").stdout)
        return answer["job_id"]

    def output_of(self, job: str) -> str:
        """What a job wrote, once it is done."""
        self.user("job", "wait", job, "--timeout", "90s", timeout_s=120)
        folder = self.shared / f"out-{job.rpartition('/')[2]}"
        self.user("job", "output", job, "--dir", str(folder))
        (found,) = folder.rglob("out.txt")
        return found.read_text()

    def ldap(self, filter_text: str, *attributes: str, base: str = "o=grid") -> str:
        """`ldapsearch` on the user's machine at the top."""
        done = self.ui.run(
            [
                "ldapsearch",
                "-x",
                "-LLL",
                "-o",
                "ldif-wrap=no",
                "-H",
                "ldap://10.77.0.1:2180",
                "-b",
                base,
                filter_text,
                *attributes,
            ]
        )
        return done.stdout


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    if shutil.which("ldapsearch") is None:
        pytest.skip("needs ldapsearch (apt install ldap-utils)")
    folder = Path(f"/var/tmp/gridfabric-hosts-{os.getpid()}")
    network = Network(folder)
    try:
        grid = Wide(network, tmp_path_factory.mktemp("shared"))
        grid.start()
        grid.user("proxy", "init")
        yield grid
    finally:
        network.close()


def test_both_sites_are_seen_from_afar(wide):
    def both() -> bool:
        found = wide.ldap("(objectClass=GlueCE)", "GlueCEUniqueID", "GlueCEStateStatus")
        return "10.77.0.1" in found and "10.77.0.3" in found and found.count("GlueCEStateStatus: Production") == 2

    wait_until(both, 30, "both computing elements at the top")


def test_a_job_runs_on_the_worker_host_of_a(wide):
    assert "10.77.0.2" in wide.output_of(wide.submit('other.GlueSiteUniqueID == "A"'))


def test_a_job_runs_at_b(wide):
    assert "10.77.0.3" in wide.output_of(wide.submit('other.GlueSiteUniqueID == "B"'))


def test_data_goes_from_a_to_b(wide):
    file = wide.shared / "data.bin"
    file.write_bytes(os.urandom(3 << 20))
    wide.user("data", "put", str(file), "lfn:/grid/cms/ada/data.bin", "--se", "A")
    wide.user("data", "replicate", "lfn:/grid/cms/ada/data.bin", "--to", "B")
    located = wide.user("data", "locate", "lfn:/grid/cms/ada/data.bin", "--json").stdout
    assert "10.77.0.1" in located and "10.77.0.3" in located
    wide.user("data", "get", "lfn:/grid/cms/ada/data.bin", str(wide.shared / "back.bin"))
    assert (wide.shared / "back.bin").read_bytes() == file.read_bytes()


def test_no_private_key_left_its_machine(wide):
    keys = {}
    for host in (wide.a1, wide.a2, wide.b1):
        keys[host.name] = sorted(path.name for path in host.private.glob("state/sites/*/credentials/*.pem"))
    assert keys["a2"] == ["worker.A.pem"]
    assert keys["b1"] == ["gatekeeper.B.pem", "information.B.pem", "storage.B.pem", "worker.B.pem"]
    assert "worker.A.pem" not in keys["a1"] and not [name for name in keys["a1"] if ".B." in name]


def test_each_site_has_a_ray_of_its_own(wide):
    at_a = json.loads(wide.a1.grid("status", "--json").stdout)
    at_b = json.loads(wide.b1.grid("status", "--json").stdout)
    assert {agent["name"] for agent in at_b["agents"]} == {"information.B", "storage.B", "gatekeeper.B", "worker.B"}
    assert "worker.A" in {agent["name"] for agent in at_a["agents"]}
    assert not {agent["name"] for agent in at_a["agents"]} & {agent["name"] for agent in at_b["agents"]}


def test_a_site_that_is_cut_off_is_said_to_be_and_comes_back_without_a_restart(wide):
    def status_of_b() -> str:
        found = wide.ldap("(&(objectClass=GlueCE)(GlueCEUniqueID=10.77.0.3*))", "GlueCEStateStatus")
        return found

    before = {agent["name"]: agent["pid"] for agent in json.loads(wide.b1.grid("status", "--json").stdout)["agents"]}
    wide.b1.link(up=False)
    try:
        wait_until(lambda: "Production" not in status_of_b(), 40, "B is not in production any more")
        site = wide.ldap("(objectClass=*)", "*", "+", base="mds-vo-name=B,mds-vo-name=local,o=grid")
        assert "unreachable" in site.lower(), site
        assert "10.77.0.2" in wide.output_of(wide.submit())
    finally:
        wide.b1.link(up=True)
    wait_until(lambda: "Production" in status_of_b(), 60, "B is back")
    after = {agent["name"]: agent["pid"] for agent in json.loads(wide.b1.grid("status", "--json").stdout)["agents"]}
    assert after == before
    assert "10.77.0.3" in wide.output_of(wide.submit('other.GlueSiteUniqueID == "B"'))


def test_down_leaves_no_process_on_any_machine(wide):
    for host in (wide.b1, wide.a2, wide.a1):
        host.grid("down", timeout_s=120)
        assert host.processes() == []
