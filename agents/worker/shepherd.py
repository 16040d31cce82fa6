"""The shepherd: watches over one payload on a node of a batch system, and is what the batch system runs there.

The worker's state directory and scratch space are on a file system that the node shares. The record of a job,
`jobs/<key>`, holds `order.json` before the batch system hears of the job. Whoever makes `jobs/<key>/claim` first:
the shepherd, and the payload starts here and nowhere else, however often the batch system runs its script; or the
worker, and it never starts. So nothing depends on what the batch system says or forgets.

    worker: order.json ─► sbatch           kill (a reason)
    shepherd:      claim ─► started.json ─► beat, beat ... ─► exit.json
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time

from agents.worker.payloads import WATCH_EVERY_S, Job, Payloads

BEAT_EVERY_S = 5.0
"""A shepherd that has not written its beat for much longer is dead."""
TERMINATED = "BATCH_SYSTEM"
"""Reason of a job that the batch system ended, and not we."""
AT_ONCE = "at once"
"""Second line of a note to kill, after the reason: without a grace."""


def claim(folder: str, who: str) -> bool:
    """Decide the fate of a job; True for the first, for ever. Raises FileNotFoundError: its record is gone."""
    try:
        descriptor = os.open(f"{folder}/claim", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    with contextlib.suppress(OSError):  # a full disk changes nothing about who was first
        os.write(descriptor, who.encode())
    os.close(descriptor)
    return True


def put(path: str, data: str) -> None:
    """A file that is complete or not there."""
    with open(f"{path}.new", "w") as file:
        file.write(data)
    os.rename(f"{path}.new", path)


class Shepherd(Payloads):
    """One payload, in the worker's state directory."""

    def __init__(self, key: str) -> None:
        super().__init__(die_with_us=True)
        self.key, self.folder = key, f"jobs/{key}"
        self.beat_name = "beat"
        self.over = False
        self.next_beat = 0.0
        self.beats = 0

    def ended(self, records: list[dict]) -> None:
        """The record is on disk, or there is no room and it is tried again."""
        self.over = True

    def terminated(self) -> None:
        """The batch system wants it to end: cancelled there, its time limit, the node shuts down."""
        for job in self.jobs.values():
            self.begin_kill(job, TERMINATED, time.monotonic())

    def run(self, order: dict) -> None:
        """Until the payload is over and that is written."""
        try:
            job = self.fork(order)
        except OSError as error:
            self.not_started(error)
            return
        self.tell_started(job)
        while not self.over or self.unwritten:
            self.wait(self._timeout())
            self.reap()
            now = time.monotonic()
            self.enforce(now)
            self.look(now)
            self.write_again()

    def _timeout(self) -> float:
        due = self.deadlines[0][0] - time.monotonic() if self.deadlines else WATCH_EVERY_S
        return max(0.0, min(WATCH_EVERY_S, due))

    def tell_started(self, job: Job) -> None:
        """The worker reads it."""
        put(f"{self.folder}/started.json", json.dumps({"pid": job.pid, "at_us": job.started_at_us}))

    def look(self, now: float) -> None:
        """What the worker wants, and that we are alive."""
        for job in list(self.jobs.values()):
            with contextlib.suppress(OSError), open(f"{self.folder}/kill") as file:
                reason, _, how = file.read().partition("\n")
                self.begin_kill(job, reason, now, at_once=how == AT_ONCE)
        if now >= self.next_beat:
            self.next_beat = now + BEAT_EVERY_S
            self.beats += 1
            with contextlib.suppress(OSError):
                put(f"{self.folder}/{self.beat_name}", str(self.beats))

    def not_started(self, error: OSError) -> None:
        """Its end."""
        text = os.strerror(error.errno or 0)
        told = {"stage": "process", "errno": error.errno or 0, "text": text}
        self.keep([{"key": self.key, "ended_at_us": time.time_ns() // 1000, "error": told}])


def settle(state_directory: str) -> None:
    """In the directory of all records, deaf to what ends a terminal's programs."""
    os.chdir(state_directory)
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str]) -> int:
    """Arguments: state directory, job key. Ends at once if the job is claimed or forgotten."""
    state_directory, key = arguments
    settle(state_directory)
    shepherd = Shepherd(key)
    try:
        with open(f"jobs/{key}/order.json") as file:
            order = json.load(file)
        who = f"{socket.gethostname()} {os.getpid()} {os.environ.get('SLURM_JOB_ID', '')}"
        if not claim(f"jobs/{key}", who):
            return 0
    except (FileNotFoundError, NotADirectoryError):
        sys.stderr.write(f"{key} is not wanted any more\n")
        return 0
    shepherd.run(order)
    return 0
