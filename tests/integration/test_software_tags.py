"""Software tags: changed by a VO's software managers only, published, kept over a restart, and found in the job."""

from __future__ import annotations

from pathlib import Path

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid
from support.site import Site, job

from agents.gatekeeper import client
from fabric.errors import InvalidRequest, Refused

TAG = "VO-cms-CMSSW_1_2_3"


async def test_tags_of_a_manager_are_published_and_kept(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        lab.plan("vo", name="vo.cms")
        site = Site(lab)
        await site.start({"software_area": "/grid/soft", "software": ["LOCAL-TAG"]})
        managers = lab.user("alice", fqans=["/cms", "/cms/Role=lcgadmin"])
        channel = await lab.channel("gatekeeper", credential=managers)
        assert await client.tags(channel, add=[TAG, "VO-cms-old"]) == ([TAG, "VO-cms-old"], "/grid/soft/cms")
        assert await client.tags(channel, add=[TAG], remove=["VO-cms-old", "VO-cms-never"]) == ([TAG], "/grid/soft/cms")
        await site.published("GlueCE", GlueCEInfoApplicationDir="/grid/soft")
        software = "GlueHostApplicationSoftwareRunTimeEnvironment"
        published = (await site.published("GlueSubCluster", **{software: TAG}))[software]
        found_out = ("GRIDFABRIC-", "OPENMPI")  # by the workers themselves
        assert [tag for tag in published if not tag.startswith(found_out)] == ["LOCAL-TAG", TAG]
        await lab.stop("gatekeeper.CERN")
        await lab.start("gatekeeper", options=site.gatekeeper_options)
        channel = await lab.channel("gatekeeper", credential=site.alice)
        assert (await client.tags(channel))[0] == [TAG]
        site.channel = channel
        one = job("-c", "echo $VO_CMS_SW_DIR")
        assert (await site.run(one)).state == pb.JOB_STATE_DONE
        assert (await client.output_files(channel, one.job_id))["out"] == b"/grid/soft/cms\n"


async def test_others_change_nothing_and_tags_are_the_vo_s_own(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab:
        lab.plan("vo", name="vo.cms")
        site = Site(lab)
        await site.start()
        for fqans in ((), ("/cms", "/cms/Role=production"), ("/cms", "/cms/lcgadmin")):
            channel = await lab.channel("gatekeeper", credential=lab.user("bob", fqans=fqans))
            with pytest.raises(Refused) as caught:
                await client.tags(channel, add=[TAG])
            assert caught.value.reason == "ACCESS_DENIED"
            with pytest.raises(Refused):
                await client.tags(channel, remove=[TAG])
        limited = await lab.channel(
            "gatekeeper", credential=lab.user("alice", limited=True, fqans=["/cms", "/cms/Role=lcgadmin"])
        )
        with pytest.raises(Refused):
            await client.tags(limited, add=[TAG])
        managers = lab.user("alice", fqans=["/cms", "/cms/Role=lcgadmin"])
        channel = await lab.channel("gatekeeper", credential=managers)
        for wrong in ("", "VO-atlas-X", "VO-cms-", "VO-cms-a b", "VO-cms-a\n", "VO-cms-" + "x" * 200, "VO-cms-\u00e9"):
            with pytest.raises(InvalidRequest) as invalid:
                await client.tags(channel, add=[wrong])
            assert invalid.value.reason == "TAG_INVALID"
        assert (await client.tags(channel))[0] == []
