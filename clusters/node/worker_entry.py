"""What the raylet runs to start one worker process, in place of Ray's setup script.

It asks the fork server of this node for a process that has everything imported already; where there is none, or it does
not want this one, it becomes the worker itself. Standard library only and no package imports: it runs once per agent
and its own start is most of its cost. Raylets pass the worker's script and its arguments.
"""

import json
import os
import sys

FORK_SERVER = "GRIDFABRIC_FORK_SERVER"
"""Environment variable with the path of the fork server's socket."""
OF_SETUP = ("--serialized-runtime-env-context=", "--language=")
"""Arguments for the setup script, not for the worker."""


def ask_fork_server(path, arguments, environment, directory, descriptors=(0, 1, 2), driver=False, timeout_s=30):
    """The fork server's answer: the new process id, or 0 if it does not want this one. Raises OSError, ValueError.

    `descriptors` become the new process's standard input, output and error. `driver`: not one of Ray's workers, a
    program that uses Ray.
    """
    import socket

    order = {"arguments": arguments, "environment": environment, "directory": directory, "driver": driver}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(timeout_s)
        server.connect(path)
        data = json.dumps(order).encode()
        socket.send_fds(server, [len(data).to_bytes(4, "big")], list(descriptors))
        server.sendall(data)
        return int(server.recv(32))


def main():
    """Hand over, or become the worker."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith(OF_SETUP)]
    path = os.environ.get(FORK_SERVER)
    if path:
        try:
            if ask_fork_server(path, arguments, dict(os.environ), os.getcwd()):
                return
        except (OSError, ValueError):
            pass
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main()
