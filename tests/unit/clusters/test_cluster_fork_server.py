import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from clusters import ray
from clusters.node import fork_server, worker_entry
from fabric.errors import Unavailable

ORDER = {"arguments": ["worker.py"], "environment": {"RAY_JOB_ID": "1", "HOME": "/x"}, "directory": "/"}


def test_an_order_arrives_whole_with_its_descriptors(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        got = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                order, descriptors = fork_server.receive(connection)
                got.append((order, len(descriptors)))
                for descriptor in descriptors:
                    os.close(descriptor)
                connection.sendall(b"4711")

        thread = threading.Thread(target=answer)
        thread.start()
        assert worker_entry.ask_fork_server(path, ["worker.py", "--big=" + "x" * 200_000], {}, "/") == 4711
        thread.join()
    order, descriptors = got[0]
    assert order["arguments"][0] == "worker.py" and order["directory"] == "/" and descriptors == 3


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\5{", b"\xff\xff\xff\xff", b"\0\0\0\2[]x", b"\0\0\0\3abc"])
def test_garbage_is_an_error_and_not_a_crash(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises((OSError, ValueError)):
            fork_server.receive(ours)


def test_only_workers_of_the_same_ray_are_forked():
    primed = {"RAY_JOB_ID": "1"}
    assert "descriptors" in fork_server.why_not(primed, ORDER, [])
    assert fork_server.why_not({"RAY_JOB_ID": "2"}, ORDER, [0, 1, 2]) == "other values of RAY_JOB_ID"
    assert fork_server.why_not({**primed, "RAY_X": "1"}, ORDER, [0, 1, 2]) == "other values of RAY_X"


def test_a_worker_starts_by_itself_without_a_fork_server(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import sys, json; print(json.dumps(sys.argv[1:]))")
    arguments = [str(script), "--node-id=1", "--serialized-runtime-env-context={}", "--language=PYTHON"]
    for environment in ({}, {worker_entry.FORK_SERVER: str(tmp_path / "absent")}):
        done = subprocess.run(
            [sys.executable, worker_entry.__file__, *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            check=True,
            timeout=20,
        )
        assert json.loads(done.stdout) == ["--node-id=1"]


def test_the_agents_are_known():
    assert "agents.broker.agent" in set(fork_server.agent_modules())


DRIVER = """
import sys
print('{"done": true}', flush=True)
for order in sys.stdin:
    print('{"order": %s}\\n{"done": true}' % order.strip(), flush=True)
"""


@pytest.mark.parametrize("answer", [None, b"", b"0", b"nonsense"], ids=["silent", "gone", "refuses", "broken"])
def test_a_command_has_a_driver_of_its_own_where_the_fork_server_makes_none(tmp_path, monkeypatch, answer):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    monkeypatch.setattr(ray.driver, "__file__", str(script))
    if answer is None:
        monkeypatch.setattr(ray, "FORK_DEADLINE_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        held = []

        def reply() -> None:
            connection, _ = listener.accept()
            held.append(connection)
            if answer is not None:
                order, descriptors = fork_server.receive(connection)
                assert order["driver"] and order["arguments"] == [str(script), "here:1"]
                for descriptor in descriptors:
                    os.close(descriptor)
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=reply)
        thread.start()
        client = ray.RayClient(dict(os.environ), tmp_path / "log", str(tmp_path / "s"))
        client.connect("here:1")
        thread.join()
        assert list(client.call("look", 30.0, at=1)) == [{"order": {"do": "look", "at": 1}}]
        client.close()
        client.close()
        for connection in held:
            connection.close()
        with pytest.raises(Unavailable, match="closed"):
            list(client.call("look", 30.0))
