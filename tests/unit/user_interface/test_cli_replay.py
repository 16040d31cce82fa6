"""Logs in Standard Workload Format: what is read, what is refused, who submits what, and what a replay came to."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from agents.broker.jdl import normalise
from agents.user_interface.exits import ExitCode, UsageProblem
from agents.user_interface.main import run as grid
from agents.user_interface.replay import report, run, swf
from agents.user_interface.replay.report import ReplayedJob, Run
from agents.user_interface.replay.run import Due
from agents.user_interface.replay.swf import Trace, TraceError, TraceJob
from bench import synthetic_trace

SHIPPED = Path(run.__file__).with_name(run.SHIPPED)


def line(number=1, submitted=0, run_s=10, processors=1, user=1, group=1):
    return " ".join(map(str, [number, submitted, -1, run_s, processors, *[-1] * 6, user, group, *[-1] * 5]))


def written(folder: Path, *lines: str) -> Path:
    (folder / "log.swf").write_text("\n".join(lines) + "\n")
    return folder / "log.swf"


def test_the_log_that_is_shipped_can_be_made_again():
    assert SHIPPED.read_text() == "\n".join(synthetic_trace.lines()) + "\n"
    log = swf.read(SHIPPED)
    assert (len(log.jobs), log.left_out) == (200, 0)
    assert {job.group for job in log.jobs} == {1, 2, 3}


def test_jobs_are_sorted_limited_and_left_out_where_nothing_is_known(tmp_path):
    path = written(tmp_path, "; Version: 2.2", line(1, 50), "", line(2, 7, 0), line(3, 60, -1), line(4, 99, 5, 8, 3, 2))
    log = swf.read(path)
    assert [job.submitted_s for job in log.jobs] == [7, 50, 99]
    assert (log.left_out, log.jobs[2]) == (1, TraceJob(99, 5, 8, 3, 2))
    assert len(swf.read(path, 2).jobs) == 2


def test_a_compressed_log_is_read_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "log.swf.gz"
    packed = gzip.compress("\n".join([line(n, n) for n in range(1000)]).encode())
    path.write_bytes(packed)
    assert len(swf.read(path).jobs) == 1000
    for damaged in (packed[: len(packed) // 2], packed[:20] + b"\xff" * 40 + packed[60:], packed[:-8] + b"\0" * 8):
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match="damaged"):
            swf.read(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2 3", "line 2: 18 numbers make a job, and 3 words are here"),
        (line() + " 7", "line 2: 18 numbers make a job, and 19"),
        (line(submitted="soon"), "line 2: field 2 is 'soon', which is no number"),
        (line(run_s="nan"), "line 2: field 4 is nan; numbers from -1"),
        (line(run_s="-5"), "line 2: field 4 is -5"),
        (line(run_s="1e300"), "line 2: field 4 is 1e300"),
        (line(submitted=4_000_000_000), "line 2: a time is longer than a hundred years"),
        ("x" * 5000, "line 2: the line is longer than 4096 bytes"),
        ("\0\1\2", "line 2: 18 numbers"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, told):
    with pytest.raises(TraceError) as caught:
        swf.read(written(tmp_path, "; a comment", text))
    assert told in caught.value.sentence
    assert str(caught.value.facts["line"]) == "2"


def test_a_log_without_jobs_is_refused(tmp_path):
    with pytest.raises(TraceError, match="no job with a submit and a run time"):
        swf.read(written(tmp_path, "; nothing", line(run_s=-1)))


def test_a_log_longer_than_can_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(swf, "MAX_TRACE_BYTES", 100)
    with pytest.raises(TraceError, match="longer than 100 bytes"):
        swf.read(written(tmp_path, *[line(n) for n in range(9)]))


@pytest.mark.parametrize("arguments", [["--speed", "0"], ["--speed", "nan"], ["--speed", "1e9"], ["--speed", "0.001"]])
def test_a_speed_that_makes_no_sense_is_refused_before_anything_is_started(arguments, capsys, tmp_path):
    assert grid(["bench", "replay", *arguments, "--out", str(tmp_path), "--json"]) == ExitCode.USAGE
    assert "--speed" in json.loads(capsys.readouterr().out)["error"]["sentence"]


def test_a_job_that_would_run_for_hours_is_refused():
    log = Trace((TraceJob(0, 7200, 1, 1, 1),), 0)
    with pytest.raises(UsageProblem, match=r"2\.0 hours"):
        run.check_span(log, 1.0)
    run.check_span(log, 2.0)


def test_groups_become_vos_and_users_people_the_largest_first():
    jobs = [TraceJob(10 + 5 * n, 100, 1, 1, 5) for n in range(4)] + [
        TraceJob(20, 50, 1, user, 9) for user in range(1, 9)
    ]
    parts = run.cast(Trace(tuple(jobs), 0), ["cms", "atlas"], 10.0)
    assert parts["atlas", 0] == [Due(0.5 * n, 10.0) for n in range(4)]
    assert {key: len(part) for key, part in parts.items() if key[0] == "cms"} == {
        ("cms", 0): 2, ("cms", 1): 2, ("cms", 2): 1, ("cms", 3): 1, ("cms", 4): 1, ("cms", 5): 1,
    }  # fmt: skip


@pytest.mark.parametrize("burn", [False, True])
def test_what_is_submitted_is_jdl(burn):
    template = normalise(run.describe([Due(0, 1.5), Due(0, 2.25)], burn))
    assert len(template) == 2
    executables = {item.executable for item in template.descriptions}
    assert executables == ({"/bin/sh"} if burn else {"/bin/sleep"})
    assert "2.250" in template.descriptions[1].arguments[-1]
    assert len(normalise(run.describe([Due(0, 1.5)], burn))) == 1


def well(vo, submitted_s, started_s, ended_s, attempts=1):
    return ReplayedJob(vo, submitted_s, "DONE", True, True, attempts, [Run(started_s, ended_s, True)])


def test_figures():
    jobs = [
        well("cms", 0, 1, 5),
        well("cms", 0, 3, 7, attempts=2),
        well("atlas", 1, 5, 9),
        ReplayedJob("atlas", 2, "ABORTED", True, False, 4),
    ]
    found = report.figures(jobs, 2)
    assert (found["jobs"], found["succeeded"], found["failed"], found["retries"]) == (4, 3, 1, 4)
    assert (found["lost"], found["run_twice"], found["running_at_once"]) == (0, 0, 2)
    assert (found["makespan_s"], found["worked_s"], found["utilisation"]) == (9, 12, round(12 / 18, 3))
    assert (found["wait_median_s"], found["wait_p90_s"], found["wait_max_s"]) == (3, 4, 4)
    assert [found["vos"][vo]["slowdown_mean"] for vo in ("cms", "atlas")] == [1.5, 2.0]
    assert found["fairness"] == round(3.5**2 / (2 * (1.5**2 + 2.0**2)), 3)


def test_what_is_lost_or_ran_twice_is_counted():
    twice = ReplayedJob("cms", 0, "DONE", True, True, 2, [Run(0, 1, True), Run(1, 2, True)])
    again = ReplayedJob("cms", 0, "DONE", True, True, 2, [Run(0, 1, False), Run(1, 2, True)])
    found = report.figures([twice, again, ReplayedJob("cms", 0), ReplayedJob("cms", 0, "RUNNING")], 1)
    assert (found["lost"], found["run_twice"], found["succeeded"]) == (2, 1, 2)
    nothing = report.figures([ReplayedJob("cms", 0)], 0)
    assert (nothing["lost"], nothing["utilisation"], nothing["fairness"], nothing["wait_p90_s"]) == (
        1,
        None,
        None,
        None,
    )


def test_the_plot_is_drawn(tmp_path):
    report.draw([well("cms", 0, 1, 5), ReplayedJob("atlas", 0)], 2, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1
