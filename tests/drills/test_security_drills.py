"""`grid drill run --all`: every drill passes on a grid of its own, and the report says how fast.

CI keeps the report: with GRIDFABRIC_DRILL_OUT in the environment it is written there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.user_interface.drill import report
from agents.user_interface.drill.drills import DRILLS
from agents.user_interface.drill.drills.flood import HONEST_CALLS
from agents.user_interface.drill.run import choose
from agents.user_interface.exits import Ended, UsageProblem
from fabric.errors import NotFound

SEED = 1
SERVICES = {"broker.EAST", "bookkeeping.EAST", "catalog.EAST", "gatekeeper.EAST", "gatekeeper.WEST", "storage.EAST",
            "storage.WEST"}  # fmt: skip


def drill(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("X509_", "GRIDFABRIC_", "RAY_"))}
    return subprocess.run(
        [sys.executable, "-m", "agents.user_interface.main", "drill", *arguments],
        env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.mark.grid
@pytest.mark.timeout(620)
def test_every_drill_passes_and_is_reported(tmp_path: Path) -> None:
    out = Path(os.environ.get("GRIDFABRIC_DRILL_OUT") or tmp_path)
    done = drill("run", "--all", "--json", "--seed", str(SEED), "--out", str(out), timeout_s=600)
    assert (out / report.JSON_FILE).exists(), (done.stdout[-3000:], done.stderr[-2000:])
    found = json.loads((out / report.JSON_FILE).read_text())
    assert {
        one["name"]: (one["failures"], one["missing"]) for one in found["drills"] if one["verdict"] != "passed"
    } == {}
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == found
    results: dict[str, Any] = {one["name"]: one for one in found["drills"]}
    assert list(results) == [drill.name for drill in DRILLS] and found["ok"] and found["seed"] == SEED
    for name in ("user-banned", "user-revoked", "membership-suspended"):
        refused = [v for v in results[name]["verdicts"] if v["outcome"] == "refused"]
        assert {v["service"] for v in refused} == SERVICES
        assert all(v["sentence"] and v["after_ms"] is not None for v in refused)
    assert results["user-banned"]["stopped_ms"] is not None
    assert results["flood"]["honest_calls"] >= HONEST_CALLS
    page = (out / report.HTML_FILE).read_text()
    assert all(f'<section id="{name}">' in page for name in results) and "FAILED" not in page
    assert page.count("<svg") == len(results)


def a_report(**changes: Any) -> dict[str, Any]:
    result = {
        "name": "user-banned", "story": "A user is <banned>.", "verdict": "passed", "missing": "", "seconds": 1.0,
        "slowest_refusal_ms": 115.0, "stopped_ms": None, "honest_calls": 3, "honest_failures": 0, "failures": [],
        "notes": ["shared trust"], "figures": {"hosts, ms": 12.0},
        "marks": [{"at_ms": 5.0, "who": "defender", "what": "bans", "service": ""}],
        "verdicts": [
            {"at_ms": 1.0, "service": "storage.A", "person": "Ada", "part": "attacker", "outcome": "served",
             "expected": True, "after_ms": None, "reason": "", "sentence": ""},
            {"at_ms": 120.0, "service": "storage.A", "person": "Ada", "part": "attacker", "outcome": "refused",
             "expected": True, "after_ms": 115.0, "reason": "BANNED", "sentence": "Ada is banned"},
        ],
    }  # fmt: skip
    return {"at": "2026-11-22T08:00:00Z", "ok": True, "seed": 7, "speed": 1.0, "played": ["user-banned"],
            "seconds": 2.0, "drills": [{**result, **changes}]}  # fmt: skip


def test_a_report_is_read_and_its_page_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / report.JSON_FILE).write_text(json.dumps(a_report()))
    report.show(report.load(tmp_path), tmp_path, as_json=False)
    page = (tmp_path / report.HTML_FILE).read_text()
    assert "A user is &lt;banned&gt;." in page and "refused after 115 ms" in page and "Ada is banned" in page
    assert "shared trust" in page and "seed 7" in page
    assert "user-banned" in capsys.readouterr().out


def test_a_failed_drill_ends_with_its_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = a_report(verdict=report.FAILED, failures=["storage.A still serves Ada"]) | {"ok": False}
    with pytest.raises(Ended):
        report.show(failed, tmp_path, as_json=False)
    assert "storage.A still serves Ada" in capsys.readouterr().err


def test_no_report_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="grid drill run"):
        report.load(tmp_path)
    for text in ("", "[]", "{}", '{"drills": [{}]}', "\0"):
        (tmp_path / report.JSON_FILE).write_text(text)
        with pytest.raises(UsageProblem, match="not a report"):
            report.load(tmp_path)


def test_unknown_drills_and_none_are_refused() -> None:
    with pytest.raises(UsageProblem, match="no drill 'nonsense'"):
        choose(["nonsense"], everything=False)
    with pytest.raises(UsageProblem, match="--all"):
        choose([], everything=False)
    assert [drill.name for drill in choose(["flood", "flood"], everything=False)] == ["flood"]


def test_every_drill_has_a_story_and_a_name_of_its_own() -> None:
    assert len({drill.name for drill in DRILLS}) == len(DRILLS)
    assert all(drill.story.endswith(".") for drill in DRILLS)
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert [drill.name for drill in DRILLS if f"`{drill.name}`" not in page] == []
