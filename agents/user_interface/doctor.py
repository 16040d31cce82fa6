"""`grid doctor`: what is wrong with this machine or with the running grid, and the cure."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agents.user_interface import console, endpoints
from agents.user_interface.exits import Ended, ExitCode, UsageProblem, describe
from fabric import unfetched
from fabric.errors import GridError
from fabric.settings import PROTOCOLS
from fabric.text import counted
from security.errors import SecurityError, os_error_text

OK, NOTE, BAD = "ok", "note", "bad"
"""`note`: works, but less is possible. `bad`: something will not work."""

GIB = 1024**3
MIN_FREE_BYTES = 2 * GIB
"""Ray refuses to work on a nearly full disk, sandboxes and files need some."""
MIN_FREE_INODES = 50_000
MIN_MEMORY_BYTES = 3 * GIB
"""A five-site grid takes 2 GiB, its jobs something on top."""
MIN_OPEN_FILES = 4096
CERTIFICATE_NOTICE = timedelta(days=14)
CONNECT_TIMEOUT_S = 2.0
MAX_CLOCK_SKEW_S = 30.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str
    check: str
    state: str
    detail: str
    cure: str = ""


def doctor_command(state: Path | None, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Look at everything; exit 1 if something is bad. A check that fails in an unforeseen way is itself a finding."""
    findings = list(examine_machine())
    findings += examine_grid(state, environ)
    if as_json:
        console.print_json({"healthy": _healthy(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if not _healthy(findings):
        raise Ended(ExitCode.FAILED)


def _healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.state != BAD for finding in findings)


def _print(findings: Sequence[Finding]) -> None:
    marks = {OK: "ok  ", NOTE: "note", BAD: "BAD "}
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            print(f"{area}:")
        print(f"  {marks[finding.state]}  {finding.check}: {finding.detail}")
        if finding.cure and finding.state != OK:
            print(f"        cure: {finding.cure}")
    bad = sum(finding.state == BAD for finding in findings)
    print(f"{bad} of {len(findings)} checks found something wrong" if bad else f"all {len(findings)} checks passed")


# -- the machine -------------------------------------------------------------------------------------------------------


def examine_machine() -> Iterator[Finding]:
    """Everything that can be known without a grid."""
    checks: tuple[Callable[[], Finding], ...] = (
        check_python, check_packages, check_kernel, check_tools, check_disk, check_inodes, check_memory,
        check_open_files, check_processes, check_clock, check_localhost, check_user, check_namespaces,
    )  # fmt: skip
    for check in checks:
        try:
            yield check()
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield Finding("machine", name, NOTE, f"could not be checked ({type(error).__name__}: {error})")


def check_python() -> Finding:
    """The interpreter's version."""
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    return Finding(
        "machine", "python", OK if good else BAD, f"{version} ({sys.executable})", "install Python 3.11 or newer"
    )


def check_packages() -> Finding:
    """Whether the packages that the grid needs are installed."""
    needed = {
        "ray": "ray",
        "grpc": "grpcio",
        "cryptography": "cryptography",
        "OpenSSL": "pyOpenSSL",
        "classad2": "htcondor",
        "sqlalchemy": "sqlalchemy",
        "psutil": "psutil",
        "rich": "rich",
    }
    demo = {"pythia8mc": "pythia8mc", "matplotlib": "matplotlib"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        return Finding("machine", "packages", BAD, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    lacking = [package for module, package in demo.items() if importlib.util.find_spec(module) is None]
    if lacking:
        return Finding(
            "machine",
            "packages",
            NOTE,
            f"`grid demo` cannot run without {', '.join(lacking)}",
            f"pip install {' '.join(lacking)}",
        )
    return Finding("machine", "packages", OK, "all installed")


def check_kernel() -> Finding:
    """Linux, and what of it is used."""
    if sys.platform != "linux":
        return Finding(
            "machine", "kernel", BAD, f"{platform.system()} is not Linux", "use a Linux machine or container"
        )
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    if shared is None or shared.f_bavail * shared.f_frsize < 64 * 1024**2:
        return Finding(
            "machine", "kernel", BAD, "/dev/shm is missing or nearly full; Ray needs it", "mount a tmpfs on /dev/shm"
        )
    return Finding("machine", "kernel", OK, f"Linux {platform.release()}, {len(os.sched_getaffinity(0))} cores")


def check_tools() -> Finding:
    """Programs that people use with a grid; the grid itself needs none of them."""
    missing = [name for name in ("openssl", "ldapsearch") if shutil.which(name) is None]
    if missing:
        return Finding(
            "machine", "tools", NOTE, f"not installed: {', '.join(missing)} (the grid works without)",
            "apt install openssl ldap-utils",
        )  # fmt: skip
    return Finding("machine", "tools", OK, "openssl and ldapsearch are there")


def _places() -> list[Path]:
    return [
        Path(place) for place in dict.fromkeys((tempfile.gettempdir(), "/var/tmp", os.getcwd())) if os.path.isdir(place)
    ]


def check_disk() -> Finding:
    """Free bytes where states, sandboxes and Ray's files go."""
    free = {place: shutil.disk_usage(place).free for place in _places()}
    worst = min(free, key=lambda place: free[place])
    good = free[worst] >= MIN_FREE_BYTES
    detail = f"{console.bytes_text(free[worst])} free in {worst}"
    return Finding(
        "machine", "disk", OK if good else BAD, detail, f"free at least {console.bytes_text(MIN_FREE_BYTES)} there"
    )


def check_inodes() -> Finding:
    """Free i-nodes: jobs make many small files, and running out looks like a full disk."""
    worst, least = None, 1 << 62
    for place in _places():
        facts = os.statvfs(place)
        if facts.f_files and facts.f_favail < least:
            worst, least = place, facts.f_favail
    if worst is None:
        return Finding("machine", "i-nodes", OK, "these file systems have no fixed number")
    good = least >= MIN_FREE_INODES
    return Finding("machine", "i-nodes", OK if good else BAD, f"{least:,} free in {worst}", "remove small files there")


def check_memory() -> Finding:
    """Memory that can be had without swapping."""
    import psutil

    available = psutil.virtual_memory().available
    good = available >= MIN_MEMORY_BYTES
    return Finding(
        "machine", "memory", OK if good else NOTE, f"{console.bytes_text(available)} available",
        "close other programs, or start a smaller grid: grid up lab",
    )  # fmt: skip


def check_open_files() -> Finding:
    """Descriptors that one process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    good = soft >= MIN_OPEN_FILES
    state = OK if good else NOTE if hard >= MIN_OPEN_FILES or hard == resource.RLIM_INFINITY else BAD
    return Finding("machine", "open files", state, f"ulimit -n is {soft} (hard {hard})", f"ulimit -n {MIN_OPEN_FILES}")


def check_processes() -> Finding:
    """Processes that this user may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    good = soft == resource.RLIM_INFINITY or soft >= 2048
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return Finding("machine", "processes", OK if good else BAD, f"ulimit -u is {shown}", "ulimit -u 4096")


class _Timex(ctypes.Structure):
    """struct timex, large enough; only `modes` is set (0: read)."""

    _fields_ = (("modes", ctypes.c_uint), ("rest", ctypes.c_char * 512))


def check_clock() -> Finding:
    """A plausible date, and whether the kernel's clock is synchronised: certificates depend on it."""
    now = datetime.now(UTC)
    if not 2024 <= now.year <= 2100:
        return Finding(
            "machine", "clock", BAD, f"the clock says {console.time_text(now)}", "set the clock; run an NTP client"
        )
    synchronised: bool | None = None
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(_Timex()))
        synchronised = None if answer < 0 else answer != 5  # TIME_ERROR
    except (OSError, AttributeError):
        pass
    if synchronised is False:
        return Finding(
            "machine", "clock", NOTE, f"{console.time_text(now)}; the kernel says it is not synchronised",
            "run an NTP client (chrony, systemd-timesyncd) if the grid has several machines",
        )  # fmt: skip
    return Finding("machine", "clock", OK, console.time_text(now))


def check_localhost() -> Finding:
    """The name that a lab grid's certificates are for."""
    try:
        found = {str(item[4][0]) for item in socket.getaddrinfo("localhost", None, proto=socket.IPPROTO_TCP)}
    except OSError as error:
        return Finding(
            "machine",
            "localhost",
            BAD,
            f"the name does not resolve ({os_error_text(error)})",
            "add `127.0.0.1 localhost` to /etc/hosts",
        )
    good = "127.0.0.1" in found
    return Finding(
        "machine",
        "localhost",
        OK if good else BAD,
        f"is {', '.join(sorted(found))}",
        "add `127.0.0.1 localhost` to /etc/hosts",
    )


def check_user() -> Finding:
    """Root can give each job a pool account."""
    if os.geteuid() == 0:
        return Finding("machine", "user", OK, "root: payloads run under pool accounts")
    return Finding(
        "machine", "user", NOTE, f"uid {os.geteuid()}: payloads run under your own account, leases are only recorded",
        "run as root (in a container or virtual machine) for pool accounts",
    )  # fmt: skip


def check_namespaces() -> Finding:
    """Network namespaces, for the multi-host tests only."""
    program = shutil.which("unshare")
    if os.geteuid() != 0 or program is None:
        return Finding(
            "machine",
            "namespaces",
            NOTE,
            "not root, or no `unshare`: tests/multihost cannot run here",
            "run them as root",
        )
    answer = subprocess.run([program, "--net", "--mount", "true"], capture_output=True, timeout=10, check=False)
    if answer.returncode != 0:
        return Finding(
            "machine", "namespaces", NOTE, "the kernel refuses new network namespaces: tests/multihost cannot run here",
            "use a machine or a privileged container",
        )  # fmt: skip
    return Finding("machine", "namespaces", OK, "network and mount namespaces can be made")


# -- the grid ----------------------------------------------------------------------------------------------------------


def examine_grid(state: Path | None, environ: Mapping[str, str]) -> list[Finding]:
    """The grid of the state folder or of the environment; one note if there is none."""
    try:
        services = endpoints.find(endpoints.chosen(state, environ))
    except (GridError, UsageProblem) as error:
        missing = getattr(error, "reason", "") == "GRID_UNKNOWN"
        return [
            Finding(
                "grid", "grid", NOTE if missing and state is None else BAD, describe(error)["sentence"], "grid up lab"
            )
        ]
    folder: Path | None = None
    try:
        folder = endpoints.state_folder(state, environ)
    except (GridError, UsageProblem):
        pass
    findings: list[Finding] = []
    running = True
    if folder is not None and (folder / "inventory.json").exists():
        agents, running = check_agents(folder)
        findings += agents
        findings += check_host_certificates(folder)
    findings += check_trust(services, endpoints.chosen(state, environ))
    findings += check_proxy(environ)
    if running:
        findings += asyncio.run(_check_network(services))
    return findings


def check_agents(folder: Path) -> tuple[list[Finding], bool]:
    """Every agent's health; and whether the grid runs at all."""
    from clusters import deploy

    try:
        found = deploy.status(folder)
    except GridError as error:
        return [Finding("grid", "agents", BAD, error.sentence, "grid down; grid up")], False
    if not found.running:
        return [Finding("grid", "agents", BAD, found.detail, "grid up")], False
    bad = [agent for agent in found.agents if agent.state != "green"]
    if not bad:
        restarts = sum(agent.restarts for agent in found.agents)
        more = f", {restarts} restarts so far" if restarts else ""
        return [Finding("grid", "agents", OK, f"all {len(found.agents)} green{more}")], True
    return [
        Finding(
            "grid", f"agent {agent.name}", BAD, f"is {agent.state}: {agent.detail or 'no detail'}",
            f"look into {folder}/sites/{agent.site}/{agent.name}/log.jsonl",
        )
        for agent in bad
    ], True  # fmt: skip


def check_host_certificates(folder: Path) -> list[Finding]:
    """Certificates of the agents and of the operator that end soon."""
    from cryptography import x509

    now = datetime.now(UTC)
    soon: list[tuple[datetime, str]] = []
    count = 0
    for path in [*sorted(folder.glob("sites/*/credentials/*.pem")), folder / "admin.pem"]:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError):
            continue
        count += 1
        if certificate.not_valid_after_utc < now + CERTIFICATE_NOTICE:
            soon.append((certificate.not_valid_after_utc, path.stem))
    if not count:
        return [
            Finding("grid", "host certificates", NOTE, f"none can be read in {folder}", "run this as the grid's owner")
        ]
    if soon:
        first = min(soon)
        return [
            Finding(
                "grid", "host certificates", BAD,
                f"{len(soon)} of {count} end soon, {first[1]} at {console.time_text(first[0])}",
                "grid down; grid up makes new ones",
            )
        ]  # fmt: skip
    return [
        Finding(
            "grid", "host certificates", OK, f"{count} certificates, none ends within {CERTIFICATE_NOTICE.days} days"
        )
    ]


def check_trust(services: endpoints.Endpoints, environ: Mapping[str, str]) -> list[Finding]:
    """Authorities, revocation lists and signing policies as this client would use them."""
    from agents.user_interface.connection import certificates_of
    from security.trust import TrustStore

    try:
        directory = certificates_of(services, environ)
        store = TrustStore(directory)
    except SecurityError as error:
        return [Finding("grid", "authorities", BAD, error.sentence, 'eval "$(grid env)"')]
    now = datetime.now(UTC)
    findings = [
        Finding("grid", "authorities", BAD, problem.sentence, f"look at {directory}") for problem in store.problems
    ]
    alarms = store.alarms(now)
    findings += [
        Finding("grid", "revocation lists", BAD, alarm.sentence, "see that the authority is up: it publishes a new one")
        for alarm in alarms
    ]  # fmt: skip
    if unfetched_lists := unfetched.alarm(directory, now):
        findings.append(Finding("grid", "revocation lists", NOTE, unfetched_lists, "grid ca ls"))
    authorities = store.snapshot().authorities
    if not authorities:
        findings.append(Finding("grid", "authorities", BAD, f"none in {directory}", 'eval "$(grid env)"'))
    elif not findings:
        findings.append(
            Finding("grid", "authorities", OK, f"{len(authorities)} in {directory}, revocation lists are current")
        )
    return findings


def check_proxy(environ: Mapping[str, str]) -> list[Finding]:
    """The user's own proxy."""
    from agents.user_interface import proxy

    try:
        found, path = proxy.load(None, environ)
        left = (found.not_after - proxy.now_utc()).total_seconds()
    except SecurityError as error:
        return [Finding("grid", "your proxy", NOTE, error.sentence, "grid proxy init")]
    if left <= 0:
        return [Finding("grid", "your proxy", BAD, f"{path} has expired", "grid proxy init")]
    state = OK if left > 600 else NOTE
    return [Finding("grid", "your proxy", state, f"{path}, {console.hours_text(left)} left", "grid proxy init")]


async def _check_network(services: endpoints.Endpoints) -> list[Finding]:
    findings = await check_ports(services)
    findings += await check_information(services)
    return findings


async def check_ports(services: endpoints.Endpoints) -> list[Finding]:
    """Whether every port of every service takes connections."""
    wanted = [
        (f"{kind} {endpoint.name}".strip(), endpoint.host, protocol, port)
        for kind, known in services.services.items()
        for endpoint in known
        for protocol in PROTOCOLS
        if (port := getattr(endpoint, protocol))
    ]
    gate = asyncio.Semaphore(32)

    async def closed(host: str, port: int) -> str:
        try:
            async with gate, asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
            return ""
        except TimeoutError:
            return f"no answer within {CONNECT_TIMEOUT_S:g} s"
        except OSError as error:
            return error.strerror or str(error)

    problems = await asyncio.gather(*(closed(host, port) for _, host, _, port in wanted))
    bad = [
        Finding(
            "grid",
            f"port of {name}",
            BAD,
            f"{protocol} {host}:{port}: {problem}",
            "grid status; is a firewall in between?",
        )
        for (name, host, protocol, port), problem in zip(wanted, problems, strict=True)
        if problem
    ]
    return bad or [Finding("grid", "ports", OK, f"all {len(wanted)} take connections")]


async def check_information(services: endpoints.Endpoints) -> list[Finding]:
    """Whether every site is in the tree, heard lately, and by clocks that agree with ours."""
    from agents.user_interface import information

    try:
        entries = await information.search(
            services.one("top", "ldap"), "(|(objectClass=GlueSite)(objectClass=GlueCE)(objectClass=GlueSE))", ("*", "+")
        )
    except GridError as error:
        return [Finding("grid", "information", BAD, error.sentence, "look at the top information server: grid status")]
    findings: list[Finding] = []
    stale = sorted(
        {(information.site_of(e), information.freshness(e)) for e in entries if information.freshness(e) != "current"}
    )
    for site, state in stale:
        findings.append(
            Finding(
                "grid",
                f"information of {site}",
                BAD,
                f"is {state}",
                f"look at the agents of {site} and the network to it",
            )
        )
    seen = {information.site_of(entry) for entry in entries}
    for site in sorted({e.site for kind in ("gatekeeper", "storage") for e in services.all(kind)} - seen):
        findings.append(
            Finding(
                "grid",
                f"information of {site}",
                BAD,
                "nothing is published",
                f"look at the information server of {site}",
            )
        )
    now = datetime.now(UTC)
    ahead = max((_ahead_s(entry, now) for entry in entries), default=0.0)
    if ahead > MAX_CLOCK_SKEW_S:
        findings.append(
            Finding(
                "grid",
                "clocks",
                BAD,
                f"an entry was produced {ahead:.0f} s in the future",
                "synchronise the clocks (NTP)",
            )
        )
    return findings or [
        Finding(
            "grid", "information", OK, f"{counted(len(entries), 'entry')} of {counted(len(seen), 'site')}, all current"
        )
    ]


def _ahead_s(entry: Any, now: datetime) -> float:
    text = entry.first("GridFabricProducedAt")
    for form in ("%Y%m%d%H%M%SZ", "%Y%m%d%H%M%S.%fZ", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ"):
        try:
            return (datetime.strptime(text, form).replace(tzinfo=UTC) - now).total_seconds()
        except ValueError:
            continue
    return 0.0
