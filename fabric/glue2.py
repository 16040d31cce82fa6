"""GLUE 2.0 (OGF GFD.147) in its LDAP rendering: the records of `fabric.glue_model` as entries below `o=glue`.

Names are relative: services' to their group (`GLUE2GroupID=resource,...`), a site's to its AdminDomain. Values are what
the records say. What nobody measures or promises is left out, also where the EGI profile would have it: memory that is
guaranteed to a job, for instance, because nothing is guaranteed.

Units are GLUE 2.0's: times in seconds, memory in MB, storage in GB (1e9 bytes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from fabric.glue_model import (
    CLOSED,
    DOWNTIME,
    DRAINING,
    PRODUCTION,
    UNKNOWN,
    UNKNOWN_TIME,
    ComputingElement,
    Service,
    Site,
    StorageArea,
    StorageElement,
    SubCluster,
    estimated,
)
from fabric.ldap.dn import ROOT, Dn
from fabric.ldap.entry import Entry, make_entry

VALIDITY_S = 3600
"""How long an entity is to be trusted after its creation time; long before that it is made anew."""
NO_LIMIT = 999999999
"""GLUE 1.3's mark for a policy without a limit; left out in GLUE 2.0."""
GIGABYTE = 10**9

INDEXED_ATTRIBUTES = (
    "GLUE2DomainID", "GLUE2ServiceID", "GLUE2ServiceType", "GLUE2EndpointID", "GLUE2EndpointInterfaceName",
    "GLUE2ShareID", "GLUE2PolicyRule", "GLUE2PolicyUserDomainForeignKey", "GLUE2ManagerID", "GLUE2ResourceID",
    "GLUE2EndpointServiceForeignKey", "GLUE2ShareServiceForeignKey",
)  # fmt: skip
"""What clients of GLUE 2.0 ask for by equality."""

_SERVING = {PRODUCTION: "production", DRAINING: "draining", CLOSED: "closed"}
_HEALTH = {"OK": "ok", "Warning": "warning", "Critical": "critical", UNKNOWN: "unknown"}
_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "org.gridfabric.gatekeeper": (
        "executionmanagement.jobcreation", "executionmanagement.jobexecution", "executionmanagement.jobmanagement",
        "security.delegation",
    ),
    "org.gridfabric.storage": ("data.management.storage", "data.transfer"),
    "org.gridfabric.catalog": ("data.management.replica", "data.naming.resolver"),
    "org.gridfabric.transfer": ("data.transfer",),
    "org.gridfabric.broker": ("executionmanagement.executionandplanning", "executionmanagement.jobdescription"),
    "org.gridfabric.bookkeeping": ("information.logging", "information.lookup.job"),
    "org.gridfabric.authority": ("security.authentication",),
    "org.gridfabric.vo": ("security.attributeauthority",),
    "MyProxy": ("security.credentialstorage",),
    "bdii_site": ("information.discovery.resource", "information.model", "information.publication"),
    "bdii_region": ("information.discovery.resource", "information.model", "information.publication"),
    "bdii_top": ("information.discovery.resource", "information.model", "information.publication"),
}  # fmt: skip
_PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}
_INTERFACE_VERSIONS = {"bdii_site": "3", "bdii_region": "3", "bdii_top": "3", "MyProxy": "2"}
"""LDAP version 3, MYPROXYv2; our own protocols are in their first version."""
_OS_SUFFIX = re.compile(r"( GNU/Linux| Linux)\Z")
"""`Debian GNU/Linux` of os-release is `Debian` in GLUE."""
_FRACTION = re.compile(r"\.\d+(?=Z)")
"""Fractions of a second, which DateTime_t of GFD.147 does not have."""
_TAG = re.compile(r"\A(.*?)-?(\d[\w.]*)?\Z")

Value = str | int | float | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is said about the age of every entity of one rendering."""

    created_at: datetime
    validity_s: int = VALIDITY_S


@lru_cache(maxsize=64)
def _date_time(moment: datetime) -> str:
    """DateTime_t of GFD.147; one rendering has one for all its entities."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _entry(dn: Dn, classes: str, stamp: Stamp, attributes: Mapping[str, Value]) -> Entry:
    """An entity; what has no value is left out."""
    kept: dict[str, str | int | tuple[str, ...] | list[str]] = {"objectClass": ("GLUE2Entity", *classes.split())}
    for name, value in attributes.items():
        if value is not None and value not in ("", ()):
            kept["GLUE2" + name] = f"{value:g}" if isinstance(value, float) else value
    kept["GLUE2EntityCreationTime"] = _date_time(stamp.created_at)
    kept["GLUE2EntityValidity"] = stamp.validity_s
    return make_entry(dn, kept)


def group_entry(dn: Dn) -> Entry:
    """GLUE2Group: a place in the tree, named by the first part of its name."""
    return make_entry(dn, {"objectClass": "GLUE2Group", "GLUE2GroupID": dn.rdns[0][0][1]})


def domain_entries(dn: Dn, site: Site | None, state: str, stamp: Stamp) -> Iterator[Entry]:
    """AdminDomain, Location and Contact of a site. `state` is how its information server stands with it."""
    name = dn.rdns[0][0][1]
    known = site or Site(name)
    about: dict[str, Value] = {
        "DomainID": name,
        "EntityName": name,
        "DomainDescription": known.description,
        "DomainWWW": known.web,
        "AdminDomainDistributed": "false",
        "AdminDomainOwner": known.sponsors,
        "EntityOtherInfo": ("ProfileName=EGI", "ProfileVersion=1.0", f"GridFabricState={state}", *known.other_info),
    }
    yield _entry(dn, "GLUE2Domain GLUE2AdminDomain", stamp, about)
    if site is None:
        return
    place, _, country = site.location.rpartition(",")
    where: dict[str, Value] = {
        "LocationID": f"location.site.{name}",
        "LocationPlace": place.strip() or site.location,
        "LocationCountry": country.strip() if place else None,
        "LocationLatitude": site.latitude,
        "LocationLongitude": site.longitude,
        "LocationDomainForeignKey": name,
    }
    yield _entry(dn.child("GLUE2LocationID", f"location.site.{name}"), "GLUE2Location", stamp, where)
    if site.email:
        for kind in ("general", "security", "sysadmin", "usersupport"):
            identity = f"contact.{kind}.site.{name}"
            who: dict[str, Value] = {
                "ContactID": identity,
                "ContactDetail": f"mailto:{site.email}",
                "ContactType": kind,
                "ContactDomainForeignKey": name,
            }
            yield _entry(dn.child("GLUE2ContactID", identity), "GLUE2Contact", stamp, who)


def _policy(of: Dn, key: str, vos: tuple[str, ...], fqans: tuple[str, ...], stamp: Stamp) -> Entry:
    """Who may use what `of` names: VOs, and groups and roles of others. `key`: which kind of policy for what."""
    owner = of.rdns[0][0][1]
    domains = (*vos, *(fqan.strip("/").partition("/")[0] for fqan in fqans))
    rules = (*(f"VO:{vo}" for vo in vos), *(f"VOMS:{fqan}" for fqan in fqans))
    attributes: dict[str, Value] = {
        "PolicyID": f"{owner}_Policy",
        "PolicyScheme": "org.glite.standard",
        "PolicyRule": rules or ("ALL",),
        "PolicyUserDomainForeignKey": tuple(dict.fromkeys(filter(None, domains))),
        f"{key}ForeignKey": owner,
    }
    kind = "GLUE2AccessPolicy" if key.startswith("Access") else "GLUE2MappingPolicy"
    return _entry(of.child("GLUE2PolicyID", f"{owner}_Policy"), f"GLUE2Policy {kind}", stamp, attributes)


def _endpoint(
    below: Dn, owner: str, kind: str, service: Service, stamp: Stamp, more: Mapping[str, Value]
) -> Iterator[Entry]:
    """An Endpoint and who may use it. `kind` is what goes before `Endpoint` in the name of its class."""
    identity = f"{service.unique_id}_Endpoint"
    dn = below.child("GLUE2EndpointID", identity)
    start, end, why = (dict(service.data).get(key, "") for key in DOWNTIME)
    attributes: dict[str, Value] = {
        "EndpointID": identity,
        "EntityName": service.name,
        "EndpointURL": service.endpoint,
        "EndpointCapability": _CAPABILITIES.get(service.kind, ()),
        "EndpointInterfaceName": service.kind,
        "EndpointInterfaceVersion": _INTERFACE_VERSIONS.get(service.kind, "1.0"),
        "EndpointImplementor": "gridfabric",
        "EndpointImplementationName": "gridfabric",
        "EndpointImplementationVersion": service.version,
        "EndpointQualityLevel": "production",
        "EndpointHealthState": _HEALTH.get(service.status, "other"),
        "EndpointHealthStateInfo": service.status_info,
        "EndpointServingState": "closed" if service.status == UNKNOWN else "production",
        "EndpointStartTime": _FRACTION.sub("", service.started),
        "EndpointDowntimeStart": _FRACTION.sub("", start),
        "EndpointDowntimeEnd": _FRACTION.sub("", end),
        "EndpointDowntimeInfo": why,
        "EndpointServiceForeignKey": owner,
        **more,
    }
    yield _entry(dn, f"GLUE2Endpoint GLUE2{kind}Endpoint" if kind else "GLUE2Endpoint", stamp, attributes)
    yield _policy(dn, "AccessPolicyEndpoint", service.vos, service.fqans, stamp)


def _service_entry(
    identity: str, classes: str, kind: str, domain: str, stamp: Stamp, more: Mapping[str, Value]
) -> tuple[Dn, Entry]:
    dn = ROOT.child("GLUE2ServiceID", identity)
    attributes: dict[str, Value] = {
        "ServiceID": identity,
        "ServiceType": kind,
        "ServiceCapability": _CAPABILITIES.get(kind, ()),
        "ServiceQualityLevel": "production",
        "ServiceAdminDomainForeignKey": domain,
        **more,
    }
    return dn, _entry(dn, classes, stamp, attributes)


def _complexity(service: Service | None, shares: int, resources: int) -> str:
    return f"endpointType={int(service is not None)}, share={shares}, resource={resources}"


def service_entries(service: Service, domain: str, stamp: Stamp) -> Iterator[Entry]:
    """Service with one Endpoint and its AccessPolicy, and an Extension for each of its data."""
    more: dict[str, Value] = {"EntityName": service.name, "ServiceComplexity": _complexity(service, 0, 0)}
    dn, entry = _service_entry(service.unique_id, "GLUE2Service", service.kind, domain, stamp, more)
    yield entry
    for key, value in service.data:
        about: dict[str, str] = {
            "objectClass": "GLUE2Extension",
            "GLUE2ExtensionLocalID": key,
            "GLUE2ExtensionKey": key,
            "GLUE2ExtensionValue": value,
            "GLUE2ExtensionEntityForeignKey": service.unique_id,
        }
        yield make_entry(dn.child("GLUE2ExtensionLocalID", key), about)
    yield from _endpoint(dn, service.unique_id, "", service, stamp, {})


# -- computing


def computing_entries(
    name: str,
    clusters: Iterable[SubCluster],
    elements: Iterable[ComputingElement],
    service: Service | None,
    domain: str,
    stamp: Stamp,
) -> Iterator[Entry]:
    """ComputingService with endpoint, manager, environments, a share for each queue, and close storage."""
    clusters, elements = tuple(clusters), tuple(elements)
    identity = f"{name}_ComputingElement"
    running, waiting = sum(ce.running_jobs for ce in elements), sum(ce.waiting_jobs for ce in elements)
    more: dict[str, Value] = {
        "EntityName": service.name if service else name,
        "ServiceComplexity": _complexity(service, len(elements), len(clusters)),
        "ComputingServiceTotalJobs": running + waiting,
        "ComputingServiceRunningJobs": running,
        "ComputingServiceWaitingJobs": waiting,
    }
    kind = service.kind if service else "org.gridfabric.gatekeeper"
    dn, entry = _service_entry(identity, "GLUE2Service GLUE2ComputingService", kind, domain, stamp, more)
    yield entry
    if service is not None:
        jobs: dict[str, Value] = {
            "EndpointServingState": _serving([ce.status for ce in elements]),
            "EndpointImplementationVersion": elements[0].implementation_version if elements else service.version,
            "ComputingEndpointStaging": "staginginout",
            "ComputingEndpointTotalJobs": running + waiting,
            "ComputingEndpointRunningJobs": running,
            "ComputingEndpointWaitingJobs": waiting,
            "ComputingEndpointComputingServiceForeignKey": identity,
        }
        yield from _endpoint(dn, identity, "Computing", service, stamp, jobs)
    if elements:
        yield from _manager(dn, identity, clusters, elements, stamp)
        for ce in elements:
            yield from _computing_share(dn, identity, ce, clusters, stamp)
    for se in dict.fromkeys(se for ce in elements for se in ce.close_storage):
        link = f"{identity}_{se}"
        close: dict[str, Value] = {
            "ToStorageServiceID": link,
            "ToStorageServiceLocalPath": "n.a",
            "ToStorageServiceRemotePath": "n.a",
            "ToStorageServiceComputingServiceForeignKey": identity,
            "ToStorageServiceStorageServiceForeignKey": storage_service_id(se),
        }
        yield _entry(dn.child("GLUE2ToStorageServiceID", link), "GLUE2ToStorageService", stamp, close)


def _serving(statuses: list[str]) -> str:
    """The best of the queues': a service is in production while one of its queues is."""
    words = {_SERVING.get(status, "closed") for status in statuses}
    return next((word for word in ("production", "draining") if word in words), "closed")


def _manager(
    service: Dn, owner: str, clusters: tuple[SubCluster, ...], elements: tuple[ComputingElement, ...], stamp: Stamp
) -> Iterator[Entry]:
    identity = f"{owner}_Manager"
    dn = service.child("GLUE2ManagerID", identity)
    most: dict[str, int] = {}
    for ce in elements:  # the queues of a cluster share its slots
        most[ce.cluster] = max(most.get(ce.cluster, 0), ce.total_cpus)
    slots = sum(most.values())
    attributes: dict[str, Value] = {
        "ManagerID": identity,
        "ManagerProductName": elements[0].lrms,
        "ManagerProductVersion": elements[0].lrms_version,
        "ManagerServiceForeignKey": owner,
        "ComputingManagerTotalPhysicalCPUs": sum(cluster.physical_cpus for cluster in clusters),
        "ComputingManagerTotalLogicalCPUs": sum(cluster.logical_cpus for cluster in clusters),
        "ComputingManagerTotalSlots": slots,
        "ComputingManagerSlotsUsedByGridJobs": min(slots, sum(ce.running_jobs for ce in elements)),
        "ComputingManagerSlotsUsedByLocalJobs": 0,
        "ComputingManagerTmpDir": clusters[0].tmp_dir if clusters else None,
        "ComputingManagerComputingServiceForeignKey": owner,
    }
    yield _entry(dn, "GLUE2Manager GLUE2ComputingManager", stamp, attributes)
    for cluster in clusters:
        yield from _environment(dn, identity, cluster, stamp)


def _environment(manager: Dn, owner: str, cluster: SubCluster, stamp: Stamp) -> Iterator[Entry]:
    identity = f"{cluster.cluster}_ExecutionEnvironment"
    dn = manager.child("GLUE2ResourceID", identity)
    per_host = max(1, cluster.cpus_per_host)
    attributes: dict[str, Value] = {
        "ResourceID": identity,
        "ResourceManagerForeignKey": owner,
        "ExecutionEnvironmentPlatform": _PLATFORMS.get(cluster.platform, cluster.platform),
        "ExecutionEnvironmentTotalInstances": -(-cluster.logical_cpus // per_host),
        "ExecutionEnvironmentPhysicalCPUs": per_host,
        "ExecutionEnvironmentLogicalCPUs": per_host,
        "ExecutionEnvironmentCPUMultiplicity": "singlecpu-multicore" if per_host > 1 else "singlecpu-singlecore",
        "ExecutionEnvironmentCPUVendor": cluster.processor_vendor,
        "ExecutionEnvironmentCPUModel": cluster.processor_model,
        "ExecutionEnvironmentCPUClockSpeed": cluster.clock_mhz or None,
        "ExecutionEnvironmentCPUTimeScalingFactor": 1,
        "ExecutionEnvironmentWallTimeScalingFactor": 1,
        "ExecutionEnvironmentMainMemorySize": cluster.ram_mb,
        "ExecutionEnvironmentVirtualMemorySize": cluster.virtual_mb,
        "ExecutionEnvironmentOSFamily": "linux",
        "ExecutionEnvironmentOSName": _OS_SUFFIX.sub("", cluster.operating_system),
        "ExecutionEnvironmentOSVersion": cluster.operating_system_version or cluster.operating_system_release,
        "ExecutionEnvironmentConnectivityIn": "true" if cluster.inbound_network else "false",
        "ExecutionEnvironmentConnectivityOut": "true" if cluster.outbound_network else "false",
        "ExecutionEnvironmentComputingManagerForeignKey": owner,
    }
    yield _entry(dn, "GLUE2Resource GLUE2ExecutionEnvironment", stamp, attributes)
    for kind, value in (("specint2000", cluster.si00), ("specfp2000", cluster.sf00)):
        if value:
            measured: dict[str, Value] = {
                "BenchmarkID": f"{identity}_{kind}",
                "BenchmarkType": kind,
                "BenchmarkValue": value,
                "BenchmarkExecutionEnvironmentForeignKey": identity,
            }
            yield _entry(dn.child("GLUE2BenchmarkID", f"{identity}_{kind}"), "GLUE2Benchmark", stamp, measured)
    for tag in cluster.software:
        found = _TAG.match(tag)
        software: dict[str, Value] = {
            "ApplicationEnvironmentID": f"{identity}_{tag}",
            "ApplicationEnvironmentAppName": found[1] if found and found[1] else tag,
            "ApplicationEnvironmentAppVersion": found[2] if found else None,
            "EntityName": tag,
            "ApplicationEnvironmentComputingManagerForeignKey": owner,
            "ApplicationEnvironmentExecutionEnvironmentForeignKey": identity,
        }
        below = manager.child("GLUE2ApplicationEnvironmentID", f"{identity}_{tag}")
        yield _entry(below, "GLUE2ApplicationEnvironment", stamp, software)


def _limit(value: int, unit: int = 1) -> int | None:
    return None if value >= NO_LIMIT else value * unit


def _seconds(value: int) -> int | None:
    return None if value == UNKNOWN_TIME else value


def _computing_share(
    service: Dn, owner: str, ce: ComputingElement, clusters: tuple[SubCluster, ...], stamp: Stamp
) -> Iterator[Entry]:
    identity = f"{ce.unique_id}_Share"
    dn = service.child("GLUE2ShareID", identity)
    ram_mb = min((cluster.ram_mb for cluster in clusters), default=None)
    virtual_mb = min((cluster.virtual_mb for cluster in clusters), default=None)
    wall_s, cpu_s = _limit(ce.max_wall_minutes, 60), _limit(ce.max_cpu_minutes, 60)
    average_s, worst_s = _seconds(ce.estimated_response_s), _seconds(ce.worst_response_s)
    attributes: dict[str, Value] = {
        "ShareID": identity,
        "ShareDescription": f"queue {ce.queue}",
        "ShareServiceForeignKey": owner,
        "ShareResourceForeignKey": tuple(f"{cluster.cluster}_ExecutionEnvironment" for cluster in clusters),
        "ComputingShareMappingQueue": ce.queue,
        "ComputingShareMinWallTime": 0,
        "ComputingShareMaxWallTime": wall_s,
        "ComputingShareMaxMultiSlotWallTime": wall_s,
        "ComputingShareDefaultWallTime": wall_s,
        "ComputingShareMinCPUTime": 0,
        "ComputingShareMaxCPUTime": cpu_s,
        "ComputingShareMaxTotalCPUTime": cpu_s,
        "ComputingShareDefaultCPUTime": cpu_s,
        "ComputingShareMaxTotalJobs": _limit(ce.max_total_jobs),
        "ComputingShareMaxRunningJobs": _limit(ce.max_running_jobs),
        "ComputingShareMaxUserRunningJobs": _limit(ce.max_running_jobs),
        "ComputingShareMaxWaitingJobs": _limit(ce.max_waiting_jobs),
        "ComputingShareMaxSlotsPerJob": 1,
        "ComputingShareMaxMainMemory": ram_mb,
        "ComputingShareMaxVirtualMemory": virtual_mb,
        "ComputingShareDefaultStorageService": storage_service_id(ce.default_storage) if ce.default_storage else None,
        "ComputingShareServingState": _serving([ce.status]),
        "ComputingShareTotalJobs": ce.running_jobs + ce.waiting_jobs,
        "ComputingShareRunningJobs": ce.running_jobs,
        "ComputingShareWaitingJobs": ce.waiting_jobs,
        "ComputingShareEstimatedAverageWaitingTime": average_s,
        "ComputingShareEstimatedWorstWaitingTime": worst_s,
        "ComputingShareFreeSlots": ce.free_slots,
        "ComputingShareUsedSlots": ce.running_jobs,
        "ComputingShareRequestedSlots": ce.waiting_jobs,
        "ComputingShareComputingServiceForeignKey": owner,
        "EntityOtherInfo": (
            f"GlueCEUniqueID={ce.unique_id}",
            *estimated(
                GLUE2ComputingShareEstimatedAverageWaitingTime=average_s is not None,
                GLUE2ComputingShareEstimatedWorstWaitingTime=worst_s is not None,
            ),
        ),
    }
    yield _entry(dn, "GLUE2Share GLUE2ComputingShare", stamp, attributes)
    yield _policy(dn, "MappingPolicyShare", ce.vos, ce.fqans, stamp)


# -- storage


def storage_service_id(storage_element: str) -> str:
    """The GLUE2ServiceID of a GlueSEUniqueID."""
    return f"{storage_element}_StorageElement"


def storage_entries(se: StorageElement, service: Service | None, domain: str, stamp: Stamp) -> Iterator[Entry]:
    """StorageService with endpoint, capacity, protocols, manager, data store, and a share for each area."""
    identity = storage_service_id(se.unique_id)
    kind = service.kind if service else "org.gridfabric.storage"
    more: dict[str, Value] = {
        "EntityName": se.name,
        "ServiceComplexity": _complexity(service, len(se.areas), 1),
    }
    dn, entry = _service_entry(identity, "GLUE2Service GLUE2StorageService", kind, domain, stamp, more)
    yield entry
    serving = _serving([se.status])
    if service is not None:
        state: dict[str, Value] = {
            "EndpointServingState": serving,
            "StorageEndpointStorageServiceForeignKey": identity,
        }
        yield from _endpoint(dn, identity, "Storage", service, stamp, state)
    total, used = se.size_bytes
    yield _capacity(dn, "StorageServiceCapacity", identity, "StorageService", total, used, stamp)
    tape_total, tape_used = se.nearline_bytes
    if tape_total:
        yield _capacity(
            dn, "StorageServiceCapacity", identity, "StorageService", tape_total, tape_used, stamp, "nearline"
        )
    for protocol in se.protocols:
        spoken_id = f"{identity}_{protocol.kind}"
        spoken: dict[str, Value] = {
            "StorageAccessProtocolID": spoken_id,
            "StorageAccessProtocolType": protocol.kind,
            "StorageAccessProtocolVersion": protocol.version,
            "StorageAccessProtocolStorageServiceForeignKey": identity,
        }
        below = dn.child("GLUE2StorageAccessProtocolID", spoken_id)
        yield _entry(below, "GLUE2StorageAccessProtocol", stamp, spoken)
    manager_id = f"{identity}_Manager"
    manager: dict[str, Value] = {
        "ManagerID": manager_id,
        "ManagerProductName": se.implementation,
        "ManagerProductVersion": se.implementation_version,
        "ManagerServiceForeignKey": identity,
        "StorageManagerStorageServiceForeignKey": identity,
    }
    below = dn.child("GLUE2ManagerID", manager_id)
    yield _entry(below, "GLUE2Manager GLUE2StorageManager", stamp, manager)
    store_id = f"{identity}_DataStore"
    store: dict[str, Value] = {
        "ResourceID": store_id,
        "ResourceManagerForeignKey": manager_id,
        "DataStoreType": "disk",
        "DataStoreLatency": "online",
        "DataStoreTotalSize": total // GIGABYTE,
        "DataStoreUsedSize": used // GIGABYTE,
        "DataStoreFreeSize": (total - used) // GIGABYTE,
        "DataStoreStorageManagerForeignKey": manager_id,
    }
    yield _entry(below.child("GLUE2ResourceID", store_id), "GLUE2Resource GLUE2DataStore", stamp, store)
    if tape_total:
        tapes_id = f"{identity}_TapeStore"
        tapes: dict[str, Value] = {
            **store,
            "ResourceID": tapes_id,
            "DataStoreType": "tape",
            "DataStoreLatency": "nearline",
            "DataStoreTotalSize": tape_total // GIGABYTE,
            "DataStoreUsedSize": tape_used // GIGABYTE,
            "DataStoreFreeSize": (tape_total - tape_used) // GIGABYTE,
        }
        yield _entry(below.child("GLUE2ResourceID", tapes_id), "GLUE2Resource GLUE2DataStore", stamp, tapes)
    is_common = sum(area.total_bytes for area in se.areas) > total
    for area in se.areas:
        yield from _storage_share(dn, identity, area, serving, store_id, is_common, stamp)


def _storage_share(
    service: Dn, owner: str, area: StorageArea, serving: str, store: str, is_common: bool, stamp: Stamp
) -> Iterator[Entry]:
    identity = f"{area.local_id}_{owner}"
    dn = service.child("GLUE2ShareID", identity)
    attributes: dict[str, Value] = {
        "ShareID": identity,
        "ShareDescription": f"space of {', '.join(area.vos)}" if area.vos else "space of everybody",
        "ShareServiceForeignKey": owner,
        "ShareResourceForeignKey": (store,),
        "StorageShareServingState": serving,
        "StorageSharePath": area.path,
        "StorageShareSharingID": store if is_common else "dedicated",
        "StorageShareAccessLatency": area.latency,
        "StorageShareRetentionPolicy": area.retention,
        "StorageShareExpirationMode": "neverexpire",
        "StorageShareStorageServiceForeignKey": owner,
    }
    yield _entry(dn, "GLUE2Share GLUE2StorageShare", stamp, attributes)
    yield _policy(dn, "MappingPolicyShare", area.vos, (), stamp)
    yield _capacity(dn, "StorageShareCapacity", identity, "StorageShare", area.total_bytes, area.used_bytes, stamp)
    if area.nearline_total_bytes:
        yield _capacity(
            dn, "StorageShareCapacity", identity, "StorageShare", area.nearline_total_bytes, area.nearline_used_bytes,
            stamp, "nearline",
        )  # fmt: skip


def _capacity(
    below: Dn, kind: str, owner: str, owner_kind: str, total: int, used: int, stamp: Stamp, medium: str = "online"
) -> Entry:
    """Sizes are rounded down one by one but for the total, so that they add up."""
    identity = f"{owner}_Capacity" if medium == "online" else f"{owner}_{medium}_Capacity"
    used_gb, free_gb = used // GIGABYTE, max(0, total - used) // GIGABYTE
    attributes: dict[str, Value] = {
        f"{kind}ID": identity,
        f"{kind}Type": medium,
        f"{kind}TotalSize": used_gb + free_gb,
        f"{kind}UsedSize": used_gb,
        f"{kind}FreeSize": free_gb,
        f"{kind}ReservedSize": 0,
        f"{kind}{owner_kind}ForeignKey": owner,
    }
    return _entry(below.child(f"GLUE2{kind}ID", identity), f"GLUE2{kind}", stamp, attributes)
