"""Waiting for what rings no bell that a test can hear."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

DEADLINE_S = 60.0
"""Of an event; long, for a machine with other load."""


async def until(
    condition: Callable[[], Any],
    what: str | Callable[[], str] = "what was waited for",
    *,
    deadline_s: float = DEADLINE_S,
) -> Any:
    """Ask, or await, until the answer is true, and return it. `what` is said if that does not happen."""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s:g} s: {what if isinstance(what, str) else what()}") from None
