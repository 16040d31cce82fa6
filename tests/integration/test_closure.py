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
from fabric.errors import Conflict, InvalidRequest, NotFound, Refused


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
    await site.published("GlueServiceData", GlueServiceDataKey="downtime_info", GlueServiceDataValue="new disks")
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


async def test_of_several_queues_each_has_its_limits_its_slots_and_is_shut_by_itself(site: Site) -> None:
    short = {"name": "short", "max_wall_s": 600, "max_running": 1, "priority": 5}
    site.gatekeeper_options["queues"] = [short, {"name": "long", "max_wall_s": 7200}]
    await site.lab.stop("gatekeeper.CERN")
    await site.lab.start("gatekeeper", options=site.gatekeeper_options)
    site.channel = await site.lab.channel("gatekeeper", credential=site.alice)
    operator = await site.lab.channel("gatekeeper", credential=site.lab.operator())
    contact = f"localhost:{site.lab.port('gatekeeper.CERN')}/jobmanager-fabric"
    limits = {"GlueCEPolicyMaxWallClockTime": "10", "GlueCEInfoTotalCPUs": "1", "GlueCEPolicyPriority": "5"}
    await site.published("GlueCE", GlueCEUniqueID=f"{contact}-short", GlueCEStateFreeCPUs="1", **limits)
    await site.published("GlueCE", GlueCEUniqueID=f"{contact}-long", GlueCEInfoTotalCPUs="4")

    def queued(queue: str, script: str, wall_s: int = 0) -> pb.Job:
        one = job("-c", script, limits=pb.Limits(wall_s=wall_s))
        one.queue = queue
        return one

    first, second = (queued("short", "while ! [ -e go ]; do sleep 0.1; done") for _ in range(2))
    other = queued("long", "exit 0", wall_s=3600)
    await site.submit(first, second, other)
    await site.reaches(first, pb.JOB_STATE_RUNNING)
    assert (await site.ended(other))[0].state == pb.JOB_STATE_DONE
    await site.published(
        "GlueCE", GlueCEUniqueID=f"{contact}-short", GlueCEStateWaitingJobs="1", GlueCEStateFreeCPUs="0"
    )
    assert await client.close(operator, draining=True, reason="full", queue="short") == (1, 1)
    refused = await client.submit(site.channel, [queued("short", "exit 0"), queued("none", "exit 0")])
    assert [one.reason for one in refused] == ["DRAINING", "QUEUE_UNKNOWN"]
    (too_long,) = await client.submit(site.channel, [queued("short", "exit 0", wall_s=3600)])
    assert (too_long.reason, "queue short's limit" in too_long.sentence) == ("DESCRIPTION_INVALID", True)
    assert (await site.run(queued("long", "exit 0"))).state == pb.JOB_STATE_DONE
    await site.published("GlueService", GlueServiceStatusInfo="short Draining: full; long Production")
    await client.cancel(site.channel, [first.job_id])
    await site.reaches(second, pb.JOB_STATE_RUNNING)
    await client.close(operator, draining=True, reason="all")
    with pytest.raises(Conflict) as caught:
        await client.close(operator, queue="short")
    assert caught.value.reason == "ALL_QUEUES_SHUT"
    with pytest.raises(NotFound):
        await client.close(operator, queue="none", draining=True, reason="x")
    await client.cancel(site.channel, [second.job_id])
    await site.ended(first, second)
