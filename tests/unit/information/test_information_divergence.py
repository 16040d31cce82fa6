"""Two top servers: what differs for how long; cut one off from a site and watch it diverge and converge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.grid import LabGrid
from support.waiting import until

from agents.information.agent import InformationAgent
from agents.information.agent import build as build_information
from agents.information.divergence import DivergenceMeter, Reading, TopState
from fabric.errors import Unavailable
from fabric.information_tree import LOCAL
from fabric.ldap import Entry, LdapClient, make_entry, parse_dn
from fabric.settings import Endpoint

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SITE = LOCAL.child("mds-vo-name", "RAL")
CE = SITE.child("GlueCEUniqueID", "ce")
FAST = {"valid_for_s": 2.0, "refresh_s": 0.1, "grace_s": 0.5, "heartbeat_s": 0.1}


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def entry(free: int) -> Entry:
    return make_entry(CE, {"objectClass": "GlueCE", "GlueCEUniqueID": "ce", "GlueCEStateFreeCPUs": free})


def test_a_change_on_its_way_is_no_divergence():
    meter = DivergenceMeter(5)
    meter.compare(CE, entry(1), entry(2), NOW)
    assert meter.read(later(5)) == Reading(TopState.CURRENT)
    meter.compare(CE, entry(1), entry(1), later(5))
    assert meter.read(later(60)) == Reading(TopState.CURRENT)


def test_what_differs_for_long_is_counted_from_when_it_began():
    meter = DivergenceMeter(5)
    other = SITE.child("GlueCEUniqueID", "other")
    meter.compare(CE, entry(1), None, NOW)
    meter.compare(CE, entry(3), None, later(4))  # changed again, and still not there
    meter.compare(other, None, entry(1), later(8))
    assert meter.read(later(10)) == Reading(TopState.DIVERGED, 1, NOW)
    assert meter.read(later(14)) == Reading(TopState.DIVERGED, 2, NOW)
    meter.compare(CE, None, None, later(15))
    assert meter.read(later(20)) == Reading(TopState.DIVERGED, 1, later(8))


@pytest.mark.parametrize(
    "dn", ["o=grid", "mds-vo-name=local,o=grid", "GridFabricTopID=top2,o=grid", "GridFabricTopID=x"]
)
def test_what_is_not_of_a_site_is_not_compared(dn):
    meter = DivergenceMeter(5)
    meter.compare(parse_dn(dn), entry(1), None, NOW)
    assert meter.read(later(60)).state is TopState.CURRENT


def test_each_server_has_its_own_time_of_a_site_s_state_but_not_its_own_state():
    meter = DivergenceMeter(5)

    def site(state: str, since: str) -> Entry:
        return make_entry(
            SITE, {"objectClass": "GridFabricSite", "GridFabricSiteState": state, "GridFabricSiteSince": since}
        )

    meter.compare(SITE, site("current", "20260101000000Z"), site("current", "20260101000009Z"), NOW)
    assert meter.read(later(60)).state is TopState.CURRENT
    meter.compare(SITE, site("current", "20260101000000Z"), site("unreachable", "20260101000000Z"), NOW)
    assert meter.read(later(60)).differing == 1


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        for name, site in (("top.CERN", "CERN"), ("top.CNAF", "CNAF")):
            lab.plan("top", name=name, site=site)
        lab.plan("information", site="RAL")
        yield lab


async def meter_at(lab: LabGrid, top: str) -> tuple[str, int]:
    async with await LdapClient.connect("127.0.0.1", lab.port(top, "ldap"), timeout_s=30) as client:
        found = await client.search("o=grid", "(objectClass=GridFabricTop)")
    return (found[0].first("GridFabricTopState"), int(found[0].first("GridFabricTopDiffering"))) if found else ("", 0)


async def test_cut_one_top_server_off_from_a_site(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"level": "top", **FAST, "divergence_after_s": 1.0}
    tops: dict[str, InformationAgent] = {}
    for name, site in (("top.CERN", "CERN"), ("top.CNAF", "CNAF")):
        agent = (await lab.start("top", name=name, site=site, options=options, builder=build_information)).agent
        assert isinstance(agent, InformationAgent)
        tops[name] = agent
    ral = (await lab.start("information", site="RAL", options=FAST, builder=build_information)).agent
    assert isinstance(ral, InformationAgent) and "RAL" in ral.service.above

    async def equal() -> bool:
        return [await meter_at(lab, name) for name in tops] == [("current", 0)] * 2 and ral.service.above[
            "RAL"
        ].connected == 2

    await until(equal, "both top servers hear the site and show the same")

    publisher = ral.service.above["RAL"]
    connect = publisher.connect

    async def cut(endpoint: Endpoint) -> Any:
        if endpoint.name == "top.CNAF":
            raise Unavailable("CUT", "the cable is cut")
        return await connect(endpoint)

    monkeypatch.setattr(publisher, "connect", cut)
    publisher.break_streams()

    async def diverged() -> bool:
        read = [await meter_at(lab, name) for name in tops]
        if not all(state == "diverged" and differing > 0 for state, differing in read):
            return False
        problem = tops["top.CERN"].context.problems.get("divergence.top.CNAF", "")
        return "not as at top.CNAF" in problem and tops["top.CERN"].health().numbers["differing"] > 0

    await until(diverged, "both meters show that the site is known to one of the two only")

    monkeypatch.setattr(publisher, "connect", connect)
    await until(equal, "they show the same again")

    await lab.stop("top.CNAF")

    async def unheard() -> bool:
        detail, problems = tops["top.CERN"].health().detail, tops["top.CERN"].context.problems
        is_said = "top.CNAF is not heard" in detail and not problems
        return is_said and await meter_at(lab, "top.CERN") == ("unreachable", 0)

    await until(unheard, "a top server that is stopped is unreachable, not divergent")
