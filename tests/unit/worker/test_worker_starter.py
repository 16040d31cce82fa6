"""The starter with real processes: limits, strays, accounts, and the death of everybody around it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.worker import payloads
from agents.worker.starter_client import StarterClient

PYTHON = sys.executable
AS_ROOT = os.geteuid() == 0


class Running:
    """One starter in a folder of its own, and a connection to it."""

    def __init__(self, folder: Path, slots: int = 8) -> None:
        self.folder = folder
        self.slots = slots
        self.begin()

    def begin(self, orphan_timeout_s: float = 30.0) -> None:
        command = payloads.command("starter", str(self.folder), str(orphan_timeout_s))
        process = subprocess.run(command, stdout=subprocess.PIPE, timeout=20, check=False)
        assert process.stdout == b"ready\n"
        self.connect()

    def connect(self) -> dict[str, Any]:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(self.folder / "starter.sock"))
        self.lines = self.socket.makefile("rb")
        self.send(op="list", slots=self.slots)
        return self.expect("listing")

    def send(self, **message: Any) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.lines.readline())
        return message

    def expect(self, event: str) -> dict[str, Any]:
        while (message := self.next())["event"] != event:
            pass
        return message

    def order(self, key: str, script: str, **more: Any) -> dict[str, Any]:
        cwd = self.folder / "scratch" / key
        cwd.mkdir(parents=True)
        uid = more.get("uid", -1)
        if uid > 0:
            os.chown(cwd, uid, uid)
        return {
            "key": key, "cwd": str(cwd), "executable": "/bin/sh", "argv": ["/bin/sh", "-c", script],
            "env": {"PATH": "/usr/bin:/bin", payloads.MARKER: key}, "stdout": "out", "stderr": "out", "gid": uid,
            "grace_s": 0.2, **more,
        }  # fmt: skip

    def run(self, *orders: dict[str, Any]) -> None:
        self.send(op="run", jobs=orders)

    def ended(self, count: int = 1) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        while len(found) < count:
            found |= {record["key"]: record for record in self.expect("ended")["jobs"]}
        return found

    def out(self, key: str) -> str:
        return (self.folder / "scratch" / key / "out").read_text()

    @property
    def pid(self) -> int:
        return int((self.folder / "starter.pid").read_text())


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        made = Running(Path(name))
        yield made
        with_socket = made.folder / "starter.sock"
        if with_socket.exists():
            made.connect()
            made.send(op="shutdown")
            eventually(lambda: not with_socket.exists())


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.005)


def client_of(running: Running) -> StarterClient:
    """One that is not connected: it reads what the starter has written."""
    return StarterClient(running.folder, 30.0, running.slots, on_message=lambda _: None, log=None)


def alive(pid: int) -> bool:
    return not payloads._is_zombie(pid)


def test_exit_code_signal_usage_and_streams(running: Running) -> None:
    running.run(
        running.order("a", "echo out; echo err >&2; exit 7"),
        running.order("b", "kill -9 $$"),
        running.order("c", "umask; pwd; ulimit -c"),
    )
    ends = running.ended(3)
    assert (ends["a"]["exit_code"], ends["a"]["signal"], ends["a"]["reason"]) == (7, 0, "")
    assert running.out("a") == "out\nerr\n"
    assert (ends["b"]["exit_code"], ends["b"]["signal"]) == (137, 9)
    assert running.out("c").split() == ["0077", str(running.folder / "scratch" / "c"), "0"]
    assert ends["a"]["max_rss_bytes"] > 0
    assert ends["a"]["started_at_us"] <= ends["a"]["ended_at_us"]


def test_the_exit_record_is_on_disk_before_it_is_told(running: Running) -> None:
    running.run(running.order("a", "exit 3"))
    record = running.ended()["a"]
    assert client_of(running).exit_of("a") == record


def test_a_record_that_is_not_whole_is_none_and_can_be_written_again(running: Running) -> None:
    running.run(running.order("a", "exit 3"))
    whole = running.ended()["a"]
    client, path = client_of(running), running.folder / "jobs" / "a"
    first, _, last = path.read_bytes().partition(b"\n")
    assert client.exit_of("never") is None and not client.was_started("never")
    for torn in (b"", first, first + b"\n" + last[:-2], last[:40], b"\xff\x00", b"[1]"):
        path.write_bytes(torn)
        assert client.exit_of("a") is None and client.was_started("a")
    path.write_bytes(first + b"\n" + last[:40] + b"\n" + last)
    assert client.exit_of("a") == whole


def test_a_key_is_started_once_for_ever(running: Running) -> None:
    order = running.order("a", "echo once >> log")
    running.run(order)
    running.ended()
    running.run(order)
    assert running.expect("refused")["jobs"] == [["a", "ALREADY_STARTED"]]
    os.kill(running.pid, signal.SIGKILL)
    eventually(lambda: not alive(running.pid))
    running.begin()
    running.run(order)
    assert running.expect("refused")["jobs"] == [["a", "ALREADY_STARTED"]]
    assert (running.folder / "scratch" / "a" / "log").read_text() == "once\n"
    running.send(op="forget", keys=["a"])
    eventually(lambda: not (running.folder / "jobs" / "a").exists())


def test_the_record_of_a_forgotten_key_serves_the_next_one(running: Running) -> None:
    running.run(running.order("first", "exit 3"))
    running.ended()
    inode = os.stat(running.folder / "jobs/first").st_ino
    running.send(op="forget", keys=["first"])
    running.run(running.order("second", "exit 4"))
    assert running.ended()["second"]["exit_code"] == 4
    assert os.listdir(running.folder / "jobs") == ["second"]
    record = (running.folder / "jobs/second").read_bytes()
    assert os.stat(running.folder / "jobs/second").st_ino == inode
    assert b"first" not in record
    running.send(op="forget", keys=["nobody"])
    again = running.order("third", "exit 5") | {"key": "second"}
    running.run(again)
    assert running.expect("refused")["jobs"] == [["second", "ALREADY_STARTED"]]
    assert (running.folder / "jobs/second").read_bytes() == record


def test_killed_while_it_made_a_record_it_keeps_that(running: Running) -> None:
    running.run(running.order("first", "exit 3"))
    running.ended()
    os.kill(running.pid, signal.SIGKILL)
    assert running.lines.readline() == b""
    os.link(running.folder / "jobs/first", running.folder / "spares/7")
    record = (running.folder / "jobs/first").read_bytes()
    running.begin()
    running.run(running.order("second", "exit 4"))
    running.ended()
    assert (running.folder / "jobs/first").read_bytes() == record


def test_it_survives_the_agent_and_tells_the_next_one(running: Running) -> None:
    running.run(running.order("a", "while ! test -e go; do sleep 0.01; done"), running.order("b", "exit 5"))
    assert running.ended().keys() == {"b"}
    running.socket.close()
    listing = running.connect()
    assert [key for key, _, _ in listing["running"]] == ["a"]
    running.socket.close()
    (running.folder / "scratch" / "a" / "go").touch()
    eventually(lambda: client_of(running).exit_of("a") is not None)
    assert running.connect()["running"] == []


def test_what_daemonises_dies_with_its_job(running: Running) -> None:
    script = """
    setsid sh -c 'echo $$ > p1; exec sleep 300' &
    env -i setsid sh -c 'setsid sh -c "echo \\$\\$ > p2; exec sleep 300" & exit' &
    nohup sh -c 'echo $$ > p3; exec sleep 300' > /dev/null &
    while ! test -s p1 || ! test -s p2 || ! test -s p3; do sleep 0.01; done
    """
    running.run(running.order("a", script))
    running.ended()
    scratch = running.folder / "scratch" / "a"
    for name in ("p1", "p2", "p3"):
        pid = int((scratch / name).read_text())
        eventually(lambda pid=pid: not alive(pid))


def test_a_background_process_of_a_running_job_is_left_alone(running: Running) -> None:
    script = "(setsid sh -c 'echo $$ > helper; exec sleep 300' &) ; while ! test -e go; do sleep 0.01; done"
    running.run(running.order("long", script))
    helper = running.folder / "scratch" / "long" / "helper"
    eventually(lambda: helper.exists() and helper.read_text() != "")
    running.run(running.order("short", "true"))
    running.ended()
    assert alive(int(helper.read_text()))
    (running.folder / "scratch" / "long" / "go").touch()
    running.ended()
    eventually(lambda: not alive(int(helper.read_text())))


def test_wall_limit_terminates_and_then_kills(running: Running) -> None:
    running.run(
        running.order("polite", "trap 'echo bye; exit 9' TERM; while :; do sleep 0.02; done", wall_s=0.3),
        running.order("deaf", "trap '' TERM; while :; do sleep 0.02; done", wall_s=0.3),
    )
    ends = running.ended(2)
    assert (ends["polite"]["exit_code"], ends["polite"]["reason"]) == (9, "WALL_TIME")
    assert running.out("polite").endswith("bye\n")
    assert (ends["deaf"]["exit_code"], ends["deaf"]["reason"]) == (137, "WALL_TIME")


@pytest.mark.parametrize("script", ["CHILD & CHILD & CHILD & wait", "(CHILD &); (CHILD &); (CHILD &); sleep 60"])
def test_memory_of_the_whole_session_counts(running: Running, script: str) -> None:
    child = f"{PYTHON} -c \"x = b'1' * (60 << 20); import time; time.sleep(60)\""
    running.run(running.order("a", script.replace("CHILD", child), memory_bytes=120 << 20))
    record = running.ended()["a"]
    assert record["reason"] == "MEMORY"
    assert record["max_rss_bytes"] > 120 << 20


def test_processor_time_limit(running: Running) -> None:
    running.run(running.order("a", "while :; do :; done", cpu_s=1))
    assert running.ended()["a"]["reason"] == "CPU_TIME"


def test_file_size_limit(running: Running) -> None:
    running.run(running.order("a", "exec head -c 100000 /dev/zero > big", file_bytes=10_000))
    record = running.ended()["a"]
    assert record["exit_code"] != 0
    assert (running.folder / "scratch" / "a" / "big").stat().st_size == 10_000


def test_kill_and_withdraw(running: Running) -> None:
    running.slots = 1
    running.connect()
    running.run(running.order("a", "sleep 300"), running.order("b", "true"), running.order("c", "true"))
    running.expect("started")
    running.send(op="withdraw", keys=["a", "b"])
    assert running.expect("gone")["keys"] == ["b"]
    running.send(op="kill", keys=["c", "never"], reason="CANCELLED")
    assert sorted(running.expect("gone")["keys"]) == ["c", "never"]
    running.send(op="kill", keys=["a"], reason="CANCELLED")
    record = running.ended()["a"]
    assert (record["reason"], record["exit_code"]) == ("CANCELLED", 143)
    assert not (running.folder / "jobs" / "b").exists()


def test_a_kill_at_once_gives_no_grace(running: Running) -> None:
    stubborn = "trap '' TERM; touch ready; while :; do sleep 300; done"
    running.run(running.order("a", stubborn, grace_s=600))
    running.expect("started")  # a kill before that is the agent's to repeat
    eventually(lambda: (running.folder / "scratch" / "a" / "ready").exists())
    running.send(op="kill", keys=["a"], reason="CANCELLED", at_once=False)
    running.send(op="kill", keys=["a"], reason="BANNED", at_once=True)
    record = running.ended()["a"]
    assert (record["reason"], record["signal"]) == ("CANCELLED", 9)


def test_every_one_of_many_that_fail_at_once_says_why(running: Running) -> None:
    running.run(*[running.order(f"missing{number}", "", executable="/no/such/file") for number in range(20)])
    assert all("error" in record for record in running.ended(20).values())


def test_what_cannot_be_executed_says_why(running: Running) -> None:
    plain = running.folder / "plain"
    plain.touch(0o644)
    running.run(
        running.order("missing", "", executable="/no/such/file"),
        running.order("denied", "", executable=str(plain)),
        running.order("stdin", "cat", stdin="not-there"),
    )
    ends = running.ended(3)
    assert ends["missing"]["error"]["stage"] == "executable"
    assert ends["missing"]["error"]["text"] == "No such file or directory"
    assert ends["denied"]["error"]["text"] == "Permission denied"
    assert ends["stdin"]["error"]["stage"] == "standard streams"


@pytest.mark.skipif(not AS_ROOT, reason="changing the account needs root")
def test_the_account_is_dropped_for_good(running: Running) -> None:
    script = "id -u; id -g; id -G; cat /etc/shadow || echo closed; kill -0 1 || echo refused"
    running.run(running.order("a", script, uid=61001))
    running.ended()
    lines = running.out("a").split("\n")
    assert lines[:3] == ["61001", "61001", "61001"]
    assert "closed" in lines
    assert "refused" in lines
    assert os.stat(running.folder / "scratch" / "a" / "out").st_uid == 61001
    running.run({**running.order("b", "id -u"), "uid": 0, "gid": 0})
    assert running.ended()["b"]["error"]["stage"] == "account"


@pytest.mark.skipif(not AS_ROOT, reason="changing the account needs root")
def test_limits_are_there_from_the_beginning_and_for_good(running: Running) -> None:
    script = "ulimit -n 999999 -f unlimited 2>/dev/null; ulimit -Hn; ulimit -Hf; ulimit -Ht; ulimit -Hv"
    limits = {"open_files": 200, "file_bytes": 1 << 20, "cpu_s": 10, "memory_bytes": 1 << 30}
    running.run(running.order("a", script, uid=61001, **limits), running.order("b", "ulimit -Hn", uid=61001))
    running.ended(2)
    assert running.out("a").split() == ["200", "2048", "15", str(5 << 20)]
    assert running.out("b").split() == ["1024"]


@pytest.mark.skipif(not AS_ROOT, reason="changing the account needs root")
def test_a_user_who_kills_all_he_can_harms_only_his_own_jobs(running: Running) -> None:
    his = 1_000_000 + 2 * os.getpid()  # nobody else's on this machine: all processes of that account are killed
    killer = running.order("killer", "while ! test -e enough; do kill -9 -1; done; exit 3", uid=his)
    running.run(killer)
    over: dict[str, int | None] = {}
    if running.next()["event"] == "started":  # else his own launcher was too slow to tell of him
        mine = [running.order(f"mine{n}", "", uid=his, executable="/bin/true", argv=["true"]) for n in range(20)]
        others = [running.order(f"other{n}", "exit 4", uid=his + 1) for n in range(5)]
        running.run(*mine, *others)
        while len(over) < len(mine) + len(others):
            message = running.next()
            if message["event"] == "ended":
                over |= {record["key"]: record["exit_code"] for record in message["jobs"]}
            elif message["event"] == "lost":
                over |= dict.fromkeys((key for key, _ in message["jobs"]), None)
        assert {over[order["key"]] for order in others} == {4}
        assert {over[order["key"]] for order in mine} <= {0, 137, None}
        (Path(killer["cwd"]) / "enough").touch()
        assert running.ended()["killer"]["exit_code"] == 3
    eventually(lambda: not [pid for pid in payloads.descendants(running.pid) if alive(pid)])


def test_nothing_of_ours_leaks_into_a_payload(running: Running) -> None:
    running.run(running.order("a", "ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status; env | cut -d= -f1 | sort"))
    running.ended()
    count, ignored, *names = running.out("a").split("\n")
    assert int(count) <= 4
    reserved = 3 << 31  # signals 32 and 33 are the C library's: no program can change them
    assert int(ignored.split()[1], 16) & ~reserved == 0
    assert set(names) <= {payloads.MARKER, "PATH", "PWD", "OLDPWD", "SHLVL", "_", ""}


def test_two_hundred_jobs_keep_within_the_slots(running: Running) -> None:
    running.slots = 4
    running.connect()
    orders = [running.order(f"j{number}", "", executable="/bin/true", argv=["true"]) for number in range(200)]
    running.run(*orders)
    ends = running.ended(200)
    assert {record["exit_code"] for record in ends.values()} == {0}


def test_it_ends_when_it_is_alone_and_when_its_folder_is_gone(tmp_path: Path) -> None:
    first = Running(tmp_path)
    pid = first.pid
    first.send(op="shutdown")
    eventually(lambda: not alive(pid))
    first.begin(orphan_timeout_s=0.1)
    pid = first.pid
    first.lines.close()
    first.socket.close()
    eventually(lambda: not alive(pid))
    first.begin()
    pid = first.pid
    first.run(first.order("a", "sleep 300"))
    first.expect("started")
    shutil.rmtree(tmp_path)
    eventually(lambda: not alive(pid))


def test_a_second_starter_of_one_folder_steps_back(running: Running) -> None:
    command = payloads.command("starter", str(running.folder), "1")
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=20, check=False).stdout == b"busy\n"
    assert alive(running.pid)


def test_leftovers_are_found_by_session_and_by_marker(tmp_path: Path) -> None:
    command = "sleep 300 & setsid sleep 300 & wait"
    environment = {"PATH": "/usr/bin:/bin", payloads.MARKER: "leftover-key"}
    process = subprocess.Popen(["/bin/sh", "-c", command], env=environment, start_new_session=True)
    eventually(lambda: len(payloads.find_leftovers({"leftover-key"}, set())) >= 3)
    assert payloads.kill_leftovers({"leftover-key"}, {process.pid}) >= 3
    process.wait()
    assert all(payloads._is_zombie(pid) for pid in payloads.find_leftovers({"leftover-key"}, {process.pid}))
