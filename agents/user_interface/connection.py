"""One command's connections: who calls (the user's proxy), whom it trusts, and where the services are."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from agents.user_interface import endpoints, proxy
from agents.user_interface.endpoints import Endpoints
from fabric.clock import SystemClock
from fabric.errors import NotFound
from fabric.logs import null_logger
from fabric.rpc.channel import Channels
from security.credentials import Credential, find_certificate_directory
from security.errors import CredentialError, Reason, utc_text
from security.trust import TrustStore
from security.validation import ValidationPolicy

DELEGATED_LIFETIME = timedelta(hours=12)
"""Longest life of a proxy given to a service; never longer than the user's own proxy."""


@dataclass
class Grid:
    """An open connection to the grid in the name of one credential."""

    services: Endpoints
    credential: Credential
    channels: Channels

    @property
    def identity(self) -> str:
        """The user's DN."""
        return str(self.credential.identity)

    @property
    def vo(self) -> str:
        """The VO to act for: GRIDFABRIC_VO, else the grid's first."""
        return self.services.vos[0] if self.services.vos else ""

    async def channel(self, kind: str) -> Any:
        """A channel to the grid's service of this kind. Raises NotFound if its address is not known."""
        host, port = self.services.one(kind)
        return await self.channels.get(host, port)

    async def channel_to(self, host: str, port: int) -> Any:
        """A channel to a service whose address is known."""
        return await self.channels.get(host, port)

    async def delegate(self, channel: Any) -> None:
        """Give the service at the other end a proxy of ours, under the name "default"."""
        from fabric.rpc.delegation import delegate

        await delegate(channel, self.credential, lifetime=DELEGATED_LIFETIME)


def certificates_of(services: Endpoints, environ: Mapping[str, str]) -> Path:
    """The authorities to trust: X509_CERT_DIR, else the grid's own, else the usual places. Raises CredentialError."""
    if services.certificates and not environ.get("X509_CERT_DIR"):
        return Path(services.certificates)
    return find_certificate_directory(environ)


@asynccontextmanager
async def open_grid(
    services: Endpoints, credential: Credential, certificates: Path, *, policy: ValidationPolicy | None = None
) -> AsyncIterator[Grid]:
    """Connections in the name of `credential`; closed at the end. Nothing is sent before the first call."""
    channels = Channels(
        trust=TrustStore(certificates),
        policy=policy or ValidationPolicy(),
        clock=SystemClock(),
        log=null_logger(),
        credential=credential,
    )
    try:
        yield Grid(services, credential, channels)
    finally:
        await channels.close()


@asynccontextmanager
async def open_for_user(environ: Mapping[str, str] = os.environ, state: Path | None = None) -> AsyncIterator[Grid]:
    """Connections for the user of this shell: X509_USER_PROXY, X509_CERT_DIR and GRIDFABRIC_* as they are set.

    Raises CredentialError when there is no proxy or it has expired, before anything is sent.
    """
    services = endpoints.find(environ, state)
    credential, path = proxy.load(None, environ)
    if credential.not_after <= proxy.now_utc():
        raise CredentialError(
            Reason.PROXY_EXPIRED,
            f"the proxy {path} expired at {utc_text(credential.not_after)}; make a new one with: grid proxy init",
            {"path": str(path), "subject": str(credential.subject)},
        )
    async with open_grid(services, credential, certificates_of(services, environ)) as grid:
        yield grid


def administrator(state: Path) -> Credential:
    """The operator's credential of the grid in this state folder. Raises NotFound, CredentialError."""
    path = state / "admin.pem"
    if not path.exists():
        raise NotFound(
            "ADMINISTRATOR_MISSING",
            f"there is no administrator's credential {path}; run this where the grid was started, or give --state",
            path=path,
        )
    return Credential.load(path)


@asynccontextmanager
async def as_operator(state: Path | None, environ: Mapping[str, str] = os.environ) -> AsyncIterator[Grid]:
    """Connections in the name of the operator of the grid in the state folder."""
    folder = endpoints.state_folder(state, environ)
    services = endpoints.find(environ, folder)
    async with open_grid(services, administrator(folder), Path(services.certificates)) as grid:
        yield grid
