"""The path of a chain by OpenSSL, its error codes in our words, and the proxy rules of RFC 3820 that we check
ourselves."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

from cryptography import x509
from OpenSSL import crypto

from security import certificates
from security._policies import policy_problem
from security.errors import Reason, ValidationError, utc_text
from security.policy import ValidationPolicy
from security.proxies import ProxyInfo, ProxyKind, proxy_info
from security.trust import TrustSnapshot

# X509_V_ERR_* of OpenSSL 3 (x509_vfy.h): the reason, what it says about the certificate, what to do.
_TRANSLATION: dict[int, tuple[Reason, str, str]] = {
    2: (Reason.UNKNOWN_CA, "its issuer is not an installed authority", "install it or use another credential"),
    6: (Reason.CHAIN_MALFORMED, "its issuer's key cannot be read", "check the chain"),
    7: (Reason.BAD_SIGNATURE, "it was not signed with the key of the issuer known here",
        "it is forged, or its authority has a new key that is not installed"),
    18: (Reason.UNKNOWN_CA, "it is self-signed and not an installed authority", "get a certificate from an authority"),
    19: (Reason.UNKNOWN_CA, "the authority at the end of its chain is not installed", "install the authority"),
    20: (Reason.UNKNOWN_CA, "its issuer is not an installed authority", "install it or use another credential"),
    21: (Reason.UNKNOWN_CA, "its issuer is not an installed authority", "send the whole chain"),
    22: (Reason.CHAIN_TOO_LONG, "the path is longer than OpenSSL accepts", "use fewer levels of delegation"),
    24: (Reason.CHAIN_MALFORMED, "its issuer has no usable key", "use another credential"),
    25: (Reason.CHAIN_TOO_LONG, "the path length limit of an authority is exceeded", "ask the authority"),
    26: (Reason.KEY_USAGE, "its purpose does not allow this use", "ask its authority for another certificate"),
    32: (Reason.KEY_USAGE, "its key usage does not include certificate signing", "use a chain of RFC 3820 proxies"),
    34: (Reason.CHAIN_MALFORMED, "it has a critical extension that is not understood", "use another credential"),
    37: (Reason.KEY_USAGE, "its extensions contradict each other", "use another credential"),
    38: (Reason.PROXY_PATH_LENGTH_EXCEEDED, "more proxies follow or are claimed than it allows", "delegate less deep"),
    39: (Reason.KEY_USAGE, "its key usage has no digitalSignature, so it can have no proxies", "ask its authority"),
    40: (Reason.PROXY_NOT_ALLOWED, "proxies are not allowed here", "use the end-entity certificate"),
    41: (Reason.CHAIN_MALFORMED, "an extension is invalid or inconsistent", "use another credential"),
    47: (Reason.NAMESPACE_VIOLATION, "its name is outside what its authority may sign", "ask its authority"),
    48: (Reason.NAMESPACE_VIOLATION, "its name is in what its authority may not sign", "ask its authority"),
    55: (Reason.CHAIN_MALFORMED, "the chain runs in a circle", "send the proxy, then its issuers"),
    66: (Reason.KEY_TOO_WEAK, "its key is too short", "make a new one"),
    67: (Reason.KEY_TOO_WEAK, "the key of an authority is too short", "ask the authority"),
    68: (Reason.KEY_TOO_WEAK, "it is signed with a broken digest", "ask its authority for another"),
    72: (Reason.PROXY_NAME_INVALID, "its subject is not its issuer's plus one common name", "make a new proxy"),
    76: (Reason.KEY_TOO_WEAK, "it is signed with an unsupported algorithm", "use another credential"),
    77: (Reason.BAD_SIGNATURE, "its signature algorithm contradicts its issuer's key", "use another credential"),
    78: (Reason.BAD_SIGNATURE, "it names two signature algorithms", "use another credential"),
    79: (Reason.KEY_USAGE, "it is not an authority but issued a certificate", "use a chain of RFC 3820 proxies"),
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
    native = [certificates.native(certificate) for certificate in offered]
    context = crypto.X509StoreContext(trust.store, native[0], native[1:])
    try:
        verified = context.get_verified_chain()
    except crypto.X509StoreContextError as error:
        raise _translate(error, offered, trust, now) from None
    except crypto.Error as error:
        raise ValidationError(
            Reason.CHAIN_MALFORMED,
            f"OpenSSL cannot read the chain of {certificates.describe(offered[0])} ({error}); use another one",
            certificates.facts_of(offered[0], "path", now),
        ) from error
    known = {certificates.der(certificate): certificate for certificate in offered}
    path: list[x509.Certificate] = []
    for entry in verified:
        encoded = crypto.dump_certificate(crypto.FILETYPE_ASN1, entry)
        certificate = known.get(encoded)
        if certificate is None:
            authority = trust.authority_of(encoded)
            certificate = authority.certificate if authority is not None else entry.to_cryptography()
        path.append(certificate)
    if any(certificates.has_policy_rules(certificate) for certificate in path):
        _require_policies(tuple(path), now)
    return tuple(path)


def _require_policies(path: tuple[x509.Certificate, ...], now: datetime) -> None:
    """Certificate policies of the path above the proxies, which have none: see `security._policies`."""
    above = [certificate for certificate in path if not _is_proxy(certificate)]
    problem = policy_problem(above)
    if problem:
        raise ValidationError(
            Reason.CERTIFICATE_POLICY,
            f"{certificates.describe(above[0])} is refused by the certificate policies of its path: {problem}; "
            "ask its authority",
            certificates.facts_of(above[0], "certificate policy", now),
        )


def _translate(
    error: crypto.X509StoreContextError, offered: tuple[x509.Certificate, ...], trust: TrustSnapshot, now: datetime
) -> ValidationError:
    code = int(error.errors[0])
    try:
        failing = error.certificate.to_cryptography()
    except (crypto.Error, *certificates.UNREADABLE):  # OpenSSL failed before it came to one
        failing = offered[0]
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
    if code in _ISSUER_MISSING and trust.named(certificates.issuer_of(failing)):
        code = _FORGED_KEY  # an authority of that name is installed, but its key is not the one that signed
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
                f"{certificates.describe(certificate)} is a legacy (GT2) proxy; make an RFC 3820 proxy: "
                "grid-proxy-init -rfc",
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
                f"the proxy {certificates.describe(certificate)} stands above a certificate that is not a proxy; "
                "a proxy can issue proxies only",
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
            f"{certificates.describe(chain[0])} is delegated {len(proxies)} levels deep, more than the "
            f"{max_depth} accepted",
            certificates.facts_of(chain[0], "proxy rules", now),
        )
    limited_above = False
    for index in range(len(proxies) - 1, -1, -1):
        certificate, info = chain[index], proxies[index]
        issuer = chain[index + 1] if linked and index + 1 < len(chain) else None
        _require_proxy_name(certificate, issuer, now)
        _require_proxy_extensions(certificate, now)
        refuse = partial(_proxy_refused, certificate, now)
        if info.kind is ProxyKind.RESTRICTED:
            raise refuse(
                Reason.PROXY_POLICY_UNKNOWN,
                f"has the policy language {info.language}, unknown here; make a full or limited proxy",
                language=info.language,
            )
        if info.policy is not None:  # the limited language of Globus has none either, and Globus refuses it
            raise refuse(
                Reason.PROXY_EXTENSION_INVALID,
                "has a policy text where its policy language allows none (RFC 3820 section 3.8.2); make a new proxy",
            )
        if info.path_length is not None and index > info.path_length:
            raise refuse(
                Reason.PROXY_PATH_LENGTH_EXCEEDED,
                f"allows {info.path_length} proxies below it, but {index} follow; delegate less deep",
                pathLength=str(info.path_length),
                below=str(index),
            )
        if limited_above and info.kind is not ProxyKind.LIMITED:
            raise refuse(
                Reason.PROXY_RIGHTS_WIDENED,
                f"is {info.kind.value} but was made from a limited one; make it limited as well",
            )
        limited_above = limited_above or info.kind is ProxyKind.LIMITED


def _proxy_refused(
    certificate: x509.Certificate, now: datetime, reason: Reason, sentence: str, **facts: str
) -> ValidationError:
    return ValidationError(
        reason,
        f"the proxy {certificates.describe(certificate)} {sentence}",
        {**certificates.facts_of(certificate, "proxy rules", now), **facts},
    )


def _require_proxy_name(certificate: x509.Certificate, issuer: x509.Certificate | None, now: datetime) -> None:
    """RFC 3820 sections 3.3 and 3.4: issuer is the issuing certificate's subject, subject that plus one common name."""
    subject, named = certificates.subject_of(certificate), certificates.issuer_of(certificate)
    last = subject.rdns[-1] if subject.rdns else ()
    fits = subject.parent == named and len(last) == 1 and last[0][0] == "CN" and bool(named.rdns)
    if fits and issuer is not None:
        fits = certificates.subject_of(issuer) == named
    if not fits:
        raise _proxy_refused(
            certificate,
            now,
            Reason.PROXY_NAME_INVALID,
            "has a subject that is not its issuer's subject plus exactly one CN; make a new proxy",
        )


def _require_proxy_extensions(certificate: x509.Certificate, now: datetime) -> None:
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
        raise _proxy_refused(
            certificate, now, Reason.PROXY_EXTENSION_INVALID, f"breaks RFC 3820: {problem}; make a new proxy"
        )


def in_time(certificate: x509.Certificate, policy: ValidationPolicy, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now + policy.clock_skew and now <= certificate.not_valid_after_utc


def require_time(certificate: x509.Certificate, is_proxy: bool, policy: ValidationPolicy, now: datetime) -> None:
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > not_after:
        kind = "the proxy" if is_proxy else "the certificate"
        cure = "make a new proxy" if is_proxy else "renew the certificate"
        raise ValidationError(
            Reason.PROXY_EXPIRED if is_proxy else Reason.CERTIFICATE_EXPIRED,
            f"{kind} {certificates.describe(certificate)} expired at {utc_text(not_after)}; {cure}",
            {**certificates.facts_of(certificate, "validity", now), "notAfter": utc_text(not_after)},
        )
    if not_before > now + policy.clock_skew:
        raise ValidationError(
            Reason.NOT_YET_VALID,
            f"{certificates.describe(certificate)} is valid only from {utc_text(not_before)}, "
            f"{duration_text(not_before - now)} after the clock of this host, and a clock skew of at most "
            f"{duration_text(policy.clock_skew)} is excused; check the clocks of both hosts",
            {
                **certificates.facts_of(certificate, "validity", now),
                "notBefore": utc_text(not_before),
                "clockSkew": duration_text(policy.clock_skew),
            },
        )


def duration_text(duration: timedelta) -> str:
    """A length of time for a sentence: `90 s`, `5 min`, `3 h`, `12 d`."""
    seconds = round(duration.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (seconds >= length and seconds % length == 0):
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


_BROKEN_DIGESTS = frozenset({"md5", "sha1"})


def require_strength(certificate: x509.Certificate, is_root: bool, policy: ValidationPolicy, now: datetime) -> None:
    problem = certificates.key_problem(certificates.public_key_of(certificate), policy.shortest_rsa_bits)
    if problem is None and not is_root and not policy.allow_weak:  # nothing rests on the signature of an installed root
        digest = certificates.digest_name(certificate)
        if not digest or digest in _BROKEN_DIGESTS:
            problem = f"it is signed with {digest or 'an unknown digest'}"
    if problem is not None:
        raise ValidationError(
            Reason.KEY_TOO_WEAK,
            f"{certificates.describe(certificate)} is refused: {problem}",
            certificates.facts_of(certificate, "key", now),
        )


def require_namespaces(path: tuple[x509.Certificate, ...], depth: int, trust: TrustSnapshot, now: datetime) -> None:
    """Every certificate issued by an authority lies in that authority's namespace.

    `depth`: how many proxies the path begins with. Excepted are the root itself and certificates in which an authority
    names itself (a new key signed by the old one).
    """
    for index in range(len(path) - 2, depth - 1, -1):
        certificate = path[index]
        if certificates.subject_of(certificate) == certificates.issuer_of(certificate):
            continue
        name = certificates.subject_of(path[index + 1])
        policy, problem = trust.policy_for(path[index + 1 :])
        if policy is not None and policy.permits(name, certificates.subject_of(certificate)):
            continue
        facts = {**certificates.facts_of(certificate, "namespace", now), "authority": str(name)}
        if policy is None:
            raise ValidationError(
                Reason.SIGNING_POLICY_INVALID if problem else Reason.SIGNING_POLICY_MISSING,
                f"the signing policy of {name} cannot be used ({problem})"
                if problem
                else f"no signing policy of {name} is installed, so it may sign nothing; the site must install it",
                facts,
            )
        raise ValidationError(
            Reason.NAMESPACE_VIOLATION,
            f"{name} may not sign {certificates.describe(certificate)}: outside its signing policy, which allows "
            f"{', '.join(policy.texts(name)[:8]) or 'nothing'}; ask the authority for a certificate inside it",
            facts,
        )
