"""Calls to the transfer agent, for the `grid` command. Everything may be repeated.

`channel` is a secure channel to the transfer agent, in the name of the user, who has delegated a proxy to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from gridfabric.transfer.v1 import transfer_pb2 as pb
from gridfabric.transfer.v1 import transfer_pb2_grpc

from agents.transfer.model import ENDED, MAX_SUBMITTED, TransferState

__all__ = ["ENDED", "TransferClient", "TransferState"]


class TransferClient:
    """The methods of the service, with plain arguments."""

    def __init__(self, channel: Any) -> None:
        self._stub = transfer_pb2_grpc.TransfersStub(channel)

    async def submit(
        self, job_id: str, names: Sequence[str], destination: str, *, source: str = "", priority: int = 0
    ) -> tuple[int, list[pb.RefusedFile]]:
        """Queue any number of files; how many were accepted, and why the others were not."""
        accepted: int = 0
        refused: list[pb.RefusedFile] = []
        for start in range(0, len(names), MAX_SUBMITTED):
            answer = await self._stub.Submit(
                pb.SubmitRequest(
                    job_id=job_id, lfns=names[start : start + MAX_SUBMITTED], destination=destination, source=source,
                    priority=priority,
                )
            )  # fmt: skip
            accepted += answer.accepted
            refused += answer.refused
        return accepted, refused

    async def job(self, job_id: str) -> pb.Job:
        """A job without its files."""
        return (await self._stub.Status(pb.StatusRequest(job_id=job_id, page_size=1))).job

    async def files(self, job_id: str) -> AsyncIterator[pb.File]:
        """Every file of a job, page by page."""
        after = 0
        while True:
            answer = await self._stub.Status(pb.StatusRequest(job_id=job_id, after=after))
            for file in answer.files:
                yield file
            after = answer.next
            if not after:
                return

    async def jobs(self) -> list[pb.Job]:
        """The newest first."""
        return list((await self._stub.List(pb.ListRequest())).jobs)

    async def cancel(self, job_id: str) -> int:
        """How many files were ended."""
        return int((await self._stub.Cancel(pb.CancelRequest(job_id=job_id))).canceled)

    async def report(self, since_us: int) -> list[pb.ReportRow]:
        """What ended since then."""
        return list((await self._stub.Report(pb.ReportRequest(since_us=since_us))).rows)

    async def channels(self) -> list[pb.Channel]:
        """Every link with work."""
        return list((await self._stub.Channels(pb.ChannelsRequest())).channels)

    async def subscribe(self, subscription_id: str, directory: str, at: str, copies: int) -> pb.Subscription:
        """Have every file of a directory, now and later, copied."""
        wanted = pb.Subscription(id=subscription_id, directory=directory, at=at, copies=copies)
        return await self._stub.Subscribe(wanted)

    async def unsubscribe(self, subscription_id: str) -> None:
        """End that. Again: succeeds."""
        await self._stub.Unsubscribe(pb.UnsubscribeRequest(id=subscription_id))

    async def subscriptions(self) -> list[pb.Subscription]:
        """Each with its lag."""
        return list((await self._stub.Subscriptions(pb.SubscriptionsRequest())).subscriptions)
