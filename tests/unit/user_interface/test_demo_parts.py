"""The parts of the demo that need no grid: payloads, software area, checks, report."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents.broker import jdl as broker_jdl
from agents.user_interface.demo import descriptions, report, run, software
from agents.user_interface.demo.report import JobRecord, Phase, Report

PAYLOADS = Path(software.__file__).parents[1] / "payloads"

FAKE_PYTHIA = '''
"""Stands in for pythia8mc: event n has 2 n charged particles and a photon; every fifth attempt fails."""
import math
class Particle:
    def __init__(self, pdg, charged): self.pdg, self.charged = pdg, charged
    def isFinal(self): return True
    def isCharged(self): return self.charged
    def id(self): return self.pdg
    def px(self): return 1.0
    def py(self): return 0.0
    def pz(self): return math.sinh(0.6)
    def e(self): return 2.0
class Information:
    def sigmaGen(self): return 56.5
    def sigmaErr(self): return 0.1
class Pythia:
    def __init__(self, path, banner): self.attempts = 0; self.number = 0
    def readString(self, setting): return "nonsense" not in setting
    def init(self): return True
    def next(self):
        self.attempts += 1
        if self.attempts % 5 == 0: return False
        self.number += 1
        self.event = [Particle(211, True)] * (2 * self.number) + [Particle(22, False)]
        return True
    def infoPython(self): return Information()
'''


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """A software area with the stand-in and this interpreter."""
    packages = tmp_path / "software" / "lib" / "python" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "pythia8mc.py").write_text(FAKE_PYTHIA)
    (tmp_path / "software" / "bin").mkdir()
    (tmp_path / "software" / "bin" / "python3").symlink_to(sys.executable)
    return tmp_path / "software"


def payload(area: Path, folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a payload as a job does: with nothing but the software area in its environment."""
    folder.mkdir(exist_ok=True)
    environment = {"VO_CMS_SW_DIR": str(area), "PATH": "/usr/bin:/bin"}
    program = [str(PAYLOADS / arguments[0]), *arguments[1:]]
    return subprocess.run(
        ["/bin/sh", str(PAYLOADS / "run.sh"), *program],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=check,
    )  # fmt: skip


def test_events_are_generated_and_every_one_is_counted(area: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    for seed, events in ((1, 10), (2, 6)):
        answer = payload(
            area, job, "generate.py", "--seed", str(seed), "--events", str(events), "--out", f"e-{seed}.gfev"
        )
        assert json.loads(answer.stdout)["events"] == events
    payload(area, job, "analyse.py", "--out", "histogram.json")
    found = json.loads((job / "histogram.json").read_text())
    assert found["events"] == 16
    assert found["files"]["e-1.gfev"] == {"seed": 1, "events": 10, "charged": 2 * sum(range(1, 11))}
    assert found["charged_multiplicity"] == {str(2 * n): 2 if n <= 6 else 1 for n in range(1, 11)}
    assert sum(found["pseudorapidity"]["bins"]) == 2 * sum(range(1, 11)) + 2 * sum(range(1, 7))
    assert found["pseudorapidity"]["bins"].index(max(found["pseudorapidity"]["bins"])) == 42  # eta 0.6


def test_the_same_seed_gives_the_same_bytes(area: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    for name in ("a", "b"):
        payload(area, job, "generate.py", "--seed", "3", "--events", "4", "--out", name)
    assert (job / "a").read_bytes() == (job / "b").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "more", "header", "other"])
def test_a_damaged_event_file_is_not_analysed(area: Path, tmp_path: Path, damage: str) -> None:
    job = tmp_path / "job"
    payload(area, job, "generate.py", "--seed", "1", "--events", "5", "--out", "good")
    content = gzip.decompress((job / "good").read_bytes())
    changed = {
        "cut": content[:-3],
        "more": content + b"\0\0",
        "header": content.replace(b'"charged": 30', b'"charged": 31'),
        "other": b"PNG" + content,
    }[damage]
    assert changed != content
    (job / "bad.gfev").write_bytes(gzip.compress(changed))
    answer = payload(area, job, "analyse.py", "--out", "histogram.json", check=False)
    assert answer.returncode == 1 and answer.stderr.startswith("analyse: bad.gfev")
    assert not (job / "histogram.json").exists()


def test_a_payload_without_software_area_says_so(tmp_path: Path) -> None:
    answer = subprocess.run(
        ["/bin/sh", PAYLOADS / "run.sh", "x"], env={"PATH": "/bin"}, capture_output=True, text=True, check=False
    )
    assert answer.returncode != 0 and "no software area" in answer.stderr


def test_the_payloads_need_nothing_but_the_standard_library() -> None:
    for path in PAYLOADS.glob("*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = ModuleType(path.stem)
        spec.loader.exec_module(module)


def test_the_descriptions_are_jdl_that_the_broker_takes() -> None:
    production = descriptions.production(vo="cms", jobs=40, events=50, folder="lfn:/grid/cms/mc/x")
    assert broker_jdl.local_input_sandbox(production) == ["run.sh", "generate.py", "mpi.dat"]
    analysis = descriptions.analysis(vo="cms", lfns=["lfn:/grid/cms/mc/x/events-1.gfev"])
    (job,) = broker_jdl.normalise(analysis).descriptions
    assert job.input_data == ("lfn:/grid/cms/mc/x/events-1.gfev",)
    template = broker_jdl.normalise(production)
    assert len(template) == 40
    assert template.descriptions[0].output_data[0].lfn == "lfn:/grid/cms/mc/x/events-_PARAM_.gfev"


@pytest.mark.skipif(importlib.util.find_spec("pythia8mc") is None, reason="the generator is not installed")
def test_the_software_area_can_be_read_by_anybody(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        found = software.prepare(tmp_path / "cms", pool_accounts_wanted=True)
        software.prepare(tmp_path / "cms", pool_accounts_wanted=True)  # may be called again
    finally:
        os.umask(before)
    files = [path for path in found.path.rglob("*") if not path.is_symlink()]
    assert len(files) > 100
    for path in files:
        mode = path.stat().st_mode
        assert mode & stat.S_IROTH and (not path.is_dir() or mode & stat.S_IXOTH), path
        assert not mode & stat.S_IWOTH, path
    assert (found.path / "share" / "Pythia8" / "xmldoc" / "Index.xml").is_file()
    assert (found.path / "bin" / "python3").resolve() == found.interpreter.resolve()
    assert bool(found.note) != found.pool_accounts


def test_a_private_folder_is_not_reachable_for_others(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "file").write_text("x")
    (inner / "file").chmod(0o644)
    inner.chmod(0o700)
    assert not software.readable_by_others(inner / "file")
    assert software.readable_by_others(Path("/usr/bin/env"))


def good_report(jobs: int = 2, events: int = 10) -> tuple[Report, dict[str, Any]]:
    """A report of a run in which all went well, and the replicas."""
    found = Report("edg-2003", "0.1", {"cores": 2}, "2026-01-31T12:00:00Z", jobs, events, seconds=42.0)
    found.phases = [Phase("grid up", 0, 12.5), Phase("production", 12.5, 40.0)]
    for number in range(1, jobs + 1):
        job = JobRecord(f"https://h:1/{number}", f"production-{number}", "DONE", "0", ce="ce", site="CERN", worker="w")
        job.wall_s, job.cpu_s, job.started_s, job.ended_s = 1.5, 1.0, 13.0, 20.0
        job.events, job.lfn, job.bytes = events, f"lfn:/grid/cms/{number}", 1000
        found.jobs.append(job)
    found.analysis = JobRecord("https://h:1/a", "analysis", "CLEARED", "0", site="CERN")
    found.histogram = {
        "events": jobs * events,
        "files": {str(n): {} for n in range(jobs)},
        "charged_multiplicity": {"20": jobs * events},
        "mean_charged_multiplicity": 20.0,
        "pseudorapidity": {"low": -10.0, "high": 10.0, "bins": [1] * 80},
    }
    sums = {"adler32": "1", "sha256": "2"}
    replicas = {job.lfn: [{"storage_element": "a:1", **sums}, {"storage_element": "b:1", **sums}] for job in found.jobs}
    return found, replicas


def verdict(found: Report, replicas: dict[str, Any]) -> list[bool]:
    return [check.ok for check in report.checks_of(found, replicas)]


def test_all_is_well_only_if_everything_is() -> None:
    found, replicas = good_report()
    assert verdict(found, replicas) == [True, True, True, True]
    found.checks = report.checks_of(found, replicas)
    assert found.ok
    assert not Report("g", "v", {}, "t", 1, 1).ok  # nothing checked is not well


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r, f: setattr(r.jobs[0], "exit_code", "1"), [False, True, True, True]),
        (lambda r, f: setattr(r.jobs[0], "state", "ABORTED"), [False, True, True, True]),
        (lambda r, f: f[r.jobs[0].lfn].pop(), [True, False, True, True]),
        (lambda r, f: f[r.jobs[0].lfn][1].update(sha256="3"), [True, False, True, True]),
        (lambda r, f: f[r.jobs[0].lfn][1].update(storage_element="a:1"), [True, False, True, True]),
        (lambda r, f: setattr(r, "analysis", None), [True, True, False, True]),
        (lambda r, f: r.histogram.update(events=19), [True, True, True, False]),
        (lambda r, f: r.histogram.update(charged_multiplicity={"20": 21}), [True, True, True, False]),
        (lambda r, f: r.histogram["files"].popitem(), [True, True, True, False]),
    ],
)
def test_each_condition_is_looked_at(change: Any, expected: list[bool]) -> None:
    found, replicas = good_report()
    change(found, replicas)
    assert verdict(found, replicas) == expected


class Tags(HTMLParser):
    """Collects opened tags and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.references: list[str] = []
        self.balance = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_shows_what_happened(tmp_path: Path) -> None:
    found, replicas = good_report()
    found.jobs[1].name = "<script>alert(1)</script>"
    found.checks = report.checks_of(found, replicas)
    plot = report.draw_plot(found.histogram, title="t", cache=tmp_path)
    assert plot.startswith(b"\x89PNG")
    page = report.render_html(found, plot)
    tags = Tags()
    tags.feed(page)
    assert tags.references and all(reference.startswith("data:image/png;base64,") for reference in tags.references)
    assert "script" not in tags.opened and "svg" in tags.opened and tags.opened.count("table") == 6
    assert "Every check holds" in page and "CERN" in page
    json.dumps(found.as_data())


def test_sites_are_summed() -> None:
    found, _ = good_report(jobs=3)
    found.jobs[2].site, found.jobs[2].attempt, found.jobs[2].exit_code = "RAL", 3, "1"
    cern, ral = found.sites()
    assert (cern["site"], cern["jobs"], cern["done"], cern["events"], cern["retries"]) == ("CERN", 2, 2, 20, 0)
    assert (ral["site"], ral["failed"], ral["events"], ral["retries"]) == ("RAL", 1, 0, 2)
    assert report.site_cells(found)[-1][:5] == ["all", "3", "2", "1", "20"]


def test_a_state_folder_can_be_reached_by_pool_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(private))
    folder = run.make_state_folder()
    try:
        assert not folder.is_relative_to(private)
        assert all(parent.stat().st_mode & stat.S_IXOTH for parent in (folder, *folder.parents))
    finally:
        folder.rmdir()
