"""Named places where a test may kill the process, to prove that nothing is lost or half there. Absent by default."""

from __future__ import annotations

import os
import signal

FAILPOINT_VARIABLE = "GRIDFABRIC_FAILPOINT"
"""Environment variable holding one name of `NAMES`."""

NAMES = (
    "storage.put.reserved",  # space booked, no byte on disk
    "storage.put.written",  # all bytes in incoming/, not synced
    "storage.put.linked",  # under its final name, synced, not in the database
    "storage.put.committed",  # in the database, not answered
    "storage.together.written",  # many small files: under their final names, not synced
    "storage.together.linked",
    "storage.together.committed",
    "storage.renew.written",  # a file that is moved or repaired: the same steps; its row means the old bytes
    "storage.renew.linked",
    "storage.renew.committed",  # its row means the new bytes, the old ones are still on disk
    "storage.archive.written",  # whole and verified on tape, no row says so
    "storage.archive.committed",
    "storage.purge.committed",  # its row means the tape, the bytes are still on disk
    "storage.remove.committed",  # out of the database, bytes still on disk
)


class Failpoints:
    """Kills the process with SIGKILL where `armed` says, the first time it is reached."""

    def __init__(self, armed: str = "") -> None:
        """Raises ValueError for a name that no code has: a test that arms it would prove nothing."""
        if armed and armed not in NAMES:
            armed_here = armed.startswith("storage.")
            if armed_here:
                raise ValueError(f"no failpoint {armed!r}; there are {', '.join(NAMES)}")
            armed = ""
        self._armed = armed

    def reached(self, name: str) -> None:
        """Die here if armed."""
        if name == self._armed:
            os.kill(os.getpid(), signal.SIGKILL)
