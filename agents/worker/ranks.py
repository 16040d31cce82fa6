"""The launcher of a gang's part: the same program once for each rank that this worker has, in one session, scratch and
set of limits.

A shell script, as wrapper.py is, and of the job's account: what it says is believed about this job alone. The machine
file has the form of Open MPI's `--hostfile`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

MACHINES_NAME = ".gridfabric_machines"
FAILED_NAME = ".gridfabric_rank_failed"
"""In the job's directory: the rank that ended badly first, and with what."""
_FAILING_NAME = ".gridfabric_rank_failing"

Machines = Sequence[tuple[str, int]]
"""Host and number of its ranks, in the order of the ranks; for all of the gang."""


def launcher(command: Sequence[str], *, first: int, count: int, stdout: str, stderr: str, grace_s: float) -> list[str]:
    """The command that runs the ranks `first` to `first + count - 1` and ends when all have ended: with 0, or as the
    first of them that ended otherwise. That one ends the others: SIGTERM, and SIGKILL after the grace.

    Rank 0 has the job's standard streams; the others have their own output files (`stream_name`) and no input.
    """
    program = shlex.join(command)
    lines = [
        "exec 3<&0",
        "ended= pids=",
        "trap 'ended=1' TERM",
        # a trapped signal ends a `wait` too
        'await() { while wait "$1"; code=$?; [ "$code" = 143 ] && kill -0 "$1" 2>/dev/null; do :; done; }',
        f'failed() {{ mkdir {_FAILING_NAME} 2>/dev/null || return; printf \'%s %s\\n\' "$1" "$2" > {FAILED_NAME}; '
        f"trap '' TERM; ( sleep {grace_s:g}; kill -KILL 0 ) < /dev/null > /dev/null 2>&1 3<&- & kill -TERM 0; }}",
    ]
    for local in range(count):
        rank = first + local
        told = f"GRIDFABRIC_RANK={rank} GRIDFABRIC_LOCAL_RANK={local}"
        lines += [
            # The trap comes when the program is there and hears SIGTERM itself; its exit code is waited for. A signal
            # that came while this shell was being forked is lost: the mark was made before it.
            f"( {told} {program}{_streams(rank, stdout, stderr)} & pid=$!; trap : TERM; "
            f"[ ! -d {_FAILING_NAME} ] || kill -TERM $pid; await $pid",
            f'[ "$code" = 0 ] || failed {rank} "$code"; exit "$code" ) &',
            'pids="$pids $!"',
        ]
    lines += [
        '[ -z "$ended" ] || kill -TERM 0',  # also those that were started after it came
        "for pid in $pids; do await $pid; done",
        "code=0",
        '[ -z "$ended" ] || code=143',
        f"[ ! -s {FAILED_NAME} ] || read -r rank code < {FAILED_NAME}",
        # 152 and 153 are SIGXCPU and SIGXFSZ: whoever watches shall see the signal of a limit.
        'case $code in 152 | 153) kill -"$((code - 128))" $$ ;; esac',
        'exit "$code"',
    ]
    return ["/bin/sh", "-c", "\n".join(lines), "ranks"]


def _streams(rank: int, stdout: str, stderr: str) -> str:
    if not rank:
        return " <&3"
    text = f" > {shlex.quote(stream_name(stdout, rank))}" if stdout else ""
    if stderr and stderr == stdout:
        return f"{text} 2>&1"
    return f"{text} 2> {shlex.quote(stream_name(stderr, rank))}" if stderr else text


def stream_name(name: str, rank: int) -> str:
    """Where a rank other than 0 has a standard stream that is `name` for the job."""
    return f"{name}.{rank}"


def environment(folder: str, machines: Machines) -> dict[str, str]:
    """What every rank is told besides its own number."""
    return {
        "GRIDFABRIC_SIZE": str(sum(ranks for _, ranks in machines)),
        "GRIDFABRIC_MACHINEFILE": f"{folder}/{MACHINES_NAME}",
    }


def machine_file(machines: Machines) -> bytes:
    """A line for each host."""
    return "".join(f"{host} slots={ranks}\n" for host, ranks in machines).encode()


def first_failed(text: bytes) -> str:
    """A sentence from what the launcher wrote; empty if it is none."""
    words = text[:100].decode("ascii", "replace").split()
    return f"rank {words[0]} ended with {words[1]}" if len(words) == 2 and all(map(str.isdecimal, words)) else ""
