"""An operator shuts the queue of a site: what is refused, what waits, what is published, and what a restart keeps."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid
from support.site import Site, job

from agents.gatekeeper import client
from fabric.errors import InvalidRequest, Refused


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with LabGrid(tmp_path) as lab:
        made = Site(lab)
        await made.start()
        yield made


def in_seconds(seconds: float) -> int:
    return time.time_ns() // 1000 + int(seconds * 1e6)


async def test_a_drained_queue_runs_what_it_has_and_refuses_the_rest_also_after_a_restart(site: Site) -> None:
    operator = await site.lab.channel("gatekeeper", credential=site.lab.operator())
    waiting = job("-c", "exit 0")
    await site.submit(waiting)
    await client.close(operator, draining=True, reason="it moves")
    await site.lab.stop("gatekeeper.CERN")
    await site.lab.start("gatekeeper", options=site.gatekeeper_options)
    site.channel = await site.lab.channel("gatekeeper", credential=site.alice)
    (outcome,) = await client.submit(site.channel, [job()])
    assert (outcome.accepted, outcome.reason) == (False, "DRAINING")
    assert "it moves" in outcome.sentence
    assert (await site.ended(waiting))[0].state == pb.JOB_STATE_DONE
    await site.published("GlueCE", GlueCEStateStatus="Draining", GlueCEStateFreeCPUs="0")
    await site.published("GlueService", GlueServiceStatusInfo="Draining: it moves")
    operator = await site.lab.channel("gatekeeper", credential=site.lab.operator())
    assert await client.close(operator) == (0, 0)
    assert (await site.run(job("-c", "exit 0"))).state == pb.JOB_STATE_DONE
    assert [line["reason"] for line in site.lab.audit("gatekeeper.CERN", "queue.closure")] == ["it moves", ""]


async def test_before_a_maintenance_only_jobs_start_that_end_in_time(site: Site) -> None:
    operator = await site.lab.channel("gatekeeper", credential=site.lab.operator())
    await client.close(operator, reason="new disks", begins_at_us=in_seconds(600), ends_at_us=in_seconds(1200))
    short, long = job("-c", "exit 0", limits=pb.Limits(wall_s=60)), job("-c", "exit 0", limits=pb.Limits(wall_s=900))
    await site.submit(long, short)
    assert (await site.ended(short))[0].state == pb.JOB_STATE_DONE
    assert (await client.status(site.channel, [long.job_id]))[0].state == pb.JOB_STATE_QUEUED
    await client.close(operator, reason="new disks", begins_at_us=in_seconds(-5))
    await site.published("GlueCE", GlueCEStateStatus="Queueing", GlueCEStateFreeCPUs="0")
    assert (await client.status(site.channel, [long.job_id]))[0].state == pb.JOB_STATE_QUEUED
    await client.close(operator)
    assert (await site.ended(long))[0].state == pb.JOB_STATE_DONE


async def test_only_operators_shut_a_queue_and_they_say_why(site: Site) -> None:
    with pytest.raises(Refused):
        await client.close(site.channel, draining=True, reason="for fun")
    operator = await site.lab.channel("gatekeeper", credential=site.lab.operator())
    for wrong in (
        {"draining": True},
        {"draining": True, "reason": "x" * 201},
        {"draining": True, "reason": "two\nlines"},
        {"reason": "late", "ends_at_us": 5},
        {"reason": "turned", "begins_at_us": 10, "ends_at_us": 9},
        {"reason": "early", "begins_at_us": -5},
    ):
        with pytest.raises(InvalidRequest) as caught:
            await client.close(operator, **wrong)  # type: ignore[arg-type]
        assert caught.value.reason == "CLOSURE_INVALID"
    assert (await site.run(job("-c", "exit 0"))).state == pb.JOB_STATE_DONE
