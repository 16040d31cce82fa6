"""Open MPI in a gang: `mpirun` at the first worker starts its ranks at all of them, without any login between nodes.

    first worker: mpirun ─agent─► a file for each other part ─► gatekeeper ─► its worker: orted ─TCP─► mpirun

What mpirun would give to ssh it gives to a script, which writes it down; the other workers ask the gatekeeper for it
and their launchers, which wait for that, run it. All of it belongs to the one job and its account.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence

from agents.worker.ranks import Machines

DAEMON_NAME = ".gridfabric_mpi_daemon"
"""In the directory of another worker than the first: the command that makes it a part of mpirun's machine."""
DAEMON_WAIT_S = 120
"""A launcher to which no command came for so long ends."""
ENDED_WAIT_S = 10
"""A daemon that ended badly waits so long for the end of mpirun, whose exit code says more."""
_HOSTS_NAME = ".gridfabric_mpi_hosts"
_AGENT_NAME = ".gridfabric_mpi_agent"
_NODE = "gridfabric-"
"""Nodes are called by their number: two workers may be on one host."""


def is_here(path: str) -> bool:
    """Whether programs of this search path can start a gang, or be a part of one."""
    return all(shutil.which(program, path=path) for program in ("mpirun", "orted"))


def daemon_file(part: int) -> str:
    """At the first worker: the command for the part with this number."""
    return f"{DAEMON_NAME}.{part}"


def first(command: Sequence[str], machines: Machines, folder: str) -> list[str]:
    """The command of the first worker: ends as mpirun does, with 0 or as the first rank that ended otherwise. The
    ranks' output comes together here; each is told its rank as the plain launcher does, and runs in its own worker's
    directory of the job."""
    names = ["localhost", *(f"{_NODE}{number}" for number in range(1, len(machines)))]
    hosts = "".join(f"{name} slots={ranks}\n" for name, (_, ranks) in zip(names, machines, strict=True))
    # mpirun asks for each node once: its name, and what to run there
    agent = f'to="{DAEMON_NAME}.${{1#{_NODE}}}"; shift; printf \'%s\\n\' "$*" > "$to.new" && mv "$to.new" "$to"\n'
    rank = (
        'cd "$HOME" && GRIDFABRIC_RANK=$OMPI_COMM_WORLD_RANK GRIDFABRIC_LOCAL_RANK=$OMPI_COMM_WORLD_LOCAL_RANK '
        'exec "$@"'
    )
    # in another worker's directory the program has another place
    program = command[0].replace(f"{folder}/", "./", 1) if command[0].startswith(f"{folder}/") else command[0]
    mpirun = [
        "mpirun", "--hostfile", _HOSTS_NAME, "-np", str(sum(ranks for _, ranks in machines)), "--bind-to", "none",
        "--leave-session-attached", "--mca", "plm", "rsh", "--mca", "plm_rsh_no_tree_spawn", "1",
        "--mca", "plm_rsh_agent", f"/bin/sh {folder}/{_AGENT_NAME}",
        "/bin/sh", "-c", rank, "rank", program, *command[1:],
    ]  # fmt: skip
    lines = [
        f"printf %s {shlex.quote(hosts)} > {_HOSTS_NAME}",
        f"printf %s {shlex.quote(agent)} > {_AGENT_NAME}",
        "export SHELL=/bin/sh",
        f"exec {shlex.join(mpirun)}",
    ]
    return ["/bin/sh", "-c", "\n".join(lines), "mpi"]


def other(daemon: str = DAEMON_NAME) -> list[str]:
    """The command of every other worker. `daemon`: where what mpirun wants run there comes to be."""
    lines = [
        "looks=0",
        f"until [ -e {daemon} ]; do",
        f"  [ $looks -lt {10 * DAEMON_WAIT_S} ] || {{ echo 'mpirun did not ask for this part of it' >&2; exit 75; }}",
        "  looks=$((looks + 1)); sleep 0.1",
        "done",
        f"/bin/sh ./{daemon} < /dev/null; code=$?",
        f'[ "$code" = 0 ] || sleep {ENDED_WAIT_S}',
        'exit "$code"',
    ]
    return ["/bin/sh", "-c", "\n".join(lines), "mpi"]
