"""A whole grid in Ray in its own state folder, used only through the `grid` command, as its users do."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.command_server import clean_environment, command_server

GRID = Path(sys.executable).with_name("grid")


class Lab:
    """A grid in its own state folder, used only through the `grid` command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.environment = {**clean_environment(), "GRIDFABRIC_STATE": str(self.state)}

    def grid(self, *arguments: str, deadline_s: float = 120.0, codes: tuple[int, ...] = (0,)) -> str:
        """Start and end of a grid go by the executable itself, the rest by a process that has its modules loaded."""
        if arguments[0] in ("up", "down"):
            done = subprocess.run(
                [str(GRID), *arguments],
                env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=deadline_s, check=False,
            )  # fmt: skip
        else:
            done = command_server().run(
                arguments, environment=self.environment, folder=self.folder, deadline_s=deadline_s
            )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in codes, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def json(self, *arguments: str, deadline_s: float = 120.0) -> Any:
        return json.loads(self.grid(*arguments, "--json", deadline_s=deadline_s))

    def agents(self) -> dict[str, dict[str, Any]]:
        """By kind. `grid status` exits with 1 while an agent is not green."""
        status = json.loads(self.grid("status", "--json", codes=(0, 1)))
        return {agent["kind"]: agent for agent in status["agents"]}


@contextlib.contextmanager
def running_lab(description: str) -> Iterator[Lab]:
    """The grid of this description, up, with the user alice and a proxy of hers; afterwards nothing is left."""
    # Pool accounts must reach the scratch area: not below pytest's private folder.
    folder = Path(tempfile.mkdtemp(prefix="gridfabric-drill-", dir="/var/tmp"))
    folder.chmod(0o755)
    lab = Lab(folder)
    (folder / "drill.toml").write_text(description)
    try:
        lab.grid("up", "drill.toml", "--detach", deadline_s=180)
        lab.grid("user", "add", "alice", "--out", str(folder / "alice"))
        lab.environment |= {
            "X509_USER_CERT": str(folder / "alice/usercert.pem"),
            "X509_USER_KEY": str(folder / "alice/userkey.pem"),
            "X509_USER_PROXY": str(folder / "proxy.pem"),
            "X509_CERT_DIR": str(lab.state / "certificates"),
        }
        lab.grid("proxy", "init")
        yield lab
    finally:
        subprocess.run([str(GRID), "down"], env=lab.environment, timeout=90, check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], object], deadline_s: float, what: str) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.1)
