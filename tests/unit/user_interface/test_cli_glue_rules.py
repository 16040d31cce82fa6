from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agents.user_interface.glue_rules import check
from agents.user_interface.information_export import glue_only, ldif
from fabric import glue2
from fabric.glue_model import (
    AccessProtocol,
    ComputingElement,
    Service,
    Site,
    StorageArea,
    StorageElement,
    SubCluster,
)
from fabric.ldap import Entry, make_entry, parse_dn
from fabric.ldap.dn import Dn

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def tree() -> list[Entry]:
    """A small grid as it should be."""
    stamp = glue2.Stamp(NOW)
    ce = ComputingElement(
        "ce:1/q", "ce", "ce", 1, total_cpus=16, free_slots=10, running_jobs=6, waiting_jobs=2, estimated_response_s=0,
        worst_response_s=0, max_wall_minutes=60, max_cpu_minutes=60, max_running_jobs=16, max_waiting_jobs=9,
        max_total_jobs=25, vos=("cms",),
    )  # fmt: skip
    hosts = SubCluster(
        "ce", "CERN", (), 16, 16, 4096, 8192, "Debian GNU/Linux", "12", processor_model="m", processor_vendor="v"
    )
    se = StorageElement(
        "se", "CERN", areas=(StorageArea("cms", "/cms", ("cms",), 9 * 10**12, 10**12),),
        protocols=(AccessProtocol("grpc", "grpc://se:1", 1),),
    )  # fmt: skip
    service = Service("gk", "org.gridfabric.gatekeeper", "grpcs://ce:1", "CERN", vos=("cms",))
    site = Site("CERN", email="grid@cern.ch", location="Geneva, Switzerland", latitude=46.2, longitude=6.1)
    place = parse_dn("GLUE2DomainID=CERN,GLUE2GroupID=grid,o=glue")
    services = [
        *glue2.computing_entries("ce", [hosts], [ce], service, "CERN", stamp),
        *glue2.storage_entries(se, service, "CERN", stamp),
    ]
    below = place.child("GLUE2GroupID", "resource")
    return [
        *glue2.domain_entries(place, site, "current", stamp),
        glue2.group_entry(below),
        *(Entry(Dn((*entry.dn.rdns, *below.rdns)), entry.attributes) for entry in services),
    ]


def test_a_good_tree_has_the_notes_that_glue_validator_has() -> None:
    noted = {
        "GLUE2EndpointIssuerCA",
        "GLUE2ExecutionEnvironmentCPUVersion",
        "GLUE2ExecutionEnvironmentCPUClockSpeed",
    }
    found = {(finding.code, finding.sentence.split()[0]) for finding in check(tree(), NOW)}
    assert found == {("I095", name) for name in noted}


@pytest.mark.parametrize(
    ("object_class", "name", "value", "code"),
    [
        ("GLUE2ComputingShare", "GLUE2EntityCreationTime", "2026-01-01T13:00:00Z", "E001"),
        ("GLUE2ComputingShare", "GLUE2EntityCreationTime", "2026-01-01T10:00:00Z", "E002"),
        ("GLUE2ComputingShare", "GLUE2EntityCreationTime", "2022-01-01T10:00:00Z", "W001"),
        ("GLUE2ComputingShare", "GLUE2EntityCreationTime", "yesterday", "W037"),
        ("GLUE2ComputingShare", "GLUE2EntityCreationTime", None, "W002"),
        ("GLUE2Location", "GLUE2LocationLongitude", "200", "E008"),
        ("GLUE2Location", "GLUE2LocationLatitude", "-91", "E009"),
        ("GLUE2Location", "GLUE2LocationLatitude", "north", "E009"),
        ("GLUE2Location", "GLUE2LocationDomainForeignKey", "RAL", "E026"),
        ("GLUE2Location", "GLUE2LocationCountry", None, "I095"),
        ("GLUE2AccessPolicy", "GLUE2PolicyUserDomainForeignKey", None, "I095"),
        ("GLUE2StorageServiceCapacity", "GLUE2StorageServiceCapacityFreeSize", None, "I095"),
        ("GLUE2StorageShareCapacity", "GLUE2StorageShareCapacityUsedSize", None, "I095"),
        ("GLUE2ComputingService", "GLUE2ComputingServiceTotalJobs", None, "I095"),
        ("GLUE2ExecutionEnvironment", "GLUE2ExecutionEnvironmentCPUMultiplicity", None, "I095"),
        ("GLUE2Contact", "GLUE2ContactType", "boss", "W037"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointStartTime", "2026-02-01T10:00:00Z", "E010"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointDowntimeEnd", "2026-02-01T10:00:00Z", "E013"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointURL", "nowhere", "W037"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointHealthState", "fine", "W037"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointServingState", None, "W037"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointImplementationVersion", None, "W034"),
        ("GLUE2ComputingEndpoint", "GLUE2EndpointID", "_x", "W040"),
        ("GLUE2ComputingEndpoint", "GLUE2ComputingEndpointTotalJobs", "90", "W013"),
        ("GLUE2ComputingService", "GLUE2ComputingServiceTotalJobs", "90", "W005"),
        ("GLUE2ComputingService", "GLUE2ServiceID", "_x", "W039"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareTotalJobs", "90", "W025"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareMinWallTime", "99999", "W014"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareDefaultWallTime", "99999", "W015"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareMaxTotalJobs", "0", "W020"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareMaxRunningJobs", "99", "W021"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareMaxSlotsPerJob", "0", "W024"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareMaxMainMemory", "99999", "W028"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareWaitingJobs", "444444", "E023"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareEstimatedWorstWaitingTime", "2146660842", "E023"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareFreeSlots", "-1", "W037"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareFreeSlots", "many", "W037"),
        ("GLUE2ComputingShare", "GLUE2ComputingShareFreeSlots", str(2**32), "W037"),
        ("GLUE2ComputingShare", "GLUE2StorageSharePath", "/", "W037"),
        ("GLUE2ComputingManager", "GLUE2ComputingManagerTotalPhysicalCPUs", "99", "W030"),
        ("GLUE2ComputingManager", "GLUE2ComputingManagerSlotsUsedByGridJobs", "99", "W033"),
        ("GLUE2ComputingManager", "GLUE2ManagerProductVersion", None, "W034"),
        ("GLUE2ExecutionEnvironment", "GLUE2ExecutionEnvironmentOSName", None, "W034"),
        ("GLUE2StorageServiceCapacity", "GLUE2StorageServiceCapacityTotalSize", "1", "E014"),
        ("GLUE2StorageServiceCapacity", "GLUE2StorageServiceCapacityFreeSize", "99999", "E015"),
        ("GLUE2StorageShareCapacity", "GLUE2StorageShareCapacityUsedSize", "99999", "E020"),
        ("GLUE2StorageShare", "GLUE2StorageShareAccessLatency", "soon", "W037"),
    ],
)
def test_what_is_wrong_is_found_under_its_code(object_class: str, name: str, value: str | None, code: str) -> None:
    entries = tree()
    for number, entry in enumerate(entries):
        if object_class in entry.attributes["objectClass"]:
            attributes = {key: values for key, values in entry.attributes.items() if key != name}
            if value is not None:
                attributes[name] = (value,)
            entries[number] = Entry(entry.dn, attributes)
    found = [finding for finding in check(entries, NOW) if finding.code == code]
    assert found and all(finding.dn for finding in found)
    if code not in ("E001", "E002", "E010", "E013", "W001"):  # these name the time, not the attribute
        assert any(name.lower() in finding.sentence.lower() for finding in found)


@pytest.mark.parametrize("missing", ["GLUE2Contact", "GLUE2Location", "GLUE2MappingPolicy", "GLUE2AccessPolicy"])
def test_what_belongs_together(missing: str) -> None:
    entries = [entry for entry in tree() if missing not in entry.attributes["objectClass"]]
    assert check(entries, NOW)[0].code == "E025"


def test_errors_come_first_and_validity_counts() -> None:
    found = check(tree(), NOW + timedelta(hours=2))
    assert found[0].code == "E002" and found[-1].code == "I095"


def test_an_export_has_only_glue_and_is_read_back() -> None:
    site = make_entry(
        "mds-vo-name=CERN,mds-vo-name=local,o=grid",
        {"objectClass": ("top", "MDS", "GridFabricSite"), "mds-vo-name": "CERN", "GridFabricSiteState": "current"},
    )
    producer = make_entry("GridFabricProducerID=x,o=grid", {"objectClass": ("top", "GridFabricProducer")})
    odd = make_entry(Dn(parse_dn("o=grid").rdns).child("cn", "\u00e9, <x>"), {"objectClass": "top", "cn": " leading"})
    text = ldif(glue_only([site, producer, odd]))
    first = text.split("\n\n")[0].splitlines()
    assert first[0] == "dn: mds-vo-name=CERN,mds-vo-name=local,o=grid"
    assert set(first[1:]) == {"mds-vo-name: CERN", "objectClass: top", "objectClass: MDS"}
    assert "GridFabric" not in text
    assert "dn:: " in text and "cn:: IGxlYWRpbmc=" in text
