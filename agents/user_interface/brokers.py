"""The grid's brokers: which of several takes a new job, and which of them has a job.

A job belongs to the broker that acknowledged it. A new one goes to the first broker that answers; once `Submit` was
sent to it, no other is tried, since only that one can say whether it has the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agents.user_interface.connection import Grid
from fabric.errors import DeadlineExceeded, GridError, Unavailable
from fabric.settings import Endpoint

if TYPE_CHECKING:
    from agents.broker.client import BrokerClient

T = TypeVar("T")

AWAY = (Unavailable, DeadlineExceeded)


def client_of(channel: Any) -> BrokerClient:
    """Imported here because it reads JDL, which who looks at jobs does not need."""
    from agents.broker.client import BrokerClient

    return BrokerClient(channel)


def known(grid: Grid) -> Sequence[Endpoint]:
    """The grid's brokers, at least one. Raises NotFound."""
    grid.services.one("broker")
    return grid.services.all("broker")


async def first(grid: Grid, act: Callable[[Any], Awaitable[T]]) -> tuple[Any, T]:
    """The channel to the first broker that answers `act`, and what it answers; `act` may be done at several.

    Raises NotFound if no broker is known, or what the last one failed by.
    """

    async def at(endpoint: Endpoint) -> tuple[Any, T]:
        channel = await grid.channel_to(endpoint.host, endpoint.rpc)
        return channel, await act(channel)

    *others, last = known(grid)
    for endpoint in others:
        with contextlib.suppress(*AWAY):
            return await at(endpoint)
    return await at(last)


Question = Callable[[Any, list[str]], Awaitable[tuple[list[T], set[str]]]]
"""To the broker at a channel, about jobs: its answers, and which of the ids it does not know."""


async def ask(grid: Grid, job_ids: Sequence[str], question: Question[T]) -> tuple[list[T], list[str]]:
    """Put a question to each broker in turn, until every job is known: (answers, ids that nobody knows).

    Raises Unavailable if a job is not found and a broker that may have it does not answer.
    """
    answers: list[T] = []
    left = list(job_ids)
    away: GridError | None = None
    endpoints = known(grid)
    for endpoint in endpoints:
        try:
            found, unknown = await question(await grid.channel_to(endpoint.host, endpoint.rpc), left)
        except AWAY as error:
            away = error
            continue
        answers += found
        left = [job_id for job_id in left if job_id in unknown]
        if not left:
            break
    if left and away is not None:
        if len(endpoints) == 1:
            raise away
        told = f"{left[0]} is not known to the brokers that answer, and one that may have it does not: {away.sentence}"
        raise Unavailable("BROKER_AWAY", told, job_id=left[0])
    return answers, left
