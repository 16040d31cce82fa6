"""`grid doctor`: each finding with its cure, exit 1 when something is wrong, no surprise from a failing check."""

from __future__ import annotations

import json
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.user_interface import doctor
from agents.user_interface.main import run
from security.testing import TestGrid


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("GRIDFABRIC_", "X509_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "proxy.pem"))
    monkeypatch.setattr("agents.user_interface.endpoints.known_states", list)


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


def test_a_machine_without_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] == (code == 0)
    checks = {finding["check"] for finding in found["findings"]}
    assert {"python", "packages", "disk", "i-nodes", "open files", "clock", "localhost", "user", "grid"} <= checks
    assert all(finding["cure"] for finding in found["findings"] if finding["state"] == "bad")


def test_something_wrong_is_exit_code_1_with_a_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1024))
    monkeypatch.setattr("resource.getrlimit", lambda kind: (100, 200))
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "BAD   disk: 1.0 KiB free" in out and "BAD   open files: ulimit -n is 100" in out
    assert "cure: ulimit -n 4096" in out


def test_a_check_that_cannot_be_made_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise PermissionError("no")

    monkeypatch.setattr("os.statvfs", broken)
    found = {finding.check: finding for finding in doctor.examine_machine()}
    assert found["inodes"].state == doctor.NOTE and "PermissionError" in found["inodes"].detail


def test_a_wrong_date_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(1999, 12, 31, tzinfo=UTC)

    monkeypatch.setattr(doctor, "datetime", Past)
    assert doctor.check_clock().state == doctor.BAD


def test_a_state_folder_that_is_none(tmp_path: Path) -> None:
    (finding,) = doctor.examine_grid(tmp_path, {})
    assert finding.state == doctor.BAD


def test_trust_and_proxy_of_the_user(tmp_path: Path) -> None:
    with closing(TestGrid(tmp_path / "ca", now=datetime.now(UTC))) as grid:
        environ = {"X509_CERT_DIR": str(grid.trust_directory), "X509_USER_PROXY": str(tmp_path / "proxy.pem")}
        services = doctor.endpoints.Endpoints({})
        assert states(doctor.check_trust(services, environ)) == {"authorities": doctor.OK}
        assert states(doctor.check_proxy(environ)) == {"your proxy": doctor.NOTE}
        grid.proxy(grid.user("alice"), lifetime=timedelta(hours=1)).save(tmp_path / "proxy.pem")
        assert states(doctor.check_proxy(environ)) == {"your proxy": doctor.OK}
        for crl in grid.trust_directory.glob("*.r0"):
            crl.unlink()
        assert states(doctor.check_trust(services, environ)) == {"revocation lists": doctor.BAD}
        environ["X509_CERT_DIR"] = str(tmp_path / "nothing")
        assert states(doctor.check_trust(services, environ)) == {"authorities": doctor.BAD}
