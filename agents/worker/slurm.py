"""The batch system `slurm`: one batch job for each payload, watched over by a shepherd on its node.

What is true is in the records (`shepherd.py`), which the nodes share; Slurm is told what to run and asked what it has,
and may be slow, silent, restarted without its memory, or wrong:

* a submission without an answer is looked for in the queue by its name, and made again when it is not there; the claim
  lets one of two copies run.
* a job that Slurm lost before it started is submitted again; one whose shepherd falls silent is lost.
* a cancellation is a claim, or a note to the shepherd; `scancel` only tidies Slurm's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import getpass
import hashlib
import json
import math
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from agents.worker import payloads, scratch, shepherd
from agents.worker.batch import Listing
from agents.worker.config import WorkerOptions

PATH = "/usr/local/bin:/usr/bin:/bin"
MAX_SUBMISSIONS_AT_ONCE = 4
MAX_TRIES = 5
"""Refusals, or losses in Slurm's queue, after which an order goes back to the gatekeeper."""
QUEUE_EVERY_POLLS = 5
ABSENT_LOOKS = 2
"""Looks at the queue in a row that must miss a job: one may be older than the job."""
SILENT_QUERIES = 3
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
_OURS = "worker"
"""In a claim: the worker decided that it never starts."""


class _Stage(Enum):
    NEW = auto()
    """To be submitted, for the first time or again."""
    SUBMITTED = auto()
    """Slurm has it, or may have it."""
    STARTED = auto()
    """Told as started."""


@dataclass(slots=True)
class _Known:
    """One key that is with us."""

    key: str
    stage: _Stage = _Stage.NEW
    order: dict[str, Any] | None = None
    submitted_at: float = 0.0
    tries: int = 0
    not_before: float = 0.0
    absent: int = 0
    beat: str | None = None
    """None until it is seen to be claimed."""
    beat_at: float = 0.0
    """When the beat was seen to change, by our own clock."""


class SlurmClient:
    """Jobs of one worker in one cluster."""

    outlives_reboot = True
    places_ranks = True

    def __init__(
        self, state_dir: Path, options: WorkerOptions, *, on_message: Callable[[dict[str, Any]], None], log: Any
    ) -> None:
        self._jobs_dir, self._state_dir, self._options = state_dir / "jobs", state_dir, options
        self._on_message, self._log = on_message, log
        self._prefix = f"gf-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}-"
        self._environment = {"PATH": PATH, "LANG": "C.UTF-8"}
        if options.slurm_conf:
            self._environment["SLURM_CONF"] = options.slurm_conf
        self._known: dict[str, _Known] = {}
        self._wishes: list[tuple[str, str]] = []
        """Cancellations (with their reason) and withdrawals (without) to be carried out."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._refusal = self._silence = ""
        self._failed_queries = self._polls = 0
        self._stopping = False
        self.lost = asyncio.Event()

    @property
    def problem(self) -> str:
        """What Slurm says when it refuses jobs, or that it says nothing."""
        return self._silence or self._refusal

    # ---- the worker's wishes

    async def connect(self) -> Listing:
        """By the records alone: Slurm may be away."""
        self.close()
        self._known.clear()
        running: dict[str, tuple[int, int]] = {}
        for key, found in (await asyncio.to_thread(self._records)).items():
            known = self._known[key] = _Known(key, _Stage.SUBMITTED, beat_at=time.monotonic())
            if found is not None:
                running[key] = found
                known.stage = _Stage.STARTED
        self.lost.clear()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="slurm")
        return Listing(running, frozenset(self._known.keys() - running.keys()))

    def _records(self) -> dict[str, tuple[int, int] | None]:
        """Every key whose fate is open: its process and start, None if it has not told that it started."""
        found: dict[str, tuple[int, int] | None] = {}
        for key in scratch.keys(self._jobs_dir):
            folder = self._jobs_dir / key
            if (folder / "exit.json").exists() or not (folder / "order.json").exists():
                continue
            if _read(folder / "claim") == _OURS:
                (folder / "claim").unlink()  # nobody was told yet, or will be told again
                continue
            found[key] = _started(folder)
        return found

    async def capacity(self) -> int:
        """Processors of the nodes of all partitions that are used, busy or not."""
        options = self._options
        used = {options.partition, *options.partitions.values()}
        only = [] if "" in used else [f"--partition={','.join(sorted(used))}"]
        said = await self._ask("sinfo", "--noheader", "--Node", "--format=%N|%c", *only)
        nodes = dict(line.split("|") for line in said.split() if line.count("|") == 1) if said else {}
        return sum(int(count) for count in nodes.values() if count.isdecimal())

    def was_started(self, key: str) -> bool:
        """A shepherd has claimed it."""
        return _read(self._jobs_dir / key / "claim") not in (None, _OURS)

    def exit_of(self, key: str) -> dict[str, Any] | None:
        """As its shepherd has written it."""
        try:
            record = json.loads((self._jobs_dir / key / "exit.json").read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def kill_remains(self, keys: set[str]) -> int:
        """Cancelled in Slurm by name, which ends their shepherds."""
        for key in keys:
            with contextlib.suppress(OSError):
                shepherd.put(str(self._jobs_dir / key / "kill"), "FORGOTTEN")
                shepherd.claim(str(self._jobs_dir / key), _OURS)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                self._cancellation(keys),
                env=self._environment,
                capture_output=True,
                timeout=self._options.batch_timeout_s,
                check=False,
            )
        return 0

    def submit(self, orders: Sequence[dict[str, Any]]) -> None:
        """One batch job each."""
        for order in orders:
            self._known[order["key"]] = _Known(order["key"], order=order)
        self._wake.set()

    def cancel(self, keys: Sequence[str], reason: str, *, at_once: bool = False) -> None:
        """By claim where nothing has started, else by a note to the shepherd."""
        note = f"{reason}\n{shepherd.AT_ONCE}" if at_once else reason
        self._wishes += [(key, note) for key in keys]
        self._wake.set()

    def withdraw(self, keys: Sequence[str]) -> None:
        """By claim."""
        self._wishes += [(key, "") for key in keys]
        self._wake.set()

    def forget(self, keys: Sequence[str]) -> None:
        """Their records go."""
        for key in keys:
            self._known.pop(key, None)
            scratch.remove(self._jobs_dir, key)

    def shutdown(self) -> None:
        """Cancel all."""
        self._stopping = True
        self.cancel(list(self._known), "WORKER_STOPPED")

    def close(self) -> None:
        """Stop looking."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    # ---- the loop

    async def _run(self) -> None:
        while True:
            if not self._wake.is_set():
                idle_s = self._options.batch_poll_s if self._known or self._refusal else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(idle_s):
                        await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except Exception as error:  # the others go on; what this turn concerned is looked at in the next
                self._log.exception("slurm.defect", error)
                await asyncio.sleep(self._options.batch_poll_s)
            if self._stopping and not self._known:
                self.lost.set()
                return

    async def _turn(self) -> None:
        wishes, self._wishes = self._wishes, []
        withdrawn = [key for key, reason in wishes if await self._take_back(key, reason)]
        if withdrawn:
            self._on_message({"event": "gone", "keys": withdrawn})
            await self._ask(*self._cancellation(withdrawn))
        await self._submit_some()
        self._polls += 1
        queue = await self._queue() if self._polls % QUEUE_EVERY_POLLS == 0 else None
        began = time.monotonic()
        await self._look()
        if queue is not None:
            await self._compare(queue, began)

    async def _take_back(self, key: str, reason: str) -> bool:
        """Decide that a job never starts; False if it did, and then the shepherd is told the reason."""
        known = self._known.get(key)
        if known is None:
            return bool(reason) and not (self._jobs_dir / key / "exit.json").exists()
        if known.stage is _Stage.NEW or await asyncio.to_thread(self._claim, key):
            self._known.pop(key, None)
            return True
        if reason:
            await asyncio.to_thread(shepherd.put, str(self._jobs_dir / key / "kill"), reason)
        return False

    def _claim(self, key: str) -> bool:
        try:
            return shepherd.claim(str(self._jobs_dir / key), _OURS)
        except FileNotFoundError:
            return True

    # ---- submission

    async def _submit_some(self) -> None:
        now = time.monotonic()
        due = [known for known in self._known.values() if known.stage is _Stage.NEW and known.not_before <= now]
        if due:
            await asyncio.gather(*(self._submit_one(known) for known in due[:MAX_SUBMISSIONS_AT_ONCE]))
        if len(due) > MAX_SUBMISSIONS_AT_ONCE:
            self._wake.set()

    async def _submit_one(self, known: _Known) -> None:
        order = known.order
        folder = self._jobs_dir / known.key
        try:
            if order is None:  # from before our restart
                order = known.order = json.loads(await asyncio.to_thread((folder / "order.json").read_bytes))
            else:
                await asyncio.to_thread(self._put_order, folder, order)
        except (OSError, ValueError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._refuse(known, "DISK" if full else "STATE_DIRECTORY")
            return
        known.stage, known.absent, known.submitted_at = _Stage.SUBMITTED, 0, math.inf
        try:
            code, out, said = await self._command(*self._submission(order), text=self._script(order))
        except TimeoutError:
            self._log.warning("slurm.submit_unanswered", key=known.key)
            return
        finally:
            known.submitted_at = time.monotonic()
        if code == 0:
            self._refusal = ""
            self._log.info("slurm.submitted", key=known.key, batch_id=out.strip().partition(";")[0][:40])
            return
        self._refusal = f"Slurm refuses jobs: {_first_line(said) or f'sbatch ended with {code}'}"
        self._log.warning("slurm.refused", key=known.key, detail=self._refusal)
        await self._again(known)

    def _put_order(self, folder: Path, order: dict[str, Any]) -> None:
        os.makedirs(folder, 0o700, exist_ok=True)
        shepherd.put(str(folder / "order.json"), json.dumps(order))

    async def _again(self, known: _Known) -> None:
        """Not with Slurm, as it seems: submit it later, or give the order back."""
        known.stage = _Stage.NEW
        known.tries += 1
        known.not_before = time.monotonic() + self._options.batch_poll_s * 2**known.tries
        if known.tries < MAX_TRIES:
            return
        if await asyncio.to_thread(self._claim, known.key):
            self._refuse(known, "BATCH_REFUSED")
        else:
            known.stage = _Stage.SUBMITTED  # it was not true

    def _refuse(self, known: _Known, why: str) -> None:
        self._known.pop(known.key, None)
        self._on_message({"event": "refused", "jobs": [[known.key, why]]})

    def _partition(self, queue: str) -> list[str]:
        name = self._options.partitions.get(queue, self._options.partition)
        return [f"--partition={name}"] if name else []

    def _submission(self, order: dict[str, Any]) -> list[str]:
        minutes = math.ceil((float(order.get("wall_s") or 0) + float(order.get("grace_s") or 0)) / 60) + 1
        gang, slots = order.get("gang"), int(order.get("slots") or 1)
        megabytes = math.ceil(int(order.get("memory_bytes") or 0) / slots / 2**20)
        memory = "--mem-per-cpu" if gang else "--mem"
        return [
            "sbatch", "--parsable", "--no-requeue", f"--ntasks={slots}", "--export=NONE", "--output=/dev/null",
            f"--job-name={self._prefix}{order['key']}", f"--comment={order['env'].get('GRIDFABRIC_JOB_ID', '')}",
            f"--chdir={self._state_dir}", *self._partition(order.get("queue", "")),
            *([f"--time={minutes}"] if order.get("wall_s") else []), *([f"{memory}={megabytes}"] if megabytes else []),
            *(_nodes(gang, slots) if gang else []),
        ]  # fmt: skip

    def _script(self, order: dict[str, Any]) -> str:
        if "gang" not in order:
            return f"#!/bin/sh\nexec {shlex.join(payloads.command('shepherd', str(self._state_dir), order['key']))}\n"
        part = shlex.join(payloads.command("parts", str(self._state_dir), order["key"]))
        one_each = (
            "--ntasks=$SLURM_JOB_NUM_NODES --nodes=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --overlap --mpi=none "
            "--export=ALL --kill-on-bad-exit=0"
        )
        nodes = '"$SLURM_TASKS_PER_NODE" $(scontrol show hostnames)'
        return f"#!/bin/sh\nexec srun {one_each} {part} {nodes} < /dev/null\n"

    def _cancellation(self, keys: Iterable[str]) -> list[str]:
        names = ",".join(f"{self._prefix}{key}" for key in keys)
        return ["scancel", "--full", f"--user={getpass.getuser()}", f"--name={names}"]

    # ---- what became of them

    async def _look(self) -> None:
        # Also what is to be submitted again: a refusal may not have been one.
        told = [known for known in self._known.values() if known.stage is not _Stage.NEW or known.tries]
        open_keys = [(known.key, known.stage) for known in told]
        started, ended = await asyncio.to_thread(self._changes, open_keys)
        for key, _, _ in started:
            if key in self._known:
                self._known[key].stage, self._known[key].beat_at = _Stage.STARTED, time.monotonic()
        if started:
            self._on_message({"event": "started", "jobs": started})
        for record in ended:
            self._known.pop(record["key"], None)
        if ended:
            self._on_message({"event": "ended", "jobs": ended})

    def _changes(self, keys: Sequence[tuple[str, _Stage]]) -> tuple[list[list[Any]], list[dict[str, Any]]]:
        """[key, pid, at] of those that started, and the exit records of those that ended."""
        started: list[list[Any]] = []
        ended: list[dict[str, Any]] = []
        for key, stage in keys:
            folder = self._jobs_dir / key
            record = self.exit_of(key)
            if record is not None:
                ended.append({**record, "key": key})
            if stage is not _Stage.STARTED and (process := _started(folder)) is not None:
                started.append([key, *process])
        return started, ended

    async def _queue(self) -> dict[str, str] | None:
        """Key to state, as Slurm tells it; None if it does not."""
        said = await self._ask("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%j|%T")
        if said is None:
            self._failed_queries += 1
            if self._failed_queries >= SILENT_QUERIES:
                self._silence = "Slurm does not answer"
            return None
        self._failed_queries, self._silence = 0, ""
        if not any(known.tries for known in self._known.values()):
            self._refusal = ""
        rows = (line.partition("|") for line in said.splitlines() if line.startswith(self._prefix))
        return {name.removeprefix(self._prefix): state.strip() for name, _, state in rows}

    async def _compare(self, queue: dict[str, str], now: float) -> None:
        asked_at = now - self._options.batch_poll_s
        for known in list(self._known.values()):
            if known.stage is _Stage.NEW or known.submitted_at > asked_at:
                continue
            folder = self._jobs_dir / known.key
            known.absent = 0 if known.key in queue else known.absent + 1
            if self.was_started(known.key):
                beat = await asyncio.to_thread(_read, folder / "beat") or ""  # a claim comes before the first beat
                if beat != known.beat or queue.get(known.key) == "SUSPENDED":
                    known.beat, known.beat_at = beat, now
                silent = now - known.beat_at > self._options.shepherd_silent_s
                if silent and await asyncio.to_thread(self.exit_of, known.key) is None:  # it has not ended meanwhile
                    self._lose(known)
            elif known.absent >= ABSENT_LOOKS:
                self._log.warning("slurm.job_vanished", key=known.key, tries=known.tries)
                await self._again(known)

    def _lose(self, known: _Known) -> None:
        self._known.pop(known.key, None)
        text = f"nothing was heard of it for {self._options.shepherd_silent_s:g} s and it left no exit code"
        self._on_message({"event": "lost", "jobs": [[known.key, text]]})

    # ---- Slurm's commands

    async def _ask(self, *command: str) -> str | None:
        """What a command prints; None if it fails or is silent."""
        try:
            code, out, said = await self._command(*command)
        except TimeoutError:
            return None
        if code:
            self._log.warning("slurm.command_failed", command=command[0], code=code, detail=_first_line(said))
            return None
        return out

    async def _command(self, *command: str, text: str = "") -> tuple[int, str, str]:
        """Exit code, output, error output. Raises TimeoutError."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            return 127, "", f"{command[0]} cannot be run here: {error.strerror}"
        try:
            out, said = await asyncio.wait_for(process.communicate(text.encode()), self._options.batch_timeout_s)
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            raise
        return (
            process.returncode or 0,
            out[:MAX_OUTPUT_BYTES].decode("utf-8", "replace"),
            said.decode("utf-8", "replace"),
        )


def _started(folder: Path) -> tuple[int, int] | None:
    try:
        record = json.loads((folder / "started.json").read_bytes())
    except (OSError, ValueError):
        return None
    return int(record["pid"]), int(record["at_us"])


def _nodes(gang: dict[str, Any], slots: int) -> list[str]:
    """For sbatch: how the ranks may be spread. What it has no words for the gatekeeper has refused."""
    hosts, each = gang["hosts"], gang["slots_per_host"]
    return [f"--nodes={slots // each}", f"--ntasks-per-node={each}"] if each > 1 else [f"--nodes={hosts}-{slots}"]


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].removeprefix("sbatch: error: ")[:200] if lines else ""
