"""Files of running jobs, read through the gatekeeper: real TLS, real sessions, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from support.grid import LabGrid
from support.site import Site, job

from agents.gatekeeper import client, following
from fabric.errors import Exhausted, InvalidRequest, NotFound, Unavailable


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with LabGrid(tmp_path) as lab:
        made = Site(lab)
        await made.start({"stop_policy": "leave"}, {"max_running": 1})
        yield made


class Reader:
    """Reads a file as `grid job follow` does: from where it is, again and again."""

    def __init__(self, site: Site, one: pb.Job, **wanted: Any) -> None:
        self.site, self.wanted = site, pb.FollowRequest(job_id=one.job_id, **wanted)
        self.text = b""
        self.last: pb.FollowResponse | None = None
        self.placed = asyncio.Event()

    async def until(self, text: bytes | None = None) -> None:
        """Until this was read, or to the end."""
        async with asyncio.timeout(60):
            while self.last is None and (text is None or text not in self.text):
                self.wanted.offset = len(self.text)
                with contextlib.suppress(Unavailable):
                    async with contextlib.aclosing(client.follow(self.site.channel, self.wanted)) as responses:
                        async for response in responses:
                            self.take(response)
                            if text is not None and text in self.text:
                                return
                await asyncio.sleep(0.02)

    def take(self, response: pb.FollowResponse) -> None:
        assert response.offset == len(self.text), (response, self.text)
        self.text += response.data
        self.wanted.attempt = response.attempt
        self.placed.set()
        if response.ended:
            self.last = response


async def test_what_a_job_writes_is_read_while_it_runs_and_to_its_end(site: Site) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        gate = Path(name) / "gate"
        wait = f"while ! [ -e {gate} ]; do sleep 0.05; done"
        script = f"echo one; echo first >&2; echo log > run.log; {wait}; echo two; head -c 700000 /dev/zero; exit 3"
        one = job("-c", script, output_sandbox=["out"])
        late = job("-c", "echo late")
        await site.submit(one)
        await site.reaches(one, pb.JOB_STATE_RUNNING)
        await site.submit(late)  # waits for its turn
        queued = Reader(site, late)
        following_queued = asyncio.create_task(queued.until())
        out, errors, log = Reader(site, one), Reader(site, one, std_error=True), Reader(site, one, name="run.log")
        await asyncio.gather(out.until(b"one\n"), errors.until(b"first\n"), log.until(b"log\n"))
        # Whoever is restarted, it goes on at the same byte.
        for agent in ("worker", "gatekeeper"):
            await site.lab.stop(f"{agent}.CERN")
            await site.lab.start(agent, options=getattr(site, f"{agent}_options"))
        site.channel = await site.lab.channel("gatekeeper", credential=site.alice)
        gate.touch()
        await asyncio.gather(out.until(), errors.until())
        assert out.text == b"one\ntwo\n" + bytes(700_000)
        assert out.last is not None and not out.last.lost and out.last.state == pb.JOB_STATE_DONE
        assert errors.text == b"first\n"  # not in the output sandbox: read from the worker
        # Of a job that has ended: what its output sandbox has, from any byte on.
        again = Reader(site, one)
        again.text = out.text[:600_000]
        await again.until()
        assert again.text == out.text
        gone = Reader(site, one, std_error=True)
        await gone.until()
        assert gone.text == b"" and gone.last is not None and gone.last.lost
        await following_queued
        assert queued.text == b"late\n"


async def test_who_may_not_follow_and_what(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job("-c", "ln -s .x509_proxy link; mkfifo pipe; echo begun; sleep 300")
    one.description.ClearField("std_error")
    await site.submit(one)
    reader = Reader(site, one)
    await reader.until(b"begun\n")
    bob = await site.lab.channel("gatekeeper", credential=site.lab.user("bob"))

    async def refused(kind: type[Exception], channel: Any = site.channel, **wanted: Any) -> None:
        with pytest.raises(kind):
            async for _ in client.follow(channel, pb.FollowRequest(**{"job_id": one.job_id, **wanted})):
                pass

    await refused(NotFound, bob)
    await refused(NotFound, job_id="https://localhost:9000/none")
    await refused(NotFound, std_error=True)  # it has none
    await refused(InvalidRequest, name=".x509_proxy")
    await refused(InvalidRequest, name="../x")
    await refused(InvalidRequest, name="/etc/passwd")
    await refused(InvalidRequest, offset=-1)
    monkeypatch.setattr(following, "MAX_READERS_PER_OWNER", 2)
    hostile = [Reader(site, one, name=name) for name in ("link", "pipe")]
    reading = [asyncio.create_task(reader.until()) for reader in hostile]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(reader.placed.wait() for reader in hostile))
        await refused(Exhausted)
        await client.cancel(site.channel, [one.job_id])
        await asyncio.gather(*reading)
    finally:
        for task in reading:
            task.cancel()
    assert [reader.text for reader in hostile] == [b"", b""]
    monkeypatch.undo()
    last = Reader(site, one)
    await last.until()  # readers that are gone leave their places
    assert last.last is not None and last.last.state == pb.JOB_STATE_CANCELLED
