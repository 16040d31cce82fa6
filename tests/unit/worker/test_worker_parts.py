"""A gang in Slurm: which ranks are where, and one record of the records of all parts."""

from __future__ import annotations

from typing import Any

import pytest

from agents.worker.parts import GANG_ENDED, PART_LOST, machines_of, merged


def record(code: int = 0, reason: str = "", **more: Any) -> dict[str, Any]:
    used = {"user_s": 1.0, "system_s": 0.5, "wall_s": 3.0, "max_rss_bytes": 100}
    return {"key": "k", "exit_code": code, "reason": reason, "ended_at_us": 1, **used, **more}


def test_ranks_of_each_node_are_those_that_slurm_tells() -> None:
    assert machines_of("2(x2),1", ["a", "b", "c"]) == [("a", 2), ("b", 2), ("c", 1)]
    assert machines_of("4", ["a"]) == [("a", 4)]
    for tasks, nodes in (("2(x2)", ["a"]), ("2", ["a", "b"]), ("", [])):
        with pytest.raises(ValueError):
            machines_of(tasks, nodes)


def test_the_end_of_a_gang_is_that_of_the_part_that_ended_badly_by_itself() -> None:
    well, stopped, code = record(), record(143, GANG_ENDED), record(7)
    lost = {"key": "k", "ended_at_us": 2, "exit_code": 0, "reason": PART_LOST}
    failed = {"key": "k", "ended_at_us": 2, "error": {"stage": "executable", "errno": 2, "text": "not there"}}

    def end(*records: dict[str, Any]) -> tuple[int, str]:
        one = merged(list(records))
        return one.get("exit_code", 127), one.get("reason", "")

    assert end(well, well) == (0, "")
    assert end(stopped, code) == end(code, stopped) == (7, "")
    assert end(well, code) == (7, "")
    assert end(record(143, "CANCELLED"), stopped) == (143, "CANCELLED")
    assert end(stopped, record(143, "WALL_TIME")) == (143, "WALL_TIME")
    assert end(stopped, lost) == (0, PART_LOST)
    assert merged([stopped, failed])["error"] == failed["error"]
    both = merged([well, record(wall_s=5.0)])
    assert (both["user_s"], both["system_s"], both["max_rss_bytes"], both["wall_s"]) == (2.0, 1.0, 200, 5.0)
