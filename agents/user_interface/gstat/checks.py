"""What is wrong with what a site publishes: contradictions, things missing, things that nobody hears. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from agents.user_interface.gstat.model import Finding, Site, Status, time_of
from agents.user_interface.information import number
from fabric.glue_model import CLOSED, DRAINING, PRODUCTION, UNKNOWN, UNKNOWN_JOBS
from fabric.ldap.entry import Entry

_OF_STATE: Mapping[str, tuple[Status, str]] = {
    "awaited": (Status.NA, "its information server was never heard"),
    "unreachable": (Status.ERROR, "its information server is not heard"),
    "withdrawn": (Status.MAINT, "its information server said that it stops"),
}

LATE_S = 2.0
"""The top server takes entries back a moment after their time, and no two clocks are equal."""


def check(site: Site, storage: Iterable[str], now: datetime) -> list[Finding]:
    """Everything to say of a site. `storage`: the GlueSEUniqueIDs of the whole grid."""
    found: list[Finding] = []
    status, sentence = _OF_STATE.get(site.state, (Status.OK, ""))
    if sentence:
        age = f", last {(now - site.last_seen).total_seconds():.0f} s ago" if site.last_seen else ""
        found.append(Finding(status, sentence + age + (f": {site.reason}" if site.reason else "")))
    if not site.of_class("GlueSite"):
        if site.state == "current":
            found.append(Finding(Status.WARN, "there is no GlueSite entry"))
        return found
    found += _place(site)
    for entry in site.of_class("GridFabricProducer"):
        state = entry.first("GridFabricProducerState")
        if state in ("unreachable", "withdrawn"):
            word = "is not heard" if state == "unreachable" else "has stopped"
            status = Status.ERROR if state == "unreachable" else Status.MAINT
            found.append(Finding(status, f"{entry.first('GridFabricProducerID')} {word}"))
    found += _expired(site, now)
    for entry in site.of_class("GlueSubCluster"):
        slots, processors = number(entry, "GlueSubClusterLogicalCPUs"), number(entry, "GlueSubClusterPhysicalCPUs")
        if slots > processors > 0:
            found.append(Finding(Status.INFO, f"{slots} slots are light: {processors} processors are behind them"))
    for kind, what in (("GlueCE", "computing"), ("GlueSE", "storage")):
        if site.state == "current" and not site.of_class(kind):
            found.append(Finding(Status.NOTE, f"it has no {what} element"))
    for entry in site.of_class("GlueCE"):
        found += _computing(entry)
    known = set(storage)
    for entry in site.of_class("GlueCESEBindGroup"):
        for missing in set(entry.get("gluecesebindgroupseuniqueid") or ()) - known:
            found.append(Finding(Status.WARN, f"{missing} is called close, and is not published"))
    for entry in (*site.of_class("GlueSE"), *site.of_class("GlueSA")):
        found += _storage(entry)
    return found


def _place(site: Site) -> list[Finding]:
    if site.latitude is None or site.longitude is None:
        return [Finding(Status.NOTE, "it does not say where it is")]
    if not (-90 <= site.latitude <= 90 and -180 <= site.longitude <= 180):
        return [Finding(Status.WARN, f"{site.latitude:g}, {site.longitude:g} is no place on earth")]
    return []


def _expired(site: Site, now: datetime) -> list[Finding]:
    ends = [time_of(entry, "GridFabricValidUntil") for entry in site.entries]
    late = [age for end in ends if end is not None and (age := (now - end).total_seconds()) > LATE_S]
    if late and site.state == "current":
        return [Finding(Status.WARN, f"{len(late)} entries were good until {max(late):.0f} s ago at most")]
    return []


def _computing(entry: Entry) -> list[Finding]:
    name = entry.first("GlueCEUniqueID").rpartition("/")[2]
    total, free = number(entry, "GlueCEInfoTotalCPUs"), number(entry, "GlueCEStateFreeJobSlots")
    running, waiting = number(entry, "GlueCEStateRunningJobs"), number(entry, "GlueCEStateWaitingJobs")
    jobs, status = number(entry, "GlueCEStateTotalJobs"), entry.first("GlueCEStateStatus")
    found: list[Finding] = []
    if status == UNKNOWN:
        found.append(Finding(Status.ERROR, f"{name} has status Unknown: its gatekeeper is not heard"))
    elif status in (DRAINING, CLOSED):
        found.append(Finding(Status.MAINT, f"{name} has status {status}"))
    elif status != PRODUCTION:
        found.append(Finding(Status.WARN, f"{name} has a status that GLUE does not know: {status[:40]!r}"))
    if UNKNOWN_JOBS in (running, waiting, jobs):
        return [*found, Finding(Status.WARN, f"{name} does not know how many jobs it has")]
    if min(total, free, running, waiting) < 0:
        found.append(Finding(Status.WARN, f"{name} has a number below zero"))
    if running > total:
        found.append(Finding(Status.WARN, f"{name} runs {running} jobs on {total} slots"))
    if free > total:
        found.append(Finding(Status.WARN, f"{name} has {free} free slots of {total}"))
    elif free + running > total >= running:
        found.append(Finding(Status.WARN, f"{name} has {free} free slots and {running} running jobs, of {total}"))
    if jobs != running + waiting:
        found.append(Finding(Status.WARN, f"{name} has {jobs} jobs, {running} running and {waiting} waiting"))
    if waiting and free > waiting and status == PRODUCTION:
        found.append(Finding(Status.NOTE, f"{name} lets {waiting} jobs wait beside {free} free slots"))
    if total == 0 and status == PRODUCTION:
        found.append(Finding(Status.NOTE, f"{name} has no slots: its workers are not there"))
    return found


def _storage(entry: Entry) -> list[Finding]:
    area = entry.first("GlueSALocalID")
    prefix, name = ("GlueSA", f"area {area}") if area else ("GlueSE", entry.first("GlueSEUniqueID"))
    total, used = number(entry, f"{prefix}TotalOnlineSize"), number(entry, f"{prefix}UsedOnlineSize")
    free = number(entry, "GlueSAFreeOnlineSize" if area else "GlueSESizeFree")
    found: list[Finding] = []
    if not area and entry.first("GlueSEStatus", PRODUCTION) == UNKNOWN:
        found.append(Finding(Status.ERROR, f"{name} has status Unknown: it is not heard"))
    if used > total or free > total or used + free > total + 1:  # each is rounded to a gigabyte
        found.append(Finding(Status.WARN, f"{name} has {used} GB used and {free} GB free, of {total} GB"))
    return found
