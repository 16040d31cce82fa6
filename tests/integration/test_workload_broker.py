"""Broker and bookkeeping over real TLS, with gatekeepers that play what real ones do on good and bad days."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb
from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk
from support.grid import LabGrid, Offset
from support.waiting import until
from support.workload import TRUE, Workload

from agents.bookkeeping.client import BookkeepingClient, event_name, state_name
from agents.broker.client import BrokerClient
from agents.broker.link import CANCELS_AT_ONCE
from agents.catalog import client as catalog
from agents.storage import client as storage
from agents.user_interface.connection import open_grid
from agents.user_interface.endpoints import Endpoints
from agents.user_interface.jobs import cancel, follow, located, resubmit, submit
from agents.vo.client import VoClient
from fabric.clock import to_us
from fabric.errors import Conflict, Exhausted, GridError, InvalidRequest, NotFound, Refused, Unavailable
from fabric.rpc.delegation import delegate
from fabric.settings import Endpoint


@pytest.fixture
async def workload(tmp_path: Path) -> AsyncIterator[Workload]:
    async with LabGrid(tmp_path, clock=Offset()) as lab:
        yield Workload(lab)


def names(events: Any) -> list[str]:
    return [event_name(event.type) for event in events]


async def test_a_job_runs_and_is_cleared(workload: Workload, tmp_path: Path) -> None:
    await workload.start("ce1")
    broker = await workload.broker()
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho hello\n")
    jdl = 'Executable = "run.sh"; InputSandbox = {"run.sh"}; StdOutput = "o"; OutputSandbox = {"o"}; JobName = "first";'
    job_id = (await broker.submit(jdl, tmp_path)).job_id
    (job,) = await workload.ended([job_id])
    assert (state_name(job.state), job.name, job.vo, job.attempt) == ("DONE", "first", "cms", 1)
    ce = workload.ces["ce1"]
    assert list(ce.files.values()) == [b"#!/bin/sh\necho hello\n"]
    assert ce.jobs[job_id].description.input_sandbox[0].executable
    await workload.located(broker, job_id, "DONE")
    await broker.clear([job_id])
    await workload.until(lambda: ce.purged == [job_id])
    history = await workload.history(job_id, "MATCHED", "DONE")
    assert names(history.events)[:6] == ["REGISTERED", "ENQUEUED", "MATCHED", "TRANSFERRED", "RUNNING", "DONE"]
    await workload.located(broker, job_id, "CLEARED")


async def test_a_ce_that_does_not_know_the_members_yet_gets_the_job_when_it_does(workload: Workload) -> None:
    lab = workload.lab
    lab.plan("vo")
    await workload.start()
    await workload.start_ce("ce1", map_updater=True, map_file="", map_refresh_s=0.05)
    broker = await workload.broker()
    answer = await broker.submit(TRUE)
    link = ("link.failed", "MEMBERS_UNKNOWN")
    log = lab.agents["broker.CERN"].context.state_dir / "log.jsonl"
    await workload.until(lambda: all(word in log.read_text("utf-8") for word in link), 30)
    assert not lab.agents["broker.CERN"].agent.core._blocked, "other people's jobs may go there"
    await lab.start("vo")
    members = VoClient(await lab.channel("vo", credential=lab.operator()))
    await members.add_member(str(lab.user_certificate("alice").identity))
    (job,) = await workload.ended([answer.job_id], timeout_s=30)
    assert state_name(job.state) == "DONE"


async def test_parametric_jobs_spread_over_sites(workload: Workload) -> None:
    await workload.start(*(f"ce{n}" for n in range(5)))
    broker = await workload.broker()
    await workload.until(lambda: len(workload.lab.agents["broker.CERN"].agent.core.ces) == 5)
    for ce in workload.ces.values():
        ce.runs = False
    answer = await broker.submit(TRUE + 'Parameters = 40; Arguments = "_PARAM_"; StdOutput = "o_PARAM_";')
    assert len(answer.children) == 40
    await workload.until(lambda: sum(len(ce.jobs) for ce in workload.ces.values()) == 40)
    assert Counter(len(ce.jobs) for ce in workload.ces.values()) == {8: 5}
    delivered = {job.description.arguments[0] for ce in workload.ces.values() for job in ce.jobs.values()}
    assert delivered == {str(n) for n in range(40)}


async def test_submission_is_idempotent(workload: Workload) -> None:
    await workload.start()
    broker = await workload.broker()
    first = await broker.submit(TRUE + "Parameters = 3;", submission_id="s1")
    again = await broker.submit(TRUE + "Parameters = 3;", submission_id="s1")
    assert (first.job_id, list(first.children)) == (again.job_id, list(again.children))
    assert len(await (await workload.bookkeeping()).query(job_ids=[first.job_id])) == 3


async def test_lost_reply_and_restarts_run_each_job_once(workload: Workload) -> None:
    await workload.start("ce1")
    ce = workload.ces["ce1"]
    ce.lose_replies = 2
    broker = await workload.broker()
    answer = await broker.submit(TRUE + "Parameters = 30;")
    await workload.until(lambda: ce.submits >= 1)
    await workload.lab.stop("broker.CERN")
    await workload.start_broker()
    await workload.lab.stop("ce1")
    await workload.start_ce("ce1")
    for job_id in answer.children:
        await workload.located(broker, job_id, "DONE")
    assert all(job.attempt == 1 for job in ce.jobs.values())
    assert Counter(update.state for _, update in ce.updates)[gk.JOB_STATE_DONE] == 30


async def test_failure_goes_elsewhere_and_says_why(workload: Workload) -> None:
    await workload.start("bad", "good")
    broker = await workload.broker()
    await workload.until(lambda: len(workload.lab.agents["broker.CERN"].agent.core.ces) == 2)
    workload.ces["bad"].fails = lambda job: gk.JobUpdate(reason="WORKER_LOST", sentence="the worker is gone")
    answer = await broker.submit(TRUE + "Parameters = 8;")
    jobs = await workload.ended(list(answer.children))
    assert {state_name(job.state) for job in jobs} == {"DONE"}
    bad = workload.ces["bad"].jobs
    assert bad
    assert all(workload.ces["good"].jobs[job_id].attempt == 2 for job_id in bad)
    history = await workload.history(next(iter(bad)), "RESUBMISSION")
    (again,) = [event for event in history.events if event_name(event.type) == "RESUBMISSION"]
    assert (again.fields["reason"], again.fields["retry"], again.attempt) == ("WORKER_LOST", "shallow", 2)


async def test_a_ce_that_fails_jobs_fast_gets_no_more(workload: Workload) -> None:
    await workload.start("bad", "good")
    broker = await workload.broker()
    agent = workload.lab.agents["broker.CERN"].agent
    await workload.until(lambda: len(agent.core.ces) == 2)
    bad = workload.ces["bad"]
    bad.fails = lambda job: gk.JobUpdate(reason="SCRATCH_FAILED", sentence="no scratch directory")
    answer = await broker.submit(TRUE + "Parameters = 16;")
    jobs = await workload.ended(list(answer.children))
    assert {state_name(job.state) for job in jobs} == {"DONE"}
    failed = set(bad.jobs)
    history = await workload.history(min(failed), "MATCHED", "MATCHED")
    first, second = [event.fields for event in history.events if event_name(event.type) == "MATCHED"]
    assert ("jobmanager-bad" in first["ce"], "jobmanager-good" in first["runner_up"]) == (True, True)
    assert (first["rank"], first["runner_up_rank"], first["suited"]) == ("0", "0", "2")
    assert ("jobmanager-good" in second["ce"], second["suited"]) == (True, "1")
    more = await broker.submit(TRUE + "Parameters = 8;")
    assert {job.attempt for job in await workload.ended(list(more.children))} == {1}
    assert set(bad.jobs) == failed
    told = {match.ce.rpartition("-")[2]: match.explanation for match in await broker.list_match(TRUE)}
    assert "gets no jobs from this broker for" in told["bad"]
    assert "last by SCRATCH_FAILED" in told["bad"]
    assert told["good"] == ""
    assert agent.health().numbers["ces_listed"] == 1
    workload.ces["good"].fails = lambda job: gk.JobUpdate(reason="INPUT_DATA_UNAVAILABLE", sentence="it is away")
    waiting = (await broker.submit(TRUE)).job_id

    async def told() -> Any:
        (found,) = await broker.locate([waiting])
        return found if found.waiting_for.startswith("waits after a failure until") else None

    assert (await until(told, "why it waits")).attempt >= 2
    await workload.lab.stop("broker.CERN")
    await workload.start_broker()
    agent = workload.lab.agents["broker.CERN"].agent
    await until(lambda: agent.core.is_open, "the broker is open again")
    assert agent.health().numbers["ces_listed"] == 1


async def test_the_user_interface_goes_to_the_next_broker_and_finds_the_one_that_has_a_job(workload: Workload) -> None:
    lab = workload.lab
    lab.plan("broker", name="broker2.CERN")
    await workload.start("ce1")
    await lab.start("broker", name="broker2.CERN", options=workload.options)
    await until(lambda: all(lab.agents[name].agent.core.is_open for name in ("broker.CERN", "broker2.CERN")))
    workload.ces["ce1"].runs = False
    two = tuple(
        Endpoint("broker", name, "localhost", "CERN", lab.port(name)) for name in ("broker.CERN", "broker2.CERN")
    )
    nobodys = "https://localhost:1/nobody"
    services, alice = Endpoints({"broker": two}), lab.user("alice")
    async with open_grid(services, alice, lab.certificates) as grid:
        first = (await submit(grid, TRUE, Path())).job_id
        await lab.stop("broker.CERN")
        second = (await submit(grid, TRUE + "Parameters = 2;", Path())).job_id
        with pytest.raises(Unavailable, match="one that may have it does not") as caught:
            await cancel(grid, [first])
        assert (caught.value.reason, caught.value.facts["job_id"]) == ("BROKER_AWAY", first)
    await workload.start_broker()
    async with open_grid(services, alice, lab.certificates) as grid:  # the first remembers for a moment who was away
        await until(lambda: lab.agents["broker.CERN"].agent.core.is_open, "it has begun again")
        found = await located(grid, [first, nobodys])
        assert [place.job_id for _, place in found] == [first]
        outcomes, unknown = await cancel(grid, [second, nobodys, first])
        assert ([item.outcome for item in outcomes], unknown) == (["cancelling"] * 3, [nobodys])
        await workload.ended([first, second], count=3, timeout_s=30)
        assert (await resubmit(grid, second)).children
        with pytest.raises(NotFound, match="has submitted no"):
            await resubmit(grid, nobodys)


async def test_retries_end(workload: Workload) -> None:
    await workload.start("ce1")
    workload.ces["ce1"].fails = lambda job: gk.JobUpdate(reason="WORKER_LOST", sentence="gone", started=True)
    broker = await workload.broker()
    job_id = (await broker.submit(TRUE + "RetryCount = 2;")).job_id
    (job,) = await workload.ended([job_id])
    assert (state_name(job.state), job.reason, job.attempt) == ("ABORTED", "WORKER_LOST", 3)


async def test_cancel_in_every_state(workload: Workload) -> None:
    await workload.start(repeat_cancel_s=600.0)
    broker = await workload.broker()
    waiting = (await broker.submit(TRUE)).job_id
    assert (await workload.located(broker, waiting, "WAITING")).waiting_for
    (outcome,) = await broker.cancel([waiting])
    assert outcome.outcome == "cancelling"
    await workload.located(broker, waiting, "CANCELLED")
    ce = await workload.start_ce("ce1")
    ce.runs = False
    queued = (await broker.submit(TRUE)).job_id
    await workload.located(broker, queued, "SCHEDULED")
    parent = await broker.submit(TRUE + "Parameters = 3;")
    await broker.cancel([queued, parent.job_id])
    await workload.ended([queued, *parent.children])
    again = await broker.cancel([queued, "https://nowhere:1/x"])
    assert [item.outcome for item in again] == ["already-ended", "unknown"]
    # A CE that is slow to end jobs is asked for all of them, whatever their number, and for each once.
    ce.cancels.clear()
    ce.cancels_at_once = False
    ce.slots = 2 * CANCELS_AT_ONCE
    many = await broker.submit(TRUE + f"Parameters = {CANCELS_AT_ONCE + 100};")
    await until(lambda: set(many.children) <= set(ce.jobs), "all jobs are at the CE")
    await workload.located(broker, many.children[-1], "SCHEDULED")
    await broker.cancel([many.job_id])
    await until(lambda: len(ce.cancels) >= len(many.children), lambda: f"asked for {len(ce.cancels)}")
    assert sorted(ce.cancels) == sorted(many.children)


async def test_a_full_ce_gives_jobs_back_without_a_retry(workload: Workload) -> None:
    await workload.start("ce1")
    ce = workload.ces["ce1"]

    def full(number: int, request: gk.SubmitRequest) -> gk.SubmitResponse | None:
        if number > 2:
            return None
        return gk.SubmitResponse(
            outcomes=[gk.SubmitOutcome(job_id=job.job_id, reason="QUEUE_FULL", sentence="full") for job in request.jobs]
        )

    ce.on_submit = full
    broker = await workload.broker()
    job_id = (await broker.submit(TRUE + "ShallowRetryCount = 0;")).job_id
    (job,) = await workload.ended([job_id])
    assert state_name(job.state) == "DONE"


async def test_a_ce_that_does_not_answer_loses_undelivered_jobs(workload: Workload) -> None:
    await workload.start("dead", "alive")
    broker = await workload.broker()
    core = workload.lab.agents["broker.CERN"].agent.core
    await workload.until(lambda: len(core.ces) == 2)
    # The port of one is closed while the information system still shows it.
    shown = core._views()
    core._views = lambda: shown
    await workload.lab.stop("dead")
    answer = await broker.submit(TRUE + "Parameters = 6;")
    jobs = await workload.ended(list(answer.children))
    assert {state_name(job.state) for job in jobs} == {"DONE"}
    assert len(workload.ces["alive"].jobs) == 6


async def test_expired_proxy_aborts_with_a_sentence(workload: Workload) -> None:
    await workload.start()
    proxy = workload.lab.user("alice")
    channel = await workload.lab.channel("broker", credential=proxy)
    await delegate(channel, proxy, lifetime=timedelta(minutes=10))
    job_id = (await BrokerClient(channel).submit(TRUE)).job_id
    await workload.history(job_id, "NOTE")
    assert isinstance(workload.lab.clock, Offset)
    workload.lab.clock.ahead = timedelta(minutes=11)
    (job,) = await workload.ended([job_id])
    assert (state_name(job.state), job.reason) == ("ABORTED", "PROXY_EXPIRED")
    events = names((await (await workload.bookkeeping()).history(job_id)).events)
    assert events.index("NOTE") < events.index("ABORTED")


async def test_list_match_names_the_failing_term(workload: Workload) -> None:
    await workload.start("ce1")
    broker = await workload.broker()
    await workload.until(lambda: workload.lab.agents["broker.CERN"].agent.core.ces)
    jdl = TRUE + "Requirements = other.GlueCEInfoTotalCPUs >= 2 && other.GlueCEPolicyMaxWallClockTime >= 720;"
    (match,) = await broker.list_match(jdl)
    assert not match.matches
    assert match.failing_term == "other.GlueCEPolicyMaxWallClockTime >= 720"
    assert match.explanation == "GlueCEPolicyMaxWallClockTime is 60"
    assert match.change == f"write other.GlueCEPolicyMaxWallClockTime >= 60 instead of {match.failing_term}"
    (match,) = await broker.list_match(TRUE)
    assert (match.matches, match.site, match.free_slots) == (True, "CERN", 4)


async def refusal(call: Any, kind: type[GridError]) -> GridError:
    with pytest.raises(kind) as caught:
        await call
    return caught.value


async def test_refusals(workload: Workload, tmp_path: Path) -> None:
    await workload.start(max_file_bytes=1000, max_sandbox_bytes=1500)
    broker = await workload.broker()
    stub = broker._stub

    def submit(jdl: str, *files: pb.SandboxFile) -> Any:
        return stub.Submit(pb.SubmitRequest(submission_id="x", jdl=jdl, input_sandbox=files))

    error = await refusal(submit('Executable = "/bin/true"\nRank = 1;'), InvalidRequest)
    assert (error.reason, error.facts["line"], error.facts["column"]) == ("JDL_SYNTAX", "2", "1")
    error = await refusal(submit(TRUE + 'RetryCount = "two";'), InvalidRequest)
    assert error.reason == "JDL_TYPE"
    assert "RetryCount must be an integer, is a string" in error.sentence
    error = await refusal(submit(TRUE + 'OutputSandbox = {"../../etc/passwd"};'), InvalidRequest)
    assert error.reason == "JDL_PATH_ESCAPE"
    sha = "0" * 64
    error = await refusal(submit(TRUE, pb.SandboxFile(name="x/..", sha256=sha)), InvalidRequest)
    assert error.reason == "SANDBOX_PATH_ESCAPE"
    with_file = TRUE + 'InputSandbox = {"a"};'
    assert (await refusal(submit(with_file), InvalidRequest)).reason == "SANDBOX_FILE_MISSING"
    error = await refusal(submit(with_file, pb.SandboxFile(name="a", sha256=sha, size_bytes=3)), Conflict)
    assert error.reason == "SANDBOX_NOT_UPLOADED"
    (tmp_path / "a").write_bytes(b"x" * 1001)
    assert (await refusal(broker.submit(with_file, tmp_path), Exhausted)).reason == "SANDBOX_TOO_LARGE"
    (tmp_path / "a").write_bytes(b"x" * 900)
    (tmp_path / "b").write_bytes(b"y" * 900)
    error = await refusal(broker.submit(TRUE + 'InputSandbox = {"a", "b"};', tmp_path), Exhausted)
    assert error.reason == "SANDBOX_TOO_LARGE"
    assert (
        await refusal(broker.submit(TRUE + 'VirtualOrganisation = "atlas";'), InvalidRequest)
    ).reason == "VO_UNKNOWN"
    limited = await workload.broker(delegated=False, limited=True)
    assert (await refusal(limited.submit(TRUE), Refused)).reason == "LIMITED_PROXY"
    stranger = await workload.broker("bob", delegated=False)
    assert (await refusal(stranger.submit(TRUE), NotFound)).reason == "DELEGATION_MISSING"
    job_id = (await broker.submit(TRUE)).job_id
    assert (await refusal(stranger.cancel([job_id]), Refused)).reason == "JOB_NOT_YOURS"
    assert (await refusal(broker.clear([job_id]), Conflict)).reason == "JOB_NOT_ENDED"
    # What the client was told is what the server's audit log says.
    refused = workload.lab.audit("broker.CERN")
    assert any("JOB_NOT_YOURS" in str(line) for line in refused)


async def test_an_upload_must_be_what_it_says(workload: Workload) -> None:
    await workload.start()
    broker = await workload.broker()

    async def pieces() -> AsyncIterator[pb.PutSandboxRequest]:
        yield pb.PutSandboxRequest(sha256="0" * 64, size_bytes=3, data=b"abc")

    assert (await refusal(broker._stub.PutSandbox(pieces()), InvalidRequest)).reason == "SANDBOX_CHECKSUM"
    answer = await broker._stub.MissingSandbox(pb.MissingSandboxRequest(sha256=["0" * 64]))
    assert list(answer.sha256) == ["0" * 64]


async def test_bookkeeping_takes_events_only_from_their_source(workload: Workload) -> None:
    await workload.start()
    event = lb.Event(job_id="j", source="broker.CERN", sequence=1, at_us=to_us(workload.lab.clock.now()), type=5)
    user = await workload.bookkeeping()
    assert (await refusal(user.record([event]), Refused)).reason == "SERVICE_REQUIRED"
    other = await workload.lab.channel("bookkeeping", credential=workload.lab.service("gatekeeper", "gk.X"))
    assert (await refusal(BookkeepingClient(other).record([event]), Refused)).reason == "SOURCE_MISMATCH"
    event.source, event.type = "gk.X", 1
    assert (await refusal(BookkeepingClient(other).record([event]), Refused)).reason == "EVENT_NOT_YOURS"
    event.type = 99
    assert (await refusal(BookkeepingClient(other).record([event]), InvalidRequest)).reason == "EVENT_INVALID"
    assert (await refusal(user.history("nothing"), NotFound)).reason == "JOB_UNKNOWN"


async def test_jobs_that_bookkeeping_has_not_heard_of_yet_are_waited_for(workload: Workload) -> None:
    lab = workload.lab
    alice = lab.user("alice")
    await lab.start("bookkeeping")
    broker = BookkeepingClient(await lab.channel("bookkeeping", credential=lab.service("broker", "broker.CERN")))
    parent, *children = (f"https://localhost:1/{name}" for name in ("parent", "first", "second"))
    now_us = to_us(lab.clock.now())

    async def record(job_id: str, sequence: int, **fields: str) -> None:
        heard = [
            lb.Event(
                job_id=job_id, type=lb.EVENT_TYPE_REGISTERED, fields={"owner": grid.identity, "vo": "cms"} | fields
            )
        ]
        if job_id != parent:
            heard.append(lb.Event(job_id=job_id, type=lb.EVENT_TYPE_ABORTED))
        for number, event in enumerate(heard):
            event.source, event.sequence, event.at_us, event.attempt = "broker.CERN", sequence + number, now_us, 1
        await broker.record(heard)

    async def look(states: Mapping[str, lb.JobSummary]) -> None:
        if len(states) == 1:
            await record(children[1], 20, parent=parent)

    services = Endpoints(
        {"bookkeeping": (Endpoint("bookkeeping", "b", "localhost", "CERN", lab.port("bookkeeping.CERN")),)}
    )
    async with open_grid(services, alice, lab.certificates) as grid:
        await record(parent, 1, type="parametric", jobs="2")
        await record(children[0], 10, parent=parent)
        ended = await follow(grid, [parent], look, timeout_s=60)
    assert sorted(ended) == sorted(children)


async def test_a_dag_runs_in_order_and_what_failed_is_run_again(workload: Workload, tmp_path: Path) -> None:
    await workload.start("ce1")
    broker = await workload.broker()
    ce = workload.ces["ce1"]
    (tmp_path / "b.jdl").write_text('[ Executable = "/bin/b"; ]')
    jdl = """[ Type = "DAG"; Executable = "/bin/true"; Dependencies = {{a, {b, c}}, {{b, c}, d}}; RetryCount = 0;
      Nodes = [ a = []; b = [ File = "b.jdl" ]; c = []; d = [ Executable = "/bin/d" ] ]; ]"""
    ce.fails = lambda job: gk.JobUpdate(reason="X", started=True) if job.description.executable == "/bin/b" else None
    dag = await broker.submit(jdl, tmp_path)
    a, b, c, d = dag.children
    jobs = {job.job_id: job for job in await workload.ended(list(dag.children))}
    assert [state_name(jobs[job_id].state) for job_id in (a, b, c, d)] == ["DONE", "ABORTED", "DONE", "ABORTED"]
    client = await workload.bookkeeping()
    found = await client.query(job_ids=[dag.job_id], include_parents=True)
    (whole,) = (job for job in found if job.job_id == dag.job_id)
    assert (state_name(whole.state), whole.name) == ("ABORTED", "")
    assert jobs[d].reason == "PARENT_FAILED"
    assert next(iter(ce.jobs)) == a
    assert d not in ce.jobs
    ce.fails = lambda job: None
    assert (await refusal(broker.resubmit("https://localhost:1/other"), NotFound)).reason == "JOB_UNKNOWN"
    stranger = await workload.broker("bob")
    assert (await refusal(stranger.resubmit(dag.job_id), NotFound)).reason == "JOB_UNKNOWN"
    await workload.located(broker, c, "DONE")
    again = await broker.resubmit(dag.job_id, submission_id="again")
    assert again == await broker.resubmit(dag.job_id, submission_id="again")
    assert len(again.children) == 2
    jobs = {job.job_id: job for job in await workload.ended(list(again.children))}
    assert [(state_name(jobs[job_id].state), jobs[job_id].name) for job_id in again.children] == [
        ("DONE", "b"), ("DONE", "d"),
    ]  # fmt: skip
    order = [job_id for job_id in ce.jobs if job_id in again.children]
    assert order == list(again.children)
    await workload.located(broker, again.children[1], "DONE")
    assert (await refusal(broker.resubmit(again.job_id), Conflict)).reason == "NOTHING_TO_RESUBMIT"
    history = await (await workload.bookkeeping()).history(d)
    assert names(history.events) == ["REGISTERED", "ABORTED"]


async def test_a_dag_goes_on_after_the_broker_was_started_again(workload: Workload) -> None:
    await workload.start("ce1")
    broker = await workload.broker()
    ce = workload.ces["ce1"]
    ce.runs = False
    dag = await broker.submit(
        'Type = "DAG"; Executable = "/bin/true"; Nodes = [a = []; b = []]; Dependencies = {{a, b}};'
    )
    a, b = dag.children
    await workload.located(broker, a, "SCHEDULED")
    assert "depends on" in (await workload.located(broker, b, "BLOCKED")).waiting_for
    assert (await refusal(broker.resubmit(dag.job_id), Conflict)).reason == "JOB_NOT_ENDED"
    await workload.lab.stop("broker.CERN")
    ce.runs = True
    ce.finish(str(workload.lab.user("alice").identity), ce.jobs[a])
    await workload.start_broker()
    await workload.ended([a, b])
    assert list(ce.jobs) == [a, b]


async def test_a_job_that_nobody_takes_is_given_up_when_it_expires(workload: Workload) -> None:
    await workload.start()
    broker = await workload.broker()
    assert (await refusal(broker.submit(TRUE + "ExpiryTime = 1000;"), InvalidRequest)).reason == "JOB_EXPIRED"
    job_id = (await broker.submit(TRUE + f"ExpiryTime = {int(time.time()) + 600};")).job_id
    assert isinstance(workload.lab.clock, Offset)
    workload.lab.clock.ahead = timedelta(minutes=11)
    (job,) = await workload.ended([job_id])
    assert (state_name(job.state), job.reason) == ("ABORTED", "JOB_EXPIRED")


async def test_jobs_wait_for_input_that_is_on_tape_and_say_so(workload: Workload) -> None:
    lab = workload.lab
    for kind, site in (("storage", "CERN"), ("storage", "RAL"), ("catalog", "CERN")):
        lab.plan(kind, site=site)
    tapes = {"tape": {"vos": ["cms"], "mount_s": 0, "seek_s": 0}}
    await lab.start("storage", options={"reserve_bytes": 0, **tapes})
    await lab.start("storage", site="RAL", options={"reserve_bytes": 0})
    await lab.start("catalog")
    await workload.start("ce1")
    agent: Any = lab.agents["storage.CERN"].agent
    (lab.directory / "raw").write_bytes(b"raw" * 1000)
    alice = lab.user("alice")
    channel = await lab.channel("storage", credential=alice)
    names = await lab.channel("catalog", credential=alice)
    on_tape: list[str] = []
    for name in ("raw", "copied"):
        stored = await storage.put_file(channel, lab.directory / "raw", "cms")
        content = catalog.Content(stored.size_bytes, stored.checksums.adler32, stored.checksums.sha256)
        await catalog.register(names, f"/grid/cms/{name}", catalog.new_guid(), content, surl=stored.surl)
        file = await agent.element.get(storage.parse_surl(stored.surl).file_id, "cms")
        await until(lambda file=file: agent.element.purge(file), "its tape copy, and then its leaving the disk")
        on_tape.append(stored.surl)
    ral = await lab.channel("storage", site="RAL", credential=alice)
    stored = await storage.put_file(ral, lab.directory / "raw", "cms")
    await catalog.add_replica(names, "lfn:/grid/cms/copied", stored.surl, stored.size_bytes, stored.checksums.adler32)
    mounted, stage = asyncio.Event(), agent.nearline._library.stage

    async def stage_when_mounted(*arguments: Any) -> AsyncIterator[Any]:
        await mounted.wait()
        async with aclosing(stage(*arguments)) as staged:
            async for each in staged:
                yield each

    agent.nearline._library.stage = stage_when_mounted
    broker = await workload.broker()
    jdl = 'Executable = "/bin/true"; InputData = {{"{}"}}; DataAccessProtocol = {{"https"}};'
    waiting = (await broker.submit(jdl.format("lfn:/grid/cms/raw"))).job_id

    async def why() -> str:
        (place,) = await broker.locate([waiting])
        assert place.state == "WAITING"
        return place.waiting_for

    await until(lambda: _contains(why(), "1 of 1 input files are on tape and are being staged"), "the reason")
    # With another replica on disk, or an unknown file, nothing waits for a tape.
    others = [f"lfn:/grid/cms/{name}" for name in ("copied", "unknown")]
    await workload.ended([(await broker.submit(jdl.format(name))).job_id for name in others], timeout_s=60)
    assert waiting not in workload.ces["ce1"].jobs
    # A name that cannot be one keeps nobody's files from being found, by any of their names.
    core: Any = lab.agents["broker.CERN"].agent.core  # type: ignore[attr-defined]
    (entry,), _ = await catalog.lookup(names, ["lfn:/grid/cms/copied"])
    wanted = {"lfn:/grid/cms//copied/", "guid:7", "lfn:/grid/cms/copied/", f"guid:{entry.guid.upper()}"}
    places = {replica.storage_element for replica in entry.replicas}
    found = await core._find_replicas(wanted)
    assert {name for name, where in found.items() if where == places} == {
        "lfn:/grid/cms/copied/",
        f"guid:{entry.guid.upper()}",
    }
    assert found["guid:7"] == found["lfn:/grid/cms//copied/"] == set()
    mounted.set()
    (job,) = await workload.ended([waiting], timeout_s=60)
    assert (state_name(job.state), job.attempt) == ("DONE", 1)

    async def pinned_s() -> float:
        until_us = (await storage.stat(channel, on_tape[0])).pinned_until_us
        return (until_us - to_us(lab.clock.now())) / 1e6

    # When the jobs that need it have ended its pin goes, and her own stays.
    await storage.bring_online(channel, on_tape[:1], 1800.0)
    assert await pinned_s() > 3600
    await core.clean()
    assert 1700 < await pinned_s() < 1800
    await refused_holder(channel, on_tape[0])


async def refused_holder(channel: Any, surl: str) -> None:
    for call in (storage.bring_online(channel, [surl], holder="a b"), storage.release(channel, [surl], "x" * 33)):
        with pytest.raises(InvalidRequest) as caught:
            await call
        assert caught.value.reason == "HOLDER_INVALID"


async def _contains(text: Awaitable[str], wanted: str) -> bool:
    return wanted in await text


async def test_limits_of_users_and_vos_are_said_and_others_go_on(workload: Workload, tmp_path: Path) -> None:
    await workload.start(max_jobs_per_owner=3, max_jobs_per_vo=4, submissions_per_s=0.5, max_kept_sandbox_bytes=10)
    alice, bob = await workload.broker(), await workload.broker("bob")
    await alice.submit(TRUE + "Parameters = 3;")
    error = await refusal(alice.submit(TRUE), Exhausted)
    assert (error.reason, error.retry_after_s) == ("JOB_LIMIT_OWNER", 30)
    await bob.submit(TRUE)
    assert (await refusal(bob.submit(TRUE), Exhausted)).reason == "JOB_LIMIT_VO"
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert (await refusal(alice.submit(TRUE + 'InputSandbox = "a";', tmp_path), Exhausted)).reason == (
        "SANDBOX_LIMIT_OWNER"
    )
    reasons = {(await refusal(alice.submit(TRUE), Exhausted)).reason for _ in range(5)}
    assert "SUBMISSION_RATE" in reasons
