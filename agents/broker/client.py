"""What the ``grid`` command asks of the broker."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.broker.v1 import broker_pb2_grpc as pb_grpc

from agents.broker.jdl import JdlError, local_input_sandbox, local_name, normalise
from fabric.errors import InvalidRequest
from fabric.ids import unique_id
from security.errors import os_error_text

__all__ = ["BrokerClient", "JdlError", "local_input_sandbox", "local_name", "normalise", "read_sandbox"]

PIECE_BYTES = 1024 * 1024
SUBMIT_TIMEOUT_S = 120.0
"""For submissions of many jobs."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An input sandbox file on this machine."""

    path: Path
    name: str
    sha256: str
    size_bytes: int
    executable: bool

    def to_wire(self) -> pb.SandboxFile:
        return pb.SandboxFile(
            name=self.name, sha256=self.sha256, size_bytes=self.size_bytes, executable=self.executable
        )


def read_sandbox(jdl: str, folder: Path | str = ".") -> list[LocalFile]:
    """The input sandbox files of a JDL, found below ``folder`` and hashed. Raises JdlError, InvalidRequest."""
    found: dict[str, LocalFile] = {}
    for text in local_input_sandbox(jdl):
        path = Path(unquote(urlsplit(text).path)) if text.startswith("file:") else Path(text).expanduser()
        path = Path(folder) / path
        name = local_name(text)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise InvalidRequest(
                    "SANDBOX_FILE_UNREADABLE",
                    f"InputSandbox names {text!r}, and {path} is not a regular file; name a file, or pack a folder",
                )
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except (FileNotFoundError, NotADirectoryError):
            raise InvalidRequest(
                "SANDBOX_FILE_MISSING",
                f"InputSandbox names {text!r}, and there is no file {path}; make it or correct the JDL",
            ) from None
        except OSError as error:
            raise InvalidRequest(
                "SANDBOX_FILE_UNREADABLE",
                f"the input sandbox file {path} cannot be read ({os_error_text(error)}); see to its permissions",
            ) from error
        if name in found and found[name].path != path:
            raise InvalidRequest(
                "SANDBOX_NAME_TWICE", f"{found[name].path} and {path} would both be called {name!r}; rename one"
            )
        found[name] = LocalFile(path, name, digest, size, os.access(path, os.X_OK))
    return list(found.values())


class BrokerClient:
    """Calls over one channel, in a user's name. Every method raises GridError subclasses."""

    def __init__(self, channel: Any) -> None:
        self._stub = pb_grpc.BrokerStub(channel)

    async def submit(self, jdl: str, folder: Path | str = ".", *, submission_id: str = "") -> pb.SubmitResponse:
        """Upload the input sandbox as far as it is missing, and submit. A proxy must have been delegated before.

        With the same ``submission_id`` it may be repeated and gives the same job ids. Raises JdlError before any call.
        """
        files = read_sandbox(jdl, folder)
        await self.upload(files)
        request = pb.SubmitRequest(
            submission_id=submission_id or unique_id(), jdl=jdl, input_sandbox=[file.to_wire() for file in files]
        )
        return await self._stub.Submit(request, timeout=SUBMIT_TIMEOUT_S)

    async def upload(self, files: Sequence[LocalFile]) -> int:
        """Send the files that the broker lacks; how many these were."""
        if not files:
            return 0
        by_hash = {file.sha256: file for file in files}
        answer = await self._stub.MissingSandbox(pb.MissingSandboxRequest(sha256=list(by_hash)))
        for sha256 in answer.sha256:
            await self._stub.PutSandbox(_pieces(by_hash[sha256]))
        return len(answer.sha256)

    async def cancel(self, job_ids: Sequence[str]) -> list[pb.CancelOutcome]:
        """End jobs (children of parents). Outcomes: cancelling, already-ended, unknown."""
        return list((await self._stub.Cancel(pb.CancelRequest(job_ids=job_ids))).outcomes)

    async def list_match(self, jdl: str) -> list[pb.Match]:
        """Every CE: matching ones first, the best rank first; the others with their failing term."""
        normalise(jdl)
        return list((await self._stub.ListMatch(pb.ListMatchRequest(jdl=jdl))).matches)

    async def locate(self, job_ids: Sequence[str]) -> list[pb.JobLocation]:
        """Where jobs are; unknown ids are left out."""
        return list((await self._stub.Locate(pb.LocateRequest(job_ids=job_ids))).jobs)

    async def clear(self, job_ids: Sequence[str]) -> None:
        """The output was fetched: CLEARED, and the CE may remove it."""
        await self._stub.Clear(pb.ClearRequest(job_ids=job_ids))


async def _pieces(file: LocalFile) -> AsyncIterator[pb.PutSandboxRequest]:
    first = True
    with file.path.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            if first:
                yield pb.PutSandboxRequest(sha256=file.sha256, size_bytes=file.size_bytes, data=piece)
            else:
                yield pb.PutSandboxRequest(data=piece)
            first = False
    if first:
        yield pb.PutSandboxRequest(sha256=file.sha256, size_bytes=file.size_bytes)
