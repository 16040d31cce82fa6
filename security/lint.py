"""What is wrong, or unusual, with an installed authority: its certificate, files, namespaces and revocation list.

Expectations are data (`profiles.toml`); which of them an authority has to meet is said by `status = accredited:classic`
in its `.info` file, as the IGTF distribution writes it, or by the caller.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from security import certificates
from security.errors import SecurityError, require_utc, utc_text
from security.files import read_bounded
from security.names import DistinguishedName
from security.signing_policy import SigningPolicy
from security.trust import Authority, TrustSnapshot, stems_of

Level = Literal["error", "warning", "ok"]
DEFAULT_PROFILE = "laboratory"
MAX_INFO_BYTES = 64 * 1024


@dataclass(frozen=True)
class Profile:
    """What is expected of a kind of authority."""

    name: str
    title: str
    authority_rsa_bits: int
    authority_days: tuple[int, int]
    """Least and greatest whole life of its certificate."""
    entity_rsa_bits: int
    entity_days: int
    """Longest life of a certificate that it issues."""
    crl_days: int
    """Longest time between lastUpdate and nextUpdate."""
    crl_required: bool


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    sentence: str


@cache
def profiles() -> Mapping[str, Profile]:
    """Every profile by name."""
    data: dict[str, dict[str, Any]] = tomllib.loads((files("security") / "profiles.toml").read_text("utf-8"))
    return {
        name: Profile(
            name=name,
            title=values["title"],
            authority_rsa_bits=values["authority_rsa_bits"],
            authority_days=(values["authority_days"][0], values["authority_days"][1]),
            entity_rsa_bits=values["entity_rsa_bits"],
            entity_days=values["entity_days"],
            crl_days=values["crl_days"],
            crl_required=values["crl_required"],
        )
        for name, values in data.items()
    }


_INFO_LINE = re.compile(r"^\s*([A-Za-z0-9_.]+)\s*=\s*(.*?)\s*$", re.MULTILINE)


def read_info(directory: Path, authority: Authority) -> dict[str, str]:
    """The `.info` file of an authority, empty if there is none."""
    for stem in sorted(authority.stems):
        try:
            text = read_bounded(directory / f"{stem}.info", MAX_INFO_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        joined = re.sub(r"\\\s*\n", " ", "\n".join(line.partition("#")[0] for line in text.splitlines()))
        return {name: value.strip('"') for name, value in _INFO_LINE.findall(joined)}
    return {}


def profile_of(info: Mapping[str, str]) -> Profile:
    """The profile that `.info` says the authority is accredited for."""
    accredited = re.search(r"accredited:([a-z]+)", info.get("status", ""))
    known = profiles()
    return known.get(accredited[1] if accredited else DEFAULT_PROFILE, known[DEFAULT_PROFILE])


def lint_authority(
    authority: Authority, trust: TrustSnapshot, now: datetime, profile: Profile | None = None
) -> tuple[Finding, ...]:
    """Every finding about one installed authority, good ones included."""
    now = require_utc(now)
    info = read_info(trust.directory, authority) if trust.directory is not None else {}
    expected = profile or profile_of(info)
    return (
        *_certificate(authority.certificate, expected, now),
        *_files(authority, trust, info),
        *_namespaces(authority, trust),
        *_list(authority, expected, now),
    )


def _days(certificate: x509.Certificate) -> int:
    return (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days


def _certificate(certificate: x509.Certificate, expected: Profile, now: datetime) -> list[Finding]:
    found: list[Finding] = []
    problem = certificates.key_problem(certificates.public_key_of(certificate), expected.authority_rsa_bits)
    found.append(Finding("error" if problem else "ok", "key", problem or "its key is strong enough"))
    digest = certificates.digest_name(certificate)
    if certificate.subject != certificate.issuer and digest in ("", "md5", "sha1"):
        found.append(Finding("error", "signature", f"it is signed with {digest or 'an unknown digest'}"))
    left = certificate.not_valid_after_utc - now
    if left.total_seconds() < 0:
        found.append(Finding("error", "validity", f"it expired at {utc_text(certificate.not_valid_after_utc)}"))
    elif certificate.not_valid_before_utc > now:
        found.append(Finding("error", "validity", f"it begins at {utc_text(certificate.not_valid_before_utc)}"))
    elif left.days < expected.entity_days:
        sentence = f"it ends in {left.days} days: what it issues for {expected.entity_days} days outlives it; roll over"
        found.append(Finding("warning", "validity", sentence))
    least, most = expected.authority_days
    if not least <= _days(certificate) <= most:
        sentence = f"its life of {_days(certificate)} days is not within {least} and {most} ({expected.name})"
        found.append(Finding("warning", "validity", sentence))
    return found + _extensions(certificate)


def _extensions(certificate: x509.Certificate) -> list[Finding]:
    """RFC 5280 section 4.2.1 for authorities."""
    found: list[Finding] = []
    extensions = certificate.extensions
    try:
        critical = extensions.get_extension_for_class(x509.BasicConstraints).critical
    except x509.ExtensionNotFound:
        critical = False
    if not critical:
        found.append(Finding("warning", "extensions", "basicConstraints is missing or not critical (4.2.1.9)"))
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.key_cert_sign:
            found.append(Finding("error", "extensions", "keyUsage does not allow signing certificates (4.2.1.3)"))
        if not usage.crl_sign:
            found.append(Finding("error", "extensions", "keyUsage does not allow signing revocation lists (4.2.1.3)"))
    except x509.ExtensionNotFound:
        found.append(Finding("warning", "extensions", "keyUsage is missing (4.2.1.3)"))
    try:
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        found.append(Finding("warning", "extensions", "subjectKeyIdentifier is missing (4.2.1.2)"))
    serial = certificate.serial_number
    if not 0 < serial < 1 << 159:
        found.append(Finding("warning", "serial number", "it is not positive and of 20 bytes at most (4.1.2.2)"))
    return found or [Finding("ok", "extensions", "they are those of an authority")]


def _files(authority: Authority, trust: TrustSnapshot, info: Mapping[str, str]) -> list[Finding]:
    found: list[Finding] = []
    new, old = stems_of(authority.certificate)
    if new not in authority.stems:
        found.append(Finding("error", "files", f"{new}.N is missing: OpenSSL does not find it by its hash"))
    if old not in authority.stems:
        sentence = f"{old}.N, its hash of OpenSSL 0.9, is missing: old tools do not find it"
        found.append(Finding("warning", "files", sentence))
    mine = {f"{stem}." for stem in authority.stems}
    for problem in trust.problems:
        if any(problem.path.name.startswith(stem) for stem in mine):
            found.append(Finding("error", "files", f"{problem.path.name}: {problem.sentence}"))
    if not info:
        return [*found, Finding("warning", "info", "no .info file: nothing says who it is or where its list is")]
    named = info.get("subjectdn", "")
    try:
        if named and DistinguishedName.parse(named) != authority.subject:
            found.append(Finding("error", "info", f"subjectdn is {named}, not {authority.subject}"))
    except SecurityError as error:
        found.append(Finding("error", "info", f"subjectdn: {error.sentence}"))
    fingerprint = authority.certificate.fingerprint(hashes.SHA1()).hex().upper()  # what the distribution has, as a name
    said = info.get("sha1fp.0", "").replace(":", "").upper()
    if said and said != fingerprint:
        found.append(Finding("error", "info", "sha1fp.0 is another certificate's"))
    if "crl_url" not in info and not any(name.startswith("crl_url.") for name in info):
        found.append(Finding("warning", "info", "no crl_url: nobody can fetch its list"))
    if info.get("status", "").startswith(("suspended", "withdrawn", "discontinued")):
        found.append(Finding("error", "info", f"its status is {info['status']}"))
    return found or [Finding("ok", "files", "they are complete")]


def _namespaces(authority: Authority, trust: TrustSnapshot) -> list[Finding]:
    name = authority.subject
    if authority.policy is None:
        why = authority.policy_problem or "there is no .namespaces and no .signing_policy: it may sign nothing"
        return [Finding("error", "namespaces", why)]
    found = [Finding("ok", "namespaces", f"it may sign {', '.join(authority.policy.texts(name))}")]
    patterns = _permitted(authority.policy, name)
    for pattern in patterns:
        if len(_literal(pattern)) < len("/C=XX/O="):
            found.append(Finding("error", "namespaces", f"{pattern!r} is nearly every name; name its own tree"))
    for other in trust.authorities:
        if other is authority or other.policy is None or other.subject == name or _above(other, authority):
            continue
        for pattern in patterns:
            for theirs in _permitted(other.policy, other.subject):
                if _literal(pattern).startswith(_literal(theirs)) or _literal(theirs).startswith(_literal(pattern)):
                    sentence = f"{other.subject} may sign names of it as well: {theirs} and {pattern}"
                    found.append(Finding("warning", "namespaces", sentence))
    for stem in sorted(authority.stems):
        both = trust.policies.get(stem)
        if both is None or not isinstance(both.namespaces, SigningPolicy):
            continue
        if not isinstance(both.signing_policy, SigningPolicy):
            found.append(Finding("warning", "namespaces", f"only {stem}.namespaces: Globus reads .signing_policy"))
        elif _literals(both.namespaces.named(name), name) != _literals(both.signing_policy, name):
            sentence = f"{stem}.namespaces, which counts here, and .signing_policy, which Globus reads, differ"
            found.append(Finding("warning", "namespaces", sentence))
    return list(dict.fromkeys(found))


def _above(one: Authority, other: Authority) -> bool:
    """True if one of them issued the other: an intermediate authority lies in the tree of its root."""
    return one.certificate.issuer == other.certificate.subject or other.certificate.issuer == one.certificate.subject


def _permitted(policy: SigningPolicy, name: DistinguishedName) -> list[str]:
    return [
        pattern
        for entry in policy.entries
        if entry.permit and entry.is_about(name)
        for pattern in entry.subjects
    ]  # fmt: skip


def _literal(pattern: str) -> str:
    """What every name of this pattern begins with."""
    return pattern.split("*", 1)[0].removesuffix(".").replace("\\", "")


def _literals(policy: SigningPolicy, name: DistinguishedName) -> set[str]:
    return {_literal(pattern) for pattern in _permitted(policy, name)}


def _list(authority: Authority, expected: Profile, now: datetime) -> list[Finding]:
    crl = authority.crl
    if crl is None:
        level: Level = "error" if expected.crl_required else "warning"
        return [Finding(level, "revocation list", "none is installed that can be used")]
    found: list[Finding] = []
    if crl.number is None:
        found.append(Finding("warning", "revocation list", "it has no number (RFC 5280 section 5.2.3)"))
    if crl.next_update is None:
        found.append(Finding("error", "revocation list", "it never expires (RFC 5280 section 5.1.2.5)"))
    elif crl.expired(now):
        found.append(Finding("error", "revocation list", f"it expired at {utc_text(crl.next_update)}"))
    elif (crl.next_update - crl.last_update).days > expected.crl_days:
        days = (crl.next_update - crl.last_update).days
        sentence = f"it is good for {days} days, more than {expected.crl_days} ({expected.name})"
        found.append(Finding("warning", "revocation list", sentence))
    if crl.last_update > now:
        found.append(Finding("error", "revocation list", f"it is from the future: {utc_text(crl.last_update)}"))
    sentence = f"number {crl.number}, {len(crl.revoked)} revoked, from {utc_text(crl.last_update)}"
    return found or [Finding("ok", "revocation list", sentence)]


def lint_certificate(certificate: x509.Certificate, expected: Profile) -> tuple[Finding, ...]:
    """What is wrong with an end entity's certificate by the profile of its authority."""
    found: list[Finding] = []
    problem = certificates.key_problem(certificates.public_key_of(certificate), expected.entity_rsa_bits)
    if problem:
        found.append(Finding("error", "key", problem))
    if _days(certificate) > expected.entity_days:
        sentence = f"its life of {_days(certificate)} days is longer than {expected.entity_days} ({expected.name})"
        found.append(Finding("warning", "validity", sentence))
    return tuple(found)
