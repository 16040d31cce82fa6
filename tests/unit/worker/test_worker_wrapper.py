"""The job wrapper as a real shell runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.worker.wrapper import MAX_STAGES_BYTES, NOT_EXECUTABLE, STAGES_NAME, TIMED_OUT, read_stages, wrapped

SH = ("/bin/sh", "-c")


def run(
    folder: Path, payload: Sequence[str], prologue: Sequence[str] = (), epilogue: Sequence[str] = (), time_s: float = 30
) -> tuple[int, str, dict[str, str]]:
    """Exit code, what was printed, the stages."""
    done = subprocess.run(
        wrapped(payload, prologue, epilogue, time_s=time_s, grace_s=0.1),
        cwd=folder, input="typed\n", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    file = folder / STAGES_NAME
    return done.returncode, done.stdout, read_stages(file.read_bytes()) if file.exists() else {}


def test_three_stages_in_order_and_the_programs_exit_code(tmp_path: Path) -> None:
    made = run(tmp_path, (*SH, "cat; cat x; exit 3"), (*SH, "cat; echo one > x"), (*SH, "cat; echo two; exit 4"))
    assert made == (3, "typed\none\ntwo\n", {"prologue": "0", "payload": "3", "epilogue": "4"})


@pytest.mark.parametrize(
    ("prologue", "code"),
    [((*SH, "exit 7"), 7), (("/nonexistent",), 127), ((*SH, "kill -9 $$"), 137), (("/etc/passwd",), 126)],
)
def test_nothing_is_started_after_a_failed_prologue(tmp_path: Path, prologue: Sequence[str], code: int) -> None:
    assert run(tmp_path, (*SH, "echo payload"), prologue, (*SH, "echo after")) == (code, "", {"prologue": str(code)})


def test_a_program_that_is_not_there_is_told_from_one_that_ends_with_127(tmp_path: Path) -> None:
    assert run(tmp_path, ("/nonexistent",), ("/bin/true",))[2] == {"prologue": "0", "payload": NOT_EXECUTABLE}
    assert run(tmp_path, (str(tmp_path),), ("/bin/true",))[2]["payload"] == NOT_EXECUTABLE
    assert run(tmp_path, (*SH, "exit 127"), ("/bin/true",))[2]["payload"] == "127"


def test_a_prologue_that_makes_the_program(tmp_path: Path) -> None:
    program = tmp_path / "made"
    text = f"printf '#!/bin/sh\\necho made $1' > {program}; chmod +x {program}"
    assert run(tmp_path, (str(program), "it"), (*SH, text))[1] == "made it\n"


def test_a_script_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    code, _, stages = run(tmp_path, ("/bin/true",), (*SH, "exec sleep 100"), time_s=0.1)
    assert (code, stages) == (124, {"prologue": "124"})
    (tmp_path / STAGES_NAME).unlink()
    stubborn = (*SH, "trap '' TERM; while :; do sleep 0.01; done")
    code, _, stages = run(tmp_path, ("/bin/true",), (), stubborn, time_s=0.1)
    assert (code, stages["payload"]) == (0, "0")
    assert stages["epilogue"] in TIMED_OUT  # by SIGTERM if that came before its trap


def test_no_argument_means_anything_to_the_shell(tmp_path: Path) -> None:
    words = ["a b", "'", '"; echo no; "', "$(echo no)", "`echo no`", "%s\\n", "*", "", "@x\n$HOME", "}", "-n"]
    command = ("/usr/bin/printf", "<%s>", *words)
    assert run(tmp_path, command, command, command)[1] == "".join(f"<{word}>" for word in words) * 3


@pytest.mark.parametrize("number", [signal.SIGXCPU, signal.SIGXFSZ])
def test_the_signal_of_a_limit_is_seen_from_outside(tmp_path: Path, number: signal.Signals) -> None:
    assert run(tmp_path, (*SH, f"kill -{int(number)} $$"), ("/bin/true",))[0] == -number


@pytest.mark.parametrize("stage", ["prologue", "payload", "epilogue"])
def test_whoever_is_killed_has_time_to_end_and_no_further_stage(tmp_path: Path, stage: str) -> None:
    last_words = (*SH, "trap 'echo last words; exit 1' TERM; echo ready; while :; do sleep 0.01; done")
    quiet = ("/bin/true",)
    stages = {name: last_words if name == stage else quiet for name in ("prologue", "payload", "epilogue")}
    process = subprocess.Popen(
        wrapped(stages["payload"], stages["prologue"], stages["epilogue"], time_s=30, grace_s=30),
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert set(process.communicate(timeout=30)[0].splitlines()) == {"last words"}  # twice by way of timeout(1)
    expected = {"prologue": ["prologue"], "payload": ["prologue", "payload"], "epilogue": list(stages)}[stage]
    assert list(read_stages((tmp_path / STAGES_NAME).read_bytes())) == expected


@pytest.mark.parametrize("text", [b"", b"\xff\0\n", b"prologue\n", b"prologue -1\n", b"a b c\n", b"prologue x\n"])
def test_what_a_job_writes_instead_says_nothing(text: bytes) -> None:
    assert read_stages(text) == {}
    assert read_stages(b"x" * MAX_STAGES_BYTES + b"\nprologue 1\n") == {}
