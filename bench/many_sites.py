"""A synthetic grid of the size of EGEE: what each site publishes, and what brokers and people ask about it.

A site: 4 clusters with 8 queues each, open to 3 of its 5 VOs and bound to 2 of its 4 storage elements, which have 4
protocols and 5 areas each; 20 services; itself: 197 entries of GLUE 1.3. With their own entries and those above, 192
sites are 38 018 entries.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from fabric import glue13, glue_model
from fabric.information_tree import LOCAL
from fabric.ldap import Dn, Entry

VOS = ("atlas", "cms", "lhcb", "alice", "dteam", "biomed", "ops", "esr", "compchem", "fusion", "planck", "magic")
CLUSTERS, QUEUES, STORAGE, SERVICES = 4, 8, 4, 20
PROTOCOLS = (("gsiftp", 2811), ("root", 1094), ("https", 443), ("rfio", 5001))
CES_OF_A_VO = "(&(objectClass=GlueCE)(GlueCEAccessControlBaseRule=VO:atlas))"
BROKER_ATTRIBUTES = (
    "GlueCEUniqueID", "GlueCEInfoHostName", "GlueCEInfoTotalCPUs", "GlueCEStateFreeCPUs", "GlueCEStateRunningJobs",
    "GlueCEStateWaitingJobs", "GlueCEStateEstimatedResponseTime", "GlueCEPolicyMaxWallClockTime", "GlueCEStateStatus",
    "GlueCEInfoContactString",
)  # fmt: skip
"""What the broker's typical search asks for."""
STATE = "GlueCEStateFreeJobSlots"
"""What changes all the time."""


def site_name(number: int) -> str:
    """`SITE-007`."""
    return f"SITE-{number:03}"


def site_base(number: int) -> Dn:
    """The name above a site's entries, at the site's server and at the top."""
    return LOCAL.child("mds-vo-name", site_name(number))


def queue_ids(number: int) -> list[str]:
    """The GlueCEUniqueIDs of a site."""
    return [_queue(number, cluster, queue) for cluster in range(CLUSTERS) for queue in range(QUEUES)]


def _queue(number: int, cluster: int, queue: int) -> str:
    return f"ce{cluster:02}.site{number:03}.example.org:2119/jobmanager-pbs-q{queue}"


def site_entries(number: int) -> list[Entry]:
    """Everything that a site publishes, named relative to it; the same each time."""
    draw = random.Random(number)
    name, domain = site_name(number), f"site{number:03}.example.org"
    vos = tuple(draw.sample(VOS, 5))
    site = glue_model.Site(
        name, f"synthetic site {number}", f"grid@{domain}", "Somewhere, Earth", round(draw.uniform(-60, 70), 4),
        round(draw.uniform(-180, 180), 4), f"https://www.{domain}/", ("none",), ("GRID=EGEE", "TIER 2"),
    )  # fmt: skip
    return [
        *glue13.site_entries(site),
        *_computing(number, vos, draw),
        *_storage(number, vos, draw),
        *_services(number),
    ]


def _computing(number: int, vos: tuple[str, ...], draw: random.Random) -> Iterator[Entry]:
    domain = f"site{number:03}.example.org"
    software = [f"VO-{vo}-sw-{major}.{minor}" for vo in vos for major in range(13, 15) for minor in range(3)]
    for cluster in range(CLUSTERS):
        host, cpus = f"ce{cluster:02}.{domain}", draw.choice((256, 512, 1024, 4096))
        queues = tuple(_queue(number, cluster, queue) for queue in range(QUEUES))
        yield from glue13.cluster_entries(
            glue_model.SubCluster(
                host, site_name(number), queues, cpus, cpus // 8, 32768, 65536, "CentOS", "7.9", "Core",
                cpus_per_host=8, processor_model="EPYC", processor_vendor="AMD", clock_mhz=2400, si00=2395, sf00=2190,
                software=tuple(draw.sample(software, 12)),
            )
        )  # fmt: skip
        for queue, unique_id in enumerate(queues):
            free = draw.randint(0, cpus)
            close = tuple(f"se{one:02}.{domain}" for one in draw.sample(range(STORAGE), 2))
            yield from glue13.ce_entries(
                glue_model.ComputingElement(
                    unique_id, host, host, 2119, f"q{queue}", "pbs", "4.2", total_cpus=cpus, free_slots=free,
                    running_jobs=cpus - free, waiting_jobs=draw.randint(0, 500),
                    estimated_response_s=draw.randint(0, 90_000), worst_response_s=draw.randint(0, 900_000),
                    max_wall_minutes=4320, max_cpu_minutes=2880, vos=tuple(draw.sample(vos, 3)), close_storage=close,
                    application_dir="/opt/sw", contact=f"https://{host}:2119/jobmanager-pbs",
                )
            )  # fmt: skip


def _storage(number: int, vos: tuple[str, ...], draw: random.Random) -> Iterator[Entry]:
    for one in range(STORAGE):
        host = f"se{one:02}.site{number:03}.example.org"
        areas = tuple(
            glue_model.StorageArea(
                f"{vo}:replica:online", f"/data/{vo}", (vo,), 2 * 10**13, draw.randint(0, 2 * 10**13)
            )
            for vo in vos
        )
        protocols = tuple(glue_model.AccessProtocol(kind, f"{kind}://{host}:{port}", port) for kind, port in PROTOCOLS)
        yield from glue13.se_entries(
            glue_model.StorageElement(host, site_name(number), areas=areas, protocols=protocols)
        )


def _services(number: int) -> Iterator[Entry]:
    domain = f"site{number:03}.example.org"
    for one in range(SERVICES):
        unique_id = f"svc{one:02}.{domain}"
        endpoint = f"https://{unique_id}:8443/service"
        service = glue_model.Service(
            unique_id, "org.example.service", endpoint, site_name(number), vos=VOS[:5], started="2026-01-01T00:00:00Z"
        )
        yield from glue13.service_entries(service)
