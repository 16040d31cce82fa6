"""Fetching an output sandbox: every file whole and verified, or not there; nothing outside the folder asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gridfabric.gatekeeper.v1 import gatekeeper_pb2 as pb
from gridfabric.gatekeeper.v1 import gatekeeper_pb2_grpc

from fabric.errors import DataCorrupted, InvalidRequest

FETCH_TIMEOUT_S = 3600.0
MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class OutputFile:
    """A file of an output sandbox, as it is on this disk now."""

    name: str
    size_bytes: int
    sha256: str


def safe_name(name: str) -> str:
    """A plain file name. Raises InvalidRequest for anything that would leave the folder."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest("NAME_ESCAPE", f"the site sent an output file named {name[:100]!r}; it was not written")
    return name


class _Receiver:
    """Takes the pieces of a stream and turns them into files, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[OutputFile] = []
        self._open: tuple[str, int, str, Path, BinaryIO, Any] | None = None

    def take(self, piece: pb.GetOutputResponse) -> None:
        """One message; the first of each file has its name."""
        if piece.name:
            self.finish()
            name = safe_name(piece.name)
            partial = self.folder / f".{name[:200]}.part"
            file = partial.open("wb")
            self._open = (name, piece.size_bytes, piece.sha256, partial, file, hashlib.sha256())
        if self._open is None:
            raise DataCorrupted("OUTPUT_DAMAGED", "the site sent data without a file name; fetch the output again")
        self._open[4].write(piece.data)
        self._open[5].update(piece.data)

    def finish(self) -> None:
        """The present file is complete: verify and name it. Raises DataCorrupted."""
        if self._open is None:
            return
        name, size_bytes, sha256, partial, file, digest = self._open
        self._open = None
        received = file.tell()
        file.close()
        if received != size_bytes or (sha256 and digest.hexdigest() != sha256):
            partial.unlink()
            raise DataCorrupted(
                "OUTPUT_DAMAGED",
                f"{name} arrived with {received} of {size_bytes} bytes or changed; fetch the output again",
            )
        os.replace(partial, self.folder / name)
        self.files.append(OutputFile(name, received, digest.hexdigest()))

    def abandon(self) -> None:
        """Leave no part of a file."""
        if self._open is not None:
            self._open[4].close()
            self._open[3].unlink(missing_ok=True)


async def get_output(
    channel: Any, job_id: str, folder: Path, on_bytes: Callable[[int], None] | None = None
) -> list[OutputFile]:
    """Fetch a job's output sandbox from its gatekeeper into `folder`, which exists. May be called again.

    Raises GridError as the gatekeeper did, DataCorrupted OUTPUT_DAMAGED, OSError.
    """
    stub = gatekeeper_pb2_grpc.GatekeeperStub(channel)
    receiver = _Receiver(folder)
    try:
        async for piece in stub.GetOutput(pb.GetOutputRequest(job_id=job_id), timeout=FETCH_TIMEOUT_S):
            receiver.take(piece)
            if on_bytes is not None:
                on_bytes(len(piece.data))
        receiver.finish()
    finally:
        receiver.abandon()
    return receiver.files
