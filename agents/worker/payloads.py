"""Payload processes: forked, limited, watched, reaped, their ends written to disk. For the starter and the shepherd.

Nothing but the standard library: those two are small single-threaded processes that may fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import heapq
import json
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Iterator

MARKER = "GRIDFABRIC_JOB_KEY"
"""In the environment of every payload: finds its processes again, wherever they hide."""
WATCH_EVERY_S = 1.0
"""Memory, processor time and processes of whole sessions are summed this often."""
MAX_KILL_ROUNDS = 50
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TO_DEFAULT = (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT, signal.SIGXFSZ,
    signal.SIGXCPU,
)  # fmt: skip
"""Ignored ones would stay ignored over exec."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Job:
    """One running payload. `pid` is also its process group and session."""

    __slots__ = (
        "cpu_s", "deadline_kind", "grace_s", "key", "memory_bytes", "peak_bytes", "pid", "processes", "reason", "slots",
        "started_at_us", "started_mono", "uid", "wall_s",
    )  # fmt: skip

    def __init__(self, key: str, pid: int, order: dict, now_us: int, mono: float) -> None:
        self.key, self.pid = key, pid
        self.started_at_us, self.started_mono = now_us, mono
        self.wall_s = float(order.get("wall_s") or 0)
        self.cpu_s = float(order.get("cpu_s") or 0)
        self.memory_bytes = int(order.get("memory_bytes") or 0)
        self.processes = int(order.get("processes") or 0)
        self.grace_s = float(order.get("grace_s") or 5)
        self.uid = int(order.get("uid", -1))
        self.slots = int(order.get("slots") or 1)
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


def adopt_orphans() -> bool:
    """Descendants whose parent ends become children of this process. False where the kernel cannot."""
    try:
        return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except AttributeError:
        return False


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


def command(program: str, *arguments: str) -> list[str]:
    """How to run `starter` or `shepherd`: `main` of that module, in a Python with the standard library alone."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        f"import sys; sys.path.append({root!r}); from agents.worker.{program} import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


class Payloads:
    """The payloads among the children of this process. Works in its current directory, below which `jobs/<key>` are."""

    def __init__(self, *, die_with_us: bool = False) -> None:
        """`die_with_us`: a payload's first process is killed when this process is."""
        self.die_with_us = die_with_us
        self.jobs: dict[str, Job] = {}
        self.used_slots = 0
        """That these take."""
        self.by_pid: dict[int, Job] = {}
        self.hidden: dict[int, str] = {}
        """Processes outside the sessions of running jobs: pid to the job key in their environment."""
        self.helpers: set[int] = set()
        """Children of our own that are no payloads."""
        self.strays: dict[int, str] = {}
        """Descendants that became our children while their job goes on: pid to job key."""
        self.deadlines: list[tuple[float, str, str, int]] = []
        self.unwritten: dict[str, dict] = {}
        """Exit records that could not be written (disk full); written when there is room."""
        self.next_watch = 0.0
        with open("/proc/sys/kernel/random/boot_id") as file:
            self.boot_id = file.read().strip()
        self.early_errors: dict[str, dict] = {}
        self.error_read, self.error_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """A child that could not exec says why here, in one write below PIPE_BUF, before it exits."""
        self.error_text = b""
        self.children_file = f"/proc/self/task/{os.getpid()}/children"
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.can_list_children = self._become_subreaper()
        self.selector = selectors.DefaultSelector()
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self.selector.register(self.wake_read, selectors.EVENT_READ)

    def ended(self, records: list[dict]) -> None:
        """These have ended, and how is on disk, or in `unwritten`."""
        raise NotImplementedError

    def terminated(self) -> None:
        """This process was asked to end."""
        raise NotImplementedError

    def inherited(self) -> None:
        """There is a child that was not known until now."""

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self.terminated()

    def wait(self, timeout_s: float) -> list[selectors.SelectorKey]:
        """What of the selector is ready, signals apart."""
        ready = [key for key, _ in self.selector.select(timeout_s)]
        for key in ready:
            if key.fileobj == self.wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake_read, 4096)
                ready.remove(key)
                break
        return ready

    # ---- starting

    def fork(self, order: dict) -> Job:
        """Start a payload whose record directory is there. Raises OSError."""
        pid = os.fork()
        if pid == 0:
            self._become_payload(order)
        return self.begun(order, pid, time.time_ns() // 1000)

    def begun(self, order: dict, pid: int, at_us: int) -> Job:
        """Watch over a payload that has been started."""
        job = Job(order["key"], pid, order, at_us, time.monotonic())
        self.jobs[job.key] = self.by_pid[pid] = job
        self.used_slots += job.slots
        if job.wall_s > 0:
            heapq.heappush(self.deadlines, (job.started_mono + job.wall_s, "wall", job.key, pid))
        return job

    def _become_payload(self, order: dict) -> None:
        """In the child: from here to exec, or to a reason on the error pipe. Never returns."""
        stage = "session"
        try:
            reset_signals()
            os.setsid()
            stage = "directory"
            os.chdir(order["cwd"])
            for now in become(order):
                stage = now
            if self.die_with_us:  # after the change of user, which would undo it
                self.become_mortal()
            stage = "standard streams"
            for number, descriptor in enumerate(open_streams(order, [])):
                os.dup2(descriptor, number)
            stage = "executable"
            os.execve(order["executable"], order["argv"], order["env"])
        except BaseException as error:
            report = json.dumps({"key": order["key"], **failure(stage, error)})
            with contextlib.suppress(OSError):
                os.write(self.error_write, report.encode()[:4000] + b"\n")
        finally:
            os._exit(127)

    def become_mortal(self) -> None:
        """From now on this process is killed when its parent ends."""
        self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    # ---- ending

    def reap(self) -> None:
        """Take in what has ended, kill what it left behind, and write down how it ended."""
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
            self.helpers.discard(pid)
            if pid not in self.by_pid:
                self.inherited()
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
            self.used_slots -= job.slots
            ended.append(job)
            records.append(self._exit_record(job, status, usage))
        if ended or (reaped and self.can_list_children):
            self.kill_strays(ended)
        if not ended:
            return
        self._read_errors({job.key: record for job, record in zip(ended, records, strict=True)})
        self.keep(records)

    def keep(self, records: list[dict]) -> None:
        """Write down how these ended, then tell."""
        for record in records:
            if not self.write_exit(record["key"], record):
                self.unwritten[record["key"]] = record
        self.ended(records)

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

    def write_exit(self, key: str, record: dict) -> bool:
        """Put it where whoever asks later finds it, complete or not at all. False: there is no room now."""
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

    def write_again(self) -> None:
        """Try those records again for which there was no room."""
        for key in list(self.unwritten):
            if self.write_exit(key, self.unwritten[key]):
                del self.unwritten[key]

    def children(self) -> list[int]:
        """Process ids of everything that is a child of this process now."""
        try:
            with open(self.children_file) as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            return list(self.by_pid)

    def kill_strays(self, ended: list[Job]) -> None:
        """Processes that outlived their job's first process. As sub-reaper we inherit them, however they hid."""
        keys, sessions = {job.key for job in ended}, {job.pid for job in ended}
        if not self.can_list_children:
            if ended:
                kill_leftovers(keys, sessions, rounds=3)
            return
        for pid in self.children():
            if pid not in self.by_pid and pid not in self.helpers:
                self.inherited()
            if pid in self.by_pid or pid in self.helpers:
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

    def _become_subreaper(self) -> bool:
        """Orphaned descendants become our children. False where the kernel cannot, or does not list children."""
        try:
            if not adopt_orphans():
                return False
            with open(self.children_file) as file:
                file.read()
        except OSError:
            return False
        return True

    # ---- limits

    def begin_kill(self, job: Job, reason: str, now: float, at_once: bool = False) -> None:
        """SIGTERM now and SIGKILL after its grace, or SIGKILL to everything of it at once. The first reason counts."""
        if job.reason and not at_once:
            return  # already dying
        job.reason = job.reason or reason
        if at_once:
            self.kill_session(job)
            return
        with contextlib.suppress(OSError):
            os.killpg(job.pid, signal.SIGTERM)
        with contextlib.suppress(OSError):
            os.killpg(job.pid, signal.SIGCONT)
        heapq.heappush(self.deadlines, (now + job.grace_s, "grace", job.key, job.pid))

    def kill_session(self, job: Job) -> None:
        """SIGKILL to every process of a job that can be found."""
        with contextlib.suppress(OSError):
            os.killpg(job.pid, signal.SIGKILL)
        # A stopped process forks no more: rounds of stopping end when one finds nobody new, even in a fork bomb.
        stopped: set[int] = set()
        for _ in range(MAX_KILL_ROUNDS):
            found = self._all_of(job) - stopped
            if not found:
                break
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= found
        for pid in stopped:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _all_of(self, job: Job) -> set[int]:
        if not self.can_list_children:
            return set(find_leftovers({job.key}, {job.pid}))
        return {process.pid for process in self._processes_by_job().get(job.key, ())}

    def enforce(self, now: float) -> None:
        """Wall time and grace at their moment; memory, processor time and processes now and then."""
        self._pass_deadlines(now)
        if now >= self.next_watch:
            self.next_watch = now + WATCH_EVERY_S
            self._watch(now)

    def _pass_deadlines(self, now: float) -> None:
        while self.deadlines and self.deadlines[0][0] <= now:
            _, kind, key, pid = heapq.heappop(self.deadlines)
            job = self.jobs.get(key)
            if job is None or job.pid != pid:
                continue
            if kind == "wall":
                self.begin_kill(job, "WALL_TIME", now)
            else:
                self.kill_session(job)

    def _watch(self, now: float) -> None:
        """Memory and processor time of the whole session: what one process's limits cannot see."""
        watched = [
            job
            for job in self.jobs.values()
            if (job.memory_bytes or job.cpu_s or job.processes) and now - job.started_mono > WATCH_EVERY_S / 2
        ]
        if not watched:
            self.hidden.clear()
            return
        of_job = self._processes_by_job()
        for job in watched:
            processes = of_job.get(job.key, ())
            resident = sum(process.resident_bytes for process in processes)
            job.peak_bytes = max(job.peak_bytes, resident)
            if job.processes and len(processes) > job.processes:
                self.begin_kill(job, "PROCESSES", now, at_once=True)
            elif job.memory_bytes and resident > job.memory_bytes:
                self.begin_kill(job, "MEMORY", now, at_once=True)
            elif job.cpu_s and sum(process.cpu_s for process in processes) > job.cpu_s:
                self.begin_kill(job, "CPU_TIME", now)

    def _processes_by_job(self) -> dict[str, list[Process]]:
        """By session; those that left it, by their environment, which is read once."""
        found: dict[str, list[Process]] = {}
        hidden: dict[int, str] = {}
        # As sub-reaper it inherits those whose parent has died, so all of a job are below it.
        for pid in descendants(os.getpid()) if self.can_list_children else all_pids():
            process = read_process(pid)
            if process is None:
                continue
            job = self.by_pid.get(process.session)
            if job is not None:
                key = job.key
            else:
                key = hidden[pid] = self.hidden.get(pid) or marker_of(pid)
            if key in self.jobs:
                found.setdefault(key, []).append(process)
        self.hidden = hidden
        return found


def reset_signals() -> None:
    """In a child: as every program expects them."""
    signal.set_wakeup_fd(-1)
    for number in _TO_DEFAULT:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become(order: dict) -> Iterator[str]:
    """Take on the limits and the account of a payload, for good; names each stage before it."""
    yield "limits"
    os.umask(0o077)
    _set_limits(order)
    yield "account"
    uid, gid = int(order.get("uid", -1)), int(order.get("gid", -1))
    if uid == 0 or gid == 0:
        raise PermissionError(errno.EPERM, "a payload never runs as root by mapping")
    if uid > 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def open_streams(order: dict, opened: list[int]) -> tuple[int, int, int]:
    """Standard input, output and errors of a payload, by this process's rights and directory; noted in `opened`."""

    def plain(name: str, flags: int) -> int:
        opened.append(os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
        os.set_blocking(opened[-1], True)
        return opened[-1]

    stdin, stdout, stderr = order.get("stdin"), order.get("stdout"), order.get("stderr")
    create = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    source = plain(stdin or os.devnull, os.O_RDONLY)
    target = plain(stdout or os.devnull, create)
    return source, target, target if stderr == stdout else plain(stderr or os.devnull, create)


def failure(stage: str, error: BaseException) -> dict:
    """Why a payload was not started, for its exit record."""
    number = (error.errno if isinstance(error, OSError) else 0) or 0
    return {"stage": stage, "errno": number, "text": os.strerror(number) if number else type(error).__name__}


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
        limit(resource.RLIMIT_NPROC, 2 * processes, 2 * processes)
