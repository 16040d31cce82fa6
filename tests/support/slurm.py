"""A private Slurm of Debian's packages for one test run: munge, controller and two nodes on the loopback address."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.grid import free_port

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEADLINE_S = 60.0
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
MISSING = [program for program in _PROGRAMS if shutil.which(program, path=PATH) is None]
"""What is not installed here; empty: a Slurm can be started."""

NODES = ("one", "two")
"""Of this host, with two processors each."""

_CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny,NoAddrCache
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/jobcomp.log
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=10
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,default_queue_depth=1000,batch_sched_delay=1
{nodes}PartitionName=grid Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=60 State=UP
"""


class Slurm:
    """Started by `start`, with `stop` killed to the last daemon. `directory` must be open to the accounts of jobs."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.configuration = directory, directory / "slurm.conf"
        self._environment = {"PATH": PATH, "SLURM_CONF": str(self.configuration)}
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (directory / name).mkdir()
        key = directory / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        self.configuration.write_text(
            _CONFIGURATION.format(
                host=host,
                user=getpass.getuser(),
                controller=free_port(),
                directory=directory,
                nodes="".join(
                    f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 "
                    "RealMemory=4000 State=UNKNOWN\n"
                    for name in NODES
                ),
            )
        )

    def start(self) -> None:
        """All three daemons, and the node ready for jobs."""
        directory = self.directory
        self._run(
            "munged", "--force", f"--key-file={directory}/munge.key", f"--socket={directory}/munge.sock",
            f"--pid-file={directory}/munged.pid", f"--log-file={directory}/munged.log",
            f"--seed-file={directory}/munged.seed",
        )  # fmt: skip
        self.start_controller()
        for name in NODES:
            self._run("slurmd", "-N", name)
        self._until(lambda: set(self.output("sinfo", "-h", "-N", "-o", "%t").split()) <= {"idle", "mix", "alloc"})

    def start_controller(self) -> None:
        """The controller alone, after `kill`."""
        self._run("slurmctld")
        self._until(lambda: self._answers("scontrol", "ping"))

    def kill(self, daemon: str, number: int = signal.SIGKILL) -> None:
        """Signal one daemon: `munged`, `slurmctld` or `slurmd.NODE`. SIGKILL and SIGTERM: returns when it is gone."""
        pid = int((self.directory / f"{daemon}.pid").read_text())
        os.kill(pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._until(lambda: not _alive(pid))

    def stop(self) -> None:
        """Cancel everything and end all daemons."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.output("scancel", "--user", getpass.getuser())
        for daemon in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError, AssertionError):
                self.kill(daemon, signal.SIGTERM if daemon != "slurmctld" else signal.SIGKILL)

    @property
    def completions(self) -> str:
        """What Slurm itself wrote of the jobs that have ended."""
        path = self.directory / "jobcomp.log"
        return path.read_text() if path.exists() else ""

    def output(self, *command: str) -> str:
        """What a Slurm command prints; empty if it fails."""
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        ).stdout

    def _answers(self, *command: str) -> bool:
        done = subprocess.run(command, env=self._environment, capture_output=True, timeout=DEADLINE_S, check=False)
        return done.returncode == 0

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    def _until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < until, "Slurm did not get ready in time; see its logs"
            time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def started() -> Iterator[Slurm]:
    """For a fixture: a Slurm that runs, or the test is skipped."""
    if MISSING:
        pytest.skip(f"no Slurm here: {', '.join(MISSING)} missing (Debian: slurmctld slurmd slurm-client munge)")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        made = Slurm(Path(name))
        try:
            made.start()
            yield made
        finally:
            made.stop()
