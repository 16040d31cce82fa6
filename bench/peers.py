"""Figures of other systems, to read ours beside them.

Measured by us with Debian's packages of each system in its best setting, on another day on a machine of the same kind:
2 cores, shared, everything on loopback. They are quoted, not measured in the run that shows them.
"""

from __future__ import annotations

SOURCE = (
    "Peers: Debian packages of Globus GCT 6.2, ARC A-REX 6.17, Slurm 22.05 and OpenLDAP slapd 2.5 with BDII 6, each in "
    "its best setting, measured by us on the same kind of machine (2 shared cores, loopback) on another day; medians."
)

PEERS: dict[str, str] = {
    "jobs": "Globus 5.5; A-REX 5.6; Slurm alone 23, tuned with 64 slots 62",
    "accepted": "Globus 3.3; A-REX 551 (one POST), 1.4-43 (arcsub); Slurm 150-320",
    "job_cpu": "Globus 233 + 70 client; A-REX 270-1 800; Slurm 21-27",
    "latency": "Globus 240, submit to started only",
    "upload_1": "GridFTP, encrypted, 2 GiB: 638",
    "download_1": "GridFTP, encrypted, 2 GiB: 959 (clear 1 252)",
    "small_put": "GridFTP 1 416",
    "small_get": "GridFTP 2 104 pipelined, 108 plain",
    "tree_put": "GridFTP 1 416, pipelined, not registered",
    "tree_get": "GridFTP 2 104, pipelined",
    "searches_1": "slapd 12 600, point query",
    "searches_4": "slapd 27 600, point query",
    "px_command": "MyProxy server 6.2: 224",
    "delay": "BDII cycle 2 700 for 193 changes, 8 000 the first",
}
"""By figure; in the figure's own unit."""
