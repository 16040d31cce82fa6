"""What the credential store does with a request, apart from the bytes: who may what, in steps that each refuse.

Every refusal is a GridError; its sentence goes to the client and, with its facts, to the audit log.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agents.myproxy import store as rows
from agents.myproxy.config import MyProxyConfig
from agents.myproxy.guard import Attempt, Guard, TooManyAtOnceError
from agents.myproxy.model import Stored
from agents.myproxy.policy import Client, fits, permits
from agents.myproxy.protocol import Listed, Proof, Request
from agents.myproxy.vault import Vault, WrongPassphrase
from fabric.clock import to_us, utc_text
from fabric.context import AgentContext
from fabric.errors import (
    Conflict,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Refused,
    Unauthenticated,
    from_security,
)
from fabric.rpc.peer import Standing
from fabric.store import Store
from security import certificates, proxies
from security.certificates import PrivateKey
from security.credentials import Credential, generate_key, verify_signature
from security.errors import CredentialError, SecurityError
from security.validation import Identity, validate_client_chain

T = TypeVar("T")

DERIVATIONS = 2
"""Passphrases stretched at one moment: each takes a core and 16 MiB."""
MAX_WAITING = 32
"""Requests that wait for that; more are told to come back."""
PLACE_TIMEOUT_S = 15.0
"""Longest wait for other attempts of the same peer, or at the same user name, to be over."""
CLOCK_TOLERANCE = timedelta(minutes=10)
"""A week's credential made by a client whose clock is ahead is not too long."""

Ask = Callable[[str], Awaitable[Proof]]
"""Sends a challenge to the client and gives its answer."""


@dataclass(frozen=True)
class Grant:
    """A GET that was permitted: what is signed with, and how."""

    row: Stored
    credential: Credential
    lifetime: timedelta
    is_limited: bool
    how: str
    """`passphrase`, `trusted retriever` or `renewal`."""


class Keeper:
    """The one place that reads and changes the stored credentials."""

    def __init__(self, config: MyProxyConfig, store: Store, vault: Vault, context: AgentContext) -> None:
        self.config, self._store, self._vault, self._context = config, store, vault, context
        self._guard = Guard(config)
        self._stretching = asyncio.Semaphore(DERIVATIONS)
        self._waiting = 0
        self._judged = asyncio.Condition()
        self.held = 0
        self.delegated = 0
        self.stored = 0

    # -- who is there ------------------------------------------------------------------------------------------------

    async def identify(self, chain: Sequence[x509.Certificate], address: str) -> Client:
        """Who shows this chain, judged like any client of this grid; nobody for an empty one. Raises GridError."""
        if not chain:
            return Client(address)
        identity = self._validated(chain)
        return Client(address, identity, await self._standing(identity, address, unmapped=True))

    def _validated(self, chain: Sequence[x509.Certificate]) -> Identity:
        context = self._context
        try:
            return validate_client_chain(chain, context.trust.snapshot(), context.policy, context.clock.now())
        except SecurityError as error:
            raise from_security(error) from error

    async def _standing(self, identity: Identity, address: str, *, unmapped: bool) -> Standing:
        """What the person is here, and not banned.

        Attributes give nothing here, they only can be banned: a chain whose attributes do not verify (those of a stored
        proxy end before it does) counts as one without.
        """
        context = self._context
        try:
            attributes = context.voms.attributes_of(
                identity, context.trust.snapshot(), context.policy, context.clock.now()
            )
        except SecurityError:
            attributes = ()
        by_groups = context.settings.fabric.mapping == "vo-groups"
        return await context.judge.admit(
            identity, unmapped=unmapped or by_groups, attributes=attributes, address=address
        )

    def _owner_of_request(self, client: Client, what: str) -> Identity:
        if client.identity is None:
            raise Unauthenticated(
                "CERTIFICATE_MISSING", f"{what} needs your certificate or a proxy; make one with grid-proxy-init"
            )
        return client.identity

    def _full_owner(self, client: Client, what: str) -> Identity:
        identity = self._owner_of_request(client, what)
        if client.is_limited:
            raise Refused(
                "LIMITED_PROXY",
                f"{identity.leaf_subject} is a limited proxy, which may not {what}; use a full proxy",
                subject=client.name,
            )
        return identity

    # -- PUT ---------------------------------------------------------------------------------------------------------

    async def begin_put(self, client: Client, request: Request) -> PrivateKey:
        """Everything that can be known before the delegation; returns the key for it. Raises GridError."""
        config = self.config
        # 1. who stores
        identity = self._full_owner(client, "store a credential")
        if not permits(config.accepted, client):
            raise Refused(
                "NOT_ACCEPTED", f"{client.name} may not store credentials here; ask the site", subject=client.name
            )
        if config.members_only:
            await self._standing(identity, client.address, unmapped=False)
        # 2. under which secret
        if request.passphrase:
            self._require_passphrase(request.passphrase, request.username)
            if request.renewers or request.trusted_retrievers:
                raise InvalidRequest(
                    "PASSPHRASE_UNWANTED",
                    "a credential for renewers (-R, -A) or trusted retrievers (-Z) has no passphrase, since these know "
                    "none; use -n, or leave them out",
                )
        elif not request.renewers and not request.trusted_retrievers and not config.default_renewers:
            raise InvalidRequest(
                "PASSPHRASE_MISSING",
                "a credential without a passphrase could be retrieved by nobody; give one, or name renewers (-R, -A) "
                "or trusted retrievers (-Z)",
            )
        # 3. is there room
        await self._store.read(lambda connection: self._require_room(connection, client.name, request))
        return await asyncio.to_thread(generate_key, config.key_type)

    def _require_passphrase(self, passphrase: bytes, username: str) -> None:
        shortest = self.config.passphrase_min_length
        if len(passphrase) < shortest:
            raise InvalidRequest(
                "PASSPHRASE_TOO_SHORT", f"the passphrase is shorter than the {shortest} bytes demanded here"
            )
        if passphrase == username.encode():
            raise InvalidRequest("PASSPHRASE_TOO_SIMPLE", "the passphrase is the user name; choose another")

    def _require_room(self, connection: sa.Connection, owner: str, request: Request) -> None:
        known = rows.find(connection, request.username, request.name)
        if known is not None:
            if known.owner != owner:
                raise Refused(
                    "NAME_TAKEN",
                    f"the user name {request.username!r} is in use here by somebody else than {owner}; choose another "
                    "with -l, or another name of the credential with -k",
                    subject=owner,
                )
            return
        if rows.count(connection, owner) >= self.config.max_credentials_per_owner:
            raise Exhausted(
                "CREDENTIALS_EXHAUSTED",
                f"{owner} has {self.config.max_credentials_per_owner} credentials here; destroy one first",
                subject=owner,
            )
        if rows.count(connection) >= self.config.max_credentials:
            raise Exhausted("CREDENTIALS_EXHAUSTED", "the credential store is full; ask the site", retry_after_s=3600)

    async def finish_put(
        self, client: Client, request: Request, key: PrivateKey, chain: Sequence[x509.Certificate]
    ) -> Stored:
        """Store what was delegated; it is on disk when this returns. Raises GridError."""
        now = self._context.clock.now()
        try:
            credential = proxies.assemble(key, certificates.pem(chain))
        except CredentialError as error:
            raise InvalidRequest(
                "DELEGATION_WRONG_KEY", f"{error.sentence}; sign the request that was given", **error.facts
            ) from error
        identity = self._validated(chain)
        if str(identity.subject) != client.name or not identity.is_proxy:
            raise InvalidRequest(
                "DELEGATION_WRONG_SUBJECT",
                f"{client.name} may store only proxies of its own, not {identity.leaf_subject}",
                subject=client.name,
            )
        longest = timedelta(seconds=self.config.max_stored_lifetime_s)
        if credential.not_after > now + longest + CLOCK_TOLERANCE:
            raise InvalidRequest(
                "LIFETIME_TOO_LONG",
                f"this credential lives until {utc_text(credential.not_after)}, longer than the "
                f"{longest.total_seconds() / 3600:g} hours kept here; use -c {longest.total_seconds() // 3600:g}",
                subject=client.name,
            )
        row = Stored(
            username=request.username,
            name=request.name,
            owner=client.name,
            description=request.description,
            retrievers=request.retrievers,
            trusted_retrievers=request.trusted_retrievers,
            renewers=request.renewers,
            max_lifetime_s=request.lifetime_s,
            chain_pem=credential.pem_chain(),
            not_before_us=to_us(max(c.not_valid_before_utc for c in credential.certificates)),
            not_after_us=to_us(credential.not_after),
            stored_at_us=to_us(now),
            has_passphrase=bool(request.passphrase),
        )
        sealed = await self._stretched(lambda: self._vault.seal(row, key, request.passphrase))

        def put(connection: sa.Connection) -> int:
            self._require_room(connection, client.name, request)
            rows.put(connection, sealed)
            return rows.count(connection)

        self.held = await self._store.write(put)
        self.stored += 1
        self._context.log.audit(
            "credential.stored",
            **_about(client, sealed),
            until=utc_text(credential.not_after),
            renewers=row.renewers or None,
            trusted_retrievers=row.trusted_retrievers or None,
            encrypted_with="passphrase" if row.has_passphrase else "key file",
        )
        return sealed

    # -- GET ---------------------------------------------------------------------------------------------------------

    async def begin_get(self, client: Client, request: Request, ask: Ask) -> Grant:
        """Everything that decides whether a proxy is given. Raises GridError."""
        row = await self._row(request)
        # 1. who retrieves
        limited = client.is_limited
        if row is not None and not row.has_passphrase and self._names(row.trusted_retrievers, client, row):
            if not permits(self.config.trusted_retrievers, client):
                raise _logon_refused(request, "not a trusted retriever of this site")
            how = "trusted retriever"
            credential = await asyncio.to_thread(self._vault.open, row, b"")
        elif row is not None and not row.has_passphrase and self._renews(client, row):
            if not permits(self.config.renewers, client):
                raise _logon_refused(request, "not a renewer of this site")
            if request.passphrase:
                raise _logon_refused(request, "a passphrase for a credential that has none")
            limited = await self._prove(row, client, ask) or limited
            how = "renewal"
            credential = await asyncio.to_thread(self._vault.open, row, b"")
        else:
            row, credential = await self._by_passphrase(client, request, row)
            how = "passphrase"
        # 2. is the owner still good: revocation, bans (of the network, too), membership
        identity = self._validated(credential.certificates)
        await self._standing(identity, client.address, unmapped=not self.config.members_only)
        # 3. for how long
        return Grant(row, credential, self._lifetime(row, request), limited, how)

    def _names(self, pattern: str, client: Client, row: Stored) -> bool:
        """The owner named this client. Nobody renews with its own certificate: a stolen proxy would live for ever."""
        return bool(pattern) and client.identity is not None and client.name != row.owner and fits(pattern, client.name)

    def _renews(self, client: Client, row: Stored) -> bool:
        if row.renewers or row.trusted_retrievers:
            return self._names(row.renewers, client, row)
        return client.name != row.owner and permits(self.config.default_renewers, client)

    async def _by_passphrase(self, client: Client, request: Request, row: Stored | None) -> tuple[Stored, Credential]:
        if not request.passphrase:
            raise _logon_refused(request, "no passphrase")
        credential = await self._opened(client, request, row)
        if row is None or credential is None:
            why = "unknown" if row is None else "wrong passphrase" if row.has_passphrase else "renewal only"
            raise _logon_refused(request, why)
        # the secret was right, yet the answer must not say so
        if not permits(self.config.retrievers, client):
            raise _logon_refused(request, "not a retriever of this site")
        if row.retrievers and not fits(row.retrievers, client.name):
            raise _logon_refused(request, "not a retriever of this credential")
        return row, credential

    async def _attempt(self, client: Client, request: Request, row: Stored | None) -> Attempt:
        """A place among those whose secret is being judged. Raises Exhausted."""
        peers = [client.address] if client.identity is None else [client.address, client.name]
        is_owner = row is not None and client.name == row.owner
        try:
            async with asyncio.timeout(PLACE_TIMEOUT_S), self._judged:
                while True:
                    try:
                        now = self._context.clock.monotonic()
                        return self._guard.attempt(request.username, peers, now, is_owner=is_owner)
                    except TooManyAtOnceError:
                        await self._judged.wait()
        except TimeoutError:
            raise _busy() from None

    async def _opened(self, client: Client, request: Request, row: Stored | None) -> Credential | None:
        """The credential if the passphrase is right. Takes equally long if there is none. Counts. Raises Exhausted."""

        def look() -> Credential | None:
            if row is None or not row.has_passphrase:
                self._vault.waste(request.passphrase)
                return None
            try:
                return self._vault.open(row, request.passphrase)
            except WrongPassphrase:
                return None

        attempt = await self._attempt(client, request, row)
        credential: Credential | None = None
        try:
            credential = await self._stretched(look)
        except GridError:
            attempt.withdrawn()
            raise
        except BaseException:
            attempt.failed(self._context.clock.monotonic())  # who leaves before the answer has guessed all the same
            raise
        else:
            if credential is None:
                attempt.failed(self._context.clock.monotonic())
            else:
                attempt.succeeded()
        finally:
            async with self._judged:
                self._judged.notify_all()
        return credential

    async def _stretched(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            async with self._stretching:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1

    async def _prove(self, row: Stored, client: Client, ask: Ask) -> bool:
        """The client holds a proxy of the owner that is good now; whether that is a limited one. Raises GridError."""
        nonce = secrets.token_hex(16)
        proof = await ask(nonce)
        try:
            verify_signature(proof.chain[0], proof.signature, nonce.encode())
        except SecurityError as error:
            raise from_security(error) from error
        identity = self._validated(proof.chain)
        await self._standing(identity, client.address, unmapped=True)
        if str(identity.subject) != row.owner:
            raise Refused(
                "RENEWAL_NOT_OWNER",
                f"the proof is of {identity.subject}, who is not the owner of the credential to be renewed",
                subject=str(identity.subject),
            )
        return identity.is_limited

    def _lifetime(self, row: Stored, request: Request) -> timedelta:
        wanted = request.lifetime_s or self.config.delegated_lifetime_s
        return timedelta(seconds=min(wanted, row.max_lifetime_s or wanted, self.config.max_delegated_lifetime_s))

    def sign(self, client: Client, grant: Grant, csr: bytes) -> tuple[x509.Certificate, ...]:
        """The chain for the client's request. Raises GridError."""
        now = self._context.clock.now()
        try:
            pem = proxies.sign_request(
                csr, grant.credential, lifetime=grant.lifetime, now=now, limited=grant.is_limited
            )
            chain = certificates.load_chain(pem)
        except SecurityError as error:
            raise from_security(error) from error
        self.delegated += 1
        self._context.log.audit(
            "credential.delegated", **_about(client, grant.row), how=grant.how, limited=grant.is_limited,
            serial=f"{chain[0].serial_number:X}", until=utc_text(chain[0].not_valid_after_utc),
        )  # fmt: skip
        return chain

    async def retrieve(self, client: Client, request: Request) -> bytes:
        """Certificate, key encrypted with the passphrase, and chain, as PEM; where the site permits that at all."""
        # 1. who may have keys
        if not permits(self.config.key_retrievers, client):
            raise Refused(
                "COMMAND_REFUSED",
                "private keys do not leave this credential store for you; get a proxy with myproxy-logon",
                subject=client.name,
            )
        self._full_owner(client, "retrieve a private key")
        # 2. the passphrase, 3. the owner
        row, credential = await self._by_passphrase(client, request, row=await self._row(request))
        identity = self._validated(credential.certificates)
        await self._standing(identity, client.address, unmapped=not self.config.members_only)
        encrypted = credential.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(request.passphrase),
        )
        self._context.log.audit("credential.retrieved", **_about(client, row))
        return certificates.pem([credential.certificate]) + encrypted + certificates.pem(credential.chain)

    async def _row(self, request: Request) -> Stored | None:
        return await self._store.read(lambda connection: rows.find(connection, request.username, request.name))

    # -- the owner's other requests ----------------------------------------------------------------------------------

    async def info(self, client: Client, request: Request) -> list[Listed]:
        """What the client has under this user name; an operator sees everybody's. Raises GridError."""
        self._owner_of_request(client, "a list of your credentials")
        owner = None if client.standing.is_administrator else client.name
        found = await self._store.read(lambda connection: rows.of_user(connection, request.username, owner))
        if request.name:
            found = [row for row in found if row.name == request.name]
        if not found:
            raise _nothing(client, request)
        return [
            Listed(
                row.name, row.description, row.not_before_us // 1_000_000, row.not_after_us // 1_000_000, row.owner,
                row.retrievers, row.trusted_retrievers, row.renewers,
            )
            for row in found
        ]  # fmt: skip

    async def destroy(self, client: Client, request: Request) -> None:
        """Erase one credential of the client; an operator anybody's. Raises GridError."""
        self._full_owner(client, "destroy a credential")

        def erase(connection: sa.Connection) -> tuple[Stored, int]:
            row = rows.find(connection, request.username, request.name)
            if row is None or (row.owner != client.name and not client.standing.is_administrator):
                raise _nothing(client, request)
            rows.erase(connection, request.username, request.name)
            return row, rows.count(connection)

        row, self.held = await self._store.write(erase)
        self._context.log.audit("credential.destroyed", **_about(client, row))

    async def change_passphrase(self, client: Client, request: Request) -> None:
        """Seal one credential of the client anew. Raises GridError."""
        self._full_owner(client, "change a passphrase")
        self._require_passphrase(request.new_passphrase, request.username)
        row = await self._row(request)
        if row is None or row.owner != client.name:
            raise _nothing(client, request)
        if not row.has_passphrase:
            raise Conflict(
                "PASSPHRASE_UNWANTED",
                "this credential is for renewers or trusted retrievers and has no passphrase; store it again with one",
                subject=client.name,
            )
        credential = await self._opened(client, request, row)
        if credential is None:
            raise Refused(
                "PASSPHRASE_WRONG", "the current passphrase is not right; it stays as it is", subject=client.name
            )
        known, key = row, credential.key
        sealed = await self._stretched(lambda: self._vault.seal(known, key, request.new_passphrase))

        def put(connection: sa.Connection) -> None:
            now = rows.find(connection, request.username, request.name)
            if now is None or now.sealed != known.sealed:
                raise Conflict("CREDENTIAL_CHANGED", "this credential was changed or destroyed meanwhile; try again")
            rows.put(connection, sealed)

        await self._store.write(put)
        self._context.log.audit("credential.passphrase_changed", **_about(client, row))

    # -- time --------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Before the port opens."""
        self.held = self._store.read_sync(rows.count)

    async def sweep(self) -> None:
        """Erase what has ended."""
        now_us = to_us(self._context.clock.now())
        for username, name, owner in await self._store.write(lambda connection: rows.expired(connection, now_us)):
            self._context.log.audit("credential.expired", user=username, name=name, owner=owner)
        self.held = await self._store.read(rows.count)

    async def watch(self) -> None:
        """For ever."""
        while True:
            await self.sweep()
            await asyncio.sleep(self.config.sweep_s)


def _about(client: Client, row: Stored) -> dict[str, object]:
    return {
        "user": row.username, "name": row.name or None, "owner": row.owner, "peer": client.name,
        "address": client.address,
    }  # fmt: skip


def _logon_refused(request: Request, why: str) -> Refused:
    """The same for everybody who may not know more; `why` is for the audit log."""
    return Refused(
        "LOGON_REFUSED",
        f"no proxy is given for the user name {request.username!r}: nothing is stored for it, or the passphrase is "
        "wrong, or you may not retrieve it; its owner sees it with myproxy-info",
        why=why,
    )


def _busy() -> Exhausted:
    return Exhausted(
        "CREDENTIAL_STORE_BUSY", "the credential store has too many requests now; try again", retry_after_s=2
    )


def _nothing(client: Client, request: Request) -> NotFound:
    named = f" with the name {request.name!r}" if request.name else ""
    return NotFound(
        "CREDENTIAL_UNKNOWN",
        f"no credential of {client.name} is stored here for the user name {request.username!r}{named}; "
        "store one with myproxy-init",
        subject=client.name,
    )
