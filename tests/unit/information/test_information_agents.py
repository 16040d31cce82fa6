"""Real agents: publishers, a site server, a top server, over real sessions, read by LDAP and by subscription."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.information.v1 import information_pb2 as pb
from gridfabric.information.v1 import information_pb2_grpc
from support.grid import LabGrid
from support.waiting import until

from agents.information.agent import InformationAgent
from agents.information.agent import build as build_information
from fabric import information
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.errors import GridError, Unavailable
from fabric.glue13 import ce_entries, cluster_entries, se_entries, site_entries
from fabric.glue_model import ComputingElement, Site, StorageArea, StorageElement, SubCluster
from fabric.information import Subscriber
from fabric.information_publisher import InformationPublisher, connector
from fabric.ldap import Entry, LdapClient, LdapError
from fabric.settings import Endpoint

FAST = {"valid_for_s": 0.6, "refresh_s": 0.1, "grace_s": 0.5, "heartbeat_s": 0.2}


def ce_of(site: str, free: int = 4) -> list[Entry]:
    host = f"ce.{site.lower()}"
    unique = f"{host}:2119/jobmanager-fork-grid"
    ce = ComputingElement(
        unique, host, host, 2119, total_cpus=8, free_slots=free, vos=("cms",), close_storage=(f"se.{site.lower()}",)
    )
    hosts = SubCluster(host, site, (unique,), logical_cpus=8, ram_mb=2000, software=("PYTHIA-8", "PYTHON-3"))
    return [*cluster_entries(hosts), *ce_entries(ce)]


class Element(Agent):
    """A gatekeeper that only publishes."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        self.free = 4
        self.publisher = InformationPublisher(
            context, lambda: ce_of(context.settings.site, self.free), poll_s=0.02, refresh_s=0.1, valid_for_s=0.6
        )
        self.silent = False

    async def start(self) -> None:
        await self.publisher.start()

    async def stop(self) -> None:
        if not self.silent:
            await self.publisher.stop()

    def health(self) -> AgentHealth:
        return AgentHealth(AgentState.GREEN)


class Follower(Agent):
    """A broker that only follows."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        self.subscriber = Subscriber(
            context.settings.endpoints("top"), connector(context), log=context.log, clock=context.clock
        )

    async def start(self) -> None:
        self.context.spawn(self.subscriber.run(), "follow")

    def health(self) -> AgentHealth:
        return AgentHealth(AgentState.GREEN)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        lab.plan("top")
        for site in ("CERN", "RAL"):
            lab.plan("information", site=site)
        yield lab


async def start_servers(lab: LabGrid) -> None:
    await lab.start("top", options={"level": "top", **FAST}, builder=build_information)
    for site in ("CERN", "RAL"):
        await lab.start("information", site=site, options={"level": "site", **FAST}, builder=build_information)


async def ldap(lab: LabGrid, server: str, text: str, *attributes: str, base: str = "o=grid") -> list[Entry]:
    async with await LdapClient.connect("127.0.0.1", lab.port(server, "ldap")) as client:
        return await client.search(base, text, attributes=attributes)


async def unreachable(_endpoint: Endpoint) -> Any:
    raise Unavailable("CUT", "the cable is cut")


async def test_from_publisher_to_site_to_top_to_broker(lab: LabGrid) -> None:
    lab.plan("gatekeeper", site="RAL")
    await start_servers(lab)
    element = (await lab.start("gatekeeper", site="RAL", builder=Element)).agent
    follower = (await lab.start("broker", builder=Follower)).agent
    assert isinstance(element, Element)
    assert isinstance(follower, Follower)

    (at_top,) = await until(lambda: ldap(lab, "top.CERN", "(objectClass=GlueCE)", "*", "+"), "the CE at the top")
    (at_site,) = await ldap(lab, "information.RAL", "(objectClass=GlueCE)", "*", "+")
    assert at_top.dn == at_site.dn
    assert str(at_top.dn).endswith(",mds-vo-name=RAL,mds-vo-name=local,o=grid")
    assert at_top.first("GridFabricProducer") == "gatekeeper.RAL" == at_site.first("GridFabricProducer")
    assert at_top.first("GridFabricState") == "current"

    async def both_sites() -> bool:
        return len(await ldap(lab, "top.CERN", "(objectClass=GlueSite)")) == 2

    await until(both_sites, "both sites at the top")

    async def view() -> Any:
        return follower.subscriber.view.elements().get("ce.ral:2119/jobmanager-fork-grid")

    seen = await until(view, "the CE at the broker")
    assert seen.attributes["GlueCEStateFreeJobSlots"] == 4
    assert seen.attributes["GlueHostApplicationSoftwareRunTimeEnvironment"] == ("PYTHIA-8", "PYTHON-3")
    assert seen.is_usable

    element.free = 1

    async def is_one() -> bool:
        found = await view()
        return found is not None and found.attributes["GlueCEStateFreeJobSlots"] == 1

    await until(is_one, "the change at the broker")
    assert len(await ldap(lab, "top.CERN", "(&(objectClass=GlueCE)(GlueCEStateFreeJobSlots<=1))")) == 1


async def test_a_crashed_agent_expires_and_a_stopped_one_withdraws(lab: LabGrid) -> None:
    lab.plan("gatekeeper", site="RAL")
    await start_servers(lab)
    production = "(&(objectClass=GlueCE)(GlueCEStateStatus=Production))"
    element = (await lab.start("gatekeeper", site="RAL", builder=Element)).agent
    assert isinstance(element, Element)
    await until(lambda: ldap(lab, "top.CERN", production), "the CE at the top")
    element.silent = True
    await lab.stop("gatekeeper.RAL")
    state = "(&(GridFabricProducerID=gatekeeper.RAL)(GridFabricProducerState={}))"
    await until(lambda: ldap(lab, "top.CERN", state.format("unreachable")), "unreachable at the top")
    assert await ldap(lab, "top.CERN", production) == []

    await lab.start("gatekeeper", site="RAL", builder=Element)
    await until(lambda: ldap(lab, "top.CERN", production), "the CE back at the top")
    await lab.stop("gatekeeper.RAL")
    await until(lambda: ldap(lab, "top.CERN", state.format("withdrawn")), "withdrawn at the top")
    assert await ldap(lab, "top.CERN", "(objectClass=GlueCE)") == []


async def test_a_restarted_top_has_everything_again_and_a_lost_site_says_so(lab: LabGrid) -> None:
    lab.plan("gatekeeper", site="RAL")
    await start_servers(lab)
    await lab.start("gatekeeper", site="RAL", builder=Element)
    await until(lambda: ldap(lab, "top.CERN", "(objectClass=GlueCE)"), "the CE at the top")
    await lab.stop("top.CERN")
    await lab.start("top", options={"level": "top", **FAST}, builder=build_information)
    await until(lambda: ldap(lab, "top.CERN", "(objectClass=GlueCE)"), "the CE at the new top")
    site = lab.agents["information.RAL"].agent
    assert isinstance(site, InformationAgent)
    assert "RAL" in site.service.above
    connect, site.service.above["RAL"].connect = (
        site.service.above["RAL"].connect,
        unreachable,
    )  # cut off, without a goodbye
    site.service.above["RAL"].break_streams()
    lost = "(&(mds-vo-name=RAL)(GridFabricSiteState=unreachable))"
    production = "(&(objectClass=GlueCE)(GlueCEStateStatus=Production))"

    async def shown_as_lost() -> bool:  # what was under way when the link was cut may still come
        found = await ldap(lab, "top.CERN", lost)
        return [bool(entry.first("GridFabricSiteLastSeen")) for entry in found] == [True] and not await ldap(
            lab, "top.CERN", production
        )

    await until(shown_as_lost, "RAL unreachable at the top")
    site.service.above["RAL"].connect = connect
    back = "(&(mds-vo-name=RAL)(GridFabricSiteState=current))"
    await until(lambda: ldap(lab, "top.CERN", back), "RAL back at the top")
    assert len(await ldap(lab, "top.CERN", production)) == 1


async def test_a_region_between_site_and_top(lab: LabGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "MAX_BACKOFF_S", 0.2)
    for kind in ("region", "gatekeeper"):
        lab.plan(kind, site="CERN" if kind == "region" else "RAL")
    below = {"region.CERN": ["RAL"]}
    region = {"level": "region", "sites": ["RAL"], **FAST}
    await lab.start("top", options={"level": "top", "below": below, **FAST}, builder=build_information)
    await lab.start("region", options=region, builder=build_information)
    await lab.start("information", options=FAST, builder=build_information)
    await lab.start("information", site="RAL", options={"region": "region.CERN", **FAST}, builder=build_information)
    await lab.start("gatekeeper", site="RAL", builder=Element)
    production = "(&(objectClass=GlueCE)(GlueCEStateStatus=Production))"
    (at_top,) = await until(lambda: ldap(lab, "top.CERN", production, "*", "+"), "the CE at the top")
    (at_region,) = await ldap(lab, "region.CERN", production, "*", "+")
    assert at_top.attributes == at_region.attributes
    assert at_top.first("GridFabricProducer") == "gatekeeper.RAL"
    assert await ldap(
        lab, "top.CERN", "(&(mds-vo-name=RAL)(GridFabricSiteWay=region.CERN)(GridFabricSiteState=current))"
    )
    await until(lambda: ldap(lab, "top.CERN", "(GlueServiceType=bdii_region)"), "the region as an agent of its site")
    assert await ldap(lab, "region.CERN", "(mds-vo-name=CERN)") == [], "a region has its own sites only"
    with pytest.raises(LdapError, match=f"ask ldap://localhost:{lab.port('top.CERN', 'ldap')}") as caught:
        await ldap(lab, "region.CERN", "(objectClass=*)", base="mds-vo-name=CERN,mds-vo-name=local,o=grid")
    assert caught.value.code == 10

    await lab.stop("region.CERN")
    lost = (
        "(&(mds-vo-name=RAL)(GridFabricSiteState=unreachable)(GridFabricSiteReason=region.CERN is not heard by top.*))"
    )
    await until(lambda: ldap(lab, "top.CERN", lost), "RAL is lost with its region")
    assert await ldap(lab, "top.CERN", "(&(mds-vo-name=CERN)(GridFabricSiteState=current))")
    assert await ldap(lab, "top.CERN", production) == []
    await lab.start("region", options=region, builder=build_information)
    await until(lambda: ldap(lab, "top.CERN", production), "the CE back at the top")
    await until(
        lambda: ldap(lab, "top.CERN", "(&(GridFabricRegionID=region.CERN)(GridFabricRegionState=current))"), "up"
    )


@pytest.mark.parametrize(
    ("kind", "site", "server", "producer", "reason"),
    [
        ("gatekeeper", "RAL", "information.CERN", "gatekeeper.RAL", "OTHER_SITE"),
        ("gatekeeper", "CERN", "information.CERN", "storage.CERN", "OTHER_PRODUCER"),
        ("gatekeeper", "CERN", "top.CERN", "CERN", "SERVICE_REQUIRED"),
        ("information", "RAL", "top.CERN", "CERN", "OTHER_PRODUCER"),
        ("information", "PIC", "top.CERN", "PIC", "OTHER_WAY"),
        ("region", "PIC", "top.CERN", "CERN", "OTHER_PRODUCER"),
        ("region", "PIC", "top.CERN", "PIC/", "OTHER_PRODUCER"),
        ("region", "RAL", "top.CERN", "RAL", "OTHER_PRODUCER"),
        ("information", "RAL", "region.CERN", "RAL", "OTHER_WAY"),
        ("", "", "information.CERN", "alice", "SERVICE_REQUIRED"),
    ],
)
async def test_who_may_not_publish(lab: LabGrid, kind: str, site: str, server: str, producer: str, reason: str) -> None:
    lab.plan("region", site="PIC")
    lab.plan("region", site="RAL")
    level = {"information": "site"}.get(server.partition(".")[0], server.partition(".")[0])
    options = {"level": level} | ({"below": {"region.PIC": ["PIC"]}} if level == "top" else {})
    await lab.start(server.partition(".")[0], options=options, builder=build_information)
    credential = lab.user("alice")
    if kind:
        credential = lab.service(kind.replace("region", "information"), f"{kind}.{site}", site=site)
    channel = await lab.channels.get("localhost", lab.port(server), credential)
    stub = information_pb2_grpc.InformationStub(channel)

    async def messages() -> AsyncIterator[pb.PublishRequest]:
        yield pb.PublishRequest(producer=producer, sequence=1, snapshot=True, valid_for_ms=1000)

    with pytest.raises(GridError) as caught:
        async for _ in stub.Publish(messages()):
            pass
    assert caught.value.reason == reason, (caught.value.sentence, dict(caught.value.facts))
    assert any(line.get("sentence") == caught.value.sentence for line in lab.audit(server))


async def test_garbage_names_are_left_out_and_the_rest_is_kept(lab: LabGrid) -> None:
    await lab.start("information", options={"level": "site"}, builder=build_information)
    channel = await lab.channel("information", credential=lab.service("storage"))
    stub = information_pb2_grpc.InformationStub(channel)
    se = StorageElement("se.cern", "CERN", areas=(StorageArea("cms", "/cms", ("cms",), 10**12, 10**9),))
    good = [
        pb.Entry(dn=str(e.dn), attributes=[pb.Attribute(name=n, values=v) for n, v in e.attributes.items()])
        for e in [*se_entries(se), *site_entries(Site("CERN"))]
    ]

    async def messages() -> AsyncIterator[pb.PublishRequest]:
        bad = [pb.Entry(dn="no name"), pb.Entry(dn="cn=a", produced_at_us=2**62)]
        yield pb.PublishRequest(
            producer="storage.CERN", sequence=1, snapshot=True, changed=[*bad, *good], valid_for_ms=900
        )

    responses = [response async for response in stub.Publish(messages())]
    assert responses[0].acknowledged_sequence == 1
    assert len(await ldap(lab, "information.CERN", "(objectClass=GlueSA)")) == 1


async def test_news_are_answered_at_once_and_signs_of_life_now_and_then(lab: LabGrid) -> None:
    await lab.start("information", options={"level": "site"}, builder=build_information)
    channel = await lab.channel("information", credential=lab.service("gatekeeper"))
    entries = [
        pb.Entry(dn=str(e.dn), attributes=[pb.Attribute(name=n, values=v) for n, v in e.attributes.items()])
        for e in ce_of("CERN")
    ]

    async def messages() -> AsyncIterator[pb.PublishRequest]:
        yield pb.PublishRequest(
            producer="gatekeeper.CERN", sequence=1, snapshot=True, changed=entries, valid_for_ms=60_000
        )
        for sequence in range(2, 10):
            yield pb.PublishRequest(producer="gatekeeper.CERN", sequence=sequence, valid_for_ms=60_000)
        yield pb.PublishRequest(producer="gatekeeper.CERN", sequence=10, removed_dns=["cn=x"], valid_for_ms=60_000)

    stub = information_pb2_grpc.InformationStub(channel)
    assert [answer.acknowledged_sequence async for answer in stub.Publish(messages())] == [1, 2, 10]
