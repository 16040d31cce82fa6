"""Brokers whose jobs another broker has taken over: what they still had under way is refused.

The broker that took over says so with each of its own submissions. It does in a user's name, so it is believed about
that user's jobs only: nobody can shut out a broker for somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.gatekeeper import store as rows
from fabric.errors import Conflict, InvalidRequest
from fabric.store import Store

MAX_OVER = 16
"""Brokers named in one call."""
MAX_OF_OWNER = 64
"""Brokers remembered for one user."""
MAX_NAME_LENGTH = 256


class BrokerFences:
    """What is remembered is durable before it counts. Nothing is, where no broker has ever taken over."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._over: dict[tuple[str, str], int] = {}

    async def load(self) -> None:
        """What was remembered before a restart."""
        self._over = await self._store.read(rows.load_broker_fences)

    async def check(self, owner: str, calls: tuple[str, int], over: Iterable[tuple[str, int]]) -> None:
        """`calls`: (broker, epoch) that submits, ("", 0) if it says nothing of it; `over`: from whom it has taken over.

        Raises Conflict BROKER_FENCED, InvalidRequest BROKER_INVALID.
        """
        told = list(over)
        if len(told) > MAX_OVER or any(len(name) > MAX_NAME_LENGTH for name, _ in (calls, *told)):
            raise InvalidRequest(
                "BROKER_INVALID",
                f"at most {MAX_OVER} brokers are named in a call, each with at most {MAX_NAME_LENGTH} characters",
            )
        news = [(name, epoch) for name, epoch in told if epoch > self._over.get((owner, name), 0)]
        if news:
            known = {name for who, name in self._over if who == owner} | {name for name, _ in news}
            if len(known) > MAX_OF_OWNER:
                raise InvalidRequest(
                    "BROKER_INVALID", f"{owner} has named {MAX_OF_OWNER} brokers here that are over; no more are kept"
                )
            await self._store.write(lambda connection: rows.end_broker_epochs(connection, owner, news))
            for name, epoch in news:
                self._over[owner, name] = max(epoch, self._over.get((owner, name), 0))
        name, epoch = calls
        if name and epoch <= self._over.get((owner, name), 0):
            raise Conflict(
                "BROKER_FENCED",
                f"another broker has taken over the jobs of {owner} from {name}, whose epoch {epoch} is over",
                broker=name,
            )
