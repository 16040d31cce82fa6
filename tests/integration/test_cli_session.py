"""A user's day at the command line against real agents: jobs, data, information, and what is said of mistakes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until

from agents.bookkeeping.client import BookkeepingClient
from agents.broker import jdl
from agents.user_interface import (
    access,
    accounting,
    console,
    data,
    doctor,
    endpoints,
    following,
    information,
    jobs,
    perusal,
)
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from fabric.errors import AlreadyExists, InvalidRequest, NotFound, Refused

FIRST, SECOND = "storage.CERN", "storage2.CERN"
FOLDER = "lfn:/grid/cms/user"


@dataclass
class Desk:
    """A user with a proxy and the variables that `grid env` would print, and no other knowledge of the grid."""

    lab: LabGrid
    folder: Path
    capsys: pytest.CaptureFixture[str]
    environ: dict[str, str] = field(default_factory=dict)

    async def call(self, command: Any, *arguments: Any, **options: Any) -> Any:
        """Run a command in JSON mode and give what it printed."""
        self.capsys.readouterr()
        console.mode.as_json = True
        try:
            await command(*arguments, as_json=True, **options)
        finally:
            self.output = self.capsys.readouterr()
            self.printed = json.loads(self.output.out) if self.output.out else None
        return self.printed

    def jdl(self, text: str, name: str = "job.jdl") -> Path:
        path = self.folder / name
        path.write_text(f"[\n{text}\n]\n")
        return path

    def element(self, name: str) -> str:
        """A storage element as the information system names it."""
        return f"localhost:{self.lab.port(name)}"

    async def submit(self, text: str) -> str:
        (row,) = await self.call(jobs.submit_command, [self.jdl(text)], None)
        return str(row["job_id"])

    async def published(self) -> None:
        """Wait until the CE with its free slots and both storage elements are in the tree."""

        async def all_there() -> bool:
            ces = await information.computing_elements(information.top_server())
            ses = await information.storage_elements(information.top_server())
            addresses = {f"{found.host}:{found.port}" for found in ses}
            return any(ce.free > 0 for ce in ces) and {self.element(FIRST), self.element(SECOND)} <= addresses

        await until(all_there)


@pytest.fixture
async def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Desk]:
    async with LabGrid(tmp_path / "lab") as lab:
        proxy = lab.user("alice")
        proxy.save(tmp_path / "proxy.pem")
        everything = [
            *(
                (kind, f"{kind}.CERN")
                for kind in ("information", "bookkeeping", "catalog", "gatekeeper", "worker", "broker")
            ),
            ("storage", FIRST),
            ("storage", SECOND),
        ]
        for kind, name in everything:
            lab.plan(kind, name=name)
        options: dict[str, dict[str, Any]] = {
            "information": {"heartbeat_s": 0.2},
            "gatekeeper": {"heartbeat_s": 0.5},
            "worker": {"slots": 2},
        }
        for kind, name in everything:
            await lab.start(kind, name=name, options=options.get(kind))
        for name in list(os.environ):
            if name.startswith(("GRIDFABRIC_", "X509_")):
                monkeypatch.delenv(name)
        variables = {
            "X509_USER_PROXY": str(tmp_path / "proxy.pem"),
            "X509_CERT_DIR": str(lab.certificates),
            "GRIDFABRIC_VO": "cms",
            "GRIDFABRIC_TOP_LDAP": f"localhost:{lab.port('information.CERN', 'ldap')}",
        }
        for kind in ("broker", "bookkeeping", "catalog"):
            variables[f"GRIDFABRIC_{kind.upper()}"] = f"localhost:{lab.port(f'{kind}.CERN')}"
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield Desk(lab, tmp_path, capsys)
        console.mode.as_json = False


async def test_a_job_from_submission_to_output(desk: Desk) -> None:
    await desk.published()
    (desk.folder / "hello.sh").write_text("#!/bin/sh\necho hello $1\nexit 0\n")
    text = 'Executable = "/bin/sh"; Arguments = "hello.sh world"; StdOutput = "out"; InputSandbox = {"hello.sh"};'
    text += 'OutputSandbox = {"out"}; JobName = "greeting";'
    matches = await desk.call(jobs.list_match_command, desk.jdl(text))
    assert [match["matches"] for match in matches] == [True]
    job_id = await desk.submit(text)
    async with asyncio.timeout(60):
        await following.follow_command(job_id, std_error=False, name=None)  # from before it has a place
    assert desk.capsys.readouterr().out == "hello world\n"
    with pytest.raises(NotFound, match="no StdError"):
        await following.follow_command(job_id, std_error=True, name=None)
    (job,) = await desk.call(jobs.wait_command, [job_id], 30)
    assert (job["state"], job["exit_code"], job["name"]) == ("DONE", 0, "greeting")
    (status,) = await desk.call(jobs.status_command, [], "DONE", None, 3600, 10)
    assert status["job_id"] == job_id
    (kept,) = await desk.call(jobs.output_command, [job_id], desk.folder / "kept", keep=True)
    assert (Path(kept["directory"]) / "out").read_text() == "hello world\n"
    (fetched,) = await desk.call(jobs.output_command, [job_id], desk.folder / "output", keep=False)
    assert [file["name"] for file in fetched["files"]] == ["out"]
    async with asyncio.timeout(60):
        events: list[str] = []
        while "CLEARED" not in events:  # on its way through the broker's outbox
            history = await desk.call(jobs.history_command, job_id)
            events = [event["event"] for event in history["events"]]
    assert events[:2] == ["REGISTERED", "ENQUEUED"]
    assert {"MATCHED", "TRANSFERRED", "RUNNING", "DONE"} <= set(events)
    assert not list(desk.folder.rglob("*.part"))


async def test_what_a_job_has_written_is_copied_at_intervals_also_over_a_restart(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jdl, "MIN_PERUSAL_S", 1)

    async def restart() -> None:
        await desk.lab.stop("worker.CERN")
        await desk.lab.start("worker", options={"slots": 2, "stop_policy": "leave"})

    async def copied(least: int) -> bytes:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(NotFound):
                    found = await desk.call(perusal.perusal_command, job_id, desk.folder / "look")
                    (file,) = found["files"]
                    if file["size_bytes"] >= least:
                        return Path(file["path"]).read_bytes()
                await asyncio.sleep(0.1)

    await restart()
    await desk.published()
    without = await desk.submit('Executable = "/bin/true";')
    await desk.call(jobs.wait_command, [without], 30)
    with pytest.raises(NotFound, match="PerusalFileEnable"):
        await perusal.perusal_command(without, desk.folder, as_json=False)
    counting = "echo more > late; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done"
    job_id = await desk.submit(
        f'Executable = "/bin/sh"; Arguments = {{"-c", "{counting}"}}; StdOutput = "out"; PerusalFileEnable = true; '
        f'PerusalTimeInterval = 1; PerusalFilesDestURI = "srm://{desk.element(SECOND)}/cms";'
    )
    first = await copied(1)
    await restart()
    second = await copied(len(first) + 1)
    assert "".join(f"{number}\n" for number in range(1, 10_000)).encode().startswith(second)
    assert second.startswith(first)
    (folder,) = await desk.call(data.list_command, "lfn:/grid/cms/perusal", long=False)
    below = f"lfn:/grid/cms/perusal/{job_id.rpartition('/')[2]}/1/out"
    (piece, *_) = await desk.call(data.locate_command, [f"{below}/{0:015}"])
    assert (job_id.rpartition("/")[2] in str(folder), desk.element(SECOND) in str(piece)) == (True, True)
    with pytest.raises(UsageProblem, match="no plain name"):
        await perusal.set_command(job_id, ["../x"], as_json=False)
    assert (await desk.call(perusal.set_command, job_id, ["late"]))["added"] == ["late"]
    async with asyncio.timeout(60):
        names: list[str] = []
        while names != ["late", "out"]:
            found = await desk.call(perusal.perusal_command, job_id, desk.folder / "look")
            names = [file["name"] for file in found["files"]]
    assert (desk.folder / "look" / job_id.rpartition("/")[2] / "late").read_text() == "more\n"
    await desk.call(jobs.cancel_command, [job_id])
    with pytest.raises(Ended):
        await desk.call(jobs.wait_command, [job_id], 60)
    with pytest.raises(UsageProblem, match="has ended"):
        await perusal.set_command(job_id, ["late"], as_json=False)


async def test_a_job_that_fails_says_how(desk: Desk) -> None:
    await desk.published()
    job_id = await desk.submit('Executable = "/bin/sh"; Arguments = "-c \'exit 3\'";')
    with pytest.raises(Ended) as end:
        await desk.call(jobs.wait_command, [job_id], 30)
    assert end.value.code == ExitCode.JOB_FAILED
    assert desk.printed[0]["exit_code"] == 3
    assert "with exit code 3" in desk.output.err


async def test_parametric_jobs_are_waited_for_and_cancelled_by_their_parent(desk: Desk) -> None:
    await desk.published()
    text = 'JobType = "Parametric"; Parameters = 3; Executable = "/bin/sleep"; Arguments = "60"; JobName = "n_PARAM_";'
    (row,) = await desk.call(jobs.submit_command, [desk.jdl(text)], desk.folder / "ids")
    assert len(row["children"]) == 3
    assert (desk.folder / "ids").read_text() == row["job_id"] + "\n"
    with pytest.raises(TimeoutError, match="not all jobs have ended"):
        await desk.call(jobs.wait_command, [row["job_id"]], 0.5)
    await desk.call(jobs.cancel_command, [row["job_id"]])
    with pytest.raises(Ended):
        await desk.call(jobs.wait_command, [row["job_id"]], 30)
    assert {job["state"] for job in desk.printed} == {"CANCELLED"}
    assert {job["parent"] for job in desk.printed} == {row["job_id"]}


async def test_changes_are_told_as_they_come_and_counted_afterwards(desk: Desk) -> None:
    await desk.published()
    await jobs.watch_command([], 30, as_json=True)
    assert not desk.capsys.readouterr().out  # none of hers is under way
    job_id = await desk.submit('Executable = "/bin/true";')
    await jobs.watch_command([job_id], 30, as_json=True)
    told = [json.loads(line) for line in desk.capsys.readouterr().out.splitlines()]
    states = [job["state"] for job in told]
    assert states[-1] == "DONE" and len(states) == len(set(states)) and {job["job_id"] for job in told} == {job_id}
    (row,) = await desk.call(jobs.stats_command, 3600, ["vo", "ce"])
    assert (row["vo"], row["jobs"], row["per_hour"], row["ended"], row["succeeded"]) == ("cms", 1, 1.0, 1, 1)
    assert row["wait_max_s"] >= row["wait_median_s"] > 0
    with pytest.raises(InvalidRequest, match="cannot be grouped by 'colour'"):
        await desk.call(jobs.stats_command, 3600, ["colour"])
    chart = desk.folder / "usage.png"
    (used,) = await desk.call(accounting.report_command, 3600, ["vo", "site", "month"], chart)
    assert (used["vo"], used["site"], used["runs"], used["succeeded"]) == ("cms", "CERN", 1, 1)
    assert chart.read_bytes().startswith(b"\x89PNG")
    (file,) = await desk.call(accounting.export_command, 3600, 0, desk.folder / "apel")
    assert f"LocalJobId: {job_id.rpartition('/')[2]}.1\n" in Path(file["file"]).read_text() and file["records"] == 1
    operator = BookkeepingClient(await desk.lab.channel("bookkeeping", credential=desk.lab.operator()))
    agreed = await operator.reconcile(1, 1 << 61)
    assert (agreed.runs, agreed.done_jobs, agreed.wall_s) == (1, 1, agreed.done_wall_s)
    with pytest.raises(Refused):
        await BookkeepingClient(await desk.lab.channel("bookkeeping", credential=desk.lab.user())).reconcile(1, 1 << 61)


async def test_of_several_descriptions_the_good_ones_are_submitted(desk: Desk) -> None:
    good, bad = desk.jdl('Executable = "/bin/true";'), desk.jdl("Executable = ;", "bad.jdl")
    with pytest.raises(Ended) as end:
        await desk.call(jobs.submit_command, [good, bad], None)
    assert end.value.code == ExitCode.USAGE
    accepted, refused = desk.printed
    assert accepted["job_id"].startswith("https://localhost:")
    assert "line 2" in refused["error"]["sentence"]


async def test_jobs_that_are_not_there(desk: Desk) -> None:
    unknown = "https://localhost:9000/" + "x" * 22
    for command in (
        jobs.status_command([unknown], None, None, None, 10, as_json=True),
        jobs.history_command(unknown, as_json=True),
        jobs.cancel_command([unknown], as_json=True),
        jobs.output_command([unknown], desk.folder, keep=False, as_json=True),
    ):
        with pytest.raises(NotFound):
            await command


async def test_a_limited_proxy_cannot_submit_and_the_sentence_says_so(desk: Desk) -> None:
    desk.lab.user("alice", limited=True).save(desk.folder / "proxy.pem")
    with pytest.raises(Ended):
        await desk.call(jobs.submit_command, [desk.jdl('Executable = "/bin/true";')], None)
    assert desk.printed[0]["error"]["reason"] == "LIMITED_PROXY"


async def test_a_file_from_put_to_rm_with_storage_found_by_ldap(desk: Desk) -> None:
    await desk.published()
    content = os.urandom(3_000_000)
    (desk.folder / "events.dat").write_bytes(content)
    lfn = f"{FOLDER}/events.dat"
    put = await desk.call(data.put_command, desk.folder / "events.dat", lfn, desk.element(SECOND))
    assert put["size_bytes"] == len(content)
    with pytest.raises(AlreadyExists):
        await desk.call(data.put_command, desk.folder / "events.dat", lfn, desk.element(FIRST))
    (listed,) = await desk.call(data.list_command, FOLDER, long=True)
    assert (listed["lfn"], len(listed["replicas"])) == (lfn, 1)
    (copied,) = await desk.call(data.replicate_command, [lfn], desk.element(FIRST))
    assert copied["copied"]
    (again,) = await desk.call(data.replicate_command, [lfn], desk.element(FIRST))
    assert not again["copied"]
    (located,) = await desk.call(data.locate_command, [lfn])
    assert {data.door(replica["surl"])[1] for replica in located["replicas"]} == {
        desk.lab.port(FIRST),
        desk.lab.port(SECOND),
    }
    for name in (FIRST, SECOND):
        target = desk.folder / f"from-{name}"
        await desk.call(data.get_command, lfn, target, desk.element(name), force=False)
        assert target.read_bytes() == content
    with pytest.raises(AlreadyExists):
        await desk.call(data.get_command, lfn, desk.folder / f"from-{FIRST}", None, force=False)
    await desk.call(data.remove_command, [lfn], desk.element(SECOND))
    (located,) = await desk.call(data.locate_command, [lfn])
    assert len(located["replicas"]) == 1
    await desk.call(data.remove_command, [lfn], None)
    with pytest.raises(NotFound):
        await desk.call(data.locate_command, [lfn])
    assert await desk.call(data.list_command, FOLDER, long=False) == []


async def test_who_may_only_list_loses_nobody_data(desk: Desk) -> None:
    await desk.published()
    (desk.folder / "f").write_bytes(b"content")
    lfn = f"{FOLDER}/f"
    options: dict[str, Any] = {"operator": False, "state": None}
    await desk.call(data.put_command, desk.folder / "f", lfn, desk.element(FIRST))
    with pytest.raises(UsageProblem):
        await desk.call(access.set_command, FOLDER, ["read:/cms"], **options)
    made = await desk.call(access.set_command, FOLDER, ["list:/cms"], **options)
    assert made["carried_by"] == FOLDER and made["grants"] == [{"who": "/cms", "rights": ["list"]}]
    desk.lab.user("carol").save(desk.folder / "proxy.pem")
    with pytest.raises(Ended):
        await desk.call(data.remove_command, [lfn], None)
    assert "access list of /grid/cms/user" in desk.printed[0]["error"]["sentence"]
    await desk.call(data.get_command, lfn, desk.folder / "g", None, force=False)
    assert (desk.folder / "g").read_bytes() == b"content"
    assert (await desk.call(access.get_command, lfn, **options))["carried_by"] == FOLDER


async def test_a_lost_replica_is_no_obstacle_while_there_is_another(desk: Desk) -> None:
    await desk.published()
    (desk.folder / "f").write_bytes(b"content")
    lfn = f"{FOLDER}/f"
    await desk.call(data.put_command, desk.folder / "f", lfn, desk.element(SECOND))
    await desk.call(data.replicate_command, [lfn], desk.element(FIRST))
    await desk.lab.stop(SECOND)
    await desk.call(data.get_command, lfn, desk.folder / "g", None, force=False)
    assert (desk.folder / "g").read_bytes() == b"content"


async def test_names_of_another_vo_are_refused_and_nothing_stays_behind(desk: Desk) -> None:
    await desk.published()
    (desk.folder / "f").write_bytes(b"content")
    with pytest.raises(Refused):
        await desk.call(data.put_command, desk.folder / "f", "lfn:/grid/atlas/f", desk.element(SECOND))
    pool = desk.lab.directory / "agents" / SECOND / "pool"
    assert [path for path in pool.rglob("*") if path.is_file() and path.read_bytes() == b"content"] == []


async def test_storage_elements_that_are_not_there_are_named(desk: Desk) -> None:
    await desk.published()
    (desk.folder / "f").write_bytes(b"content")
    with pytest.raises(NotFound, match=r"no storage element 'FNAL' is known; known are: localhost:"):
        await desk.call(data.put_command, desk.folder / "f", f"{FOLDER}/f", "FNAL")


async def test_information_as_tables_and_as_ldif(desk: Desk) -> None:
    await desk.published()
    sites = {row["site"]: row for row in await desk.call(information.sites_command)}
    assert (sites["CERN"]["ces"], sites["CERN"]["slots"], sites["CERN"]["information"]) == (1, 2, "current")
    (ce,) = await desk.call(information.ces_command, "cms")
    assert ce["free"] == 2 and ce["vos"] == ["cms"]
    assert await desk.call(information.ces_command, "atlas") == []
    elements = await desk.call(information.ses_command, None)
    assert {row["address"] for row in elements} >= {f"localhost:{desk.lab.port(FIRST)}"}
    query: dict[str, Any] = {"base": "o=grid", "scope": "sub", "server": None}
    (entry,) = await desk.call(information.query_command, "(objectClass=GlueCE)", ["GlueCEUniqueID"], **query)
    assert entry["attributes"] == {"GlueCEUniqueID": [ce["ce"]]}
    with pytest.raises(UsageProblem):
        await desk.call(information.query_command, "(((", [], **query)
    with pytest.raises(NotFound):
        await desk.call(information.query_command, "(objectClass=*)", [], **{**query, "base": "o=elsewhere"})


async def test_the_executable_itself_with_exit_codes(desk: Desk) -> None:
    await desk.published()
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / "proto" / "gen")))

    async def grid(*words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agents.user_interface.main", *words, env={**os.environ, "PYTHONPATH": path},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=desk.folder,
        )  # fmt: skip
        out, errors = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), errors.decode()

    code, out, errors = await grid("info", "ces")
    assert code == 0 and "Production" in out and errors == ""
    code, out, errors = await grid("data", "get", f"{FOLDER}/nothing")
    assert code == 3 and errors.startswith("grid: ") and "Traceback" not in errors
    await desk.lab.stop("broker.CERN")
    desk.jdl('Executable = "/bin/true";')
    code, out, errors = await grid("job", "submit", "job.jdl", "--json")
    assert code == 4
    assert json.loads(out)[0]["error"]["reason"]


async def test_the_doctor_names_what_does_not_answer(desk: Desk) -> None:
    await desk.published()
    services = endpoints.find(dict(os.environ))
    assert [finding.state for finding in await doctor.check_ports(services)] == [doctor.OK]
    assert [finding.state for finding in await doctor.check_information(services)] == [doctor.OK]
    await desk.lab.stop("catalog.CERN")
    (finding,) = await doctor.check_ports(services)
    assert finding.state == doctor.BAD and finding.check == "port of catalog"
    await desk.lab.stop("information.CERN")
    (finding,) = await doctor.check_information(services)
    assert finding.state == doctor.BAD and finding.cure


def test_variables_endpoints_file_and_state_folder_say_the_same(tmp_path: Path) -> None:
    services = {
        "broker": [{"name": "broker.A", "site": "A", "host": "localhost", "rpc": 1}],
        "top": [{"name": "top.A", "site": "A", "host": "::1", "rpc": 2, "ldap": 3}],
        "storage": [{"name": "storage.B", "site": "B", "host": "b.example", "rpc": 4}],
    }
    content = {"grid": "g", "vos": ["cms"], "certificates": "/certificates", "endpoints": services}
    (tmp_path / "endpoints.json").write_text(json.dumps(content))
    found = endpoints.find({}, tmp_path)
    shown = endpoints.variables(found, None)
    assert shown == {
        "X509_CERT_DIR": "/certificates",
        "GRIDFABRIC_BROKER": "localhost:1",
        "GRIDFABRIC_TOP_LDAP": "[::1]:3",
        "GRIDFABRIC_VO": "cms",
    }
    again = endpoints.find(shown)
    assert again.one("broker") == found.one("broker") and again.one("top", "ldap") == found.one("top", "ldap")
    assert endpoints.as_data(endpoints.find({"GRIDFABRIC_ENDPOINTS": str(tmp_path / "endpoints.json")})) == content
    moved = endpoints.find({"GRIDFABRIC_STATE": str(tmp_path), "GRIDFABRIC_BROKER": "elsewhere:9"})
    assert moved.one("broker") == ("elsewhere", 9) and moved.all("storage") == found.all("storage")
