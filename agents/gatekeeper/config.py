"""The options of a gatekeeper, with their defaults; unknown keys and wrong units are refused at start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fabric.errors import InvalidRequest

GIB = 1024**3
MIB = 1024**2
_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.]{1,64}\Z")


@dataclass(frozen=True)
class PoolOptions:
    """The pool accounts `<prefix>001 ...` of one VO."""

    vo: str
    prefix: str = ""
    """Empty: the VO's name."""
    count: int = field(default=50, metadata={"minimum": 1, "maximum": 10_000})
    uid_base: int = field(default=0, metadata={"minimum": 0, "maximum": 2_000_000_000})
    """`cms007` runs as uid_base + 7 unless the password database knows the name. 0: given by the gatekeeper."""


@dataclass(frozen=True)
class QueueOptions:
    """One queue of several. What is 0 or empty is as the gatekeeper's option of that name says."""

    name: str
    """The last part of its CE's unique id: letters, digits, `_` and `.`."""
    max_wall_s: int = 0
    max_cpu_s: int = 0
    max_memory_bytes: int = 0
    max_disk_bytes: int = 0
    max_queued: int = field(default=0, metadata={"minimum": 0})
    """Jobs that wait in it at once; 0: only all queues together are limited."""
    max_running: int = field(default=0, metadata={"minimum": 0})
    """Slots that its jobs use at a time; 0: only all queues together are limited."""
    priority: int = field(default=0, metadata={"minimum": -1000, "maximum": 1000})
    """Added to that of its jobs, among those of their VO in all queues."""
    access: tuple[str, ...] = ()
    partition: str = ""
    """Of Slurm, where its jobs go; empty: the worker's own."""


@dataclass(frozen=True)
class GatekeeperOptions:
    """Section `options` of a gatekeeper."""

    batch: str = field(default="fabric", metadata={"choices": ("fabric", "fork", "slurm")})
    """The batch system, published as GlueCEInfoLRMSType: `fabric`, our scheduler over worker nodes; `fork`, this host;
    `slurm`, a cluster. With the latter two one worker on this host is enough, and the grid description adds it."""
    queue: str = "long"
    """Name of the queue, where there is only one: the last part of the CE's unique id."""
    queues: tuple[QueueOptions, ...] = ()
    """Several queues over the same slots, each published as a CE. A job that names none goes to the first."""
    access: tuple[str, ...] = ()
    """FQANs whose holders may run jobs here (fabric/access.py), published as GlueCEAccessControlBaseRule. Empty: every
    member of the grid's VOs."""
    account_mode: str = field(default="auto", metadata={"choices": ("auto", "pool", "caller")})
    """`pool`: payloads run under the leased account. `caller`: under the workers' own user, the lease is only recorded.
    `auto`: pool when the gatekeeper runs as root."""
    pools: tuple[PoolOptions, ...] = ()
    """Empty: one pool of 50 accounts for each VO."""
    uid_base: int = field(default=61_000, metadata={"minimum": 1000, "maximum": 2_000_000_000})
    """First uid of the pool of the grid's first VO; that of each further VO, or named pool, begins 1 000 higher."""
    lease_linger_s: float = 5.0
    """How long a pool account stays leased after its owner's last job was purged."""

    max_queued: int = field(default=20_000, metadata={"minimum": 1})
    """Jobs that wait here at once, in all queues; more are refused with QUEUE_FULL."""
    max_running: int = field(default=0, metadata={"minimum": 0})
    """Jobs on workers at a time, whatever slots there are; 0: no other limit."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """VO to its part of the hand-outs while others wait too, for instance `{ cms = 3, atlas = 1 }`; 1 where nothing is
    said."""
    priorities: Mapping[str, int] = field(default_factory=dict)
    """FQAN to the priority of its holders' jobs among those of their VO; the highest that is shown counts, else 0."""
    software_managers: tuple[str, ...] = ()
    """FQANs whose holders may change their VO's software tags here. Empty: `/<vo>/Role=lcgadmin` of each VO."""
    max_kept: int = field(default=100_000, metadata={"minimum": 1})
    """Jobs in the store at once, ended ones included."""
    max_wall_s: int = field(default=24 * 3600, metadata={"minimum": 1})
    max_cpu_s: int = field(default=24 * 3600, metadata={"minimum": 1})
    max_memory_bytes: int = field(default=2 * GIB, metadata={"minimum": MIB})
    max_disk_bytes: int = field(default=4 * GIB, metadata={"minimum": 4096})
    worker_lost_s: float = 60.0
    """A worker that is silent for so long has lost its jobs. A killed worker agent is back in a few seconds."""
    revoked_jobs: str = field(default="kill", metadata={"choices": ("kill", "keep")})
    """Jobs of somebody who was revoked, banned or taken off the map: stopped at once, or left to end."""
    heartbeat_s: float = field(default=5.0, metadata={"minimum": 0.05})
    """A worker's stream that is silent for four of these is closed."""

    max_sandbox_file_bytes: int = field(default=100 * MIB, metadata={"minimum": 1})
    max_input_sandbox_bytes: int = field(default=200 * MIB, metadata={"minimum": 1})
    """Sum of one job's input sandbox."""
    max_output_sandbox_bytes: int = field(default=200 * MIB, metadata={"minimum": 1})
    sandbox_area_bytes: int = field(default=10 * GIB, metadata={"minimum": 1})
    """All sandbox files here together."""
    sandbox_area_files: int = field(default=200_000, metadata={"minimum": 1})
    """i-nodes of the sandbox area: the old grid's job cache ran out of these before it ran out of bytes."""
    sandbox_linger_s: float = 3600.0
    """How long a sandbox file that no job needs is kept for the next one."""
    keep_ended_s: float = 7 * 24 * 3600.0
    """Ended jobs whose output nobody fetched are purged after this."""
    fence_memory_s: float = 24 * 3600.0
    """How long the attempt number of a purged job is remembered."""
    min_free_disk_bytes: int = field(default=200 * MIB, metadata={"minimum": 0})
    """Below this much free disk new work is refused; what is here goes on."""

    publish_min_interval_s: float = field(default=0.2, metadata={"minimum": 0.01})
    """Changes are published at most this often."""
    operating_system: str = ""
    """Published name; empty: this host's."""

    def every_queue(self) -> dict[str, QueueOptions]:
        """All queues by name, the first one first, with the gatekeeper's limits and access where they have none.

        Raises InvalidRequest SETTINGS_INVALID: a name that is none, or twice there.
        """
        found: dict[str, QueueOptions] = {}
        for queue in self.queues or (QueueOptions(self.queue),):
            if queue.name in found or not _QUEUE_NAME.match(queue.name):
                raise InvalidRequest(
                    "SETTINGS_INVALID",
                    f"the name {queue.name[:80]!r} of a gatekeeper's queue is another one's too, or not 1 to 64 "
                    "letters, digits, _ and .",
                    key="queues",
                )
            found[queue.name] = replace(
                queue,
                max_wall_s=queue.max_wall_s or self.max_wall_s,
                max_cpu_s=queue.max_cpu_s or self.max_cpu_s,
                max_memory_bytes=queue.max_memory_bytes or self.max_memory_bytes,
                max_disk_bytes=queue.max_disk_bytes or self.max_disk_bytes,
                access=queue.access or self.access,
            )
        return found
