"""The table and the page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from string import Template

from agents.user_interface import console
from agents.user_interface.gstat import maps
from agents.user_interface.gstat.model import Row, Site

COLUMNS = (
    "REGION", "COUNTRIES", "SITES", "CPU", "CPU DOW", "DISK TB", "FREE", "RUNNING", "WAITING", "MEASURED TB", "STATUS",
)  # fmt: skip
FOOTNOTE = (
    "CPU: slots published; CPU DOW and DISK: declared by the sites, * estimated; MEASURED: by the storage elements"
)


def cells(row: Row) -> tuple[object, ...]:
    """One region as it is shown."""
    disk = "-" if row.disk_tb is None else f"{row.disk_tb:g}{'*' if row.disk_is_estimated else ''}"
    return (
        row.region or "(no region)", row.countries, row.sites, row.cpus,
        "-" if row.promised_cpus is None else row.promised_cpus, disk, row.free, row.running, row.waiting,
        f"{row.measured_tb:g}", " ".join(f"{name} {count}" for name, count in sorted(row.states.items())),
    )  # fmt: skip


def page(
    at: datetime,
    sites: Sequence[Site],
    rows: Sequence[Row],
    total: Row,
    flags: Sequence[str],
    history: Sequence[tuple[str, str, str]],
    missing: str,
) -> str:
    """The self-contained HTML page. Whatever a site publishes is text in it, never markup."""
    template = Template(resources.files("agents.user_interface.gstat").joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        at=_text(console.time_text(at)),
        flags="".join(f'<p class="flag">{_text(flag)}</p>' for flag in flags),
        map=maps.svg(sites),
        head="".join(f"<th>{column}</th>" for column in COLUMNS),
        rows="".join(_row(cells(row)) for row in rows) + _row(cells(total), ' class="total"'),
        footnote=_text(FOOTNOTE),
        history="".join(_row(change) for change in history),
        missing=f'<p class="quiet">{_text(missing)}</p>' if missing else "",
        sites="".join(_site(site) for site in sorted(sites, key=lambda site: (-site.status.rank, site.name))),
    )


def _row(values: Sequence[object], attributes: str = "") -> str:
    return f"<tr{attributes}>" + "".join(f"<td>{_text(value)}</td>" for value in values) + "</tr>\n"


def _site(site: Site) -> str:
    findings = "<br>".join(f"{finding.status.value}: {_text(finding.sentence)}" for finding in site.findings)
    changed = "-" if site.changed_at is None else console.time_text(site.changed_at)
    took = "-" if site.response_s is None else f"{1000 * site.response_s:.0f} ms"
    return (
        f'<tr><td><span class="dot" style="background:{maps.COLOURS[site.status]}"></span>{site.status.value}</td>'
        f"<td>{_text(site.name)}</td><td>{_text(site.region)}</td><td>{_text(site.location)}</td><td>{site.cpus}</td>"
        f"<td>{len(site.entries)}</td><td>{changed}</td><td>{took}</td><td>{findings}</td></tr>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
