"""A whole grid of one site under Ray: up, killed in parts and as a whole, up again, down without a trace."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clusters import deploy, inventory, load, processes, ray
from clusters.paths import StatePaths
from fabric.errors import Conflict, Unavailable

pytestmark = [pytest.mark.grid, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def state():
    # Not pytest's folder: pool accounts must be able to walk to it.
    folder = Path(f"/var/tmp/gridfabric-test-{os.getpid()}")
    yield folder
    deploy.down(folder, purge=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def grid(state):
    return deploy.up(load.load("lab"), state)


def wait_for(what: Callable[[], bool], deadline_s: float = 60.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def everything_of(state: Path) -> list[psutil.Process]:
    run = inventory.read_run(StatePaths(state))
    found = processes.of_run(run.run) if run else []
    return [psutil.Process(i.pid) for i in [*found, *processes.starters_below(state)]]


def test_every_agent_is_green(grid, state):
    assert {agent.state for agent in grid.agents} == {"green"}
    found = deploy.status(state)
    assert found.green and found.trust == "shared"
    run = inventory.read_run(StatePaths(state))
    assert run is not None and Path(run.temp_dir).stat().st_mode & 0o777 == 0o700  # Ray's sockets are only ours
    assert len({agent.pid for agent in found.agents}) == len(found.agents) == 11  # one process each
    assert all(agent.memory_bytes > 1e6 for agent in found.agents)


def test_ray_listens_on_the_loopback_address_alone(grid, state):
    for process in everything_of(state):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1")


def test_secrets_are_closed_and_scratch_is_reachable(grid, state):
    paths = StatePaths(state)
    for secret in (paths.token, paths.administrator, paths.run, *state.glob("sites/*/credentials/*.pem")):
        assert secret.stat().st_mode & 0o077 == 0, secret
    assert state.stat().st_mode & 0o001 and (state / "sites" / "LAB").stat().st_mode & 0o001


def test_a_second_start_is_refused(grid, state):
    with pytest.raises(Conflict) as caught:
        deploy.up(load.load("lab"), state)
    assert caught.value.reason == "GRID_RUNNING"


def test_a_killed_agent_comes_back_on_its_port(grid, state):
    before = {agent.name: agent for agent in deploy.status(state).agents}
    for name in ("catalog.LAB", "worker.LAB"):
        os.kill(before[name].pid, signal.SIGKILL)

    def back() -> bool:
        after = {agent.name: agent for agent in deploy.status(state).agents}
        return all(
            after[name].state == "green" and after[name].pid not in (0, before[name].pid)
            for name in ("catalog.LAB", "worker.LAB")
        )

    wait_for(back)
    after = {agent.name: agent for agent in deploy.status(state).agents}
    assert after["catalog.LAB"].restarts == 1 and after["broker.LAB"].restarts == 0
    assert after["catalog.LAB"].ports == before["catalog.LAB"].ports


def test_a_dead_grid_is_described_quickly_and_started_again_on_its_ports(grid, state, monkeypatch):
    paths = StatePaths(state)
    ports = inventory.read_inventory(paths).ports
    old_run = inventory.read_run(paths)
    os.kill(old_run.processes["launcher"].pid, signal.SIGKILL)
    wait_for(lambda: not processes.is_running(old_run.processes["launcher"]))
    with monkeypatch.context() as patch:
        patch.setattr(ray, "client_of", None)  # nobody waits for the dead
        found = deploy.status(state)
    assert not found.running and "died" in found.detail
    again = deploy.up(load.load("lab"), state)
    assert {agent.state for agent in again.agents} == {"green"}
    assert inventory.read_inventory(paths).ports == ports
    assert processes.of_run(old_run.run) == [] and not Path(old_run.temp_dir).exists()


def test_down_leaves_nothing_and_may_be_repeated(grid, state):
    run = inventory.read_run(StatePaths(state))
    deploy.down(state)
    assert everything_of(state) == [] and processes.of_run(run.run) == []
    assert not Path(run.temp_dir).exists()
    assert deploy.down(state) == []
    found = deploy.status(state)
    assert not found.running and "down" in found.detail


def test_an_agent_that_cannot_start_is_named_and_nothing_is_left(state):
    paths = StatePaths(state)
    text = load.find("lab").read_text().replace("storage = {}", 'storage = { quota_bytes = "much" }')
    with pytest.raises(Unavailable, match=r"storage.LAB did not start: .*quota_bytes"):
        deploy.up(load.loads(text), state)
    assert inventory.read_run(paths) is None and everything_of(state) == []


def test_a_port_taken_by_another_is_named_before_anything_starts(state):
    import socket

    port = inventory.read_inventory(StatePaths(state)).ports["broker.LAB"]["rpc"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(Conflict, match=f"port {port} .rpc of broker.LAB."):
            deploy.up(load.load("lab"), state)
    assert inventory.read_run(StatePaths(state)) is None
