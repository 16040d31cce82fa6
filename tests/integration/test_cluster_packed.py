"""Several agents in one process under Ray: each green for itself, killed together, back together, down as any."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from clusters import deploy, inventory, load, processes
from clusters.paths import StatePaths

pytestmark = [pytest.mark.grid, pytest.mark.timeout(120)]

PACKED = """
[grid]
name = "packed"
pack = 6
[[vo]]
name = "cms"
[[site]]
name = "S{1..3}"
information = {}
gatekeeper = {}
worker = { slots = 1 }
"""


@pytest.fixture(scope="module")
def state():
    # Not pytest's folder: pool accounts must be able to walk to it.
    folder = Path(f"/var/tmp/gridfabric-test-packed-{os.getpid()}")
    yield folder
    deploy.down(folder, purge=True)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_packed_grid_lives_dies_and_comes_back(state):
    grid = deploy.up(load.loads(PACKED), state)
    by_process: dict[int, set[str]] = {}
    for agent in grid.agents:
        assert (agent.state, agent.restarts) == ("green", 0)
        by_process.setdefault(agent.pid, set()).add(agent.name)
    at = [{f"{kind}.S{number}" for kind in ("information", "gatekeeper", "worker")} for number in (1, 2, 3)]
    assert sorted(by_process.values(), key=sorted) == sorted(
        [{"authority.S1"}, {"vo.cms"}, at[0] | at[1], at[2]], key=sorted
    )
    for agent in grid.agents:  # each has its own folder, credential and log
        folder = state / "sites" / agent.site / agent.name
        assert f'"agent": "{agent.name}"' in (folder / "log.jsonl").read_text().splitlines()[0]

    old = next(pid for pid, names in by_process.items() if "worker.S1" in names)
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        found = {agent.name: agent for agent in deploy.status(state).agents}
        if all(found[name].state == "green" and found[name].restarts == 1 for name in at[0] | at[1]):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert len({found[name].pid for name in at[0] | at[1]} - {old}) == 1
    assert all(found[name].restarts == 0 for name in ("authority.S1", "vo.cms", *at[2]))

    run = inventory.read_run(StatePaths(state))
    assert run is not None
    assert deploy.down(state) == []
    assert processes.of_run(run.run) == [] and processes.starters_below(state) == []
    for log in state.glob("sites/*/*/log.jsonl"):
        assert '"event": "agent.stopped"' in log.read_text().splitlines()[-1]
