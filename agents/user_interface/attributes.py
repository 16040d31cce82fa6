"""VOMS attributes for the user's proxy: asked of VO servers, and shown with whether they verify."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from agents.user_interface import endpoints
from agents.user_interface.connection import Grid, open_grid
from agents.user_interface.endpoints import Endpoints
from agents.user_interface.exits import UsageProblem
from agents.user_interface.vos import server_of, vo_client
from agents.vo.client import fetch_by_voms
from fabric.errors import Conflict, NotFound, Unavailable
from security import voms
from security.certificates import subject_of
from security.credentials import Credential, find_certificate_directory
from security.errors import SecurityError, utc_text
from security.files import read_bounded
from security.names import DistinguishedName
from security.proxies import create_proxy
from security.trust import TrustSnapshot, TrustStore
from security.validation import ValidationPolicy, validate_client_chain

MAX_VOMSES_BYTES = 1024 * 1024
_QUOTED = re.compile(r'"([^"]*)"')
ASKING_LIFETIME = timedelta(minutes=10)
"""Of the proxy with which the VO server is asked; it stays in memory."""


@dataclass(frozen=True)
class Request:
    """What one or more `--voms` options of the same VO ask for."""

    vo: str
    fqans: tuple[str, ...]


def parse_requests(texts: Sequence[str]) -> tuple[Request, ...]:
    """`cms`, `cms:/cms/Role=production`, `cms:/cms/higgs`, `cms:all`; one request for each VO, in order.

    Raises UsageProblem.
    """
    wanted: dict[str, list[str]] = {}
    for text in texts:
        vo, colon, fqan = text.partition(":")
        if not vo or "/" in vo or (colon and not (fqan == "all" or fqan.startswith("/"))):
            raise UsageProblem(
                f"--voms {text[:100]!r} is not VO or VO:/VO/GROUP/Role=ROLE, for instance cms:/cms/higgs"
            )
        wanted.setdefault(vo, []).append(fqan or f"/{vo}")
    return tuple(Request(vo, tuple(fqans)) for vo, fqans in wanted.items())


async def fetch(
    user: Credential,
    requests: Sequence[Request],
    lifetime: timedelta,
    now: datetime,
    environ: Mapping[str, str],
    vomses: Path | None = None,
    targets: Sequence[str] = (),
) -> tuple[list[bytes], list[str]]:
    """An attribute certificate for each request (DER), and the servers' warnings. `targets`: only for these hosts.

    VOs of this grid are asked by gRPC; others, and all with `vomses`, by the HTTPS of VOMS. Raises GridError with the
    VO server's sentence, NotFound VO_UNKNOWN.
    """
    try:
        services = endpoints.find(environ)
    except NotFound:
        services = Endpoints({})
    certificates = environ.get("X509_CERT_DIR") or services.certificates or find_certificate_directory(environ)
    asking = create_proxy(user, lifetime=ASKING_LIFETIME, now=now)
    encoded: list[bytes] = []
    warnings: list[str] = []
    async with open_grid(services, asking, Path(certificates)) as grid:
        for request in requests:
            foreign = VomsList.of(environ, vomses).servers_of(request.vo)
            if foreign and (vomses is not None or not await _is_known(grid, request.vo)):
                trust = TrustStore(Path(certificates)).snapshot()
                made, warned = await _ask_any(foreign, request, asking, lifetime, trust, now, targets)
            else:
                client = await vo_client(grid, request.vo)
                answer = await client.issue_attributes(request.fqans, lifetime.total_seconds(), targets=targets)
                made, warned = answer.attribute_certificate, tuple(answer.warnings)
            _require_ours(made, request, user, targets)
            encoded.append(made)
            warnings += warned
    return encoded, warnings


async def _is_known(grid: Grid, vo: str) -> bool:
    try:
        await server_of(grid, vo)
    except NotFound:
        return False
    return True


async def _ask_any(
    servers: Sequence[VomsesEntry],
    request: Request,
    asking: Credential,
    lifetime: timedelta,
    trust: TrustSnapshot,
    now: datetime,
    targets: Sequence[str],
) -> tuple[bytes, tuple[str, ...]]:
    """The first answer; a server that cannot be reached is followed by the next, a refusal by none."""
    for number, server in enumerate(servers, 1):
        try:
            return await fetch_by_voms(
                server.host,
                server.port,
                server.subject,
                asking,
                request.fqans,
                int(lifetime.total_seconds()),
                trust,
                ValidationPolicy(),
                now,
                targets,
            )
        except Unavailable:
            if number == len(servers):
                raise
    raise AssertionError


@dataclass(frozen=True)
class VomsesEntry:
    """One line of a vomses file."""

    nick: str
    host: str
    port: int
    subject: DistinguishedName
    vo: str


@dataclass(frozen=True)
class VomsList:
    """The lines of the vomses files that this user has."""

    entries: tuple[VomsesEntry, ...]

    @classmethod
    def of(cls, environ: Mapping[str, str], named: Path | None) -> VomsList:
        """Of the file or folder named, else of VOMS_USERCONF, X509_VOMSES, ~/.voms/vomses, /etc/vomses together.

        Raises UsageProblem for a named one that cannot be read or understood; elsewhere bad lines say nothing.
        """
        home = Path(environ.get("HOME", "/"))
        places = [environ[name] for name in ("VOMS_USERCONF", "X509_VOMSES") if environ.get(name)]
        usual = [*map(Path, places), home / ".voms" / "vomses", home / ".glite" / "vomses", Path("/etc/vomses")]
        entries: list[VomsesEntry] = []
        for place in [named] if named is not None else usual:
            for path in sorted(place.iterdir()) if place.is_dir() else [place]:
                try:
                    text = read_bounded(path, MAX_VOMSES_BYTES).decode("utf-8")
                    entries += _vomses(text)
                except (OSError, ValueError, SecurityError) as error:
                    if named is not None:
                        raise UsageProblem(f"the vomses file {path} cannot be used ({error})") from None
        return cls(tuple(dict.fromkeys(entries)))

    def servers_of(self, vo: str) -> tuple[VomsesEntry, ...]:
        """By the name that users give a VO."""
        return tuple(entry for entry in self.entries if vo in (entry.nick, entry.vo))


def _vomses(text: str) -> list[VomsesEntry]:
    """`"nick" "host" "port" "DN" "vo" ["version"]`. Raises ValueError naming the line, SecurityError for a DN."""
    found: list[VomsesEntry] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = _QUOTED.findall(line)
        if len(parts) < 5 or not parts[2].isdigit() or not 0 < int(parts[2]) < 65536:
            raise ValueError(f'line {number} is not "nick" "host" "port" "DN" "vo"')
        found.append(VomsesEntry(parts[0], parts[1], int(parts[2]), DistinguishedName.parse(parts[3]), parts[4]))
    return found


def _require_ours(encoded: bytes, request: Request, user: Credential, targets: Sequence[str]) -> None:
    """Before it goes into a proxy that every service would refuse because of it."""
    extension = voms.proxy_extension([encoded])
    (entry,) = voms.parse_extension(extension.value)
    holder = next(c for c in user.certificates if subject_of(c) == user.identity)
    if entry.vo != request.vo or entry.holder_serial != holder.serial_number:
        raise Conflict(
            "ATTRIBUTES_OF_OTHERS",
            f"the server of {request.vo} sent attributes of {entry.vo} for another certificate; tell its operator",
        )
    if set(entry.targets or ()) != {target.lower() for target in targets}:
        raise Conflict(
            "TARGETS_IGNORED",
            f"the server of {request.vo} sent attributes for {', '.join(entry.targets or ()) or 'any host'} where "
            f"{', '.join(targets) or 'any host'} was asked for; it does not know --target",
        )


# Showing


def vomsdir(environ: Mapping[str, str]) -> Path:
    """X509_VOMS_DIR, else beside the directory of authorities, else /etc/grid-security/vomsdir."""
    if environ.get("X509_VOMS_DIR"):
        return Path(environ["X509_VOMS_DIR"])
    beside = Path(environ.get("X509_CERT_DIR", "/etc/grid-security/certificates")).parent / "vomsdir"
    return beside if beside.is_dir() else Path("/etc/grid-security/vomsdir")


def show(proxy: Credential, now: datetime, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """The attribute certificates of a proxy, as it carries them, each with whether it verifies and why not."""
    carried: tuple[voms.AttributeCertificate, ...] = ()
    for certificate in proxy.certificates:
        try:
            carried = voms.attribute_certificates(certificate)
        except SecurityError as error:
            return [{"verified": False, "problem": error.sentence}]
        if carried:
            break
    if not carried:
        return []
    problems = _verify(proxy, now, environ, carried)
    return [
        {
            "vo": entry.vo,
            "fqans": list(entry.fqans),
            "attributes": {attribute.name: attribute.value for attribute in entry.attributes},
            "targets": list(entry.targets or ()),
            "issuer": str(entry.issuer),
            "uri": entry.uri,
            "serial": f"{entry.serial:X}",
            "not_after": utc_text(entry.not_after),
            "seconds_left": max(0, int((entry.not_after - now).total_seconds())),
            "verified": not problem,
            "problem": problem,
        }
        for entry, problem in zip(carried, problems, strict=True)
    ]


def _verify(
    proxy: Credential, now: datetime, environ: Mapping[str, str], carried: Sequence[voms.AttributeCertificate]
) -> list[str]:
    """For each attribute certificate why it is not good; empty if it is, at the hosts that it is for."""
    policy = ValidationPolicy()
    try:
        trust = TrustStore(find_certificate_directory(environ)).snapshot()
        identity = validate_client_chain(proxy.pem_chain(), trust, policy, now)
        named = frozenset(host for entry in carried for host in entry.targets or () if host)
        servers = replace(voms.VomsDirectory.load(vomsdir(environ)), hosts=named)
    except SecurityError as error:
        return [error.sentence] * len(carried)
    return voms.objections(identity, servers, trust, policy, now)


def lines(shown: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """What `grid proxy info --all` prints of each."""
    printed: list[dict[str, object]] = []
    for entry in shown:
        if "vo" not in entry:
            printed.append({"attributes": f"not readable: {entry['problem']}"})
            continue
        facts: dict[str, object] = {"VO": entry["vo"], "issuer": entry["issuer"], "server": entry["uri"]}
        facts["groups and roles"] = " ".join(entry["fqans"])
        if entry["attributes"]:
            facts["attributes"] = " ".join(f"{name}={value}" for name, value in entry["attributes"].items())
        if entry["targets"]:
            facts["only for"] = " ".join(entry["targets"])
        facts["not after"] = entry["not_after"]
        facts["verified"] = "yes" if entry["verified"] else f"no: {entry['problem']}"
        printed.append(facts)
    return printed
