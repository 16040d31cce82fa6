"""A Slurm that is slow, silent, restarted or lying: every payload runs once, and its end is told. The Slurm is real;
only the command that misbehaves is a script of the test, which calls the real one."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import slurm as private_slurm
from support.waiting import until

from agents.worker import slurm
from agents.worker.config import WorkerOptions
from agents.worker.slurm import SlurmClient
from fabric.logs import null_logger

pytestmark = pytest.mark.timeout(300)
REAL = 'real() { PATH=/usr/bin:/bin sbatch "$@"; }\n'


@pytest.fixture(scope="module")
def cluster() -> Iterator[private_slurm.Slurm]:
    yield from private_slurm.started()


class Desk:
    """A client with its records, and commands of Slurm that misbehave."""

    def __init__(self, folder: Path, cluster: private_slurm.Slurm) -> None:
        self.folder, self.cluster = folder, cluster
        self.commands, self.log = folder / "bin", folder / "log"
        self.log.touch()
        for name in ("bin", "state", "scratch"):
            (folder / name).mkdir()
        self.messages: list[dict[str, Any]] = []
        self.client = self.another()

    def another(self, **options: Any) -> SlurmClient:
        """A client for the same records, as after a restart."""
        wanted = {"batch_poll_s": 0.05, "batch_timeout_s": 20.0, **options}
        made = WorkerOptions(batch="slurm", slurm_conf=str(self.cluster.configuration), **wanted)
        self.client = SlurmClient(self.folder / "state", made, on_message=self.messages.append, log=null_logger())
        return self.client

    def misbehave(self, command: str, script: str) -> None:
        """Put a script in the place of a command."""
        path = self.commands / command
        path.write_text(f"#!/bin/bash\n{REAL}{script}\n")
        path.chmod(0o755)

    def order(self, number: int = 1, script: str = "", **more: Any) -> dict[str, Any]:
        """A payload that notes each of its starts."""
        key = f"{number:032x}"
        cwd = self.folder / "scratch" / key
        cwd.mkdir()
        argv = ["/bin/sh", "-c", f"echo {number} >> {self.log}; {script}"]
        return {
            "key": key, "cwd": str(cwd), "executable": "/bin/sh", "argv": argv, "env": {"PATH": "/usr/bin:/bin"},
            "uid": -1, "gid": -1, "wall_s": 600, "grace_s": 0.2, **more,
        }  # fmt: skip

    async def told(self, event: str, count: int = 1, seconds: float = 90) -> list[Any]:
        """The jobs or keys of messages of this kind, when there are so many."""
        await until(lambda: len(self._all(event)) >= count, f"{count} times {event}", deadline_s=seconds)
        found = self._all(event)
        assert len(found) == count, found
        return found

    def _all(self, event: str) -> list[Any]:
        return [item for m in self.messages if m["event"] == event for item in m.get("jobs") or m.get("keys") or []]

    def runs(self) -> list[int]:
        """Which payloads started, once for each start."""
        return sorted(int(line) for line in self.log.read_text().split())


@pytest.fixture
async def desk(cluster: private_slurm.Slurm, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    with tempfile.TemporaryDirectory() as name:
        made = Desk(Path(name), cluster)
        monkeypatch.setattr(slurm, "PATH", f"{made.commands}:{slurm.PATH}")
        made.another()
        yield made
        made.client.close()


async def test_a_submission_without_an_answer_runs_once(desk: Desk) -> None:
    desk.misbehave("sbatch", 'real "$@"; sleep 600')
    client = desk.another(batch_timeout_s=2.0)
    assert not (await client.connect()).waiting
    client.submit([desk.order(script="exit 5")])
    (record,) = await desk.told("ended")
    assert record["exit_code"] == 5
    assert desk.runs() == [1]


async def test_a_refusal_that_was_none_runs_once(desk: Desk) -> None:
    desk.misbehave("sbatch", 'real "$@"; echo "sbatch: error: lost my mind" >&2; exit 1')
    client = desk.another(batch_poll_s=0.5)
    await client.connect()
    client.submit([desk.order(script="sleep 1")])
    await desk.told("ended")
    assert desk.runs() == [1]
    assert "lost my mind" in client.problem


async def test_an_acceptance_that_was_none_is_made_again(desk: Desk) -> None:
    desk.misbehave("sbatch", f'mkdir {desk.folder}/first 2>/dev/null && {{ cat; echo 4711; exit 0; }}; real "$@"')
    await desk.client.connect()
    desk.client.submit([desk.order()])
    (record,) = await desk.told("ended")
    assert (record["exit_code"], desk.runs()) == (0, [1])


async def test_an_order_that_is_always_refused_is_given_back_and_never_starts(desk: Desk) -> None:
    desk.misbehave("sbatch", 'echo "sbatch: error: invalid partition specified: gone" >&2; exit 1')
    await desk.client.connect()
    order = desk.order()
    desk.client.submit([order])
    await until(lambda: desk.client.problem == "Slurm refuses jobs: invalid partition specified: gone")
    assert await desk.told("refused") == [[order["key"], "BATCH_REFUSED"]]
    assert not desk.client.was_started(order["key"])
    desk.client.forget([order["key"]])
    assert not (desk.folder / "state" / "jobs" / order["key"]).exists()


async def test_a_crash_between_submission_and_record_neither_loses_nor_doubles(desk: Desk) -> None:
    accepted = desk.folder / "accepted"
    desk.misbehave("sbatch", f'real "$@"; touch {accepted}; sleep 600')
    await desk.client.connect()
    order = desk.order(script="sleep 1; exit 4")
    desk.client.submit([order])
    await until(accepted.exists)
    desk.client.close()  # what the process knew is gone
    (desk.commands / "sbatch").unlink()
    listing = await desk.another().connect()
    assert order["key"] in listing.waiting | listing.running.keys()
    (record,) = await desk.told("ended")
    assert (record["exit_code"], desk.runs()) == (4, [1])


async def test_a_crash_before_the_submission_does_not_lose_the_job(desk: Desk) -> None:
    desk.misbehave("sbatch", "sleep 600")
    await desk.client.connect()
    order = desk.order()
    desk.client.submit([order])
    await until(lambda: (desk.folder / "state" / "jobs" / order["key"] / "order.json").exists())
    desk.client.close()
    (desk.commands / "sbatch").unlink()
    assert (await desk.another().connect()).waiting == {order["key"]}
    await desk.told("ended")
    assert desk.runs() == [1]


async def test_a_queue_that_says_nothing_is_there_loses_no_running_job(desk: Desk) -> None:
    desk.misbehave("squeue", "exit 0")
    await desk.client.connect()
    gate = desk.folder / "gate"
    desk.client.submit([desk.order(script=f"while ! [ -e {gate} ]; do sleep 0.1; done; exit 6")])
    await desk.told("started")
    seen = desk.client._polls
    await until(lambda: desk.client._polls > seen + 30)
    gate.touch()
    (record,) = await desk.told("ended")
    assert (record["exit_code"], desk.runs()) == (6, [1])
    assert not desk._all("lost")


async def test_a_queue_that_does_not_answer_is_a_problem_and_the_end_is_still_told(desk: Desk) -> None:
    desk.misbehave("squeue", "exit 1")
    await desk.client.connect()
    gate = desk.folder / "gate"
    desk.client.submit([desk.order(script=f"while ! [ -e {gate} ]; do sleep 0.1; done")])
    await until(lambda: desk.client.problem == "Slurm does not answer")
    gate.touch()
    await desk.told("ended")
    (desk.commands / "squeue").unlink()
    desk.client.submit([desk.order(2)])
    await until(lambda: not desk.client.problem)
    await desk.told("ended", 2)


async def test_a_withdrawn_job_never_starts_even_when_slurm_keeps_it(desk: Desk) -> None:
    desk.misbehave("scancel", "exit 0")
    await desk.client.connect()
    order = desk.order()
    desk.misbehave("sbatch", 'real --hold "$@"')
    desk.client.submit([order])
    await until(lambda: order["key"] in desk.cluster.output("squeue", "-h", "-o", "%j"))
    desk.client.withdraw([order["key"]])
    assert await desk.told("gone") == [order["key"]]
    desk.cluster.output("scontrol", "release", f"jobname={desk.client._prefix}{order['key']}")
    await until(lambda: order["key"] not in desk.cluster.output("squeue", "-h", "-o", "%j"))
    assert desk.runs() == []


async def test_a_controller_that_forgets_what_it_accepted(desk: Desk) -> None:
    await desk.client.connect()
    desk.client.submit([desk.order(number, "sleep 0.3") for number in range(1, 9)])
    await until(lambda: len(desk.cluster.output("squeue", "-h", "-o", "%j").split()) >= 6)
    desk.cluster.kill("slurmctld")
    desk.cluster.start_controller()
    records = await desk.told("ended", 8, seconds=200)
    assert {record["exit_code"] for record in records} == {0}
    assert desk.runs() == list(range(1, 9))


async def test_a_job_whose_shepherd_was_killed_is_lost_and_its_payload_dead(desk: Desk) -> None:
    client = desk.another(shepherd_silent_s=6.0)
    await client.connect()
    order = desk.order(script="exec sleep 600")
    client.submit([order])
    ((_, payload, _),) = await desk.told("started")
    claimed = (desk.folder / "state" / "jobs" / order["key"] / "claim").read_text()
    os.kill(int(claimed.split()[1]), signal.SIGKILL)
    ((key, text),) = await desk.told("lost")
    assert key == order["key"]
    assert "6 s" in text
    with contextlib.suppress(ProcessLookupError):
        os.kill(payload, 0)
        pytest.fail("the payload lives on")
