"""The VOMS door: HTTPS for everybody with a certificate, who is judged after the handshake and told why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agents.vo import voms_wire
from agents.vo.issuing import Issued, Wanted
from fabric.errors import Defect, GridError, InvalidRequest, from_security
from fabric.logs import Logger
from fabric.tls_door import TlsClosed, TlsStream
from security.errors import SecurityError, one_line
from security.validation import ChainInput, Identity

REQUEST_TIMEOUT_S = 10.0
"""From the end of the handshake to the end of the request."""
ANSWER_TIMEOUT_S = 10.0

Validate = Callable[[ChainInput], Identity]
Issue = Callable[[Identity, Wanted, str], Awaitable[Issued]]
"""Of a verified chain, a request, and the address that it came from."""


class VomsDoor:
    """Serves one connection after another; `validate` is the chain check, `issue` everything after it."""

    def __init__(self, vo: str, validate: Validate, issue: Issue, log: Logger) -> None:
        self._vo, self._validate, self._issue, self._log = vo, validate, issue, log

    async def serve(self, stream: TlsStream) -> None:
        """One request and its answer. Raises TlsClosed, TimeoutError."""
        data, legacy = b"", False
        subject = ""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                data = await _receive(stream)
            if not data:
                return
            legacy = voms_wire.speaks_legacy(data)
            identity = self._identify(stream)
            subject = str(identity.subject)
            request = voms_wire.parse(data)
            issued = await self._issue(identity, request.wanted, stream.peer.rpartition(":")[0])
            answer = voms_wire.success(request, issued.encoded, issued.fqans, issued.warnings)
        except GridError as error:
            self._log.audit(
                "attributes.refused",
                vo=self._vo,
                peer=subject or error.facts.get("subject", ""),
                address=stream.peer,
                reason=error.reason,
                sentence=error.sentence,
                request=one_line(data[:200].decode("latin-1"), 200),
            )
            answer = voms_wire.refusal(error, legacy=legacy)
        except (TlsClosed, OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._log.exception("voms.defect", error, address=stream.peer)
            answer = voms_wire.refusal(
                Defect("DEFECT", f"the VO server of {self._vo} has a defect; its log says more"), legacy=legacy
            )
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await stream.write(answer)

    def _identify(self, stream: TlsStream) -> Identity:
        chain = stream.require_chain(
            f"the VO server of {self._vo} was asked without a certificate; use your grid certificate or a proxy"
        )
        try:
            return self._validate(chain)
        except SecurityError as error:
            raise from_security(error) from error


async def _receive(stream: TlsStream) -> bytes:
    """A whole request; empty if the client left before it began. Raises InvalidRequest."""
    data = b""
    while not voms_wire.is_complete(data):
        piece = await stream.read()
        if not piece:
            if not data.strip(b"0"):
                return b""
            raise InvalidRequest("VOMS_REQUEST_INVALID", "this request for VOMS attributes broke off in the middle")
        data += piece
    return data
