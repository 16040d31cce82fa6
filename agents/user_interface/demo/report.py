"""What the demo found, as plain data, as tables on the terminal, and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from agents.user_interface import console


@dataclass
class JobRecord:
    """One job of the demo, with everything known about it at the end."""

    job_id: str
    name: str
    state: str = ""
    exit_code: str = ""
    reason: str = ""
    ce: str = ""
    site: str = ""
    worker: str = ""
    attempt: int = 1
    wall_s: float = 0.0
    cpu_s: float = 0.0
    submitted_s: float = 0.0
    """Seconds since the demo began, as the next two."""
    started_s: float | None = None
    ended_s: float | None = None
    events: int = 0
    lfn: str = ""
    bytes: int = 0
    replicas: list[dict[str, str]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """DONE with exit code 0 (or already CLEARED after it)."""
        return self.state in ("DONE", "CLEARED") and self.exit_code == "0"


@dataclass
class Phase:
    """A part of the demo, in seconds since its beginning."""

    name: str
    started_s: float
    ended_s: float | None = None


@dataclass
class Check:
    """One condition of success."""

    name: str
    ok: bool
    detail: str


@dataclass
class Report:
    """Everything that report.json holds."""

    grid: str
    version: str
    machine: dict[str, Any]
    began_at: str
    jobs_wanted: int
    events_per_job: int
    phases: list[Phase] = field(default_factory=list)
    jobs: list[JobRecord] = field(default_factory=list)
    analysis: JobRecord | None = None
    histogram: dict[str, Any] = field(default_factory=dict)
    bytes_produced: int = 0
    bytes_replicated: int = 0
    bytes_read: int = 0
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if every check was made and holds."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def bytes_moved(self) -> int:
        """Uploaded by jobs, copied between storage elements, and read by the analysis job."""
        return self.bytes_produced + self.bytes_replicated + self.bytes_read

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **asdict(self),
            "ok": self.ok,
            "bytes_moved": self.bytes_moved,
            "events": sum(job.events for job in self.jobs if job.good),
            "sites": self.sites(),
        }

    def sites(self) -> list[dict[str, Any]]:
        """One row for each site that ran production jobs."""
        rows: dict[str, dict[str, Any]] = {}
        for job in self.jobs:
            row = rows.setdefault(
                job.site or "(none)",
                {"site": job.site or "(none)", "jobs": 0, "done": 0, "failed": 0, "wall_s": 0.0, "cpu_s": 0.0,
                 "events": 0, "bytes": 0, "retries": 0},
            )  # fmt: skip
            row["jobs"] += 1
            row["done"] += job.good
            row["failed"] += not job.good
            row["wall_s"] += job.wall_s
            row["cpu_s"] += job.cpu_s
            row["events"] += job.events if job.good else 0
            row["bytes"] += job.bytes
            row["retries"] += max(0, job.attempt - 1)
        return [rows[name] for name in sorted(rows)]


COLUMNS = ("Site", "Jobs", "Done", "Failed", "Events", "Wall time", "CPU time", "Written", "Retries")


def site_cells(report: Report) -> list[list[str]]:
    """The table of sites with its sum, as text."""
    rows = report.sites()
    total: dict[str, Any] = {"site": "all"}
    for key in ("jobs", "done", "failed", "wall_s", "cpu_s", "events", "bytes", "retries"):
        total[key] = sum(row[key] for row in rows)
    return [
        [
            row["site"], str(row["jobs"]), str(row["done"]), str(row["failed"]), f"{row['events']:,}",
            f"{row['wall_s']:.1f} s", f"{row['cpu_s']:.1f} s", console.bytes_text(row["bytes"]), str(row["retries"]),
        ]
        for row in [*rows, total]
    ]  # fmt: skip


def print_report(report: Report) -> None:
    """The tables for a person."""
    from rich import box
    from rich.table import Table

    screen = console.rich_console()
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False, title="Production by site", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "Site" else "right")
    cells = site_cells(report)
    for row in cells[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*cells[-1])
    screen.print(table)
    phases = "   ".join(f"{p.name} {p.ended_s - p.started_s:.1f} s" for p in report.phases if p.ended_s is not None)
    screen.print(phases, soft_wrap=True)
    screen.print(
        f"moved {console.bytes_text(report.bytes_moved)}: {console.bytes_text(report.bytes_produced)} written by jobs, "
        f"{console.bytes_text(report.bytes_replicated)} replicated, "
        f"{console.bytes_text(report.bytes_read)} read by the analysis",
        soft_wrap=True,
    )
    for check in report.checks:
        mark = "[green]yes[/green]" if check.ok else "[bold red]NO [/bold red]"
        screen.print(f"{mark}  {check.name}: {check.detail}", soft_wrap=True)
    for note in report.notes:
        screen.print(f"note: {note}", soft_wrap=True)


def render_html(report: Report, plot_png: bytes) -> str:
    """The page: no link to anything outside."""
    template = string.Template((resources.files(__package__) / "report.html").read_text(encoding="utf-8"))
    picture = base64.b64encode(plot_png).decode() if plot_png else ""
    mean = report.histogram.get("mean_charged_multiplicity")
    total = sum(job.events for job in report.jobs if job.good)
    return template.substitute(
        verdict="Every check holds" if report.ok else "Not every check holds",
        verdict_class="good" if report.ok else "bad",
        grid=html.escape(report.grid),
        began_at=html.escape(report.began_at),
        seconds=f"{report.seconds:.1f}",
        version=html.escape(report.version),
        machine=html.escape(", ".join(f"{name} {value}" for name, value in report.machine.items())),
        events=f"{total:,}",
        jobs=len(report.jobs),
        mean=f"{mean:.1f}" if mean is not None else "-",
        moved=console.bytes_text(report.bytes_moved),
        plot=f'<img alt="charged multiplicity and pseudorapidity" src="data:image/png;base64,{picture}">'
        if picture
        else "",
        sites=table(COLUMNS, site_cells(report), last_is_sum=True),
        checks=table(("Check", "Holds", "Found"), [[c.name, "yes" if c.ok else "NO", c.detail] for c in report.checks]),
        states=table(("State", "Jobs"), _states(report)),
        data=table(
            ("Bytes moved", ""),
            [
                ["written by production jobs", console.bytes_text(report.bytes_produced)],
                ["replicated between storage elements", console.bytes_text(report.bytes_replicated)],
                ["read by the analysis job", console.bytes_text(report.bytes_read)],
            ],
        ),
        phases=_phases(report),
        timeline=_timeline(report),
        job_rows=table(
            ("Job", "Id", "State", "Exit", "Computing element", "Worker", "Attempt", "Wall", "CPU", "Events", "Bytes"),
            [_job_cells(job) for job in (*report.jobs, *([report.analysis] if report.analysis else []))],
        ),
        notes="".join(f"<p class=note>{html.escape(note)}</p>" for note in report.notes),
    )


def _states(report: Report) -> list[list[str]]:
    counts: dict[str, int] = {}
    for job in report.jobs:
        key = f"{job.state or 'UNKNOWN'}, exit {job.exit_code}" if job.exit_code else job.state or "UNKNOWN"
        counts[key] = counts.get(key, 0) + 1
    return [[state, str(count)] for state, count in sorted(counts.items())]


def _job_cells(job: JobRecord) -> list[str]:
    return [
        job.name, job.job_id.rpartition("/")[2], job.state, job.exit_code, job.ce, job.worker, str(job.attempt),
        f"{job.wall_s:.2f} s", f"{job.cpu_s:.2f} s", f"{job.events:,}" if job.events else "",
        console.bytes_text(job.bytes),
    ]  # fmt: skip


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, last_is_sum: bool = False) -> str:
    """A table of HTML; the last row set off if it is a sum."""
    rows = list(rows)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = []
    for number, row in enumerate(rows):
        mark = ' class="sum"' if last_is_sum and number == len(rows) - 1 else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body.append(f"<tr{mark}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _phases(report: Report) -> str:
    rows = [
        [phase.name, f"{phase.started_s:.1f} s", f"{phase.ended_s - phase.started_s:.1f} s"]
        for phase in report.phases
        if phase.ended_s is not None
    ]
    return table(("Phase", "began at", "took"), rows)


_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
WIDTH, LABEL, ROW = 960, 90, 9


def _timeline(report: Report) -> str:
    """Phases as bands and every job as a bar from start to end, by site, as SVG."""
    end = max([report.seconds, *(job.ended_s or 0 for job in report.jobs)], default=0) or 1.0
    scale = (WIDTH - LABEL - 10) / end
    jobs = [job for job in (*report.jobs, *([report.analysis] if report.analysis else [])) if job.started_s is not None]
    sites = sorted({job.site for job in jobs})
    parts: list[str] = []
    y = 22
    for phase in report.phases:
        if phase.ended_s is None:
            continue
        x, width = LABEL + phase.started_s * scale, max(1.0, (phase.ended_s - phase.started_s) * scale)
        parts.append(f'<rect x="{x:.1f}" y="2" width="{width:.1f}" height="14" fill="#dde3ea" stroke="#fff"/>')
        if width > 6.5 * len(phase.name):
            parts.append(f'<text x="{x + 3:.1f}" y="13">{html.escape(phase.name)}</text>')
    for site in sites:
        colour = _COLOURS[sites.index(site) % len(_COLOURS)]
        parts.append(f'<text x="4" y="{y + 9}">{html.escape(site)}</text>')
        for lane in _lanes([job for job in jobs if job.site == site]):
            for job in lane:
                started, ended = job.started_s or 0.0, job.ended_s or end
                x, width = LABEL + started * scale, max(1.0, (ended - started) * scale)
                label = html.escape(f"{job.name}: {job.state}, {ended - started:.2f} s on {job.worker}")
                fill = colour if job.good else "#cc0000"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 2}" rx="1.5" fill="{fill}">'
                    f"<title>{label}</title></rect>"
                )
            y += ROW
        y += 6
    step = next(s for s in (1, 2, 5, 10, 20, 60, 120, 300, 1e9) if end / s <= 14)
    tick = 0.0
    while tick <= end:
        x = LABEL + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="18" x2="{x:.1f}" y2="{y}" stroke="#ccc" stroke-width="0.5"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 12}" text-anchor="middle">{tick:.0f} s</text>')
        tick += step
    label = "timeline of phases and jobs"
    return f'<svg viewBox="0 0 {WIDTH} {y + 18}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _lanes(jobs: list[JobRecord]) -> list[list[JobRecord]]:
    """Jobs that did not overlap share a line."""
    lanes: list[list[JobRecord]] = []
    for job in sorted(jobs, key=lambda job: job.started_s or 0.0):
        for lane in lanes:
            if (lane[-1].ended_s or 1e9) <= (job.started_s or 0.0):
                lane.append(job)
                break
        else:
            lanes.append([job])
    return lanes


def checks_of(report: Report, locations: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Check]:
    """The conditions of success. `locations`: LFN -> replicas, each with what its storage element says of it now."""
    good = sum(job.good for job in report.jobs)
    expected = report.jobs_wanted * report.events_per_job
    replicated = 0
    for job in report.jobs:
        replicas = locations.get(job.lfn, ())
        elements = {replica["storage_element"] for replica in replicas}
        sums = {(replica["adler32"], replica["sha256"]) for replica in replicas}
        replicated += len(elements) >= 2 and len(sums) == 1 and ("", "") not in sums
    counted = int(report.histogram.get("events", 0))
    bins = sum(int(count) for count in report.histogram.get("charged_multiplicity", {}).values())
    files = len(report.histogram.get("files", {}))
    analysis = report.analysis
    return [
        Check("every production job is DONE with exit code 0", good == report.jobs_wanted == len(report.jobs),
              f"{good} of {report.jobs_wanted}"),
        Check("every file has two replicas with equal checksum on different storage elements",
              replicated == report.jobs_wanted, f"{replicated} of {report.jobs_wanted}"),
        Check("the analysis job is DONE with exit code 0", analysis is not None and analysis.good,
              f"{analysis.state} at {analysis.ce}" if analysis else "not run"),
        Check("the histogram holds exactly the events produced",
              counted == bins == expected and files == report.jobs_wanted,
              f"{bins:,} of {expected:,} events, {files} of {report.jobs_wanted} files"),
    ]  # fmt: skip


def preload_plot(cache: Path) -> None:
    """Get ready for `draw_plot`."""
    from agents.user_interface.demo import plot

    plot.preload(cache)


def draw_plot(histogram: Mapping[str, Any], *, title: str, cache: Path) -> bytes:
    """The plot as PNG; matplotlib is loaded only here."""
    from agents.user_interface.demo import plot

    return plot.draw(histogram, title=title, cache=cache)
