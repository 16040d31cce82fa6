"""The MyProxy port: one dialogue a connection, every step with a deadline, every refusal an ERROR with its sentence."""

from __future__ import annotations

import asyncio

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from agents.myproxy import protocol
from agents.myproxy.keeper import Keeper
from agents.myproxy.policy import Client
from agents.myproxy.protocol import Command, Proof, Request
from fabric.errors import DeadlineExceeded, Defect, GridError, InvalidRequest, Refused
from fabric.logs import Logger
from fabric.tls_door import TlsClosed, TlsStream
from security.certificates import PrivateKey

_REFUSED = {
    Command.STORE: "this credential store takes no private keys made elsewhere; delegate to it with myproxy-init",
    Command.GET_TRUSTROOTS: "this credential store gives out no authorities' certificates; take them from the grid's "
    "authority (grid env --json names it)",
}


class MyProxyDoor:
    """Serves one connection after another."""

    def __init__(
        self, keeper: Keeper, log: Logger, *, name: str, request_timeout_s: float, step_timeout_s: float
    ) -> None:
        self._keeper, self._log, self._name = keeper, log, name
        self._request_timeout_s, self._step_timeout_s = request_timeout_s, step_timeout_s
        self.refused = 0

    async def serve(self, stream: TlsStream) -> None:
        """One dialogue. Raises TlsClosed, OSError, TimeoutError (the answer is not taken)."""
        address = stream.peer.rpartition(":")[0]
        dialogue = _Dialogue(stream, self._step_timeout_s)
        client = Client(address)
        request: Request | None = None
        try:
            text = await dialogue.request(self._request_timeout_s)
            if text is None:
                return
            client = await self._keeper.identify(stream.chain, address)
            request = protocol.parse_request(text)
            await self._answer(dialogue, client, request)
            return
        except GridError as error:
            refusal = error
        except (TlsClosed, OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._log.exception("myproxy.defect", error, address=address)
            refusal = Defect("DEFECT", f"the credential store {self._name} has a defect; its log says more")
        self.refused += 1
        facts = {key: value for key, value in refusal.facts.items() if key in ("why", "serial", "issuer", "check")}
        self._log.audit(
            "credential.refused",
            command=request.command.name if request is not None else None,
            user=request.username if request is not None else None,
            name=(request.name or None) if request is not None else None,
            peer=client.name if client.identity is not None else refusal.facts.get("subject", client.name),
            address=address,
            reason=refusal.reason,
            sentence=refusal.sentence,
            **facts,
        )
        await dialogue.send(protocol.error(refusal.sentence))

    async def _answer(self, dialogue: _Dialogue, client: Client, request: Request) -> None:
        keeper = self._keeper
        match request.command:
            case Command.GET:
                await self._get(dialogue, client, request)
                return
            case Command.PUT:
                key = await keeper.begin_put(client, request)
                await dialogue.send(protocol.ok())
                await dialogue.send(_certificate_request(key))
                chain = protocol.parse_chain(await dialogue.receive(protocol.chain_end))
                await keeper.finish_put(client, request, key, chain)
            case Command.INFO:
                await dialogue.send(protocol.listing(await keeper.info(client, request)))
                return
            case Command.DESTROY:
                await keeper.destroy(client, request)
            case Command.CHANGE_CRED_PASSPHRASE:
                await keeper.change_passphrase(client, request)
            case Command.RETRIEVE:
                pem = await keeper.retrieve(client, request)
                await dialogue.send(protocol.ok())
                await dialogue.send(pem + b"\0")
            case _:
                raise Refused("COMMAND_REFUSED", _REFUSED[request.command], subject=client.name)
        await dialogue.send(protocol.ok())

    async def _get(self, dialogue: _Dialogue, client: Client, request: Request) -> None:
        async def ask(nonce: str) -> Proof:
            await dialogue.send(protocol.challenge(nonce))
            return protocol.parse_proof(await dialogue.receive(protocol.proof_end))

        grant = await self._keeper.begin_get(client, request, ask)
        await dialogue.send(protocol.ok())
        chain = self._keeper.sign(client, grant, await dialogue.receive(protocol.csr_end))
        await dialogue.send(protocol.encode_chain(chain))
        await dialogue.send(protocol.ok())


class _Dialogue:
    """Messages of one connection; what came too early is kept for the next."""

    def __init__(self, stream: TlsStream, step_timeout_s: float) -> None:
        self._stream, self._step_timeout_s = stream, step_timeout_s
        self._data = b""

    async def request(self, timeout_s: float) -> bytes | None:
        """The text of the request; None if the client left without a word."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._skip_flag()
                if not self._data:
                    return None
                text = await self._until(protocol.request_end)
        except TimeoutError:
            raise _too_slow("the request", timeout_s) from None
        if self._data.startswith(b"\0"):
            self._data = self._data[1:]
        return text

    async def _skip_flag(self) -> None:
        """GSI clients begin with one character: `0`, or `D` when they would delegate to the port itself."""
        await self._more()
        if self._data.startswith(b"D"):
            raise InvalidRequest(
                "MYPROXY_REQUEST_INVALID",
                "this port takes no delegation in the handshake; use the MyProxy protocol",
            )
        if self._data.startswith(b"0"):
            self._data = self._data[1:]
            if not self._data:
                await self._more()

    async def receive(self, end: protocol.End) -> bytes:
        """The next message. Raises DeadlineExceeded, InvalidRequest."""
        try:
            async with asyncio.timeout(self._step_timeout_s):
                return await self._until(end)
        except TimeoutError:
            raise _too_slow("the next message", self._step_timeout_s) from None

    async def _until(self, end: protocol.End) -> bytes:
        while (at := end(self._data)) is None:
            if not await self._more():
                raise InvalidRequest("MYPROXY_REQUEST_INVALID", "the client left in the middle of a message")
        message, self._data = self._data[:at], self._data[at:]
        return message

    async def _more(self) -> bool:
        piece = await self._stream.read()
        self._data += piece
        return bool(piece)

    async def send(self, message: bytes) -> None:
        """Raises TimeoutError when the client takes nothing."""
        async with asyncio.timeout(self._step_timeout_s):
            await self._stream.write(message)


def _too_slow(what: str, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded("REQUEST_TOO_SLOW", f"{what} did not come within {timeout_s:g} s; begin again")


def _certificate_request(key: PrivateKey) -> bytes:
    """DER; nothing of it but the key is used by the signer."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy request")]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
