from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gridfabric.information.v1 import information_pb2 as pb

from fabric.glue13 import (
    INDEXED_ATTRIBUTES,
    agent_entries,
    ce_entries,
    ce_views,
    cluster_entries,
    se_entries,
    service_entries,
    site_entries,
    site_of,
    typed_value,
)
from fabric.glue_model import (
    UNKNOWN,
    AccessProtocol,
    ComputingElement,
    Service,
    Site,
    StorageArea,
    StorageElement,
    SubCluster,
)
from fabric.glue_schema import GLUE_SCHEMA
from fabric.information import GridView, TreeCopy, entry_from_wire, entry_to_wire
from fabric.ldap import Dn, Entry, EntryTree, Scope, make_entry, parse_dn, parse_filter

CE_ID = "ce.cern.ch:2119/jobmanager-fork-grid"


def relative_entries(site: str = "CERN", ce: str = CE_ID, se: str = "se.cern.ch") -> list[Entry]:
    host = ce.partition(":")[0]
    element = ComputingElement(
        ce, host, host, 2119, total_cpus=16, free_slots=10, running_jobs=6, waiting_jobs=2, vos=("cms", "atlas"),
        close_storage=(se,),
    )  # fmt: skip
    hosts = SubCluster(
        host, site, (ce,), logical_cpus=16, ram_mb=4096, operating_system="Debian", software=("PYTHIA-8",)
    )
    area = StorageArea("cms", "/cms", ("cms",), total_bytes=10**12, used_bytes=10**11)
    storage = StorageElement(se, site, areas=(area,), protocols=(AccessProtocol("grpc", f"grpc://{se}:8446", 8446),))
    return [
        *site_entries(Site(site, latitude=46.2, longitude=6.1, location="Geneva", other_info=("TIER 0", "ROC=CERN"))),
        *cluster_entries(hosts),
        *ce_entries(element),
        *se_entries(storage),
        *service_entries(Service(f"broker.{site}", "org.gridfabric.broker", "https://x:7772", site, vos=("cms",))),
    ]


def placed(site: str, entries: list[Entry]) -> list[Entry]:
    base = parse_dn(f"mds-vo-name={site},mds-vo-name=local,o=grid")
    return [Entry(Dn((*entry.dn.rdns, *base.rdns)), entry.attributes) for entry in entries]


def test_an_agent_is_a_service_of_its_kind_at_its_port() -> None:
    settings: Any = SimpleNamespace(
        kind="broker", name="broker.CERN", site="CERN", advertise="rb.cern.ch", rpc_port=7772
    )
    (entry,) = agent_entries(settings, ("cms",))
    assert str(entry.dn) == "GlueServiceUniqueID=broker.CERN"
    assert entry.first("GlueServiceType") == "org.gridfabric.broker"
    assert entry.first("GlueServiceEndpoint") == "https://rb.cern.ch:7772"
    assert entry.first("GlueServiceName") == "broker.CERN"
    assert entry.first("GlueForeignKey") == "GlueSiteUniqueID=CERN"


def test_every_entry_has_its_naming_attribute_classes_and_version() -> None:
    for entry in relative_entries():
        ((name, value),) = entry.dn.rdns[0]
        assert value in entry.attributes[name]
        assert "GlueTop" in entry.attributes["objectClass"]
        assert entry.attributes["GlueSchemaVersionMinor"] == ("3",)
        assert all(values and all(values) for values in entry.attributes.values())


def test_names_and_values_as_the_schema_has_them() -> None:
    found = {str(entry.dn): entry for entry in relative_entries()}
    ce = found[f"GlueCEUniqueID={CE_ID}"]
    assert ce.attributes["GlueCEStateFreeJobSlots"] == ("10",)
    assert ce.attributes["GlueCEStateTotalJobs"] == ("8",)
    assert ce.attributes["GlueCEAccessControlBaseRule"] == ("VO:cms", "VO:atlas")
    assert ce.attributes["GlueForeignKey"] == ("GlueClusterUniqueID=ce.cern.ch",)
    sub = found["GlueSubClusterUniqueID=ce.cern.ch,GlueClusterUniqueID=ce.cern.ch"]
    assert sub.attributes["GlueHostMainMemoryRAMSize"] == ("4096",)
    assert sub.attributes["GlueChunkKey"] == ("GlueClusterUniqueID=ce.cern.ch",)
    area = found["GlueSALocalID=cms,GlueSEUniqueID=se.cern.ch"]
    assert area.attributes["GlueSAStateAvailableSpace"] == (str(9 * 10**11 // 1024),)
    assert area.attributes["GlueSATotalOnlineSize"] == ("1000",)
    bind = found[f"GlueCESEBindSEUniqueID=se.cern.ch,GlueCESEBindGroupCEUniqueID={CE_ID}"]
    assert bind.attributes["GlueCESEBindCEUniqueID"] == (CE_ID,)


def test_groups_and_roles_are_published_and_read_as_access_rules() -> None:
    element = ComputingElement(CE_ID, "c", "h", 1, vos=("atlas",), fqans=("/cms/Role=pilot",))
    (entry,) = ce_entries(element)
    assert entry.attributes["GlueCEAccessControlBaseRule"] == ("VO:atlas", "VOMS:/cms/Role=pilot")
    view = ce_views(placed("CERN", [entry]))[CE_ID]
    assert (view.vos, view.fqans) == (("atlas",), ("/cms/Role=pilot",))


def test_parents_come_before_children() -> None:
    tree = EntryTree(["o=grid"], schema=GLUE_SCHEMA, indexed=INDEXED_ATTRIBUTES)
    for dn in ("o=grid", "mds-vo-name=local,o=grid", "mds-vo-name=CERN,mds-vo-name=local,o=grid"):
        tree.add(make_entry(dn, {"objectClass": "MDS"}))
    for entry in placed("CERN", relative_entries()):
        tree.add(entry)
    text = "(&(objectClass=GlueCE)(GlueCEAccessControlBaseRule=VO:cms)(GlueCEStateFreeJobSlots>=9))"
    assert len(list(tree.search(parse_dn("o=grid"), Scope.SUBTREE, parse_filter(text)))) == 1


def test_a_view_has_what_jdl_may_name() -> None:
    view = ce_views(placed("CERN", relative_entries()))[CE_ID]
    attributes = view.attributes
    assert view.site == "CERN"
    assert view.is_usable
    assert view.vos == ("cms", "atlas")
    assert attributes["GlueCEStateFreeJobSlots"] == 10
    assert attributes["GlueCEInfoGatekeeperPort"] == 2119
    assert attributes["GlueHostMainMemoryRAMSize"] == 4096
    assert attributes["GlueHostOperatingSystemName"] == "Debian"
    assert attributes["GlueHostApplicationSoftwareRunTimeEnvironment"] == ("PYTHIA-8",)
    assert attributes["GlueHostNetworkAdapterOutboundIP"] is True
    assert attributes["GlueSiteLatitude"] == 46.2
    assert attributes["GlueSiteOtherInfo"] == ("TIER 0", "ROC=CERN")
    assert attributes["GlueSEUniqueID"] == ("se.cern.ch",) == view.close_storage
    assert attributes["GlueSAStateAvailableSpace"] == 9 * 10**11 // 1024
    assert view.integer("GlueCEStateRunningJobs") == 6


def test_a_lost_ce_is_not_usable_and_a_lost_se_is_not_close() -> None:
    entries = placed("CERN", relative_entries())
    status = {"GlueCEStateStatus": (UNKNOWN,), "GlueSEStatus": (UNKNOWN,)}
    lost = [Entry(entry.dn, {name: status.get(name, v) for name, v in entry.attributes.items()}) for entry in entries]
    view = ce_views(lost)[CE_ID]
    assert not view.is_usable
    assert view.close_storage == ()


def test_a_ce_alone_is_still_a_view() -> None:
    (ce,) = (entry for entry in placed("X", relative_entries("X")) if "GlueCE" in entry.attributes["objectClass"])
    view = ce_views([ce])[CE_ID]
    assert view.attributes["GlueCEStateFreeJobSlots"] == 10
    assert view.attributes["GlueSiteUniqueID"] == "X"


def test_typed_values() -> None:
    assert typed_value("glueceStatefreejobslots", ("7",)) == 7
    assert typed_value("GlueCEStateFreeJobSlots", ("many",)) == "many"
    assert typed_value("GlueCEName", ("7",)) == "7"
    assert typed_value("GlueSiteOtherInfo", ("one",)) == ("one",)
    assert typed_value("Anything", ("a", "b")) == ("a", "b")


def test_site_of() -> None:
    assert site_of(parse_dn("GlueCEUniqueID=x,mds-vo-name=CERN,mds-vo-name=local,o=grid")) == "CERN"
    assert site_of(parse_dn("o=grid")) == ""


def message(
    sequence: int, *entries: Entry, snapshot: bool = False, removed: tuple[str, ...] = ()
) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(
        sequence=sequence, snapshot=snapshot, changed=map(entry_to_wire, entries), removed_dns=removed
    )


def test_wire_keeps_entries() -> None:
    for entry in relative_entries():
        assert entry_from_wire(entry_to_wire(entry)) == entry


def test_a_copy_shows_the_old_entries_until_a_snapshot_is_whole() -> None:
    copy = TreeCopy()
    one, two = make_entry("cn=1", {"a": "1"}), make_entry("cn=2", {"a": "2"})
    assert copy.apply(message(1, one, snapshot=True)) == ([], [])
    assert copy.apply(message(1, two)) == ([], [])
    assert not copy.is_complete
    assert copy.apply(message(1)) == ([one, two], [])
    assert copy.is_complete
    three = make_entry("cn=2", {"a": "3"})
    assert copy.apply(message(2, three)) == ([three], [])
    copy.apply(message(9, one, snapshot=True))
    assert len(copy.entries) == 2
    assert copy.apply(message(9)) == ([], [three.dn])
    assert copy.apply(message(10, removed=("CN=1",)))[1] == [one.dn]
    assert copy.entries == {}


def test_the_grid_view_follows_changes_of_one_site_and_of_storage_elsewhere() -> None:
    copy = TreeCopy()
    view = GridView(copy)
    cern = placed("CERN", relative_entries())
    ral = placed("RAL", relative_entries("RAL", "ce.ral:2119/jobmanager-fork-grid", "se.cern.ch"))
    ral = [entry for entry in ral if not str(entry.dn).startswith(("GlueSE", "GlueSA"))]
    copy.apply(message(1, *cern, *ral, snapshot=True))
    copy.apply(message(1))
    before = view.elements()
    assert view.elements() is before
    assert before["ce.ral:2119/jobmanager-fork-grid"].close_storage == ("se.cern.ch",)
    (ce,) = (entry for entry in cern if "GlueCE" in entry.attributes["objectClass"])
    busy = Entry(ce.dn, {**ce.attributes, "GlueCEStateFreeJobSlots": ("0",)})
    copy.apply(pb.SubscribeResponse(sequence=2, changed=[entry_to_wire(busy, known=ce.attributes, produced_at_us=7)]))
    after = view.elements()  # what the next match is made on
    assert (before[CE_ID].produced_at_us, after[CE_ID].produced_at_us) == (0, 7)
    assert after[CE_ID].attributes["GlueCEStateFreeJobSlots"] == 0
    assert after == ce_views(copy.entries.values())
    (se,) = (entry for entry in cern if "GlueSE" in entry.attributes["objectClass"])
    copy.apply(message(3, removed=(str(se.dn),)))
    assert view.elements()["ce.ral:2119/jobmanager-fork-grid"].close_storage == ()
    assert view.elements() == ce_views(copy.entries.values())
    copy.apply(message(4, removed=tuple(str(entry.dn) for entry in ral)))
    assert set(view.elements()) == {CE_ID}
