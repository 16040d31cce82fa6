"""A site whose agents are processes of their own and die again and again while users go on submitting, and everything
that happened to their jobs, recorded for the model (support/history.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from support.grid import LabGrid
from support.history import WITNESS, Recorded
from support.nursery import Child, Nursery
from support.waiting import until

from agents.bookkeeping.client import ENDED_STATES, BookkeepingClient
from agents.broker.client import BrokerClient
from agents.gatekeeper import client as gatekeeper_client
from fabric.errors import DeadlineExceeded, GridError, Unavailable
from fabric.rpc.delegation import delegate

T = TypeVar("T")

OPTIONS: dict[str, dict[str, Any]] = {
    "information": {"heartbeat_s": 0.5},
    "bookkeeping": {},
    "broker": {"backoff_most_s": 0.3, "take_back_after_s": 2.0, "blame_half_life_s": 1.0},
    "gatekeeper": {"heartbeat_s": 0.5, "lease_linger_s": 0.2},
    "worker": {"slots": 6, "term_grace_s": 0.2, "reconnect_max_s": 0.2},
}
PRINTED_BYTES = 70_000
"""More than fits into a worker's report, so that the output is sent by itself."""
JOBS = 3
"""In one submission."""
JDL = """JobType = "Parametric"; Parameters = {jobs}; ParameterStart = 0; ParameterStep = 1;
Executable = "witness.sh"; Arguments = "{folder} {seconds} {printed}"; InputSandbox = {{"witness.sh"}};
StdOutput = "out"; OutputSandbox = {{"out"}}; RetryCount = 20; ShallowRetryCount = 20;"""


async def patiently(call: Callable[[], Awaitable[T]], deadline_s: float = 180.0) -> T:
    """As a user does while services are started again."""
    said = ""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    return await call()
                except GridError as error:
                    if not isinstance(error, (Unavailable, DeadlineExceeded)) and not error.reason.startswith(
                        "SESSION_"
                    ):
                        raise
                    said = error.sentence
                await asyncio.sleep(0.2)  # services look no more often themselves
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s:g} s: {said}") from None


class Ordeal:
    """`async with`: information is up. `begin` what else shall run."""

    def __init__(self, lab: LabGrid, *, faults: str = "") -> None:
        """`faults`: the seed of a bad network between the agents (support/faults.py)."""
        self.lab, self.nursery, self.faults = lab, Nursery(), faults
        self.recorded = Recorded()
        self.children: dict[str, Child] = {}
        self.deaths: list[str] = []
        """Failpoints that an agent has died at."""
        self._stack = contextlib.AsyncExitStack()
        self._since_us = time.time_ns() // 1000
        self._started = 0
        self.rounds = 0
        """Submissions of which all jobs have ended, been fetched and cleared."""

    async def __aenter__(self) -> Ordeal:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="witness-", dir="/tmp"))
        self.folder = Path(folder)  # pytest's own cannot be walked by pool accounts
        self.folder.chmod(0o777)
        self.alice = self.lab.user("alice")
        for kind in OPTIONS:
            self.lab.plan(kind)
        await self._stack.enter_async_context(self.nursery)
        self._stack.push_async_callback(self._end)
        self.begin("information")
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        for child in reversed(self.children.values()):
            await child.kill(signal.SIGTERM)

    def state_dir(self, kind: str) -> Path:
        return self.lab.directory / "agents" / f"{kind}.CERN"

    def begin(self, kind: str, failpoint: str = "") -> Child:
        """Start an agent, to die at a failpoint or at none."""
        settings = self.lab.settings(f"{kind}.CERN", options=OPTIONS[kind])
        self._started += 1
        child = self.children[kind] = self.nursery.start(
            settings, failpoint=failpoint, faults=self.faults and f"{self.faults} {kind} {self._started}"
        )
        return child

    # -- deaths ------------------------------------------------------------------------------------------------------

    async def die_at_each(self, kind: str, points: Sequence[str]) -> None:
        """An agent is started to die at each of these in turn, and at last to live."""
        for point in points:
            if point.startswith("starter."):
                await self._starter_dies(point)
            else:
                status = await self.begin(kind, point).ended(420)
                assert status == -signal.SIGKILL, f"{kind} with {point} ended with {status}"
            self.deaths.append(point)
        await self.begin(kind).ready()

    async def _starter_dies(self, point: str) -> None:
        """The worker starts a starter that dies there, and then one that lives, until jobs have ended: their tries are
        counted."""
        await self.kill_starter()
        log = self.state_dir("worker") / "log.jsonl"
        before = spawned(log)
        child = self.begin("worker", point)
        await until(lambda: spawned(log) >= before + 2, f"the starter died at {point}", deadline_s=420)
        rounds = self.rounds
        await until(lambda: self.rounds >= rounds + 3, f"jobs end after {point}", deadline_s=420)
        await child.kill()

    async def kill_starter(self) -> None:
        """There is one after the worker's first start."""
        path = self.state_dir("worker") / "starter.pid"
        if path.exists():
            pid = int(await until(path.read_text, "the starter has written its number"))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), "the starter is dead")

    # -- users -------------------------------------------------------------------------------------------------------

    async def submit_until(self, enough: asyncio.Event, name: str, *, seconds: float = 0.1) -> None:
        """A user who submits jobs, waits for them, fetches the output, and begins again; at least once."""
        await patiently(self._delegate)
        number = 0
        while number == 0 or not enough.is_set():
            number += 1
            await self._one_round(f"{name}-{number}", seconds)

    async def submit_while(self, names: Sequence[str], is_enough: Callable[[], bool], deadline_s: float) -> None:
        """As `submit_until`, for several users."""
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as users:
            for name in names:
                users.create_task(self.submit_until(enough, name))
            await until(is_enough, "as much happened as was wanted", deadline_s=deadline_s)
            enough.set()

    async def _delegate(self) -> None:
        await delegate(await self.lab.channel("broker", credential=self.alice), self.alice)

    async def _one_round(self, name: str, seconds: float) -> None:
        folder = self.lab.directory / name
        folder.mkdir()
        (folder / "witness.sh").write_text(f"{WITNESS}# {name}\n")  # a file that nobody has yet
        jdl = JDL.format(jobs=JOBS, folder=self.folder, seconds=seconds, printed=PRINTED_BYTES)

        async def submit() -> Any:
            broker = BrokerClient(await self.lab.channel("broker", credential=self.alice))
            return await broker.submit(jdl, folder, submission_id=name)

        answer = await patiently(submit)
        again = await patiently(submit)  # the answer may have been lost: the same jobs, not others
        assert list(again.children) == list(answer.children)
        self.recorded.told(answer.job_id, answer.children)
        ids = list(answer.children)
        await patiently(lambda: self._have_ended(ids), 420)
        for job_id in ids:
            await patiently(lambda job_id=job_id: self._output(job_id))
        await patiently(lambda: self._clear(answer.job_id))
        self.rounds += 1

    async def _bookkeeping(self) -> BookkeepingClient:
        return BookkeepingClient(await self.lab.channel("bookkeeping", credential=self.alice))

    async def _have_ended(self, ids: Sequence[str]) -> None:
        jobs = await (await self._bookkeeping()).query(job_ids=ids)
        going_on = [job.job_id for job in jobs if job.state not in ENDED_STATES]
        if len(jobs) < len(ids) or going_on:
            raise Unavailable("NOT_YET", f"{len(jobs)} of {len(ids)} jobs are known, and not ended: {going_on}")

    async def _output(self, job_id: str) -> None:
        broker = BrokerClient(await self.lab.channel("broker", credential=self.alice))
        (place,) = await broker.locate([job_id])
        if place.state != "DONE":
            raise Unavailable("NOT_YET", f"the broker has {job_id} as {place.state}: bookkeeping knew before it")
        host, _, port = place.gatekeeper.rpartition(":")
        channel = await self.lab.channels.get(host, int(port), self.alice)
        files = await gatekeeper_client.output_files(channel, job_id)
        assert {name: len(data) for name, data in files.items()} == {"out": PRINTED_BYTES}

    async def _clear(self, job_id: str) -> None:
        await BrokerClient(await self.lab.channel("broker", credential=self.alice)).clear([job_id])

    # -- judgement ---------------------------------------------------------------------------------------------------

    async def judge(self) -> None:
        """With everybody alive, all that was recorded agrees, at the latest after a minute."""

        async def agree() -> None:
            self.recorded.read_witnesses(self.folder)
            until_us = time.time_ns() // 1000 + 1_000_000
            await self.recorded.ask(await self._bookkeeping(), self._since_us, until_us)
            if found := self.recorded.problems():
                raise Unavailable("NOT_YET", "\n".join(found[:20]))

        await patiently(agree)

    async def nothing_is_left(self) -> None:
        """All was fetched and cleared: no record and no directory of a job."""
        worker = self.state_dir("worker")

        def left() -> list[str]:
            found = [path.name for folder in ("jobs", "scratch") for path in (worker / folder).iterdir()]
            return [name for name in found if name not in (".spares", "certificates")]

        await until(lambda: not left(), lambda: f"nothing is left: {left()[:9]}")


def spawned(log: Path) -> int:
    """How many starters a worker has started."""
    return log.read_text().count('"starter.spawned"') if log.exists() else 0


def is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
