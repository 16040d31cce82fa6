"""The starter: a small single-threaded process that owns the payload processes of one worker.

It outlives the worker agent (which carries gRPC, threads and Ray, and must never fork), so a killed agent finds its
jobs running when it comes back. It imports nothing but the standard library and `payloads`, whose `command` runs it.

Promises, each kept before the agent is told:
* a key is started at most once, ever: its directory `jobs/<key>` is made before the fork;
* how a process ended is in `jobs/<key>/exit.json` (complete or not there) before `ended` is sent.
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
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time

from agents.worker.payloads import WATCH_EVERY_S, Payloads

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_FORKS_PER_TURN = 16
"""Between these the starter looks at ended processes and messages."""
HOUSEKEEPING_EVERY_S = 2.0


class Starter(Payloads):
    """The loop. Works in its current directory, which is the worker's state directory."""

    def __init__(self, orphan_timeout_s: float) -> None:
        super().__init__()
        self.orphan_timeout_s = orphan_timeout_s
        self.waiting: list[dict] = []
        """Orders not yet forked: beyond the slots, so that the next one starts without asking the agent."""
        self.slots = 1_000_000
        self.agent: socket.socket | None = None
        self.inbox, self.outbox = b"", bytearray()
        self.stopping = False
        self.stop_deadline = 0.0
        self.agent_seen = time.monotonic()
        self.next_housekeeping = 0.0
        os.makedirs("jobs", 0o700, exist_ok=True)
        self.jobs_inode = os.stat("jobs").st_ino
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
            self.reap()
            self._fork_waiting()
            now = time.monotonic()
            self.enforce(now)
            if now >= self.next_housekeeping:
                self.next_housekeeping = now + HOUSEKEEPING_EVERY_S
                self._housekeeping(now)
            self._flush()

    def _timeout(self) -> float:
        if self.waiting and len(self.jobs) < self.slots and not self.stopping:
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
        if self.can_list_children:
            self.kill_strays([])

    def ended(self, records: list[dict]) -> None:
        """Told once it is on disk."""
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
            waiting = [order["key"] for order in self.waiting]
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
            elif key not in gone and not os.path.exists(f"jobs/{key}"):
                gone.append(key)
        if gone:
            self._tell({"event": "gone", "keys": gone})

    def _remove_record(self, key: str) -> None:
        with contextlib.suppress(OSError):
            for name in ("exit.json", "exit.tmp", "pid"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"jobs/{key}/{name}")
            os.rmdir(f"jobs/{key}")

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

    def _fork_waiting(self) -> None:
        room = min(MAX_FORKS_PER_TURN, self.slots - len(self.jobs))
        if room <= 0 or not self.waiting:
            return
        started, refused = [], []
        for order in self.waiting[:room]:
            key = order["key"]
            try:
                os.mkdir(f"jobs/{key}", 0o700)
            except FileExistsError:
                refused.append([key, "ALREADY_STARTED"])
                continue
            except OSError as error:
                refused.append([key, "DISK" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "STATE_DIRECTORY"])
                continue
            try:
                job = self.fork(order)
            except OSError:  # no processes or no memory left on this host
                with contextlib.suppress(OSError):
                    os.rmdir(f"jobs/{key}")
                refused.append([key, "NO_PROCESSES"])
                continue
            started.append([key, job.pid, job.started_at_us])
        del self.waiting[:room]
        if started:
            self._tell({"event": "started", "jobs": started})
        if refused:
            self._tell({"event": "refused", "jobs": refused})


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
    os.dup2(starter.null_in, 0)
    os.dup2(starter.null_out, 1)
    gc.collect()
    gc.freeze()
    starter.run()
    for name in ("starter.sock", "starter.pid"):
        with contextlib.suppress(OSError):
            os.unlink(name)
    return 0
