"""The `grid` command without half a second of imports each time: a process that has them forks for every command line.

The child goes the way of the console script from there, `main` and the interpreter's own end included. Start and end of
a grid go by the executable itself (`whole_grid.Lab`): what they leave behind must not descend from here.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

_MAX_REQUEST_BYTES = 128 * 1024
_PRELOADED = ("connection", "data", "information", "jobs", "proxy", "sites", "users", "vos")


def clean_environment() -> dict[str, str]:
    """Of this process, without what speaks of a grid."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("X509_", "GRIDFABRIC_", "RAY_"))}


@functools.cache
def command_server() -> CommandServer:
    """The one of this test process."""
    return CommandServer()


class CommandServer:
    """Ends with the process that made it. Threads may call at the same time."""

    def __init__(self) -> None:
        self._address = f"\0gridfabric-commands-{uuid.uuid4().hex}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self._address)
            listening.listen(16)
            number = listening.fileno()
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(number)],
                stdin=subprocess.PIPE, env=clean_environment(), pass_fds=[number],
            )  # fmt: skip

    def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, deadline_s: float
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run of the executable with both outputs captured; the same exceptions."""
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            link.settimeout(deadline_s)
            link.connect(self._address)
            request = json.dumps([list(arguments), dict(environment), str(folder)]).encode()
            socket.send_fds(link, [request], [out.fileno(), err.fileno()])
            pid = int(link.recv(20))
            try:
                code = int(link.recv(20))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["grid", *arguments], deadline_s) from None
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(["grid", *arguments], code, out.read(), err.read())


def _serve(listening: socket.socket) -> None:
    """Returns in a process of its own for each command line, which is to be run; ends when the standard input does."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        if 0 in select.select([0, listening], [], [])[0]:
            os._exit(0)
        link, _ = listening.accept()
        if os.fork() == 0:
            break
        link.close()
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, outputs, _, _ = socket.recv_fds(link, _MAX_REQUEST_BYTES, 2)
    command = os.fork()
    if command:
        link.send(str(command).encode())
        _, status = os.waitpid(command, 0)
        link.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    link.close()
    arguments, environment, folder = json.loads(request)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
        os.close(output)
    sys.argv = ["grid", *arguments]


if __name__ == "__main__":
    import gc
    import importlib

    del sys.path[0]  # this folder: the command sees what is installed
    from agents.user_interface.main import main

    importlib.import_module("agents.user_interface.application")
    for name in _PRELOADED:
        importlib.import_module(f"agents.user_interface.{name}")
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    main()
