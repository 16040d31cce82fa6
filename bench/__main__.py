"""`python -m bench [--quick] [section...] [--out FOLDER] [--write FILE.md]`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "proto/gen")]

from rich.console import Console  # noqa: E402

from bench import (  # noqa: E402
    bookkeeping,
    catalogue,
    information,
    jobs,
    kept,
    lab,
    limits,
    machine,
    myproxy,
    names,
    present,
    queued,
    running,
    security,
    sessions,
    sight,
    soak,
    startup,
    storage,
    trust,
    vo,
)
from bench.lab import Lab  # noqa: E402
from bench.measure import Bench  # noqa: E402

ALONE: dict[str, Callable[[Bench], None]] = {
    "limits": limits.run,
    "myproxy": myproxy.run,
    "queued": queued.run,
    "security": security.run,
    "sessions": sessions.run,
    "vo": vo.run,
}
ON_LAB: dict[str, Callable[[Bench, Lab], None]] = {
    "storage": storage.run,
    "catalogue": catalogue.run,
    "jobs": jobs.run,
    "sight": sight.run,
}
"""Sections that share one grid."""
OF_SIZES: dict[str, Callable[[Bench, Sequence[int]], None]] = {
    "trust": trust.run,
    "information": information.run,
}
"""Sections that are measured with more and more sites."""
MAX_SITES = 2000
MAX_FILES = 100_000_000
SECTIONS = (
    "limits", "security", "sessions", "storage", "catalogue", "jobs", "sight", "startup", "vo", "myproxy",
    "bookkeeping", "queued", "trust", "information", "names", "kept",
)  # fmt: skip
SOAK, RUNNING = "soak", "running"
"""Only when they are asked for: they take as long as their jobs."""
SOAK_JOBS = 20_000
SLOTS = 8


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the grid beside its machine.")
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"some of: {' '.join(SECTIONS)} (default), {SOAK}, {RUNNING}"
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer trials: a minute or two, rough figures")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/out", help="folder of report.json")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between the markers of this file")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="where grids and files are while measuring")
    parser.add_argument(
        "--sites",
        type=_sizes,
        metavar="N,N",
        default=(),
        help="sizes of the grids of sections trust and information, such as 1,20,192",
    )
    parser.add_argument(
        "--files",
        type=_files,
        metavar="N,N",
        default=(),
        help="sizes of the catalogue (section names) and of the storage element (kept)",
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        metavar="N",
        default=0,
        help=f"how many in sections {SOAK} (usual: {SOAK_JOBS}), {RUNNING} ({running.JOBS}) and bookkeeping "
        f"({bookkeeping.JOBS})",
    )
    found = parser.parse_args(argv)
    unknown = [name for name in found.sections if name not in (*SECTIONS, SOAK, RUNNING)]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are: {' '.join(SECTIONS)} {SOAK} {RUNNING}")
    return found


def _jobs(text: str) -> int:
    count = int(text)
    if count < soak.MIN_JOBS:
        raise ValueError(text)
    return count


def _sizes(text: str, most: int = MAX_SITES) -> tuple[int, ...]:
    found = tuple(int(size) for size in text.split(","))
    if not all(1 <= size <= most for size in found):
        raise ValueError(text)
    return found


def _files(text: str) -> tuple[int, ...]:
    return _sizes(text, MAX_FILES)


def main() -> int:
    """0: everything that was asked for was measured."""
    options = arguments()
    signal.signal(signal.SIGTERM, _interrupted)
    wanted = [name for name in SECTIONS if name in options.sections or not options.sections]
    console = Console(width=None if sys.stdout.isatty() else 180)
    facts = machine.facts()
    console.print(facts["summary"])
    folder = Path(tempfile.mkdtemp(prefix="gridfabric-bench-", dir=options.work))
    folder.chmod(0o755)  # accounts of jobs walk through it
    bench = Bench(folder, options.quick, lambda text: console.print(text, highlight=False, markup=False))
    try:
        _measure(bench, wanted, options.sites)
        if "names" in wanted:
            _section(bench, "names", lambda: names.run(bench, options.files))
        if "kept" in wanted:
            _section(bench, "kept", lambda: kept.run(bench, options.files))
        if "bookkeeping" in wanted:
            _section(bench, "bookkeeping", lambda: bookkeeping.run(bench, options.jobs))
        if SOAK in options.sections:
            _section(bench, SOAK, lambda: _soak(bench, options.jobs or SOAK_JOBS))
        if RUNNING in options.sections:
            _section(bench, RUNNING, lambda: _running(bench, options.jobs or running.JOBS))
    except KeyboardInterrupt:
        bench.problems["the rest"] = "interrupted"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        present.print_tables(bench, console)
        console.print(f"written: {present.write_json(bench, facts, options.out)}")
    if options.write:
        present.write_markdown(present.markdown(bench, facts), options.write)
        console.print(f"written: {options.write}")
    for section, problem in bench.problems.items():
        console.print(f"{section}: not measured: {problem}", style="bold red", markup=False)
    return 1 if bench.problems else 0


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(bench: Bench, wanted: Sequence[str], sizes: Sequence[int]) -> None:
    for name in wanted:
        if name in ALONE:
            _section(bench, name, lambda name=name: ALONE[name](bench))
    on_lab = [name for name in wanted if name in ON_LAB]
    if on_lab:
        _section(bench, "lab", lambda: _on_lab(bench, on_lab))
    if "startup" in wanted:
        _section(bench, "startup", lambda: startup.run(bench))
    for name, section in OF_SIZES.items():
        if name in wanted:
            _section(bench, name, lambda section=section: section(bench, sizes))


def _on_lab(bench: Bench, wanted: Sequence[str]) -> None:
    with lab.started(bench, SLOTS) as grid:
        for name in wanted:
            _section(bench, name, lambda name=name: ON_LAB[name](bench, grid))


def _soak(bench: Bench, jobs: int) -> None:
    with lab.started(bench, SLOTS) as grid:
        soak.run(bench, grid, jobs)


def _running(bench: Bench, jobs: int) -> None:
    with lab.started(bench, -(-jobs // running.WORKERS), running.WORKERS) as grid:
        running.run(bench, grid, jobs)


def _section(bench: Bench, name: str, work: Callable[[], None]) -> None:
    """One section; what goes wrong in it is reported and does not stop the others."""
    bench.say(f"{name} (load {os.getloadavg()[0]:.1f})")
    began = time.monotonic()
    try:
        work()
    except Exception as error:
        bench.problems[name] = f"{type(error).__name__}: {error}"
        bench.say(f"  failed: {bench.problems[name]}")
    bench.say(f"  [{name} took {time.monotonic() - began:.0f} s]")


if __name__ == "__main__":
    sys.exit(main())
