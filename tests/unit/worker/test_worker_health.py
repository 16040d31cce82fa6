"""Black holes: who is stopped, who is not, and how a node is trusted again."""

from __future__ import annotations

from agents.worker.health import BlackHole
from agents.worker.model import Result


class Node:
    """Ten jobs decide; one job a second."""

    def __init__(self) -> None:
        self.hole = BlackHole(jobs=10, fast_s=5, window_s=60, pause_s=100)
        self.now = 0.0

    def __call__(self, count: int = 1, *, owners: str = "ab", step: float = 1, **result: object) -> str:
        for number in range(count):
            self.now += step
            self.hole.ended(owners[number % len(owners)], Result(0, **result), self.now)  # type: ignore[arg-type]
        return self.hole.sentence


BAD = {"exit_code": 1, "wall_s": 0.1, "started": True}
GOOD = {"wall_s": 0.1, "started": True}


def test_a_node_that_fails_everybody_s_jobs_is_stopped_by_rate() -> None:
    node = Node()
    assert node(9, **BAD) == ""
    assert node(1, **BAD).startswith("BLACK_HOLE: 10 of the last 10 jobs failed within 5 s, the last with exit code 1")


def test_nine_in_ten_are_enough_and_eight_are_not() -> None:
    node = Node()
    node(1, **GOOD)
    assert node(9, **BAD)
    node = Node()
    node(2, **GOOD)
    assert node(8, **BAD) == ""


def test_one_user_s_mistakes_stop_nobody_s_node() -> None:
    assert Node()(1000, owners="a", **BAD) == ""
    assert Node()(1000, owners="a", failed=True, reason="EXEC_FAILED", exit_code=127) == ""


def test_the_node_s_own_failures_count_whoever_s_job_it_was() -> None:
    assert Node()(10, owners="a", failed=True, reason="SCRATCH_FAILED")


def test_slow_failures_rare_ones_and_cancellations_stop_nothing() -> None:
    assert Node()(100, exit_code=1, wall_s=60) == ""
    assert Node()(100, step=10, **BAD) == ""
    assert Node()(100, reason="CANCELLED", failed=True) == ""


def test_after_the_pause_one_job_decides() -> None:
    node = Node()
    node(10, **BAD)
    node.hole.looked(node.now + 99)
    assert node.hole.sentence
    node.now += 101
    node.hole.looked(node.now)
    assert node.hole.sentence == ""
    assert "no jobs for 200 s" in node(1, **BAD)
    node.now += 200
    node.hole.looked(node.now)
    assert node(1, **GOOD) == ""
    assert node(9, **BAD) == ""
    assert "no jobs for 100 s" in node(1, **BAD)


def test_jobs_that_were_there_already_change_nothing_of_the_pause() -> None:
    node = Node()
    node(10, **BAD)
    before = node.hole.sentence
    assert node(50, **GOOD) == before
