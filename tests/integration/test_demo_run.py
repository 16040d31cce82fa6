"""`grid demo` for real, small, from the wheel: all five steps, the report, nothing left behind - also after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.grid, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
MARK = "GRIDFABRIC_TEST_MARK"


@pytest.fixture(scope="module")
def grid() -> Iterator[Path]:
    """The `grid` of the wheel, in an environment of its own that borrows the libraries of this one."""
    with tempfile.TemporaryDirectory(prefix="demo-wheel-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", name, str(ROOT)]
        python = folder / "venv" / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
        for command in (build, [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
            assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = folder.glob("gridfabric-*.whl")
        subprocess.run([*pip, str(wheel)], check=True, timeout=100)
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        theirs = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
        (Path(theirs) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        yield python.with_name("grid")


def start(grid: Path, folder: Path, temporary: Path, *arguments: str, scenario: str = "") -> subprocess.Popen[str]:
    """Start the demo in a session of its own, every process of it marked in its environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRIDFABRIC_", "X509_", "PYTHON"))}
    environment |= {MARK: str(folder), "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [str(grid), "demo", *scenario.split(), "--out", str(folder / "out"), *arguments],
        env=environment, cwd=folder, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs us may ignore it
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that the demo of `folder` started."""
    found = []
    wanted = f"{MARK}={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found


def assert_nothing_left(folder: Path, temporary: Path) -> None:
    """No process and no file; Ray's last helpers have a moment to end."""
    deadline = time.monotonic() + 15
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(folder) == []
    assert list(temporary.iterdir()) == []


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A TMPDIR of its own that pool accounts can reach; pytest's folders are closed to others."""
    with tempfile.TemporaryDirectory(prefix="demo-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_demo_runs_from_nothing_to_the_plot(grid: Path, tmp_path: Path, temporary: Path) -> None:
    process = start(grid, tmp_path, temporary, "--jobs", "6", "--events", "5")
    output, _ = process.communicate(timeout=380)
    assert process.returncode == 0, output
    out = tmp_path / "out"
    found = json.loads((out / "report.json").read_text())
    assert found["ok"] and found["events"] == 30 and len(found["jobs"]) == 6
    assert all(len({replica["storage_element"] for replica in job["replicas"]}) >= 2 for job in found["jobs"])
    assert len({job["site"] for job in found["jobs"]}) > 1
    assert (out / "charged-multiplicity.png").read_bytes().startswith(b"\x89PNG")
    assert "Every check holds" in (out / "report.html").read_text()
    histories = [json.loads(path.read_text()) for path in (out / "histories").glob("*.json")]
    assert len(histories) == 7
    assert all("DONE" in [event["event"] for event in history["events"]] for history in histories)
    names = "analysis analysis.jdl charged-multiplicity.png histories production.jdl report.html report.json"
    assert " ".join(sorted(path.name for path in out.iterdir())) == names
    assert_nothing_left(tmp_path, temporary)


def test_the_stress_test_of_cms_fails_under_the_old_rule_alone(grid: Path, tmp_path: Path, temporary: Path) -> None:
    more = ("--sites", "2", "--files", "48", "--file-kib", "16")
    process = start(grid, tmp_path, temporary, *more, scenario="stress")
    output, _ = process.communicate(timeout=380)
    assert process.returncode == 0, output
    found = json.loads((tmp_path / "out" / "stress.json").read_text())
    old, ours = found["collections"]["planned"], found["collections"]["free"]
    assert found["ok"] and found["produced"] == found["files"] == 48
    assert old["copies"] + old["failed"] == 48 and old["failed"] > 0 and set(old["reasons"]) == {"DISK_FULL"}
    assert set(old["failed_by_dataset"]) <= {"jets", "muons"}
    assert sum(pool["free_bytes"] for pool in old["partitions"]) > old["failed_bytes"]
    assert (ours["copies"], ours["failed"], sum(pool["files"] for pool in ours["partitions"])) == (48, 0, 48)
    assert "while" in (tmp_path / "out" / "stress.html").read_text()
    assert_nothing_left(tmp_path, temporary)


@pytest.mark.parametrize("seconds", [3.0, 9.0])
def test_ctrl_c_leaves_nothing(grid: Path, tmp_path: Path, temporary: Path, seconds: float) -> None:
    process = start(grid, tmp_path, temporary, "--jobs", "4", "--events", "5")
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert_nothing_left(tmp_path, temporary)
