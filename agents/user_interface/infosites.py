"""`grid infosites`: the tables of lcg-infosites 3.0, column for column, for scripts and eyes that know them."""

from __future__ import annotations

from collections.abc import Iterable

from agents.user_interface import console, information
from fabric.errors import NotFound


def ce_table(elements: Iterable[information.ComputingElement]) -> list[str]:
    """The table of `lcg-infosites ce`."""
    lines = ["#   CPU\t   Free\tTotal Jobs\tRunning\tWaiting\tComputingElement", "-" * 64]
    lines += [
        f"{ce.total:7}\t{ce.free:7}\t{ce.running + ce.waiting:10}\t{ce.running:7}\t{ce.waiting:7}\t{ce.name}"
        for ce in sorted(elements, key=lambda ce: ce.name)
    ]
    return lines


def se_table(elements: Iterable[information.StorageElement]) -> list[str]:
    """The table of `lcg-infosites se`; kilobytes of 1024 bytes, as in GlueSAState."""
    lines = [f"{'Avail Space(kB)':>16}{'Used Space(kB)':>16}  {'Type':5}\tSE", "-" * 42]
    lines += [
        f"{se.free_bytes // 1024:16}{se.used_bytes // 1024:16}  {se.kind:5}\t{se.name}"
        for se in sorted(elements, key=lambda se: se.name)
    ]
    return lines


def close_table(elements: Iterable[information.ComputingElement]) -> list[str]:
    """The list of `lcg-infosites closeSE`."""
    lines: list[str] = []
    for ce in sorted(elements, key=lambda ce: ce.name):
        lines += [f"Name of the CE: {ce.name}", *(f"\t{se}" for se in sorted(ce.close_ses)), ""]
    return lines


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
    print("\n".join(line for lines in tables for line in lines))
