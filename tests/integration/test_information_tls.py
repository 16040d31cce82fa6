"""The LDAP doors of an information server over TLS: LDAPS, StartTLS, and what they show after a renewal."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from support.grid import LabGrid

from agents.information.agent import build
from fabric.ldap import protocol as p
from fabric.ldap.ber import frame_length

SERVER = "information.CERN"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[LabGrid]:
    async with LabGrid(tmp_path) as lab:
        lab.plan("information")
        await lab.start("information", options={"level": "site"}, builder=build)
        yield lab


class Door:
    """A connection over TLS, by a client that trusts the grid's authority."""

    def __init__(self, lab: LabGrid, protocol: str, name: str) -> None:
        self._port, self._protocol, self._name = lab.port(SERVER, protocol), protocol, name
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(cadata="".join(path.read_text() for path in lab.certificates.glob("*.0")))

    async def __aenter__(self) -> Door:
        async with asyncio.timeout(60):
            tls = self._tls if self._protocol == "ldaps" else None
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=tls, server_hostname=self._name if tls else None
            )
            if tls is None:
                answer = await self.ask(p.ExtendedRequest(p.OID_START_TLS))
                assert answer.code == p.ResultCode.SUCCESS
                await self.writer.start_tls(self._tls, server_hostname=self._name)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def ask(self, operation: p.Operation) -> p.Result:
        """The result of a request."""
        self.writer.write(p.encode_message(p.Message(1, operation)))
        data = bytearray()
        async with asyncio.timeout(60):
            while True:
                length = frame_length(data)
                if length is not None and len(data) >= length:
                    message = p.decode_message(bytes(data[:length])).operation
                    del data[:length]
                    if isinstance(message, p.Result):
                        return message
                    continue
                data += await self.reader.readexactly(1)

    @property
    def serial(self) -> int:
        """Of the certificate that the server showed."""
        der = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number


@pytest.mark.parametrize("protocol", ["ldap", "ldaps"])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])  # for an address no server name is sent
async def test_a_renewed_certificate_is_shown_to_new_connections(lab: LabGrid, protocol: str, name: str) -> None:
    agent = lab.agents[SERVER].context
    first = agent.credential
    async with Door(lab, protocol, name) as before:
        assert before.serial == first.certificate.serial_number
        agent.use(lab.service("information"))
        assert agent.credential.certificate.serial_number != first.certificate.serial_number
        async with Door(lab, protocol, name) as after:
            assert after.serial == agent.credential.certificate.serial_number
            assert (await after.ask(p.ExtendedRequest(p.OID_WHO_AM_I))).code == p.ResultCode.SUCCESS
        assert (await before.ask(p.ExtendedRequest(p.OID_WHO_AM_I))).code == p.ResultCode.SUCCESS


async def test_start_tls_inside_ldaps_is_refused(lab: LabGrid) -> None:
    async with Door(lab, "ldaps", "localhost") as door:
        assert (await door.ask(p.ExtendedRequest(p.OID_START_TLS))).code == p.ResultCode.OPERATIONS_ERROR


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03", b"GET / HTTP/1.0\r\n\r\n", b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03"]
)
async def test_what_is_no_handshake_is_cut_off_and_harms_nobody(lab: LabGrid, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port(SERVER, "ldaps"))
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(60):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1 << 16)
    writer.close()
    async with Door(lab, "ldaps", "localhost") as door:
        assert (await door.ask(p.ExtendedRequest(p.OID_WHO_AM_I))).code == p.ResultCode.SUCCESS
