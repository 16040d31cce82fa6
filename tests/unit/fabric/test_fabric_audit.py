"""The audit chain: what was removed, changed or put in is found; crashes and full disks are told from attacks."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import audit
from fabric.audit import AuditFile, Verdict
from fabric.clock import ManualClock
from fabric.errors import DataCorrupted
from fabric.logs import open_logs

NAME = "audit.jsonl"


def record(number: int) -> dict[str, object]:
    return {"at": f"2026-11-22T12:00:{number % 60:02d}.000000Z", "event": "x", "peer": f"/CN=user{number}"}


def written(folder: Path, count: int = 10, **limits: Any) -> AuditFile:
    file = AuditFile(folder / NAME, **limits)
    for number in range(count):
        file.append(record(number))
    return file


def verdict(file: AuditFile) -> Verdict:
    with file.reading() as (head, descriptors):
        return audit.verify(descriptors, head)


def lines_of(file: AuditFile) -> list[bytes]:
    with file.reading() as (_, descriptors):
        return [line.encode() for line in audit.search(descriptors, [])]


def edited(file: AuditFile, change: Callable[[list[bytes]], list[bytes]]) -> list[str]:
    lines = file.path.read_bytes().splitlines()
    file.path.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    return verdict(file).problems


def test_an_untouched_log_is_whole_over_closed_files_and_restarts(tmp_path: Path) -> None:
    written(tmp_path, 20, max_bytes=1000).close()
    file = written(tmp_path, 20, max_bytes=1000)
    file.close()
    found = verdict(file)
    assert found.problems == []
    assert (found.first, found.last, found.entries) == (1, 40, 40)
    closed = audit.closed_files(file.path)
    assert len(closed) > 5 and {path.suffix for path in closed} == {".gz"}
    assert {path.stat().st_mode & 0o777 for path in closed} == {0o600}


def test_a_log_that_was_cut_or_written_anew_before_a_start_is_found_by_who_saw_it_before(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.close()
    seen = audit.Head(10, verdict(file).last_hash)
    assert seen == file.head

    def problems(witnessed: audit.Head) -> list[str]:
        again = AuditFile(file.path)  # it takes the end of what it finds for the end
        again.close()
        with again.reading() as (head, descriptors):
            return audit.verify(descriptors, head, witnessed=witnessed).problems

    lines = file.path.read_bytes().splitlines(keepends=True)
    assert problems(seen) == []
    file.path.write_bytes(b"".join(lines[:7]))
    assert problems(seen) == ["the entries from 8 to 10 were seen before and are cut off"]
    file.path.unlink()
    assert problems(seen) == ["the entries from 1 to 10 were seen before and are cut off"]
    written(tmp_path, 15, max_bytes=1 << 20).close()
    assert problems(seen) == []  # the very same entries
    file.path.unlink()
    anew = AuditFile(file.path)
    for number in range(20, 35):
        anew.append(record(number))
    anew.close()
    assert problems(seen) == ["entry 10 is another than was seen before: the log was written anew"]


def test_what_expires_is_said_before_it_goes(tmp_path: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    file = written(tmp_path, 20, max_bytes=1000, clock=clock)
    clock.advance(audit.KEPT_S + 60)
    for number in range(20, 30):
        file.append(record(number))
    file.close()
    found = verdict(file)
    (said,) = [json.loads(line) for line in lines_of(file) if audit.EXPIRED.encode() in line][-1:]
    assert found.problems == [] and found.first == said["through"] + 1 > 10
    assert file.shortfall == ""


def test_too_many_bytes_go_before_their_time_and_the_agent_says_so(tmp_path: Path) -> None:
    for _ in range(20):
        file = written(tmp_path, 6, max_bytes=1000, max_closed_bytes=4000)
        file.close()
    found = verdict(file)
    assert found.problems == [] and found.first > 20
    assert sum(path.stat().st_size for path in audit.closed_files(file.path)) <= 4000
    assert "room for 0.0 days of 90" in file.shortfall and "copy its oldest closed files" in file.shortfall
    assert AuditFile(tmp_path / NAME).shortfall == ""


@pytest.mark.parametrize(
    ("which", "sentence"),
    [(0, "the entries from 1 to 5 are gone and had not expired"), (3, "4 entries after 14 are gone")],
)
def test_a_closed_file_that_somebody_removed_is_missed(tmp_path: Path, which: int, sentence: str) -> None:
    written(tmp_path, 20, max_bytes=800).close()
    file = AuditFile(tmp_path / NAME)
    assert verdict(file).problems == []
    audit.closed_files(file.path)[which].unlink()
    assert sentence in verdict(file).problems[0]
    file.close()


def test_one_more_than_expired_is_missed(tmp_path: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    file = written(tmp_path, 12, max_bytes=800, clock=clock)
    clock.advance(audit.KEPT_S + 60)
    file.append(record(12))
    for number in range(13, 25):
        file.append(record(number))
    file.close()
    assert verdict(file).problems == []
    audit.closed_files(file.path)[0].unlink()
    assert "are gone and had not expired" in verdict(file).problems[0]


def test_a_changed_closed_file_is_found(tmp_path: Path) -> None:
    written(tmp_path, 20, max_bytes=1000).close()
    file = AuditFile(tmp_path / NAME)
    closed = audit.closed_files(file.path)[1]  # entries 7 to 12
    raw = gzip.decompress(closed.read_bytes())
    closed.write_bytes(gzip.compress(raw.replace(b"/CN=user9", b"/CN=userX")))
    assert "was changed" in verdict(file).problems[0]
    closed.write_bytes(gzip.compress(raw)[:-20])
    assert "a closed file is damaged after entry" in verdict(file).problems[0]
    with file.reading() as (_, descriptors), pytest.raises(DataCorrupted, match="damaged"):
        list(audit.search(descriptors, ["/CN=user19"]))
    file.close()


def test_a_crash_while_compressing_leaves_nothing_behind(tmp_path: Path) -> None:
    file = written(tmp_path, 8, max_bytes=1000)
    file.close()
    (packed, *_) = audit.closed_files(file.path)
    plain = packed.with_suffix("")
    plain.write_bytes(gzip.decompress(packed.read_bytes()))  # killed before it was removed
    packed.with_name(f".{packed.name}").write_bytes(b"half")  # or in the middle
    assert verdict(file).problems == []
    AuditFile(tmp_path / NAME).close()
    assert not plain.exists() and packed.exists()
    packed.rename(packed.with_name(f".{packed.name}"))
    plain.write_bytes(gzip.decompress(packed.with_name(f".{packed.name}").read_bytes()))
    again = AuditFile(tmp_path / NAME)
    again.close()
    assert verdict(again).problems == [] and packed.exists()
    assert not list(tmp_path.glob(".*"))


def test_a_search_skips_what_was_closed_before_its_time(tmp_path: Path) -> None:
    file = written(tmp_path, 20, max_bytes=1000)
    file.close()
    with file.reading() as (_, everything), file.reading(datetime.now(UTC).timestamp() + 60) as (_, last):
        assert len(everything) == 4 and len(last) == 1
        assert len(list(audit.search(everything, []))) == 20
        assert len(list(audit.search(everything, ["/CN=user3"]))) == 1


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    assert verdict(AuditFile(tmp_path / NAME)) == Verdict()


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
