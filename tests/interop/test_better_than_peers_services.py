"""What the services of the reference implementations get wrong, seen on running systems: one test each, ours is right.

Globus GCT 6.2 (gatekeeper, job manager, GridFTP) and ARC A-REX 6.17. Credentials: test_better_than_peers.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.storage.v1 import storage_pb2, storage_pb2_grpc
from support.grid import LabGrid
from support.site import ENDED, Site, job

from agents.gatekeeper import client
from fabric.errors import GridError
from security.credentials import Credential


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as found:
        yield found


async def refused(lab: LabGrid, agent: str, credential: Credential) -> GridError:
    channel = await lab.channel(agent, credential=credential)
    with pytest.raises(GridError) as caught:
        if agent == "storage":
            stub = storage_pb2_grpc.StorageStub(channel)
            await stub.Remove(storage_pb2.RemoveRequest(surl="srm://localhost/cms/x"))
        else:
            await client.submit(channel, [job("-c", "true")])
    return caught.value


async def test_globus_has_one_code_for_the_unmapped_and_the_limited(lab: LabGrid) -> None:
    """Code 7, «authentication failed», for both, although it had succeeded."""
    await lab.start("gatekeeper")
    stranger = await refused(lab, "gatekeeper", lab.user("mallory", vo=None))
    limited = await refused(lab, "gatekeeper", lab.user("alice", limited=True))
    assert (stranger.reason, limited.reason) == ("NOT_MAPPED", "LIMITED_PROXY")
    assert "CN=mallory" in stranger.sentence and "limited" in limited.sentence


async def test_gridftp_logs_no_refusal(lab: LabGrid) -> None:
    """«New connection», «Closed connection» is all. A-REX logs no name. Here: who, why, from where."""
    await lab.start("storage")
    error = await refused(lab, "storage", lab.user("mallory", vo=None))
    eve = await refused(lab, "storage", lab.grid.outside_namespace_user())
    lines = lab.audit("storage.CERN", "call.refused")
    assert [line["reason"] for line in lines] == [error.reason, eve.reason] == ["NOT_MAPPED", "NAMESPACE_VIOLATION"]
    assert "CN=mallory" in lines[0]["sentence"] and "CN=eve" in lines[1]["sentence"]


async def test_arex_answers_a_caller_without_a_certificate_with_an_empty_403(lab: LabGrid) -> None:
    await lab.start("gatekeeper")
    channel = await lab.channel("gatekeeper", credential=None)
    with pytest.raises(GridError) as caught:
        await client.submit(channel, [job("-c", "true")])
    assert caught.value.reason == "SESSION_MISSING" and len(caught.value.sentence) > 20


async def test_globus_gatekeeper_listens_on_every_address(lab: LabGrid) -> None:
    """It has no option for it."""
    await lab.start("gatekeeper")
    port = lab.port("gatekeeper.CERN")
    for address, answers in (("127.0.0.1", True), ("127.0.0.2", False)):
        with socket.socket() as probe:
            assert (probe.connect_ex((address, port)) == 0) == answers


async def test_globus_job_run_drops_the_exit_code(lab: LabGrid) -> None:
    site = Site(lab)
    await site.start()
    update = await site.run(job("-c", "exit 3"))
    assert (update.state, update.exit_code) == (pb.JOB_STATE_DONE, 3)


async def test_globus_job_status_says_done_of_what_does_not_answer(lab: LabGrid) -> None:
    """Exit code 0 and DONE, also for a job that nobody knows or that still runs."""
    site = Site(lab)
    await site.start()
    running, unknown = job("-c", "sleep 60"), job("-c", "true")
    await site.submit(running)
    await site.reaches(running, pb.JOB_STATE_RUNNING)
    (known,) = await client.status(site.channel, [running.job_id, unknown.job_id])
    assert (known.job_id, known.state) == (running.job_id, pb.JOB_STATE_RUNNING)
    await lab.stop("gatekeeper.CERN")
    with pytest.raises(GridError) as caught:
        await client.status(site.channel, [running.job_id])
    assert caught.value.reason == "SERVER_UNREACHABLE"


async def test_globus_gatekeeper_hands_its_environment_to_jobs(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "of whoever started it")
    site = Site(lab)
    await site.start()
    one = job(executable="/usr/bin/env")
    await site.run(one)
    found = (await client.output_files(site.channel, one.job_id))["out"].decode()
    assert "X509_USER_PROXY=" in found
    assert "DATABASE_PASSWORD" not in found and os.environ["PATH"] not in found


async def test_seventeen_inodes_of_a_batch_job_stay_in_the_gass_cache(lab: LabGrid) -> None:
    """Until somebody cleans that job. A-REX keeps 12 control files for 37 days, for ever if restarted daily. Here some
    spare ones wait for the next jobs, at most 512."""
    site = Site(lab)
    await site.start()
    await site.run(job("-c", "echo first"))  # what is made once

    def files() -> Counter[str]:
        found = (lab.directory / "agents").rglob("*")
        return Counter(path.parent.name for path in found if not {"spares", ".spares"} & set(path.parts))

    before = files()
    jobs = [job("-c", f"echo {number}; echo {number} >&2") for number in range(10)]
    await site.submit(*jobs)
    await site.ended(*jobs)
    await client.purge(site.channel, [one.job_id for one in jobs])
    assert await client.status(site.channel, [one.job_id for one in jobs]) == []
    end = time.monotonic() + 10
    while after := files() - before:
        assert time.monotonic() < end, after
        await asyncio.sleep(0.05)  # the worker removes its part when it hears of it


async def test_arex_notices_the_end_of_a_job_after_up_to_twenty_seconds(lab: LabGrid) -> None:
    """And tells its users up to a minute later. Here the user is told by the stream that is open."""
    site = Site(lab)
    await site.start()
    one = job("-c", "date +%s.%N")
    await site.submit(one)
    async for update in client.watch(site.channel):
        if update.job_id == one.job_id and update.state in ENDED:
            break
    told_at = time.time()
    ran_at = float((await client.output_files(site.channel, one.job_id))["out"])
    assert told_at - ran_at < 2, told_at - ran_at


async def test_globus_logs_every_job_of_a_user_under_the_id_of_the_first(lab: LabGrid) -> None:
    """Jobs and connections cannot be matched there. Here each line of the trail has the job's own id."""
    site = Site(lab)
    await site.start()
    first, second = job("-c", "true"), job("-c", "true")
    await site.submit(first)
    await site.submit(second)
    lines = lab.audit("gatekeeper.CERN", "job.submit")
    assert [line["job_ids"] for line in lines] == [[first.job_id], [second.job_id]], lines
    opened = {line["session_id"]: line["peer"] for line in lab.audit("gatekeeper.CERN", "session.opened")}
    assert [opened[line["session_id"]] for line in lines] == [str(site.alice.identity)] * 2
