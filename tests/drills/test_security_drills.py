"""`grid drill run --all`: every drill passes on a grid of its own, and the report says how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.user_interface.drill.drills import DRILLS
from agents.user_interface.drill.run import choose
from agents.user_interface.exits import UsageProblem


@pytest.mark.grid
@pytest.mark.timeout(420)
def test_every_drill_passes_and_is_reported(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("X509_", "GRIDFABRIC_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-m", "agents.user_interface.main", "drill", "run", "--all", "--json", "--out", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=400, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (tmp_path / "drills.json").exists(), (done.stdout[-3000:], done.stderr[-2000:])
    report = json.loads((tmp_path / "drills.json").read_text())
    assert {result["name"]: result["failures"] for result in report["drills"] if not result["ok"]} == {}
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == report
    results = {result["name"]: result for result in report["drills"]}
    assert list(results) == [drill.name for drill in DRILLS] and report["ok"]
    services = {"broker.EAST", "bookkeeping.EAST", "catalog.EAST", "gatekeeper.EAST", "gatekeeper.WEST",
                "storage.EAST", "storage.WEST"}  # fmt: skip
    for name in ("user-banned", "user-revoked", "membership-suspended"):
        assert set(results[name]["refused_ms"]) == services
        assert all(results[name]["sentences"].values())
    assert results["user-banned"]["stopped_ms"] is not None
    assert results["garbage-flood"]["honest_calls"] > 100
    page = (tmp_path / "drills.html").read_text()
    assert all(f"<h2>{name}: " in page for name in results) and "FAILED" not in page
    assert page.count("<svg") == len(results)


def test_unknown_drills_and_none_are_refused() -> None:
    with pytest.raises(UsageProblem, match="no drill 'nonsense'"):
        choose(["nonsense"], everything=False)
    with pytest.raises(UsageProblem, match="--all"):
        choose([], everything=False)
    assert [drill.name for drill in choose(["token-replayed", "token-replayed"], everything=False)] == [
        "token-replayed"
    ]
