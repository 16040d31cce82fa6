"""Steps 4 and 5 of validation: the revocation lists of a path (RFC 5280 section 6.3), applied to proxies as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from cryptography import x509

from security import certificates
from security._path import build_path, require_namespaces, require_strength, require_time
from security.errors import Reason, SecurityError, ValidationError, utc_text
from security.names import DistinguishedName, same_name
from security.policy import CrlPolicy, ValidationPolicy
from security.revocation import RevocationList, verify_crl
from security.trust import TrustSnapshot, newest_lists

MAX_NESTING = 3
"""Certificates that sign lists, each checked against a list signed by another one."""
MAX_SIGNERS = 8
"""Certificates of one name whose key may have signed a list."""


class RevocationCheck:
    """Looks up the certificates of one path. One use; not for several threads."""

    def __init__(
        self,
        offered: Sequence[x509.Certificate],
        trust: TrustSnapshot,
        policy: ValidationPolicy,
        now: datetime,
        nesting: int = 0,
    ) -> None:
        self._offered, self._trust, self._policy, self._now = tuple(offered), trust, policy, now
        self._nesting = nesting
        self._warnings: list[str] = []

    def of_path(self, path: tuple[x509.Certificate, ...], depth: int) -> tuple[str, ...]:
        """Check every certificate that an authority issued, the topmost first, then the `depth` leading proxies.

        Returns what the site's policy let pass. Raises ValidationError.
        """
        last = len(path) - 1
        for index in range(last, depth - 1, -1):  # the root's own list covers the root
            proxies = path[:depth] if index == depth else ()
            self._certificate(path[index], path[min(index + 1, last) :], proxies)
        return tuple(dict.fromkeys(self._warnings))

    def _certificate(
        self, certificate: x509.Certificate, above: tuple[x509.Certificate, ...], proxies: Sequence[x509.Certificate]
    ) -> None:
        """Steps of RFC 5280 section 6.3.3 for one certificate; `above` is its authority and the path to the root."""
        name = certificates.subject_of(above[0])
        lists = [one for one in self._trust.lists_of(above[0], self._now) if one.covers(certificate)]
        if not lists:
            lists = [one for one in self._of_other_signers(above) if one.covers(certificate)]

        def facts(of: x509.Certificate = certificate) -> dict[str, str]:
            return {**certificates.facts_of(of, "revocation list", self._now), "authority": str(name)}

        if not lists:
            sentence = (
                f"no revocation list of {name} is installed{self._objection(above[0])}, "
                f"{certificates.describe(certificate)} is unchecked"
            )
            self._judge(self._policy.missing_crl, Reason.CRL_MISSING, sentence, "the site must fetch it", facts())
            return
        for one in lists:
            if one.last_update > self._now + self._policy.clock_skew:
                raise ValidationError(
                    Reason.CRL_INVALID,
                    f"the revocation list of {name} is valid only from {utc_text(one.last_update)}; check the clock "
                    "of this host",
                    facts(),
                )
            # Revocation before expiry: what an expired list says is still true.
            self._look_up(one, certificate, proxies, facts)
        self._require_current(lists, name, facts)

    def _objection(self, issuer: x509.Certificate) -> str:
        """Why the lists of this name that are in the directory do not serve, for the sentence that says none is."""
        for document in self._trust.documents_named(issuer.subject):
            try:
                verify_crl(document, issuer, delta=document.base_number is not None, allow_weak=self._policy.allow_weak)
            except SecurityError as error:
                return f" that can be relied upon ({error.sentence.partition(';')[0]})"
            return " that covers it"
        return ""

    def _look_up(
        self,
        one: RevocationList,
        certificate: x509.Certificate,
        proxies: Sequence[x509.Certificate],
        facts: Callable[[x509.Certificate], dict[str, str]],
    ) -> None:
        if one.revokes(certificate.serial_number):
            raise ValidationError(
                Reason.CERTIFICATE_REVOKED,
                f"{certificates.describe(certificate)} was revoked {one.revocation_text(certificate.serial_number)}; "
                "ask the authority for a new certificate",
                facts(certificate),
            )
        for proxy in proxies:
            if one.revokes(proxy.serial_number):
                raise ValidationError(
                    Reason.PROXY_REVOKED,
                    f"the proxy {certificates.describe(proxy)} was revoked "
                    f"{one.revocation_text(proxy.serial_number)}; make a new proxy",
                    facts(proxy),
                )

    def _require_current(
        self, lists: Sequence[RevocationList], name: DistinguishedName, facts: Callable[[], dict[str, str]]
    ) -> None:
        """The newest of the lists that cover a certificate has to be current."""
        newest = max(lists, key=lambda one: one.last_update)
        if newest.expired(self._now):
            until = utc_text(newest.next_update) if newest.next_update else ""
            sentence = f"the revocation list of {name} expired at {until}"
            self._judge(
                self._policy.expired_crl, Reason.CRL_EXPIRED, sentence, "the site must fetch a new one", facts()
            )

    def _judge(self, mode: CrlPolicy, reason: Reason, sentence: str, cure: str, facts: dict[str, str]) -> None:
        if mode == "require":
            raise ValidationError(reason, f"{sentence}; {cure}", facts)
        if mode == "warn":
            self._warnings.append(sentence)

    # Lists signed with another key of the same authority

    def _of_other_signers(self, above: tuple[x509.Certificate, ...]) -> tuple[RevocationList, ...]:
        """RFC 5280 section 6.3.3 step f: lists of this name by another key that the same root vouches for."""
        found: list[RevocationList] = []
        for signer in self._signers(above):
            documents = self._trust.documents_of(signer)
            if not documents or not self._may_sign(signer, above):
                continue
            for document in documents:
                try:
                    found.append(verify_crl(document, signer, allow_weak=self._policy.allow_weak))
                except SecurityError:
                    continue
        return newest_lists(found)

    def _signers(self, above: tuple[x509.Certificate, ...]) -> Iterable[x509.Certificate]:
        """Certificates of the authority's name with another key, those of the path first."""
        issuer = above[0]
        known = {certificates.spki_of(issuer)}
        count = 0
        installed = (authority.certificate for authority in self._trust.authorities)
        for certificate in (*above[1:], *self._offered, *self._trust.signers, *installed):
            if not same_name(certificate.subject, issuer.subject) or not certificates.may_sign_lists(certificate):
                continue
            spki = certificates.spki_of(certificate)
            if spki in known:
                continue
            known.add(spki)
            yield certificate
            count += 1
            if count >= MAX_SIGNERS:
                return

    def _may_sign(self, signer: x509.Certificate, above: tuple[x509.Certificate, ...]) -> bool:
        """True if a path leads from the signer to the root of the path that is checked, in time and not revoked."""
        if signer in above:
            return True  # checked with the path itself
        if self._nesting >= MAX_NESTING:
            return False
        try:
            path = build_path((signer, *self._offered), self._trust, self._now)
            if path[-1] != above[-1]:
                return False
            for certificate in path:
                require_time(certificate, False, self._policy, self._now)
                require_strength(certificate, certificate is path[-1], self._policy, self._now)
            if self._policy.namespaces:
                require_namespaces(path, 0, self._trust, self._now)  # or anybody below the root could take this name
            check = RevocationCheck(self._offered, self._trust, self._policy, self._now, self._nesting + 1)
            self._warnings += check.of_path(path, 0)
        except SecurityError:
            return False
        return True
