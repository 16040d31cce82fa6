"""A damaged database of a broker is set aside and made anew: no acknowledged job is lost, none runs twice."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until
from support.workload import TRUE, Workload, only_at

from agents.bookkeeping.client import event_name, state_name
from agents.broker.client import BrokerClient
from fabric.errors import Unavailable

BROKER = "broker.CERN"
PAGE = 4096


class OneBroker(Workload):
    """The grid's only broker, as a process of its own."""

    async def start_broker(self) -> None:
        await self.start_process(BROKER)

    @property
    def state(self) -> Path:
        return self.lab.directory / "agents" / BROKER

    async def found(self, client: BrokerClient, job_id: str, *states: str) -> Any:
        async def look() -> Any:
            try:
                places = await client.locate([job_id])
            except Unavailable:  # it is making its database anew
                return None
            return places[0] if places and places[0].state in states else None

        return await until(look, f"{job_id} is {' or '.join(states)}", deadline_s=20)


@pytest.fixture
async def workload(tmp_path: Path) -> AsyncIterator[OneBroker]:
    async with LabGrid(tmp_path) as lab:
        made = OneBroker(lab)
        yield made
        await made.kill()


def overwrite(path: Path) -> None:
    """Every second page of the file becomes noise, as after a bad disk; what the log had is in the file before."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // PAGE, 2):
        data[page * PAGE : (page + 1) * PAGE] = os.urandom(PAGE)
    path.write_bytes(data)


async def test_a_damaged_database_is_set_aside_and_made_anew(workload: OneBroker, tmp_path: Path) -> None:
    await workload.start("good", "slow")
    slow = workload.ces["slow"]
    slow.runs = False
    broker = await workload.broker()
    owner = str(workload.lab.user("alice").identity)
    (tmp_path / "in.txt").write_text("what the job reads")
    sandbox = 'InputSandbox = {"in.txt"}; ' + TRUE
    done = (await broker.submit(TRUE + only_at("good"))).job_id
    cleared = (await broker.submit(TRUE + only_at("good"))).job_id
    scheduled = (await broker.submit(TRUE + only_at("slow"))).job_id
    ended_unseen = (await broker.submit(TRUE + only_at("slow"))).job_id
    waiting = await broker.submit(f'{sandbox} Parameters = 30; Arguments = "_PARAM_"; {only_at("later")}', tmp_path)
    cancelled = (await broker.submit(TRUE + only_at("later"))).job_id
    dag = await broker.submit(
        f'Type = "DAG"; Nodes = [ a = [{TRUE}{only_at("slow")}]; b = [{TRUE}{only_at("good")}] ]; '
        "Dependencies = {{a, b}};"
    )
    for job_id in (done, cleared):
        await workload.found(broker, job_id, "DONE")
    await broker.clear([cleared])
    for job_id in (scheduled, ended_unseen, dag.children[0]):
        await workload.found(broker, job_id, "SCHEDULED")
    await broker.cancel([cancelled])
    await workload.ended([cleared, done, cancelled])
    await workload.lab.stop("bookkeeping.CERN")
    untold = (await broker.submit(TRUE + only_at("slow"), submission_id="untold")).job_id
    await workload.found(broker, untold, "SCHEDULED")  # bookkeeping was told nothing of it, nor of where it is

    await workload.kill()
    slow.finish(owner, slow.jobs[ended_unseen])
    overwrite(workload.state / "broker.db")
    await workload.lab.start("bookkeeping")
    await workload.lab.stop("good")
    await workload.start_broker()
    broker = await workload.broker(delegated=False)
    with pytest.raises(Unavailable, match="are not back yet") as caught:  # one of them may be at the CE that is away
        await broker.submit(TRUE, submission_id="untold")
    assert caught.value.reason == "BROKER_REBUILDING"
    await workload.start_ce("good")

    for job_id in (scheduled, untold, dag.children[0]):
        assert (await workload.found(broker, job_id, "SCHEDULED")).attempt == 1
        slow.finish(owner, slow.jobs[job_id])
    later = await workload.start_ce("later")
    everything = [done, scheduled, ended_unseen, untold, *waiting.children, *dag.children]
    for job_id in everything:
        assert (await workload.found(broker, job_id, "DONE")).attempt == 1
    assert workload.runs() == Counter([*everything, cleared])
    assert set(later.files.values()) == {b"what the job reads"}
    assert {place.state for place in await broker.locate([cancelled, cleared])} == {"CANCELLED", "CLEARED"}
    assert (await broker.submit(TRUE + only_at("slow"), submission_id="untold")).job_id == untold
    (kept,) = workload.state.glob("broker.db.damaged-*Z")
    (line,) = workload.lab.audit(BROKER, "store.set_aside")
    assert (line["kept"], "malformed" in line["detail"] or "damaged" in line["detail"]) == (str(kept), True)
    (line,) = await until(lambda: workload.lab.audit(BROKER, "broker.rebuilt"), "it says so")
    assert line["submissions"] == 8
    summaries = await workload.ended([*everything, cancelled])
    assert Counter(state_name(job.state) for job in summaries) == {"DONE": len(everything), "CANCELLED": 1}
    history = await workload.history(untold, "NOTE", "DONE")
    assert "taken up again" in json.dumps([dict(event.fields) for event in history.events])
    assert [event_name(event.type) for event in history.events].count("RUNNING") == 1

    await workload.kill()  # the second copy is damaged alone: made anew from the first
    overwrite(workload.state / "submissions.db")
    await workload.start_broker()
    broker = await workload.broker(delegated=False)
    await workload.found(broker, done, "DONE")
    with sqlite3.connect(workload.state / "submissions.db") as database:
        assert database.execute("SELECT count(*) FROM submissions").fetchone() == (8,)
    database.close()

    lost = (await broker.submit(TRUE + only_at("nowhere"))).job_id
    at_ce = (await broker.submit(TRUE + only_at("slow"))).job_id
    await workload.found(broker, at_ce, "SCHEDULED")
    await workload.kill()
    for name in ("broker.db", "submissions.db"):
        overwrite(workload.state / name)
    await workload.start_broker()
    (summary,) = await workload.ended([lost])
    assert (state_name(summary.state), summary.reason) == ("ABORTED", "BROKER_STORE_LOST")
    history = await workload.history(at_ce, "NOTE")
    assert any("it goes on, and nobody follows it" in event.fields.get("text", "") for event in history.events)
    broker = await workload.broker(delegated=False)
    again = (await broker.submit(TRUE + only_at("good"))).job_id
    await workload.found(broker, again, "DONE")
