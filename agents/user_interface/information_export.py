"""`grid info export` and `validate`: a whole tree as LDIF that another LDAP server with the GLUE schema takes
(`slapadd`), and whether it is as the EGI profile of GLUE 2.0 wants it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from agents.user_interface import console, glue_rules, information
from agents.user_interface.exits import Ended, ExitCode, UsageProblem
from fabric.ldap.entry import Entry
from security.errors import os_error_text
from security.files import write_atomic

SUFFIXES = {"glue13": "o=grid", "glue2": "o=glue"}
OWN = "gridfabric"
"""What begins with this, in any case, is no GLUE: left out, with the entries that are named by it."""


def glue_only(entries: Iterable[Entry]) -> Iterable[Entry]:
    """The entries without what gridfabric adds to GLUE: states of producers and of sites."""
    for entry in entries:
        if entry.dn.rdns[0][0][0].lower().startswith(OWN):
            continue
        attributes = {name: values for name, values in entry.attributes.items() if not name.lower().startswith(OWN)}
        classes = tuple(name for name in entry.attributes["objectClass"] if not name.lower().startswith(OWN))
        yield Entry(entry.dn, {**attributes, "objectClass": classes})


def ldif(entries: Iterable[Entry]) -> str:
    """Entries as LDIF (RFC 2849), without the version line that slapadd does not take."""
    blocks = [
        "\n".join(
            (
                information.ldif_line("dn", str(entry.dn)),
                *(information.ldif_line(name, value) for name, values in entry.attributes.items() for value in values),
            )
        )
        for entry in entries
    ]
    return "\n\n".join(blocks) + "\n"


async def export_command(schema: str, out: Path, server: tuple[str, int], *, as_json: bool) -> None:
    """Write the tree of one schema to a file, whole or not at all. Raises UsageProblem, Unavailable."""
    found = await _whole_tree(server, schema)
    entries = list(glue_only(found))
    try:
        write_atomic(out, ldif(entries).encode(), 0o644)
    except OSError as error:
        raise UsageProblem(f"{out} cannot be written ({os_error_text(error)})", "FILE_UNWRITABLE") from None
    if as_json:
        console.print_json({"file": str(out), "base": SUFFIXES[schema], "entries": len(entries)})
    else:
        print(f"{len(entries)} entries of {SUFFIXES[schema]} in {out}")


async def _whole_tree(server: tuple[str, int], schema: str) -> list[Entry]:
    patience_s = information.WHOLE_TREE_S
    return await information.search(server, "(objectClass=*)", base=SUFFIXES[schema], timeout_s=patience_s)


async def validate_command(server: tuple[str, int], now: datetime, *, as_json: bool) -> None:
    """Check the GLUE 2.0 tree of a server. Raises Ended if there are errors or warnings."""
    entries = await _whole_tree(server, "glue2")
    found = glue_rules.check(entries, now)
    rows = [{"code": finding.code, "dn": finding.dn, "problem": finding.sentence} for finding in found]
    if as_json:
        console.print_json(rows)
    else:
        for row in rows:
            print(f"{row['code']} {row['dn'] or 'the whole tree'}: {row['problem']}")
        serious = sum(not finding.code.startswith("I") for finding in found)
        print(f"{len(entries)} entries: {serious} errors and warnings, {len(found) - serious} notes")
    if any(not finding.code.startswith("I") for finding in found):
        raise Ended(ExitCode.FAILED)
