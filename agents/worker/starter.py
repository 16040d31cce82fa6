"""The starter: a small single-threaded process that owns the payload processes of one worker.

It outlives the worker agent (which carries gRPC, threads and Ray, and must never fork), so a killed agent finds its
jobs running when it comes back. It imports nothing but the standard library and `payloads`, whose `command` runs it.

Promises, each kept before the agent is told:
* a key is started at most once, ever: its file `jobs/<key>` is made before the fork;
* how a process ended is in that file, after its number, before `ended` is sent: a line of JSON, complete or not valid.
One file for all of that, and for one key after another: making one takes a file system longer than most of the rest.
Neither is fsynced: the page cache survives any kill, and after a reboot (another boot id) the agent accounts for every
job that it had handed over, so nothing has to be guessed from these files.

The wire is JSON lines over a unix socket that only the same user (or root) may use. From the agent: `run`, `kill`,
`withdraw` (only if not yet forked), `list`, `forget`, `shutdown`. To the agent: `started`, `refused`, `ended`,
`gone` (killed but not running), `listing`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import itertools
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import struct
import sys
import time

from agents.worker.launcher import Launch, kind_of
from agents.worker.payloads import WATCH_EVERY_S, Job, Payloads
from fabric import failpoints

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_FORKS_PER_TURN = 16
"""Between these the starter looks at ended processes and messages."""
HOUSEKEEPING_EVERY_S = 2.0
MAX_SPARES = 512
"""Empty files that were records of keys which were forgotten."""


class Starter(Payloads):
    """The loop. Works in its current directory, which is the worker's state directory."""

    def __init__(self, orphan_timeout_s: float) -> None:
        super().__init__()
        self.orphan_timeout_s = orphan_timeout_s
        self.waiting: list[dict] = []
        """Orders not yet forked: beyond the slots, so that the next one starts without asking the agent."""
        self.launches: list[Launch] = []
        self.slots = 1_000_000
        self.agent: socket.socket | None = None
        self.inbox, self.outbox = b"", bytearray()
        self.stopping = False
        self.stop_deadline = 0.0
        self.agent_seen = time.monotonic()
        self.next_housekeeping = 0.0
        os.makedirs("jobs", 0o700, exist_ok=True)
        self.jobs_inode = os.stat("jobs").st_ino
        shutil.rmtree("spares", ignore_errors=True)
        os.mkdir("spares", 0o700)
        self.spares: list[str] = []
        self.spare_numbers = itertools.count()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        self.listener = _listen("starter.sock")
        self.selector.register(self.listener, selectors.EVENT_READ)

    def terminated(self) -> None:
        """SIGTERM: end with everything that runs."""
        self._begin_stop()

    # ---- the loop

    def run(self) -> None:
        """Until shut down, or idle without an agent for `orphan_timeout_s`, or the state directory is gone."""
        while not self._finished():
            for key in self.wait(self._timeout()):
                if key.fileobj is self.listener:
                    self._accept()
                elif self.agent is not None and key.fileobj is self.agent:
                    self._read_agent()
            self._read_launches()
            self.reap()
            self._start_waiting()
            now = time.monotonic()
            self.enforce(now)
            if now >= self.next_housekeeping:
                self.next_housekeeping = now + HOUSEKEEPING_EVERY_S
                self._housekeeping(now)
            self._flush()

    def _timeout(self) -> float:
        if self._next_orders():
            return 0
        now = time.monotonic()
        until = now + (WATCH_EVERY_S if self.jobs else HOUSEKEEPING_EVERY_S)
        if self.deadlines:
            until = min(until, self.deadlines[0][0])
        if self.stopping:
            until = min(until, now + 0.05)
        return max(0.0, until - now)

    def _finished(self) -> bool:
        if not self.stopping:
            return False
        return (not self.jobs and not self.children()) or time.monotonic() > self.stop_deadline

    def _begin_stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.stop_deadline = time.monotonic() + 10
            self.waiting.clear()
        for job in self.jobs.values():
            self._stop(job)

    def _stop(self, job: Job) -> None:
        job.reason = job.reason or "WORKER_STOPPED"
        self.kill_session(job)

    def _housekeeping(self, now: float) -> None:
        if self.agent is not None or self.jobs or self.waiting:
            self.agent_seen = now
        elif now - self.agent_seen > self.orphan_timeout_s:
            self.stopping, self.stop_deadline = True, now + 10
        try:
            gone = os.stat("jobs").st_ino != self.jobs_inode
        except OSError:
            gone = True
        if gone:
            self._begin_stop()
        self.write_again()
        for launch in self.launches:
            if now > launch.until:
                with contextlib.suppress(OSError):
                    os.kill(launch.pid, signal.SIGKILL)
        if self.can_list_children:
            self.kill_strays([])

    def ended(self, records: list[dict]) -> None:
        """Told once it is on disk."""
        failpoints.reached("starter.ended.written")
        self._tell({"event": "ended", "jobs": records})

    # ---- the agent's connection

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self.listener.accept()
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            uid = struct.unpack("3i", credentials)[1]
            if uid not in (0, os.geteuid()):
                connection.close()
                return
            self._drop_agent()
            connection.setblocking(False)
            self.agent, self.inbox, self.outbox = connection, b"", bytearray()
            self.selector.register(connection, selectors.EVENT_READ)

    def _drop_agent(self) -> None:
        if self.agent is not None:
            self.selector.unregister(self.agent)
            self.agent.close()
            self.agent = None
            self.agent_seen = time.monotonic()

    def _read_agent(self) -> None:
        assert self.agent is not None
        try:
            data = self.agent.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self.inbox) > MAX_LINE_BYTES:
            self._drop_agent()
            return
        *lines, self.inbox = (self.inbox + data).split(b"\n")
        for line in lines:
            try:
                self._obey(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                sys.stderr.write(f"a message was not understood: {error!r}\n")

    def _obey(self, message: dict) -> None:
        operation = message["op"]
        if operation == "run":
            if self.stopping:
                self._tell({"event": "refused", "jobs": [[o["key"], "STARTER_STOPPING"] for o in message["jobs"]]})
            else:
                self.waiting.extend(message["jobs"])
        elif operation == "kill":
            self._obey_kill(message["keys"], message["reason"], at_once=message.get("at_once", False))
        elif operation == "withdraw":
            wanted = set(message["keys"])
            gone = [order["key"] for order in self.waiting if order["key"] in wanted]
            self.waiting = [order for order in self.waiting if order["key"] not in wanted]
            if gone:
                self._tell({"event": "gone", "keys": gone})
        elif operation == "list":
            self.slots = int(message.get("slots") or self.slots)
            running = [[job.key, job.pid, job.started_at_us] for job in self.jobs.values()]
            waiting = [order["key"] for order in self.waiting] + [key for one in self.launches for key in one.orders]
            self._tell({"event": "listing", "running": running, "waiting": waiting, "boot_id": self.boot_id})
        elif operation == "forget":
            for key in message["keys"]:
                self.unwritten.pop(key, None)
                self._remove_record(key)
        elif operation == "shutdown":
            self._begin_stop()

    def _obey_kill(self, keys: list[str], reason: str, *, at_once: bool) -> None:
        gone = []
        now = time.monotonic()
        wanted = set(keys)
        gone += [order["key"] for order in self.waiting if order["key"] in wanted]
        self.waiting = [order for order in self.waiting if order["key"] not in wanted]
        for key in keys:
            job = self.jobs.get(key)
            if job is not None:
                self.begin_kill(job, reason, now, at_once)
            elif key not in gone and not os.path.exists(record_of(key)):
                gone.append(key)
        if gone:
            self._tell({"event": "gone", "keys": gone})

    def _make_record(self, key: str) -> None:
        """Raises FileExistsError: it was started before; OSError."""
        if not self.spares:
            os.close(os.open(record_of(key), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return
        os.link(self.spares[-1], record_of(key))
        os.unlink(self.spares.pop())

    def _remove_record(self, key: str) -> None:
        spare = f"spares/{next(self.spare_numbers)}"
        with contextlib.suppress(OSError):
            if len(self.spares) < MAX_SPARES:
                os.rename(record_of(key), spare)
                os.truncate(spare, 0)
                self.spares.append(spare)
            else:
                os.unlink(record_of(key))

    def write_exit(self, key: str, record: dict) -> bool:
        """On a line of its own, whatever became of an earlier attempt."""
        data = b"\n" + json.dumps(record).encode() + b"\n"
        try:
            return _append(key, data) == len(data)
        except FileNotFoundError:  # forgotten
            return True
        except OSError:
            return False

    def _tell(self, message: dict) -> None:
        if self.agent is not None:
            self.outbox += json.dumps(message, separators=(",", ":")).encode() + b"\n"

    def _flush(self) -> None:
        while self.outbox and self.agent is not None:
            try:
                sent = self.agent.send(self.outbox)
            except BlockingIOError:
                # The agent is slow: wait until it reads. Nothing is lost if it dies, all is on disk.
                self.selector.modify(self.agent, selectors.EVENT_READ | selectors.EVENT_WRITE)
                return
            except OSError:
                self._drop_agent()
                return
            del self.outbox[:sent]
        if self.agent is not None:
            self.selector.modify(self.agent, selectors.EVENT_READ)

    # ---- starting

    def _next_orders(self) -> list[dict]:
        """The first of those that wait, as many as there are slots for."""
        if not self.waiting or self.stopping:
            return []
        used = self.used_slots + sum(_slots(order) for launch in self.launches for order in launch.orders.values())
        count = 0
        for order in self.waiting[:MAX_FORKS_PER_TURN]:
            wanted = _slots(order)
            if used and used + wanted > self.slots:  # alone, it runs even if the slots became fewer
                break
            used += wanted
            count += 1
        return self.waiting[:count]

    def _start_waiting(self) -> None:
        orders = self._next_orders()
        if not orders:
            return
        chosen, refused = [], []
        for order in orders:
            try:
                self._make_record(order["key"])
                chosen.append(order)
            except FileExistsError:
                refused.append([order["key"], "ALREADY_STARTED"])
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                refused.append([order["key"], "DISK" if full else "STATE_DIRECTORY"])
        if chosen:
            failpoints.reached("starter.record.made")
        del self.waiting[: len(orders)]
        for orders in _by_kind(chosen) if self.can_list_children else [[order] for order in chosen]:
            try:
                if self.can_list_children:
                    self._launch(orders)
                else:  # whose payloads would be somebody else's children
                    self._tell_started([self.fork(order) for order in orders])
            except OSError:  # no processes or no memory left on this host
                for order in orders:
                    self._remove_record(order["key"])
                    refused.append([order["key"], "NO_PROCESSES"])
        if refused:
            self._tell({"event": "refused", "jobs": refused})

    def _launch(self, orders: list[dict]) -> None:
        launch = Launch(orders, self.become_mortal)
        self.launches.append(launch)
        self.helpers.add(launch.pid)
        self.selector.register(launch.pipe, selectors.EVENT_READ)

    def inherited(self) -> None:
        """Perhaps a payload: its launcher has told of it before it ended."""
        self._read_launches()

    def _read_launches(self) -> None:
        started: list[Job] = []
        failed: list[dict] = []
        for launch in list(self.launches):
            while told := launch.read():
                for key, pid, at_us, error in told:
                    order = launch.orders.pop(key)
                    failpoints.reached("starter.launched")
                    if error is None:
                        started.append(self.begun(order, pid, at_us))
                        with contextlib.suppress(OSError):
                            _append(key, str(pid).encode())
                    else:
                        failed.append(self._not_started(key, error))
            if told is None:
                self._launch_is_over(launch)
        if started:
            failpoints.reached("starter.started")
            self._tell_started(started)
            for job in started if self.stopping else ():
                self._stop(job)
        if failed:
            self.keep(failed)

    def _launch_is_over(self, launch: Launch) -> None:
        self.launches.remove(launch)
        self.selector.unregister(launch.pipe)
        launch.close()
        if launch.orders:  # it was killed; what it had started without a word is killed as a stray
            text = "the process that started it was killed"
            self._tell({"event": "lost", "jobs": [[key, text] for key in launch.orders]})

    def _not_started(self, key: str, error: dict) -> dict:
        now_us = time.time_ns() // 1000
        return {
            "key": key, "boot_id": self.boot_id, "started_at_us": now_us, "ended_at_us": now_us, "exit_code": 127,
            "error": error,
        }  # fmt: skip

    def _tell_started(self, jobs: list[Job]) -> None:
        self._tell({"event": "started", "jobs": [[job.key, job.pid, job.started_at_us] for job in jobs]})


def record_of(key: str) -> str:
    """Where what was done with a key is written, in the state directory."""
    return f"jobs/{key}"


def _append(key: str, data: bytes) -> int:
    descriptor = os.open(record_of(key), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        return os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _by_kind(orders: list[dict]) -> list[list[dict]]:
    found: dict[tuple[object, ...], list[dict]] = {}
    for order in orders:
        found.setdefault(kind_of(order), []).append(order)
    return list(found.values())


def _slots(order: dict) -> int:
    return int(order.get("slots") or 1)


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(8)
    return listener


def main(arguments: list[str]) -> int:
    """Arguments: state directory, orphan timeout in seconds. Prints `ready`, or `busy` if another one holds the
    directory."""
    state_directory, orphan_timeout_s = arguments[0], float(arguments[1])
    if os.fork():
        os._exit(0)  # the agent is not our parent: neither its death nor its children's bookkeeping reaches us
    os.chdir(state_directory)
    os.umask(0o077)
    lock = os.open("starter.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.write(1, b"busy\n")
        return 75
    log = os.open("starter.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 2)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    starter = Starter(orphan_timeout_s)
    with open("starter.pid", "w") as file:
        file.write(str(os.getpid()))
    os.write(1, b"ready\n")
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    gc.collect()
    gc.freeze()
    starter.run()
    for name in ("starter.sock", "starter.pid"):
        with contextlib.suppress(OSError):
            os.unlink(name)
    return 0
