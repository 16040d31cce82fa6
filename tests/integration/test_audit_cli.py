"""`grid audit` over agents that answer, a site that does not, and a log that somebody has worked on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.security.v1 import audit_pb2, audit_pb2_grpc
from support.grid import ORGANISATION, LabGrid, free_port
from support.site import Site, job
from support.waiting import until

from agents.user_interface import application
from agents.user_interface.exits import ExitCode
from fabric import audit
from fabric.audit import AuditFile
from fabric.rpc import audit_trail

ALICE = f"{ORGANISATION}/OU=Users/CN=alice"


class Desk:
    """An operator's machine: commands run in threads, as the agents live in this test's event loop."""

    def __init__(self, lab: LabGrid, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.lab, self.folder, self.capsys = lab, folder, capsys
        folder.mkdir()
        lab.operator().save(folder / "admin.pem")

    def knows(self, *agents: str, silent: tuple[str, ...] = ()) -> None:
        """Write the endpoints file; the agents of the site RAL in `silent` are not there."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name in (*agents, *silent):
            port = free_port() if name in silent else self.lab.port(name)
            item = {"name": name, "site": name.partition(".")[2], "host": "localhost", "rpc": port}
            found.setdefault(name.partition(".")[0], []).append(item)
        content = {"grid": "test", "vos": ["cms"], "certificates": str(self.lab.certificates), "endpoints": found}
        (self.folder / "endpoints.json").write_text(json.dumps(content))

    async def __call__(self, *arguments: str, code: ExitCode = ExitCode.OK) -> Any:
        options = ("--state", str(self.folder), "--json")
        found = await asyncio.to_thread(application.run, ["audit", *arguments, *options])
        output = self.capsys.readouterr()
        assert found == code, output
        return json.loads(output.out) if output.out else output.err


@pytest.fixture
async def desk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    for name in ("GRIDFABRIC_STATE", "GRIDFABRIC_ENDPOINTS", "X509_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    async with LabGrid(tmp_path) as lab:
        yield Desk(lab, tmp_path / "desk", capsys)


async def test_a_job_is_followed_to_its_worker_and_a_silent_site_is_named(desk: Desk) -> None:
    site = Site(desk.lab)
    await site.start()
    one = job("-c", "exit 3")
    await site.run(one)
    desk.knows("gatekeeper.CERN", "worker.CERN", silent=("gatekeeper.RAL", "worker.RAL", "storage.CERN"))
    found = await desk("--job", one.job_id, code=ExitCode.UNREACHABLE)
    assert set(found["missing"]) == {"site RAL", "storage.CERN"}
    assert found["missing"]["site RAL"].startswith("none of its 2 agents; the first: localhost:")
    lines = {line["event"]: line for line in found["entries"]}
    submit, start, end = lines["job.submit"], lines["job.started"], lines["job.ended"]
    assert (submit["peer"], submit["address"], submit["agent"]) == (ALICE, "127.0.0.1", "gatekeeper.CERN")
    assert (start["owner"], start["executable"], start["agent"]) == (ALICE, "/bin/sh", "worker.CERN")
    assert start["pid"] > 1 and (start["account"], start["uid"]) == (submit["account"], submit["uid"])
    assert (end["exit_code"], end["job_id"]) == (3, one.job_id) and end["wall_s"] >= 0

    by_host = await desk("--host", "127.0.0.1", code=ExitCode.UNREACHABLE)
    assert {"session.opened", "job.submit"} <= {line["event"] for line in by_host["entries"]}
    desk.knows("gatekeeper.CERN", "worker.CERN")
    everything = await desk("--since", "10m")
    assert everything["missing"] == {} and len(everything["entries"]) > len(found["entries"])
    assert "name what to look for" in (await desk(code=ExitCode.USAGE))["error"]["sentence"]


async def test_who_is_no_operator_reads_no_log(desk: Desk) -> None:
    await desk.lab.start("storage")
    desk.knows("storage.CERN")
    for credential in (desk.lab.user("alice"), desk.lab.service("broker"), desk.lab.grid.unknown_ca_user("root")):
        credential.save(desk.folder / "admin.pem")
        for command in (("--since", "1h"), ("verify",)):
            found = await desk(*command, code=ExitCode.UNREACHABLE)
            assert list(found["missing"]) == ["storage.CERN"] and not found.get("entries") and not found.get("logs")


async def test_a_closed_file_that_was_removed_is_missed_by_the_running_agent(desk: Desk) -> None:
    folder = desk.lab.directory / "agents" / desk.lab.plan("storage")
    early = AuditFile(folder / "audit.jsonl", max_bytes=500)
    for number in range(9):
        early.append({"at": "2026-11-22T12:00:00.000000Z", "event": "x", "peer": f"/CN={number}"})
    early.close()
    agent = await desk.lab.start("storage")
    desk.knows("storage.CERN")
    (log,) = (await desk("verify"))["logs"]
    assert log["problems"] == [] and log["first"] == 1
    closed = sorted(folder.glob("audit.jsonl.*.gz"))
    closed[1].rename(folder / "elsewhere")
    (log,) = (await desk("verify", code=ExitCode.FAILED))["logs"]
    assert "entries after" in log["problems"][0] and "are gone" in log["problems"][0]
    (folder / "elsewhere").rename(closed[1])
    closed[0].write_bytes(closed[0].read_bytes()[:-30])
    (log,) = (await desk("verify", code=ExitCode.FAILED))["logs"]
    assert "a closed file is damaged" in log["problems"][0]
    assert "damaged" in (await desk("--dn", "/CN=1", code=ExitCode.UNREACHABLE))["missing"]["storage.CERN"]
    assert agent.health().state == "green"


async def test_a_log_whose_end_was_cut_while_its_agent_was_down_is_missed(desk: Desk) -> None:
    path = desk.lab.directory / "agents" / desk.lab.plan("storage") / "audit.jsonl"
    early = AuditFile(path)
    for number in range(200):
        early.append({"at": "2026-11-22T12:00:00.000000Z", "event": "x", "peer": f"/CN={number}"})
    early.close()
    lines = path.read_bytes().splitlines(keepends=True)
    await desk.lab.start("storage")
    desk.knows("storage.CERN")
    (log,) = (await desk("verify"))["logs"]
    assert log["problems"] == [] and log["last"] > 200
    assert (desk.folder / "audit-seen.json").stat().st_mode & 0o777 == 0o600
    await desk.lab.stop("storage.CERN")
    path.write_bytes(b"".join(lines[:20]))
    await desk.lab.start("storage")
    for _ in range(2):  # and it is told until the operator has seen to it
        (log,) = (await desk("verify", code=ExitCode.FAILED))["logs"]
        assert "were seen before and are cut off" in log["problems"][0]
    (desk.folder / "audit-seen.json").write_text('{"storage.CERN": [-1, "x"]}')
    assert "remove it to begin anew" in (await desk("verify", code=ExitCode.USAGE))["error"]["sentence"]
    (desk.folder / "audit-seen.json").unlink()
    (log,) = (await desk("verify"))["logs"]
    assert log["problems"] == []


async def test_a_long_check_tells_how_far_it_is_and_is_given_up_with_the_call(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LOOK_EVERY", 1)
    monkeypatch.setattr(audit, "SEARCHED_AT_ONCE", 1)
    monkeypatch.setattr(audit_trail, "TELL_S", 0.001)
    going, looks = threading.Event(), list[audit.Look]()
    check = audit.verify

    def slowly(descriptors: list[int], head: audit.Head, look: audit.Look, witnessed: object) -> audit.Verdict:
        looks.append(look)
        assert going.wait(30)
        return check(descriptors, head, look)

    monkeypatch.setattr(audit, "verify", slowly)
    await desk.lab.start("storage")
    desk.knows("storage.CERN")
    stub: Any = audit_pb2_grpc.AuditTrailStub(await desk.lab.channel("storage", credential=desk.lab.operator()))
    async with stub.Verify(audit_pb2.VerifyAuditRequest()) as stream:
        async for answer in stream:
            assert not answer.is_verdict
            await until(lambda: looks, "the check begins")  # it may be told of before its thread has started
            break
    await until(lambda: not looks[0].is_wanted, "the other end hears that it is not wanted")
    going.set()
    (log,) = (await desk("verify"))["logs"]
    assert log["problems"] == [] and looks[1].total_bytes >= looks[1].read_bytes > 0
    operator = str(desk.lab.operator().identity)
    assert (await desk("--dn", operator))["entries"]  # what only says that a search goes on is no entry


async def test_an_agent_without_room_for_ninety_days_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "the audit log has room for 3.0 days of 90"
    monkeypatch.setattr(AuditFile, "shortfall", property(lambda _: sentence))
    agent = await desk.lab.start("storage")
    await asyncio.sleep(0)
    health = agent.health()
    assert health.state == "degraded" and sentence in health.detail
