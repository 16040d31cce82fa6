"""The credential store's client: what myproxy-logon and myproxy-init do, for programs and with any MyProxy server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from agents.myproxy import protocol
from agents.myproxy.protocol import Command, Proof, Request, Response
from fabric.clock import Clock
from fabric.errors import DeadlineExceeded, InvalidRequest, Refused, Unavailable, from_security
from fabric.tls_door import TlsClosed, TlsStream, connect
from security import certificates, proxies
from security.credentials import Credential, generate_key
from security.errors import SecurityError, os_error_text
from security.trust import TrustStore
from security.validation import ValidationPolicy, validate_client_chain, validate_host_chain

TIMEOUT_S = 30.0
"""For a whole dialogue."""
MAX_RESPONSE_BYTES = 256 * 1024
DEFAULT_LIFETIME = timedelta(hours=12)


@dataclass(frozen=True)
class MyProxyClient:
    """One server, one identity (None: none). Every call is a connection of its own; all raise GridError."""

    host: str
    port: int
    trust: TrustStore
    policy: ValidationPolicy
    clock: Clock
    credential: Credential | None = None
    timeout_s: float = TIMEOUT_S

    async def get(
        self,
        username: str,
        passphrase: bytes = b"",
        *,
        name: str = "",
        lifetime: timedelta = DEFAULT_LIFETIME,
        proof: Credential | None = None,
        key_type: str = "ec-p256",
    ) -> Credential:
        """A proxy, its key made here. `proof` is a proxy of the owner for a renewal. The chain is verified.

        Raises Refused MYPROXY_REFUSED with the server's sentence.
        """
        wanted = Request(Command.GET, username, int(lifetime.total_seconds()), name=name, passphrase=passphrase)
        async with self._dialogue(wanted) as dialogue:
            response = await dialogue.response()
            if response.kind == 2:
                if proof is None or not response.nonce:
                    raise Refused("RENEWAL_PROOF_MISSING", f"{self._where} wants a proof of the owner's proxy")
                answer = Proof(proof.certificates, proof.sign(response.nonce.encode()))
                await dialogue.send(protocol.encode_proof(answer))
                await dialogue.response()
            key = await asyncio.to_thread(generate_key, key_type)
            request = x509.CertificateSigningRequestBuilder().subject_name(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy request")])
            )
            await dialogue.send(request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
            chain = protocol.parse_chain(await dialogue.binary())
        try:
            found = proxies.assemble(key, certificates.pem(chain))
            validate_client_chain(found.certificates, self.trust.snapshot(), self.policy, self.clock.now())
        except SecurityError as error:
            raise from_security(error) from error
        return found

    async def put(
        self,
        username: str,
        passphrase: bytes = b"",
        *,
        name: str = "",
        description: str = "",
        lifetime: timedelta = timedelta(days=7),
        delegated: timedelta = timedelta(0),
        retrievers: str = "",
        trusted_retrievers: str = "",
        renewers: str = "",
    ) -> None:
        """Delegate this client's credential for `lifetime`; of it, proxies of at most `delegated` are given."""
        if self.credential is None:
            raise InvalidRequest("CERTIFICATE_MISSING", "only who has a credential can store it")
        wanted = Request(
            Command.PUT, username, int(delegated.total_seconds()), name, description, retrievers, trusted_retrievers,
            renewers, passphrase,
        )  # fmt: skip
        async with self._dialogue(wanted) as dialogue:
            await dialogue.response()
            csr = await dialogue.until(protocol.csr_end)
            try:
                pem = proxies.sign_request(csr, self.credential, lifetime=lifetime, now=self.clock.now())
                chain = certificates.load_chain(pem)
            except SecurityError as error:
                raise from_security(error) from error
            await dialogue.send(protocol.encode_chain(chain))
            await dialogue.response()

    async def info(self, username: str) -> Mapping[str, str]:
        """The lines of the answer, such as CRED_END_TIME."""
        async with self._dialogue(Request(Command.INFO, username)) as dialogue:
            return (await dialogue.response()).lines or {}

    async def destroy(self, username: str, name: str = "") -> None:
        """Erase one."""
        async with self._dialogue(Request(Command.DESTROY, username, name=name)) as dialogue:
            await dialogue.response()

    async def change_passphrase(self, username: str, old: bytes, new: bytes, name: str = "") -> None:
        """Another passphrase from now on."""
        wanted = Request(Command.CHANGE_CRED_PASSPHRASE, username, name=name, passphrase=old, new_passphrase=new)
        async with self._dialogue(wanted) as dialogue:
            await dialogue.response()

    @property
    def _where(self) -> str:
        return f"{self.host}:{self.port}"

    @contextlib.asynccontextmanager
    async def _dialogue(self, request: Request) -> AsyncGenerator[_Dialogue]:
        stream: TlsStream | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                stream = await connect(self.credential, self.host, self.port)
                self._judge(stream)
                dialogue = _Dialogue(stream, self._where)
                await dialogue.send(b"0" + protocol.encode_request(request))
                yield dialogue
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED", f"the credential store {self._where} did not answer in time"
            ) from None
        except OSError as error:  # TlsClosed too
            words = str(error) if isinstance(error, TlsClosed) else os_error_text(error)
            raise Unavailable(
                "SERVER_UNREACHABLE", f"the credential store {self._where} cannot be reached ({words}); try again"
            ) from error
        finally:
            if stream is not None:
                stream.close()

    def _judge(self, stream: TlsStream) -> None:
        try:
            validate_host_chain(stream.chain, self.host, self.trust.snapshot(), self.policy, self.clock.now())
        except SecurityError as error:
            raise from_security(error) from error


class _Dialogue:
    """Messages in one connection."""

    def __init__(self, stream: TlsStream, where: str) -> None:
        self._stream, self._where = stream, where
        self._data = b""

    async def send(self, message: bytes) -> None:
        await self._stream.write(message)

    async def response(self) -> Response:
        """The next answer. Raises Refused MYPROXY_REFUSED."""
        while b"\0" not in self._data:
            await self._more()
        text, _, self._data = self._data.partition(b"\0")
        answer = protocol.parse_response(text)
        if answer.kind == 1:
            raise Refused("MYPROXY_REFUSED", answer.error or f"{self._where} gave no reason", peer=self._where)
        return answer

    async def binary(self) -> bytes:
        """A chain, unless the server says why not."""
        while not self._data:
            await self._more()
        if self._data.startswith(b"V"):
            await self.response()
        return await self.until(protocol.chain_end)

    async def until(self, end: protocol.End) -> bytes:
        while (at := end(self._data)) is None:
            await self._more()
        message, self._data = self._data[:at], self._data[at:]
        return message

    async def _more(self) -> None:
        piece = await self._stream.read()
        if not piece:
            raise Unavailable("SERVER_UNREACHABLE", f"the credential store {self._where} hung up; try again")
        self._data += piece
        if len(self._data) > MAX_RESPONSE_BYTES:
            raise InvalidRequest("MYPROXY_RESPONSE_INVALID", f"{self._where} sends over {MAX_RESPONSE_BYTES} bytes")
