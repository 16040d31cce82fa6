"""Log lines: whole, bounded, rotated, and without secrets."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fabric import logs
from fabric.clock import ManualClock
from fabric.logs import LogFile, open_logs

NOW = datetime(2026, 6, 1, 12, 0, 0, 5, tzinfo=UTC)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_line_says_when_who_what_and_in_which_trace(tmp_path: Path) -> None:
    log = open_logs(tmp_path, clock=ManualClock(NOW), fields={"site": "CERN", "agent": "a"}).bind(peer="/CN=x")
    trace = logs.new_trace()
    log.info("job.accepted", job_id="j", nothing=None, size=3)
    assert lines(tmp_path / "log.jsonl") == [
        {
            "at": "2026-06-01T12:00:00.000005Z", "level": "info", "event": "job.accepted", "site": "CERN", "agent": "a",
            "peer": "/CN=x", "trace": trace, "job_id": "j", "size": 3,
        }
    ]  # fmt: skip
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o777 == 0o600


def test_audit_lines_are_in_both_files(tmp_path: Path) -> None:
    log = open_logs(tmp_path)
    log.audit("call.refused", sentence="no")
    log.info("other")
    assert [line["event"] for line in lines(tmp_path / "audit.jsonl")] == ["call.refused"]
    assert [line["event"] for line in lines(tmp_path / "log.jsonl")] == ["call.refused", "other"]


def test_many_of_one_moment_are_as_single_ones(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, object]]] = [
        ("job.done", {"job_id": str(n), "at": "x", "pin": None}) for n in range(3)
    ]
    single, together = (open_logs(tmp_path, clock=ManualClock(NOW), fields={"site": "CERN"}) for _ in range(2))
    for event, fields in events:
        single.info(event, **fields)
    together.info_each([*events, ("key", {"token": "s3cret"})])
    together.info_each([])
    found = lines(tmp_path / "log.jsonl")
    assert found[:3] == found[3:6]
    assert found[6]["token"] == "[not logged]"
    assert len(found) == 7


def test_secrets_do_not_get_in(tmp_path: Path) -> None:
    log = open_logs(tmp_path)
    log.info(
        "x", session="s3cret", token="s3cret", proof=b"s3cret", detail={"password": "s3cret"},
        text="-----BEGIN PRIVATE KEY-----s3cret", listed=["-----BEGIN EC PRIVATE KEY-----s3cret"], raw=b"s3cret",
    )  # fmt: skip
    assert "s3cret" not in (tmp_path / "log.jsonl").read_text()


def test_a_field_cannot_replace_who_and_when(tmp_path: Path) -> None:
    log = open_logs(tmp_path, fields={"agent": "a"})
    log.info("x", at="never", agent="b", level="z")
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["agent"] == "a" and line["agent_"] == "b" and line["level"] == "info" and line["at_"] == "never"


@pytest.mark.parametrize("value", ["x" * 100_000, ["y" * 9000] * 500, {str(n): n for n in range(1000)}])
def test_values_are_bounded(tmp_path: Path, value: Any) -> None:
    open_logs(tmp_path).info("x", value=value)
    assert (tmp_path / "log.jsonl").stat().st_size < 500_000


@pytest.mark.parametrize(
    "value", ["line\nbreak\x00\x1b[31m", "\udc80", object(), {1, 2}, float("inf"), datetime.now(UTC)]
)
def test_any_value_makes_one_line(tmp_path: Path, value: Any) -> None:
    open_logs(tmp_path).info("x", value=value)
    assert len((tmp_path / "log.jsonl").read_bytes().splitlines()) == 1


def test_tracebacks_are_kept_whole_enough(tmp_path: Path) -> None:
    log = open_logs(tmp_path)
    try:
        raise ValueError("deep trouble")
    except ValueError as error:
        log.exception("defect", error, incident="i")
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["incident"] == "i" and "test_fabric_logs.py" in line["traceback"]


def test_rotation_keeps_every_line_of_the_kept_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = LogFile(path, max_bytes=1000, kept=2)
    threads = [
        threading.Thread(target=lambda n=n: [file.write(f"{n:03d} {i:03d}\n".encode()) for i in range(40)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["f", "f.1", "f.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)
    assert all(len(line) == 7 for name in names for line in (tmp_path / name).read_text().splitlines())


def test_a_file_that_cannot_be_written_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = LogFile(tmp_path / "f", 100, 1)
    file.path = tmp_path / "gone" / "f"
    for _ in range(5):
        file.write(b"x" * 80 + b"\n")
    assert "cannot write a log" in capsys.readouterr().err
    assert len((tmp_path / "f").read_bytes()) == 5 * 81  # what cannot be rotated goes on in the old file
    file.close()
    file.write(b"late\n")


def test_warnings_of_libraries_come_along(tmp_path: Path) -> None:
    log = open_logs(tmp_path)
    logger = logging.getLogger("some.library")
    handler = logs.StandardLibraryHandler(log)
    logger.addHandler(handler)
    try:
        logger.info("no")
        logger.warning("look: %s", "here")
        try:
            raise KeyError("k")
        except KeyError:
            logger.exception("bad")
    finally:
        logger.removeHandler(handler)
    found = lines(tmp_path / "log.jsonl")
    assert [line["message"] for line in found] == ["look: here", "bad"]
    assert "KeyError" in found[1]["traceback"]
