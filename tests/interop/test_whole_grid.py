"""One whole grid in Ray: a proxy of Debian's `grid-proxy-init` runs a job, the field's tools read ours, and an operator
bans, searches the audit logs and finds one that was changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.slapd import GLUE_SCHEMA_FILES, SLAPD, database
from support.whole_grid import GRID, Lab, running_lab, until

DESCRIPTION = """
[grid]
name = "globus"
mode = "lab"
organisation = "/O=Lab"
[[vo]]
name = "cms"
[[site]]
name = "LAB"
location = "Geneva, Switzerland"
latitude = 46.23
longitude = 6.05
contact = "grid@example.org"
region = { sites = ["LAB"] }
top = { count = 2 }
information = {}
broker = { count = 2 }
bookkeeping = {}
catalog = {}
transfer = {}
storage = {}
gatekeeper = {}
worker = { slots = 2 }
"""
TOOLS = ("grid-proxy-init", "grid-proxy-info", "voms-proxy-info", "ldapsearch", "openssl", "curl")
MISSING = ", ".join(tool for tool in TOOLS if shutil.which(tool) is None)
pytestmark = [
    pytest.mark.grid,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab(DESCRIPTION) as lab:
        yield lab


def tool(lab: Lab, *command: str) -> str:
    done = subprocess.run(
        command, env=lab.environment, cwd=lab.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_tools_of_the_field_accept_our_proxy(lab: Lab) -> None:
    proxy, authorities = lab.environment["X509_USER_PROXY"], lab.environment["X509_CERT_DIR"]
    verify = ("openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-CApath", authorities, "-untrusted", proxy)
    assert tool(lab, *verify, proxy).strip().endswith("OK")
    # These look at the certificate instead when they are told where it is.
    bare = Lab(lab.folder)
    bare.environment = {k: v for k, v in lab.environment.items() if k not in ("X509_USER_CERT", "X509_USER_KEY")}
    assert "/O=Lab/OU=Users/CN=alice" in tool(bare, "grid-proxy-info", "-identity")
    assert "alice" in tool(bare, "voms-proxy-info", "-all")


def test_a_job_runs_with_a_proxy_of_grid_proxy_init(lab: Lab) -> None:
    tool(lab, "grid-proxy-init", "-rfc", "-valid", "2:00", "-out", "globus.pem")
    theirs = Lab(lab.folder)
    theirs.environment = {k: v for k, v in lab.environment.items() if k not in ("X509_USER_CERT", "X509_USER_KEY")} | {
        "X509_USER_PROXY": str(lab.folder / "globus.pem")
    }
    (lab.folder / "id.jdl").write_text(
        'Executable = "/usr/bin/id"; Arguments = "-u"; StdOutput = "out"; OutputSandbox = {"out"};'
    )
    job = theirs.json("job", "submit", "id.jdl")[0]["job_id"]
    theirs.grid("job", "wait", job)
    status = theirs.json("job", "status", job)[0]
    assert (status["state"], status["exit_code"], status["owner"]) == ("DONE", 0, "/O=Lab/OU=Users/CN=alice")
    theirs.grid("job", "output", job)
    assert [path.read_text().strip().isdigit() for path in lab.folder.glob("*/out")] == [True]


@pytest.mark.skipif(shutil.which("voms-proxy-init") is None, reason="not installed: voms-proxy-init")
def test_voms_proxy_init_gets_a_role_that_every_service_knows(lab: Lab) -> None:
    """Only what `grid env` prints tells the C client where to ask and whom to believe."""
    alice, role = "/O=Lab/OU=Users/CN=alice", "/cms/Role=production"
    variables = lab.json("env")
    assert variables["X509_VOMS_DIR"] and variables["VOMS_USERCONF"]
    lab.grid("vo", "role", "add", "production")
    theirs = Lab(lab.folder)
    theirs.environment = {**lab.environment, **variables}
    asked = ("voms-proxy-init", "-voms", f"cms:{role}", "-valid", "2:00", "-out", "voms.pem")
    refused = subprocess.run(
        asked, env=theirs.environment, cwd=lab.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1 and f"{alice} does not hold the role production in /cms" in refused.stderr
    lab.grid("vo", "member", "grant", alice, role)
    tool(theirs, *asked)  # and verifies what it got
    theirs.environment = {k: v for k, v in theirs.environment.items() if k not in ("X509_USER_CERT", "X509_USER_KEY")}
    theirs.environment["X509_USER_PROXY"] = str(lab.folder / "voms.pem")
    (found,) = theirs.json("proxy", "info", "--all")["voms"]
    assert found["verified"] and found["fqans"] == [role, "/cms"]
    (lab.folder / "role.jdl").write_text('Executable = "/bin/true";')
    job = theirs.json("job", "submit", "role.jdl")[0]["job_id"]
    theirs.grid("job", "wait", job)
    for service in ("broker", "gatekeeper"):
        log = next((lab.state / "sites" / "LAB").glob(f"{service}*/audit.jsonl")).read_text()
        sessions = [line for line in map(json.loads, log.splitlines()) if line["event"] == "session.opened"]
        assert [role, "/cms"] in [line.get("fqans") for line in sessions], service
    used = {row["fqan"]: row for row in theirs.json("accounting", "report", "--by", "fqan,account")}
    assert used[role]["succeeded"] == 1 and used[role]["account"]
    agreed = lab.json("accounting", "check")
    assert agreed["runs"] == agreed["done_jobs"] >= 1 and not agreed["missing"] + agreed["doubled"]


def test_a_limited_proxy_of_grid_proxy_init_is_refused_by_name(lab: Lab) -> None:
    tool(lab, "grid-proxy-init", "-rfc", "-limited", "-out", "limited.pem")
    (lab.folder / "true.jdl").write_text('Executable = "/bin/true";')
    environment = {k: v for k, v in lab.environment.items() if k not in ("X509_USER_CERT", "X509_USER_KEY")}
    theirs = Lab(lab.folder)
    theirs.environment = environment | {"X509_USER_PROXY": str(lab.folder / "limited.pem")}
    with pytest.raises(AssertionError, match="limited"):
        theirs.grid("job", "submit", "true.jdl")


def test_an_operator_bans_by_the_command_line(lab: Lab) -> None:
    (lab.folder / "sleep.jdl").write_text('Executable = "/bin/sleep"; Arguments = "300";')
    job = lab.json("job", "submit", "sleep.jdl")[0]["job_id"]
    until(lambda: lab.json("job", "status", job)[0]["state"] == "RUNNING", 30, "the job runs")
    would = lab.json("ban", "add", "pattern:/O=Lab/OU=Users/*", "--dry-run")
    assert [person["subject"] for person in would["people"]] == ["/O=Lab/OU=Users/CN=alice"]
    assert [(hit["job_id"], hit["state"]) for hit in would["jobs"]] == [(job, "RUNNING")]
    assert lab.json("ban", "ls") == []

    made = lab.json("ban", "add", "/O=Lab/OU=Users/CN=alice", "--reason", "laptop stolen", "--for", "1h")

    refused = subprocess.run(
        [str(GRID), "job", "submit", "sleep.jdl"],
        env=lab.environment, cwd=lab.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "/O=Lab/OU=Users/CN=alice" in refused.stderr and "laptop stolen" in refused.stderr
    assert [ban["id"] for ban in lab.json("ban", "ls")] == [made["id"]]
    assert lab.json("ban", "lift", made["id"]) == {"id": made["id"], "lifted": True}
    lab.grid("job", "wait", job, "--timeout", "30s", codes=(6,))
    stopped = lab.json("job", "status", job)[0]
    assert (stopped["state"], stopped["reason"]) == ("CANCELLED", "BANNED")


def test_an_operator_follows_a_file_and_finds_a_changed_log(lab: Lab) -> None:
    (lab.folder / "data.bin").write_bytes(b"some data")
    lab.grid("data", "put", "data.bin", "lfn:/grid/cms/alice/data.bin")
    lab.grid("data", "get", "lfn:/grid/cms/alice/data.bin", "back.bin")
    found = lab.json("audit", "--file", "lfn:/grid/cms/alice/data.bin", "--since", "1h")
    assert found["missing"] == {}
    assert [entry["event"] for entry in found["entries"]] == ["storage.put", "catalog.registered", "storage.get"]
    assert {entry["peer"] for entry in found["entries"]} == {"/O=Lab/OU=Users/CN=alice"}
    job = lab.json("job", "status")[-1]["job_id"]
    events = [entry["event"] for entry in lab.json("audit", "--job", job)["entries"]]
    assert {"jobs.submitted", "job.submit", "job.started", "job.ended"} <= set(events)

    held = lab.json("delegation", "ls")["delegations"]
    assert {row["service"] for row in held} == {"broker.LAB", "broker2.LAB", "gatekeeper.LAB"}
    assert lab.json("delegation", "ls", "--dn", "*")["delegations"] == held
    assert len(lab.json("delegation", "recall")["recalled"]) == len(held)
    assert lab.json("delegation", "ls")["delegations"] == []
    lab.grid("job", "submit", "true.jdl")  # the user's own proxy is as good as before

    logs = lab.json("audit", "verify")["logs"]
    assert len(logs) == len(json.loads(lab.grid("status", "--json"))["agents"]) and not [
        log for log in logs if log["problems"]
    ]
    path = lab.state / "sites" / "LAB" / "storage.LAB" / "audit.jsonl"

    def overwrite(old: bytes, new: bytes) -> None:
        with path.open("r+b") as log:
            log.seek(log.read().index(old))
            log.write(new)

    overwrite(b"CN=alice", b"CN=mallo")
    told = json.loads(lab.grid("audit", "verify", "--json", codes=(1,)))
    assert [log["agent"] for log in told["logs"] if log["problems"]] == ["storage.LAB"]
    overwrite(b"CN=mallo", b"CN=alice")
    lab.grid("audit", "verify")


def test_the_tree_is_found_by_ldapsearch_and_the_revocation_list_by_http(lab: Lab) -> None:
    exports = [line.removeprefix("export ") for line in lab.grid("env").splitlines()]
    names = dict(line.split("=", 1) for line in exports if "=" in line)
    found = tool(
        lab, "ldapsearch", "-x", "-LLL", "-H", f"ldap://{names['GRIDFABRIC_TOP_LDAP']}", "-b", "o=grid",
        "(objectClass=GlueCE)", "GlueCEUniqueID", "GlueCEStateStatus",
    )  # fmt: skip
    assert "GlueCEStateStatus: Production" in found
    installed = next((lab.state / "certificates").glob("*.r0"))
    url = f"http://{names['GRIDFABRIC_AUTHORITY_HTTP']}/crl/{installed.name}"
    crl = subprocess.run(["curl", "-sf", url], capture_output=True, timeout=30, check=True).stdout
    read = subprocess.run(
        ["openssl", "crl", "-noout", "-issuer", "-CApath", str(lab.state / "certificates")],
        input=crl, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert b"verify OK" in read.stderr


@pytest.mark.skipif(
    SLAPD is None or not all(path.exists() for path in GLUE_SCHEMA_FILES),
    reason="Debian packages slapd and glue-schema are not installed",
)
@pytest.mark.parametrize(("schema", "suffix"), [("glue13", "o=grid"), ("glue2", "o=glue")])
def test_slapd_with_the_glue_schema_takes_the_whole_tree(lab: Lab, tmp_path: Path, schema: str, suffix: str) -> None:
    out = tmp_path / "tree.ldif"
    said = lab.grid("info", "export", "--schema", schema, "--out", str(out))
    includes = "".join(f"include {path}\n" for path in (Path("/etc/ldap/schema/core.schema"), *GLUE_SCHEMA_FILES))
    modules = "modulepath /usr/lib/ldap\nmoduleload back_mdb\n"
    (tmp_path / "slapd.conf").write_text(includes + modules + database(suffix, tmp_path / "db"))
    configuration = ("-f", str(tmp_path / "slapd.conf"), "-b", suffix)
    tool(lab, "/usr/sbin/slapadd", *configuration, "-l", str(out))
    back = tool(lab, "/usr/sbin/slapcat", *configuration)
    assert back.count("\ndn:") + back.startswith("dn:") == int(said.split()[0]) > 15


def test_the_tree_is_as_the_egi_profile_wants_it(lab: Lab) -> None:
    found = json.loads(lab.grid("info", "validate", "--json", codes=(0, 1)))
    serious = [finding for finding in found if not finding["code"].startswith("I")]
    assert serious == []
    noted = {"GLUE2EndpointIssuerCA", "GLUE2PolicyUserDomainForeignKey"}
    assert {
        finding["problem"].split()[0] for finding in found if "ExecutionEnvironmentCPU" not in finding["problem"]
    } <= noted


def test_a_transfer_is_asked_for_followed_and_reported(lab: Lab) -> None:
    (lab.folder / "events").write_text("events")
    lab.grid("data", "put", "events", "lfn:/grid/cms/transfer/events")
    made = lab.json("transfer", "submit", "lfn:/grid/cms/transfer", "--to", "LAB", "--wait")
    (file,) = lab.json("transfer", "status", made["id"])["list"]
    assert (file["state"], file["reason"]) == ("FINISHED", "ALREADY_THERE")
    assert [row["files"] for row in lab.json("transfer", "report", "--operator")] == [1]
    wanted = lab.json("data", "subscribe", "lfn:/grid/cms/transfer", "--at", "LAB")["id"]
    assert [one["id"] for one in lab.json("data", "subscriptions")] == [wanted]
    lab.grid("data", "unsubscribe", wanted)
    exported = lab.grid("info", "query", "(GlueServiceType=org.gridfabric.transfer)")
    assert "transfer.LAB" in exported
    lab.grid("data", "rm", "lfn:/grid/cms/transfer/events")


def test_infosites(lab: Lab) -> None:
    ce = lab.grid("infosites", "--vo", "cms", "ce").splitlines()
    assert ce[0].startswith("#   CPU\t   Free\tTotal Jobs") and "ComputingElement" in ce[0]
    assert ce[2].split()[:2] == ["2", "2"]
    se = lab.grid("infosites", "--vo", "cms", "se").splitlines()
    assert int(se[2].split()[0]) > 0 and se[2].split()[2] == "disk"
    close = lab.grid("infosites", "--vo", "cms", "closeSE").splitlines()
    assert close == [f"Name of the CE: {ce[2].split()[-1]}", f"\t{se[2].split()[-1]}", ""]
    both = lab.grid("infosites", "--vo", "cms", "all").splitlines()
    assert [line.split()[-1:] for line in both] == [line.split()[-1:] for line in [*ce, *se]]
    data = lab.json("infosites", "--vo", "cms", "all")
    assert len(data["ces"]) == len(ce) - 2 and len(data["ses"]) == len(se) - 2
    lab.grid("infosites", "--vo", "nobody", "ce", codes=(3,))


def test_gstat_adds_up_checks_and_draws(lab: Lab) -> None:
    def seen() -> dict[str, Any]:
        return lab.json("gstat", "--html", "gstat.html", "--map", "sites.kml")

    until(lambda: seen()["sites"][0]["status"] in ("OK", "INFO"), 60, "the site is in order for gstat")
    found = seen()
    (site,) = found["sites"]
    assert (site["site"], site["country"], site["cpus"]) == ("LAB", "Switzerland", 2)
    assert site["response_s"] is not None and site["entries"] > 10
    assert found["total"]["sites"] == 1 and found["flags"] == []
    assert "<svg" in (lab.folder / "gstat.html").read_text() and "LAB" in (lab.folder / "sites.kml").read_text()
    assert lab.grid("gstat").splitlines()[0].startswith("REGION")
    lab.grid("gstat", "--map", "sites.gif", codes=(2,))


def test_the_history_answers_a_select_and_refuses_all_else(lab: Lab) -> None:
    def kept() -> bool:
        sql = "select GlueCEInfoTotalCPUs from GlueCE where Site = 'LAB'"
        return lab.json("info", "query", sql) == [{"GlueCEInfoTotalCPUs": 2}]

    until(kept, 60, "the computing element is in the history")
    states = lab.json("info", "query", "select GridFabricSiteState as state from GridFabricSiteHistory order by Id")
    assert {"state": "current"} in states
    lab.grid("info", "query", "select * from sqlite_master", codes=(2,))
    lab.grid("info", "query", "--follow", "(objectClass=GlueCE)", codes=(2,))


def test_a_log_is_replayed_and_no_job_is_lost(lab: Lab) -> None:
    out = lab.folder / "replay"
    options = ("--limit", "8", "--speed", "8000", "--state", str(lab.state), "--out", str(out))
    found = lab.json("bench", "replay", *options)
    figures = ("jobs", "succeeded", "lost", "run_twice", "slots")
    assert {name: found[name] for name in figures} == dict(zip(figures, (8, 8, 0, 0, 2), strict=True))
    assert found == json.loads((out / "replay.json").read_text())
    assert "<svg" in (out / "replay.svg").read_text()


ROUNDS = """
JobType = "Parametric"; Parameters = 24;
Executable = "/bin/sh"; Arguments = "round.sh %s _PARAM_"; InputSandbox = {"round.sh"};
StdOutput = "out"; OutputSandbox = {"out"};
"""
ROUND = 'echo "$GRIDFABRIC_JOB_ID" >> "$1/$2"; until [ -e "$1/go" ]; do sleep 0.1; done; echo "round $2"\n'


def test_the_jobs_of_a_broker_killed_for_good_end_at_its_successor_exactly_once(lab: Lab) -> None:
    """Some run, some are queued at the computing element and some have none when the broker dies; those that can, end
    while no broker is there."""
    ran = lab.folder / "ran"
    ran.mkdir()
    ran.chmod(0o777)
    (lab.folder / "round.sh").write_text(ROUND)
    (lab.folder / "rounds.jdl").write_text(ROUNDS % ran)
    submitted = lab.json("job", "submit", "rounds.jdl")[0]
    until(lambda: len(list(ran.iterdir())) == 2, 60, "both slots are busy")
    lab.grid("broker", "takeover", "broker.LAB", codes=(1,))  # it lives
    credential = lab.state / "sites/LAB/credentials/broker.LAB.pem"
    credential.rename(credential.with_suffix(".away"))  # so what Ray starts again ends at once
    kill_broker(lab)
    until(lambda: broker(lab)["state"] == "failed", 60, "the broker stays away")
    (ran / "go").touch()
    until(lambda: len(list(ran.iterdir())) > 3, 60, "the next one has begun without a broker")
    taken = lab.json("broker", "takeover", "broker.LAB")
    assert (taken["taken_by"], lab.json("broker", "takeover", "broker.LAB")["submissions"]) == ("broker2.LAB", 0)
    assert taken["jobs"] > 0
    lab.grid("job", "wait", submitted["job_id"], deadline_s=120)
    jobs = lab.json("job", "status", *submitted["children"])
    assert {(job["state"], job["exit_code"], job["attempt"]) for job in jobs} == {("DONE", 0, 1)}
    (ran / "go").unlink()
    assert sorted(path.read_text().strip() for path in ran.iterdir()) == sorted(submitted["children"])
    lab.grid("job", "output", submitted["job_id"], "--dir", str(lab.folder / "rounds"))
    said = [path.read_text() for path in (lab.folder / "rounds").rglob("out")]
    assert sorted(said) == sorted(f"round {number}\n" for number in range(24))
    agreed = lab.json("accounting", "check")
    assert not agreed["missing"] + agreed["doubled"]

    credential.with_suffix(".away").rename(credential)
    kill_broker(lab)
    log = lab.state / "sites/LAB/broker.LAB/audit.jsonl"
    until(lambda: "broker.handed_over" in log.read_text(), 60, "it is fenced")
    again = lab.json("job", "submit", "true.jdl")[0]["job_id"]
    lab.grid("job", "wait", again)
    assert lab.json("job", "status", again)[0]["state"] == "DONE"


def broker(lab: Lab) -> dict[str, Any]:
    agents = json.loads(lab.grid("status", "--json", codes=(0, 1)))["agents"]
    return next(agent for agent in agents if agent["name"] == "broker.LAB")


def kill_broker(lab: Lab) -> None:
    os.kill(broker(lab)["pid"], signal.SIGKILL)
