"""A bad network: between information, broker, gatekeeper, worker and bookkeeping a third of all calls is lost, answered
in vain, sent twice or late, and streams are cut. No job is lost and none runs twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faults import CUT, FATES, counted
from support.grid import LabGrid
from support.ordeal import Ordeal
from support.proof import TIMES


@pytest.mark.timeout(800 + 90 * TIMES)
async def test_calls_that_are_lost_doubled_or_late_lose_and_double_no_job(tmp_path: Path) -> None:
    async with LabGrid(tmp_path) as lab, Ordeal(lab, faults="a bad network") as ordeal:
        for kind in ("bookkeeping", "broker", "gatekeeper", "worker"):
            ordeal.begin(kind)

        def is_enough() -> bool:
            found = counted(tmp_path / "agents")
            return all(found[fate] >= TIMES for fate in (*FATES, CUT))

        await ordeal.submit_while(("first", "second"), is_enough, 360 + 60 * TIMES)
        await ordeal.judge()
        await ordeal.nothing_is_left()
        print(f"{len(ordeal.recorded.acknowledged)} jobs, none lost or run twice; {dict(counted(tmp_path / 'agents'))}")
