"""The launcher of a gang's ranks, as a shell runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agents.worker import ranks


def run(folder: Path, script: str, *, count: int = 2, first: int = 0, grace_s: float = 30.0) -> tuple[int, str]:
    """Exit code, and what rank 0 wrote."""
    command = ranks.launcher(
        ["/bin/sh", "-c", script], first=first, count=count, stdout="out", stderr="err", grace_s=grace_s
    )
    done = subprocess.run(
        command,
        cwd=folder,
        input="given",
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_every_rank_runs_once_and_knows_which_it_is(tmp_path: Path) -> None:
    code, out = run(tmp_path, 'echo "$GRIDFABRIC_RANK $GRIDFABRIC_LOCAL_RANK $(cat)"', count=3)
    assert (code, out) == (0, "0 0 given\n")
    assert [(tmp_path / f"out.{rank}").read_text() for rank in (1, 2)] == ["1 1 \n", "2 2 \n"]
    assert run(tmp_path, "echo $GRIDFABRIC_RANK it\\'s >&2; true", first=5) == (0, "")
    assert [(tmp_path / f"err.{rank}").read_text() for rank in (5, 6)] == ["5 it's\n", "6 it's\n"]


def test_the_first_rank_that_ends_badly_ends_the_others_and_is_named(tmp_path: Path) -> None:
    code, _ = run(tmp_path, '[ "$GRIDFABRIC_RANK" = 1 ] && exit 5; while :; do sleep 100; done', count=3)
    assert code == 5
    assert ranks.first_failed((tmp_path / ranks.FAILED_NAME).read_bytes()) == "rank 1 ended with 5"


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = "trap '' TERM; : > deaf; while :; do sleep 100; done"
    script = f'[ "$GRIDFABRIC_RANK" = 0 ] || {{ {deaf}; }}; until [ -e deaf ]; do sleep 0.02; done; exit 3'
    code, _ = run(tmp_path, script, grace_s=0.2)
    assert code == -9  # the launcher too; what it wrote says why
    assert ranks.first_failed((tmp_path / ranks.FAILED_NAME).read_bytes()) == "rank 0 ended with 3"


def test_a_signal_of_a_limit_is_seen_by_whoever_watches(tmp_path: Path) -> None:
    assert run(tmp_path, '[ "$GRIDFABRIC_RANK" = 0 ] || kill -XFSZ $$; sleep 0') == (-25, "")


def test_the_machine_file_and_what_a_job_may_have_put_in_its_place() -> None:
    machines = [("wn1", 2), ("wn2", 1)]
    assert ranks.machine_file(machines) == b"wn1 slots=2\nwn2 slots=1\n"
    assert ranks.environment("/scratch", machines)["GRIDFABRIC_SIZE"] == "3"
    assert [ranks.first_failed(text) for text in (b"", b"x 5", b"1", b"1 2 3", b"\xff" * 200)] == [""] * 5
