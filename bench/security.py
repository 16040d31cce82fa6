"""Section `security`: chains judged by their length beside raw OpenSSL, and a revocation list of a million entries."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import crypto

from bench import helpers, limits
from bench.helpers import ORGANISATION, Trust
from bench.measure import Bench, rate, repeat_for
from fabric.authorisation import Judge
from fabric.logs import null_logger
from fabric.vos import Vos
from security import _crl, _der
from security.credentials import Credential
from security.files import write_atomic
from security.installation import install_crl
from security.names import DistinguishedName
from security.testing import TestGrid
from security.trust import TrustStore
from security.validation import ValidationPolicy, validate_client_chain
from security.vos import VoList

DEPTHS = (0, 1, 3)
LOOK_UPS = 20_000
_REASON = bytes.fromhex("300c300a0603551d1504030a0101")
_DATE = b"\x17\r260101000000Z"


def run(bench: Bench) -> None:
    """In this process, one thread."""
    with helpers.trust(bench.folder / "security") as trust:
        _chains(bench, trust)
        _list(bench, trust.grid)
        asyncio.run(_map(bench, bench.folder / "security"))


def _chains(bench: Bench, trust: Trust) -> None:
    snapshot, policy = trust.grid.trust, ValidationPolicy()
    for depth in DEPTHS:
        credential = trust.user
        for _ in range(depth):
            credential = trust.grid.proxy(credential)
        pem, chain = credential.pem_chain(), [crypto.X509.from_cryptography(one) for one in credential.certificates]

        def raw(chain: list[crypto.X509] = chain) -> None:
            crypto.X509StoreContext(snapshot.store, chain[0], chain[1:]).verify_certificate()

        def ours(pem: bytes = pem) -> None:
            snapshot.verdicts.clear()  # what was found a moment ago would be found again
            validate_client_chain(pem, snapshot, policy, datetime.now(UTC))

        name = f"{depth} proxies" if depth != 1 else "1 proxy"
        for key, title, work in (
            ("openssl", f"paths of {name}, OpenSSL alone (no lists, names, purposes)", raw),
            ("judged", f"chains of {name} judged, from PEM", ours),
        ):
            values = rate(repeat_for(limits.TRIAL_S, work, 10), bench.short_trials)
            limit = f"openssl_{depth}" if key == "judged" else ""
            bench.add(f"{key}_{depth}", title, "1/s", values, limit=limit)


def _list(bench: Bench, grid: TestGrid) -> None:
    entries = bench.size(1_000_000, 200_000)
    title, serials, stall_s = _install(bench, grid, entries)
    bench.add("crl_memory", f"{title}: memory of one reader", "MB", [_memory_mb(_READER, grid.trust_directory)])
    store = TrustStore(grid.trust_directory)
    times: list[float] = []
    stalls: list[float] = [stall_s]
    for _ in range(bench.trials):
        fresh: list[TrustStore] = []
        took_s, stall_s = asyncio.run(_in_thread(lambda fresh=fresh: fresh.append(TrustStore(grid.trust_directory))))
        times.append(took_s)
        stalls.append(stall_s)
        store = fresh[0]
    bench.add("crl_load", f"{title}: read, verified, indexed", "s", times, note="in a thread beside the event loop")
    bench.add("crl_stall", f"{title}: longest wait of the event loop meanwhile", "ms", [s * 1e3 for s in stalls])
    crl = store.snapshot().authorities[0].crl
    assert crl is not None and len(crl.revoked) == entries
    chance = random.Random(1)
    present = [chance.choice(serials) for _ in range(LOOK_UPS)]
    absent = [serial ^ 0x5555 for serial in present]
    for key, what, numbers in (("hit", "of a revoked one", present), ("miss", "of one not on it", absent)):
        values: list[float] = []
        for _ in range(bench.short_trials):
            start = time.perf_counter()
            found = sum(crl.revokes(number) for number in numbers)
            values.append((time.perf_counter() - start) / LOOK_UPS * 1e6)
            assert found == (LOOK_UPS if key == "hit" else 0)
        bench.add(f"crl_{key}", f"{title}: look-up {what}", "us", values)


def _install(bench: Bench, grid: TestGrid, entries: int) -> tuple[str, list[int], float]:
    der, serials = large_list(grid, entries, datetime.now(UTC).replace(microsecond=0))
    pem = _crl.to_pem(der)
    title = f"revocation list of {entries:,} entries ({len(der) / 1e6:.0f} MB)"
    took_s, stall_s = asyncio.run(_in_thread(lambda: install_crl(grid.trust_directory, pem, datetime.now(UTC))))
    bench.add("crl_install", f"{title}: verified and installed", "s", [took_s], note="written with fsync")
    return title, serials, stall_s


async def _in_thread(work: Callable[[], object]) -> tuple[float, float]:
    return await _aside(asyncio.to_thread(work))


async def _aside(work: Coroutine[Any, Any, object]) -> tuple[float, float]:
    """How long `work` took, and the longest that the event loop was kept from its turn."""
    worst = 0.0
    start = time.perf_counter()
    task = asyncio.create_task(work)
    while not task.done():
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - before - 0.001)
    await task
    return time.perf_counter() - start, worst


async def _map(bench: Bench, folder: Path) -> None:
    """A grid-mapfile as an agent reads it again after a change, and looks people up in it."""
    people = bench.size(100_000, 20_000)
    title = f"grid-mapfile of {people:,} people"
    path = folder / "large-mapfile"
    names = [f"{ORGANISATION}/OU=Users/OU=Institute {n % 300}/CN=Member number {n}" for n in range(people)]
    text = "".join(f'"{name}" .cms\n' for name in names)
    path.write_text(text)

    def split() -> dict[str, str]:
        return {line.rpartition(" ")[0]: line for line in path.read_text().splitlines()}

    values = [timeit.timeit(split, number=1) for _ in range(bench.short_trials)]
    bench.add("map_split", f"{title}: lines split into a dictionary, nothing checked", "s", values)
    bench.add("map_memory", f"{title}: memory of one reader", "MB", [_memory_mb(_MAP_READER, path)])
    (folder / "bans").touch()
    judge = Judge(
        organisation=ORGANISATION, authority=DistinguishedName.parse(f"{ORGANISATION}/CN=CA"),
        map_file=folder / "mapfile", ban_file=folder / "bans", log=null_logger(),
        vos=Vos(VoList(()), folder / "vos.json", "", null_logger()),
    )  # fmt: skip
    times: list[float] = []
    stalls: list[float] = []
    for _ in range(bench.trials):
        write_atomic(folder / "mapfile", text.encode(), 0o644)
        took_s, stall_s = await _aside(judge.look())
        times.append(took_s)
        stalls.append(stall_s)
    assert len(judge.map_file.entries) == people
    bench.add("map_load", f"{title}: read and checked", "s", times, limit="map_split", note="beside the event loop")
    bench.add("map_stall", f"{title}: longest wait of the event loop meanwhile", "ms", [s * 1e3 for s in stalls])
    chance = random.Random(1)
    known = [DistinguishedName.parse(chance.choice(names)) for _ in range(LOOK_UPS)]
    strangers = [name.child("CN", "proxy") for name in known]
    for key, what, subjects in (("hit", "somebody in it", known), ("miss", "a stranger", strangers)):
        values = []
        for _ in range(bench.short_trials):
            start = time.perf_counter()
            found = sum(bool(judge.map_file.accounts_of(subject)) for subject in subjects)
            values.append((time.perf_counter() - start) / LOOK_UPS * 1e6)
            assert found == (LOOK_UPS if key == "hit" else 0)
        bench.add(f"map_{key}", f"{title}: look-up of {what}", "us", values)


_READER = """
import sys
from pathlib import Path
from security.trust import TrustStore
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before = resident()
store = TrustStore(sys.argv[1])
print(resident() - before)
"""
_MAP_READER = (
    _READER.replace("security.trust", "security.mapfile")
    .replace("TrustStore(", "GridMapFile.load(")
    .replace("TrustStore", "GridMapFile")
)


def _memory_mb(reader: str, path: Path) -> float:
    """Of a process of its own that has read this."""
    done = subprocess.run([sys.executable, "-c", reader, str(path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def large_list(grid: TestGrid, entries: int, now: datetime) -> tuple[bytes, list[int]]:
    """A list of this grid's authority with so many random serial numbers, and these. DER."""
    chance = random.Random(entries)
    serials = [chance.getrandbits(158) | 1 << 158 for _ in range(entries)]
    head = b"\x30" + bytes([22 + len(_DATE) + len(_REASON)]) + b"\x02\x14"
    body = b"".join(head + serial.to_bytes(20, "big") + _DATE + _REASON for serial in serials)
    key = Credential.load(grid.ca.directory / "ca.pem", grid.ca.directory / "key.pem").key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    empty = (
        x509.CertificateRevocationListBuilder(grid.ca.certificate.subject, now, now + timedelta(days=7))
        .add_extension(x509.CRLNumber(1_000_000), critical=False)
        .sign(key, hashes.SHA256())
    )
    outer = _der.read_single(empty.public_bytes(serialization.Encoding.DER), _der.SEQUENCE)
    _, algorithm, _ = _der.read_all(outer.content)
    parts = _der.read_all(_der.read_single(empty.tbs_certlist_bytes, _der.SEQUENCE).content)
    listed = [part.encoded for part in parts]
    listed.insert(len(parts) - 1, _der.encode(_der.SEQUENCE, body))
    signed = _der.encode(_der.SEQUENCE, b"".join(listed))
    signature = _der.encode(0x03, b"\0" + key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return _der.encode(_der.SEQUENCE, signed + algorithm.encoded + signature), serials
