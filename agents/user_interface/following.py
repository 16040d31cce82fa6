"""`grid job follow`: what a job writes, as it writes it, wherever it is matched and whoever is restarted meanwhile."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb

from agents.bookkeeping.client import ENDED_STATES
from agents.gatekeeper import client as gatekeeper
from agents.user_interface import console, jobs
from agents.user_interface.connection import Grid, open_for_user
from agents.user_interface.endpoints import parse_address
from agents.user_interface.exits import UsageProblem
from fabric.errors import Unavailable

PAUSE_S = 0.5
"""Between looks at a job that is nowhere, or at a gatekeeper that does not answer."""
PATIENCE_S = 120.0
"""So long a service may be away before it is given up."""


@dataclass
class Place:
    """How far a file has been read."""

    attempt: int = 0
    offset: int = 0
    over: bool = False
    """Nothing more comes of this attempt."""
    lost: bool = False


async def follow_file(
    grid: Grid, job_id: str, wanted: pb.FollowRequest, write: Callable[[bytes], None], say: Callable[[str], None]
) -> Place:
    """Hand over every byte of a job's file until the job has ended for good. Raises GridError."""
    place = Place()
    away_since = 0.0
    while True:
        try:
            ended = (await jobs.summaries(grid, [job_id]))[0].state in ENDED_STATES
            await _read(grid, job_id, wanted, place, write, say)
            if ended:  # before the last look at the file
                return place
            away_since = 0.0
        except Unavailable as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > PATIENCE_S:
                raise
            say(f"{error.sentence}; trying again")
        await asyncio.sleep(PAUSE_S)


async def _read(
    grid: Grid,
    job_id: str,
    wanted: pb.FollowRequest,
    place: Place,
    write: Callable[[bytes], None],
    say: Callable[[str], None],
) -> None:
    """What there is of the present attempt, to its end."""
    found = await jobs.located(grid, [job_id])
    location = found[0][1] if found else None
    if location is None or not location.gatekeeper or (place.over and location.attempt <= place.attempt):
        return
    host, port = parse_address(location.gatekeeper, "the gatekeeper's address")
    request = pb.FollowRequest()
    request.CopyFrom(wanted)
    request.job_id, request.offset, request.attempt = job_id, place.offset, place.attempt
    async for response in gatekeeper.follow(await grid.channel_to(host, port), request):
        if response.attempt != place.attempt:
            if place.attempt and place.offset:
                say(f"the job runs again, attempt {response.attempt}: what it writes follows from the beginning")
            place.attempt, place.offset = response.attempt, response.offset
            place.over = place.lost = False
        if response.data:
            write(response.data)
            place.offset = response.offset + len(response.data)
        if response.ended:
            place.over, place.lost = True, response.lost


async def follow_command(
    job_id: str, *, std_error: bool, name: str | None, environ: Mapping[str, str] = os.environ
) -> None:
    """`grid job follow`."""
    jobs.check_ids([job_id])
    if std_error and name:
        raise UsageProblem("--stderr and --file name two files; give one of them")
    wanted = pb.FollowRequest(name=name) if name else pb.FollowRequest(std_error=std_error)

    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    async with open_for_user(environ) as grid:
        found = await jobs.summaries(grid, [job_id])
        if found[0].job_id != job_id:
            raise UsageProblem(f"{job_id} is {len(found)} jobs; name one of them: grid job status {job_id}")
        place = await follow_file(grid, job_id, wanted, write, console.warn)
        ended = await jobs.summaries(grid, [job_id])
    if place.lost:
        console.warn(f"what it wrote after byte {place.offset} is not kept: the file is not in its OutputSandbox")
    jobs.end_with_failed(ended)
