"""What a GLUE 2.0 tree must be like: the rules of EGI's glue-validator at its level `egi-profile`, said anew.

Codes are glue-validator's, so that operators find what they know. The differences, and why:

* open lists (types of services, names of interfaces, URL schemes, names of operating systems) are open: GFD.147 lets
  everybody add to them by a name of the own, as `org.gridfabric.*` do; the validator knows those of EGI;
* memory that is guaranteed to a job (`GLUE2ComputingShareGuaranteed...Memory`) is not asked for: a grid that
  guarantees none must not say a number;
* small grids are no mistake: its notes on fewer than ten CPUs or less than a terabyte are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fabric.glue_schema import GLUE_SCHEMA
from fabric.ldap.entry import Entry

UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
PLACEHOLDERS = frozenset(("444444", "999999999", "2146660842", "4294967295"))
"""Marks of GLUE 1.3 and of integer types for «not known», which are no numbers in GLUE 2.0."""
CLOCK_SKEW = timedelta(seconds=120)
OLD = timedelta(days=730)

_DATE = re.compile(r"\A\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ\Z")
_URL = re.compile(r"\A[a-z][a-z0-9+.-]*://[^\s/]+(/\S*)?\Z")

_MANDATORY: Mapping[str, tuple[str, ...]] = {
    "GLUE2Endpoint": ("ImplementationName", "ImplementationVersion"),
    "GLUE2Manager": ("ProductVersion",),
    "GLUE2ComputingManager": ("TotalPhysicalCPUs", "TotalLogicalCPUs"),
    "GLUE2ComputingShare": (
        "DefaultWallTime", "DefaultCPUTime", "MaxSlotsPerJob", "MaxMainMemory", "MaxVirtualMemory",
        "EstimatedAverageWaitingTime", "EstimatedWorstWaitingTime", "FreeSlots", "UsedSlots",
    ),
    "GLUE2ExecutionEnvironment": (
        "CPUTimeScalingFactor", "WallTimeScalingFactor", "VirtualMemorySize", "OSName", "OSVersion",
    ),
}  # fmt: skip
"""What the EGI profile asks for beyond the schema's own MUST."""

_RECOMMENDED: Mapping[str, tuple[str, ...]] = {
    "GLUE2Location": ("Country", "Latitude", "Longitude"),
    "GLUE2Service": ("Capability",),
    "GLUE2Endpoint": ("Capability", "InterfaceVersion", "IssuerCA"),
    "GLUE2ComputingShare": (
        "MappingQueue", "MaxWallTime", "MaxCPUTime", "MaxRunningJobs", "MaxWaitingJobs", "TotalJobs", "RunningJobs",
        "WaitingJobs",
    ),
    "GLUE2ComputingManager": ("TotalSlots", "SlotsUsedByGridJobs"),
    "GLUE2ComputingService": ("TotalJobs", "RunningJobs", "WaitingJobs"),
    "GLUE2ExecutionEnvironment": (
        "TotalInstances", "PhysicalCPUs", "LogicalCPUs", "CPUVendor", "CPUModel", "CPUVersion", "CPUClockSpeed",
        "CPUMultiplicity",
    ),
    "GLUE2Policy": ("UserDomainForeignKey",),
    "GLUE2StorageServiceCapacity": ("FreeSize", "ReservedSize", "UsedSize"),
    "GLUE2StorageShareCapacity": ("FreeSize", "ReservedSize", "UsedSize"),
}  # fmt: skip

_CLOSED_LISTS: Mapping[str, frozenset[str]] = {
    "GLUE2ServiceQualityLevel": frozenset(("development", "pre-production", "production", "testing")),
    "GLUE2EndpointQualityLevel": frozenset(("development", "pre-production", "production", "testing")),
    "GLUE2EndpointHealthState": frozenset(("critical", "ok", "other", "unknown", "warning")),
    "GLUE2EndpointServingState": frozenset(("closed", "draining", "production", "queueing")),
    "GLUE2ComputingShareServingState": frozenset(("closed", "draining", "production", "queueing")),
    "GLUE2StorageShareServingState": frozenset(("closed", "draining", "production", "queueing")),
    "GLUE2StorageShareAccessLatency": frozenset(("online", "nearline", "offline")),
    "GLUE2DataStoreLatency": frozenset(("online", "nearline", "offline")),
    "GLUE2ContactType": frozenset(("general", "security", "sysadmin", "usersupport")),
    "GLUE2ComputingEndpointStaging": frozenset(("none", "stagingin", "staginginout", "stagingout")),
    "GLUE2ExecutionEnvironmentCPUMultiplicity": frozenset(
        ("multicpu-multicore", "multicpu-singlecore", "singlecpu-multicore", "singlecpu-singlecore")
    ),
    "GLUE2ExecutionEnvironmentConnectivityIn": frozenset(("true", "false", "undefined")),
    "GLUE2ExecutionEnvironmentConnectivityOut": frozenset(("true", "false", "undefined")),
    "GLUE2AdminDomainDistributed": frozenset(("true", "false", "undefined")),
}

_TOGETHER = (
    ("GLUE2Domain", "GLUE2Location"), ("GLUE2Domain", "GLUE2Contact"), ("GLUE2Share", "GLUE2MappingPolicy"),
    ("GLUE2Endpoint", "GLUE2AccessPolicy"), ("GLUE2ComputingService", "GLUE2ComputingManager"),
    ("GLUE2ComputingManager", "GLUE2ExecutionEnvironment"), ("GLUE2StorageService", "GLUE2StorageAccessProtocol"),
    ("GLUE2StorageShareCapacity", "GLUE2StorageShare"),
)  # fmt: skip
"""Where the first is published, the second must be."""

_SMALLER: tuple[tuple[str, str, str], ...] = (
    ("E015", "GLUE2StorageServiceCapacityFreeSize", "GLUE2StorageServiceCapacityTotalSize"),
    ("E016", "GLUE2StorageServiceCapacityUsedSize", "GLUE2StorageServiceCapacityTotalSize"),
    ("E017", "GLUE2StorageServiceCapacityReservedSize", "GLUE2StorageServiceCapacityTotalSize"),
    ("E019", "GLUE2StorageShareCapacityFreeSize", "GLUE2StorageShareCapacityTotalSize"),
    ("E020", "GLUE2StorageShareCapacityUsedSize", "GLUE2StorageShareCapacityTotalSize"),
    ("W014", "GLUE2ComputingShareMinWallTime", "GLUE2ComputingShareMaxWallTime"),
    ("W016", "GLUE2ComputingShareMinWallTime", "GLUE2ComputingShareDefaultWallTime"),
    ("W015", "GLUE2ComputingShareDefaultWallTime", "GLUE2ComputingShareMaxWallTime"),
    ("W017", "GLUE2ComputingShareMinCPUTime", "GLUE2ComputingShareMaxCPUTime"),
    ("W018", "GLUE2ComputingShareDefaultCPUTime", "GLUE2ComputingShareMaxCPUTime"),
    ("W019", "GLUE2ComputingShareMinCPUTime", "GLUE2ComputingShareDefaultCPUTime"),
    ("W021", "GLUE2ComputingShareMaxRunningJobs", "GLUE2ComputingShareMaxTotalJobs"),
    ("W021", "GLUE2ComputingShareMaxWaitingJobs", "GLUE2ComputingShareMaxTotalJobs"),
    ("W023", "GLUE2ComputingShareMaxUserRunningJobs", "GLUE2ComputingShareMaxRunningJobs"),
    ("W027", "GLUE2ComputingShareGuaranteedMainMemory", "GLUE2ComputingShareMaxMainMemory"),
    ("W028", "GLUE2ComputingShareMaxMainMemory", "GLUE2ComputingShareMaxVirtualMemory"),
    ("W029", "GLUE2ComputingShareGuaranteedVirtualMemory", "GLUE2ComputingShareMaxVirtualMemory"),
    ("W030", "GLUE2ComputingManagerTotalPhysicalCPUs", "GLUE2ComputingManagerTotalLogicalCPUs"),
    ("W032", "GLUE2ComputingManagerSlotsUsedByLocalJobs", "GLUE2ComputingManagerTotalSlots"),
    ("W033", "GLUE2ComputingManagerSlotsUsedByGridJobs", "GLUE2ComputingManagerTotalSlots"),
    ("I065", "GLUE2ExecutionEnvironmentUsedInstances", "GLUE2ExecutionEnvironmentTotalInstances"),
    ("I066", "GLUE2ExecutionEnvironmentUnavailableInstances", "GLUE2ExecutionEnvironmentTotalInstances"),
)
"""The first may not be more than the second, where both are there."""

_NOT_ZERO = {
    "GLUE2ComputingShareMaxTotalJobs": "W020",
    "GLUE2ComputingShareMaxUserRunningJobs": "W022",
    "GLUE2ComputingShareMaxSlotsPerJob": "W024",
}
_SUMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("W005", "GLUE2ComputingService", ("Running", "Waiting", "Staging", "Suspended", "PreLRMSWaiting")),
    ("W013", "GLUE2ComputingEndpoint", ("Running", "Waiting", "Staging", "Suspended", "PreLRMSWaiting")),
    ("W025", "GLUE2ComputingShare", ("Running", "Waiting", "Staging", "Suspended", "PreLRMSWaiting")),
)
"""<class>TotalJobs is the sum of the others, to a tenth."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    code: str
    """glue-validator's: E is an error, W a warning, I a note."""
    dn: str
    sentence: str


def check(entries: Iterable[Entry], now: datetime) -> list[Finding]:
    """Everything that is wrong with a tree, errors first."""
    entries = tuple(entries)
    found = [finding for entry in entries for finding in _check_entry(entry, now)]
    found += _check_together(entries)
    return sorted(found, key=lambda finding: ("EWI".index(finding.code[0]), finding.code, finding.dn))


def _check_together(entries: tuple[Entry, ...]) -> Iterator[Finding]:
    published = {name for entry in entries for name in entry.attributes["objectClass"]}
    for name, other in _TOGETHER:
        if name in published and other not in published:
            yield Finding("E025", "", f"{name} is published and no {other}")


def _check_entry(entry: Entry, now: datetime) -> Iterator[Finding]:
    dn = str(entry.dn)
    broken = GLUE_SCHEMA.violation(entry.attributes)
    if broken is not None:
        yield Finding("W037" if broken.startswith("the attribute") else "E021", dn, broken)
    for word, table, code in (("mandatory", _MANDATORY, "W034"), ("recommended", _RECOMMENDED, "I095")):
        for name in entry.attributes["objectClass"]:
            for part in table.get(name, ()):
                if name + part not in entry.attributes:
                    yield Finding(code, dn, f"{name + part} is {word} and missing")
    for name, values in entry.attributes.items():
        for value in values:
            sentence = _wrong_value(name, value)
            if sentence:
                yield Finding("E023" if value in PLACEHOLDERS else "W037", dn, f"{name} {sentence}: {value[:100]!r}")
    yield from _check_times(entry, dn, now)
    yield from _check_places(entry, dn)
    yield from _check_numbers(entry, dn)


def _wrong_value(name: str, value: str) -> str:
    allowed = _CLOSED_LISTS.get(name)
    if allowed is not None and value not in allowed:
        return "is none of " + ", ".join(sorted(allowed))
    if name in ("GLUE2EndpointURL", "GLUE2DomainWWW") and not _URL.match(value):
        return "is no URL"
    if name.endswith(("CreationTime", "StartTime", "DowntimeStart", "DowntimeEnd")) and not _DATE.match(value):
        return "is no time as 2026-01-31T12:00:00Z"
    attribute = GLUE_SCHEMA.lookup(name)
    if attribute is None or attribute.equality.name != "integerMatch" or not value.lstrip("-").isdecimal():
        return ""
    if value in PLACEHOLDERS:
        return "is a mark for what is not known, not a number"
    largest = UINT64_MAX if name.endswith(("Time", "Memory", "Size", "MemorySize")) else UINT32_MAX
    return "" if 0 <= int(value) <= largest else f"is not between 0 and {largest}"


def _check_times(entry: Entry, dn: str, now: datetime) -> Iterator[Finding]:
    created = _time(entry, "GLUE2EntityCreationTime")
    validity = entry.first("GLUE2EntityValidity")
    if created is None:
        if validity:
            yield Finding("W002", dn, "GLUE2EntityValidity is published without GLUE2EntityCreationTime")
        elif "GLUE2Entity" in entry.attributes["objectClass"]:
            yield Finding("I095", dn, "GLUE2EntityCreationTime is recommended and missing")
    elif created > now + CLOCK_SKEW:
        yield Finding("E001", dn, f"it was created in the future ({entry.first('GLUE2EntityCreationTime')})")
    elif created < now - OLD:
        yield Finding("W001", dn, f"it was created more than two years ago ({entry.first('GLUE2EntityCreationTime')})")
    elif validity.isdecimal() and len(validity) < 12 and created + timedelta(seconds=int(validity)) < now:
        yield Finding("E002", dn, f"it was valid until {validity} s after {entry.first('GLUE2EntityCreationTime')}")
    started = _time(entry, "GLUE2EndpointStartTime")
    if started is not None and started > now + CLOCK_SKEW:
        yield Finding("E010", dn, f"it starts in the future ({entry.first('GLUE2EndpointStartTime')})")
    start, end = _time(entry, "GLUE2EndpointDowntimeStart"), _time(entry, "GLUE2EndpointDowntimeEnd")
    if end is not None and start is None:
        yield Finding("E013", dn, "a downtime ends that has no start")
    elif end is not None and start is not None and end < start:
        yield Finding("E012", dn, "a downtime ends before it starts")


def _time(entry: Entry, name: str) -> datetime | None:
    text = entry.first(name)
    if not _DATE.match(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # 30 February
        return None


def _check_places(entry: Entry, dn: str) -> Iterator[Finding]:
    for code, name, bound in (("E008", "GLUE2LocationLongitude", 180), ("E009", "GLUE2LocationLatitude", 90)):
        text = entry.first(name)
        if text and not _is_within(text, bound):
            yield Finding(code, dn, f"{name} is not between -{bound} and {bound}: {text[:100]!r}")
    for code, name in (("W039", "GLUE2ServiceID"), ("W040", "GLUE2EndpointID")):
        if entry.first(name).startswith("_"):
            yield Finding(code, dn, f"{name} begins with _")
    domains = [value for rdn in entry.dn.rdns for name, value in rdn if name.lower() == "glue2domainid"]
    for name in ("GLUE2LocationDomainForeignKey", "GLUE2ContactDomainForeignKey", "GLUE2ServiceAdminDomainForeignKey"):
        value = entry.first(name)
        if value and domains and value != domains[0]:
            yield Finding("E026", dn, f"{name} is {value[:100]!r}, and the entry is below {domains[0]!r}")


def _is_within(text: str, bound: int) -> bool:
    try:
        return -bound < float(text) < bound
    except ValueError:
        return False


def _number(entry: Entry, name: str) -> int | None:
    text = entry.first(name)
    return int(text) if text.isdecimal() and len(text) < 32 else None


def _check_numbers(entry: Entry, dn: str) -> Iterator[Finding]:
    for code, name, other in _SMALLER:
        small, large = _number(entry, name), _number(entry, other)
        if small is not None and large is not None and small > large:
            yield Finding(code, dn, f"{name} is {small}, more than {other} ({large})")
    for name, code in _NOT_ZERO.items():
        if _number(entry, name) == 0:
            yield Finding(code, dn, f"{name} is zero")
    for code, name, parts in _SUMS:
        total = _number(entry, f"{name}TotalJobs")
        if total is not None:
            numbers = [_number(entry, f"{name}{part}Jobs") for part in parts]
            together = sum(number for number in numbers if number is not None)
            if not 0.9 * total <= together <= 1.1 * total:
                yield Finding(code, dn, f"{name}TotalJobs is {total}, and its parts are {together}")
    for code, kind in (("E014", "GLUE2StorageServiceCapacity"), ("E018", "GLUE2StorageShareCapacity")):
        total = _number(entry, f"{kind}TotalSize")
        if total is not None:
            sizes = [_number(entry, f"{kind}{part}Size") for part in ("Free", "Used", "Reserved")]
            together = sum(size for size in sizes if size is not None)
            if not 0.9 * total <= together <= 1.1 * total:
                yield Finding(code, dn, f"{kind}TotalSize is {total}, and its parts are {together}")
