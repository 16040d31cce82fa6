"""What agents know and measure, in the words of GLUE, apart from any rendering.

`fabric.glue13` renders these records as GLUE 1.3 entries, which is how they travel; `fabric.glue_reader` makes the
records out of such entries again, and `fabric.glue2` renders them as GLUE 2.0.

Units are GLUE 1.3's: times in seconds in states and in minutes in policies, memory in MB. Unknown numbers are the
schema's own marks, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.version import VERSION

UNKNOWN_JOBS = 444444
"""GLUE's mark for a number of jobs that is not known."""
UNKNOWN_TIME = 2146660842
"""GLUE's mark for a response time that is not known."""
PRODUCTION, DRAINING, QUEUEING, CLOSED, UNKNOWN = "Production", "Draining", "Queueing", "Closed", "Unknown"
"""GlueCEStateStatus and GlueSEStatus. `Unknown` is set by an information server that lost the producer."""


@dataclass(frozen=True, slots=True)
class Site:
    """GlueSite."""

    name: str
    description: str = ""
    email: str = ""
    location: str = ""
    latitude: float | None = None
    longitude: float | None = None
    web: str = ""
    sponsors: tuple[str, ...] = ()
    other_info: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubCluster:
    """GlueCluster with one GlueSubCluster of equal hosts behind a computing element."""

    cluster: str
    """GlueClusterUniqueID: the host name of the head."""
    site: str
    computing_elements: tuple[str, ...] = ()
    logical_cpus: int = 0
    physical_cpus: int = 0
    ram_mb: int = 0
    virtual_mb: int = 0
    operating_system: str = ""
    operating_system_release: str = ""
    operating_system_version: str = ""
    platform: str = "x86_64"
    cpus_per_host: int = 1
    processor_model: str = ""
    processor_vendor: str = ""
    clock_mhz: int = 0
    si00: int = 0
    sf00: int = 0
    inbound_network: bool = False
    outbound_network: bool = True
    software: tuple[str, ...] = ()
    """GlueHostApplicationSoftwareRunTimeEnvironment tags."""
    tmp_dir: str = "/tmp"


@dataclass(frozen=True, slots=True)
class ComputingElement:
    """GlueCE: one queue of a gatekeeper."""

    unique_id: str
    """`<host>:<port>/jobmanager-<lrms>-<queue>`."""
    cluster: str
    host: str
    port: int
    queue: str = "grid"
    lrms: str = "fork"
    lrms_version: str = VERSION
    implementation: str = "gridfabric"
    implementation_version: str = VERSION
    total_cpus: int = 0
    status: str = PRODUCTION
    free_slots: int = 0
    running_jobs: int = 0
    waiting_jobs: int = 0
    estimated_response_s: int = UNKNOWN_TIME
    worst_response_s: int = UNKNOWN_TIME
    max_wall_minutes: int = 999999999
    max_cpu_minutes: int = 999999999
    max_running_jobs: int = 999999999
    max_total_jobs: int = 999999999
    max_waiting_jobs: int = 999999999
    assigned_slots: int = 0
    priority: int = 1
    vos: tuple[str, ...] = ()
    """Whose members are all let in."""
    fqans: tuple[str, ...] = ()
    """Groups and roles of other VOs that are let in."""
    default_storage: str = ""
    close_storage: tuple[str, ...] = ()
    """GlueSEUniqueIDs of the storage elements close to this one."""
    application_dir: str = ""
    data_dir: str = "unset"
    contact: str = ""


@dataclass(frozen=True, slots=True)
class StorageArea:
    """GlueSA: the space of one VO or of all."""

    local_id: str
    path: str
    vos: tuple[str, ...] = ()
    total_bytes: int = 0
    used_bytes: int = 0
    retention: str = "replica"
    latency: str = "online"
    nearline_total_bytes: int = 0
    nearline_used_bytes: int = 0
    """On tape; both 0 where there is none."""


@dataclass(frozen=True, slots=True)
class AccessProtocol:
    """GlueSEAccessProtocol."""

    kind: str
    """`gsiftp`, `https`, `grpc`..."""
    endpoint: str
    port: int
    version: str = "1.0"


@dataclass(frozen=True, slots=True)
class StorageElement:
    """GlueSE with its areas and protocols."""

    unique_id: str
    """The host name, or host:port where a host has several."""
    site: str
    name: str = ""
    port: int = 0
    status: str = PRODUCTION
    architecture: str = "disk"
    implementation: str = "gridfabric"
    implementation_version: str = VERSION
    areas: tuple[StorageArea, ...] = ()
    protocols: tuple[AccessProtocol, ...] = ()
    total_bytes: int | None = None
    """What there is in all, where the areas share it; None: the areas' sum."""

    @property
    def size_bytes(self) -> tuple[int, int]:
        """All there is, and what of it is used."""
        used = sum(area.used_bytes for area in self.areas)
        total = self.total_bytes if self.total_bytes is not None else sum(area.total_bytes for area in self.areas)
        return total, min(used, total)

    @property
    def nearline_bytes(self) -> tuple[int, int]:
        """What the tapes hold when full, which areas share, and what of it is used."""
        total = max((area.nearline_total_bytes for area in self.areas), default=0)
        return total, min(sum(area.nearline_used_bytes for area in self.areas), total)


DOWNTIME = ("downtime_start", "downtime_end", "downtime_info")
"""Keys of GlueServiceData. Times are ISO 8601; without an end it is not known."""


@dataclass(frozen=True, slots=True)
class Service:
    """GlueService."""

    unique_id: str
    kind: str
    """GlueServiceType, for instance `org.gridfabric.broker`."""
    endpoint: str
    site: str
    name: str = ""
    version: str = VERSION
    status: str = "OK"
    status_info: str = ""
    vos: tuple[str, ...] = ()
    """Whose members are all let in."""
    fqans: tuple[str, ...] = ()
    """Groups and roles of other VOs that are let in."""
    started: str = ""
    """ISO 8601."""
    data: tuple[tuple[str, str], ...] = ()
    """GlueServiceData: key and value. Those of DOWNTIME say when it is not in service, and why."""


def estimated(**attributes: bool) -> tuple[str, ...]:
    """`Estimated=attribute,...` of those whose values here are no measurements: for GlueCECapability, which holds such
    pairs, and for EntityOtherInfo of GLUE 2.0 (GFD.147: names and values that fit into no other attribute)."""
    names = ",".join(name for name, is_estimate in attributes.items() if is_estimate)
    return (f"Estimated={names}",) if names else ()
