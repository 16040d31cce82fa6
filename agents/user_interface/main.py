"""Entry point of the `grid` executable. Nothing is loaded before Ctrl-C is looked after."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Prints every error as one sentence; raises nothing."""
    try:
        from agents.user_interface import application

        return application.run(arguments)
    except KeyboardInterrupt:
        print("grid: interrupted", file=sys.stderr)
        return INTERRUPTED


def complete_streams() -> None:
    """Where the caller closed a standard stream (`>&-`), put the null device: no socket or file may get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, descriptor, access in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, access, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding has not is shown by its codes
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """The console script."""
    complete_streams()
    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
