"""The audit chain: what was removed, changed or put in is found; crashes and full disks are told from attacks."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import audit
from fabric.audit import AuditFile, Verdict
from fabric.logs import open_logs

NAME = "audit.jsonl"


def record(number: int) -> dict[str, object]:
    return {"at": f"2026-11-22T12:00:{number % 60:02d}.000000Z", "event": "x", "peer": f"/CN=user{number}"}


def written(folder: Path, count: int = 10, max_bytes: int = 1 << 20, kept: int = 5) -> AuditFile:
    file = AuditFile(folder / NAME, max_bytes, kept)
    for number in range(count):
        file.append(record(number))
    return file


def verdict(file: AuditFile) -> Verdict:
    with file.reading() as (head, descriptors):
        return audit.verify(descriptors, head)


def edited(file: AuditFile, change: Callable[[list[bytes]], list[bytes]]) -> list[str]:
    lines = file.path.read_bytes().splitlines()
    file.path.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    return verdict(file).problems


def test_an_untouched_log_is_whole_over_rotation_and_restart(tmp_path: Path) -> None:
    written(tmp_path, 20, max_bytes=1000).close()
    file = written(tmp_path, 20, max_bytes=1000, kept=5)
    found = verdict(file)
    assert found.problems == []
    assert found.last == 40 and found.entries == found.last - found.first + 1
    assert found.first > 1  # the oldest files are gone, which is no crime
    assert len(list(tmp_path.iterdir())) == 6


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    assert verdict(AuditFile(tmp_path / NAME, 1000, 3)) == Verdict()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: [*lines[:3], lines[3].replace(b"user3", b"user4"), *lines[4:]], "entry 4 was changed"),
        (lambda lines: lines[:3] + lines[4:], "1 entries after 3 are gone"),
        (lambda lines: lines[:3] + lines[8:], "5 entries after 3 are gone"),
        (lambda lines: lines[:-1], "the entries from 10 to 10 were cut off"),
        (lambda lines: lines[:2], "the entries from 3 to 10 were cut off"),
        (lambda lines: [*lines[:5], lines[2], *lines[5:]], "an entry with number 3 was put in after entry 5"),
        (lambda lines: [*lines[:5], b"{}", *lines[5:]], "is not an entry of this log"),
        (lambda lines: [*lines[:5], b"nonsense", *lines[5:]], "is not an entry of this log"),
        (lambda lines: [*lines, b"nonsense"], "is not an entry of this log"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "an entry with number 1 was put in after entry 2"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b"user9", b"user0")], "entry 10 was changed"),
        (lambda lines: [], "the entries from 1 to 10 were cut off"),
        (
            lambda lines: [json.dumps(json.loads(lines[0]) | {"prev": "1" * 64}).encode(), *lines[1:]],
            "entry 1 follows another entry",
        ),
    ],
)
def test_what_was_done_is_told(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], sentence: str) -> None:
    problems = edited(written(tmp_path), change)
    assert problems and sentence in problems[0]


@given(position=st.integers(min_value=0), byte=st.integers(min_value=33, max_value=255))
def test_no_changed_byte_is_overlooked(position: int, byte: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), 4)
        raw = bytearray(file.path.read_bytes())
        position %= len(raw)
        same = raw[position] == byte
        raw[position] = byte
        file.path.write_bytes(raw)
        assert same or verdict(file).problems
        file.close()


def test_a_line_that_a_crash_cut_short_is_no_crime(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.close()
    with file.path.open("ab") as opened:
        opened.write(b'{"at": "2026-11-22T12:0')
    again = written(tmp_path, 2)
    found = verdict(again)
    assert found.problems == [] and found.last == 13
    lines = again.path.read_bytes().splitlines()
    assert json.loads(lines[11]) | {"prev": ""} == {"at": "2026-11-22T12:00:00.000000Z", "event": audit.TORN,
                                                    "lost": 1, "seq": 11, "prev": ""}  # fmt: skip


def test_a_full_disk_is_told_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 3)
    real, full = os.write, True

    def write(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[:7]) if full and len(data) > 1 else real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    file.append(record(3))
    file.append(record(4))
    full = False
    file.append(record(5))
    found = verdict(file)
    assert found.problems == []
    assert [json.loads(line).get("lost") for line in file.path.read_bytes().splitlines() if b"torn" in line] == [2]


def test_a_search_finds_whole_values_in_order(tmp_path: Path) -> None:
    log = open_logs(tmp_path)
    log.audit("a", peer="/CN=ada", job_ids=["https://x/1", "https://x/2"])
    log.audit("b", peer="/CN=adam")
    log.audit("c", leaf="/CN=ada/CN=17", facts={"address": "192.0.2.1:77"})
    log.audit("d", peer='/CN="quoted" \\ ü')
    log.info("e", peer="/CN=ada")
    file = log.audit_file
    assert file is not None

    def events(*about: str, limit: int = 10) -> list[str]:
        with file.reading() as (_, descriptors):
            return [json.loads(line)["event"] for line in audit.search(descriptors, about, limit=limit)]

    assert events("/CN=ada") == ["a", "c"]
    assert events("/CN=ada", limit=1) == ["a"]
    assert events("https://x/2") == ["a"] and events("https://x") == ["a"] and events("https://x/3") == []
    assert events("192.0.2.1") == ["c"]
    assert events('/CN="quoted" \\ ü') == ["d"]
    assert events("/CN=adam", "192.0.2.1") == ["b", "c"]
    log.close()


def test_many_are_named_in_as_many_entries_as_it_takes(tmp_path: Path) -> None:
    log = open_logs(tmp_path)
    log.audit_each("jobs", "job_ids", [f"job{n}" for n in range(250)], peer="/CN=ada")
    log.audit_each("jobs", "job_ids", [], peer="/CN=ada")
    lines = [json.loads(line) for line in (tmp_path / NAME).read_bytes().splitlines()]
    assert [len(line.get("job_ids", [])) for line in lines] == [100, 100, 50, 0]
    assert lines[2]["job_ids"][-1] == "job249"
    log.close()
