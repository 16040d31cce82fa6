"""Failpoints: each one of the tables is in the code once, and none is on that was not chosen at the start."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fabric import failpoints

ROOT = Path(__file__).resolve().parents[3]
TABLES = (
    "fabric.failpoints",
    *(f"agents.{path.parent.name}.failpoints" for path in ROOT.glob("agents/*/failpoints.py")),
)


@pytest.mark.parametrize("table", TABLES)
def test_every_failpoint_of_a_table_is_somewhere_in_the_code(table: str) -> None:
    folder = ROOT / Path(*table.split(".")[:-1])
    text = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "failpoints.py")
    used = re.findall(r'failpoints\.reached\(f?"([a-z_.]+)(\{step\})?"', text)
    exact = [name for name, step in used if not step]
    families = tuple(name for name, step in used if step)
    names = importlib.import_module(table).NAMES
    assert len(set(names)) == len(names)
    assert {name for name in names if not name.startswith(families or ("-",))} <= set(exact)
    assert set(exact) <= set(names)


def run(text: str | None, code: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != failpoints.VARIABLE}
    environment["PYTHONPATH"] = str(ROOT)
    if text is not None:
        environment[failpoints.VARIABLE] = text
    return subprocess.run(
        [sys.executable, "-S", "-c", f"from fabric.failpoints import *\n{code}"], env=environment
    ).returncode


def test_the_process_dies_where_the_environment_it_was_started_with_says() -> None:
    assert run("a.b", "reached('a.c')") == 0
    assert run("a.b", "reached('a.b')") == -signal.SIGKILL
    assert run("a.b:3", "reached('a.b'); reached('a.b')") == 0
    assert run("a.b:3", "reached('a.b'); reached('a.b'); reached('a.b')") == -signal.SIGKILL


def test_nothing_that_happens_later_switches_one_on() -> None:
    assert run(None, "import os; os.environ['GRIDFABRIC_FAILPOINT'] = 'a.b'; reached('a.b'); reached('')") == 0
    assert run("", "reached('a.b'); reached('')") == 0
