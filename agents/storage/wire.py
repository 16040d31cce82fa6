"""Model to protobuf and back: the only file of the storage element that knows both."""

from __future__ import annotations

from dataclasses import asdict

from gridfabric.storage.v1 import storage_pb2 as pb

from agents.storage.drain import PoolReport
from agents.storage.model import SMALL_BYTES, Announced, Checksums, Reconciliation, StoredFile, parse_checksums
from agents.storage.nearline import Locality, Staging
from agents.storage.space import SpaceReport
from fabric.errors import GridError, InvalidRequest, to_details


def checksums_to_wire(checksums: Checksums) -> pb.Checksums:
    """Both checksums."""
    return pb.Checksums(adler32=checksums.adler32, sha256=checksums.sha256)


def checksums_from_wire(message: pb.Checksums) -> Checksums:
    """Raises InvalidRequest(CHECKSUM_INVALID)."""
    return parse_checksums(message.adler32, message.sha256)


def header_from_wire(header: pb.PutHeader, owner: str) -> Announced:
    """What a sender announces. Raises InvalidRequest(CHECKSUM_INVALID)."""
    return Announced(
        vo=header.vo,
        size_bytes=header.size_bytes,
        put_id=header.put_id,
        owner=owner,
        name_hint=header.name_hint,
        reservation=header.reservation,
        checksums=checksums_from_wire(header.checksums) if header.HasField("checksums") else None,
    )


def small_data(file: pb.SmallFile) -> bytes:
    """What goes with the header. Raises InvalidRequest(SIZE_MISMATCH | FILE_LARGE)."""
    if len(file.data) > SMALL_BYTES:
        raise InvalidRequest("FILE_LARGE", f"a file of more than {SMALL_BYTES} bytes is put alone; send it by Put")
    if len(file.data) != file.header.size_bytes:
        raise InvalidRequest(
            "SIZE_MISMATCH",
            f"{len(file.data)} bytes arrived and {file.header.size_bytes} were announced; nothing was kept, send the "
            "file again",
            announced_bytes=file.header.size_bytes,
            received_bytes=len(file.data),
        )
    return file.data


def got_to_wire(data: bytes | GridError, checksums: Checksums) -> pb.GotFile:
    """A small file with the checksums that it was put with, or why it cannot be read."""
    if isinstance(data, GridError):
        return pb.GotFile(error=to_details(data))
    return pb.GotFile(checksums=checksums_to_wire(checksums), data=data)


def info_to_wire(file: StoredFile, surl: str, locality: Locality, *, named: bool) -> pb.FileInfo:
    """A file as it is listed."""
    return pb.FileInfo(
        surl=surl,
        vo=file.vo,
        size_bytes=file.size_bytes,
        checksums=checksums_to_wire(file.checksums),
        created_at_us=file.created_at_us,
        owner=file.owner,
        name_hint=file.name_hint,
        damage=file.damage,
        damaged_at_us=file.damaged_at_us,
        locality=locality,
        named=named,
    )


def staging_to_wire(staging: Staging, surl: str) -> pb.Staging:
    """How it stands with a file that somebody wants on disk."""
    return pb.Staging(
        surl=surl,
        locality=staging.locality,
        retry_after_s=staging.retry_after_s,
        ahead=staging.ahead,
        sentence=staging.sentence if staging.retry_after_s else "",
    )


def pool_to_wire(report: PoolReport) -> pb.PoolInfo:
    """A pool as operators see it."""
    return pb.PoolInfo(**asdict(report))


def space_to_wire(report: SpaceReport) -> pb.SpaceResponse:
    """Disks and VOs."""
    return pb.SpaceResponse(
        total_bytes=report.total_bytes,
        free_bytes=report.free_bytes,
        vos=[
            pb.VoSpace(
                vo=use.vo,
                quota_bytes=use.quota_bytes or 0,
                used_bytes=use.used_bytes,
                reserved_bytes=use.reserved_bytes,
                files=use.files,
                available_bytes=available,
            )
            for use, available in report.vos
        ],
    )


def reconciliation_to_wire(report: Reconciliation) -> pb.ReconcileResponse:
    """For operators."""
    return pb.ReconcileResponse(
        began_at_us=report.began_at_us,
        ended_at_us=report.ended_at_us,
        dark=report.dark,
        lost=report.lost,
        removed=report.removed,
        obstacle=report.obstacle,
        examples=[pb.Stray(surl=s.surl, vo=s.vo, kind=s.kind, since_us=s.since_us) for s in report.examples],
    )
