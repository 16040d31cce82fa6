"""A gang in Slurm: one shepherd on each of its nodes, started by one `srun`; each watches over the ranks of its node.

    all: ready ─► part 0: claim ─► go ─► all: ranks ─► exit.<part>.json ─► part 0: exit.json

Part 0 is the one that the worker hears of. The nodes share the record and the job's directory, in which the launchers
find each other. The first part that ends badly ends the others, which read its record; a part whose beat stands still
is dead, and ends all. Each shepherd has a guard, its parent, which inherits and kills the ranks of one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from agents.worker import open_mpi, ranks
from agents.worker.payloads import Job, adopt_orphans, descendants
from agents.worker.shepherd import Shepherd, claim, put, settle

READY_WAIT_S = 60.0
"""A gang whose nodes are not all there by then does not start, and is submitted again."""
GO_WAIT_S = 120.0
AFTER_TERM_S = 3.0
"""For the records of the others after Slurm's SIGTERM; SIGKILL comes by its KillWait."""
GANG_ENDED, PART_LOST = "GANG_ENDED", "BATCH_LOST"
NOT_STARTED = 75
_LOOK_S = 0.05


def machines_of(tasks: str, nodes: list[str]) -> list[tuple[str, int]]:
    """Node and ranks of each part, from SLURM_TASKS_PER_NODE, as `2(x3),1`. Raises ValueError."""
    counts: list[int] = []
    for word in tasks.split(","):
        count, _, times = word.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return list(zip(nodes, counts, strict=True))


def merged(records: list[dict]) -> dict:
    """One record of those of all parts: the end of the one that ended badly by itself, else the first's; their usage
    together."""

    def weight(record: dict) -> int:
        reason = record.get("reason") or ""
        if "error" in record:
            return 0
        if reason not in ("", GANG_ENDED):
            return 1
        return 2 if record["exit_code"] and not reason else 3

    chosen = dict(min(records, key=weight))
    for name in ("user_s", "system_s", "max_rss_bytes"):
        chosen[name] = sum(record.get(name, 0) for record in records)
    chosen["wall_s"] = max(record.get("wall_s", 0.0) for record in records)
    return chosen


class Part(Shepherd):
    """The ranks of one node. `number` is the part's, `run` names the batch job."""

    def __init__(self, key: str, machines: list[tuple[str, int]], number: int, run: str) -> None:
        super().__init__(key)
        self.machines, self.number, self.run_name = machines, number, run
        self.others = [other for other in range(len(machines)) if other != number]
        self.records: dict[int, dict] = {}
        """Of the parts that have ended."""
        self.silent_s = 0.0
        self.heard: dict[int, tuple[str, float]] = {}
        """Beat of another part, and when it was seen to change."""
        self.stopped_at = 0.0
        self.beat_name = _beat_name(number)

    def terminated(self) -> None:
        """Slurm wants the gang to end."""
        self.stopped_at = self.stopped_at or time.monotonic()
        super().terminated()

    # ---- together

    def start_together(self, order: dict) -> bool:
        """True when every part is there, and this batch job is the one that runs. Raises FileNotFoundError: its record
        is gone."""
        put(f"{self.folder}/ready.{self.run_name}.{self.number}", "")
        if self.number:
            return self._comes("go", GO_WAIT_S) and _read(f"{self.folder}/go") == self.run_name
        if not all(self._comes(f"ready.{self.run_name}.{other}", READY_WAIT_S) for other in self.others):
            return False
        if not claim(self.folder, self.run_name):
            return False
        descriptor = os.open(f"{order['cwd']}/{ranks.MACHINES_NAME}", os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
        with open(descriptor, "wb") as file:  # the worker has made it, for the job's account
            file.write(ranks.machine_file(self.machines))
        put(f"{self.folder}/go", self.run_name)
        return True

    def _comes(self, name: str, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not os.path.exists(f"{self.folder}/{name}"):
            if self.stopped_at or time.monotonic() > until or not os.path.isdir(self.folder):
                return False
            self.wait(_LOOK_S)
        return True

    def order_of_part(self, order: dict) -> dict:
        """What runs on this node, with its share of the limits."""
        command, count = order["argv"], self.machines[self.number][1]
        if not order["gang"]["open_mpi"]:
            command = ranks.launcher(
                command,
                first=sum(ranks for _, ranks in self.machines[: self.number]),
                count=count,
                stdout=order["stdout"] or "",
                stderr=order["stderr"] or "",
                grace_s=order["grace_s"],
            )
        elif self.number:
            command = open_mpi.other(open_mpi.daemon_file(self.number))
        else:
            command = open_mpi.first(command, self.machines, order["cwd"])
        share = count / order["slots"]
        streams = {} if self.number == 0 else {"stdin": None, "stdout": None, "stderr": None}
        return {
            **order, **streams, "argv": command, "executable": command[0], "slots": count,
            "cpu_s": order["cpu_s"] * share, "memory_bytes": order["memory_bytes"] * share,
        }  # fmt: skip

    # ---- one part

    def run(self, order: dict) -> None:
        """Until this part is over; the first, until all are."""
        self.silent_s = order["gang"]["silent_s"]
        super().run(self.order_of_part(order))
        if self.number == 0:
            self._end_for_all()

    def tell_started(self, job: Job) -> None:
        """The first part tells it of all."""
        if self.number == 0:
            super().tell_started(job)

    def look(self, now: float) -> None:
        """Also after the others."""
        super().look(now)
        for other in self.others:
            text = _read(f"{self.folder}/exit.{other}.json")
            if text and other not in self.records:
                self.records[other] = json.loads(text)
        why = GANG_ENDED if any(map(_bad, self.records.values())) else PART_LOST if self._silent(now) else ""
        for job in list(self.jobs.values()) if why else ():
            self.begin_kill(job, why, now)

    def _silent(self, now: float) -> bool:
        watched = self.others if self.number == 0 else [0]
        for other in watched:
            beat = _read(f"{self.folder}/{_beat_name(other)}")
            if other not in self.heard or self.heard[other][0] != beat:
                self.heard[other] = (beat, now)
        return any(other not in self.records and now - self.heard[other][1] > self.silent_s for other in watched)

    def write_exit(self, key: str, record: dict) -> bool:
        """As this part's."""
        self.records[self.number] = record
        try:
            put(f"{self.folder}/exit.{self.number}.json", json.dumps(record))
        except OSError:
            return not os.path.isdir(self.folder)
        return True

    def _end_for_all(self) -> None:
        """The record that the worker reads, when there are those of all parts that live."""
        while len(self.records) < len(self.machines):
            now = time.monotonic()
            self.look(now)
            if self._silent(now):
                self.records |= {other: _lost(self.key) for other in self.others if other not in self.records}
            elif self.stopped_at and now - self.stopped_at > AFTER_TERM_S:
                break
            else:
                self.wait(_LOOK_S)
        record = merged([self.records[number] for number in sorted(self.records)])
        while not Shepherd.write_exit(self, self.key, record):
            self.wait(1.0)


def _beat_name(number: int) -> str:
    return f"beat.{number}" if number else "beat"


def _lost(key: str) -> dict:
    return {"key": key, "ended_at_us": time.time_ns() // 1000, "exit_code": 0, "reason": PART_LOST}


def _bad(record: dict) -> bool:
    return bool("error" in record or record.get("exit_code") or record.get("reason"))


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _guard(pid: int, key: str, number: int, run: str) -> int:
    """Until the shepherd ends. If it was killed: an end to its ranks, and a record that ends the other parts."""

    def pass_on(signal_number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)

    signal.signal(signal.SIGTERM, pass_on)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    while left := descendants(os.getpid()):
        for one in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        os.wait()
    record = f"jobs/{key}/exit.{number}.json"
    if _read(f"jobs/{key}/go") == run and not os.path.exists(record):
        with contextlib.suppress(OSError):  # then its silence tells
            put(record, json.dumps(_lost(key)))
    return NOT_STARTED


def main(arguments: list[str]) -> int:
    """Arguments: state directory, job key, SLURM_TASKS_PER_NODE of the batch job, its nodes."""
    state_directory, key, tasks, *nodes = arguments
    settle(state_directory)
    adopt_orphans()
    number, run = int(os.environ["SLURM_PROCID"]), os.environ["SLURM_JOB_ID"]
    pid = os.fork()
    if pid:
        return _guard(pid, key, number, run)
    part = Part(key, machines_of(tasks, nodes), number, run)
    part.become_mortal()
    try:
        with open(f"jobs/{key}/order.json") as file:
            order = json.load(file)
        if not part.start_together(order):
            return NOT_STARTED
    except (FileNotFoundError, NotADirectoryError):
        sys.stderr.write(f"{key} is not wanted any more\n")
        return 0
    part.run(order)
    return 0
