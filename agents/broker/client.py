"""What the ``grid`` command asks of the broker."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gridfabric.broker.v1 import broker_pb2 as pb
from gridfabric.broker.v1 import broker_pb2_grpc as pb_grpc

from agents.broker.jdl import JdlError, local_input_sandbox, node_files, normalise, notes, problems
from agents.broker.jdl_syntax import MAX_JDL_BYTES
from agents.broker.jdl_text import classad_text, template_values
from fabric.errors import InvalidRequest
from fabric.ids import unique_id
from security.errors import os_error_text

__all__ = [
    "BrokerClient", "JdlError", "classad_text", "local_input_sandbox", "normalise", "notes", "problems",
    "read_node_files", "read_sandbox", "template_values",
]  # fmt: skip

PIECE_BYTES = 1024 * 1024
SUBMIT_TIMEOUT_S = 120.0
"""For submissions of many jobs."""

TAKE_OVER_TIMEOUT_S = 600.0
"""For 10^5 jobs; what is not done then goes on at the broker."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An input sandbox file on this machine."""

    path: Path
    name: str
    """As InputSandbox writes it."""
    sha256: str
    size_bytes: int
    executable: bool

    def to_wire(self) -> pb.SandboxFile:
        return pb.SandboxFile(
            name=self.name, sha256=self.sha256, size_bytes=self.size_bytes, executable=self.executable
        )


def read_node_files(jdl: str, folder: Path | str = ".") -> dict[str, str]:
    """The texts of nodes that are in files of their own, by the name in the JDL. Raises JdlError, InvalidRequest."""
    found: dict[str, str] = {}
    for name in node_files(jdl):
        path = Path(folder) / Path(name).expanduser()
        try:
            with path.open("rb") as file:
                data = file.read(MAX_JDL_BYTES + 1)
            found[name] = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            told = os_error_text(error) if isinstance(error, OSError) else "it is not a text in UTF-8"
            raise InvalidRequest(
                "NODE_FILE_UNREADABLE", f"a node names the file {name!r}, and {path} cannot be read ({told})", name=name
            ) from None
        if len(data) > MAX_JDL_BYTES:
            raise InvalidRequest("JDL_TOO_LARGE", f"the node's file {path} is longer than {MAX_JDL_BYTES} bytes")
    return found


def read_sandbox(jdl: str, folder: Path | str = ".", files: Mapping[str, str] | None = None) -> list[LocalFile]:
    """The input sandbox files of a JDL, found below ``folder`` and hashed. Raises JdlError, InvalidRequest."""
    return [_local_file(text, Path(folder)) for text in local_input_sandbox(jdl, files)]


def _local_file(text: str, folder: Path) -> LocalFile:
    path = Path(unquote(urlsplit(text).path)) if text.startswith("file:") else Path(text).expanduser()
    path = folder / path
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
    return LocalFile(path, text, digest, size, os.access(path, os.X_OK))


class BrokerClient:
    """Calls over one channel, in a user's name. Every method raises GridError subclasses."""

    def __init__(self, channel: Any) -> None:
        self._stub = pb_grpc.BrokerStub(channel)

    async def submit(self, jdl: str, folder: Path | str = ".", *, submission_id: str = "") -> pb.SubmitResponse:
        """Upload the input sandbox as far as it is missing, and submit. A proxy must have been delegated before.

        With the same ``submission_id`` it may be repeated and gives the same job ids. Raises JdlError before any call.
        """
        nodes = read_node_files(jdl, folder)
        files = read_sandbox(jdl, folder, nodes)
        await self.upload(files)
        request = pb.SubmitRequest(
            submission_id=submission_id or unique_id(),
            jdl=jdl,
            input_sandbox=[file.to_wire() for file in files],
            node_files=nodes,
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

    async def resubmit(self, job_id: str, *, submission_id: str = "") -> pb.SubmitResponse:
        """New jobs for those of a submission that did not end well; a proxy must have been delegated before."""
        request = pb.ResubmitRequest(submission_id=submission_id or unique_id(), job_id=job_id)
        return await self._stub.Resubmit(request, timeout=SUBMIT_TIMEOUT_S)

    async def cancel(self, job_ids: Sequence[str]) -> list[pb.CancelOutcome]:
        """End jobs (children of parents). Outcomes: cancelling, already-ended, unknown."""
        return list((await self._stub.Cancel(pb.CancelRequest(job_ids=job_ids))).outcomes)

    async def list_match(self, jdl: str, folder: Path | str = ".") -> list[pb.Match]:
        """Every CE for the (first) job: matching ones first, the best rank first; the others with their failing term,
        and the smallest change that would match."""
        nodes = read_node_files(jdl, folder)
        normalise(jdl, nodes)
        return list((await self._stub.ListMatch(pb.ListMatchRequest(jdl=jdl, node_files=nodes))).matches)

    async def locate(self, job_ids: Sequence[str]) -> list[pb.JobLocation]:
        """Where jobs are; unknown ids are left out."""
        return list((await self._stub.Locate(pb.LocateRequest(job_ids=job_ids))).jobs)

    async def clear(self, job_ids: Sequence[str]) -> None:
        """The output was fetched: CLEARED, and the CE may remove it."""
        await self._stub.Clear(pb.ClearRequest(job_ids=job_ids))

    async def take_over(self, broker: str, *, force: bool = False) -> pb.TakeOverResponse:
        """Make the jobs of another broker this one's; for administrators. May be repeated."""
        return await self._stub.TakeOver(pb.TakeOverRequest(broker=broker, force=force), timeout=TAKE_OVER_TIMEOUT_S)


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
