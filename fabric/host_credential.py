"""An agent's own credential while it runs: renewed in time and after a roll-over, used without a restart.

Whoever replaces the file, this agent or a site's manager, the new credential is shown to new connections and proves who
we are from the next look at the disk on. One that cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from gridfabric.authority.v1 import trust_pb2 as pb
from gridfabric.authority.v1 import trust_pb2_grpc as pb_grpc

from fabric.bell import Bell
from fabric.context import AgentContext
from fabric.errors import GridError, InvalidRequest, Unavailable, from_security
from security.certificates import issuer_among, load_chain
from security.credentials import Credential, generate_key
from security.errors import SecurityError, os_error_text
from security.validation import validate_host_chain

RENEW_SHARE = 0.3
"""A certificate is renewed in this last part of its life: its authority gives a new one in the last third."""
ALARM_SHARE = 0.15
"""From here on a renewal that fails degrades the agent."""
GRACE_S = 1.0
"""After a roll-over every host shall know the new key before anybody shows a certificate that it signed."""
SPREAD_S = 1.0
"""Left to chance, so that a grid does not ask in one moment."""
RETRY_S = 15.0
LOOK_EVERY_S = 600.0
MOVE_EVERY_S = 2.0
"""While an old key is in use: how often servers that live on it are looked at."""

_Stamp = tuple[int, int, int]


class HostCredential:
    """Runs in every agent; asks the authority only where the grid has one."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._path = context.settings.credential
        self._stamp = self._look()
        self._old: Sequence[x509.Certificate] = ()
        self._news = Bell()

    def rolled_over(self, old: Sequence[x509.Certificate]) -> None:
        """These keys of authorities have been followed by newer ones: what they signed is to be renewed."""
        if list(old) != list(self._old):
            self._old = old
            self._news.ring()

    def refresh(self) -> bool:
        """Use the file if it was replaced. One stat: cheap to call each second. True if there is a new credential."""
        stamp = self._look()
        if stamp is None or stamp == self._stamp:
            return False
        context = self._context
        try:
            found = Credential.load(self._path)
            if found.subject != context.credential.subject:
                raise InvalidRequest("CERTIFICATE_OTHER", f"{self._path} is the credential of {found.subject}")
            self._judge(found)
        except GridError as error:
            context.problem("credential", f"the new credential is not used: {error.sentence}")
            return False
        except SecurityError as error:
            context.problem("credential", f"the new credential {self._path} is not used: {error.sentence}")
            return False
        self._stamp = stamp
        context.solved("credential")
        if found.certificate == context.credential.certificate:
            return False
        context.use(found)
        context.log.audit(
            "credential.renewed", serial=f"{found.certificate.serial_number:X}", not_after=found.not_after.isoformat()
        )
        return True

    def _look(self) -> _Stamp | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _judge(self, credential: Credential) -> None:
        """As every client will. Raises SecurityError."""
        context = self._context
        host = context.settings.advertise
        validate_host_chain(
            credential.certificates, host, context.trust.snapshot(), context.policy, now=context.clock.now()
        )

    async def run(self) -> None:
        """Renew what comes near its end or was signed by an old key, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew_in_time())
            group.create_task(self._move())

    async def _renew_in_time(self) -> None:
        context = self._context
        while True:
            heard = self._news.rung
            pause_s = LOOK_EVERY_S
            if self._is_due():
                await asyncio.sleep(GRACE_S + random.uniform(0, SPREAD_S))
                try:
                    await self._renew()
                    context.solved("renewal")
                except GridError as error:
                    pause_s = RETRY_S * random.uniform(0.5, 1.5)
                    context.log.warning("credential.not_renewed", reason=error.reason, sentence=error.sentence)
                    if self._share_left() < ALARM_SHARE:
                        context.problem("renewal", f"the host certificate cannot be renewed: {error.sentence}")
            await self._news.wait(pause_s, heard)

    def _is_due(self) -> bool:
        certificate = self._context.credential.certificate
        return issuer_among(certificate, self._old) is not None or self._share_left() < RENEW_SHARE

    def _share_left(self) -> float:
        certificate = self._context.credential.certificate
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return (certificate.not_valid_after_utc - self._context.clock.now()) / life

    async def _renew(self) -> None:
        """A new key here, a certificate from the authority, both on disk for `refresh`. Raises GridError."""
        context = self._context
        old = context.credential
        key = await asyncio.to_thread(generate_key, "rsa-2048" if isinstance(old.key, rsa.RSAPrivateKey) else "ec-p256")
        subject = old.certificate.subject
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        endpoint = context.settings.endpoints("authority")[0]
        stub: Any = pb_grpc.TrustStub(await context.channels.get(endpoint.host, endpoint.rpc))
        answer: pb.RenewResponse = await stub.Renew(pb.RenewRequest(request_pem=request.public_bytes(Encoding.PEM)))
        try:
            leaf, *chain = load_chain(answer.certificate_pem)
            new = Credential(leaf, key, tuple(chain))
            if new.subject != old.subject:
                raise InvalidRequest("CERTIFICATE_OTHER", f"{endpoint.name} sent a certificate of {new.subject}")
            self._judge(new)
            await asyncio.to_thread(new.save, self._path)
        except SecurityError as error:
            raise from_security(error) from error
        except OSError as error:
            raise Unavailable(
                "CREDENTIAL_NOT_KEPT", f"the renewed credential cannot be kept in {self._path} ({os_error_text(error)})"
            ) from error
        context.news.ring()

    async def _move(self) -> None:
        """While servers renew: new calls go to what they show now, before the old key ends."""
        while True:
            heard = self._news.rung
            if not self._old:
                await self._news.wait(LOOK_EVERY_S, heard)
                continue
            await asyncio.sleep(MOVE_EVERY_S * random.uniform(0.5, 1.5))
            await self._context.channels.move_from(self._old)
