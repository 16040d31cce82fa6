"""The grid's brokers: which of several takes a new job, and which of them has a job.

A job belongs to the broker that acknowledged it, or to the one that has taken over from it. A new one goes to the first
broker that answers and takes jobs; once `Submit` was sent to it and its answer is lost, no other is tried, since only
that one can say whether it has the job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agents.user_interface import console
from agents.user_interface.connection import Grid, as_operator
from fabric.errors import Conflict, DeadlineExceeded, GridError, NotFound, Unavailable
from fabric.settings import Endpoint

if TYPE_CHECKING:
    from gridfabric.broker.v1 import broker_pb2 as pb

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


async def submit(grid: Grid, jdl: str, folder: Path) -> pb.SubmitResponse:
    """Delegate a proxy to the first broker that takes jobs, and submit there. Raises as `first`."""

    async def at(channel: Any) -> pb.SubmitResponse | GridError:
        await grid.delegate(channel)
        try:
            return await client_of(channel).submit(jdl, folder)
        except AWAY as error:
            if error.reason == "BROKER_NOT_READY":
                raise
            return error

    _, answer = await first(grid, at)
    if isinstance(answer, GridError):
        raise answer
    return answer


async def take_over(name: str, force: bool, state: Path | None, *, as_json: bool) -> None:
    """`grid broker takeover`."""
    async with as_operator(state) as grid:
        by, done = await _take_over(grid, name, force)
    if as_json:
        console.print_json({"broker": name, "taken_by": by.name, "submissions": done.submissions, "jobs": done.jobs})
    else:
        print(f"{by.name} has taken over {done.submissions} submissions of {name}; {done.jobs} jobs had not ended")


async def _take_over(grid: Grid, name: str, force: bool) -> tuple[Endpoint, pb.TakeOverResponse]:
    """By the broker that has the copies, whichever that is."""
    others = [endpoint for endpoint in known(grid) if endpoint.name != name]
    if len(others) == len(known(grid)) or not others:
        told = ", ".join(endpoint.name for endpoint in known(grid))
        raise NotFound("BROKER_UNKNOWN", f"{name[:80]!r} is not one of several brokers of this grid; it has: {told}")
    failed: GridError | None = None
    for endpoint in others:
        client = client_of(await grid.channel_to(endpoint.host, endpoint.rpc))
        try:
            return endpoint, await client.take_over(name, force=force)
        except AWAY as error:
            failed = error
        except Conflict as error:
            if error.reason != "NOT_SUCCESSOR":
                raise
            failed = failed or error
    assert failed is not None
    raise failed


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
