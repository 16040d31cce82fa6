"""The path of a chain by OpenSSL, its error codes in our words, and the proxy rules of RFC 3820 that we check ourselves."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from OpenSSL import crypto

from security import certificates
from security.errors import Reason, ValidationError
from security.proxies import ProxyInfo, ProxyKind, proxy_info
from security.trust import TrustSnapshot

# X509_V_ERR_* of OpenSSL 3 (x509_vfy.h): the reason, what it says about the certificate, what to do.
_TRANSLATION: dict[int, tuple[Reason, str, str]] = {
    2: (Reason.UNKNOWN_CA, "its issuer is not an installed authority", "install the authority or use another credential"),
    6: (Reason.CHAIN_MALFORMED, "its issuer's key cannot be read", "check the chain"),
    7: (Reason.BAD_SIGNATURE, "it was not signed with the key of the issuer known here", "it is forged, or its authority "
        "has a new key that is not installed"),
    18: (Reason.UNKNOWN_CA, "it is self-signed and not an installed authority", "get a certificate from an authority"),
    19: (Reason.UNKNOWN_CA, "the authority at the end of its chain is not installed", "install the authority"),
    20: (Reason.UNKNOWN_CA, "its issuer is not an installed authority", "install the authority or use another credential"),
    21: (Reason.UNKNOWN_CA, "its issuer is not an installed authority", "send the whole chain"),
    22: (Reason.CHAIN_TOO_LONG, "the path is longer than OpenSSL accepts", "use fewer levels of delegation"),
    24: (Reason.KEY_USAGE, "it is not an authority but issued a certificate", "use a chain of RFC 3820 proxies"),
    25: (Reason.CHAIN_TOO_LONG, "the path length limit of an authority is exceeded", "ask the authority"),
    26: (Reason.KEY_USAGE, "its purpose does not allow this use", "ask its authority for another certificate"),
    32: (Reason.KEY_USAGE, "its key usage does not include certificate signing", "use a chain of RFC 3820 proxies"),
    34: (Reason.CHAIN_MALFORMED, "it has a critical extension that is not understood", "use another credential"),
    37: (Reason.KEY_USAGE, "its extensions contradict each other", "use another credential"),
    38: (Reason.PROXY_PATH_LENGTH_EXCEEDED, "more proxies follow than it allows", "delegate less deep"),
    39: (Reason.KEY_USAGE, "its key usage has no digitalSignature, so it can have no proxies", "ask its authority"),
    40: (Reason.PROXY_NOT_ALLOWED, "proxies are not allowed here", "use the end-entity certificate"),
    41: (Reason.CHAIN_MALFORMED, "an extension is invalid or inconsistent", "use another credential"),
    47: (Reason.NAMESPACE_VIOLATION, "its name is outside what its authority may sign", "ask its authority"),
    48: (Reason.NAMESPACE_VIOLATION, "its name is in what its authority may not sign", "ask its authority"),
    67: (Reason.PROXY_NAME_INVALID, "its subject is not its issuer's plus one common name", "make a new proxy"),
}  # fmt: skip
_ISSUER_MISSING = frozenset({2, 20, 21})
_FORGED_KEY = 7


def build_path(
    offered: tuple[x509.Certificate, ...], trust: TrustSnapshot, now: datetime
) -> tuple[x509.Certificate, ...]:
    """The path from the first certificate to an installed self-signed authority, signatures verified by OpenSSL.

    Certificates that are not needed are dropped. Raises ValidationError with the failing certificate. Times and
    revocation are not checked here.
    """
    native = [crypto.X509.from_cryptography(certificate) for certificate in offered]
    context = crypto.X509StoreContext(trust.store, native[0], native[1:])
    try:
        verified = context.get_verified_chain()
    except crypto.X509StoreContextError as error:
        raise _translate(error, offered, now) from None
    known = {certificates.der(certificate): certificate for certificate in offered}
    path: list[x509.Certificate] = []
    for entry in verified:
        encoded = crypto.dump_certificate(crypto.FILETYPE_ASN1, entry)
        certificate = known.get(encoded)
        if certificate is None:
            authority = trust.authority_of(encoded)
            certificate = authority.certificate if authority is not None else entry.to_cryptography()
        path.append(certificate)
    return tuple(path)


def _translate(
    error: crypto.X509StoreContextError, offered: tuple[x509.Certificate, ...], now: datetime
) -> ValidationError:
    code = int(error.errors[0])
    failing = error.certificate.to_cryptography()
    if code != _FORGED_KEY:
        # OpenSSL says "invalid CA certificate" for most malformed proxies: our own rules name the fault.
        try:
            proxy_rules(offered, diagnose_proxies(offered), len(offered), now, linked=False)
        except ValidationError as better:
            return better
    legacy = _legacy_proxy(offered, now)
    if legacy is not None:
        return legacy
    facts = {**certificates.facts_of(failing, "path", now), "openssl": f"{code} {error.errors[2]}"}
    if code in _ISSUER_MISSING and _is_proxy(failing):
        return ValidationError(
            Reason.CHAIN_MALFORMED,
            f"the chain of the proxy {certificates.describe(failing)} is incomplete; send its issuers too",
            facts,
        )
    reason, what, cure = _TRANSLATION.get(
        code, (Reason.CHAIN_MALFORMED, f"OpenSSL refuses it ({error.errors[2]})", "use another credential")
    )
    return ValidationError(reason, f"{certificates.describe(failing)} is refused: {what}; {cure}", facts)


def _is_proxy(certificate: x509.Certificate) -> bool:
    try:
        return proxy_info(certificate) is not None
    except ValidationError:
        return True


def _legacy_proxy(offered: tuple[x509.Certificate, ...], now: datetime) -> ValidationError | None:
    """GT2 proxies: no extension, subject = issuer + CN=proxy or CN=limited proxy."""
    for certificate in offered:
        subject, issuer = certificates.subject_of(certificate), certificates.issuer_of(certificate)
        if subject.parent == issuer and subject.rdns[-1:] in (
            ((("CN", "proxy"),),),
            ((("CN", "limited proxy"),),),
        ):
            return ValidationError(
                Reason.PROXY_LEGACY,
                f"{certificates.describe(certificate)} is a legacy (GT2) proxy; make an RFC 3820 proxy: grid-proxy-init -rfc",
                certificates.facts_of(certificate, "proxy extension", now),
            )
    return None


def diagnose_proxies(chain: tuple[x509.Certificate, ...]) -> tuple[ProxyInfo, ...]:
    """ProxyCertInfo of the leading proxies. Raises ValidationError for a malformed one or one above an end entity."""
    infos: list[ProxyInfo] = []
    ended = False
    for certificate in chain:
        info = proxy_info(certificate)
        if info is None:
            ended = True
        elif ended:
            raise ValidationError(
                Reason.CHAIN_MALFORMED,
                f"the proxy {certificates.describe(certificate)} stands above a certificate that is not a proxy",
                certificates.facts_of(certificate, "proxy rules"),
            )
        else:
            infos.append(info)
    return tuple(infos)


def proxy_rules(
    chain: tuple[x509.Certificate, ...],
    proxies: tuple[ProxyInfo, ...],
    max_depth: int,
    now: datetime,
    *,
    linked: bool = True,
) -> None:
    """RFC 3820 sections 3 and 4 for the leading proxies of a chain (leaf first), the first made proxy first.

    `linked` False: the chain may lack certificates, so neighbours are not compared.
    """
    if len(proxies) > max_depth:
        raise ValidationError(
            Reason.PROXY_PATH_LENGTH_EXCEEDED,
            f"{certificates.describe(chain[0])} is delegated {len(proxies)} levels deep, more than the {max_depth} accepted",
            certificates.facts_of(chain[0], "proxy rules", now),
        )
    limited_above: x509.Certificate | None = None
    for index in range(len(proxies) - 1, -1, -1):
        certificate, info = chain[index], proxies[index]
        issuer = chain[index + 1] if linked and index + 1 < len(chain) else None
        facts = certificates.facts_of(certificate, "proxy rules", now)
        described = certificates.describe(certificate)
        _require_proxy_name(certificate, issuer, described, facts)
        _require_proxy_extensions(certificate, described, facts)
        if info.kind is ProxyKind.RESTRICTED:
            raise ValidationError(
                Reason.PROXY_POLICY_UNKNOWN,
                f"the proxy {described} has the policy language {info.language}, unknown here; make a full or limited proxy",
                {**facts, "language": info.language},
            )
        if info.policy and info.kind is not ProxyKind.LIMITED:
            raise ValidationError(
                Reason.PROXY_EXTENSION_INVALID,
                f"the proxy {described} has a policy text where RFC 3820 section 3.8.2 allows none",
                facts,
            )
        if info.path_length is not None and index > info.path_length:
            raise ValidationError(
                Reason.PROXY_PATH_LENGTH_EXCEEDED,
                f"the proxy {described} allows {info.path_length} proxies below it, but {index} follow; delegate less deep",
                {**facts, "pathLength": str(info.path_length), "below": str(index)},
            )
        if limited_above is not None and info.kind is not ProxyKind.LIMITED:
            raise ValidationError(
                Reason.PROXY_RIGHTS_WIDENED,
                f"the proxy {described} is {info.kind.value} but was made from a limited one; make it limited as well",
                facts,
            )
        if info.kind is ProxyKind.LIMITED:
            limited_above = certificate


def _require_proxy_name(
    certificate: x509.Certificate, issuer: x509.Certificate | None, described: str, facts: dict[str, str]
) -> None:
    """RFC 3820 sections 3.3 and 3.4: issuer is the issuing certificate's subject, subject that plus one common name."""
    subject, named = certificates.subject_of(certificate), certificates.issuer_of(certificate)
    last = subject.rdns[-1] if subject.rdns else ()
    fits = subject.parent == named and len(last) == 1 and last[0][0] == "CN" and bool(named.rdns)
    if fits and issuer is not None:
        fits = certificates.subject_of(issuer) == named
    if not fits:
        raise ValidationError(
            Reason.PROXY_NAME_INVALID,
            f"the subject of the proxy {described} is not its issuer's subject plus exactly one CN; make a new proxy",
            facts,
        )


def _require_proxy_extensions(certificate: x509.Certificate, described: str, facts: dict[str, str]) -> None:
    """RFC 3820 sections 3.5 to 3.9: no alternative names, no authority bit, and a key that may sign."""
    problem = ""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            problem = "it claims to be an authority"
        elif isinstance(value, (x509.SubjectAlternativeName, x509.IssuerAlternativeName)):
            problem = "it has an alternative name"
        elif isinstance(value, x509.KeyUsage) and value.key_cert_sign:
            problem = "its key usage includes certificate signing"
    if problem:
        raise ValidationError(
            Reason.PROXY_EXTENSION_INVALID, f"the proxy {described} breaks RFC 3820: {problem}; make a new proxy", facts
        )
