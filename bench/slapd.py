"""OpenLDAP's slapd with the database and indices of a BDII, holding the entries that our server holds."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.helpers import free_port
from fabric.glue13 import INDEXED_ATTRIBUTES
from fabric.ldap import Entry

SLAPD = shutil.which("slapd", path="/usr/sbin:/usr/lib/openldap:/usr/libexec:/usr/bin")
SCHEMAS = tuple(
    Path("/etc/ldap/schema") / f"{name}.schema"
    for name in ("core", "Glue-CORE", "Glue-CE", "Glue-CESEBind", "Glue-SE", "Glue-MDS", "GLUE20")
)
BDII_INDICES = Path("/etc/bdii/bdii-slapd.conf")
PASSWORD = "bench"
"""Of the writer, on this machine's loopback, for the length of a measurement."""
START_S, LOAD_S = 20.0, 120.0
_OURS_ONLY = ("GridFabric",)


@dataclass(frozen=True)
class Slapd:
    """One that runs."""

    port: int
    pid: int
    load_s: float
    """slapadd -q of everything."""


def missing() -> str:
    """What is not installed; empty if slapd can be run."""
    there = SLAPD is not None and all(path.exists() for path in SCHEMAS)
    return "" if there else "Debian packages slapd and glue-schema are not installed"


@contextlib.contextmanager
def running(folder: Path, entries: Iterable[Entry]) -> Iterator[Slapd]:
    """slapd with `entries`, not synchronous, as a BDII runs it. Raises RuntimeError when it does not start."""
    (folder / "db").mkdir(parents=True)
    configuration, ldif = folder / "slapd.conf", folder / "entries.ldif"
    configuration.write_text(
        "".join(f"include {path}\n" for path in SCHEMAS)
        + f"modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {folder}/slapd.pid\nloglevel 0\n"
        f"sizelimit unlimited\nthreads 16\ndatabase mdb\nsuffix o=grid\nrootdn o=grid\nrootpw {PASSWORD}\n"
        f"directory {folder}/db\nmaxsize 2147483648\ncheckpoint 1024 0\ndbnosync\n" + _indices()
    )
    configuration.chmod(0o600)
    ldif.write_text("".join(map(_ldif, entries)))
    began = time.perf_counter()
    _run([str(SLAPD), "-T", "add", "-q", "-f", str(configuration), "-b", "o=grid", "-l", str(ldif)])
    load_s = time.perf_counter() - began
    port = free_port()
    command = [str(SLAPD), "-d", "0", "-f", str(configuration), "-h", f"ldap://127.0.0.1:{port}/"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _await(port, process)
        yield Slapd(port, process.pid, load_s)
    finally:
        process.terminate()
        process.wait(START_S)


def _indices() -> str:
    """A BDII's own list if it is installed, else ours."""
    if BDII_INDICES.exists():
        lines = [line for line in BDII_INDICES.read_text().splitlines() if re.match(r"index\s+Glue[^2]", line)]
    else:
        lines = [f"index {name} eq" for name in INDEXED_ATTRIBUTES]
    return "\n".join((*lines, "index objectClass eq,pres")) + "\n"


def _ldif(entry: Entry) -> str:
    """As far as Debian's schemas go."""
    lines = [f"dn:: {base64.b64encode(str(entry.dn).encode()).decode()}"]
    for name, values in entry.attributes.items():
        if not name.startswith(_OURS_ONLY):
            kept = (value for value in values if not value.startswith(_OURS_ONLY))
            lines += [f"{name}:: {base64.b64encode(value.encode()).decode()}" for value in kept]
    return "\n".join(lines) + "\n\n"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S)
    if done.returncode:
        raise RuntimeError(f"slapadd: {done.stderr[-500:]}")


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("slapd did not start")
