"""Entry point of the `grid` executable. Nothing is loaded before Ctrl-C is looked after."""

from __future__ import annotations

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


def main() -> None:
    """The console script."""
    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
