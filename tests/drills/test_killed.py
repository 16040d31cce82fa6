"""Killed at any moment: with 200 jobs under way each agent process dies by SIGKILL in turn. Ray restarts it, every job
ends DONE and ran exactly once, no acknowledged event is missing, nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.history import WITNESS, Recorded, job_problems
from support.whole_grid import Lab, running_lab, until

from agents.bookkeeping.model import Event, EventType

JOBS = 200
PAGE = 4096
VICTIMS = ("broker", "bookkeeping", "gatekeeper", "worker", "storage", "information", "top", "catalog")
DESCRIPTION = """
[grid]
name = "killed"
mode = "lab"
organisation = "/O=Killed"
[[vo]]
name = "cms"
[[site]]
name = "LAB"
top = {}
information = {}
broker = {}
bookkeeping = {}
catalog = {}
storage = {}
gatekeeper = { lease_linger_s = 0.5 }
worker = { slots = 8 }
"""
JDL = """
JobType = "Parametric";
Parameters = %d;
ParameterStart = 0;
ParameterStep = 1;
Executable = "witness.sh";
Arguments = "%s 1 0 _PARAM_";
InputSandbox = {"witness.sh"};
StdOutput = "out.txt";
OutputSandbox = {"out.txt"};
OutputData = {[OutputFile = "event.dat"; LogicalFileName = "lfn:/grid/cms/killed/_PARAM_.dat"]};
"""
PAYLOAD = WITNESS + 'echo "event $4" > event.dat\necho "job $4"\n'


@pytest.fixture
def lab() -> Iterator[Lab]:
    with running_lab(DESCRIPTION) as lab:
        yield lab


@pytest.mark.grid
@pytest.mark.timeout(600)
def test_every_agent_is_killed_and_no_job_is_lost_or_run_twice(lab: Lab) -> None:
    ran = lab.folder / "ran"
    ran.mkdir()
    ran.chmod(0o777)
    (lab.folder / "witness.sh").write_text(PAYLOAD)
    (lab.folder / "many.jdl").write_text(JDL % (JOBS, ran))
    submitted = lab.json("job", "submit", "many.jdl")
    parent, children = submitted[0]["job_id"], submitted[0]["children"]
    assert len(set(children)) == JOBS

    for kind in VICTIMS:
        kill_and_wait(lab, kind)
    kill_and_wait(lab, "broker", damage=lab.state / "sites" / "LAB" / "broker.LAB" / "broker.db")

    lab.grid("job", "wait", parent, deadline_s=240)
    assert_each_ended_well(lab, children)
    assert_histories_are_whole(lab, children, ran)
    files = lab.json("data", "ls", "lfn:/grid/cms/killed")
    assert len(files) == JOBS
    lab.grid("job", "output", parent, "--dir", str(lab.folder / "output"), deadline_s=180)
    workers = lab.json("accounting", "check", "--workers")["workers"]
    assert workers.pop("runs") > 0 and not any(workers.values()), workers
    assert_nothing_is_left(lab, ran)
    assert "broker.rebuilt" in lab.grid("audit", "--since", "1h")


def kill_and_wait(lab: Lab, kind: str, damage: Path | None = None) -> None:
    before = lab.agents()[kind]
    process = psutil.Process(before["pid"])
    if damage is not None:  # while it stands still, as the one that Ray starts is quick
        process.suspend()
        overwrite(damage)
    os.kill(before["pid"], signal.SIGKILL)

    def back() -> bool:
        now = lab.agents()[kind]
        return now["pid"] not in (0, before["pid"]) and now["state"] == "green"

    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60, f"{kind} is dead")
    until(lambda: listens(lab, kind), 120, f"{kind} listens again")  # cheaper to look at than its state
    until(back, 120, f"{kind} back after SIGKILL")


def overwrite(database: Path) -> None:
    """Every second page becomes noise, and what the log has of them is gone."""
    database.with_name(f"{database.name}-wal").write_bytes(b"")
    data = bytearray(database.read_bytes())
    for start in range(2 * PAGE, len(data), 2 * PAGE):
        data[start : start + PAGE] = os.urandom(PAGE)
    database.write_bytes(data)


def listens(lab: Lab, kind: str) -> bool:
    endpoint = json.loads((lab.state / "endpoints.json").read_text())["endpoints"][kind][0]
    with socket.socket() as connection:
        connection.settimeout(5)
        return connection.connect_ex((endpoint["host"], endpoint["rpc"])) == 0


def assert_each_ended_well(lab: Lab, children: list[str]) -> None:
    jobs = {job["job_id"]: job for job in lab.json("job", "status", *children)}
    states = Counter(job["state"] for job in jobs.values())
    assert states == {"DONE": JOBS}, (states, [j for j in jobs.values() if j["state"] != "DONE"][:3])
    assert all(job["exit_code"] == 0 for job in jobs.values())


def assert_histories_are_whole(lab: Lab, children: list[str], ran: Path) -> None:
    recorded = Recorded()
    recorded.told("", children)
    recorded.read_witnesses(ran)
    words = {name: [word for word, _ in told] for name, told in recorded.witnessed.items()}
    assert not {name: found for name, found in words.items() if found != ["start", "end"]}
    assert len(recorded.witnessed) == JOBS
    for child in children[:: len(children) // 10]:
        events = [
            Event(
                child, told["source"], told["sequence"], at, EventType[told["event"]], told["attempt"], told["fields"]
            )
            for at, told in enumerate(lab.json("job", "history", child)["events"])
        ]
        found = job_problems("DONE", events, recorded.witnessed[child.rpartition("/")[2]])
        # What the broker had not yet told of a match when its database was damaged is lost.
        assert [problem for problem in found if not problem.endswith("TRANSFERRED without MATCHED")] == []


def assert_nothing_is_left(lab: Lab, ran: Path) -> None:
    site = lab.state / "sites" / "LAB"
    scratch = site / "worker.LAB" / "scratch"
    until(lambda: {path.name for path in scratch.iterdir()} <= {".spares"}, 120, "jobs' directories removed")
    until(lambda: not leases(site / "gatekeeper.LAB"), 120, "leases released")
    payloads = [p.pid for p in psutil.process_iter() if str(ran) in cmdline(p)]
    assert not payloads


def leases(gatekeeper: Path) -> list[str]:
    return [path.name for path in (gatekeeper / "gridmapdir").iterdir() if path.name.startswith("%2f")]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
