"""Named places where a test kills the process, to prove that nothing is lost or half there.

Off unless the environment that the process was started with says which: whoever can only talk to an agent, or change
its files, cannot switch one on. Which there are stands in `agents/<kind>/failpoints.py`; those of every agent are here.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "GRIDFABRIC_FAILPOINT"
"""Environment variable: the name of one, or `name:3` for the third time that it is reached."""

NAMES = (
    "store.ran",  # a transaction with all of its changes, not committed
    "store.committed",  # it is on disk, nobody was told
    "outbox.delivered",  # the receiver has these messages, they are still in the outbox
)

_armed = ""
_left = 0


def arm(text: str) -> None:
    """Choose one, as the variable does; an empty text is none. Raises ValueError if the number is none."""
    global _armed, _left
    _armed, _, times = text.partition(":")
    _left = int(times or 1) if _armed else 0


def reached(name: str) -> None:
    """Die here by SIGKILL, if it is this one's turn."""
    global _left
    if name == _armed:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def inherited() -> dict[str, str]:
    """The variable, for the environment of the first process that belongs to this agent. Later ones get none: what died
    there is started again and lives."""
    text = os.environ.pop(VARIABLE, "")
    return {VARIABLE: text} if text else {}


arm(os.environ.get(VARIABLE, ""))
