"""The commands of a gang's parts with Open MPI, as a shell runs them; mpirun itself is in test_gangs.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agents.worker import open_mpi

FAKE_MPIRUN = """#!/bin/sh
# tells how it was called, and asks for two nodes as mpirun does
for word in "$@"; do printf '%s\\n' "$word"; done > called
case " $* " in *" plm_rsh_agent "*) ;; *) exit 9 ;; esac
/bin/sh .gridfabric_mpi_agent gridfabric-1 "cd x;" orted --uri '"a b"'
/bin/sh .gridfabric_mpi_agent gridfabric-2 orted two
exit 3
"""


def run(folder: Path, command: list[str], path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_part_writes_down_what_mpirun_wants_of_the_others(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mpirun").write_text(FAKE_MPIRUN)
    (tools / "mpirun").chmod(0o755)
    assert not open_mpi.is_here(str(tools))
    machines = [("wn1", 2), ("wn1", 1), ("wn2", 3)]
    command = open_mpi.first([f"{tmp_path}/my prog", "it's", "$HOME"], machines, str(tmp_path))
    assert run(tmp_path, command, f"{tools}:/usr/bin:/bin").returncode == 3
    assert [(tmp_path / open_mpi.daemon_file(part)).read_text() for part in (1, 2)] == [
        'cd x; orted --uri "a b"\n',
        "orted two\n",
    ]
    hosts = "localhost slots=2\ngridfabric-1 slots=1\ngridfabric-2 slots=3\n"
    assert (tmp_path / ".gridfabric_mpi_hosts").read_text() == hosts
    words = (tmp_path / "called").read_text().splitlines()
    assert words[words.index("-np") + 1] == "6"
    assert words[-4:] == ["rank", "./my prog", "it's", "$HOME"]


@pytest.mark.parametrize(("daemon", "code"), [("exit 0", 0), ("exit 4", 4), ("nonsense-program 2>/dev/null", 127)])
def test_another_part_runs_what_it_is_told_and_ends_with_it(
    tmp_path: Path, daemon: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_mpi, "ENDED_WAIT_S", 0)
    (tmp_path / open_mpi.DAEMON_NAME).write_text(f"{daemon}\n")
    assert run(tmp_path, open_mpi.other()).returncode == code


def test_a_part_that_hears_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_mpi, "DAEMON_WAIT_S", 0)
    done = run(tmp_path, open_mpi.other())
    assert (done.returncode, done.stderr) == (75, "mpirun did not ask for this part of it\n")
