"""The SecurityContext service: from a proxy chain and a proof to a session, and the judgement of sessions again."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from gridfabric.security.v1 import security_pb2 as pb
from gridfabric.security.v1 import security_pb2_grpc

from fabric.clock import Clock, to_us
from fabric.errors import Exhausted, GridError, InvalidRequest, Unauthenticated, from_security
from fabric.ids import unique_id
from fabric.logs import Logger
from fabric.rpc.peer import Authoriser, Peer, Standing, current_peer
from fabric.rpc.sessions import Nonces, Session, SessionTable
from fabric.voms_servers import VomsServers
from security import certificates
from security.credentials import Credential
from security.errors import SecurityError
from security.session import check_proof
from security.trust import TrustStore
from security.validation import ChainInput, Identity, ValidationPolicy, validate_client_chain
from security.voms import VomsAttributes

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

MAX_CHAIN_BYTES = 64 * 1024
"""Of a chain in Establish: ten certificates with VOMS attributes are below 32 KiB."""
MAX_WAITING = 64
"""Establish calls that wait for the member lists at one moment."""
MAX_SHOWN = 4
"""Server certificates for which proofs are accepted: the one in use and those before it."""
JUDGED_PER_TURN = 8
"""Sessions judged before others may run: some milliseconds."""


class SecurityContext(security_pb2_grpc.SecurityContextServicer):
    """Opens sessions, and closes those that would not be opened any more."""

    def __init__(
        self,
        *,
        credential: Credential,
        sessions: SessionTable,
        trust: TrustStore,
        policy: ValidationPolicy,
        authoriser: Authoriser,
        clock: Clock,
        log: Logger,
        session_lifetime_s: float,
        admits_unmapped: bool,
        voms: VomsServers | None = None,
    ) -> None:
        """Without `voms` no attribute certificate is believed or looked at."""
        self._shown = [credential]
        """What clients may have seen, newest first: connections outlive a renewal."""
        self._sessions, self._trust, self._policy, self._authoriser = sessions, trust, policy, authoriser
        self._clock, self._log, self._voms = clock, log, voms
        self._lifetime = timedelta(seconds=session_lifetime_s)
        self._admits_unmapped = admits_unmapped
        self._nonces = Nonces(clock)
        self._waiting = 0

    def use(self, credential: Credential) -> None:
        """The server shows this to new connections. Proofs for what older ones saw count while that is good itself."""
        self._shown = [credential, *self._shown][:MAX_SHOWN]

    async def Begin(self, request: pb.BeginRequest, context: ServicerContext[Any, Any]) -> pb.BeginResponse:
        """A nonce."""
        return pb.BeginResponse(nonce=self._nonces.issue())

    async def Establish(self, request: pb.EstablishRequest, context: ServicerContext[Any, Any]) -> pb.EstablishResponse:
        """Nonce, chain, proof, standing: each checked in this order, then the session."""
        if len(request.chain_pem) > MAX_CHAIN_BYTES:
            raise InvalidRequest(
                "CHAIN_TOO_LONG",
                f"the chain has {len(request.chain_pem)} bytes, more than the {MAX_CHAIN_BYTES} accepted",
            )
        self._nonces.check(request.nonce)
        identity, attributes = self._verify(request)
        self._nonces.spend(request.nonce)  # no await since the check: of two equal calls one is refused
        session = await self._open(identity, attributes, _address(context.peer()))
        peer = session.peer
        return pb.EstablishResponse(
            session=session.token,
            expires_at_us=to_us(session.expires_at),
            subject=peer.subject,
            account=peer.account,
        )

    async def open_for(self, chain: ChainInput, address: str) -> Session:
        """A session for who has proved a chain by another way than Establish, in a TLS handshake. Close it in the
        end. Raises GridError as Establish does."""
        try:
            identity, attributes = self._judge_chain(chain)
        except SecurityError as error:
            raise from_security(error) from error
        return await self._open(identity, attributes, address)

    async def _open(self, identity: Identity, attributes: tuple[VomsAttributes, ...], address: str) -> Session:
        standing = await self._admit(identity, attributes, address)
        peer = Peer(str(identity.subject), identity, standing, unique_id(), identity.is_limited, attributes, address)
        ends = [identity.not_after, self._clock.now() + self._lifetime, *(found.not_after for found in attributes)]
        session = self._sessions.open(peer, min(ends))
        self._log.audit(
            "session.opened",
            **peer.trail,
            leaf=str(identity.leaf_subject),
            account=standing.account or None,
            limited=peer.is_limited or None,
            expires_at=f"{session.expires_at:%Y-%m-%dT%H:%M:%SZ}",
            warnings=list(identity.warnings) or None,
        )
        return session

    def _verify(self, request: pb.EstablishRequest) -> tuple[Identity, tuple[VomsAttributes, ...]]:
        try:
            # The proof first: it is cheap, and shows that the chain is the caller's own and not one found somewhere.
            chain = certificates.load_chain(request.chain_pem)
            self._check_proof(chain[0], request)
            return self._judge_chain(chain)
        except SecurityError as error:
            raise from_security(error) from error

    def _check_proof(self, leaf: x509.Certificate, request: pb.EstablishRequest) -> None:
        for number, shown in enumerate(self._shown, 1):
            seen = shown.certificate.public_bytes(Encoding.DER)
            try:
                return check_proof(leaf, request.proof, request.nonce, seen, request.chain_pem)
            except SecurityError:
                if number == len(self._shown):
                    raise

    def _judge_chain(self, chain: ChainInput) -> tuple[Identity, tuple[VomsAttributes, ...]]:
        """The chain by all rules, then the attribute certificates in it. Raises SecurityError."""
        trust, now = self._trust.snapshot(), self._clock.now()
        identity = validate_client_chain(chain, trust, self._policy, now=now)
        if self._voms is None:
            return identity, ()
        return identity, self._voms.attributes_of(identity, trust, self._policy, now)

    async def _admit(self, identity: Identity, attributes: tuple[VomsAttributes, ...], address: str) -> Standing:
        if self._waiting >= MAX_WAITING:
            raise Exhausted(
                "SESSIONS_EXHAUSTED", "too many sessions are being established here; try again", retry_after_s=1
            )
        self._waiting += 1
        try:
            return await self._authoriser.admit(
                identity, unmapped=self._admits_unmapped, attributes=attributes, address=address
            )
        finally:
            self._waiting -= 1

    def judge_named(self) -> None:
        """As `judge_again`, of those alone whom a change of trust names: nobody else's sessions take time before theirs
        are closed."""
        trust = self._trust.snapshot()
        self._shown = [one for one in self._shown if not trust.names(one.certificates) or self._may_be_shown(one)]
        for session in self._sessions:
            identity = session.peer.identity
            if identity is None:
                continue
            signers = (attributes.signers for attributes in session.peer.attributes)
            if any(trust.names(chain) for chain in (identity.certificates, *signers)):
                self._judge_session(session, chains=True)

    async def judge_again(self, *, chains: bool = True) -> int:
        """Close every session that would not be opened now; returns how many. Lets others run in between. Without
        `chains` these are not verified again: nothing has changed but bans, members and VOs.
        """
        if chains:
            self._shown = [one for one in self._shown if self._may_be_shown(one)]
        closed = 0
        for number, session in enumerate(self._sessions):
            if number % JUDGED_PER_TURN == JUDGED_PER_TURN - 1:
                await asyncio.sleep(0)
            closed += self._judge_session(session, chains=chains)
        return closed

    def _judge_session(self, session: Session, *, chains: bool) -> bool:
        """True if it had to be closed."""
        reason = self._objection(session, chains=chains)
        if reason is None or session.closed_because is not None:
            return False
        self._sessions.close(session, reason)
        return True

    def _may_be_shown(self, shown: Credential) -> bool:
        """The one in use by all means: clients judge it themselves."""
        if shown is self._shown[0]:
            return True
        try:
            validate_client_chain(shown.certificates, self._trust.snapshot(), self._policy, now=self._clock.now())
        except SecurityError:
            return False
        return True

    def _objection(self, session: Session, *, chains: bool) -> GridError | None:
        identity, attributes = session.peer.identity, session.peer.attributes
        if identity is None:
            return None
        try:
            if chains:
                identity, attributes = self._judge_chain(identity.certificates)
            standing = self._authoriser.judge(
                identity, unmapped=self._admits_unmapped, attributes=attributes, address=session.peer.address
            )
        except SecurityError as error:
            return from_security(error)
        except GridError as error:
            return error
        if standing != session.peer.standing:
            return Unauthenticated(
                "SESSION_EXPIRED", f"what {session.peer.subject} may do here has changed; establish the session again"
            )
        return None


def caller_certificates(context: object = None) -> bytes:
    """The PEM chain that the current peer established its session with; empty for ANONYMOUS."""
    identity = current_peer(context).identity
    return b"" if identity is None else certificates.pem(identity.certificates)


def _address(peer: str) -> str:
    """The IP address in grpc's `ipv4:192.0.2.1:4711` or `ipv6:[::1]:4711` (its brackets may be percent-encoded)."""
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""
