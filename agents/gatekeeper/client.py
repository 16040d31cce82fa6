"""Calls to a gatekeeper for the `grid` command and tests. `channel` is a secure channel in the user's name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc

from fabric.errors import DataCorrupted
from fabric.rpc.calls import each_within

PIECE_BYTES = 1024 * 1024
FOLLOW_SILENT_S = 60.0
"""A gatekeeper that one follows says something every 10 s."""

__all__ = [
    "cancel", "close", "follow", "get_output", "hold", "output_files", "purge", "put_sandbox", "release", "status",
    "submit", "tags", "watch",
]  # fmt: skip


def _stub(channel: Any) -> Any:
    return gatekeeper_pb2_grpc.GatekeeperStub(channel)


async def put_sandbox(channel: Any, files: Sequence[bytes]) -> list[str]:
    """Send those of these contents that the gatekeeper lacks; returns the SHA-256 of each."""
    hashes = [hashlib.sha256(data).hexdigest() for data in files]
    stub = _stub(channel)
    missing = set((await stub.MissingSandbox(pb.MissingSandboxRequest(sha256=hashes))).sha256)
    for sha256, data in zip(hashes, files, strict=True):
        if sha256 not in missing:
            continue
        missing.discard(sha256)

        def messages(sha256: str = sha256, data: bytes = data) -> Any:
            yield pb.PutSandboxRequest(sha256=sha256, size_bytes=len(data), data=data[:PIECE_BYTES])
            for start in range(PIECE_BYTES, len(data), PIECE_BYTES):
                yield pb.PutSandboxRequest(data=data[start : start + PIECE_BYTES])

        await stub.PutSandbox(messages())
    return hashes


async def submit(channel: Any, jobs: Sequence[pb.Job]) -> list[pb.SubmitOutcome]:
    """At most 500 jobs; the outcome of each, in order. Delegate first."""
    return list((await _stub(channel).Submit(pb.SubmitRequest(jobs=jobs))).outcomes)


async def cancel(channel: Any, job_ids: Sequence[str]) -> list[str]:
    """Ask for the end of these jobs; returns those that are unknown."""
    return list((await _stub(channel).Cancel(pb.CancelRequest(job_ids=job_ids))).unknown)


async def hold(channel: Any, job_ids: Sequence[str]) -> None:
    """Let these wait until they are released. Raises Conflict JOB_NOT_WAITING, NotFound JOB_UNKNOWN."""
    await _stub(channel).Hold(pb.HoldRequest(job_ids=job_ids))


async def release(channel: Any, job_ids: Sequence[str]) -> None:
    """Let these start again. Raises NotFound JOB_UNKNOWN."""
    await _stub(channel).Release(pb.HoldRequest(job_ids=job_ids))


async def close(
    channel: Any,
    *,
    draining: bool = False,
    reason: str = "",
    begins_at_us: int = 0,
    ends_at_us: int = 0,
    queue: str = "",
) -> tuple[int, int]:
    """Shut a queue, or all of them, as an operator, or open again (without further arguments). Returns (jobs running,
    jobs waiting). Raises NotFound QUEUE_UNKNOWN, Conflict ALL_QUEUES_SHUT, InvalidRequest CLOSURE_INVALID."""
    request = pb.CloseRequest(
        draining=draining, reason=reason, begins_at_us=begins_at_us, ends_at_us=ends_at_us, queue=queue
    )
    answer = await _stub(channel).Close(request)
    return answer.running, answer.waiting


async def tags(channel: Any, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[list[str], str]:
    """The software tags of the caller's VO after these changes, and its software area ("" while no worker is there)."""
    answer = await _stub(channel).Tags(pb.TagsRequest(add=add, remove=remove))
    return list(answer.tags), answer.software_area


async def status(channel: Any, job_ids: Sequence[str]) -> list[pb.JobUpdate]:
    """The newest update of each that is there."""
    return list((await _stub(channel).Status(pb.StatusRequest(job_ids=job_ids))).jobs)


async def watch(channel: Any, after_sequence: int = 0) -> AsyncIterator[pb.JobUpdate]:
    """The caller's updates after a sequence, then live ones, until the caller stops or the stream is lost
    (GridError)."""
    async with _stub(channel).Watch(pb.WatchRequest(after_sequence=after_sequence)) as stream:
        async for response in stream:
            for update in response.updates:
                yield update


async def follow(channel: Any, request: pb.FollowRequest) -> AsyncIterator[pb.FollowResponse]:
    """What a file of a job holds and grows by; the last response has `ended`. Raises GridError: Unavailable when the
    stream is lost or silent, then ask again from the offset where it stopped."""
    silent = f"the gatekeeper said nothing for {FOLLOW_SILENT_S:g} s"
    async with _stub(channel).Follow(request) as stream:
        async for response in each_within(stream, FOLLOW_SILENT_S, "GATEKEEPER_SILENT", silent):
            yield response


async def output_files(channel: Any, job_id: str) -> dict[str, bytes]:
    """All of a job's output in memory: for small ones and tests."""
    files: dict[str, bytes] = {}
    sums: dict[str, str] = {}
    name = ""
    async for message in _stub(channel).GetOutput(pb.GetOutputRequest(job_id=job_id)):
        if message.name:
            name = message.name
            files[name], sums[name] = b"", message.sha256
        files[name] += message.data
    for name, data in files.items():
        _verify(name, hashlib.sha256(data).hexdigest(), sums[name])
    return files


async def get_output(channel: Any, job_id: str, folder: Path) -> list[Path]:
    """A job's output sandbox into a folder that exists, each file complete and verified or not there.

    Raises GridError; DataCorrupted OUTPUT_CORRUPTED for a file that arrived damaged; OSError.
    """
    done: list[Path] = []
    target: Path | None = None
    part: Any = None
    digest = hashlib.sha256()
    due = ""

    def close() -> None:
        nonlocal part
        if part is None or target is None:
            return
        part.close()
        part = None
        temporary = target.with_name(target.name + ".part")
        try:
            _verify(target.name, digest.hexdigest(), due)
        except DataCorrupted:
            temporary.unlink()
            raise
        os.replace(temporary, target)
        done.append(target)

    try:
        async for message in _stub(channel).GetOutput(pb.GetOutputRequest(job_id=job_id)):
            if message.name:
                close()
                target, due, digest = _inside(folder, message.name), message.sha256, hashlib.sha256()
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part").open("wb")
            digest.update(message.data)
            if part is not None:
                part.write(message.data)
        close()
    finally:
        if part is not None and target is not None:
            part.close()
            target.with_name(target.name + ".part").unlink(missing_ok=True)
    return done


async def purge(channel: Any, job_ids: Sequence[str]) -> None:
    """Remove ended jobs and their output."""
    await _stub(channel).Purge(pb.PurgeRequest(job_ids=job_ids))


def _inside(folder: Path, name: str) -> Path:
    """The gatekeeper checks names too, but a client trusts no server with its paths."""
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise DataCorrupted(
            "OUTPUT_NAME_UNSAFE", f"the gatekeeper sent an output file with the name {name[:80]!r}: refused"
        )
    return folder.joinpath(*parts)


def _verify(name: str, found: str, due: str) -> None:
    if found != due:
        raise DataCorrupted("OUTPUT_CORRUPTED", f"{name} arrived with the SHA-256 {found}, not {due}; fetch it again")
