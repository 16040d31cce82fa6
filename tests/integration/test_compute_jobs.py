"""Gatekeeper and worker together: real TLS, real sessions, real processes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc
from support.grid import LabGrid
from support.site import FAST, Site, job
from support.waiting import until

from agents.gatekeeper import client
from fabric.errors import GridError


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with LabGrid(tmp_path) as lab:
        yield Site(lab)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every account may use: pytest's own is closed to pool accounts."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


async def test_a_job_runs_and_its_output_comes_back(site: Site) -> None:
    await site.start()
    one = job("-c", 'echo hello $USER; id -u; pwd; echo "$X509_USER_PROXY" >&2; exit 3')
    update = await site.run(one)
    assert (update.state, update.exit_code, update.reason) == (pb.JOB_STATE_DONE, 3, "")
    assert update.worker == "worker.CERN"
    files = await client.output_files(site.channel, one.job_id)
    lines = files["out"].decode().split("\n")
    assert lines[0] == "hello cms001"
    assert lines[1] == ("61001" if os.geteuid() == 0 else str(os.geteuid()))
    assert files["err"].decode().strip() == f"{lines[2]}/.x509_proxy"
    await client.purge(site.channel, [one.job_id])
    assert await client.status(site.channel, [one.job_id]) == []


async def test_input_sandbox_standard_input_and_large_output(site: Site) -> None:
    await site.start()
    script = b"#!/bin/sh\ncat\ncat data.txt\nhead -c 300000 /dev/zero > big.bin\ncp ../*/.x509_proxy /dev/null\n"
    contents = [script, b"from stdin\n", b"from file\n"]
    hashes = await client.put_sandbox(site.channel, contents)
    names = ["run.sh", "input", "data.txt"]
    one = job(
        executable="run.sh",
        std_input="input",
        output_sandbox=["out", "big.bin", "never-written"],
        input_sandbox=[
            pb.SandboxFile(name=name, sha256=sha256, size_bytes=len(data))
            for name, sha256, data in zip(names, hashes, contents, strict=True)
        ],
    )
    update = await site.run(one)
    assert update.state == pb.JOB_STATE_DONE, update
    assert "never-written" in update.sentence
    files = await client.output_files(site.channel, one.job_id)
    assert files["out"] == b"from stdin\nfrom file\n"
    assert files["big.bin"] == bytes(300_000)
    folder = site.lab.directory / "got"
    folder.mkdir()
    assert {path.name for path in await client.get_output(site.channel, one.job_id, folder)} == {"out", "big.bin"}
    assert (folder / "big.bin").stat().st_size == 300_000


async def test_cancel_kills_the_whole_session(site: Site) -> None:
    await site.start({"term_grace_s": 0.2})
    marker = f"{900 + os.getpid() % 90}.5"
    one = job("-c", f"trap '' TERM; (setsid env -i /bin/sleep {marker} &) ; sleep {marker} & sleep {marker}")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING)
    await until(lambda: count_processes(f"sleep {marker}") == 3)
    assert await client.cancel(site.channel, [one.job_id, "https://nobody:1/x"]) == ["https://nobody:1/x"]
    update = (await site.ended(one))[0]
    assert (update.state, update.reason) == (pb.JOB_STATE_CANCELLED, "CANCELLED")
    await until(lambda: count_processes(f"sleep {marker}") == 0)
    await client.cancel(site.channel, [one.job_id])  # again: nothing happens
    assert (await client.status(site.channel, [one.job_id]))[0].state == pb.JOB_STATE_CANCELLED


async def test_limits_stop_a_job_with_a_typed_reason(site: Site) -> None:
    await site.start({"term_grace_s": 0.2})
    slow = job("-c", "echo begun; sleep 60", limits=pb.Limits(wall_s=1))
    spinning = job("-c", "while :; do :; done", limits=pb.Limits(cpu_s=1))
    filling = job("-c", "head -c 5000000 /dev/zero > a; sleep 60", limits=pb.Limits(disk_bytes=1_000_000))
    unaware = job("-c", "head -c 5000000 /dev/zero > a; exit 0", limits=pb.Limits(disk_bytes=1_000_000))
    await site.submit(slow, spinning, filling, unaware)
    ends = await site.ended(slow, spinning, filling, unaware)
    assert [end.state for end in ends] == [pb.JOB_STATE_DONE] * 4
    assert [end.reason for end in ends[:2]] == ["WALL_TIME", "CPU_TIME"]
    assert ends[2].reason in ("FILE_SIZE", "DISK") or ends[2].exit_code != 0
    assert (ends[3].reason, ends[3].exit_code) == ("FILE_SIZE", 0)
    assert "its file 'a' has reached the limit of 1000000 bytes" in ends[3].sentence
    assert (await client.output_files(site.channel, slow.job_id))["out"] == b"begun\n"


async def test_an_executable_that_is_not_there_fails_typed(site: Site) -> None:
    await site.start()
    update = await site.run(job(executable="/no/such/program"))
    assert (update.state, update.reason, update.started) == (pb.JOB_STATE_FAILED, "EXEC_FAILED", False)
    assert "No such file" in update.sentence


async def test_refusals(site: Site) -> None:
    await site.start(gatekeeper={"max_sandbox_file_bytes": 1000, "max_queued": 3})
    limited = await site.lab.channel("gatekeeper", credential=site.lab.user("alice", limited=True))
    assert await reason_of(client.submit(limited, [job()])) == "LIMITED_PROXY"
    stranger = await site.lab.channel("gatekeeper", credential=site.lab.user("mallory", vo=None))
    assert await reason_of(client.submit(stranger, [job()])) == "NOT_MAPPED"
    bob = await site.lab.channel("gatekeeper", credential=site.lab.user("bob"))
    assert await reason_of(client.submit(bob, [job()])) == "DELEGATION_MISSING"
    assert await reason_of(client.put_sandbox(site.channel, [bytes(1001)])) == "SANDBOX_FILE_TOO_LARGE"

    async def refused(one: pb.Job) -> str:
        (outcome,) = await client.submit(site.channel, [one])
        assert not outcome.accepted
        assert outcome.sentence
        return f"{outcome.reason} {outcome.sentence}"

    for name in ("../x", "/etc/passwd", "a/../../x", "a//b", ".x509_proxy"):
        assert "output sandbox" in await refused(job(output_sandbox=[name])), name
    assert "executable" in await refused(job(executable="not-in-sandbox"))
    assert "vo" in await refused(pb.Job(job_id="https://h:1/a", attempt=1, description=pb.JobDescription(vo="lhcb")))
    assert "limit wall_s" in await refused(job(limits=pb.Limits(wall_s=10**9)))
    missing = job(input_sandbox=[pb.SandboxFile(name="a", sha256="0" * 64, size_bytes=1)])
    assert (await refused(missing)).startswith("SANDBOX_MISSING")
    lines = site.lab.audit("gatekeeper.CERN", "job.refused")
    assert len(lines) == 9
    assert all(line["reason"] and line["sentence"] for line in lines)


async def test_submit_is_idempotent_and_fenced(site: Site) -> None:
    await site.start()
    one = job("-c", "echo x >> $COUNT", environment={"COUNT": "/dev/null"})
    one.attempt = 2
    await site.submit(one)
    await site.submit(one)
    await site.ended(one)
    await site.submit(one)  # also after its end
    older = pb.Job()
    older.CopyFrom(one)
    older.attempt = 1
    (outcome,) = await client.submit(site.channel, [older])
    assert (outcome.accepted, outcome.reason) == (False, "FENCED")
    await client.purge(site.channel, [one.job_id])
    (outcome,) = await client.submit(site.channel, [older])
    assert (outcome.accepted, outcome.reason) == (False, "FENCED")


async def test_others_see_nothing_of_my_jobs(site: Site) -> None:
    await site.start()
    one = job("-c", "echo secret")
    await site.run(one)
    bob = await site.lab.channel("gatekeeper", credential=site.lab.user("bob"))
    assert await client.status(bob, [one.job_id]) == []
    assert await client.cancel(bob, [one.job_id]) == [one.job_id]
    assert await reason_of(client.output_files(bob, one.job_id)) == "JOB_UNKNOWN"
    await client.purge(bob, [one.job_id])
    assert (await client.output_files(site.channel, one.job_id))["out"] == b"secret\n"


async def test_a_child_that_ran_into_the_size_limit_of_a_file_is_told(site: Site) -> None:
    await site.start({"disk_check_s": 60})  # the look at the whole directory would end it first
    limits = pb.Limits(disk_bytes=100_000)
    full = job("-c", "head -c 200000 /dev/zero > big; exit 4", limits=limits)
    other = job("-c", "head -c 50000 /dev/zero > big; exit 4", limits=limits)
    await site.submit(full, other)
    ends = await site.ended(full, other, seconds=60)
    assert [(end.state, end.exit_code, end.reason, end.sentence) for end in ends] == [
        (pb.JOB_STATE_DONE, 4, "", "its file 'big' has reached the limit of 100000 bytes, where writing fails"),
        (pb.JOB_STATE_DONE, 4, "", ""),
    ]


async def test_the_worker_port_is_for_workers_of_the_site(site: Site) -> None:
    await site.start()
    for credential in (site.alice, site.lab.service("worker", site="RAL"), site.lab.service("broker")):
        channel = await site.lab.channel("gatekeeper", credential=credential)
        stub = gatekeeper_pb2_grpc.WorkerPortStub(channel)
        call = stub.FetchSandbox(pb.FetchSandboxRequest(sha256="0" * 64))
        assert await reason_of(collect(call)) in ("SERVICE_REQUIRED", "OTHER_SITE")
        file = stub.FirstPartFile(pb.FirstPartFileRequest(job_id="x", attempt=1, run=1, name=".gridfabric_x"))
        assert await reason_of(file) in ("SERVICE_REQUIRED", "OTHER_SITE")


async def test_a_worker_gets_files_of_no_job_that_is_not_its_own(site: Site) -> None:
    await site.start()
    one = job("-c", "echo secret; sleep 300")
    await site.submit(one)
    run = (await site.reaches(one, pb.JOB_STATE_RUNNING)).attempt
    for name, worker, reason in (
        (".gridfabric_x", "other", "FENCED"),
        ("out", "CERN", "FILE_NAME"),
        (".gridfabric/../../x", "CERN", "FILE_NAME"),
    ):
        credential = site.lab.service("worker", name=f"worker.{worker}")
        stub = gatekeeper_pb2_grpc.WorkerPortStub(await site.lab.channel("gatekeeper", credential=credential))
        request = pb.FirstPartFileRequest(job_id=one.job_id, attempt=1, run=run, name=name)
        assert await reason_of(stub.FirstPartFile(request)) == reason


async def test_leases_are_given_back_when_the_jobs_are_gone(site: Site) -> None:
    await site.start(gatekeeper={"lease_linger_s": 0.2})
    gatekeeper = site.lab.agents["gatekeeper.CERN"].agent
    one = job("-c", "true")
    await site.run(one)
    assert gatekeeper._accounts.leases() == 1
    await client.purge(site.channel, [one.job_id])
    await until(lambda: gatekeeper._accounts.leases() == 0)


async def test_links_in_the_output_are_not_followed(site: Site) -> None:
    await site.start()
    secret = site.lab.directory / "secret"
    secret.write_text("root only")
    one = job("-c", f"ln -s {secret} stolen; ln -s / d", output_sandbox=["stolen", "d/etc/hostname", "out"])
    update = await site.run(one)
    assert update.state == pb.JOB_STATE_DONE
    assert set(await client.output_files(site.channel, one.job_id)) == {"out"}
    assert "stolen" in update.sentence


async def test_a_stopped_worker_leaves_nothing_and_its_job_fails(site: Site) -> None:
    await site.start()
    marker = f"{800 + os.getpid() % 90}.25"
    one = job("-c", f"sleep {marker}")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING)
    root = site.lab.agents["worker.CERN"].agent.runner.root
    await site.lab.stop("worker.CERN")
    update = (await site.ended(one))[0]
    assert (update.state, update.reason) == (pb.JOB_STATE_FAILED, "WORKER_STOPPED")
    assert count_processes(f"sleep {marker}") == 0
    assert not root.exists() or not [name for name in os.listdir(root) if len(name) == 32]


async def test_a_full_disk_stops_new_jobs_until_there_is_room(site: Site) -> None:
    await site.start()
    runner = site.lab.agents["worker.CERN"].agent.runner
    runner.options = dataclasses.replace(runner.options, min_free_bytes=1 << 60)
    gatekeeper = site.lab.agents["gatekeeper.CERN"]
    await until(lambda: runner.machine.unfit != "" and "DISK_FULL" in gatekeeper.health().detail)
    one = job("-c", "true")
    await site.submit(one)
    health = site.lab.agents["worker.CERN"].health()
    assert health.state == "degraded"
    assert "DISK_FULL" in health.detail
    assert (await client.status(site.channel, [one.job_id]))[0].state == pb.JOB_STATE_QUEUED
    runner.options = dataclasses.replace(runner.options, min_free_bytes=0)
    assert (await site.ended(one))[0].state == pb.JOB_STATE_DONE


async def test_a_lost_worker_fails_its_jobs_and_is_fenced_when_it_comes_back(site: Site) -> None:
    await site.start({"stop_policy": "leave"}, {"worker_lost_s": 0.3})
    marker = f"{700 + os.getpid() % 90}.75"
    one = job("-c", f"sleep {marker}")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING)
    await until(lambda: count_processes(f"sleep {marker}") == 1)
    await site.lab.stop("worker.CERN")
    update = (await site.ended(one))[0]
    assert (update.state, update.reason, update.started) == (pb.JOB_STATE_FAILED, "WORKER_LOST", True)
    assert count_processes(f"sleep {marker}") == 1
    await site.lab.start("worker", options={"slots": 4, "term_grace_s": 0.2})
    await until(lambda: count_processes(f"sleep {marker}") == 0)
    again = job("-c", "echo fine")
    assert (await site.run(again)).state == pb.JOB_STATE_DONE


async def test_a_worker_that_restarts_adopts_what_runs(site: Site, shared: Path) -> None:
    await site.start({"stop_policy": "leave"})
    gate, count = shared / "gate", shared / "count"
    one = job("-c", f"echo started >> {count}; while ! test -e {gate}; do sleep 0.05; done; echo done")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING)
    await site.lab.stop("worker.CERN")
    await site.lab.start("worker", options={"slots": 4})
    gate.touch()
    update = (await site.ended(one))[0]
    assert (update.state, update.exit_code) == (pb.JOB_STATE_DONE, 0)
    assert (await client.output_files(site.channel, one.job_id))["out"] == b"done\n"
    assert count.read_text() == "started\n"


async def test_the_gatekeeper_restarts_under_its_jobs(site: Site, shared: Path) -> None:
    await site.start()
    gate = shared / "gate"
    jobs = [job("-c", f"while ! test -e {gate}; do sleep 0.05; done; echo {n}") for n in range(12)]
    await site.submit(*jobs)
    await site.reaches(jobs[0], pb.JOB_STATE_RUNNING)
    await site.lab.stop("gatekeeper.CERN")
    gate.touch()
    await site.lab.start("gatekeeper", options=FAST)
    ends = await site.ended(*jobs)
    assert {end.state for end in ends} == {pb.JOB_STATE_DONE}
    assert (await client.output_files(site.channel, jobs[7].job_id))["out"] == b"7\n"


async def test_watch_replays_from_a_sequence(site: Site) -> None:
    await site.start()
    first, second = job("-c", "true"), job("-c", "true")
    end = await site.run(first)
    await site.run(second)
    seen: list[pb.JobUpdate] = []
    async with asyncio.timeout(60):
        async for update in client.watch(site.channel, after_sequence=end.sequence):
            seen.append(update)
            if update.job_id == second.job_id:
                break
    assert [update.job_id for update in seen] == [second.job_id]
    assert seen[0].sequence > end.sequence


def count_processes(command: str) -> int:
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            words = line.strip().removeprefix("/bin/")
            found += words == command
    return found


async def reason_of(call: Any) -> str:
    with pytest.raises(GridError) as caught:
        await call
    return caught.value.reason


async def collect(stream: Any) -> list[Any]:
    return [message async for message in stream]


@pytest.mark.parametrize("how", ["revoke", "ban", "expel"])
async def test_jobs_of_somebody_who_lost_his_rights_are_stopped(site: Site, how: str) -> None:
    await site.start({"term_grace_s": 0.2})
    marker = f"{600 + os.getpid() % 90}.125"
    one = job("-c", f"sleep {marker}")
    await site.submit(one)
    await site.reaches(one, pb.JOB_STATE_RUNNING)
    await until(lambda: count_processes(f"sleep {marker}") == 1)
    if how == "revoke":
        site.lab.revoke(site.lab.user_certificate("alice"))
    elif how == "ban":
        site.lab.ban("alice")
    else:
        site.lab.expel("alice")
    await until(lambda: count_processes(f"sleep {marker}") == 0)
    lines = site.lab.audit("gatekeeper.CERN", "jobs.stopped")
    assert [line["reason"] for line in lines] == [
        {"revoke": "CERTIFICATE_REVOKED", "ban": "BANNED", "expel": "NOT_MAPPED"}[how]
    ]
