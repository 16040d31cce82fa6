"""GLUE Schema 1.3 in its LDAP form: what agents know, as entries; and entries, as what a broker matches on.

Attribute names and object classes are those of "GLUE Schema Specification version 1.3" (OGF GFD-style document of
January 2007) in the LDAP binding that BDII serves. Entry names are relative to the site's own entry
(`mds-vo-name=<SITE>,mds-vo-name=local,o=grid`); the information server adds that part.

Units are GLUE's: times in seconds in CE states and in minutes in CE policies, memory in MB, storage areas in kB and
online sizes in GB. Unknown numbers are the schema's own marks, see `fabric.glue_model`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabric.glue_model import (
    PRODUCTION,
    UNKNOWN,
    UNKNOWN_TIME,
    ComputingElement,
    Service,
    Site,
    StorageElement,
    SubCluster,
    estimated,
)
from fabric.information_tree import PRODUCED_AT_US
from fabric.ldap.dn import ROOT, Dn
from fabric.ldap.entry import Entry, make_entry

if TYPE_CHECKING:
    from fabric.settings import Settings

MAX_SPACE_KB = 2**31 - 1
"""GlueSAState values are 32-bit; larger spaces are published as this (the online sizes in GB are exact)."""

_INTEGERS = (
    "GlueCEInfoTotalCPUs", "GlueCEStateTotalJobs", "GlueCEStateRunningJobs", "GlueCEStateWaitingJobs",
    "GlueCEStateWorstResponseTime", "GlueCEStateEstimatedResponseTime", "GlueCEStateFreeCPUs",
    "GlueCEStateFreeJobSlots", "GlueCEPolicyMaxWallClockTime", "GlueCEPolicyMaxCPUTime", "GlueCEPolicyMaxTotalJobs",
    "GlueCEPolicyMaxRunningJobs", "GlueCEPolicyPriority", "GlueCEPolicyAssignedJobSlots",
    "GlueCEPolicyMaxObtainableWallClockTime", "GlueCEPolicyMaxObtainableCPUTime", "GlueCEPolicyMaxWaitingJobs",
    "GlueCEPolicyMaxSlotsPerJob", "GlueCEPolicyPreemption", "GlueSubClusterPhysicalCPUs",
    "GlueSubClusterLogicalCPUs", "GlueHostArchitectureSMPSize", "GlueHostProcessorClockSpeed",
    "GlueHostMainMemoryRAMSize", "GlueHostMainMemoryVirtualSize", "GlueHostBenchmarkSI00", "GlueHostBenchmarkSF00",
    "GlueSchemaVersionMajor", "GlueSchemaVersionMinor", "GlueSEPort", "GlueSESizeTotal", "GlueSESizeFree",
    "GlueSAStateAvailableSpace", "GlueSAStateUsedSpace", "GlueSATotalOnlineSize", "GlueSAUsedOnlineSize",
    "GlueSAFreeOnlineSize", "GlueSAReservedOnlineSize", "GlueSATotalNearlineSize", "GlueSAUsedNearlineSize",
    "GlueSAFreeNearlineSize", "GlueSAReservedNearlineSize",
)  # fmt: skip
_NUMBERS_IN_TEXT = ("GlueCEInfoGatekeeperPort", "GlueSETotalOnlineSize", "GlueSEUsedOnlineSize")
_REALS = ("GlueSiteLatitude", "GlueSiteLongitude")
_BOOLEANS = ("GlueHostNetworkAdapterOutboundIP", "GlueHostNetworkAdapterInboundIP")
_LIST_NAMES = (
    "objectClass", "GlueCEAccessControlBaseRule", "GlueHostApplicationSoftwareRunTimeEnvironment",
    "GlueCECapability", "GlueCEInfoContactString", "GlueSiteOtherInfo", "GlueSiteSponsor", "GlueForeignKey",
    "GlueChunkKey", "GlueCESEBindGroupSEUniqueID", "GlueCESEBindSEUniqueID", "GlueCESEBindMountInfo",
    "GlueSEUniqueID", "GlueSAAccessControlBaseRule", "GlueServiceAccessControlBaseRule", "GlueServiceOwner",
    "GlueClusterService",
)  # fmt: skip
_LISTS = frozenset(name.lower() for name in _LIST_NAMES)
_INTEGER_NAMES = frozenset(name.lower() for name in (*_INTEGERS, *_NUMBERS_IN_TEXT))
_REAL_NAMES = frozenset(name.lower() for name in _REALS)
_BOOLEAN_NAMES = frozenset(name.lower() for name in _BOOLEANS)

INDEXED_ATTRIBUTES = (
    "GlueCEUniqueID", "GlueSEUniqueID", "GlueServiceUniqueID", "GlueServiceType", "GlueSiteUniqueID",
    "GlueClusterUniqueID", "GlueSubClusterUniqueID", "GlueCEAccessControlBaseRule", "GlueSAAccessControlBaseRule",
    "GlueChunkKey", "GlueForeignKey", "GlueCESEBindGroupCEUniqueID", "GlueCESEBindCEUniqueID", "mds-vo-name",
)  # fmt: skip
"""What brokers, lcg-infosites and lcg-info ask for by equality."""

Value = int | float | bool | str | tuple[str, ...]
"""An attribute as a broker sees it."""


_VERSION: dict[str, str | int] = {"GlueSchemaVersionMajor": 1, "GlueSchemaVersionMinor": 3}
Attributes = dict[str, str | int | tuple[str, ...] | list[str]]


def _entry(dn: Dn, classes: str, attributes: Attributes) -> Entry:
    """An entry; attributes without a value are left out."""
    kept: Attributes = {"objectClass": tuple(classes.split())}
    kept.update({name: value for name, value in attributes.items() if value not in ("", ())})
    kept.update(_VERSION)
    return make_entry(dn, kept)


def _rules(vos: tuple[str, ...], fqans: tuple[str, ...] = ()) -> tuple[str, ...]:
    return (*(f"VO:{vo}" for vo in vos), *(f"VOMS:{fqan}" for fqan in fqans))


def site_entries(site: Site) -> list[Entry]:
    """GlueSite."""
    contact = f"mailto:{site.email}" if site.email else ""
    attributes: Attributes = {
        "GlueSiteUniqueID": site.name,
        "GlueSiteName": site.name,
        "GlueSiteDescription": site.description or f"site {site.name}",
        "GlueSiteEmailContact": contact,
        "GlueSiteUserSupportContact": contact,
        "GlueSiteSysAdminContact": contact,
        "GlueSiteSecurityContact": contact,
        "GlueSiteLocation": site.location,
        "GlueSiteLatitude": "" if site.latitude is None else f"{site.latitude:g}",
        "GlueSiteLongitude": "" if site.longitude is None else f"{site.longitude:g}",
        "GlueSiteWeb": site.web,
        "GlueSiteSponsor": site.sponsors,
        "GlueSiteOtherInfo": site.other_info,
        "GlueForeignKey": f"GlueSiteUniqueID={site.name}",
    }
    dn = ROOT.child("GlueSiteUniqueID", site.name)
    return [_entry(dn, "GlueTop GlueGeneralTop GlueSite GlueKey GlueSchemaVersion", attributes)]


def cluster_entries(cluster: SubCluster) -> list[Entry]:
    """GlueCluster and below it its GlueSubCluster."""
    dn = ROOT.child("GlueClusterUniqueID", cluster.cluster)
    keys = (f"GlueSiteUniqueID={cluster.site}", *(f"GlueCEUniqueID={ce}" for ce in cluster.computing_elements))
    top: Attributes = {
        "GlueClusterUniqueID": cluster.cluster,
        "GlueClusterName": cluster.cluster,
        "GlueClusterService": cluster.cluster,
        "GlueClusterTmpDir": cluster.tmp_dir,
        "GlueClusterWNTmpDir": cluster.tmp_dir,
        "GlueForeignKey": keys,
    }
    hosts: Attributes = {
        "GlueSubClusterUniqueID": cluster.cluster,
        "GlueSubClusterName": cluster.cluster,
        "GlueSubClusterPhysicalCPUs": cluster.physical_cpus,
        "GlueSubClusterLogicalCPUs": cluster.logical_cpus,
        "GlueSubClusterTmpDir": cluster.tmp_dir,
        "GlueSubClusterWNTmpDir": cluster.tmp_dir,
        "GlueHostArchitecturePlatformType": cluster.platform,
        "GlueHostArchitectureSMPSize": cluster.cpus_per_host,
        "GlueHostMainMemoryRAMSize": cluster.ram_mb,
        "GlueHostMainMemoryVirtualSize": cluster.virtual_mb or cluster.ram_mb,
        "GlueHostOperatingSystemName": cluster.operating_system,
        "GlueHostOperatingSystemRelease": cluster.operating_system_release,
        "GlueHostOperatingSystemVersion": cluster.operating_system_version,
        "GlueHostProcessorModel": cluster.processor_model,
        "GlueHostProcessorVendor": cluster.processor_vendor,
        "GlueHostProcessorClockSpeed": cluster.clock_mhz,
        "GlueHostBenchmarkSI00": cluster.si00,
        "GlueHostBenchmarkSF00": cluster.sf00,
        "GlueHostNetworkAdapterInboundIP": "TRUE" if cluster.inbound_network else "FALSE",
        "GlueHostNetworkAdapterOutboundIP": "TRUE" if cluster.outbound_network else "FALSE",
        "GlueHostApplicationSoftwareRunTimeEnvironment": cluster.software,
        "GlueChunkKey": f"GlueClusterUniqueID={cluster.cluster}",
    }
    classes = (
        "GlueTop GlueClusterTop GlueSubCluster GlueHostApplicationSoftware GlueHostArchitecture GlueHostBenchmark "
        "GlueHostMainMemory GlueHostNetworkAdapter GlueHostOperatingSystem GlueHostProcessor GlueKey GlueSchemaVersion"
    )
    return [
        _entry(dn, "GlueTop GlueClusterTop GlueCluster GlueKey GlueSchemaVersion", top),
        _entry(dn.child("GlueSubClusterUniqueID", cluster.cluster), classes, hosts),
    ]


def ce_entries(ce: ComputingElement) -> list[Entry]:
    """GlueCE and its bindings to close storage elements."""
    dn = ROOT.child("GlueCEUniqueID", ce.unique_id)
    attributes: Attributes = {
        "GlueCEUniqueID": ce.unique_id,
        "GlueCEName": ce.queue,
        "GlueCEHostingCluster": ce.cluster,
        "GlueCEImplementationName": ce.implementation,
        "GlueCEImplementationVersion": ce.implementation_version,
        "GlueCEInfoHostName": ce.host,
        "GlueCEInfoGatekeeperPort": ce.port,
        "GlueCEInfoContactString": ce.contact or ce.unique_id,
        "GlueCEInfoLRMSType": ce.lrms,
        "GlueCEInfoLRMSVersion": ce.lrms_version,
        "GlueCEInfoJobManager": ce.lrms,
        "GlueCEInfoTotalCPUs": ce.total_cpus,
        "GlueCEInfoDefaultSE": ce.default_storage or (ce.close_storage[0] if ce.close_storage else ""),
        "GlueCEInfoApplicationDir": ce.application_dir,
        "GlueCEInfoDataDir": ce.data_dir,
        "GlueCEStateStatus": ce.status,
        "GlueCEStateFreeJobSlots": ce.free_slots,
        "GlueCEStateFreeCPUs": ce.free_slots,
        "GlueCEStateRunningJobs": ce.running_jobs,
        "GlueCEStateWaitingJobs": ce.waiting_jobs,
        "GlueCEStateTotalJobs": ce.running_jobs + ce.waiting_jobs,
        "GlueCEStateEstimatedResponseTime": ce.estimated_response_s,
        "GlueCEStateWorstResponseTime": ce.worst_response_s,
        "GlueCECapability": (
            estimated(
                GlueCEStateEstimatedResponseTime=ce.estimated_response_s != UNKNOWN_TIME,
                GlueCEStateWorstResponseTime=ce.worst_response_s != UNKNOWN_TIME,
            )
        ),
        "GlueCEPolicyMaxWallClockTime": ce.max_wall_minutes,
        "GlueCEPolicyMaxCPUTime": ce.max_cpu_minutes,
        "GlueCEPolicyMaxRunningJobs": ce.max_running_jobs,
        "GlueCEPolicyMaxTotalJobs": ce.max_total_jobs,
        "GlueCEPolicyMaxWaitingJobs": ce.max_waiting_jobs,
        "GlueCEPolicyAssignedJobSlots": ce.assigned_slots or ce.total_cpus,
        "GlueCEPolicyPriority": ce.priority,
        "GlueCEAccessControlBaseRule": _rules(ce.vos, ce.fqans),
        "GlueForeignKey": f"GlueClusterUniqueID={ce.cluster}",
    }
    classes = (
        "GlueTop GlueCETop GlueCE GlueCEAccessControlBase GlueCEInfo GlueCEPolicy GlueCEState GlueKey GlueSchemaVersion"
    )
    entries = [_entry(dn, classes, attributes)]
    if ce.close_storage:
        group = ROOT.child("GlueCESEBindGroupCEUniqueID", ce.unique_id)
        bound: Attributes = {
            "GlueCESEBindGroupCEUniqueID": ce.unique_id,
            "GlueCESEBindGroupSEUniqueID": ce.close_storage,
        }
        entries.append(_entry(group, "GlueTop GlueGeneralTop GlueCESEBindGroup GlueSchemaVersion", bound))
        for se in ce.close_storage:
            one: Attributes = {
                "GlueCESEBindSEUniqueID": se,
                "GlueCESEBindCEUniqueID": ce.unique_id,
                "GlueCESEBindCEAccesspoint": "n.a",
                "GlueCESEBindMountInfo": "n.a",
                "GlueCESEBindWeight": 0,
            }
            bind = group.child("GlueCESEBindSEUniqueID", se)
            entries.append(_entry(bind, "GlueTop GlueGeneralTop GlueCESEBind GlueSchemaVersion", one))
    return entries


def se_entries(se: StorageElement) -> list[Entry]:
    """GlueSE with its GlueSA and GlueSEAccessProtocol entries."""
    dn = ROOT.child("GlueSEUniqueID", se.unique_id)
    total, used = se.size_bytes
    attributes: Attributes = {
        "GlueSEUniqueID": se.unique_id,
        "GlueSEName": se.name or se.unique_id,
        "GlueSEPort": se.port or "",
        "GlueSEStatus": se.status,
        "GlueSEArchitecture": se.architecture,
        "GlueSEImplementationName": se.implementation,
        "GlueSEImplementationVersion": se.implementation_version,
        "GlueSESizeTotal": total // 10**9,
        "GlueSESizeFree": max(0, total - used) // 10**9,
        "GlueSETotalOnlineSize": total // 10**9,
        "GlueSEUsedOnlineSize": used // 10**9,
        "GlueSETotalNearlineSize": se.nearline_bytes[0] // 10**9,
        "GlueSEUsedNearlineSize": se.nearline_bytes[1] // 10**9,
        "GlueForeignKey": f"GlueSiteUniqueID={se.site}",
    }
    entries = [_entry(dn, "GlueTop GlueSETop GlueSE GlueKey GlueSchemaVersion", attributes)]
    for protocol in se.protocols:
        spoken: Attributes = {
            "GlueSEAccessProtocolLocalID": protocol.kind,
            "GlueSEAccessProtocolType": protocol.kind,
            "GlueSEAccessProtocolVersion": protocol.version,
            "GlueSEAccessProtocolEndpoint": protocol.endpoint,
            "GlueSEAccessProtocolPort": protocol.port,
            "GlueSEAccessProtocolSupportedSecurity": "GSI",
            "GlueChunkKey": f"GlueSEUniqueID={se.unique_id}",
        }
        below = dn.child("GlueSEAccessProtocolLocalID", protocol.kind)
        entries.append(_entry(below, "GlueTop GlueSETop GlueSEAccessProtocol GlueKey GlueSchemaVersion", spoken))
    for area in se.areas:
        free = max(0, area.total_bytes - area.used_bytes)
        space: Attributes = {
            "GlueSALocalID": area.local_id,
            "GlueSAName": area.local_id,
            "GlueSAPath": area.path,
            "GlueSARoot": area.path,
            "GlueSAType": "permanent",
            "GlueSATotalOnlineSize": area.total_bytes // 10**9,
            "GlueSAUsedOnlineSize": area.used_bytes // 10**9,
            "GlueSAFreeOnlineSize": free // 10**9,
            "GlueSATotalNearlineSize": area.nearline_total_bytes // 10**9,
            "GlueSAUsedNearlineSize": area.nearline_used_bytes // 10**9,
            "GlueSAFreeNearlineSize": max(0, area.nearline_total_bytes - area.nearline_used_bytes) // 10**9,
            "GlueSARetentionPolicy": area.retention,
            "GlueSAAccessLatency": area.latency,
            "GlueSAExpirationMode": "neverExpire",
            "GlueSAStateAvailableSpace": min(MAX_SPACE_KB, free // 1024),
            "GlueSAStateUsedSpace": min(MAX_SPACE_KB, area.used_bytes // 1024),
            "GlueSAAccessControlBaseRule": _rules(area.vos),
            "GlueChunkKey": f"GlueSEUniqueID={se.unique_id}",
        }
        classes = "GlueTop GlueSATop GlueSA GlueSAPolicy GlueSAState GlueSAAccessControlBase GlueKey GlueSchemaVersion"
        entries.append(_entry(dn.child("GlueSALocalID", area.local_id), classes, space))
    return entries


def service_entries(service: Service) -> list[Entry]:
    """GlueService, and its GlueServiceData."""
    attributes: Attributes = {
        "GlueServiceUniqueID": service.unique_id,
        "GlueServiceName": service.name or service.unique_id,
        "GlueServiceType": service.kind,
        "GlueServiceVersion": service.version,
        "GlueServiceEndpoint": service.endpoint,
        "GlueServiceURI": service.endpoint,
        "GlueServiceAccessPointURL": service.endpoint,
        "GlueServiceStatus": service.status,
        "GlueServiceStatusInfo": service.status_info,
        "GlueServiceStartTime": service.started,
        "GlueServiceOwner": service.vos,
        "GlueServiceAccessControlBaseRule": _rules(service.vos, service.fqans),
        "GlueServiceAccessControlRule": service.vos,
        "GlueForeignKey": f"GlueSiteUniqueID={service.site}",
    }
    dn = ROOT.child("GlueServiceUniqueID", service.unique_id)
    entries = [_entry(dn, "GlueTop GlueService GlueKey GlueSchemaVersion", attributes)]
    for key, value in service.data:
        data: Attributes = {
            "GlueServiceDataKey": key,
            "GlueServiceDataValue": value,
            "GlueChunkKey": f"GlueServiceUniqueID={service.unique_id}",
        }
        entries.append(_entry(dn.child("GlueServiceDataKey", key), "GlueTop GlueServiceData GlueSchemaVersion", data))
    return entries


def agent_entries(
    settings: Settings, vos: tuple[str, ...], name: str = "", data: tuple[tuple[str, str], ...] = ()
) -> list[Entry]:
    """GlueService of an agent itself: `org.gridfabric.<kind>` at its gRPC port, for these VOs, with its `data`."""
    service = Service(
        unique_id=settings.name,
        kind=f"org.gridfabric.{settings.kind}",
        endpoint=f"https://{settings.advertise}:{settings.rpc_port}",
        site=settings.site,
        name=name,
        vos=vos,
        data=data,
    )
    return service_entries(service)


# -- what a broker sees


@dataclass(frozen=True, slots=True)
class CeView:
    """One computing element with everything a JDL's `other.` may name.

    `attributes` holds the GlueCE's own attributes, then those of its subcluster, its cluster and its site (a name
    already there is not replaced), `GlueCESEBindGroupSEUniqueID` and `GlueSEUniqueID` as the list of close storage
    elements, and `GlueSAStateAvailableSpace` as the largest free space among their areas. Integers are numbers, its
    booleans are booleans, attributes that may have several values are always tuples, all else is text.
    """

    unique_id: str
    site: str
    attributes: Mapping[str, Value]
    close_storage: tuple[str, ...] = ()
    """Known storage elements only, in the publisher's order."""
    produced_at_us: int = 0
    """When its producer made this version of the GlueCE, by the producer's clock; 0 if it was not told."""

    @property
    def is_usable(self) -> bool:
        """True if it says that it takes jobs, and its producer is being heard."""
        return self.attributes.get("GlueCEStateStatus") == PRODUCTION

    def integer(self, name: str, default: int = 0) -> int:
        """A number."""
        value = self.attributes.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    @property
    def vos(self) -> tuple[str, ...]:
        """The VOs in GlueCEAccessControlBaseRule."""
        return self._rules("VO:")

    @property
    def fqans(self) -> tuple[str, ...]:
        """The groups and roles in GlueCEAccessControlBaseRule."""
        return self._rules("VOMS:")

    def _rules(self, kind: str) -> tuple[str, ...]:
        rules = self.attributes.get("GlueCEAccessControlBaseRule")
        if not isinstance(rules, tuple):
            return ()
        return tuple(rule.removeprefix(kind) for rule in rules if rule.startswith(kind))


def typed_value(name: str, values: tuple[str, ...]) -> Value:
    """An attribute's values as a broker sees them."""
    lowered = name.lower()
    if lowered in _LISTS or len(values) > 1:
        return values
    text = values[0] if values else ""
    try:
        if lowered in _INTEGER_NAMES:
            return int(text)
        if lowered in _REAL_NAMES:
            return float(text)
    except ValueError:
        return text
    if lowered in _BOOLEAN_NAMES:
        return text.upper() == "TRUE"
    return text


def site_of(dn: Dn) -> str:
    """The site in whose part of the tree a name is: the value of the first `mds-vo-name` from the left; "" if none."""
    for rdn in dn.rdns:
        if rdn[0][0].lower() == "mds-vo-name":
            return rdn[0][1]
    return ""


@dataclass(slots=True)
class _SiteParts:
    site: Entry | None = None
    elements: list[Entry] = field(default_factory=list[Entry])
    clusters: dict[str, Entry] = field(default_factory=dict[str, Entry])
    subclusters: dict[str, Entry] = field(default_factory=dict[str, Entry])
    bindings: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def owner_of(entry: Entry, kind: str) -> str:
    """What an entry belongs to: the `<id>` of its GlueForeignKey or GlueChunkKey `<kind>=<id>`; "" if it has none."""
    prefix = kind.lower() + "="
    for name in ("glueforeignkey", "gluechunkkey"):
        for value in entry.get(name) or ():
            if value.lower().startswith(prefix):
                return value[len(prefix) :]
    return ""


def storage_space(entries: Iterable[Entry]) -> dict[str, int]:
    """The storage elements that are heard, by GlueSEUniqueID, each with its area's largest free space in kB."""
    heard: set[str] = set()
    space: dict[str, int] = defaultdict(int)
    for entry in entries:
        classes = entry.attributes.get("objectClass", ())
        if "GlueSE" in classes:
            if entry.first("GlueSEStatus", PRODUCTION) != UNKNOWN:
                heard.add(entry.first("GlueSEUniqueID"))
        elif "GlueSA" in classes:
            owner = owner_of(entry, "GlueSEUniqueID")
            free = typed_value("GlueSAStateAvailableSpace", entry.attributes.get("GlueSAStateAvailableSpace", ()))
            space[owner] = max(space[owner], free if isinstance(free, int) else 0)
    return {name: space[name] for name in heard}


def bound_storage(entries: Iterable[Entry]) -> set[str]:
    """The GlueSEUniqueIDs that computing elements among these entries name as close."""
    return {se for entry in entries for se in entry.attributes.get("GlueCESEBindGroupSEUniqueID", ())}


def ce_views(entries: Iterable[Entry], storage: Mapping[str, int] | None = None) -> dict[str, CeView]:
    """Group entries (of one site or many) into a view per GlueCE, by GlueCEUniqueID.

    Storage elements may be at other sites than their close CE: give `storage` (see `storage_space`) where `entries` are
    not the whole grid. Views of CEs that do not take jobs are there too.
    """
    entries = tuple(entries)
    known = storage_space(entries) if storage is None else storage
    sites: dict[str, _SiteParts] = defaultdict(_SiteParts)
    for entry in entries:
        classes = entry.attributes.get("objectClass", ())
        parts = sites[site_of(entry.dn)]
        if "GlueCE" in classes:
            parts.elements.append(entry)
        elif "GlueSubCluster" in classes:
            parts.subclusters.setdefault(owner_of(entry, "GlueClusterUniqueID"), entry)
        elif "GlueCluster" in classes:
            parts.clusters[entry.first("GlueClusterUniqueID")] = entry
        elif "GlueSite" in classes:
            parts.site = entry
        elif "GlueCESEBindGroup" in classes:
            bound = entry.attributes.get("GlueCESEBindGroupSEUniqueID", ())
            parts.bindings[entry.first("GlueCESEBindGroupCEUniqueID")] = bound
    views: dict[str, CeView] = {}
    for name, parts in sites.items():
        for element in parts.elements:
            view = _view(name, element, parts, known)
            views[view.unique_id] = view
    return views


def _view(site: str, element: Entry, parts: _SiteParts, storage: Mapping[str, int]) -> CeView:
    unique_id = element.first("GlueCEUniqueID")
    cluster = owner_of(element, "GlueClusterUniqueID") or element.first("GlueCEHostingCluster")
    attributes: dict[str, Value] = {}
    for source in (element, parts.subclusters.get(cluster), parts.clusters.get(cluster), parts.site):
        if source is not None:
            for attribute, values in source.attributes.items():
                if attribute not in attributes:
                    attributes[attribute] = typed_value(attribute, values)
    close = tuple(se for se in parts.bindings.get(unique_id, ()) if se in storage)
    attributes["GlueCESEBindGroupSEUniqueID"] = close
    attributes["GlueSEUniqueID"] = close
    if close:
        attributes["GlueSAStateAvailableSpace"] = max(storage[se] for se in close)
    attributes.setdefault("GlueSiteUniqueID", site)
    made_at_us = int(element.operational.get(PRODUCED_AT_US, ("0",))[0])
    return CeView(unique_id, site, attributes, close, made_at_us)
