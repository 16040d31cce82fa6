"""Two brokers: the jobs of one that is killed go on at the other, each runs once, and the old one is fenced."""

from __future__ import annotations

import asyncio
import shutil
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.broker.v1 import broker_pb2_grpc
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk
from support.grid import LabGrid
from support.waiting import until
from support.workload import TRUE, Workload, only_at

from agents.bookkeeping import brokers
from agents.bookkeeping.client import event_name, state_name
from agents.broker import copies
from agents.broker.client import BrokerClient
from agents.myproxy.client import MyProxyClient
from fabric.errors import Conflict, Exhausted, InvalidRequest, NotFound, Refused, Unavailable
from fabric.rpc.delegation import delegate

FIRST, SECOND = "broker.CERN", "broker2.CERN"


class TwoBrokers(Workload):
    """The first broker may be a process of its own, to be killed."""

    kills = False

    async def start_broker(self) -> None:
        await self.start_here(SECOND)
        await (self.start_first() if self.kills else self.start_here(FIRST))

    async def start_here(self, name: str) -> None:
        await self.lab.start("broker", name=name, options=self.options)

    async def start_first(self) -> None:
        await self.start_process(FIRST)

    async def at(self, name: str, user: str = "alice", *, delegated: bool = True) -> BrokerClient:
        proxy = self.lab.user(user)
        channel = await self.lab.channel("broker", name=name, credential=proxy)
        if delegated:
            await delegate(channel, proxy)
        client = BrokerClient(channel)

        async def begun() -> bool:
            try:
                await client.locate(["https://localhost:1/nobody"])
            except Unavailable:
                return False
            return True

        await until(begun, f"{name} has begun")
        return client

    async def take_over(self, *, force: bool = False, by: str = SECOND, of: str = FIRST) -> pb.TakeOverResponse:
        channel = await self.lab.channel("broker", name=by, credential=self.lab.operator())
        return await BrokerClient(channel).take_over(of, force=force)

    async def found(self, client: BrokerClient, job_id: str, *states: str) -> Any:
        async def look() -> Any:
            places = await client.locate([job_id])
            return places[0] if places and places[0].state in states else None

        return await until(look, f"{job_id} is {' or '.join(states)}")

    async def copied(self, count: int) -> None:
        store = self.lab.agents[SECOND].agent.core.store

        async def kept() -> bool:
            return await store.read(copies.count_kept) == count

        await until(kept, f"{count} submissions have a copy")


@pytest.fixture
async def workload(tmp_path: Path) -> AsyncIterator[TwoBrokers]:
    async with LabGrid(tmp_path) as lab:
        lab.plan("broker", name=FIRST)
        lab.plan("broker", name=SECOND)
        made = TwoBrokers(lab)
        yield made
        await made.kill()


async def test_jobs_in_every_state_go_on_at_the_other_broker_and_each_runs_once(
    workload: TwoBrokers, tmp_path: Path
) -> None:
    workload.kills = True
    await workload.start("good", "slow", "deaf")
    slow, deaf = workload.ces["slow"], workload.ces["deaf"]
    slow.runs = False
    first = await workload.at(FIRST)
    (tmp_path / "in.txt").write_text("what the job reads")
    sandbox = 'InputSandbox = {"in.txt"}; ' + TRUE

    done = (await first.submit(TRUE + only_at("good"))).job_id
    cleared = (await first.submit(TRUE + only_at("good"))).job_id
    running = (await first.submit(TRUE + only_at("slow"))).job_id
    scheduled = (await first.submit(TRUE + only_at("slow"))).job_id
    ended_unseen = (await first.submit(TRUE + only_at("slow"))).job_id
    waiting = await first.submit(f'{sandbox} Parameters = 3; Arguments = "_PARAM_"; {only_at("later")}', tmp_path)
    cancelled = (await first.submit(TRUE + only_at("later"))).job_id
    dag = await first.submit(
        f'Type = "DAG"; Nodes = [ a = [{TRUE}{only_at("slow")}]; b = [{TRUE}{only_at("good")}] ]; '
        "Dependencies = {{a, b}};"
    )
    for job_id in (done, cleared):
        await workload.found(first, job_id, "DONE")
    await first.clear([cleared])
    for job_id in (running, scheduled, ended_unseen, dag.children[0]):
        await workload.found(first, job_id, "SCHEDULED")
    owner = str(workload.lab.user("alice").identity)
    slow.update(owner, running, 1, gk.JOB_STATE_RUNNING, worker="w")
    await workload.found(first, running, "RUNNING")
    await first.cancel([cancelled])
    deaf.lose_replies = 1_000  # the CE takes it, and the broker never hears so
    ready = (await first.submit(TRUE + only_at("deaf"))).job_id
    await until(lambda: ready in deaf.jobs, "the CE has the job")

    await workload.kill()
    slow.finish(owner, slow.jobs[ended_unseen])
    second = await workload.at(SECOND, delegated=False)
    assert await second.locate([waiting.job_id]) == []
    taken = await workload.take_over()
    assert taken.submissions == 9
    assert (await workload.take_over()).submissions == 0  # once more does nothing

    deaf.lose_replies = 0
    slow.finish(owner, slow.jobs[scheduled])
    slow.finish(owner, slow.jobs[dag.children[0]])
    slow.update(owner, running, 1, gk.JOB_STATE_DONE, worker="w")
    later = await workload.start_ce("later")
    everything = [done, running, scheduled, ended_unseen, ready, *waiting.children, *dag.children]
    for job_id in everything:
        assert (await workload.found(second, job_id, "DONE")).attempt == 1
    assert workload.runs() == Counter([*everything, cleared])
    assert later.files and set(later.files.values()) == {b"what the job reads"}
    assert {place.state for place in await second.locate([cancelled, cleared])} == {"CANCELLED", "CLEARED"}
    summaries = await workload.ended([*everything, cancelled], timeout_s=60)
    assert Counter(state_name(job.state) for job in summaries) == {"DONE": len(everything), "CANCELLED": 1}

    await workload.start_first()  # with all it had
    first = await workload.at(FIRST)
    assert await first.locate(everything) == []
    fresh = (await first.submit(TRUE + only_at("good"))).job_id
    await workload.ended([fresh], timeout_s=60)
    assert workload.runs() == Counter([*everything, cleared, fresh])
    with pytest.raises(Conflict, match="answers, so it keeps its jobs"):
        await workload.take_over()
    history = await (await workload.bookkeeping()).history(scheduled)
    kinds = [event_name(event.type) for event in history.events]
    assert (kinds.count("MATCHED"), kinds.count("RUNNING"), kinds.count("DONE")) == (1, 1, 1)
    assert [event.fields["text"] for event in history.events if event_name(event.type) == "NOTE"] == [
        "taken over from broker.CERN"
    ]


async def test_a_broker_that_returns_hands_over_what_had_no_copy_and_one_that_lives_is_shut_out_by_force(
    workload: TwoBrokers,
) -> None:
    await workload.start("slow")
    slow = workload.ces["slow"]
    slow.runs = False
    owner = str(workload.lab.user("alice").identity)
    first = await workload.at(FIRST)
    copied = (await first.submit(TRUE)).job_id
    await workload.found(first, copied, "SCHEDULED")
    await workload.lab.stop(SECOND)
    uncopied = (await first.submit(TRUE)).job_id  # the successor is away: one may be, at a time
    await workload.found(first, uncopied, "SCHEDULED")
    agent = workload.lab.agents[FIRST].agent
    await until(lambda: "1 submissions have no copy elsewhere" in agent.health().detail, "it says so")
    await workload.lab.stop(FIRST)

    await workload.start_here(SECOND)
    second = await workload.at(SECOND, delegated=False)
    assert (await workload.take_over()).submissions == 1
    await workload.start_here(FIRST)
    for job_id in (copied, uncopied):
        assert (await workload.found(second, job_id, "SCHEDULED")).attempt == 1
        slow.finish(owner, slow.jobs[job_id])
        await workload.found(second, job_id, "DONE")
    first = await workload.at(FIRST)
    assert await first.locate([copied, uncopied]) == []

    last = (await first.submit(TRUE)).job_id
    await workload.found(first, last, "SCHEDULED")
    with pytest.raises(Conflict, match="answers, so it keeps its jobs") as caught:
        await workload.take_over()
    assert caught.value.reason == "BROKER_ALIVE"
    taken = await asyncio.gather(*(workload.take_over(force=True) for _ in range(2)))
    assert sorted(item.submissions for item in taken) == [0, 1]
    slow.finish(owner, slow.jobs[last])
    await workload.found(second, last, "DONE")

    async def submitted() -> str:
        try:
            return (await first.submit(TRUE, submission_id="one more")).job_id
        except Unavailable:  # it is handing over
            return ""

    during = await until(submitted, "the first broker takes jobs again, or still")
    await until(lambda: during in slow.jobs, "one of the two has sent it")
    assert workload.runs() == Counter([copied, uncopied, last])
    assert len(slow.jobs) == 4


async def test_the_successor_takes_over_by_itself_when_the_lease_has_lapsed_and_counts_what_owners_have(
    workload: TwoBrokers,
) -> None:
    workload.kills = True
    await workload.start("slow", lease_s=600.0, max_jobs_per_owner=3)
    await workload.lab.stop(SECOND)
    workload.options["lease_s"] = 6.0  # so it asks every second
    await workload.start_here(SECOND)
    slow = workload.ces["slow"]
    slow.runs = False
    owner = str(workload.lab.user("alice").identity)
    first = await workload.at(FIRST)
    jobs = [(await first.submit(TRUE)).job_id for _ in range(2)]
    for job_id in jobs:
        await until(lambda job_id=job_id: job_id in slow.jobs, "the CE has the job")
    await workload.copied(2)
    await workload.kill()
    second = await workload.at(SECOND)
    kept = workload.lab.agents["bookkeeping.CERN"].agent.store
    await kept.write(lambda connection: brokers.set_lease(connection, FIRST, 6.0))
    for job_id in jobs:
        assert (await workload.found(second, job_id, "SCHEDULED")).attempt == 1
    (line,) = await until(lambda: workload.lab.audit(SECOND, "broker.taken_over"), "it says so")
    assert (line["broker"], line["by"], line["jobs"]) == (FIRST, "lease", 2)
    with pytest.raises(Exhausted, match="has 2 unfinished jobs here, at most 3"):
        await second.submit(TRUE + 'Parameters = 2; JobType = "Parametric";')
    for job_id in jobs:
        slow.finish(owner, slow.jobs[job_id])
        await workload.found(second, job_id, "DONE")
    workload.options["lease_s"] = 600.0
    await workload.start_first()
    first = await workload.at(FIRST)
    assert await first.locate(jobs) == []
    assert workload.runs() == Counter(jobs)


async def test_copies_that_a_successor_lost_are_sent_again(workload: TwoBrokers, tmp_path: Path) -> None:
    await workload.start("slow")
    slow = workload.ces["slow"]
    slow.runs = False
    (tmp_path / "in.txt").write_text("what the job reads")
    first = await workload.at(FIRST)
    jobs = [
        (await first.submit(f'{TRUE} InputSandbox = {{"in.txt"}}; {only_at(where)}', tmp_path)).job_id
        for where in ("slow", "later")
    ]
    await workload.found(first, jobs[0], "SCHEDULED")
    await workload.lab.stop(SECOND)
    state = workload.lab.directory / "agents" / SECOND
    shutil.rmtree(state)
    state.mkdir(mode=0o700)
    await workload.start_here(SECOND)
    after = (await first.submit(TRUE + only_at("later"))).job_id  # its copy finds that the others are not there
    await workload.copied(3)
    await workload.lab.stop(FIRST)
    second = await workload.at(SECOND, delegated=False)
    assert (await workload.take_over()).submissions == 3
    slow.finish(str(workload.lab.user("alice").identity), slow.jobs[jobs[0]])
    later = await workload.start_ce("later")
    for job_id in (*jobs, after):
        await workload.found(second, job_id, "DONE")
    assert set(later.files.values()) == {b"what the job reads"}
    assert workload.runs() == Counter([*jobs, after])


async def test_proxies_of_adopted_jobs_are_renewed_and_go_to_the_next_successor(workload: TwoBrokers) -> None:
    lab = workload.lab
    lab.plan("myproxy")
    await lab.start("myproxy", options={"scrypt_log2_n": 10, "key_type": "ec-p256"})
    await workload.start("slow", renew_retry_s=0.1, proxy_poll_s=0.05)
    workload.ces["slow"].runs = False
    alice = lab.user("alice")
    first = await workload.at(FIRST)
    await delegate(await lab.channel("broker", name=FIRST, credential=alice), alice, lifetime=timedelta(minutes=3))
    job_id = (await first.submit(TRUE + 'MyProxyServer = "localhost";')).job_id
    await workload.found(first, job_id, "SCHEDULED")
    await lab.stop(FIRST)
    assert (await workload.take_over()).submissions == 1
    port, owner = lab.port("myproxy.CERN", "myproxy"), str(alice.identity)
    await MyProxyClient("localhost", port, lab._trust, lab.grid.policy, lab.clock, alice).put(owner)

    def lasts(name: str) -> bool:
        held = {key: proxy for subject, key, proxy in lab.agents[name].context.delegations.all() if subject == owner}
        return "copied" in held and held["copied"].not_after > lab.clock.now() + timedelta(hours=11)

    await until(lambda: lasts(SECOND), "the proxy that came with the copies is renewed")
    at_ce = lab.agents["slow"].context.delegations
    await until(lambda: at_ce.get(owner).not_after > lab.clock.now() + timedelta(hours=11), "the CE has it")
    await workload.start_here(FIRST)
    await until(lambda: lasts(FIRST), "who would be next has the renewed one too")
    assert lasts(SECOND)  # what the first one had is older, and is not put in its place


async def test_who_may_not_take_over_and_what_is_no_copy(workload: TwoBrokers) -> None:
    await workload.start()
    stub = broker_pb2_grpc.BrokerStub
    alice = await workload.lab.channel("broker", name=SECOND, credential=workload.lab.user("alice"))
    with pytest.raises(Refused):
        await stub(alice).TakeOver(pb.TakeOverRequest(broker=FIRST, force=True))
    with pytest.raises(Refused):
        await stub(alice).Keep(iter([pb.KeepRequest(epoch=1)]))
    await workload.at(SECOND)
    for by, of in ((SECOND, SECOND), (SECOND, "broker9.CERN")):
        with pytest.raises(NotFound, match="knows no other broker"):
            await workload.take_over(by=by, of=of)
    played = await workload.lab.channel("broker", name=SECOND, credential=workload.lab.service("broker", FIRST))
    for data, told in ((b"no copy", "cannot be read"), (zlib.compress(b"{}"), "cannot be read"), (b"", "")):
        call = stub(played).Keep(iter([pb.KeepRequest(epoch=1, data=data, last=bool(data))]))
        if told:
            with pytest.raises(InvalidRequest, match=told):
                await call
        else:
            assert (await call).over == 0
    with pytest.raises(InvalidRequest, match="in the middle of a submission"):
        await stub(played).Keep(iter([pb.KeepRequest(epoch=1, data=b"x")]))
