"""OpenLDAP's slapd, run with entries of ours, to ask it what we ask ourselves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from fabric.ldap import Entry, LdapClient, LdapError, parse_dn
from fabric.ldap import protocol as p

SLAPD = shutil.which("slapd", path="/usr/sbin:/usr/lib/openldap:/usr/libexec:/usr/bin")
GLUE_SCHEMA_FILES = tuple(
    Path("/etc/ldap/schema") / f"{name}.schema"
    for name in ("Glue-CORE", "Glue-CE", "Glue-CESEBind", "Glue-SE", "Glue-MDS", "GLUE20")
)
"""Of Debian's package glue-schema."""

Found = tuple[int, str, dict[str, dict[str, frozenset[bytes]]]]
"""Result code, matched name, and the entries with their attributes."""


def to_ldif(entries: list[Entry]) -> str:
    lines: list[str] = []
    for entry in entries:
        lines.append("dn:: " + base64.b64encode(str(entry.dn).encode()).decode())
        for name, values in entry.attributes.items():
            lines += [f"{name}:: " + base64.b64encode(value.encode()).decode() for value in values]
        lines.append("")
    return "\n".join(lines) + "\n"


def database(suffix: str, folder: Path) -> str:
    """A part of slapd.conf; the folder is made."""
    folder.mkdir()
    return f'database mdb\nsuffix "{suffix}"\nmaxsize 1073741824\ndirectory {folder}\nlimits * size=unlimited\n'


@contextlib.asynccontextmanager
async def running_slapd(folder: Path, configuration: str, entries: dict[str, list[Entry]]) -> AsyncIterator[int]:
    """The port of a slapd that holds the entries, by suffix. `configuration` is slapd.conf without its databases."""
    path = folder / "slapd.conf"
    head = f"{configuration}\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {folder}/slapd.pid\n"
    path.write_text(head + "".join(database(suffix, folder / f"db-{suffix}") for suffix in entries))
    for suffix, held in entries.items():
        ldif = folder / "entries.ldif"
        ldif.write_text(to_ldif(held))
        loaded = await asyncio.to_thread(
            subprocess.run,
            [str(SLAPD), "-T", "add", "-f", str(path), "-b", suffix, "-l", str(ldif)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert loaded.returncode == 0, loaded.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        str(SLAPD), "-d", "0", "-f", str(path), "-h", f"ldap://127.0.0.1:{port}/", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(LdapError):
                    await (await LdapClient.connect("127.0.0.1", port)).close()
                    break
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def ask(client: LdapClient, request: p.SearchRequest) -> Found:
    """One search, whole."""
    """Result code, matched name, and the entries with their attributes."""
    message_id = client.send(request)
    found: dict[str, dict[str, frozenset[bytes]]] = {}
    while True:
        message = await client.receive()
        assert message.message_id == message_id
        operation = message.operation
        if isinstance(operation, p.SearchResultEntry):
            key = ",".join(parse_dn(operation.dn).key)
            found[key] = {name.lower(): frozenset(values) for name, values in operation.attributes}
        elif isinstance(operation, p.Result):
            return operation.code, operation.matched.lower(), found
