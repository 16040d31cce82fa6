"""GLUE 1.3 entries of one site, read back as the records that were rendered: see `fabric.glue_model`.

Records that belong together (a cluster with its computing elements and their service) are put together here, because
GLUE 2.0 shows them as one service. What is missing stays at the model's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fabric.glue13 import owner_of, typed_value
from fabric.glue_model import (
    DOWNTIME,
    AccessProtocol,
    ComputingElement,
    Service,
    Site,
    StorageArea,
    StorageElement,
    SubCluster,
)
from fabric.ldap.dn import Dn
from fabric.ldap.entry import Entry


@dataclass(slots=True)
class Unit:
    """The entries of what GLUE 2.0 shows as one thing: a site, a computing, a storage or any other service."""

    kind: str
    """`site`, `computing`, `storage` or `service`."""
    name: str
    entries: list[Entry] = field(default_factory=list[Entry])

    def of_class(self, name: str) -> Iterable[Entry]:
        """Its entries of one object class."""
        return (entry for entry in self.entries if name in (entry.get("objectclass") or ()))

    @property
    def service(self) -> Service | None:
        """The service behind a computing or storage element, or the service itself."""
        data = tuple(
            (entry.first("GlueServiceDataKey"), entry.first("GlueServiceDataValue"))
            for entry in self.of_class("GlueServiceData")
        )
        return next((_service(entry, data) for entry in self.of_class("GlueService")), None)

    @property
    def site(self) -> Site | None:
        """The site of a unit of kind `site`."""
        return next((_site(entry) for entry in self.of_class("GlueSite")), None)

    @property
    def clusters(self) -> list[SubCluster]:
        """The hosts of a computing service."""
        return [_cluster(entry) for entry in self.of_class("GlueSubCluster")]

    @property
    def computing_elements(self) -> list[ComputingElement]:
        """The queues of a computing service."""
        close = {
            entry.first("GlueCESEBindGroupCEUniqueID"): entry.attributes.get("GlueCESEBindGroupSEUniqueID", ())
            for entry in self.of_class("GlueCESEBindGroup")
        }
        return [_computing_element(entry, close) for entry in self.of_class("GlueCE")]

    @property
    def storage_elements(self) -> list[StorageElement]:
        """The one storage element of a storage service, or none."""
        areas = tuple(_area(entry) for entry in self.of_class("GlueSA"))
        protocols = tuple(_protocol(entry) for entry in self.of_class("GlueSEAccessProtocol"))
        return [_storage_element(entry, areas, protocols) for entry in self.of_class("GlueSE")]


def units(entries: Iterable[Entry], depth: int) -> list[Unit]:
    """Sort a site's entries into units; `depth` is the length of the name that all of them lie below.

    Entries that are no GLUE 1.3 are in none, nor what computing and storage services say in their own data, but for
    downtime.
    """
    found: dict[tuple[str, str], Unit] = {}
    services: list[Entry] = []
    owners: dict[str, Unit] = {}
    """Of services, by name."""
    binds: list[Entry] = []
    data: list[Entry] = []
    clusters: dict[str, str] = {}
    """GlueCEUniqueID to its cluster."""
    doors: dict[str, Unit] = {}
    """`host:port` to the element that answers there."""

    def unit(kind: str, name: str) -> Unit:
        return found.setdefault((kind, name), Unit(kind, name))

    for entry in entries:
        name, value = _topmost(entry.dn, depth)
        match name:
            case "gluesiteuniqueid":
                unit("site", value).entries.append(entry)
            case "glueclusteruniqueid":
                unit("computing", value).entries.append(entry)
            case "glueceuniqueid":
                cluster = owner_of(entry, "GlueClusterUniqueID") or entry.first("GlueCEHostingCluster")
                owner = unit("computing", cluster)
                owner.entries.append(entry)
                clusters[value] = cluster
                doors[f"{entry.first('GlueCEInfoHostName')}:{entry.first('GlueCEInfoGatekeeperPort')}"] = owner
            case "gluecesebindgroupceuniqueid":
                binds.append(entry)
            case "glueseuniqueid":
                owner = unit("storage", value)
                owner.entries.append(entry)
                if entry.first("GlueSEAccessProtocolEndpoint"):
                    doors[_address(entry.first("GlueSEAccessProtocolEndpoint"))] = owner
            case "glueserviceuniqueid":
                (services if len(entry.dn) == depth + 1 else data).append(entry)
            case _:
                continue
    for entry in binds:
        _, element = _topmost(entry.dn, depth)
        if element in clusters:
            found[("computing", clusters[element])].entries.append(entry)
    for entry in services:
        door = doors.get(_address(entry.first("GlueServiceEndpoint")))
        name = entry.first("GlueServiceUniqueID")
        owners[name] = door or unit("service", name)
        owners[name].entries.append(entry)
    for entry in data:
        own = owners.get(_topmost(entry.dn, depth)[1])
        if own is not None and (own.kind == "service" or entry.first("GlueServiceDataKey") in DOWNTIME):
            own.entries.append(entry)
    return list(found.values())


def _topmost(dn: Dn, depth: int) -> tuple[str, str]:
    if len(dn) <= depth:
        return "", ""
    name, value = dn.rdns[len(dn) - depth - 1][0]
    return name.lower(), value


def _address(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _number(entry: Entry, name: str, default: int = 0) -> int:
    value = typed_value(name, entry.attributes.get(name, ()))
    return value if isinstance(value, int) else default


def _real(entry: Entry, name: str) -> float | None:
    value = typed_value(name, entry.attributes.get(name, ()))
    return value if isinstance(value, float) else None


def _rules(entry: Entry, name: str, kind: str = "VO:") -> tuple[str, ...]:
    return tuple(rule.removeprefix(kind) for rule in entry.attributes.get(name, ()) if rule.startswith(kind))


def _site(entry: Entry) -> Site:
    return Site(
        name=entry.first("GlueSiteUniqueID"),
        description=entry.first("GlueSiteDescription"),
        email=entry.first("GlueSiteEmailContact").removeprefix("mailto:"),
        location=entry.first("GlueSiteLocation"),
        latitude=_real(entry, "GlueSiteLatitude"),
        longitude=_real(entry, "GlueSiteLongitude"),
        web=entry.first("GlueSiteWeb"),
        sponsors=entry.attributes.get("GlueSiteSponsor", ()),
        other_info=entry.attributes.get("GlueSiteOtherInfo", ()),
    )


def _cluster(entry: Entry) -> SubCluster:
    return SubCluster(
        cluster=owner_of(entry, "GlueClusterUniqueID"),
        site="",
        logical_cpus=_number(entry, "GlueSubClusterLogicalCPUs"),
        physical_cpus=_number(entry, "GlueSubClusterPhysicalCPUs"),
        ram_mb=_number(entry, "GlueHostMainMemoryRAMSize"),
        virtual_mb=_number(entry, "GlueHostMainMemoryVirtualSize"),
        operating_system=entry.first("GlueHostOperatingSystemName"),
        operating_system_release=entry.first("GlueHostOperatingSystemRelease"),
        operating_system_version=entry.first("GlueHostOperatingSystemVersion"),
        platform=entry.first("GlueHostArchitecturePlatformType"),
        cpus_per_host=_number(entry, "GlueHostArchitectureSMPSize", 1),
        processor_model=entry.first("GlueHostProcessorModel"),
        processor_vendor=entry.first("GlueHostProcessorVendor"),
        clock_mhz=_number(entry, "GlueHostProcessorClockSpeed"),
        si00=_number(entry, "GlueHostBenchmarkSI00"),
        sf00=_number(entry, "GlueHostBenchmarkSF00"),
        inbound_network=entry.first("GlueHostNetworkAdapterInboundIP") == "TRUE",
        outbound_network=entry.first("GlueHostNetworkAdapterOutboundIP") == "TRUE",
        software=entry.attributes.get("GlueHostApplicationSoftwareRunTimeEnvironment", ()),
        tmp_dir=entry.first("GlueSubClusterWNTmpDir"),
    )


def _computing_element(entry: Entry, close: dict[str, tuple[str, ...]]) -> ComputingElement:
    unique_id = entry.first("GlueCEUniqueID")
    return ComputingElement(
        unique_id=unique_id,
        cluster=entry.first("GlueCEHostingCluster"),
        host=entry.first("GlueCEInfoHostName"),
        port=_number(entry, "GlueCEInfoGatekeeperPort"),
        queue=entry.first("GlueCEName"),
        lrms=entry.first("GlueCEInfoLRMSType"),
        lrms_version=entry.first("GlueCEInfoLRMSVersion"),
        implementation=entry.first("GlueCEImplementationName"),
        implementation_version=entry.first("GlueCEImplementationVersion"),
        total_cpus=_number(entry, "GlueCEInfoTotalCPUs"),
        status=entry.first("GlueCEStateStatus"),
        free_slots=_number(entry, "GlueCEStateFreeJobSlots"),
        running_jobs=_number(entry, "GlueCEStateRunningJobs"),
        waiting_jobs=_number(entry, "GlueCEStateWaitingJobs"),
        estimated_response_s=_number(entry, "GlueCEStateEstimatedResponseTime"),
        worst_response_s=_number(entry, "GlueCEStateWorstResponseTime"),
        max_wall_minutes=_number(entry, "GlueCEPolicyMaxWallClockTime"),
        max_cpu_minutes=_number(entry, "GlueCEPolicyMaxCPUTime"),
        max_running_jobs=_number(entry, "GlueCEPolicyMaxRunningJobs"),
        max_total_jobs=_number(entry, "GlueCEPolicyMaxTotalJobs"),
        max_waiting_jobs=_number(entry, "GlueCEPolicyMaxWaitingJobs"),
        assigned_slots=_number(entry, "GlueCEPolicyAssignedJobSlots"),
        priority=_number(entry, "GlueCEPolicyPriority"),
        vos=_rules(entry, "GlueCEAccessControlBaseRule"),
        fqans=_rules(entry, "GlueCEAccessControlBaseRule", "VOMS:"),
        default_storage=entry.first("GlueCEInfoDefaultSE"),
        close_storage=close.get(unique_id, ()),
        application_dir=entry.first("GlueCEInfoApplicationDir"),
        data_dir=entry.first("GlueCEInfoDataDir"),
        contact=entry.first("GlueCEInfoContactString"),
    )


def _storage_element(
    entry: Entry, areas: tuple[StorageArea, ...], protocols: tuple[AccessProtocol, ...]
) -> StorageElement:
    return StorageElement(
        unique_id=entry.first("GlueSEUniqueID"),
        site=owner_of(entry, "GlueSiteUniqueID"),
        name=entry.first("GlueSEName"),
        port=_number(entry, "GlueSEPort"),
        status=entry.first("GlueSEStatus"),
        architecture=entry.first("GlueSEArchitecture"),
        implementation=entry.first("GlueSEImplementationName"),
        implementation_version=entry.first("GlueSEImplementationVersion"),
        areas=areas,
        protocols=protocols,
        total_bytes=_number(entry, "GlueSETotalOnlineSize") * 10**9,
    )


def _area(entry: Entry) -> StorageArea:
    return StorageArea(
        local_id=entry.first("GlueSALocalID"),
        path=entry.first("GlueSAPath"),
        vos=_rules(entry, "GlueSAAccessControlBaseRule"),
        total_bytes=_number(entry, "GlueSATotalOnlineSize") * 10**9,
        used_bytes=_number(entry, "GlueSAUsedOnlineSize") * 10**9,
        retention=entry.first("GlueSARetentionPolicy"),
        latency=entry.first("GlueSAAccessLatency"),
        nearline_total_bytes=_number(entry, "GlueSATotalNearlineSize") * 10**9,
        nearline_used_bytes=_number(entry, "GlueSAUsedNearlineSize") * 10**9,
    )


def _protocol(entry: Entry) -> AccessProtocol:
    return AccessProtocol(
        kind=entry.first("GlueSEAccessProtocolType"),
        endpoint=entry.first("GlueSEAccessProtocolEndpoint"),
        port=_number(entry, "GlueSEAccessProtocolPort"),
        version=entry.first("GlueSEAccessProtocolVersion"),
    )


def _service(entry: Entry, data: tuple[tuple[str, str], ...]) -> Service:
    return Service(
        unique_id=entry.first("GlueServiceUniqueID"),
        kind=entry.first("GlueServiceType"),
        endpoint=entry.first("GlueServiceEndpoint"),
        site=owner_of(entry, "GlueSiteUniqueID"),
        name=entry.first("GlueServiceName"),
        version=entry.first("GlueServiceVersion"),
        status=entry.first("GlueServiceStatus"),
        status_info=entry.first("GlueServiceStatusInfo"),
        vos=_rules(entry, "GlueServiceAccessControlBaseRule"),
        fqans=_rules(entry, "GlueServiceAccessControlBaseRule", "VOMS:"),
        started=entry.first("GlueServiceStartTime"),
        data=data,
    )
