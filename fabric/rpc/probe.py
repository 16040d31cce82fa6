"""One look at a server's TLS certificate chain, before anything is sent to it.

gRPC's own TLS library knows no revocation lists and no signing policies, and says only that a server is unavailable.
So the chain is fetched once with Python's `ssl`, judged by `security.validation`, and its leaf pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import ssl
from typing import Any

from fabric.errors import Unavailable
from security.errors import os_error_text

PROBE_TIMEOUT_S = 5.0
"""For connecting and the handshake; a healthy server needs milliseconds."""


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the caller judges the chain by the rules of the grid, before pinning it
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    return context


async def fetch_server_chain(host: str, port: int, timeout_s: float = PROBE_TIMEOUT_S) -> list[bytes]:
    """The DER certificates that the server shows, leaf first. Not verified.

    Raises Unavailable SERVER_UNREACHABLE (nobody listens, no answer in time) or SERVER_NOT_TLS.
    """
    peer = f"{host}:{port}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port, ssl=_context(), server_hostname=_server_name(host))
        return presented_chain(writer.get_extra_info("ssl_object"))
    except TimeoutError:
        raise Unavailable(
            "SERVER_UNREACHABLE", f"{peer} did not answer within {timeout_s:g} s; try again when it is up", peer=peer
        ) from None
    except ssl.SSLError as error:
        raise Unavailable(
            "SERVER_NOT_TLS",
            f"{peer} does not speak TLS as a grid service does ({error.reason}); look at host and port",
            peer=peer,
        ) from error
    except OSError as error:
        raise Unavailable(
            "SERVER_UNREACHABLE",
            f"{peer} cannot be reached ({os_error_text(error)}); try again when it is up",
            peer=peer,
        ) from error
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.transport.abort()


def _server_name(host: str) -> str:
    """Server name indication is for DNS names; for an address Python wants some text and sends none."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host.strip("[]")))
    return host


def presented_chain(connection: Any) -> list[bytes]:
    """What the other side of a TLS connection showed: DER, leaf first.

    The method is public from Python 3.13 on; before, it is on the object behind.
    """
    if hasattr(connection, "get_unverified_chain"):
        return [bytes(certificate) for certificate in connection.get_unverified_chain()]
    chain = getattr(connection, "_sslobj").get_unverified_chain()  # noqa: B009
    if chain:
        return [certificate.public_bytes(2) for certificate in chain]  # 2: _ssl.ENCODING_DER
    return [connection.getpeercert(binary_form=True)]
