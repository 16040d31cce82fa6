"""`grid user add`: a key made here, a certificate from the grid's authority, membership in the VO."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from agents.authority.client import AuthorityClient
from agents.user_interface import console, endpoints
from agents.user_interface.connection import Grid, administrator, as_operator, certificates_of, open_grid
from agents.user_interface.vos import server_of, vo_client
from agents.vo.client import VoClient
from fabric.errors import AlreadyExists, GridError, InvalidRequest, NotFound, Refused
from security.certificates import subject_of
from security.credentials import Credential, PrivateKey, generate_key
from security.files import write_atomic

MAX_NAME_LENGTH = 64
"""X.520 ub-common-name."""


@dataclass(frozen=True)
class User:
    """A new user: certificate with key, and where they were written."""

    credential: Credential
    certificate: Path
    key: Path
    vo: str

    @property
    def subject(self) -> str:
        """The user's DN."""
        return str(self.credential.subject)


def make_request(key: PrivateKey, name: str) -> bytes:
    """The certificate request of a user's key, PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


async def add(
    grid: Grid,
    name: str,
    vo: str,
    groups: Sequence[str],
    folder: Path,
    *,
    renew: bool = False,
    authority: str = "",
    robot: bool = False,
) -> User:
    """Make a user with the administrator's `grid`, certified by the authority of that name, else the grid's first.

    Refuses to replace files. Raises GridError, OSError.
    """
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable() or set(name) & set("/=\"'\\"):
        raise InvalidRequest("NAME_MALFORMED", f"{name[:80]!r} is no common name: letters, digits, spaces, at most 64")
    certificate, key_file = folder / "usercert.pem", folder / "userkey.pem"
    for path in (certificate, key_file):
        if path.exists() and not renew:
            raise AlreadyExists("FILE_EXISTS", f"{path} exists; choose another folder with --out", path=path)
    await server_of(grid, vo)
    if groups:
        await _require_groups(await vo_client(grid, vo), vo, groups)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what can fail here fails before there is a certificate
    key = generate_key("rsa-2048")
    client = AuthorityClient(await grid.channel("authority"))
    try:
        issued = await client.issue_user(name, make_request(key, name), renew=renew, authority=authority, robot=robot)
    except AlreadyExists as error:
        raise AlreadyExists(error.reason, f"{error.sentence}; for a second one: grid user add --renew") from None
    credential = Credential(x509.load_pem_x509_certificate(issued), key)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(key_file, pem, 0o600)
    write_atomic(certificate, issued, 0o644)
    members = await vo_client(grid, vo)
    await members.add_member(str(subject_of(credential.certificate)), name, groups=groups)
    return User(credential, certificate, key_file, vo)


async def _require_groups(client: VoClient, vo: str, groups: Sequence[str]) -> None:
    """Raises NotFound GROUP_UNKNOWN for a group or role that does not exist."""
    known = await client.list_groups()
    for fqan in groups:
        group, _, role = fqan.partition("/Role=")
        if group not in known.groups or (role and role not in known.roles):
            what = f"role {role}" if group in known.groups else f"group {group}"
            raise NotFound(
                "GROUP_UNKNOWN",
                f"{vo} has no {what}; make it with: grid vo {what.partition(' ')[0]} add {what.partition(' ')[2]}",
                vo=vo,
                group=fqan,
            )


USER_SERVICES = ("broker", "bookkeeping", "catalog", "storage", "gatekeeper", "transfer")
"""Whoever maps users by its own copy of the member list."""
KNOWN_WITHIN_S = 20.0
KNOWN_POLL_S = 0.2


async def await_known(grid: Grid, within_s: float = KNOWN_WITHIN_S) -> list[str]:
    """Wait until every service lets the user of `grid` in: each reads the member list on its own every few seconds.

    Returns the services that do not after `within_s`, or that cannot be reached.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s

    async def known(host: str, port: int) -> bool:
        while True:
            try:
                await (await grid.channel_to(host, port)).ready()
                return True
            except Refused as error:
                if error.reason == "VO_NOT_ACCEPTED":
                    return True  # known, and not let in
                if error.reason != "NOT_MAPPED" or loop.time() > deadline:
                    return False
            except GridError as error:
                if error.reason != "MEMBERS_UNKNOWN" or loop.time() > deadline:
                    return False
            await asyncio.sleep(KNOWN_POLL_S)

    wanted = [endpoint for kind in USER_SERVICES for endpoint in grid.services.all(kind) if endpoint.rpc]
    answers = await asyncio.gather(*(known(endpoint.host, endpoint.rpc) for endpoint in wanted))
    return [endpoint.name or endpoint.address for endpoint, answer in zip(wanted, answers, strict=True) if not answer]


async def add_command(
    name: str,
    vo: str | None,
    groups: Sequence[str],
    out: Path | None,
    state: Path | None,
    *,
    renew: bool,
    authority: str,
    robot: bool,
    as_json: bool,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """`grid user add`."""
    folder = endpoints.state_folder(state, environ)
    credential = administrator(folder)
    environ = {**endpoints.chosen(state, environ), "GRIDFABRIC_STATE": str(folder)}
    services = endpoints.find(environ)
    certificates = certificates_of(services, environ)
    target = out or Path(environ.get("HOME", ".")) / ".globus"
    async with open_grid(services, credential, certificates) as grid:
        chosen = vo or grid.vo
        user = await add(grid, name, chosen, groups, target, renew=renew, authority=authority, robot=robot)
    async with open_grid(services, user.credential, certificates) as grid:
        unknown = await await_known(grid)
    facts = {"subject": user.subject, "vo": user.vo, "certificate": str(user.certificate), "key": str(user.key)}
    if unknown:
        named = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        console.warn(f"not yet known to {named}; they read the member list every few seconds")
    if as_json:
        console.print_json(facts)
        return
    console.print_facts(facts)
    print(f"\nNext: X509_USER_CERT={user.certificate} X509_USER_KEY={user.key} grid proxy init")


async def revoke_command(who: str, reason: str, state: Path | None, *, as_json: bool) -> None:
    """`grid user revoke`: a name, a DN, or a serial number."""
    async with as_operator(state) as grid:
        client = AuthorityClient(await grid.channel("authority"))
        if not who.startswith("/"):
            named = [one for one in await client.list_issued() if one.subject.endswith(f"/CN={who}")]
            subjects = {one.subject for one in named}
            if len(subjects) > 1:
                raise InvalidRequest("NAME_AMBIGUOUS", f"{who!r} may be {' or '.join(sorted(subjects))}; give the DN")
            who = next(iter(subjects), who)
        is_name = who.startswith("/")
        serials, number = await client.revoke(
            subject=who if is_name else "", serial="" if is_name else who, reason=reason
        )
    if as_json:
        console.print_json({"serials": serials, "crl_number": number, "reason": reason})
    else:
        console.say(
            f"revoked: {', '.join(serials) or 'nothing was in force'}; list {number} is on its way to every host"
        )


async def certify_command(
    hosts: Sequence[str], service: str, authority: str, out: Path, state: Path | None, *, renew: bool, as_json: bool
) -> None:
    """`grid host certify`."""
    certificate, key_file = out / "hostcert.pem", out / "hostkey.pem"
    for path in (certificate, key_file):
        if path.exists() and not renew:
            raise AlreadyExists("FILE_EXISTS", f"{path} exists; choose another folder with --out", path=path)
    key = generate_key("rsa-2048")
    async with as_operator(state) as grid:
        client = AuthorityClient(await grid.channel("authority"))
        issued = await client.issue_host(
            hosts, make_request(key, hosts[0]), service=service, renew=renew, authority=authority
        )
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(key_file, pem, 0o600)
    write_atomic(certificate, issued, 0o644)
    subject = str(subject_of(x509.load_pem_x509_certificate(issued)))
    facts = {"subject": subject, "hosts": list(hosts), "certificate": str(certificate), "key": str(key_file)}
    if as_json:
        console.print_json(facts)
    else:
        console.print_facts({**facts, "hosts": ", ".join(hosts)})
