"""The credential store, stolen from its host."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from datetime import timedelta

from agents.myproxy.client import MyProxyClient
from agents.myproxy.model import Stored
from agents.myproxy.store import COLUMNS
from agents.myproxy.vault import KEY_BYTES, Vault, WrongPassphrase
from agents.user_interface.drill.ground import Ground, NotHereError
from agents.user_interface.drill.people import VICTIM, proxy_of
from fabric.clock import SystemClock
from fabric.errors import DataCorrupted
from security.credentials import Credential
from security.policy import ValidationPolicy
from security.trust import TrustStore

SCRYPT_LOG2_N = 14
"""As the store has it."""
GUESSES = 8
HOUR = timedelta(hours=1)


async def credential_store_stolen(ground: Ground) -> None:
    """The credential store's data base is stolen, later its key file too. Alone it opens nothing; with the key file,
    credentials without a passphrase are lost and the others cost a guess each. The trail names the owners, whose stored
    proxies are revoked; they go on with new ones."""
    alice, bob = await ground.victim(), await ground.victim()
    folder = ground.state_of(ground.one("myproxy"))
    database, key_file = folder / "myproxy.db", folder / "myproxy.key"
    passphrase = f"correct horse {ground.dice.randrange(10**9)}".encode()
    ground.begin()
    stored = proxy_of(alice.certificate, timedelta(days=2))
    await _client(ground, stored).put("alice", lifetime=timedelta(days=1), renewers="*")
    await _client(ground, bob.proxy).put("bob", passphrase, lifetime=HOUR)
    ground.mark(VICTIM, f"{alice.name} stores a proxy for renewal, {bob.name} one with a passphrase")
    rows = await asyncio.to_thread(_stolen_rows, str(database))
    of_alice, of_bob = rows[alice.subject], rows[bob.subject]
    ground.attack("has a copy of the data base")
    without = Vault(ground.dice.randbytes(KEY_BYTES), SCRYPT_LOG2_N)
    ground.expect(not _opens(without, of_alice, b""), "a credential opens without the key file")
    ground.expect(not _opens(without, of_bob, passphrase), "a credential opens with its passphrase and no key file")
    vault = Vault(key_file.read_bytes(), SCRYPT_LOG2_N)
    ground.attack("has the key file too")
    began = time.monotonic()
    for guess in range(GUESSES):
        opened = await asyncio.to_thread(_opens, vault, of_bob, f"guess {guess}".encode())
        ground.expect(opened is None, "a wrong passphrase opens a credential")
    ground.score.figures["a guess at a passphrase, ms"] = round((time.monotonic() - began) * 1000 / GUESSES, 1)
    lost = _opens(vault, of_alice, b"")
    if lost is None:
        raise NotHereError("the stolen credential does not open with the key file: the drill does not know the format")
    thief = await ground.bearer(proxy_of(lost, HOUR), f"thief of {alice.name}'s stored proxy")
    await ground.serves(thief)
    ground.defend("asks the trail whose credentials were stored, and revokes those without a passphrase")
    trail = await ground.command("audit", "--dn", alice.subject)
    ground.expect(
        any(entry["event"] == "credential.stored" for entry in trail["entries"]),
        "the trail does not name what was stored",
    )
    authority = await ground.authority()
    await authority.revoke(proxy=lost.pem_chain(), reason="keyCompromise")
    await ground.refuses(thief, "PROXY_REVOKED")
    await asyncio.gather(ground.serves(alice), ground.serves(bob))
    got = await _client(ground, None).get("bob", passphrase)
    await ground.serves(await ground.bearer(got, f"{bob.name} by passphrase", VICTIM))


def _client(ground: Ground, credential: Credential | None) -> MyProxyClient:
    endpoint = ground.one("myproxy")
    trust = TrustStore(ground.certificates)
    return MyProxyClient(endpoint.host, endpoint.myproxy, trust, ValidationPolicy(), SystemClock(), credential)


def _stolen_rows(database: str) -> dict[str, Stored]:
    """The newest row of each owner, from a copy of the data base."""
    source, copy = sqlite3.connect(f"file:{database}?mode=ro", uri=True), sqlite3.connect(":memory:")
    try:
        source.backup(copy)
        found = copy.execute(f"select {', '.join(COLUMNS)} from credentials order by stored_at_us").fetchall()
    finally:
        source.close()
        copy.close()
    return {row["owner"]: Stored(**row) for row in (dict(zip(COLUMNS, one, strict=True)) for one in found)}


def _opens(vault: Vault, row: Stored, passphrase: bytes) -> Credential | None:
    try:
        return vault.open(row, passphrase)
    except (WrongPassphrase, DataCorrupted):
        return None
