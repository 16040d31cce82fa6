"""A PostgreSQL server of the tests' own: Debian's, on a socket in a folder; started by root, it runs as `postgres`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
BIN = _FOUND[-1] if _FOUND else None
"""Where the programs of the newest version are; None without Debian's package."""
_ACCOUNT = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}


class Server:
    """A server that can be stopped and started again; `url` names a database of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://grid@/postgres?host={folder}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert BIN is not None
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [str(BIN / "postgres"), "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses="],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, **_ACCOUNT,
            )  # fmt: skip
        end = time.monotonic() + 30
        while subprocess.run([str(BIN / "pg_isready"), "-q", "-h", str(self.folder)], check=False).returncode:
            assert self._process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: at once, connections are ended (a fast shutdown). SIGQUIT: as a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None


@contextlib.contextmanager
def running_postgresql() -> Iterator[Server]:
    assert BIN is not None
    folder = Path(tempfile.mkdtemp(prefix="gf-pg-", dir="/var/tmp"))
    server = Server(folder)
    try:
        if _ACCOUNT:
            shutil.chown(folder, "postgres", "postgres")
        folder.chmod(0o755)
        command = [str(BIN / "initdb"), "-D", str(folder / "data"), "-U", "grid", "-A", "trust", "-E", "UTF8"]
        made = subprocess.run(
            [*command, "--locale=C.UTF-8", "--no-sync"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            **_ACCOUNT,
        )
        assert made.returncode == 0, made.stderr
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
