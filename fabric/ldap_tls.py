"""TLS for an agent's LDAP doors: StartTLS and LDAPS with the host certificate; who a client's certificate says it is.

Reading needs neither. OpenSSL takes a client's chain if its authority is in the certificates directory; whether it is
good is judged after the handshake, when the client asks for SASL EXTERNAL, so that a refusal has a sentence.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.ldap.external import ExternalFunction, ExternalRefusedError
from fabric.rpc.probe import presented_chain
from security.certificates import load_chain
from security.errors import SecurityError
from security.validation import validate_client_chain

if TYPE_CHECKING:
    from fabric.context import AgentContext


class _HostTls:
    """Shows every new connection the credential that the agent has at that moment."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._credential = context.credential
        self._tls = self._made()

    def current(self, connection: ssl.SSLObject, _server_name: str | None, _first: ssl.SSLContext) -> None:
        """OpenSSL asks after each ClientHello, also when that names no server."""
        if self._context.credential is not self._credential:
            self._credential = self._context.credential
            self._tls = self._made()
        connection.context = self._tls

    def _made(self) -> ssl.SSLContext:
        """Python's `ssl` reads a key from files only: this one is never on a disk."""
        tls = _judged_later(self._context.settings.certificates)
        with os.fdopen(os.memfd_create("credential"), "wb") as file:
            file.write(self._credential.dumps())
            file.flush()
            tls.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return tls


def server_tls(context: AgentContext) -> ssl.SSLContext:
    """The host credential for an `LdapServer`, also after it was renewed."""
    tls = _judged_later(context.settings.certificates)
    tls.sni_callback = _HostTls(context).current
    return tls


def _judged_later(certificates: Path) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_verify_locations(capath=certificates)
    tls.verify_mode = ssl.CERT_OPTIONAL
    tls.verify_flags |= ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS
    tls.options |= ssl.OP_NO_TICKET  # a resumed session would bring no chain
    tls.num_tickets = 0
    return tls


def name_behind(context: AgentContext) -> ExternalFunction:
    """For SASL EXTERNAL: the name of the end entity of a chain that passes the grid's rules."""

    async def name(connection: ssl.SSLObject) -> str:
        if connection.getpeercert(binary_form=True) is None:
            raise ExternalRefusedError("you showed no certificate; name one, or bind anonymously", missing=True)
        pem = "".join(map(ssl.DER_cert_to_PEM_cert, presented_chain(connection))).encode()
        trust, now = context.trust.snapshot(), context.clock.now()
        try:
            identity = await asyncio.to_thread(validate_client_chain, load_chain(pem), trust, context.policy, now)
        except SecurityError as error:
            raise ExternalRefusedError(error.sentence) from None
        return identity.subject.rfc4514()

    return name
