"""What a figure must be read with: processors, load at the start, versions."""

from __future__ import annotations

import os
import platform
import sqlite3
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import psutil

PACKAGES = ("grpcio", "ray", "cryptography", "pyOpenSSL", "SQLAlchemy", "htcondor", "protobuf")


class Facts(TypedDict):
    """Of the machine and of this run."""

    at: str
    processors: int
    processor: str
    memory_gib: float
    load_at_start: tuple[float, float, float]
    kernel: str
    python: str
    sqlite: str
    openssl: str
    packages: dict[str, str]
    summary: str


def facts() -> Facts:
    """Read now."""
    load = os.getloadavg()
    memory = psutil.virtual_memory().total / (1 << 30)
    count = len(os.sched_getaffinity(0))
    at = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    packages = {name: metadata.version(name) for name in PACKAGES}
    summary = (
        f"{at}; {count} cores ({_processor()}), {memory:.0f} GiB; load average at the start {load[0]:.1f}; Python "
        f"{platform.python_version()}, grpcio {packages['grpcio']}, Ray {packages['ray']}, SQLite "
        f"{sqlite3.sqlite_version}."
    )
    if load[0] > count:
        summary += " The machine was busy with other work: read ratios and CPU times, not rates."
    return Facts(
        at=at, processors=count, processor=_processor(), memory_gib=round(memory, 1), load_at_start=load,
        kernel=platform.release(), python=platform.python_version(), sqlite=sqlite3.sqlite_version,
        openssl=ssl.OPENSSL_VERSION, packages=packages, summary=summary,
    )  # fmt: skip


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
