"""Delegation by certificate request (GridSite delegation, RFC 3820): the receiver makes the key, the delegator signs
it.

Server: `DelegationStore` keeps delegated credentials on disk, `Delegation` is the service in front. Client: `delegate`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from gridfabric.security.v1 import security_pb2 as pb
from gridfabric.security.v1 import security_pb2_grpc

from fabric.clock import Clock, to_us
from fabric.errors import (
    Conflict,
    Exhausted,
    GridError,
    InvalidRequest,
    NotFound,
    Refused,
    Unauthenticated,
    Unavailable,
    from_security,
)
from fabric.logs import Logger
from fabric.rpc import rules
from fabric.rpc.peer import Peer, current_peer
from fabric.rpc.rules import Rule
from fabric.rpc.server import RpcService
from security import certificates, proxies
from security.certificates import PrivateKey, issuer_of, spki
from security.credentials import Credential
from security.errors import CredentialError, SecurityError, os_error_text
from security.files import write_atomic
from security.trust import TrustStore
from security.validation import ValidationPolicy, validate_client_chain

DEFAULT_ID = "default"
DEFAULT_LIFETIME = timedelta(hours=12)
"""Of a delegated proxy; never longer than what it is signed with."""
REQUEST_LIFETIME_S = 600.0
"""From Request to Put."""
MAX_REQUESTS = 4096
MAX_REQUESTS_PER_SUBJECT = 16
"""Open requests; the subject's oldest goes first."""
MAX_PER_SUBJECT = 64
"""Delegated credentials of one subject."""
MAX_CREDENTIALS = 20_000
MAX_CHAIN_BYTES = 64 * 1024
MAX_LISTED = 1_000
MAX_LISTED_JOBS = 100

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True)
class _Waiting:
    subject: str
    delegation_id: str
    key: PrivateKey
    since: float


class DelegationStore:
    """Delegated credentials by (subject, delegation id), mode 0600 below `directory`; they survive a restart.

    Keys of open requests are kept in memory only: after a restart a delegator begins again.
    """

    def __init__(
        self, directory: Path, *, trust: TrustStore, policy: ValidationPolicy, clock: Clock, log: Logger
    ) -> None:
        """Reads what is there; a file that cannot be used is reported and left out. Raises Unavailable."""
        self._directory, self._trust, self._policy, self._clock, self._log = directory, trust, policy, clock, log
        self._waiting: OrderedDict[bytes, _Waiting] = OrderedDict()
        """By public key: two commands of one person may delegate at the same time."""
        self._credentials: dict[tuple[str, str], Credential] = {}
        self._since_us: dict[tuple[str, str], int] = {}
        self._listeners: list[Callable[[str, str], None]] = []
        self.jobs_of: Callable[[str], Sequence[str]] = lambda subject: ()
        """Ids of the jobs under way here that depend on what this subject delegated; the agent sets it."""
        self.stop_jobs: Callable[[str, str, str], Awaitable[object]] | None = None
        """Stops this subject's jobs for this reason, with this sentence; the agent sets it."""
        self._erased: dict[tuple[str, str], str] = {}
        """Why what was here is not any more."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            self._load()
        except OSError as error:
            raise Unavailable(
                "DELEGATIONS_UNAVAILABLE",
                f"delegated credentials in {directory} cannot be read ({os_error_text(error)}); look at its owner",
            ) from error

    def _load(self) -> None:
        for index in sorted(self._directory.glob("*.json")):
            try:
                record = json.loads(index.read_text("utf-8"))
                key = (str(record["subject"]), str(record["delegation_id"]))
                self._credentials[key] = Credential.load(index.with_suffix(".pem"))
                self._since_us[key] = int(record.get("since_us", 0))
            except (SecurityError, ValueError, KeyError, TypeError) as error:
                self._log.warning("delegation.unreadable", path=str(index), detail=str(error))

    def on_change(self, listener: Callable[[str, str], None]) -> None:
        """Call `listener(subject, delegation_id)` after each new or removed credential."""
        self._listeners.append(listener)

    def get(self, subject: str, delegation_id: str = DEFAULT_ID) -> Credential:
        """The delegated credential. Raises NotFound DELEGATION_MISSING, Unauthenticated DELEGATION_EXPIRED."""
        credential = self._credentials.get((subject, delegation_id))
        if credential is None:
            why = self._erased.get((subject, delegation_id))
            raise NotFound(
                "DELEGATION_MISSING",
                f"{subject} has delegated nothing as {delegation_id!r} to this service; delegate a proxy and try again"
                if why is None
                else f"what {subject} delegated as {delegation_id!r} to this service was erased: {why}",
                subject=subject,
                delegation_id=delegation_id,
            )
        if credential.not_after <= self._clock.now():
            raise Unauthenticated(
                "DELEGATION_EXPIRED",
                f"the proxy that {subject} delegated as {delegation_id!r} expired at "
                f"{credential.not_after:%Y-%m-%dT%H:%M:%SZ}; "
                "delegate a new one",
                subject=subject,
                delegation_id=delegation_id,
            )
        return credential

    def all(self) -> list[tuple[str, str, Credential]]:
        """Every (subject, delegation id, credential), expired ones too."""
        return [(subject, name, credential) for (subject, name), credential in self._credentials.items()]

    def since_us(self, subject: str, delegation_id: str) -> int:
        """When it was delegated; 0 if that is not known."""
        return self._since_us.get((subject, delegation_id), 0)

    def request(self, subject: str, delegation_id: str) -> bytes:
        """A new key kept here and its PEM request. Other open requests, also of the same id, stay open."""
        self._forget_old_requests()
        own = [key for key, waiting in self._waiting.items() if waiting.subject == subject]
        if len(own) >= MAX_REQUESTS_PER_SUBJECT:
            del self._waiting[own[0]]
        if len(self._waiting) >= MAX_REQUESTS:
            raise Exhausted(
                "DELEGATIONS_EXHAUSTED", "too many delegations are open here; try again later", retry_after_s=30
            )
        private, request_pem = proxies.new_request()
        self._waiting[spki(private.public_key())] = _Waiting(subject, delegation_id, private, self._clock.monotonic())
        return request_pem

    def put(self, subject: str, delegation_id: str, chain_pem: bytes) -> Credential:
        """Store what the delegator signed, after the checks of a session. Raises InvalidRequest, Unauthenticated,
        Exhausted."""
        self._forget_old_requests()
        key = (subject, delegation_id)
        open_keys = [k for k, one in self._waiting.items() if (one.subject, one.delegation_id) == key]
        if not open_keys:
            raise InvalidRequest(
                "DELEGATION_NOT_REQUESTED",
                f"no key of {subject} waits here for {delegation_id!r} (10 minutes, lost by a restart); call "
                f"Request again",
            )
        signed = _key_of_leaf(chain_pem)
        wanted = signed if signed in open_keys else open_keys[-1]
        try:
            credential = proxies.assemble(self._waiting[wanted].key, chain_pem)
        except CredentialError as error:
            raise InvalidRequest(
                "DELEGATION_WRONG_KEY", f"{error.sentence}; sign the request that was given", **error.facts
            ) from error
        try:
            identity = validate_client_chain(chain_pem, self._trust.snapshot(), self._policy, now=self._clock.now())
        except SecurityError as error:
            raise from_security(error) from error
        if str(identity.subject) != subject or not identity.is_proxy:
            raise InvalidRequest(
                "DELEGATION_WRONG_SUBJECT",
                f"{subject} may delegate only proxies of its own, not {identity.leaf_subject}; sign with your "
                f"own credential",
            )
        self._save(key, credential)
        del self._waiting[wanted]
        return credential

    def renew(self, subject: str, delegation_id: str, credential: Credential, replaces: Credential) -> Credential:
        """Replace a delegated credential by one that this service got for the same subject.

        Raises as `put`, and Conflict DELEGATION_CHANGED when it is no longer `replaces` that is here: what its owner
        did meanwhile, a new delegation or a recall, stays.
        """
        known = self._credentials.get((subject, delegation_id))
        if known is None or known.certificate != replaces.certificate:
            raise Conflict(
                "DELEGATION_CHANGED", f"{subject} delegated anew or took the proxy back meanwhile; that stays as it is"
            )
        try:
            identity = validate_client_chain(
                credential.certificates, self._trust.snapshot(), self._policy, now=self._clock.now()
            )
        except SecurityError as error:
            raise from_security(error) from error
        if str(identity.subject) != subject or not identity.is_proxy:
            raise InvalidRequest(
                "DELEGATION_WRONG_SUBJECT", f"a proxy of {identity.subject} does not renew one of {subject}"
            )
        self._save((subject, delegation_id), credential)
        return credential

    def _save(self, key: tuple[str, str], credential: Credential) -> None:
        if key not in self._credentials:
            self._make_room(key[0])
        stem = self._stem(key)
        try:
            credential.save(stem.with_suffix(".pem"))
            since_us = to_us(self._clock.now())
            record = {"subject": key[0], "delegation_id": key[1], "since_us": since_us}
            write_atomic(stem.with_suffix(".json"), json.dumps(record).encode(), 0o600)
        except OSError as error:
            raise Unavailable(
                "DELEGATIONS_UNAVAILABLE",
                f"the delegated credential cannot be stored ({os_error_text(error)}); try again later",
            ) from error
        self._credentials[key], self._since_us[key] = credential, since_us
        self._erased.pop(key, None)
        self._tell(key)

    def _make_room(self, subject: str) -> None:
        now = self._clock.now()
        for key in [k for k, c in self._credentials.items() if c.not_after <= now and k[0] == subject]:
            self.destroy(*key)
        if sum(k[0] == subject for k in self._credentials) >= MAX_PER_SUBJECT:
            raise Exhausted(
                "DELEGATIONS_EXHAUSTED",
                f"{subject} has {MAX_PER_SUBJECT} delegated credentials here; destroy one first",
            )
        if len(self._credentials) >= MAX_CREDENTIALS:
            for key in [k for k, c in self._credentials.items() if c.not_after <= now]:
                self.destroy(*key)
        if len(self._credentials) >= MAX_CREDENTIALS:
            raise Exhausted(
                "DELEGATIONS_EXHAUSTED", "this service holds too many delegated credentials", retry_after_s=60
            )

    def destroy(self, subject: str, delegation_id: str) -> None:
        """Erase a credential and open requests. Idempotent."""
        key = (subject, delegation_id)
        for open_key in [k for k, one in self._waiting.items() if (one.subject, one.delegation_id) == key]:
            del self._waiting[open_key]
        self._since_us.pop(key, None)
        if self._credentials.pop(key, None) is None:
            return
        stem = self._stem(key)
        stem.with_suffix(".pem").unlink(missing_ok=True)
        stem.with_suffix(".json").unlink(missing_ok=True)
        self._tell(key)

    async def erase(self, subject: str, delegation_id: str, credential: Credential, refusal: GridError) -> None:
        """Nobody will believe this credential again: stop the jobs that depend on it, then erase it. Idempotent."""
        key = (subject, delegation_id)
        if self._credentials.get(key) is not credential:
            return  # there is another by now
        if self.stop_jobs is not None:
            await self.stop_jobs(subject, refusal.reason, refusal.sentence)
        if self._credentials.get(key) is credential:
            self.destroy(subject, delegation_id)
            while len(self._erased) >= MAX_CREDENTIALS:
                del self._erased[next(iter(self._erased))]
            self._erased[key] = refusal.sentence
            serial = f"{credential.certificate.serial_number:X}"
            self._log.audit("delegation.recalled", owner=subject, serials=[serial], sentence=refusal.sentence)

    def _tell(self, key: tuple[str, str]) -> None:
        for listener in self._listeners:
            listener(*key)

    def _stem(self, key: tuple[str, str]) -> Path:
        return self._directory / hashlib.sha256("\0".join(key).encode()).hexdigest()[:40]

    def _forget_old_requests(self) -> None:
        oldest = self._clock.monotonic() - REQUEST_LIFETIME_S
        while self._waiting and next(iter(self._waiting.values())).since < oldest:
            self._waiting.popitem(last=False)


def _key_of_leaf(chain_pem: bytes) -> bytes:
    """The public key of a chain's first certificate; nothing if that cannot be read."""
    try:
        return spki(certificates.public_key_of(certificates.load_chain(chain_pem)[0]))
    except SecurityError:
        return b""


class Delegation(security_pb2_grpc.DelegationServicer):
    """The service: everybody manages the credentials of their own subject only."""

    def __init__(self, store: DelegationStore, log: Logger) -> None:
        self._store, self._log = store, log

    async def Request(self, request: pb.DelegationRequest, context: Any) -> pb.DelegationRequestResponse:
        """A certificate request."""
        peer = current_peer(context)
        return pb.DelegationRequestResponse(
            request_pem=self._store.request(peer.subject, checked_id(request.delegation_id))
        )

    async def Put(self, request: pb.DelegationPutRequest, context: Any) -> pb.DelegationPutResponse:
        """The signed proxy."""
        peer = current_peer(context)
        name = checked_id(request.delegation_id)
        if len(request.chain_pem) > MAX_CHAIN_BYTES:
            raise InvalidRequest("CHAIN_TOO_LONG", f"the chain is longer than the {MAX_CHAIN_BYTES} bytes accepted")
        credential = self._store.put(peer.subject, name, request.chain_pem)
        self._log.audit(
            "delegation.stored",
            peer=peer.subject,
            delegation_id=name,
            expires_at=f"{credential.not_after:%Y-%m-%dT%H:%M:%SZ}",
        )
        return pb.DelegationPutResponse(expires_at_us=to_us(credential.not_after))

    async def Show(self, request: pb.DelegationShowRequest, context: Any) -> pb.DelegationShowResponse:
        """Until when."""
        credential = self._store.get(current_peer(context).subject, checked_id(request.delegation_id))
        return pb.DelegationShowResponse(expires_at_us=to_us(credential.not_after), subject=str(credential.subject))

    async def Destroy(self, request: pb.DelegationDestroyRequest, context: Any) -> pb.DelegationDestroyResponse:
        """Erase."""
        peer = current_peer(context)
        name = checked_id(request.delegation_id)
        self._store.destroy(peer.subject, name)
        self._log.audit("delegation.destroyed", peer=peer.subject, delegation_id=name)
        return pb.DelegationDestroyResponse()

    async def List(self, request: pb.DelegationListRequest, context: Any) -> pb.DelegationListResponse:
        """The ledger."""
        peer = current_peer(context)
        subject = request.subject if peer.is_administrator else self._own(peer, request.subject)
        return pb.DelegationListResponse(delegations=self._entries(subject))

    async def Recall(self, request: pb.DelegationRecallRequest, context: Any) -> pb.DelegationRecallResponse:
        """Erase, and stop what depends on it."""
        peer = current_peer(context)
        subject = (request.subject if peer.is_administrator else "") or self._own(peer, request.subject)
        recalled = self._entries(subject)
        for entry in recalled:
            self._store.destroy(subject, entry.delegation_id)
        if self._store.stop_jobs is not None:
            sentence = f"the proxy that {subject} delegated was recalled"
            await self._store.stop_jobs(subject, "DELEGATION_RECALLED", sentence)
        self._log.audit(
            "delegation.recalled", peer=peer.subject, owner=subject, serials=[entry.serial for entry in recalled]
        )
        return pb.DelegationRecallResponse(recalled=recalled)

    def _own(self, peer: Peer, subject: str) -> str:
        if subject not in ("", peer.subject):
            raise Refused(
                "NOT_OWNER", f"{peer.subject} may see and recall only its own delegations, not those of {subject[:200]}"
            )
        return peer.subject

    def _entries(self, subject: str) -> list[pb.Delegated]:
        """Of a subject; of everybody for an empty one."""
        found: list[pb.Delegated] = []
        for owner, name, credential in self._store.all():
            if subject not in ("", owner) or len(found) >= MAX_LISTED:
                continue
            jobs = self._store.jobs_of(owner)
            found.append(
                pb.Delegated(
                    subject=owner,
                    delegation_id=name,
                    serial=f"{credential.certificate.serial_number:X}",
                    issuer=str(issuer_of(credential.certificate)),
                    since_us=self._store.since_us(owner, name),
                    expires_at_us=to_us(credential.not_after),
                    job_ids=jobs[:MAX_LISTED_JOBS],
                    jobs=len(jobs),
                )
            )
        return found


def delegation_service(store: DelegationStore, log: Logger) -> RpcService:
    """The service with its rules: any session, and the caller's own credentials; operators see and recall others'."""
    methods: dict[str, Rule] = dict.fromkeys(("Request", "Put", "Show", "Destroy", "List", "Recall"), DELEGATORS)
    add = cast("Any", security_pb2_grpc).add_DelegationServicer_to_server
    return RpcService(Delegation(store, log), add, methods)


DELEGATORS = rules.any_of(rules.user, rules.administrator, rules.any_service)
"""Whoever has a standing here."""


def checked_id(delegation_id: str) -> str:
    """The id, or the default for an empty one. Raises InvalidRequest DELEGATION_ID_INVALID."""
    if not delegation_id:
        return DEFAULT_ID
    if not _ID.match(delegation_id):
        raise InvalidRequest(
            "DELEGATION_ID_INVALID", "a delegation id has 1 to 64 letters, digits, dots, dashes or underscores"
        )
    return delegation_id


async def delegate(
    channel: Any,
    credential: Credential,
    delegation_id: str = DEFAULT_ID,
    *,
    limited: bool = False,
    lifetime: timedelta = DEFAULT_LIFETIME,
    clock: Clock | None = None,
) -> int:
    """Give the service at the other end of `channel` a proxy of `credential`; returns its end in microseconds UTC.

    `channel` must have been got for the same subject. The private key is made there and stays there. Raises GridError.
    """
    stub: Any = security_pb2_grpc.DelegationStub(channel)
    asked = await stub.Request(pb.DelegationRequest(delegation_id=delegation_id))
    try:
        chain = proxies.sign_request(
            asked.request_pem, credential, lifetime=lifetime, now=(clock or channel.clock).now(), limited=limited
        )
    except SecurityError as error:
        raise from_security(error) from error
    answer = await stub.Put(pb.DelegationPutRequest(delegation_id=delegation_id, chain_pem=chain))
    return answer.expires_at_us


async def delegation_remaining_s(channel: Any, delegation_id: str = DEFAULT_ID) -> float:
    """Seconds that an earlier delegation still lives there; 0 if there is none."""
    stub: Any = security_pb2_grpc.DelegationStub(channel)
    try:
        shown = await stub.Show(pb.DelegationShowRequest(delegation_id=delegation_id))
    except GridError as error:
        if error.reason in ("DELEGATION_MISSING", "DELEGATION_EXPIRED"):
            return 0.0
        raise
    return max(0.0, (shown.expires_at_us - to_us(channel.clock.now())) / 1e6)
