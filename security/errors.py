"""The closed set of reasons for which a credential, a chain or a person is refused, and the errors that carry them.

Callers branch on `reason`, never on text. `sentence` is one readable line: what failed, for which certificate, when,
and what to do next; the same sentence may be shown on both ends of a connection, so it never holds a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

MAX_SENTENCE_LENGTH = 1000
"""A sentence travels in a gRPC status whose details may take 4 KiB; names in it come from the peer."""
MAX_FACT_LENGTH = 300
"""As above: several facts have to fit together."""


class Reason(StrEnum):
    """Why something was refused. A closed set: a peer may switch on these strings."""

    UNKNOWN_CA = "UNKNOWN_CA"
    """No installed authority issued the certificate."""
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    """A certificate of the path (not a proxy) is past its notAfter."""
    PROXY_EXPIRED = "PROXY_EXPIRED"
    """A proxy certificate of the chain is past its notAfter."""
    NOT_YET_VALID = "NOT_YET_VALID"
    """A certificate's notBefore is in the future, beyond the allowed clock skew."""
    CERTIFICATE_REVOKED = "CERTIFICATE_REVOKED"
    """A certificate of the path is on its authority's revocation list."""
    PROXY_REVOKED = "PROXY_REVOKED"
    """The serial number of a proxy is on the revocation list of its user's authority."""
    CRL_MISSING = "CRL_MISSING"
    """The site requires a revocation list and none is installed for an authority of the path."""
    CRL_EXPIRED = "CRL_EXPIRED"
    """The installed revocation list is past its nextUpdate and the site requires a current one."""
    CRL_INVALID = "CRL_INVALID"
    """A revocation list does not parse, is not signed by its authority, or has a critical extension not understood."""
    CRL_OLDER = "CRL_OLDER"
    """A revocation list offered for installation is older than the installed one."""
    PROXY_PATH_LENGTH_EXCEEDED = "PROXY_PATH_LENGTH_EXCEEDED"
    """More proxies follow one another than a proxy above allows, or than the site allows."""
    PROXY_NAME_INVALID = "PROXY_NAME_INVALID"
    """A proxy's subject is not its issuer's subject plus exactly one common name."""
    PROXY_POLICY_UNKNOWN = "PROXY_POLICY_UNKNOWN"
    """A proxy carries a policy language this site does not understand (RFC 3820 section 3.8.2 demands refusal)."""
    PROXY_RIGHTS_WIDENED = "PROXY_RIGHTS_WIDENED"
    """A proxy claims more rights than its issuer has, such as a full proxy below a limited one."""
    PROXY_LEGACY = "PROXY_LEGACY"
    """A proxy from before RFC 3820 (CN=proxy, or the GT3 draft extension)."""
    PROXY_EXTENSION_INVALID = "PROXY_EXTENSION_INVALID"
    """A proxy has an extension that RFC 3820 forbids, or a ProxyCertInfo that is malformed or not critical."""
    PROXY_NOT_ALLOWED = "PROXY_NOT_ALLOWED"
    """A proxy was shown where only an end entity may act, such as a host."""
    NAMESPACE_VIOLATION = "NAMESPACE_VIOLATION"
    """An authority signed a name outside its signing policy."""
    SIGNING_POLICY_MISSING = "SIGNING_POLICY_MISSING"
    """No signing policy is installed for an authority of the path."""
    SIGNING_POLICY_INVALID = "SIGNING_POLICY_INVALID"
    """The signing policy of an authority cannot be understood."""
    CERTIFICATE_POLICY = "CERTIFICATE_POLICY"
    """An authority of the path requires a certificate policy (RFC 5280 section 4.2.1.11) that the path has not."""
    HOST_NAME_MISMATCH = "HOST_NAME_MISMATCH"
    """The host certificate is for another host."""
    KEY_USAGE = "KEY_USAGE"
    """The certificate's key usage or extended key usage does not allow this use."""
    BAD_SIGNATURE = "BAD_SIGNATURE"
    """A signature does not verify."""
    CHAIN_MALFORMED = "CHAIN_MALFORMED"
    """The chain is not a sequence of readable certificates each issued by the next."""
    CHAIN_TOO_LONG = "CHAIN_TOO_LONG"
    """The chain has more certificates or bytes than accepted."""
    KEY_TOO_WEAK = "KEY_TOO_WEAK"
    """A key is too short, of a kind not accepted, or signed with a broken digest."""
    LIMITED_PROXY = "LIMITED_PROXY"
    """A limited proxy was used for an action that needs a full one, such as starting a job."""
    NOT_MAPPED = "NOT_MAPPED"
    """The person is in no map line, or asked for an account that is not theirs."""
    BANNED = "BANNED"
    """The person or the certificate is on the site's ban list."""
    BAN_LIST_UNREADABLE = "BAN_LIST_UNREADABLE"
    """The ban list cannot be read or understood: everybody is refused until it can."""
    VO_DISSOLVED = "VO_DISSOLVED"
    """The VO was dissolved: nothing that was ever issued for it is accepted."""
    VO_NOT_ACCEPTED = "VO_NOT_ACCEPTED"
    """The site does not let members of this VO in."""
    VO_LIST_UNREADABLE = "VO_LIST_UNREADABLE"
    """The list of VOs cannot be read or understood: no member of any VO is let in until it can."""
    POOL_EXHAUSTED = "POOL_EXHAUSTED"
    """Every pool account of the wanted kind is leased."""
    MAP_FILE_INVALID = "MAP_FILE_INVALID"
    """The map file, or one line of it, cannot be understood or maps to a forbidden account."""
    MAP_DIRECTORY_INVALID = "MAP_DIRECTORY_INVALID"
    """The pool account directory cannot be used."""
    ACCOUNT_UNKNOWN = "ACCOUNT_UNKNOWN"
    """The local account does not exist on this host or is forbidden (uid 0)."""
    CREDENTIAL_FILE_UNSAFE = "CREDENTIAL_FILE_UNSAFE"
    """A private key file can be read by others or belongs to somebody else."""
    ENVIRONMENT_INVALID = "ENVIRONMENT_INVALID"
    """Variables that mean nothing together."""
    CREDENTIAL_NOT_FOUND = "CREDENTIAL_NOT_FOUND"
    """There is no credential file where one was looked for."""
    CREDENTIAL_MALFORMED = "CREDENTIAL_MALFORMED"
    """A credential file cannot be understood, or its parts do not belong together."""
    CREDENTIAL_LOCKED = "CREDENTIAL_LOCKED"
    """The private key is encrypted and no, or a wrong, passphrase was given."""
    NAME_MALFORMED = "NAME_MALFORMED"
    """A distinguished name cannot be understood or is too long."""
    REQUEST_MALFORMED = "REQUEST_MALFORMED"
    """A certificate request cannot be understood."""
    LIFETIME_INVALID = "LIFETIME_INVALID"
    """The lifetime asked for is not positive, or the issuer itself is no longer valid."""
    DUPLICATE_SUBJECT = "DUPLICATE_SUBJECT"
    """The authority already has an active certificate of this subject and no renewal was asked for."""
    SERIAL_UNKNOWN = "SERIAL_UNKNOWN"
    """The authority never issued a certificate of that serial number."""
    AUTHORITY_INVALID = "AUTHORITY_INVALID"
    """The authority's directory is missing, damaged, unsafe or already in use."""
    TRUST_DIRECTORY_INVALID = "TRUST_DIRECTORY_INVALID"
    """The directory of authorities does not exist or cannot be used."""
    ATTRIBUTE_INVALID = "ATTRIBUTE_INVALID"
    """A VOMS attribute certificate is malformed, expired, not for this holder, or from an unknown server."""


class SecurityError(Exception):
    """A refusal. `reason` is for programs, `sentence` for people, `facts` (all strings) for records.

    Picklable, so that it can cross process boundaries unchanged. Never contains key material.
    """

    reason: Reason
    sentence: str
    facts: Mapping[str, str]

    def __init__(self, reason: Reason | str, sentence: str, facts: Mapping[str, str] | None = None) -> None:
        self.reason = Reason(reason)
        self.sentence = one_line(sentence, MAX_SENTENCE_LENGTH)
        cut = {key: one_line(value, MAX_FACT_LENGTH) for key, value in (facts or {}).items()}
        self.facts = MappingProxyType(cut)
        super().__init__(self.reason, self.sentence)

    def __str__(self) -> str:
        return self.sentence

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason.value}: {self.sentence})"

    def __reduce__(self) -> tuple[type[SecurityError], tuple[str, str, dict[str, str]]]:
        return (type(self), (self.reason.value, self.sentence, dict(self.facts)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecurityError):
            return NotImplemented
        return (type(self), self.reason, self.sentence, dict(self.facts)) == (
            type(other),
            other.reason,
            other.sentence,
            dict(other.facts),
        )

    def __hash__(self) -> int:
        return hash((self.reason, self.sentence))


class CredentialError(SecurityError):
    """A credential of our own cannot be loaded, made or used."""


class ValidationError(SecurityError):
    """A peer's chain, signature or revocation list is not acceptable."""


class AuthorizationError(SecurityError):
    """A valid identity may not do this here."""


class MappingError(SecurityError):
    """A valid identity cannot be given a local account."""


def one_line(text: str, limit: int) -> str:
    """Text made safe for one line of a record: control characters escaped, no longer than `limit`."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def os_error_text(error: BaseException) -> str:
    """Why, for a sentence: the operating system's words, without the number and the call that Python puts around them.

    Of several failures in one (each address of a host) the first; what is no OSError says itself.
    """
    number = _ERRNO.search(str(error)) if isinstance(error, OSError) else None
    if number is None:
        return str(error) or type(error).__name__
    text = os.strerror(int(number[1])) if int(number[1]) > 0 else str(getattr(error, "strerror", error))
    return f"{text[:1].lower()}{text[1:]}"


_ERRNO = re.compile(r"\[Errno (-?\d+)\]")  # a host name that does not resolve has a negative one, and its own words


def utc_text(moment: datetime) -> str:
    """A moment as `2026-01-31T12:00:00Z`, the form used in every sentence and fact."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def require_utc(now: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError for a naive datetime: a local time taken for UTC would shift
    validity."""
    if now.tzinfo is None:
        raise ValueError("now must be an aware datetime in UTC")
    return now.astimezone(UTC)
