"""Broker, bookkeeping and information in one lab, with gatekeepers that play what real ones do on good and bad days."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as gk
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc as gk_grpc
from support.grid import LabGrid
from support.waiting import until

from agents.bookkeeping.client import ENDED_STATES, BookkeepingClient, event_name
from agents.broker.client import BrokerClient
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.errors import Unavailable
from fabric.glue13 import ce_entries, cluster_entries
from fabric.glue_model import PRODUCTION, ComputingElement, SubCluster
from fabric.information_publisher import InformationPublisher
from fabric.rpc.delegation import delegate
from fabric.rpc.peer import current_peer
from fabric.rpc.rules import full_user
from fabric.rpc.server import RpcService

TRUE = 'Executable = "/bin/true"; '
OPTIONS = {"proxy_poll_s": 0.1, "take_back_after_s": 0.3, "backoff_most_s": 0.3, "repeat_cancel_s": 0.3}


def only_at(ce: str) -> str:
    """Requirements that one CE fulfils."""
    return f'Requirements = RegExp("{ce}", other.GlueCEUniqueID);'


class PlayedCe:
    """A gatekeeper's durable side and what it is told to do; outlives restarts of the agent in front."""

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.jobs: dict[str, gk.Job] = {}
        self.states: dict[str, int] = {}
        self.updates: list[tuple[str, gk.JobUpdate]] = []
        self.news = asyncio.Event()
        self.files: dict[str, bytes] = {}
        self.submits = 0
        self.purged: list[str] = []
        self.status = PRODUCTION
        self.runs = True
        """Jobs run to DONE at once; else they stay queued."""
        self.on_submit: Callable[[int, gk.SubmitRequest], Any] | None = None
        """Called with the number of the call; may raise before or return outcomes."""
        self.cancels: list[str] = []
        self.cancels_at_once = True
        """Else it takes cancellations and says no more of them."""
        self.lose_replies = 0
        self.fails: Callable[[gk.Job], gk.JobUpdate | None] = lambda job: None

    on_update: Callable[[gk.JobUpdate], None] = staticmethod(lambda update: None)

    def update(self, owner: str, job_id: str, attempt: int, state: int, **fields: Any) -> None:
        self.states[job_id] = state
        update = gk.JobUpdate(
            sequence=len(self.updates) + 1,
            job_id=job_id,
            attempt=attempt,
            state=state,
            at_us=time.time_ns() // 1000,
            **fields,
        )
        self.updates.append((owner, update))
        self.on_update(update)
        self.news.set()

    def run(self, owner: str, job: gk.Job) -> None:
        failure = self.fails(job)
        self.update(owner, job.job_id, job.attempt, gk.JOB_STATE_QUEUED)
        if failure is not None:
            failed = gk.JobUpdate(reason=failure.reason, sentence=failure.sentence, started=failure.started)
            if failed.started:
                self.update(owner, job.job_id, job.attempt, gk.JOB_STATE_RUNNING, worker="w")
            self.update(
                owner, job.job_id, job.attempt, gk.JOB_STATE_FAILED, reason=failed.reason, sentence=failed.sentence,
                started=failed.started,
            )  # fmt: skip
            return
        if self.runs:
            self.finish(owner, job)

    def finish(self, owner: str, job: gk.Job) -> None:
        self.update(owner, job.job_id, job.attempt, gk.JOB_STATE_RUNNING, worker="w")
        self.update(owner, job.job_id, job.attempt, gk.JOB_STATE_DONE, worker="w")


class PlayedGatekeeper(Agent, gk_grpc.GatekeeperServicer):
    def __init__(self, context: Any, ce: PlayedCe) -> None:
        super().__init__(context)
        self.ce = ce
        rules = dict.fromkeys(gk.DESCRIPTOR.services_by_name["Gatekeeper"].methods_by_name, full_user)
        self.services = [RpcService(self, gk_grpc.add_GatekeeperServicer_to_server, rules)]
        context.delegations  # noqa: B018

    async def start(self) -> None:
        self.unrecorded: list[gk.JobUpdate] = []
        self.ce.on_update = self.unrecorded.append
        self.context.spawn(self.record(), "record")
        await InformationPublisher(self.context, self.entries, poll_s=0.05).start()

    async def record(self) -> None:
        """TRANSFERRED, RUNNING and DONE are the gatekeeper's to log."""
        types = {gk.JOB_STATE_QUEUED: 4, gk.JOB_STATE_RUNNING: 5, gk.JOB_STATE_DONE: 6}
        channel = await self.context.channels.get("localhost", self.context.settings.endpoint("bookkeeping").rpc)
        sequence = time.time_ns() // 1000
        while True:
            await asyncio.sleep(0.01)
            updates, self.unrecorded[:] = list(self.unrecorded), []
            events = []
            for update in updates:
                if update.state in types:
                    sequence += 1
                    name, fields = (
                        self.context.settings.name,
                        {"ce": self.ce_id, "exit_code": "0", "worker": update.worker},
                    )
                    events.append(
                        lb.Event(
                            job_id=update.job_id, source=name, sequence=sequence, at_us=update.at_us,
                            type=types[update.state], attempt=update.attempt, fields=fields,
                        )
                    )  # fmt: skip
            for start in range(0, len(events), 1000):
                try:
                    await BookkeepingClient(channel).record(events[start : start + 1000])
                except Unavailable:  # told again, under other numbers, and known by its attempt
                    self.unrecorded[:0] = updates
                    break

    @property
    def ce_id(self) -> str:
        return f"localhost:{self.context.settings.rpc_port}/jobmanager-{self.context.settings.name}"

    def entries(self) -> list[Any]:
        settings, ce = self.context.settings, self.ce
        running = sum(state == gk.JOB_STATE_RUNNING for state in ce.states.values())
        element = ComputingElement(
            self.ce_id, settings.name, "localhost", settings.rpc_port,
            total_cpus=ce.slots, status=ce.status, free_slots=ce.slots - running, running_jobs=running,
            estimated_response_s=0, vos=("cms",), max_wall_minutes=60,
        )  # fmt: skip
        return ce_entries(element) + cluster_entries(
            SubCluster(settings.name, settings.site, (element.unique_id,), ram_mb=2048)
        )

    def health(self) -> AgentHealth:
        return AgentHealth(AgentState.GREEN)

    async def MissingSandbox(self, request: gk.MissingSandboxRequest, context: Any) -> gk.MissingSandboxResponse:
        return gk.MissingSandboxResponse(sha256=[sha for sha in request.sha256 if sha not in self.ce.files])

    async def PutSandbox(self, requests: AsyncIterator[gk.PutSandboxRequest], context: Any) -> gk.PutSandboxResponse:
        sha, data = "", b""
        async for message in requests:
            sha, data = sha or message.sha256, data + message.data
        self.ce.files[sha] = data
        return gk.PutSandboxResponse()

    async def Submit(self, request: gk.SubmitRequest, context: Any) -> gk.SubmitResponse:
        ce, owner = self.ce, current_peer().subject
        self.context.delegations.get(owner)
        ce.submits += 1
        if ce.on_submit is not None:
            answer = ce.on_submit(ce.submits, request)
            if answer is not None:
                return answer
        for job in request.jobs:
            known = ce.jobs.get(job.job_id)
            if known is None or known.attempt < job.attempt:
                ce.jobs[job.job_id] = job
                ce.run(owner, job)
        if ce.lose_replies > 0:
            ce.lose_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return gk.SubmitResponse(outcomes=[gk.SubmitOutcome(job_id=job.job_id, accepted=True) for job in request.jobs])

    async def Cancel(self, request: gk.CancelRequest, context: Any) -> gk.CancelResponse:
        self.ce.cancels.extend(request.job_ids)
        for job_id in request.job_ids:
            if job_id in self.ce.jobs and self.ce.cancels_at_once:
                attempt = self.ce.jobs[job_id].attempt
                self.ce.update(current_peer().subject, job_id, attempt, gk.JOB_STATE_CANCELLED)
        return gk.CancelResponse(unknown=[job_id for job_id in request.job_ids if job_id not in self.ce.jobs])

    async def Watch(self, request: gk.WatchRequest, context: Any) -> AsyncIterator[gk.WatchResponse]:
        after, owner = request.after_sequence, current_peer().subject
        while True:
            self.ce.news.clear()
            updates = [update for who, update in self.ce.updates[after:] if who == owner]
            after = len(self.ce.updates)
            if updates:
                yield gk.WatchResponse(updates=updates)
            await self.ce.news.wait()

    async def Status(self, request: gk.StatusRequest, context: Any) -> gk.StatusResponse:
        newest = {update.job_id: update for _, update in self.ce.updates}
        return gk.StatusResponse(jobs=[newest[job_id] for job_id in request.job_ids if job_id in newest])

    async def Purge(self, request: gk.PurgeRequest, context: Any) -> gk.PurgeResponse:
        self.ce.purged.extend(request.job_ids)
        return gk.PurgeResponse()


class Workload:
    """A lab with everything that jobs need."""

    def __init__(self, lab: LabGrid) -> None:
        self.lab = lab
        self.ces: dict[str, PlayedCe] = {}
        self.options: dict[str, Any] = dict(OPTIONS)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *names: str, **options: Any) -> None:
        self.options.update(options)
        for member in ("alice", "bob"):
            self.lab.user(member)
        for kind in ("information", "bookkeeping", "broker"):
            self.lab.plan(kind)
        await self.lab.start("information", options={"heartbeat_s": 0.2})
        await self.lab.start("bookkeeping")
        for name in names:
            await self.start_ce(name)
        await self.start_broker()

    async def start_broker(self) -> None:
        await self.lab.start("broker", options=self.options)

    async def start_process(self, name: str = "broker.CERN") -> None:
        """A broker in a process of its own, to be killed."""
        path = self.lab.directory / "broker.json"
        path.write_text(json.dumps(self.lab.settings(name, options=self.options)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fabric.agent", str(path), stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        assert await self.process.stdout.readline()

    async def kill(self) -> None:
        """The broker's process dies at once, if there is one."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async def start_ce(self, name: str, slots: int = 4, **fabric: Any) -> PlayedCe:
        ce = self.ces.setdefault(name, PlayedCe(slots))
        await self.lab.start(
            "gatekeeper", name=name, builder=lambda context: PlayedGatekeeper(context, ce), fabric=fabric
        )
        return ce

    async def broker(self, name: str = "alice", *, delegated: bool = True, **user: Any) -> BrokerClient:
        proxy = self.lab.user(name, **user)
        channel = await self.lab.channel("broker", credential=proxy)
        if delegated:
            await delegate(channel, proxy)
        return BrokerClient(channel)

    async def bookkeeping(self, name: str = "alice") -> BookkeepingClient:
        return BookkeepingClient(await self.lab.channel("bookkeeping", credential=self.lab.user(name)))

    async def ended(self, job_ids: list[str], count: int = 0, timeout_s: float = 20.0) -> list[Any]:
        """Wait until all jobs have ended; their summaries."""
        client = await self.bookkeeping()
        states: dict[str, Any] = {}
        async with asyncio.timeout(timeout_s):
            async for changed in client.watch(job_ids):
                states.update({job.job_id: job for job in changed})
                if len(states) >= (count or len(job_ids)) and all(job.state in ENDED_STATES for job in states.values()):
                    return list(states.values())
        raise AssertionError("the watch ended")

    async def history(self, job_id: str, *kinds: str) -> Any:
        """A job's history as soon as it has events of these kinds, as often as they are named: broker and gatekeepers
        tell theirs in their own time."""
        client = await self.bookkeeping()

        async def found() -> Any:
            history = await client.history(job_id)
            return history if Counter(kinds) <= Counter(event_name(e.type) for e in history.events) else None

        return await until(found, f"{kinds} of {job_id}")

    def runs(self) -> Counter[str]:
        """By job: how often its process was started."""
        updates = [update for ce in self.ces.values() for _, update in ce.updates]
        return Counter(update.job_id for update in updates if update.state == gk.JOB_STATE_RUNNING)

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        await until(condition, deadline_s=timeout_s)

    async def located(self, client: BrokerClient, job_id: str, *states: str, timeout_s: float = 10.0) -> Any:
        async with asyncio.timeout(timeout_s):
            while True:
                (found,) = await client.locate([job_id])
                if found.state in states:
                    return found
                await asyncio.sleep(0.02)
