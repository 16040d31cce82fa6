import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest

from clusters import deploy, ports, processes
from clusters.node import launcher
from clusters.ports import chooser, is_free
from clusters.units import parse_duration
from fabric.errors import Exhausted, NotFound


def sleeper(**environment: str) -> subprocess.Popen:
    return subprocess.Popen(["sleep", "60"], env={**os.environ, **environment})


def test_only_processes_of_the_run_are_found_and_ended():
    mine, other = sleeper(GRIDFABRIC_RUN="a" * 32), sleeper(GRIDFABRIC_RUN="b" * 32)
    try:
        assert [identity.pid for identity in processes.of_run("a" * 32)] == [mine.pid]
        assert processes.end_run("a" * 32) == []
        assert processes.of_run("a" * 32) == [] and other.poll() is None
    finally:
        mine.kill()
        other.kill()
        mine.wait()
        other.wait()


def test_a_helper_with_ray_s_title_is_known_by_the_launchers_session():
    titled = subprocess.Popen(["ray::IDLE", "60"], executable=shutil.which("sleep"), env={}, start_new_session=True)
    plain = subprocess.Popen(["sleep", "60"], env={}, start_new_session=True)
    try:
        assert processes.of_run("c" * 32) == processes.of_run("c" * 32, plain.pid) == []
        assert processes.end_run("c" * 32, session=titled.pid) == []
        assert titled.poll() is not None and plain.poll() is None
    finally:
        for process in (titled, plain):
            process.kill()
            process.wait()


def test_who_ignores_sigterm_is_killed():
    script = "import signal,sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); signal.pause()"
    stubborn = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert stubborn.stdout.readline() == b"on\n"
    identity = processes.identify(stubborn.pid)
    assert processes.signal_and_wait([identity], grace_s=0.05) == [stubborn.pid]
    assert not processes.is_running(identity)
    stubborn.stdout.close()


def test_another_process_of_the_same_number_is_left_alone():
    child = sleeper()
    try:
        identity = processes.identify(child.pid)
        stale = processes.Identity(child.pid, identity.started_at - 100)
        assert not processes.is_running(stale)
        assert processes.signal_and_wait([stale], grace_s=0.01) == []
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_only_folders_of_a_run_are_removed(tmp_path):
    keep = tmp_path / "gf-precious"
    keep.mkdir()
    processes.remove_folder(str(keep))
    processes.remove_folder("")
    processes.remove_folder("/tmp")
    assert keep.exists()
    folder = Path(f"/tmp/gf-test-{os.getpid()}")
    folder.mkdir()
    processes.remove_folder(str(folder))
    assert not folder.exists()


def test_removing_a_state_leaves_neither_scratch_elsewhere_nor_an_empty_default_place(tmp_path, monkeypatch):
    elsewhere = Path(tempfile.mkdtemp(prefix="gridfabric-", dir="/var/tmp"))
    (elsewhere / "job").mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    monkeypatch.setattr(deploy, "default_state", lambda grid, environ, uid: tmp_path / "gridfabric-7" / grid)
    for name, target in (("one", elsewhere), ("two", foreign)):
        worker = tmp_path / "gridfabric-7" / name / "sites" / "A" / "worker.A"
        worker.mkdir(parents=True)
        (worker / "scratch").symlink_to(target)
    deploy.remove_state(tmp_path / "gridfabric-7" / "one")
    assert not elsewhere.exists() and (tmp_path / "gridfabric-7" / "two").exists()
    deploy.remove_state(tmp_path / "gridfabric-7" / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]


def test_only_the_folder_of_a_grid_is_purged(tmp_path):
    (tmp_path / "precious").touch()
    tmp_path.chmod(0o700)
    assert deploy.down(tmp_path) == deploy.down(tmp_path / "none", purge=True) == []
    with pytest.raises(NotFound, match="nothing is removed"):
        deploy.down(tmp_path, purge=True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"] and tmp_path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "inventory.json").write_text("{}")
    deploy.down(tmp_path, purge=True)
    assert not tmp_path.exists()


def test_ports_are_free_and_below_the_ephemeral_range():
    import socket

    with chooser("127.0.0.1") as choose:
        port = choose()
    assert 20_000 <= port < 32_000
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


def test_two_choosers_never_give_the_same_port(monkeypatch):
    monkeypatch.setattr(ports, "LOWEST", 5_100)  # where no grid of another test looks
    monkeypatch.setattr(ports, "HIGHEST", 5_140)
    monkeypatch.setattr(ports, "BLOCK", 10)
    with chooser("127.0.0.1") as one:
        first = {one() for _ in range(12)}
        with chooser("127.0.0.1") as other:
            second = {other() for _ in range(12)}
            assert len(first) == 12 and len(second) == 12 and not first & second
            with pytest.raises(Exhausted, match="no free port"), chooser("127.0.0.1") as third:
                third()


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("12 h", 43200), ("1.5min", 90), ("365 days", 31536000)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "5 parsec", "-5s", "0s", "1h30m"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"365d|more than nothing"):
        parse_duration(text)


def test_a_node_ends_when_its_state_folder_is_removed(tmp_path, monkeypatch):
    class Node:
        all_processes: ClassVar[dict[str, list[object]]] = {}
        gcs_address, node_id, ended = "here", "1", False

        def dead_processes(self):
            shutil.rmtree(tmp_path / "state")
            return []

        def kill_all_processes(self, **_):
            self.ended = True

    node = Node()
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(launcher, "start_node", lambda _: node)
    monkeypatch.setattr(launcher.signal, "signal", lambda *_: None)
    status = str(tmp_path / "state" / "status")
    configuration = launcher.NodeConfiguration("127.0.0.1", str(tmp_path / "t"), status, {}, 1, fork_server=False)
    assert launcher.run(configuration) == 1
    assert node.ended and not (tmp_path / "t").exists()
