"""The grid's trust set: kept here, pushed to every agent; how authorities are made, added, rolled over and removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
from cryptography.hazmat.primitives import hashes
from gridfabric.authority.v1 import trust_pb2 as pb
from gridfabric.authority.v1 import trust_pb2_grpc as pb_grpc

from agents.authority import store as rows
from agents.authority.authorities import Authorities, Trusted
from agents.authority.register import Register
from fabric.bulletin import Bulletin
from fabric.clock import to_us
from fabric.errors import Refused
from fabric.logs import Logger
from fabric.rpc.peer import current_peer
from fabric.rpc.rules import administrator, any_of, any_service
from fabric.store import Store
from security.authority import IssuedCertificate
from security.certificates import pem, subject_of
from security.signing_policy import parse_signing_policy

RULES = {
    "Watch": any_service,
    "ListAuthorities": administrator,
    "CreateAuthority": administrator,
    "AddAuthority": administrator,
    "RemoveAuthority": administrator,
    "RollOver": administrator,
    "Retire": administrator,
    "Renew": any_of(any_service, administrator),
}
MAX_PUSHED_CRL_BYTES = 512 * 1024
"""A larger list is announced by its number and fetched by HTTP, once per host."""
MAX_PUSHED_CRLS_BYTES = 2 * 1024 * 1024
"""All lists of one message together, which must stay below 4 MiB."""
MAX_LOSING = 10_000


class TrustServicer(pb_grpc.TrustServicer):
    """`announce` tells every host; with names of authorities it makes new lists of these first."""

    def __init__(
        self,
        authorities: Authorities,
        register: Register,
        store: Store,
        log: Logger,
        announce: Callable[[Sequence[str]], Awaitable[int]],
    ) -> None:
        self._authorities, self._register = authorities, register
        self._store, self._log, self._announce = store, log, announce
        self._changing = asyncio.Lock()
        self._set = pb.TrustSet()
        self._bulletin = Bulletin(self._current)

    def tell(self, new: pb.TrustSet) -> None:
        """Push this set from now on."""
        self._set = new
        self._bulletin.changed()

    async def _current(self) -> pb.TrustSet:
        return self._set

    async def Watch(
        self, request: pb.WatchTrustRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.TrustSet]:
        """See the proto."""
        async for found in self._bulletin.told():
            yield found

    async def ListAuthorities(
        self, request: pb.ListAuthoritiesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListAuthoritiesResponse:
        """See the proto."""
        return pb.ListAuthoritiesResponse(authorities=await asyncio.to_thread(self._facts))

    async def CreateAuthority(
        self, request: pb.CreateAuthorityRequest, context: grpc.aio.ServicerContext
    ) -> pb.AuthorityResponse:
        """See the proto."""
        async with self._changing:
            row = await asyncio.to_thread(
                self._authorities.make, request.name, request.parent, list(request.namespace), request.lifetime_s
            )
            await self._keep(row)
            await self._announce([row.name])
        answer = await self._one(row.name)
        self._audit(
            "authority.created", context, answer, parent=request.parent or None, namespace=list(answer.namespace)
        )
        return pb.AuthorityResponse(authority=answer)

    async def AddAuthority(
        self, request: pb.AddAuthorityRequest, context: grpc.aio.ServicerContext
    ) -> pb.AuthorityResponse:
        """See the proto."""
        async with self._changing:
            row = await asyncio.to_thread(
                self._authorities.offered,
                request.certificate,
                request.signing_policy,
                request.crl,
                list(request.crl_url),
            )
            await self._keep(row)
            await self._announce([])
        answer = await self._one(row.name)
        self._audit("authority.added", context, answer, namespace=list(answer.namespace))
        return pb.AuthorityResponse(authority=answer)

    async def RemoveAuthority(
        self, request: pb.RemoveAuthorityRequest, context: grpc.aio.ServicerContext
    ) -> pb.LosingResponse:
        """See the proto."""
        authorities = self._authorities
        async with self._changing:
            name = authorities.find(request.authority)
            await asyncio.to_thread(authorities.require_removable, name)
            losing = await asyncio.to_thread(authorities.active, name)
            if request.dry_run:
                return _losing(losing)
            gone = await self._one(name)
            parent = await asyncio.to_thread(authorities.cease, name)
            await self._store.write(lambda connection: rows.remove_authority(connection, name))
            await asyncio.to_thread(authorities.drop, name)
            await self._announce([parent] if parent else [])
        self._audit("authority.removed", context, gone, certificates=len(losing))
        return _losing(losing)

    async def RollOver(self, request: pb.RollOverRequest, context: grpc.aio.ServicerContext) -> pb.AuthorityResponse:
        """See the proto."""
        async with self._changing:
            name = self._authorities.find(request.authority)
            await asyncio.to_thread(self._authorities.roll_over, name)
            await self._announce([name])
        answer = await self._one(name)
        self._audit("authority.rolled_over", context, answer)
        return pb.AuthorityResponse(authority=answer)

    async def Retire(self, request: pb.RetireRequest, context: grpc.aio.ServicerContext) -> pb.LosingResponse:
        """See the proto."""
        authorities = self._authorities
        async with self._changing:
            name = authorities.find(request.authority)
            left = await asyncio.to_thread(authorities.left_behind, name)
            held = await asyncio.to_thread(authorities.held_beside, name)
            if not request.dry_run:
                await asyncio.to_thread(authorities.require_retirable, name, now=request.now)
                await asyncio.to_thread(authorities.own(name).retire)
                await self._announce([name])
        if not request.dry_run:
            self._audit("authority.retired", context, await self._one(name), certificates=len(held))
        return _losing([*left, *held], renewed=frozenset(one.serial for one in held))

    async def Renew(self, request: pb.RenewRequest, context: grpc.aio.ServicerContext) -> pb.RenewResponse:
        """See the proto."""
        peer = current_peer(context)
        identity = peer.identity
        if identity is None or identity.is_proxy:
            raise Refused(
                "PROXY_NOT_ACCEPTED", f"{peer.subject} renews a certificate with itself, not with a proxy of it"
            )
        renewed = await asyncio.to_thread(self._register.renew, identity.certificates[0], request.request_pem)
        self._log.audit("certificate.renewed", subject=peer.subject, replaces=f"{identity.serial:X}")
        return pb.RenewResponse(certificate_pem=renewed)

    async def _keep(self, row: rows.AuthorityRow) -> None:
        """On disk, then in force."""
        await self._store.write(lambda connection: rows.keep_authority(connection, row))
        await asyncio.to_thread(self._authorities.keep, row)

    def _audit(
        self, event: str, context: grpc.aio.ServicerContext, authority: pb.AuthorityFacts, **facts: object
    ) -> None:
        fingerprints = [key.fingerprint for key in authority.keys]
        by = current_peer(context).subject
        self._log.audit(event, name=authority.name, authority=authority.subject, keys=fingerprints, by=by, **facts)

    async def _one(self, name: str) -> pb.AuthorityFacts:
        return next(one for one in await asyncio.to_thread(self._facts) if one.name == name)

    def _facts(self) -> list[pb.AuthorityFacts]:
        found: dict[str, pb.AuthorityFacts] = {}
        for trusted in self._authorities.trusted():
            row = self._authorities.row(trusted.name)
            subject = subject_of(trusted.certificate)
            facts = found.setdefault(
                trusted.name,
                pb.AuthorityFacts(
                    name=trusted.name,
                    subject=str(subject),
                    hash=trusted.stem,
                    parent=row.parent if row is not None else "",
                    is_foreign=row is not None and row.is_foreign,
                    namespace=parse_signing_policy(trusted.signing_policy).texts(subject),
                ),
            )
            facts.keys.append(self._key_facts(trusted))
        return list(found.values())

    def _key_facts(self, trusted: Trusted) -> pb.Key:
        crl = trusted.crl
        active = self._authorities.active(trusted.name)
        own = self._authorities.all_own().get(trusted.name)
        return pb.Key(
            fingerprint=trusted.certificate.fingerprint(hashes.SHA256()).hex(),
            not_after_us=to_us(trusted.certificate.not_valid_after_utc),
            crl_number=crl.number if crl is not None else 0,
            crl_next_update_us=to_us(crl.next_update) if crl is not None else 0,
            active=sum(own is not None and own.signer_of(one.certificate) == trusted.certificate for one in active),
        )


def trust_set(number: int, trusted: Sequence[Trusted], *, whole: bool = False) -> pb.TrustSet:
    """The message that every host follows; the `whole` one, with large lists too, is for this host."""
    left = MAX_PUSHED_CRLS_BYTES
    found = pb.TrustSet(number=number)
    for one in trusted:
        message = pb.TrustedAuthority(
            certificate_pem=pem([one.certificate]),
            signing_policy=one.signing_policy,
            namespaces=one.namespaces,
            info=one.info,
            is_old=one.is_old,
        )
        if one.crl is not None:
            inside = whole or len(one.crl.pem) <= min(left, MAX_PUSHED_CRL_BYTES)
            left -= len(one.crl.pem) if inside else 0
            message.crl.CopyFrom(
                pb.RevocationList(
                    number=one.crl.number, pem=one.crl.pem if inside else b"", path=f"/crl/{one.stem}.r{one.index}"
                )
            )
        found.authorities.append(message)
    return found


def _losing(issued: Sequence[IssuedCertificate], renewed: frozenset[int] = frozenset()) -> pb.LosingResponse:
    return pb.LosingResponse(
        losing=[
            pb.Losing(
                subject=str(one.subject),
                serial=f"{one.serial:X}",
                kind=one.kind,
                until_us=to_us(one.not_after),
                renewed=one.serial in renewed,
            )
            for one in issued[:MAX_LOSING]
        ]
    )
