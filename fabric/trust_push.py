"""The grid's trust set in this host's directory of authorities: pushed by the authority, in force at once.

Agents of one host share the directory; whoever hears first installs for all. Beside the authorities stands a record of
what the push put there: only that may a push take away again, so what a site's manager installed by hand stays as it is
and only gets fresh revocation lists. A set that cannot be understood as a whole changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from gridfabric.authority.v1 import trust_pb2 as pb
from gridfabric.authority.v1 import trust_pb2_grpc as pb_grpc

from fabric.bulletin import Follower
from fabric.context import AgentContext
from fabric.errors import DataCorrupted, Unavailable, from_security
from fabric.host_credential import HostCredential
from fabric.trust_updater import FETCH_TIMEOUT_S, Source, TrustUpdater
from security.certificates import parse_authority, subject_of
from security.errors import Reason, SecurityError, os_error_text
from security.files import read_bounded, write_atomic
from security.installation import install_authority, install_crl, installed_certificates, remove_certificate
from security.revocation import parse_crl, verify_crl
from security.signing_policy import parse_namespaces, parse_signing_policy
from security.trust import TrustStore

RECORD_NAME = ".gridfabric-pushed"
LOCK_NAME = ".gridfabric-push"
LOCK_WAIT_S = 10.0
LOCK_LOOK_S = 0.005
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """What the push has put into a directory: the number of the set, and what was installed by fingerprint."""

    number: int
    installed: dict[str, str]
    """By fingerprint of the authority's certificate: a digest of what was written for it."""

    @classmethod
    def load(cls, directory: Path) -> Record:
        """Nothing where there is none or it cannot be read: then the push removes nothing."""
        try:
            raw: Any = json.loads(read_bounded(directory / RECORD_NAME, MAX_RECORD_BYTES))
            installed = cast("dict[object, object]", raw["installed"])
            return cls(int(raw["number"]), {str(key): str(value) for key, value in installed.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls(0, {})

    def save(self, directory: Path) -> None:
        """Raises OSError."""
        text = json.dumps({"number": self.number, "installed": self.installed}, indent=1)
        write_atomic(directory / RECORD_NAME, text.encode(), 0o644)


@dataclass(frozen=True)
class _Installed:
    """A trust set that is in this host's directory."""

    number: int
    changed: tuple[str, ...]
    """What it changed there, for logs."""
    old: tuple[x509.Certificate, ...]
    """Keys that were followed by newer ones."""


class TrustFollower:
    """Runs in every agent of a grid that has an authority."""

    def __init__(self, context: AgentContext, updater: TrustUpdater, credential: HostCredential) -> None:
        self._context, self._updater, self._credential = context, updater, credential
        self._taken = self._told = 0
        stub: Any = pb_grpc.TrustStub
        self._follower: Follower[pb.TrustSet, _Installed] = Follower(
            context,
            "authorities",
            lambda channel: stub(channel).Watch(pb.WatchTrustRequest()),
            self._understand,
            self._take,
        )

    async def run(self) -> None:
        """Follow the trust set for ever."""
        await self._follower.run()

    async def _understand(self, found: pb.TrustSet) -> _Installed:
        """Install a set, or see that somebody of this host has done so."""
        context = self._context
        directory = context.settings.certificates
        changed: Sequence[str] = ()
        if found.number == self._taken:
            known = Record.load(directory).number
            if known > found.number:  # and not because another process of this host was a moment ahead
                raise DataCorrupted(
                    "TRUST_SET_OLDER",
                    f"the authority's trust set {found.number} is older than {known}, which is in {directory}, and is "
                    f"ignored; if the authority was restored from a copy, remove {directory / RECORD_NAME}",
                )
        else:
            installed = await asyncio.to_thread(install, directory, found, context.clock.now())
            self._taken = found.number
            await asyncio.to_thread(_refresh, context.trust)
            if installed is not None:
                changed = installed
                self._fetch_announced(found)
        old = tuple(parse_authority(one.certificate_pem) for one in found.authorities if one.is_old)
        return _Installed(found.number, tuple(changed), old)

    def _fetch_announced(self, found: pb.TrustSet) -> None:
        """What is too large for the message, and lists of authorities from elsewhere that are not here yet."""
        endpoint = self._context.settings.endpoints("authority")[0]
        announced = [
            Source(endpoint.host, endpoint.http, one.crl.path, FETCH_TIMEOUT_S)
            for one in found.authorities
            if one.HasField("crl") and not one.crl.pem
        ]
        wanted = [*(announced if endpoint.http else ()), *self._updater.distribution_sources(missing=True)]
        if wanted:
            self._context.spawn(self._fetch(wanted), "announced revocation lists")

    async def _fetch(self, wanted: Sequence[Source]) -> None:
        await self._updater.fetch(wanted)
        self._context.news.ring()

    async def _take(self, found: _Installed) -> None:
        """Everybody is judged by what is installed now."""
        self._context.changed.ring()
        self._credential.rolled_over(found.old)
        if found.changed and found.number != self._told:
            self._told = found.number
            self._context.log.info("trust.installed", number=found.number, changed=list(found.changed))


def _refresh(trust: TrustStore) -> None:
    """What cannot be read is told by who looks at the directory anyway."""
    with contextlib.suppress(SecurityError):
        trust.refresh()


def install(directory: Path, found: pb.TrustSet, now: datetime) -> Sequence[str] | None:
    """Make a directory follow a set; what changed, for logs. None if it follows this or a newer one. Blocking.

    Raises DataCorrupted TRUST_SET_INVALID, or Unavailable TRUST_DIRECTORY_UNAVAILABLE.
    """
    if Record.load(directory).number >= found.number:
        return None
    try:
        with _locked(directory):
            record = Record.load(directory)
            if record.number >= found.number:
                return None
            wanted = [_understood(one) for one in found.authorities]
            if not wanted:
                raise DataCorrupted("TRUST_SET_INVALID", "the authority's trust set is empty; it is ignored")
            return _follow(directory, record, found.number, wanted, now)
    except OSError as error:
        raise Unavailable(
            "TRUST_DIRECTORY_UNAVAILABLE",
            f"the grid's authorities cannot be kept in {directory} ({os_error_text(error)})",
        ) from error
    except SecurityError as error:
        raise from_security(error) from error


def remember(directory: Path, certificates: Iterable[x509.Certificate]) -> None:
    """Let the push take these away when the grid is done with them: they were installed for it, not by a manager.

    Raises Unavailable, OSError.
    """
    with _locked(directory):
        record = Record.load(directory)
        new = {_fingerprint(certificate): "" for certificate in certificates}
        if not new.keys() <= record.installed.keys():
            Record(record.number, {**new, **record.installed}).save(directory)


@dataclass(frozen=True)
class _Wanted:
    """One authority of a set whose certificate, policies and list were all understood."""

    certificate: x509.Certificate
    message: pb.TrustedAuthority

    @property
    def digest(self) -> str:
        """Of all but the list."""
        message = self.message
        texts = (message.signing_policy, message.namespaces, message.info)
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _understood(message: pb.TrustedAuthority) -> _Wanted:
    """Raises DataCorrupted TRUST_SET_INVALID."""
    try:
        certificate = parse_authority(message.certificate_pem)
        subject = subject_of(certificate)
        named = parse_signing_policy(message.signing_policy).names_authority(subject)
        if message.namespaces:
            named = named and parse_namespaces(message.namespaces).names_authority(subject, own=True)
        if message.HasField("crl") and message.crl.pem:
            crl = parse_crl(message.crl.pem)
            verify_crl(crl, certificate, delta=crl.base_number is not None)
    except SecurityError as error:
        raise DataCorrupted(
            "TRUST_SET_INVALID", f"the authority's trust set is not understood and ignored: {error.sentence}"
        ) from error
    if not named:
        raise DataCorrupted(
            "TRUST_SET_INVALID", f"the authority's trust set is ignored: its policy of {subject} is about another one"
        )
    return _Wanted(certificate, message)


def _follow(directory: Path, record: Record, number: int, wanted: Sequence[_Wanted], now: datetime) -> Sequence[str]:
    changed: list[str] = []
    there = {_fingerprint(certificate): certificate for certificate in installed_certificates(directory)}
    installed = {key: digest for key, digest in record.installed.items() if key in there}
    for one in wanted:
        key, message = _fingerprint(one.certificate), one.message
        if key not in there or (key in installed and installed[key] != one.digest):
            install_authority(
                directory,
                one.certificate,
                message.signing_policy,
                namespaces=message.namespaces or None,
                info=message.info or None,
            )
            installed[key] = one.digest
            changed.append(f"installed {subject_of(one.certificate)}")
        if message.HasField("crl") and message.crl.pem:
            try:
                install_crl(directory, message.crl.pem, now)
            except SecurityError as error:  # what is here is better
                if error.reason not in (Reason.CRL_OLDER, Reason.CRL_EXPIRED):
                    raise
                changed.append(error.sentence)
    keys = {_fingerprint(one.certificate) for one in wanted}
    for key in installed.keys() - keys:
        remove_certificate(directory, there[key])
        changed.append(f"removed {subject_of(there[key])}")
        del installed[key]
    Record(number, installed).save(directory)
    return changed


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[None]:
    """One agent of this host at a time. Raises Unavailable TRUST_DIRECTORY_BUSY, OSError."""
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Unavailable(
                        "TRUST_DIRECTORY_BUSY", f"{directory} was busy for {LOCK_WAIT_S:g} s; who holds {LOCK_NAME}?"
                    ) from None
                time.sleep(LOCK_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()
