"""Putting authorities and revocation lists into a trust directory: verified, atomic, durable, never older."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from security import certificates
from security._crl import to_der, to_pem
from security.certificates import MAX_CERTIFICATE_BYTES, parse_authority, subject_hash
from security.errors import Reason, SecurityError, ValidationError, require_utc, utc_text
from security.files import read_bounded, sync_directory, write_atomic
from security.names import DistinguishedName, same_name
from security.revocation import MAX_CRL_BYTES, RevocationList, is_delta, parse_crl, signed_by, verify_crl
from security.signing_policy import parse_namespaces, parse_signing_policy

MAX_SAME_HASH = 100
"""Authorities with one subject hash in one directory."""
CLOCK_SKEW = timedelta(minutes=5)


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[None, None, None]:
    """One installer at a time; readers need no lock."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install_authority(
    directory: str | Path,
    ca_cert: x509.Certificate | bytes,
    signing_policy: str,
    crl: bytes | None = None,
    *,
    now: datetime | None = None,
    namespaces: str | None = None,
    info: str | None = None,
) -> Path:
    """Install an authority with its signing policy and, where there is one, its revocation list.

    The policy and the list are written before the certificate: at no moment is the authority trusted without them.
    Installing the same certificate again replaces policy and list. Returns the certificate's path. Raises
    ValidationError (CHAIN_MALFORMED, KEY_USAGE, SIGNING_POLICY_INVALID, CRL_INVALID ...) before anything is written.
    """
    folder = Path(directory)
    certificate = parse_authority(ca_cert if isinstance(ca_cert, bytes) else certificates.pem([ca_cert]))
    subject = certificates.subject_of(certificate)
    if not parse_signing_policy(signing_policy).names_authority(subject):
        raise ValidationError(
            Reason.SIGNING_POLICY_INVALID,
            f"the signing policy offered for {subject} does not name that authority",
            certificates.facts_of(certificate, "signing policy"),
        )
    if namespaces is not None and not parse_namespaces(namespaces).names_authority(subject, own=True):
        raise ValidationError(
            Reason.SIGNING_POLICY_INVALID,
            f"the namespaces offered for {subject} do not name that authority",
            certificates.facts_of(certificate, "signing policy"),
        )
    good = verify_crl(parse_crl(crl), certificate) if crl is not None else None
    stem = subject_hash(certificate)
    with _locked(folder):
        index = _index_of(folder, stem, certificate)
        for kind, text in (("signing_policy", signing_policy), ("namespaces", namespaces), ("info", info)):
            if text is not None:
                write_atomic(folder / f"{stem}.{kind}", text.encode(), 0o644)
        if good is not None and crl is not None:
            _write_crl(folder, stem, index, certificate, good, crl, now)
        path = folder / f"{stem}.{index}"
        write_atomic(path, certificates.pem([certificate]), 0o644)
    return path


def _index_of(folder: Path, stem: str, certificate: x509.Certificate) -> int:
    """The N of HASH.N that this certificate has, or the first one free."""
    for index in range(MAX_SAME_HASH):
        path = folder / f"{stem}.{index}"
        if not path.exists():
            return index
        try:
            if parse_authority(read_bounded(path, MAX_CERTIFICATE_BYTES)) == certificate:
                return index
        except (SecurityError, OSError):
            continue
    raise ValidationError(Reason.TRUST_DIRECTORY_INVALID, f"more than {MAX_SAME_HASH} authorities {stem} in {folder}")


def _write_crl(
    folder: Path,
    stem: str,
    index: int,
    authority: x509.Certificate,
    offered: RevocationList,
    data: bytes,
    now: datetime | None,
) -> Path:
    facts = {"check": "revocation list", "issuer": str(offered.issuer), "lastUpdate": utc_text(offered.last_update)}
    if now is not None:
        moment = require_utc(now)
        if offered.last_update > moment + CLOCK_SKEW:
            raise ValidationError(
                Reason.CRL_INVALID,
                f"the revocation list of {offered.issuer} is from the future ({utc_text(offered.last_update)}); "
                "check clocks",
                facts,
            )
        if offered.expired(moment):
            raise ValidationError(
                Reason.CRL_EXPIRED,
                f"the revocation list of {offered.issuer} offered is already expired; fetch again",
                facts,
            )
    path, installed = _slot(folder, stem, index, authority, offered)
    if installed is not None and offered.older_than(installed):
        raise ValidationError(
            Reason.CRL_OLDER,
            f"the revocation list of {offered.issuer} from {utc_text(offered.last_update)} is older than the "
            "installed one "
            f"from {utc_text(installed.last_update)}; the installed one stays",
            facts,
        )
    if installed is not None and installed.document.fingerprint == offered.document.fingerprint:
        return path  # written again it would look like news
    # PEM is the only form that Globus, VOMS and curl all read.
    write_atomic(path, to_pem(to_der(data)), 0o644)
    return path


def _slot(
    folder: Path, stem: str, index: int, authority: x509.Certificate, offered: RevocationList
) -> tuple[Path, RevocationList | None]:
    """The file for a list of this authority and scope, and what is in it: HASH.rN of its certificate's N, if it can be.

    A list for a part of the certificates, or a delta, never takes the place of another one.
    """
    free: Path | None = None
    for number in (index, *(other for other in range(MAX_SAME_HASH) if other != index)):
        path = folder / f"{stem}.r{number}"
        if not path.exists():
            free = free or path
            if number != index:
                break
            continue
        try:
            document = parse_crl(read_bounded(path, MAX_CRL_BYTES), entries=False)
        except (OSError, SecurityError):
            if number == index:
                return path, None  # damaged: any good list is better
            continue
        if document.scope != offered.scope or (document.base_number is None) == is_delta(offered):
            continue
        try:
            return path, verify_crl(document, authority, delta=is_delta(offered))
        except SecurityError:
            if number == index:
                return path, None  # not this authority's: it was of no use there
    if free is None:
        raise ValidationError(Reason.TRUST_DIRECTORY_INVALID, f"more than {MAX_SAME_HASH} lists {stem} in {folder}")
    return free, None


def install_crl(directory: str | Path, crl_pem: bytes, now: datetime) -> Path:
    """Install a revocation list (PEM or DER) of an authority that is already in the directory. Returns its path.

    Raises ValidationError CRL_INVALID, UNKNOWN_CA, CRL_EXPIRED, CRL_OLDER; then nothing has changed.
    """
    folder = Path(directory)
    crl = parse_crl(crl_pem)
    refusal: SecurityError | None = None
    with _locked(folder):
        for path, authority in _authorities(folder).items():
            stem, _, index = path.name.partition(".")
            if not same_name(authority.subject, crl.issuer) or stem != subject_hash(authority) or not index.isdigit():
                continue
            try:
                good = verify_crl(crl, authority, delta=crl.base_number is not None)
            except SecurityError as error:
                refusal = error
                continue
            return _write_crl(folder, stem, int(index), authority, good, crl_pem, now)
    if refusal is not None:
        raise refusal
    raise ValidationError(
        Reason.UNKNOWN_CA,
        f"no authority {crl.issuer.rfc4514_string()[:200]} is installed in {folder}; install it before its "
        "revocation list",
        {"check": "revocation list", "path": str(folder)},
    )


_BESIDE = ("signing_policy", "namespaces", "info", "crl_url")
"""What else of an authority stands in the directory (IGTF distribution)."""


def _is_of(path: Path, authority: x509.Certificate) -> bool:
    try:
        return signed_by(parse_crl(read_bounded(path, MAX_CRL_BYTES), entries=False), authority)
    except (OSError, SecurityError):
        return False


def installed_certificates(directory: str | Path) -> tuple[x509.Certificate, ...]:
    """The authorities whose certificates are in the directory and can be read."""
    return tuple(_authorities(Path(directory)).values())


def _authorities(folder: Path) -> dict[Path, x509.Certificate]:
    found: dict[Path, x509.Certificate] = {}
    for path in sorted(folder.glob("[0-9a-f]" * 8 + ".[0-9]*")):
        with contextlib.suppress(SecurityError, OSError):
            found[path] = parse_authority(read_bounded(path, MAX_CERTIFICATE_BYTES))
    return found


def remove_authority(directory: str | Path, subject: DistinguishedName) -> tuple[Path, ...]:
    """Stop trusting every authority of that name. Returns the files removed (none if it was not there)."""
    return _remove(Path(directory), lambda authority: certificates.subject_of(authority) == subject)


def remove_certificate(directory: str | Path, certificate: x509.Certificate) -> tuple[Path, ...]:
    """Stop trusting one certificate of an authority, whose others (of a newer key) stay with their lists and policies.

    Returns the files that are not there any more (none if it was not there).
    """
    return _remove(Path(directory), lambda authority: authority == certificate)


def _remove(folder: Path, is_meant: Callable[[x509.Certificate], bool]) -> tuple[Path, ...]:
    removed: list[Path] = []
    with _locked(folder):
        by_stem: dict[str, dict[Path, x509.Certificate]] = {}
        for path, authority in _authorities(folder).items():
            by_stem.setdefault(path.name.partition(".")[0], {})[path] = authority
        for stem, found in by_stem.items():
            meant = {path: authority for path, authority in found.items() if is_meant(authority)}
            if not meant:
                continue
            lists = [one for one in folder.glob(f"{stem}.r*") if any(_is_of(one, a) for a in meant.values())]
            if len(meant) == len(found):
                lists += [one for path in meant if (one := folder / f"{stem}.r{path.suffix[1:]}") not in lists]
                lists += [folder / f"{stem}.{kind}" for kind in _BESIDE]
            removed += _unlink_and_close(folder, stem, ".", list(meant))
            removed += _unlink_and_close(folder, stem, ".r", lists)
        sync_directory(folder)
    return tuple(removed)


def _unlink_and_close(folder: Path, stem: str, infix: str, gone: Sequence[Path]) -> list[Path]:
    """Remove files of HASH.N or HASH.rN; the last one takes the place of one that left a gap.

    Other tools stop at the first number that is missing. What takes a place does so in one step: at no moment is an
    authority not there that stays.
    """
    removed = [path for path in gone if path.exists()]
    left = sorted(
        (int(number), path)
        for path in folder.glob(f"{stem}{infix}[0-9]*")
        if path not in gone and (number := path.name.removeprefix(f"{stem}{infix}")).isdigit()
    )
    for path in sorted(removed):
        number = path.name.removeprefix(f"{stem}{infix}")
        if left and number.isdigit() and int(number) < left[-1][0]:
            _, last = left.pop()
            last.replace(path)
            left = sorted([*left, (int(number), path)])
        else:
            path.unlink(missing_ok=True)
    return removed
