"""`grid infosites`: the tables of lcg-infosites, for scripts and eyes that know them."""

from __future__ import annotations

from collections.abc import Iterable

from agents.user_interface import console, information
from fabric.errors import NotFound

RULE = "-" * 64


def ce_table(elements: Iterable[information.ComputingElement]) -> list[str]:
    """The table of `lcg-infosites ce`."""
    lines = ["#   CPU    Free Total Jobs      Running Waiting ComputingElement", RULE]
    lines += [
        f"{ce.total:7} {ce.free:7} {ce.running + ce.waiting:10} {ce.running:12} {ce.waiting:7} {ce.name}"
        for ce in elements
    ]
    return lines


def se_table(elements: Iterable[information.StorageElement]) -> list[str]:
    """The table of `lcg-infosites se`; kilobytes of 1024 bytes, as in GlueSAState."""
    lines = [" Avail Space(kB)  Used Space(kB)  Type\tSE", RULE]
    lines += [f"{se.free_bytes // 1024:16} {se.used_bytes // 1024:15}  {se.kind}\t{se.name}" for se in elements]
    return lines


def close_table(elements: Iterable[information.ComputingElement]) -> list[str]:
    """The list of `lcg-infosites closeSE`."""
    lines: list[str] = []
    for ce in elements:
        lines += [f"Name of the CE: {ce.name}", *(f"\t{se}" for se in ce.close_ses), ""]
    return lines[:-1]


async def infosites_command(vo: str, what: str, server: tuple[str, int], *, as_json: bool) -> None:
    """Print what a VO may use. Raises NotFound if that is nothing."""
    elements = [ce for ce in await information.computing_elements(server) if vo in ce.vos]
    stores = await information.storage_elements(server, vo) if what in ("se", "all") else []
    tables: list[list[str]] = []
    if what in ("ce", "all") and elements:
        tables.append(ce_table(elements))
    if stores:
        tables.append(se_table(stores))
    if what == "closeSE" and elements:
        tables.append(close_table(elements))
    if not tables:
        raise NotFound("NOTHING_FOR_VO", f"nothing is published for the VO {vo}; `grid info ces` shows all VOs", vo=vo)
    if as_json:
        ces = [] if what == "se" else elements
        console.print_json({"ces": information.ce_rows(ces), "ses": information.se_rows(stores)})
        return
    print("\n\n".join("\n".join(lines) for lines in tables))
