"""NIST's Public Key Interoperability Test Suite (PKITS 1.0.1, 2011), every case, through the whole validation.

The trust directory has what a site would install: the root, its list, every other list by the hash of its issuer, the
two certificates that only sign lists, and (PKITS knows no namespaces) a policy for each authority that permits any
name. The peer sends the path that NIST states, which key identifiers give, and self-issued certificates of its names.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509
from support.pkits_cases import SECTIONS, expected_valid

from security import certificates
from security._crl import read_document, to_pem
from security.errors import ValidationError
from security.trust import TrustSnapshot, TrustStore
from security.validation import DEFAULT_POLICY, validate_chain

DATA = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
DOCUMENT = Path(__file__).parents[3] / "docs" / "pkits.md"
MOMENT = datetime(2020, 6, 1, 12, 0, 0, tzinfo=UTC)
"""Within the validity of the suite, 2010 to 2030."""

STRICTER = {
    "ValidDSASignaturesTest4": ("KEY_TOO_WEAK", "DSA keys are not accepted"),
    "ValidDSAParameterInheritanceTest5": ("CHAIN_MALFORMED", "DSA keys are not accepted"),
    "ValidpathLenConstraintTest8": ("KEY_USAGE", "an authority's certificate is nobody's credential"),
    "ValidpathLenConstraintTest14": ("KEY_USAGE", "an authority's certificate is nobody's credential"),
    "OverlappingPoliciesTest6": ("KEY_USAGE", "an authority's certificate is nobody's credential"),
    "ValidonlyContainsCACertsTest13": ("KEY_USAGE", "an authority's certificate is nobody's credential"),
    "ValidonlySomeReasonsTest18": ("CRL_MISSING", "lists for some reasons only are not supported"),
    "ValidonlySomeReasonsTest19": ("CRL_MISSING", "lists for some reasons only are not supported"),
    "ValidIDPwithindirectCRLTest22": ("CRL_MISSING", "indirect lists are not supported"),
    "ValidIDPwithindirectCRLTest24": ("CRL_MISSING", "indirect lists are not supported"),
    "ValidIDPwithindirectCRLTest25": ("CRL_MISSING", "indirect lists are not supported"),
    "ValidcRLIssuerTest28": ("CRL_MISSING", "indirect lists are not supported"),
    "ValidcRLIssuerTest29": ("CRL_MISSING", "indirect lists are not supported"),
    "ValidcRLIssuerTest30": ("CRL_MISSING", "indirect lists are not supported"),
    "ValidcRLIssuerTest33": ("CRL_MISSING", "indirect lists are not supported"),
}
"""Valid for NIST, refused here, and by which rule. There is no case the other way round."""

CASES = [(section, name) for section, names in SECTIONS.items() for name in names]


class Suite:
    """The data of the suite, and a site that installed it."""

    def __init__(self, folder: Path) -> None:
        self.encoded = {path.stem: path.read_bytes() for path in sorted((DATA / "certs").iterdir())}
        self.certificates: dict[str, x509.Certificate] = {}
        for name, data in self.encoded.items():
            try:
                self.certificates[name] = x509.load_der_x509_certificate(data)
            except ValueError:
                assert "DSAParameter" in name  # a key without its parameters
        self.authorities = {name: one for name, one in self.certificates.items() if not name.endswith("EE")}
        self.root = self.authorities["TrustAnchorRootCertificate"]
        self._by_key: dict[bytes, list[x509.Certificate]] = defaultdict(list)
        for one in self.authorities.values():
            self._by_key[one.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest].append(one)
        self._install(folder)
        self.trust: TrustSnapshot = TrustStore(folder).snapshot()

    def _install(self, folder: Path) -> None:
        folder.mkdir()
        (folder / f"{certificates.subject_hash(self.root)}.0").write_bytes(certificates.pem([self.root]))
        stems: dict[x509.Name, str] = {}
        policies: dict[str, str] = defaultdict(str)
        counts: Counter[str] = Counter({certificates.subject_hash(self.root) + "c": 1})
        for one in self.authorities.values():
            stem = stems[one.subject] = certificates.subject_hash(one)
            policies[stem] += (
                f"access_id_CA X509 '{certificates.subject_of(one)}'\npos_rights globus CA:sign\n"
                "cond_subjects globus '\"*\"'\n"
            )
            if certificates.signs_only_lists(one):
                (folder / f"{stem}.{counts[stem + 'c']}").write_bytes(certificates.pem([one]))
                counts[stem + "c"] += 1
        for stem, text in policies.items():
            (folder / f"{stem}.signing_policy").write_text(text)
        for path in sorted((DATA / "crls").iterdir()):
            data = path.read_bytes()
            stem = stems.get(read_document(data).issuer, hashlib.sha256(path.name.encode()).hexdigest()[:8])
            (folder / f"{stem}.r{counts[stem]}").write_bytes(to_pem(data))
            counts[stem] += 1

    def chain(self, name: str) -> bytes:
        """What the peer sends for this case."""
        end_entity = self.certificates.get(f"{name}EE")
        if end_entity is None:
            return x509_pem(self.encoded[f"{name}EE"])
        chain = [end_entity]
        while True:
            key = chain[-1].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
            above = [one for one in self._by_key[key or b""] if one not in chain]
            if not above or above[0] == self.root:
                break
            chain.append(above[0])
        names = {one.subject for one in chain[1:]}
        others = (one for one in self.authorities.values() if one.subject == one.issuer and one not in chain)
        return certificates.pem([*chain, *(one for one in others if one.subject in names)])

    def verdict(self, name: str) -> tuple[str, str]:
        """OK or the reason of the refusal, and its sentence."""
        try:
            validate_chain(self.chain(name), self.trust, DEFAULT_POLICY, MOMENT)
        except ValidationError as error:
            return error.reason.value, error.sentence
        return "OK", ""


def x509_pem(der: bytes) -> bytes:
    import base64

    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    with warnings.catch_warnings():  # serial numbers below one, which are part of the suite
        warnings.simplefilter("ignore")
        return Suite(tmp_path_factory.mktemp("pkits") / "certificates")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("section", "name"), CASES, ids=[f"{s.split()[0]} {n}" for s, n in CASES])
def test_case(suite: Suite, section: str, name: str) -> None:
    reason, sentence = suite.verdict(name)
    expected = "OK" if expected_valid(name) else ""
    if name in STRICTER:
        assert expected == "OK"
        assert reason == STRICTER[name][0], sentence
    elif expected == "OK":
        assert reason == "OK", sentence
    else:
        assert reason != "OK", section


def test_every_certificate_of_a_case_is_used() -> None:
    assert len(CASES) == 224
    files = {path.name.removesuffix("EE.crt") for path in (DATA / "certs").glob("*EE.crt")}
    assert files == {name for _, name in CASES}
    assert set(STRICTER) <= files


@pytest.mark.filterwarnings("ignore")
def test_the_table_in_the_documents_is_this(suite: Suite) -> None:
    """`python -m pytest` with UPDATE_PKITS=1 in the environment writes it anew."""
    import os

    lines = [
        "# NIST PKITS: every case, what NIST expects, what we say",
        "",
        "Written by `tests/unit/security/test_security_pkits.py`, which also says how the suite is installed. Where",
        "ours is stricter, the last column has the rule. No case that NIST calls invalid is accepted.",
        "",
        "| section | cases | as NIST | stricter |",
        "|---|---|---|---|",
    ]
    for section, names in SECTIONS.items():
        stricter = sum(name in STRICTER for name in names)
        lines.append(f"| {section} | {len(names)} | {len(names) - stricter} | {stricter or ''} |")
    lines.append(f"| all | {len(CASES)} | {len(CASES) - len(STRICTER)} | {len(STRICTER)} |")
    lines += ["", "| case | NIST | ours | rule |", "|---|---|---|---|"]
    for section, name in CASES:
        number = f"{section.split()[0]}.{SECTIONS[section].index(name) + 1}"
        reason = suite.verdict(name)[0]
        ours = "valid" if reason == "OK" else f"`{reason}`"
        rule = STRICTER.get(name, ("", ""))[1]
        lines.append(f"| {number} {name} | {'valid' if expected_valid(name) else 'invalid'} | {ours} | {rule} |")
    text = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_PKITS"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text
