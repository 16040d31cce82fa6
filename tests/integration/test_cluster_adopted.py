"""A site started in a Ray that is there already, and an interrupted start."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clusters import deploy, inventory, load, processes, ray
from clusters.node.launcher import NodeConfiguration
from clusters.paths import StatePaths
from clusters.ports import chooser
from fabric.errors import InvalidRequest

pytestmark = [pytest.mark.grid, pytest.mark.timeout(240)]

HOSTS = """
[grid]
name = "adopted"
mode = "hosts"
[[vo]]
name = "cms"
ports = { rpc = %d, ldap = %d }
[authority]
ports = { rpc = %d, http = %d }
[[site]]
name = "A"
[[site.host]]
name = "here"
address = "127.0.0.1"
advertise = "localhost"
"""


def description() -> load.GridDescription:
    with chooser("127.0.0.1") as choose:
        ports = tuple(choose() for _ in range(4))
    return load.loads(HOSTS % ports, Path("adopted.toml"))


def test_a_site_uses_the_ray_that_it_is_given_and_leaves_it_running(tmp_path, monkeypatch):
    token, run = tmp_path / "token", "c" * 32
    ray.make_token(token)
    env = ray.environment(os.environ, token, run, loopback=True)
    temp_dir = f"/tmp/{processes.TEMP_PREFIX}own-{os.getpid()}"
    configuration = NodeConfiguration("127.0.0.1", temp_dir, str(tmp_path / "status"), {"host": "here"}, 4)
    launcher = ray.launch(configuration, env, tmp_path, tmp_path / "log")
    try:
        status = ray.wait_ready(launcher, tmp_path / "status", tmp_path / "log")
        for name, value in env.items():
            if name.startswith("RAY_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("RAY_ADDRESS", status.address)
        grid = deploy.up(description(), tmp_path / "state")
        assert {agent.name: agent.state for agent in grid.agents} == {"authority.A": "green", "vo.cms": "green"}
        assert deploy.status(tmp_path / "state").green
        pids = [agent.pid for agent in grid.agents]
        deploy.down(tmp_path / "state")
        deadline = time.monotonic() + 20
        while any(identity.pid in pids for identity in processes.of_run(run)):
            assert time.monotonic() < deadline, "the agents are still there"
            time.sleep(0.05)
        assert launcher.poll() is None
    finally:
        launcher.terminate()
        launcher.wait(20)
        processes.end_run(run)
    assert not Path(temp_dir).exists()


def test_several_sites_need_a_choice(tmp_path):
    text = (HOSTS % (1, 2, 3, 4)) + '[[site]]\nname = "B"\n[[site.host]]\nname = "b"\naddress = "10.0.0.1"\n'
    with pytest.raises(InvalidRequest, match="--site A, B"):
        deploy.up(load.loads(text), tmp_path / "state")
    with pytest.raises(InvalidRequest, match=r"set grid\.mode"):
        deploy.up(load.load("lab"), tmp_path / "state", site="LAB")


SCRIPT = """
import sys
from pathlib import Path
from clusters import deploy, load
deploy.up(load.load("lab"), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing_after_down(tmp_path, number):
    state = tmp_path / "state"
    paths = StatePaths(state)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(ray.python_path())}
    command = subprocess.Popen([sys.executable, "-c", SCRIPT, str(state)], env=env, stderr=subprocess.DEVNULL)
    run = None
    try:
        deadline = time.monotonic() + 60
        while run is None or not run.processes:
            assert time.monotonic() < deadline and command.poll() is None
            time.sleep(0.02)
            run = inventory.read_run(paths)
        command.send_signal(number)
        command.wait(60)
        deploy.down(state)
        assert processes.of_run(run.run) == [] and not Path(run.temp_dir).exists()
        assert inventory.read_run(paths) is None
    finally:
        command.kill()
        command.wait()
        if run is not None:
            processes.end_run(run.run)


def test_a_damaged_record_is_one_sentence(tmp_path):
    paths = StatePaths(tmp_path)
    paths.run.write_text("garbage")
    with pytest.raises(Exception, match=r"run.json cannot be read"):
        inventory.read_run(paths)
    inventory.write(paths.run, replace(inventory.Run("x", "y"), agents=("a",)))
    assert inventory.read_run(paths).agents == ("a",)
    paths.run.write_text(json.dumps({"colour": 1}))
    with pytest.raises(Exception, match="is not a run"):
        inventory.read_run(paths)
