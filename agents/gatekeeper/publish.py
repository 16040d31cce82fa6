"""What a gatekeeper tells the information system, from measured numbers."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.gatekeeper.model import Closure
from fabric import glue13, glue_model
from fabric.clock import from_us, utc_text
from fabric.settings import Endpoint, Settings

GANG_TAG = "GRIDFABRIC-GANG"
"""Among the software of a site that starts jobs of several slots; a broker's match for such jobs."""

OPEN_MPI_TAG = "OPENMPI"
"""Of a site whose workers all have Open MPI, as EGEE's sites said it."""


@dataclass(frozen=True)
class QueueMeasured:
    """One look at a queue, and what the site has decided about it."""

    name: str
    total_slots: int
    """That its jobs may use at a time."""
    free_slots: int
    running: int
    waiting: int
    ahead: int
    """Jobs that wait in queues of its priority or a higher one."""
    status: str
    why: str
    """Of a status that is not Production."""
    mean_wall_s: float
    max_wall_s: int
    max_cpu_s: int
    max_waiting: int
    priority: int
    vos: tuple[str, ...]
    """Whose members are all let in."""
    fqans: tuple[str, ...] = ()
    """Groups and roles of other VOs that are let in."""


@dataclass(frozen=True)
class Measured:
    """One look at the queues and the workers."""

    queues: tuple[QueueMeasured, ...]
    total_slots: int
    tags: tuple[str, ...] = ()
    """Of software, as the VOs' managers say, GANG_TAG and OPEN_MPI_TAG."""
    closure: Closure = field(default_factory=Closure)
    """Of all queues."""


def entries(
    settings: Settings,
    *,
    contact: str,
    port: int,
    lrms: str,
    measured: Measured,
    operating_system: str,
    facts: Sequence[Mapping[str, str]],
    started: str,
) -> list[Any]:
    """Cluster, subcluster, a CE for each queue with its close SEs, and service. `contact`: a CE's id without its
    queue."""
    close = tuple(storage_id(endpoint) for endpoint in settings.endpoints("storage", site=settings.site))
    cluster = settings.advertise if settings.advertise not in ("localhost", "127.0.0.1") else f"{settings.name}"
    one = facts[0] if facts else {}
    subcluster = glue_model.SubCluster(
        cluster=cluster,
        site=settings.site,
        computing_elements=tuple(f"{contact}-{queue.name}" for queue in measured.queues),
        logical_cpus=measured.total_slots,
        physical_cpus=min(measured.total_slots, sum(_number(fact, "cpus") for fact in facts)),
        ram_mb=_number(one, "memory_bytes") // 2**20,
        operating_system=operating_system or one.get("os", "") or platform.system(),
        operating_system_release=one.get("os_release", platform.release()),
        operating_system_version=one.get("os_version", ""),
        platform=one.get("machine", platform.machine()),
        cpus_per_host=_number(one, "cpus") or (os.cpu_count() or 1),
        processor_model=one.get("cpu_model", ""),
        processor_vendor=one.get("cpu_vendor", ""),
        clock_mhz=_number(one, "cpu_mhz"),
        software=tuple(sorted({tag for fact in facts for tag in fact.get("software", "").split()} | {*measured.tags})),
    )
    elements = [
        glue_model.ComputingElement(
            unique_id=f"{contact}-{queue.name}",
            cluster=cluster,
            host=settings.advertise,
            port=port,
            queue=queue.name,
            lrms=lrms,
            total_cpus=queue.total_slots,
            status=queue.status,
            free_slots=queue.free_slots,
            running_jobs=queue.running,
            waiting_jobs=queue.waiting,
            estimated_response_s=_waiting_s(queue),
            worst_response_s=2 * _waiting_s(queue),
            max_wall_minutes=max(1, queue.max_wall_s // 60),
            max_cpu_minutes=max(1, queue.max_cpu_s // 60),
            max_waiting_jobs=queue.max_waiting,
            max_running_jobs=queue.total_slots,
            max_total_jobs=queue.total_slots + queue.max_waiting,
            priority=queue.priority,
            vos=queue.vos,
            fqans=queue.fqans,
            close_storage=close,
            application_dir=one.get("software_area", ""),
        )
        for queue in measured.queues
    ]
    why = {queue.name: f"{queue.status}: {queue.why}" if queue.why else queue.status for queue in measured.queues}
    service = glue_model.Service(
        unique_id=f"{contact.rpartition('/')[0]}/gatekeeper",
        kind="org.gridfabric.gatekeeper",
        endpoint=f"grpcs://{settings.advertise}:{port}",
        site=settings.site,
        name=settings.name,
        status="OK" if any(queue.status == glue_model.PRODUCTION for queue in measured.queues) else "Warning",
        status_info=told_of(why, len(why)),
        vos=tuple(sorted({vo for queue in measured.queues for vo in queue.vos})),
        fqans=tuple(sorted({fqan for queue in measured.queues for fqan in queue.fqans})),
        started=started,
        data=downtime(measured.closure),
    )
    queues = [entry for element in elements for entry in glue13.ce_entries(element)]
    return [*glue13.cluster_entries(subcluster), *queues, *glue13.service_entries(service)]


def downtime(closure: Closure) -> tuple[tuple[str, str], ...]:
    """A maintenance as data of the service: when it begins and ends, and why, as far as that is known."""
    if not closure.begins_at_us:
        return ()
    said = (_moment(closure.begins_at_us), _moment(closure.ends_at_us), closure.reason)
    return tuple((key, value) for key, value in zip(glue_model.DOWNTIME, said, strict=True) if value)


def _moment(at_us: int) -> str:
    try:
        return utc_text(from_us(at_us)) if at_us else ""
    except OverflowError:  # an end after the year 9999 is none
        return ""


def told_of(queues: Mapping[str, str], of: int) -> str:
    """What is said of some of so many queues, in one sentence where it is the same of all."""
    said = set(queues.values())
    if len(said) == 1 and len(queues) == of:
        return said.pop()
    return "; ".join(f"{queue} {text}" for queue, text in queues.items())


def storage_id(endpoint: Endpoint) -> str:
    """GlueSEUniqueID of a storage element: host:port, since one host may have several."""
    return f"{endpoint.host}:{endpoint.rpc}"


def _waiting_s(queue: QueueMeasured) -> int:
    """How long a job that comes now will wait, from what waits and how long jobs took lately."""
    if queue.total_slots == 0:
        return glue_model.UNKNOWN_TIME
    if queue.free_slots > queue.ahead:
        return 0
    return int((queue.ahead + 1 - queue.free_slots) * max(queue.mean_wall_s, 1.0) / queue.total_slots)


def _number(facts: Mapping[str, str], name: str) -> int:
    text = facts.get(name, "")
    return int(text) if text.isdecimal() else 0
