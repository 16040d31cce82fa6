"""Waiting for tapes with a readable reason."""

from __future__ import annotations

import asyncio

from agents.user_interface import console
from fabric.errors import DeadlineExceeded

WAIT_S = 24 * 3600.0
"""How long a user's command waits for tapes at most."""
LOOK_S = 15.0
"""How often it asks meanwhile, at least."""


class Patience:
    """Waits until something is worth asking for again, and says why, each sentence once."""

    def __init__(self) -> None:
        self._clock = asyncio.get_running_loop().time
        self._until = self._clock() + WAIT_S
        self._said = ""

    async def wait(self, sentence: str, retry_after_s: float) -> None:
        """Raises DeadlineExceeded(STAGE_TIMEOUT)."""
        if self._clock() + retry_after_s > self._until:
            raise DeadlineExceeded("STAGE_TIMEOUT", f"not on disk after {WAIT_S / 3600:g} h: {sentence}")
        if sentence != self._said:
            console.warn(sentence)
            self._said = sentence
        await asyncio.sleep(min(max(retry_after_s, 0.1), LOOK_S))
