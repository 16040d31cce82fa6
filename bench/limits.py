"""What this machine can do at most, without any grid: the measure for everything else.

Each limit is measured once in a run, when the first figure asks for it, so that both come from the same minutes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from bench import helpers
from bench.measure import Bench, rate, repeat_for
from security.credentials import generate_key

MB = 1_000_000
PIECE = 1 << 20
TRIAL_S = 0.5


def fork_exec(bench: Bench) -> None:
    """One small process that starts /bin/true and waits for it, again and again."""
    count = bench.size(1000, 300)
    found = [helpers.once("spawn", {"count": count, "at_once": 1}) for _ in range(bench.short_trials)]
    bench.add("fork_exec", "fork + exec of /bin/true, one after another", "1/s", [one["rate"] for one in found])
    bench.add("fork_exec_cpu", "CPU per fork + exec of /bin/true", "ms", [one["cpu_ms"] for one in found])


def fork_exec_parallel(bench: Bench) -> None:
    """As `fork_exec`, as many at a time as there are processors."""
    at_once = os.cpu_count() or 1
    count = bench.size(2000, 600)
    values = [helpers.once("spawn", {"count": count, "at_once": at_once})["rate"] for _ in range(bench.short_trials)]
    bench.add("fork_exec_parallel", f"fork + exec of /bin/true, {at_once} at a time", "1/s", values)


def _database(bench: Bench, name: str) -> sqlite3.Connection:
    path = bench.folder / name
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, state TEXT, body TEXT)")
    return connection


def sqlite_commits(bench: Bench) -> None:
    """One row and one durable commit each."""
    connection = _database(bench, "commits.db")

    def commit() -> None:
        connection.execute("INSERT INTO job (state, body) VALUES ('submitted', ?)", ("x" * 200,))

    values = rate(repeat_for(TRIAL_S, commit, 5), bench.short_trials)
    connection.close()
    bench.add("sqlite_commits", "SQLite commits, WAL, synchronous=FULL", "1/s", values)


def sqlite_rows(bench: Bench) -> None:
    """Many rows in one durable commit."""
    connection = _database(bench, "rows.db")
    rows = [("submitted", "x" * 200)] * 5000

    def batch() -> int:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO job (state, body) VALUES (?, ?)", rows)
        connection.execute("COMMIT")
        return len(rows)

    values = rate(batch, bench.short_trials)
    connection.close()
    bench.add("sqlite_rows", "SQLite rows in commits of 5 000", "1/s", values)


def disk(bench: Bench) -> None:
    """One large file, written and on the disk."""
    size = bench.size(512, 128) << 20
    path, piece = bench.folder / "disk", os.urandom(PIECE)

    def write() -> float:
        with path.open("wb", buffering=0) as file:
            for _ in range(size // PIECE):
                file.write(piece)
            os.fsync(file.fileno())
        path.unlink()
        return size / MB

    bench.add("disk", "disk write + fsync, one file", "MB/s", rate(write, bench.trials, warm_up=False))


def small_files(bench: Bench) -> None:
    """10 kB files, each written, on the disk, and renamed, as one thread can."""
    folder = bench.folder / "small"
    folder.mkdir()
    data = os.urandom(10_000)

    def write() -> int:
        for number in range(100):
            _write_durably(folder / str(number), data)
        return 100

    values = rate(write, bench.short_trials)
    bench.add("small_files", "10 kB files written + fsync + rename, one thread", "1/s", values)


def _write_durably(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    os.replace(partial, path)


def checksums(bench: Bench) -> None:
    """sha256 and adler32 of memory, one thread."""
    data = os.urandom(32 << 20)

    def sha256() -> float:
        hashlib.sha256(data).digest()
        return len(data) / MB

    def adler32() -> float:
        zlib.adler32(data)
        return len(data) / MB

    bench.add("sha256", "sha256, one thread", "MB/s", rate(sha256, bench.short_trials))
    bench.add("adler32", "adler32, one thread", "MB/s", rate(adler32, bench.short_trials))


def verifications(bench: Bench) -> None:
    """Signatures checked by one thread."""
    digest, message = hashes.SHA256(), b"m" * 64
    elliptic, rsa = generate_key("ec-p256"), generate_key("rsa-2048")
    assert isinstance(elliptic, ec.EllipticCurvePrivateKey) and not isinstance(rsa, ec.EllipticCurvePrivateKey)
    ec_public, ec_signature = elliptic.public_key(), elliptic.sign(message, ec.ECDSA(digest))
    rsa_public, rsa_signature = rsa.public_key(), rsa.sign(message, padding.PKCS1v15(), digest)

    def verify_ec() -> None:
        ec_public.verify(ec_signature, message, ec.ECDSA(digest))

    def verify_rsa() -> None:
        rsa_public.verify(rsa_signature, message, padding.PKCS1v15(), digest)

    for key, title, step in (
        ("verify_p256", "P-256 signatures verified, one thread", verify_ec),
        ("verify_rsa", "RSA-2048 signatures verified, one thread", verify_rsa),
    ):
        bench.add(key, title, "1/s", rate(repeat_for(TRIAL_S, step), bench.short_trials))


def tls_stream(bench: Bench) -> None:
    """One TLS connection between two processes: Python's ssl, 1 MiB at a time, bytes thrown away."""
    size = bench.size(1024, 256) << 20
    with helpers.trust(bench.folder / "tls") as grid, helpers.server("tls-sink", grid.host_files()) as port:

        def send() -> float:
            helpers.send_tls(port, grid.certificate, size)
            return size / MB

        bench.add("tls", "one TLS stream, no application", "MB/s", rate(send, bench.trials))


def grpc_stream(bench: Bench) -> None:
    """One upload stream of grpc.aio over TLS: raw bytes, 1 MiB at a time, thrown away."""
    size = bench.size(512, 128) << 20
    with helpers.trust(bench.folder / "grpc") as grid, helpers.server("plain", grid.host_files()) as port:

        async def send() -> float:
            async with asyncio.timeout(120), helpers.plain_channel(port, grid.certificate) as channel:
                call = channel.stream_unary(helpers.SINK)
                began = time.perf_counter()
                await call(helpers.pieces(size), wait_for_ready=True)
                return size / MB / (time.perf_counter() - began)

        values = [asyncio.run(send()) for _ in range(bench.trials + 1)][1:]
    bench.add("grpc", "one grpc.aio TLS upload stream, no application", "MB/s", values)


def tcp_echo(bench: Bench) -> None:
    """Questions and answers over one TCP connection between two processes, asyncio on both sides."""
    with helpers.server("echo", {}) as port:
        seconds = TRIAL_S

        async def ask() -> float:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                writer.write(b"q" * 60)
                await reader.readexactly(60)
                count += 1
            spent = time.perf_counter() - began
            writer.close()
            return count / spent

        values = [asyncio.run(asyncio.wait_for(ask(), 30)) for _ in range(bench.short_trials)]
    bench.add("tcp_echo", "asyncio questions and answers, one TCP connection", "1/s", values)


LIMITS: dict[str, Callable[[Bench], None]] = {
    "fork_exec": fork_exec,
    "fork_exec_parallel": fork_exec_parallel,
    "sqlite_commits": sqlite_commits,
    "sqlite_rows": sqlite_rows,
    "disk": disk,
    "small_files": small_files,
    "sha256": checksums,
    "verify_p256": verifications,
    "tls": tls_stream,
    "grpc": grpc_stream,
    "tcp_echo": tcp_echo,
}


def need(bench: Bench, *keys: str) -> None:
    """Measure these limits unless this run has done so."""
    for key in keys:
        if key not in bench.figures:
            LIMITS[key](bench)


def run(bench: Bench) -> None:
    """The section `limits`."""
    need(bench, *LIMITS)
