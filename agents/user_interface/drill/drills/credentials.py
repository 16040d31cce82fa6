"""Credentials of people: revoked, stolen, outlived, too deep."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from gridfabric.security.v1 import security_pb2

from agents.user_interface.drill.ground import Ground
from agents.user_interface.drill.people import VICTIM, proxy_of
from fabric.errors import from_rpc_error
from security.credentials import PROXY_CERT_INFO_OID, Credential, generate_key
from security.proxies import INHERIT_ALL, encode_proxy_cert_info

HOUR = timedelta(hours=1)


async def user_revoked(ground: Ground) -> None:
    """A user's certificate is revoked while a job runs and sessions are open."""
    mallory = await ground.attacker()
    ground.begin()
    job = await mallory.run_forever()
    await ground.serves(mallory)
    async with ground.honest_work():
        ground.defend("revokes the certificate")
        await (await ground.authority()).revoke(subject=mallory.subject, reason="keyCompromise")
        await asyncio.gather(ground.refuses(mallory, "CERTIFICATE_REVOKED"), ground.gone(job))


async def proxy_revoked(ground: Ground) -> None:
    """The serial number of one stolen proxy goes on the revocation list while its session is open: that proxy and what
    was made from it are refused everywhere, its owner and other proxies of the owner are not."""
    alice = await ground.victim()
    other = await ground.person(alice.certificate, f"{alice.name} with another proxy", VICTIM)
    ground.begin()
    thief = await ground.bearer(alice.proxy, f"thief of a proxy of {alice.name}")
    below = await ground.bearer(proxy_of(alice.proxy), "proxy made from the stolen one")
    await asyncio.gather(*map(ground.serves, (thief, below, other)))
    ground.defend("revokes the proxy")
    await (await ground.authority()).revoke(proxy=alice.proxy.pem_chain(), reason="keyCompromise")
    await asyncio.gather(ground.refuses(thief, "PROXY_REVOKED"), ground.refuses(below, "PROXY_REVOKED"))
    await ground.serves(other)


async def limited_proxy_submits(ground: Ground) -> None:
    """A limited proxy, and one made from it, may read data and may not submit a job."""
    alice = await ground.victim()
    ground.begin()
    limited = proxy_of(alice.certificate, limited=True)
    for credential, name in ((limited, "limited proxy"), (proxy_of(limited), "proxy below a limited one")):
        bearer = await ground.bearer(credential, name)
        await ground.serves(bearer, ground.endpoints("storage"))
        submission = bearer.submit('Executable = "/bin/true";')
        await ground.refuses_act(bearer, ground.one("broker").name, submission, "LIMITED_PROXY")
    await alice.submit('Executable = "/bin/true";')
    ground.mark("umpire", f"a job of {alice.name} with a full proxy is taken")


async def proxy_outlives_certificate(ground: Ground) -> None:
    """A certificate ends while sessions of its proxy are open, and the proxy claims to live for hours."""
    alice = await ground.victim()
    brief = await ground.certificate_of(alice.name, ground.seconds(4))
    ground.begin()
    bearer = await ground.bearer(_outliving(brief), f"{alice.name}'s old proxy", VICTIM)
    ground.attack(f"has a proxy until {bearer.proxy.certificate.not_valid_after_utc:%H:%M} of a certificate that ends")
    await ground.serves(bearer)
    await asyncio.sleep(max(0.0, (brief.not_after - datetime.now(UTC)).total_seconds()))
    ground.defend("waits: the certificate ends")
    await ground.refuses(bearer, "CERTIFICATE_EXPIRED", "SESSION_EXPIRED")
    await ground.serves(alice)


def _outliving(certificate: Credential) -> Credential:
    """A proxy for an hour, whenever its certificate ends: `create_proxy` would cut it."""
    key, now = generate_key("ec-p256"), datetime.now(UTC)
    serial = x509.random_serial_number() >> 96
    name = x509.NameAttribute(NameOID.COMMON_NAME, str(serial))
    info = x509.UnrecognizedExtension(PROXY_CERT_INFO_OID, encode_proxy_cert_info(INHERIT_ALL, None))
    proxy = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([*certificate.certificate.subject.rdns, x509.RelativeDistinguishedName([name])]))
        .issuer_name(certificate.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + HOUR)
        .add_extension(info, critical=True)
        .sign(certificate.key, hashes.SHA256())
    )
    return Credential(proxy, key, certificate.certificates)


async def deep_delegation_chain(ground: Ground) -> None:
    """A chain of twenty proxies, and one below a proxy that allows none; three are fine."""
    alice = await ground.victim()
    ground.begin()
    chain = [alice.certificate]
    for _ in range(20):
        chain.append(proxy_of(chain[-1]))
    await ground.serves(await ground.bearer(chain[3], "three proxies", VICTIM))
    await ground.refuses(
        await ground.bearer(chain[20], "twenty proxies"), "CHAIN_TOO_LONG", "PROXY_PATH_LENGTH_EXCEEDED"
    )


async def session_token_stolen(ground: Ground) -> None:
    """A session token taken from one server is used at others, and at its own after a ban."""
    mallory = await ground.attacker()
    ground.begin()
    first, *others = ground.endpoints("storage", "gatekeeper")
    opened, token = await (await mallory.channel_to(first)).ready()
    ground.attack(f"has a session token of {first.name}")
    for endpoint in others:
        channel, _ = await (await mallory.channel_to(endpoint)).ready()
        await ground.refuses_act(mallory, endpoint.name, _call_with_token(channel.channel, token), "SESSION_UNKNOWN")
    await _call_with_token(opened.channel, token)
    ground.defend("bans the user")
    await ground.ban("subject", mallory.subject)
    await ground.refuses(mallory, "BANNED", endpoints=[first])
    await ground.refuses_act(mallory, first.name, _call_with_token(opened.channel, token), "BANNED")


async def _call_with_token(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
    show = channel.unary_unary(
        "/gridfabric.security.v1.Delegation/List",
        request_serializer=security_pb2.DelegationListRequest.SerializeToString,
        response_deserializer=security_pb2.DelegationListResponse.FromString,
    )
    try:
        await show(security_pb2.DelegationListRequest(), metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, "it") from None
