"""What a gatekeeper tells the information system, from measured numbers."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabric import glue13, glue_model
from fabric.settings import Endpoint, Settings


@dataclass(frozen=True)
class Measured:
    """One look at the queue and the workers."""

    total_slots: int
    free_slots: int
    running: int
    waiting: int
    status: str
    why: str
    """Of a status that is not Production."""
    mean_wall_s: float
    vos: tuple[str, ...]
    """Whose members are all let in."""
    fqans: tuple[str, ...] = ()
    """Groups and roles of other VOs that are let in."""
    tags: tuple[str, ...] = ()
    """Of software, as the VOs' managers say."""


def entries(
    settings: Settings,
    *,
    ce: str,
    port: int,
    queue: str,
    lrms: str,
    measured: Measured,
    limits: tuple[int, int, int],
    operating_system: str,
    facts: Sequence[Mapping[str, str]],
    started: str,
) -> list[Any]:
    """Cluster, subcluster, CE with its close SEs, and service. `limits`: wall s, cpu s, waiting jobs."""
    close = tuple(storage_id(endpoint) for endpoint in settings.endpoints("storage", site=settings.site))
    cluster = settings.advertise if settings.advertise not in ("localhost", "127.0.0.1") else f"{settings.name}"
    one = facts[0] if facts else {}
    subcluster = glue_model.SubCluster(
        cluster=cluster,
        site=settings.site,
        computing_elements=(ce,),
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
    waiting_s = _waiting_s(measured)
    element = glue_model.ComputingElement(
        unique_id=ce,
        cluster=cluster,
        host=settings.advertise,
        port=port,
        queue=queue,
        lrms=lrms,
        total_cpus=measured.total_slots,
        status=measured.status,
        free_slots=measured.free_slots,
        running_jobs=measured.running,
        waiting_jobs=measured.waiting,
        estimated_response_s=waiting_s,
        worst_response_s=max(waiting_s * 2, waiting_s),
        max_wall_minutes=max(1, limits[0] // 60),
        max_cpu_minutes=max(1, limits[1] // 60),
        max_waiting_jobs=limits[2],
        max_running_jobs=measured.total_slots,
        max_total_jobs=measured.total_slots + limits[2],
        vos=measured.vos,
        fqans=measured.fqans,
        close_storage=close,
        application_dir=one.get("software_area", ""),
    )
    service = glue_model.Service(
        unique_id=f"{ce.rpartition('/')[0]}/gatekeeper",
        kind="org.gridfabric.gatekeeper",
        endpoint=f"grpcs://{settings.advertise}:{port}",
        site=settings.site,
        name=settings.name,
        status="OK" if measured.status == glue_model.PRODUCTION else "Warning",
        status_info=f"{measured.status}: {measured.why}" if measured.why else measured.status,
        vos=measured.vos,
        fqans=measured.fqans,
        started=started,
    )
    return [*glue13.cluster_entries(subcluster), *glue13.ce_entries(element), *glue13.service_entries(service)]


def storage_id(endpoint: Endpoint) -> str:
    """GlueSEUniqueID of a storage element: host:port, since one host may have several."""
    return f"{endpoint.host}:{endpoint.rpc}"


def _waiting_s(measured: Measured) -> int:
    """How long a job that comes now will wait, from what waits and how long jobs took lately."""
    if measured.total_slots == 0:
        return glue_model.UNKNOWN_TIME
    if measured.free_slots > measured.waiting:
        return 0
    return int((measured.waiting + 1 - measured.free_slots) * max(measured.mean_wall_s, 1.0) / measured.total_slots)


def _number(facts: Mapping[str, str], name: str) -> int:
    text = facts.get(name, "")
    return int(text) if text.isdecimal() else 0
