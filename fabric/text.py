"""Words for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`, `2 entries`, `2 processes`."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {plural}"
