"""The starter: a small single-threaded process that owns the payload processes of one worker.

It outlives the worker agent (which carries gRPC, threads and Ray, and must never fork), so a killed agent finds its
jobs
running when it comes back. It is run as a plain script with nothing but the standard library: `python -I -S
starter.py`.

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
import ctypes
import errno
import fcntl
import gc
import heapq
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time

MARKER = "GRIDFABRIC_JOB_KEY"
"""In the environment of every payload: finds its processes again, wherever they hide."""
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_FORKS_PER_TURN = 16
"""Between these the starter looks at ended processes and messages."""
WATCH_EVERY_S = 1.0
"""Memory and processor time of whole sessions are summed this often."""
HOUSEKEEPING_EVERY_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36
_TO_DEFAULT = (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT, signal.SIGXFSZ,
    signal.SIGXCPU,
)  # fmt: skip
_CHILDREN = f"/proc/self/task/{os.getpid()}/children"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Job:
    """One running payload. `pid` is also its process group and session."""

    __slots__ = (
        "cpu_s", "deadline_kind", "grace_s", "key", "memory_bytes", "peak_bytes", "pid", "reason",
        "started_at_us", "started_mono", "uid", "wall_s",
    )  # fmt: skip

    def __init__(self, key: str, pid: int, order: dict, now_us: int, mono: float) -> None:
        self.key, self.pid = key, pid
        self.started_at_us, self.started_mono = now_us, mono
        self.wall_s = float(order.get("wall_s") or 0)
        self.cpu_s = float(order.get("cpu_s") or 0)
        self.memory_bytes = int(order.get("memory_bytes") or 0)
        self.grace_s = float(order.get("grace_s") or 5)
        self.uid = int(order.get("uid", -1))
        self.reason = ""
        self.peak_bytes = 0
        self.deadline_kind = ""


class Process:
    """What /proc says about one process."""

    __slots__ = ("cpu_s", "pid", "ppid", "resident_bytes", "session")

    def __init__(self, pid: int, ppid: int, session: int, cpu_s: float, resident_bytes: int) -> None:
        self.pid, self.ppid, self.session = pid, ppid, session
        self.cpu_s, self.resident_bytes = cpu_s, resident_bytes


def read_process(pid: int) -> Process | None:
    """Parent, session, processor time (with waited-for children) and resident size; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            rest = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    ticks = int(rest[11]) + int(rest[12]) + int(rest[13]) + int(rest[14])
    return Process(pid, int(rest[1]), int(rest[3]), ticks / _TICKS, max(0, int(rest[21])) * _PAGE)


def marker_of(pid: int) -> str:
    """The job key in the environment of a process; empty if it has none or may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read(256 * 1024)
    except OSError:
        return ""
    wanted = MARKER.encode() + b"="
    for entry in environ.split(b"\0"):
        if entry.startswith(wanted):
            return entry[len(wanted) :].decode("ascii", "replace")
    return ""


def all_pids() -> list[int]:
    """Every process of this host that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Every process below this one, as the kernel lists children. Looks at no other process of the host."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        tasks = f"/proc/{waiting.pop()}/task"
        with contextlib.suppress(OSError):
            for task in os.listdir(tasks):
                with contextlib.suppress(OSError), open(f"{tasks}/{task}/children") as file:
                    children = [int(child) for child in file.read().split()]
                    found += children
                    waiting += children
    return found


def find_leftovers(keys: set[str], sessions: set[int]) -> dict[int, str]:
    """Processes that belong to these jobs, by session or by marker: pid to key (empty when found by session only)."""
    found: dict[int, str] = {}
    own = os.getpid()
    for pid in all_pids():
        if pid == own:
            continue
        process = read_process(pid)
        if process is not None and process.session in sessions:
            found[pid] = ""
            continue
        key = marker_of(pid)
        if key in keys:
            found[pid] = key
    return found


def kill_leftovers(keys: set[str], sessions: set[int], rounds: int = 20) -> int:
    """SIGKILL everything that `find_leftovers` finds until nothing is left; returns how many were signalled."""
    killed: set[int] = set()
    for _ in range(rounds):
        found = [pid for pid in find_leftovers(keys, sessions) if not _is_zombie(pid)]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.005)
    return len(killed)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


class Starter:
    """The loop. Works in its current directory, which is the worker's state directory."""

    def __init__(self, orphan_timeout_s: float) -> None:
        self.orphan_timeout_s = orphan_timeout_s
        self.selector = selectors.DefaultSelector()
        self.jobs: dict[str, Job] = {}
        self.by_pid: dict[int, Job] = {}
        self.strays: dict[int, str] = {}
        """Descendants that became our children while their job goes on: pid to job key."""
        self.waiting: list[dict] = []
        """Orders not yet forked: beyond the slots, so that the next one starts without asking the agent."""
        self.slots = 1_000_000
        self.deadlines: list[tuple[float, str, str, int]] = []
        self.unwritten: dict[str, dict] = {}
        """Exit records that could not be written (disk full); written when there is room."""
        self.agent: socket.socket | None = None
        self.inbox, self.outbox = b"", bytearray()
        self.stopping = False
        self.stop_deadline = 0.0
        self.agent_seen = time.monotonic()
        self.next_watch = self.next_housekeeping = 0.0
        with open("/proc/sys/kernel/random/boot_id") as file:
            self.boot_id = file.read().strip()
        os.makedirs("jobs", 0o700, exist_ok=True)
        self.jobs_inode = os.stat("jobs").st_ino
        self.null_in = os.open("/dev/null", os.O_RDONLY)
        self.null_out = os.open("/dev/null", os.O_WRONLY)
        self.early_errors: dict[str, dict] = {}
        self.error_read, self.error_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """A child that could not exec says why here, in one write below PIPE_BUF, before it exits."""
        self.error_text = b""
        self.can_list_children = _become_subreaper()
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        self.listener = _listen("starter.sock")
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.wake_read, selectors.EVENT_READ)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self._begin_stop()

    # ---- the loop

    def run(self) -> None:
        """Until shut down, or idle without an agent for `orphan_timeout_s`, or the state directory is gone."""
        while not self._finished():
            for key, _ in self.selector.select(self._timeout()):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj == self.wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wake_read, 4096)
                elif self.agent is not None and key.fileobj is self.agent:
                    self._read_agent()
            self._reap()
            self._fork_waiting()
            now = time.monotonic()
            self._pass_deadlines(now)
            if now >= self.next_watch:
                self.next_watch = now + WATCH_EVERY_S
                self._watch(now)
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
        return (not self.jobs and not self._children()) or time.monotonic() > self.stop_deadline

    def _begin_stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.stop_deadline = time.monotonic() + 10
            self.waiting.clear()
        for job in self.jobs.values():
            job.reason = job.reason or "WORKER_STOPPED"
            self._kill_session(job)

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
        for key in list(self.unwritten):
            if self._write_exit(key, self.unwritten[key]):
                del self.unwritten[key]

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
            self._obey_kill(message["keys"], message["reason"])
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

    def _obey_kill(self, keys: list[str], reason: str) -> None:
        gone = []
        now = time.monotonic()
        wanted = set(keys)
        gone += [order["key"] for order in self.waiting if order["key"] in wanted]
        self.waiting = [order for order in self.waiting if order["key"] not in wanted]
        for key in keys:
            job = self.jobs.get(key)
            if job is not None:
                self._begin_kill(job, reason, now)
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
                job = self._fork(order)
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

    def _fork(self, order: dict) -> Job:
        pid = os.fork()
        if pid == 0:
            self._become_payload(order)
        job = Job(order["key"], pid, order, time.time_ns() // 1000, time.monotonic())
        self.jobs[job.key] = self.by_pid[pid] = job
        if job.wall_s > 0:
            heapq.heappush(self.deadlines, (job.started_mono + job.wall_s, "wall", job.key, pid))
        with contextlib.suppress(OSError):
            descriptor = os.open(f"jobs/{job.key}/pid", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(descriptor, str(pid).encode())
            os.close(descriptor)
        return job

    def _become_payload(self, order: dict) -> None:
        """In the child: from here to exec, or to a reason on the error pipe. Never returns."""
        stage = "session"
        try:
            signal.set_wakeup_fd(-1)
            for number in _TO_DEFAULT:  # ignored ones would stay ignored over exec
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.setsid()
            stage = "directory"
            os.chdir(order["cwd"])
            os.umask(0o077)
            stage = "limits"
            _set_limits(order)
            stage = "account"
            uid, gid = int(order.get("uid", -1)), int(order.get("gid", -1))
            if uid == 0 or gid == 0:
                raise PermissionError(errno.EPERM, "a payload never runs as root by mapping")
            if uid > 0:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            stage = "standard streams"
            self._redirect(order)
            stage = "executable"
            os.execve(order["executable"], order["argv"], order["env"])
        except BaseException as error:
            number = error.errno if isinstance(error, OSError) else 0
            text = os.strerror(number) if number else type(error).__name__
            report = json.dumps({"key": order["key"], "stage": stage, "errno": number or 0, "text": text})
            with contextlib.suppress(OSError):
                os.write(self.error_write, report.encode()[:4000] + b"\n")
        finally:
            os._exit(127)

    def _redirect(self, order: dict) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        stdin, stdout, stderr = order.get("stdin"), order.get("stdout"), order.get("stderr")
        source = os.open(stdin, os.O_RDONLY | os.O_NOFOLLOW) if stdin else self.null_in
        target = os.open(stdout, flags, 0o600) if stdout else self.null_out
        errors = target
        if stderr != stdout or not stderr:
            errors = os.open(stderr, flags, 0o600) if stderr else self.null_out
        os.dup2(source, 0)
        os.dup2(target, 1)
        os.dup2(errors, 2)

    # ---- ending

    def _reap(self) -> None:
        ended: list[Job] = []
        records: list[dict] = []
        reaped = False
        while True:
            try:
                peek = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if peek is None:
                break
            pid = peek.si_pid
            job = self.by_pid.get(pid)
            if job is not None:
                # The zombie still holds the number, so this cannot hit a stranger.
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            reaped = True
            self.strays.pop(pid, None)
            if job is None:
                continue
            del self.by_pid[pid], self.jobs[job.key]
            ended.append(job)
            records.append(self._exit_record(job, status, usage))
        if ended or (reaped and self.can_list_children):
            self._kill_strays(ended)
        if not ended:
            return
        self._read_errors({job.key: record for job, record in zip(ended, records, strict=True)})
        for job, record in zip(ended, records, strict=True):
            if not self._write_exit(job.key, record):
                self.unwritten[job.key] = record
        self._tell({"event": "ended", "jobs": records})

    def _exit_record(self, job: Job, status: int, usage: resource.struct_rusage) -> dict:
        killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        reason = job.reason or ("CPU_TIME" if killed_by == signal.SIGXCPU else "")
        reason = reason or ("FILE_SIZE" if killed_by == signal.SIGXFSZ else "")
        return {
            "key": job.key,
            "pid": job.pid,
            "boot_id": self.boot_id,
            "started_at_us": job.started_at_us,
            "ended_at_us": time.time_ns() // 1000,
            "wall_s": round(time.monotonic() - job.started_mono, 6),
            "exit_code": 128 + killed_by if killed_by else os.WEXITSTATUS(status),
            "signal": killed_by,
            "reason": reason,
            "user_s": round(usage.ru_utime, 6),
            "system_s": round(usage.ru_stime, 6),
            "max_rss_bytes": max(usage.ru_maxrss * 1024, job.peak_bytes),
        }

    def _read_errors(self, records: dict[str, dict]) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.error_text += os.read(self.error_read, 65536)
        *lines, self.error_text = self.error_text.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                report = json.loads(line)
                key = report.pop("key", "")
                if key in records:
                    records[key]["error"] = report
                elif key in self.jobs:  # it has told why and is about to end; its record comes with the next round
                    self.early_errors[key] = report
        for key in self.early_errors.keys() & records.keys():
            records[key]["error"] = self.early_errors.pop(key)

    def _write_exit(self, key: str, record: dict) -> bool:
        try:
            descriptor = os.open(f"jobs/{key}/exit.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                data = json.dumps(record).encode()
                if os.write(descriptor, data) != len(data):
                    return False
            finally:
                os.close(descriptor)
            os.rename(f"jobs/{key}/exit.tmp", f"jobs/{key}/exit.json")
        except OSError:
            return not os.path.isdir(f"jobs/{key}")
        return True

    def _children(self) -> list[int]:
        try:
            with open(_CHILDREN) as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            return list(self.by_pid)

    def _kill_strays(self, ended: list[Job]) -> None:
        """Processes that outlived their job's first process. As sub-reaper we inherit them, however they hid."""
        keys, sessions = {job.key for job in ended}, {job.pid for job in ended}
        if not self.can_list_children:
            if ended:
                kill_leftovers(keys, sessions, rounds=3)
            return
        for pid in self._children():
            if pid in self.by_pid:
                continue
            owner = self.strays.get(pid)
            if owner is None:
                owner = self.strays[pid] = self._owner_of_stray(pid)
            if owner in self.jobs:
                continue  # a helper of a job that still runs
            if not owner and self._may_belong_to_running(pid):
                continue
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _owner_of_stray(self, pid: int) -> str:
        process = read_process(pid)
        if process is not None and process.session in self.by_pid:
            return self.by_pid[process.session].key
        return marker_of(pid)

    def _may_belong_to_running(self, pid: int) -> bool:
        """It wiped its environment and its session: kept only while a job of the same account runs."""
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            return False
        return any(job.uid in (uid, -1) for job in self.jobs.values())

    # ---- limits

    def _begin_kill(self, job: Job, reason: str, now: float, at_once: bool = False) -> None:
        if job.reason and not at_once:
            return  # already dying
        job.reason = job.reason or reason
        if at_once:
            self._kill_session(job)
            return
        with contextlib.suppress(OSError):
            os.killpg(job.pid, signal.SIGTERM)
        with contextlib.suppress(OSError):
            os.killpg(job.pid, signal.SIGCONT)
        heapq.heappush(self.deadlines, (now + job.grace_s, "grace", job.key, job.pid))

    def _kill_session(self, job: Job) -> None:
        with contextlib.suppress(OSError):
            os.killpg(job.pid, signal.SIGKILL)
        for pid in find_leftovers({job.key}, {job.pid}):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _pass_deadlines(self, now: float) -> None:
        while self.deadlines and self.deadlines[0][0] <= now:
            _, kind, key, pid = heapq.heappop(self.deadlines)
            job = self.jobs.get(key)
            if job is None or job.pid != pid:
                continue
            if kind == "wall":
                self._begin_kill(job, "WALL_TIME", now)
            else:
                self._kill_session(job)

    def _watch(self, now: float) -> None:
        """Memory and processor time of the whole session: what one process's limits cannot see."""
        watched = {
            job.pid: job
            for job in self.jobs.values()
            if (job.memory_bytes or job.cpu_s) and now - job.started_mono > WATCH_EVERY_S / 2
        }
        if not watched:
            return
        resident: dict[int, int] = {}
        spent: dict[int, float] = {}
        # As sub-reaper it inherits those whose parent has died, so all of a session are below it.
        for pid in descendants(os.getpid()) if self.can_list_children else all_pids():
            process = read_process(pid)
            if process is None or process.session not in watched:
                continue
            resident[process.session] = resident.get(process.session, 0) + process.resident_bytes
            spent[process.session] = spent.get(process.session, 0.0) + process.cpu_s
        for session, job in watched.items():
            job.peak_bytes = max(job.peak_bytes, resident.get(session, 0))
            if job.memory_bytes and resident.get(session, 0) > job.memory_bytes:
                self._begin_kill(job, "MEMORY", now, at_once=True)
            elif job.cpu_s and spent.get(session, 0.0) > job.cpu_s:
                self._begin_kill(job, "CPU_TIME", now)


def _set_limits(order: dict) -> None:
    def limit(which: int, soft: int, hard: int) -> None:
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit(resource.RLIMIT_NOFILE, int(order.get("open_files") or 1024), int(order.get("open_files") or 1024))
    cpu_s = int(order.get("cpu_s") or 0)
    if cpu_s > 0:
        limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 5)
    file_bytes = int(order.get("file_bytes") or 0)
    if file_bytes > 0:
        limit(resource.RLIMIT_FSIZE, file_bytes, file_bytes)
    memory = int(order.get("memory_bytes") or 0)
    if memory > 0:
        # A backstop only: address space is not memory. The real limit is the watch over resident sizes.
        room = max(4 * memory, memory + (4 << 30))
        limit(resource.RLIMIT_AS, room, room)
    processes = int(order.get("processes") or 0)
    if processes > 0 and int(order.get("uid", -1)) > 0:
        limit(resource.RLIMIT_NPROC, processes, processes)


def _become_subreaper() -> bool:
    """Orphaned descendants become our children. False where the kernel cannot, or does not list children."""
    try:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            return False
        with open(_CHILDREN) as file:
            file.read()
    except (OSError, AttributeError):
        return False
    return True


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(8)
    return listener


def main(arguments: list[str]) -> int:
    """`starter.py STATE_DIRECTORY ORPHAN_TIMEOUT_S`. Prints `ready` or `busy` (another starter holds the directory)."""
    global _CHILDREN
    state_directory, orphan_timeout_s = arguments[0], float(arguments[1])
    if os.fork():
        os._exit(0)  # the agent is not our parent: neither its death nor its children's bookkeeping reaches us
    _CHILDREN = f"/proc/self/task/{os.getpid()}/children"
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
