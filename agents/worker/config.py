"""The options of a worker node, with their defaults; unknown keys and wrong units are refused at start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.worker.batch import BATCH_SYSTEMS

MIB = 1024**2


@dataclass(frozen=True)
class WorkerOptions:
    """Section `options` of a worker."""

    batch: str = field(default="fork", metadata={"choices": BATCH_SYSTEMS})
    """What runs the payloads: `fork`, this host; `slurm`, the nodes of a Slurm cluster that share `scratch_dir`, the
    state directory and this software."""
    slots: int = field(default=0, metadata={"minimum": 0, "maximum": 10_000})
    """Payload processes at a time; 0: one per processor of this host, or of the partition."""
    partition: str = ""
    """Of Slurm; empty: its default."""
    partitions: Mapping[str, str] = field(default_factory=dict)
    """Queue of the gatekeeper to partition; jobs of the others go to `partition`."""
    slurm_conf: str = ""
    """Configuration file of the cluster; empty: where Slurm looks for it."""
    batch_poll_s: float = field(default=1.0, metadata={"minimum": 0.05})
    """How often records of a batch system's jobs are looked at; its own queue is asked five times less often."""
    batch_timeout_s: float = field(default=30.0, metadata={"minimum": 0.1})
    """A command of the batch system that takes longer is given up and its job looked for in the queue."""
    shepherd_silent_s: float = field(default=60.0, metadata={"minimum": 1.0})
    """A job that is gone from the queue and whose shepherd says nothing for so long is lost."""
    gatekeeper: str = ""
    """Name of the gatekeeper to serve; empty: the first one of this site."""
    scratch_dir: str = ""
    """Where jobs have their directories. Empty: <state_dir>/scratch, or a folder below /var/tmp where pool accounts
    could
    not reach that (a folder on its path is closed to others)."""
    run_as_root: bool = False
    """Allow payloads to run as root when this agent is root and the gatekeeper maps to the caller. For containers
    only."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for every job by the site, for instance VO_CMS_SW_DIR."""
    path: str = "/usr/local/bin:/usr/bin:/bin"
    software_area: str = "/opt/exp_soft"
    """Where the VOs keep their software, a folder for each: VO_CMS_SW_DIR is `<software_area>/cms`."""
    software: tuple[str, ...] = ()
    """Published run time environment tags of this node."""

    script_s: float = field(default=300.0, metadata={"minimum": 1.0})
    """A prologue, and an epilogue, that takes longer is stopped."""
    term_grace_s: float = field(default=5.0, metadata={"minimum": 0.0})
    """Between SIGTERM and SIGKILL."""
    open_files: int = field(default=4096, metadata={"minimum": 64})
    processes: int = field(default=4096, metadata={"minimum": 16})
    """Of one job; more, and it is killed. A pool account may have twice as many over all its jobs (RLIMIT_NPROC)."""
    orphan_timeout_s: float = field(default=120.0, metadata={"minimum": 1.0})
    """The starter ends when it has had neither agent nor job for so long."""
    stop_policy: str = field(default="kill", metadata={"choices": ("kill", "leave")})
    """At a clean stop, running jobs are killed and reported as WORKER_STOPPED, or left to the next start."""

    min_free_bytes: int = field(default=100 * MIB, metadata={"minimum": 0})
    """Below this much free disk (or `min_free_inodes`) the worker takes no jobs until there is room again."""
    min_free_inodes: int = field(default=1000, metadata={"minimum": 0})
    max_scratch_inodes: int = field(default=50_000, metadata={"minimum": 10})
    """Files and folders of one job."""
    black_hole_jobs: int = field(default=20, metadata={"minimum": 2})
    """Nine of ten of so many jobs, failed within `black_hole_fast_s` of their start and all within
    `black_hole_window_s`, stop this worker for `black_hole_pause_s` (health.py)."""
    black_hole_fast_s: float = 5.0
    black_hole_window_s: float = 600.0
    black_hole_pause_s: float = field(default=300.0, metadata={"minimum": 0.1})
    max_clock_skew_s: float = field(default=60.0, metadata={"minimum": 1.0})
    """A clock that differs more from the gatekeeper's makes proxies and limits wrong: no jobs."""
    clean_every_s: float = field(default=60.0, metadata={"minimum": 0.1})
    """How often directories without a job are looked for; what is found twice goes."""
    disk_check_s: float = field(default=2.0, metadata={"minimum": 0.05})
    cache_bytes: int = field(default=1024 * MIB, metadata={"minimum": MIB})
    """Input sandbox files kept for the next job."""
    cache_files: int = field(default=5000, metadata={"minimum": 1})
    max_output_file_bytes: int = field(default=200 * MIB, metadata={"minimum": 1})

    max_staging: int = field(default=8, metadata={"minimum": 1, "maximum": 256})
    """Jobs that move files at a time."""
    staging_retry_s: float = 30.0
    """How long staging keeps trying while a service is away: it may be restarting."""
    max_unacknowledged: int = field(default=2000, metadata={"minimum": 1})
    """Ended jobs whose report the gatekeeper has not confirmed; more stop new work."""
    reconnect_max_s: float = field(default=2.0, metadata={"minimum": 0.05})
    prefetch: bool = True
    """Hold a few more jobs than slots when jobs last less than a second, so that no slot waits for the next order."""

    def slot_count(self) -> int:
        """Slots, with the default resolved; 0: the batch system will say."""
        return self.slots or (0 if self.batch == "slurm" else os.cpu_count() or 1)
