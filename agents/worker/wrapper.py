"""The job wrapper: prologue, payload and epilogue, one after the other, in the session, limits and scratch of the job.

A shell script, as the field's job wrappers are: it needs nothing of this software on the node, whatever batch system
runs it. It is a process of the job's own account, so what it says is believed about this job alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

STAGES_NAME = ".gridfabric_stages"
"""In the job's directory: a line `stage exit-code` for each stage that is over."""
MAX_STAGES_BYTES = 1000
NOT_EXECUTABLE = "not-executable"
"""Instead of the payload's exit code: there was no such program when its turn came."""
TIMED_OUT = frozenset({"124", "137"})
"""What timeout(1) ends with when it stopped a program, by SIGTERM or by SIGKILL."""


def wrapped(
    payload: Sequence[str], prologue: Sequence[str], epilogue: Sequence[str], *, time_s: float, grace_s: float
) -> list[str]:
    """The command that runs all three; each is a program with its arguments, prologue and epilogue may be empty.

    It ends as the payload does, or with the prologue's exit code when that is not 0: then nothing else is started. The
    epilogue is left out when the job is being killed. Prologue and epilogue have `time_s` each and no standard input.
    """

    def bounded(command: Sequence[str]) -> str:
        # --foreground: it stays in the job's process group, which is signalled as a whole.
        return f"/usr/bin/timeout --foreground -k {grace_s:g} {time_s:g} {shlex.join(command)} < /dev/null"

    lines = [
        # A trap, and no ignored signal: what the shell starts still dies of SIGTERM.
        "ended=",
        "trap 'ended=1' TERM",
        f'note() {{ printf \'%s %s\\n\' "$1" "$2" >> {STAGES_NAME}; }}',
    ]
    if prologue:
        lines += [bounded(prologue), 'code=$?; note prologue "$code"', '[ "$code" = 0 ] || exit "$code"']
    program = shlex.quote(payload[0])
    lines += [
        '[ -z "$ended" ] || exit 143',
        f"[ -f {program} ] && [ -x {program} ] || {{ note payload {NOT_EXECUTABLE}; exit 127; }}",
        shlex.join(payload),
        'code=$?; note payload "$code"',
    ]
    if epilogue:
        lines.append(f'[ -n "$ended" ] || {{ {bounded(epilogue)}; note epilogue "$?"; }}')
    # 152 and 153 are SIGXCPU and SIGXFSZ: whoever watches shall see the signal of a limit.
    lines += ['case $code in 152 | 153) kill -"$((code - 128))" $$ ;; esac', 'exit "$code"']
    return ["/bin/sh", "-c", "\n".join(lines), "wrapper"]


def read_stages(text: bytes) -> dict[str, str]:
    """Stage to exit code (or `NOT_EXECUTABLE`), the last of each; what else a job wrote there is left out."""
    pairs = (line.split() for line in text[:MAX_STAGES_BYTES].decode("ascii", "replace").splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and (pair[1].isdecimal() or pair[1] == NOT_EXECUTABLE)}
