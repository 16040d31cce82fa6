"""Hundreds of random chains before three judges: ours, `openssl verify -allow_proxy_certs`, and Globus' library.

The property: we accept nothing that one of them refuses, but for the reasons listed; what only we refuse is listed too.
"""

from __future__ import annotations

import ctypes.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.peers import GLOBUS_JUDGE

from security import certificates, proxies
from security.credentials import Credential
from security.errors import ValidationError
from security.names import DistinguishedName
from security.testing import ANY_LANGUAGE, TestGrid, shared_key
from security.trust import subject_hash
from security.validation import ValidationPolicy, validate_client_chain

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None or ctypes.util.find_library("globus_gsi_credential") is None,
    reason="openssl and libglobus-gsi-credential1 are not installed",
)

CHAINS = 400
SEED = 3820

WE_ACCEPT_MORE = {
    "early by minutes": "a clock skew of 5 minutes excuses the start of a validity, for them it is refused",
}
"""Why we accept what OpenSSL or Globus refuses: by what is odd about the chain."""
ONLY_WE_REFUSE = {
    "openssl": {
        "PROXY_POLICY_UNKNOWN", "PROXY_RIGHTS_WIDENED", "PROXY_EXTENSION_INVALID", "NAMESPACE_VIOLATION", "KEY_USAGE",
        "PROXY_REVOKED",
    },
    "globus": {
        "PROXY_RIGHTS_WIDENED", "PROXY_EXTENSION_INVALID", "KEY_USAGE", "PROXY_REVOKED", "PROXY_PATH_LENGTH_EXCEEDED",
    },
}  # fmt: skip
"""By which of our reasons: OpenSSL leaves languages, namespaces and purposes to its caller, Globus purposes."""


@dataclass
class Chain:
    """One generated chain and what is odd about it."""

    credential: Credential
    oddities: list[str] = field(default_factory=list)
    path: Path = Path()
    ours: str = ""
    openssl: str = ""
    globus: str = ""

    def told(self) -> str:
        return f"{self.oddities}: ours {self.ours}, openssl {self.openssl}, globus {self.globus}"


Usage = Callable[..., x509.KeyUsage]


def usage(**set_bits: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: set_bits.get(name, False) for name in names})


class Factory:
    """Random chains of a small grid at the present time."""

    def __init__(self, grid: TestGrid, seed: int) -> None:
        self.grid, self.random = grid, random.Random(seed)
        self.now = grid.now
        self.count = 0

    def user(self, oddities: list[str]) -> Credential:
        self.count += 1
        roll, grid = self.random.random(), self.grid
        name = f"user{self.count}"
        if roll < 0.02:
            oddities.append("outside the namespace")
            return grid.outside_namespace_user(name)
        if roll < 0.04:
            oddities.append("user of an unknown authority")
            return grid.unknown_ca_user(name)
        if roll < 0.06:
            oddities.append("user of a forged authority")
            return grid.forged_user(name)
        key = shared_key("ec-p256", 1 + self.count % 60)
        subject = DistinguishedName.parse(f"{grid.base}/CN={name}").to_x509()
        extensions: list[tuple[x509.ExtensionType, bool]] = [(usage(digital_signature=True), True)]
        dates: dict[str, datetime] = {}
        if roll < 0.08:
            oddities.append("user's key usage without digitalSignature")
            extensions = [(usage(key_encipherment=True), True)]
        elif roll < 0.10:
            oddities.append("server-only user")
            extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False))
        elif roll < 0.12:
            oddities.append("expired user")
            dates["not_after"] = self.now - timedelta(minutes=1)
        elif roll < 0.14:
            oddities.append("unknown critical extension")
            extensions.append((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), True))
        elif roll < 0.18:
            extensions = []  # no key usage at all: fine
        certificate = grid.certificate(subject, key, extensions=extensions, **dates)
        if self.random.random() < 0.03:
            oddities.append("revoked user")
            grid.ca.revoke_proxy(certificate, self.now)  # lists any serial number
        return Credential(certificate, key)

    def proxy(self, parent: Credential, oddities: list[str]) -> Credential:
        chosen = self.random.choices(
            list(_PROXIES), weights=[weight for _, weight in _PROXIES.values()]
        )[0]  # fmt: skip
        if chosen != "full":
            oddities.append(chosen)
        made = _PROXIES[chosen][0](self, parent)
        if self.random.random() < 0.02:
            oddities.append("revoked proxy")
            self.grid.ca.revoke_proxy(made.certificate, self.now)
        return made

    def chain(self) -> Chain:
        oddities: list[str] = []
        credential = self.user(oddities)
        for _ in range(self.random.choice((0, 1, 1, 2, 2, 3, 4))):
            credential = self.proxy(credential, oddities)
        others = list(credential.certificates[1:])
        roll = self.random.random()
        if roll < 0.03 and len(others) > 1:
            del others[self.random.randrange(len(others))]
            oddities.append("a certificate of the chain is missing")
        elif roll < 0.06 and len(others) > 1:
            others.reverse()
            oddities.append("reversed")
        return Chain(Credential(credential.certificate, credential.key, tuple(others)), oddities)


def raw(**options: object) -> Callable[[Factory, Credential], Credential]:
    return lambda factory, parent: factory.grid.raw_proxy(parent, **options)  # type: ignore[arg-type]


def dated(before: timedelta, after: timedelta) -> Callable[[Factory, Credential], Credential]:
    return lambda factory, parent: factory.grid.raw_proxy(
        parent, not_before=factory.now + before, not_after=factory.now + after
    )


def of(name: str) -> Callable[[Factory, Credential], Credential]:
    return lambda factory, parent: getattr(factory.grid, name)(parent)


HOUR = timedelta(hours=1)
_PROXIES: dict[str, tuple[Callable[[Factory, Credential], Credential], int]] = {
    "full": (raw(), 40),
    "full with key usage": (raw(extensions=[(usage(digital_signature=True), True)]), 10),
    "limited": (raw(language=proxies.LIMITED), 12),
    "independent": (raw(language=proxies.INDEPENDENT), 4),
    "path length 0": (raw(path_length=0), 4),
    "path length 1": (raw(path_length=1), 4),
    "path length 5": (raw(path_length=5), 2),
    "unknown language": (raw(language=ANY_LANGUAGE, policy=b"x"), 2),
    "policy with inheritAll": (raw(policy=b"x"), 1),
    "policy with limited": (raw(language=proxies.LIMITED, policy=b"x"), 1),
    "not critical": (raw(critical=False), 1),
    "malformed": (of("malformed_proxy"), 1),
    "legacy": (of("legacy_proxy"), 1),
    "no extension": (raw(info=None, critical=None), 1),
    "authority bit": (of("ca_bit_proxy"), 1),
    "basic constraints, no authority": (raw(extensions=[(x509.BasicConstraints(ca=False, path_length=None), True)]), 2),
    "subject alternative name": (of("alternative_name_proxy"), 1),
    "issuer alternative name": (raw(extensions=[(x509.IssuerAlternativeName([x509.DNSName("a")]), False)]), 1),
    "certificate signing": (raw(extensions=[(usage(digital_signature=True, key_cert_sign=True), True)]), 1),
    "no digitalSignature": (raw(extensions=[(usage(key_encipherment=True), True)]), 1),
    "server only": (raw(extensions=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]), 1),
    "unknown critical": (
        raw(extensions=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), True)]), 1,
    ),
    "wrong name": (of("wrong_name_proxy"), 1),
    "two names": (of("two_names_proxy"), 1),
    "forged": (of("forged_proxy"), 1),
    "expired": (dated(-2 * HOUR, -HOUR), 2),
    "early by minutes": (dated(timedelta(minutes=3), HOUR), 1),
    "early by an hour": (dated(HOUR, 2 * HOUR), 1),
    "longer than its issuer": (dated(-HOUR, timedelta(days=3000)), 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Chain]]:
    folder = tmp_path_factory.mktemp("agreement")
    grid = TestGrid(folder / "grid", datetime.now(UTC).replace(microsecond=0))
    factory = Factory(grid, SEED)
    chains = [factory.chain() for _ in range(CHAINS)]
    grid.publish_crl()
    for number, chain in enumerate(chains):
        chain.path = folder / f"{number}.pem"
        chain.credential.save(chain.path)
    judge_ours(grid, chains)
    judge_openssl(grid, chains, folder)
    judge_globus(grid, chains)
    yield chains
    grid.close()


def judge_ours(grid: TestGrid, chains: list[Chain]) -> None:
    trust, now = grid.trust, datetime.now(UTC)
    for chain in chains:
        try:
            validate_client_chain(chain.credential.pem_chain(), trust, ValidationPolicy(), now)
            chain.ours = "OK"
        except ValidationError as error:
            chain.ours = error.reason.value


def judge_openssl(grid: TestGrid, chains: list[Chain], folder: Path) -> None:
    """All in one process: nobody's certificate helps another's chain."""
    others = folder / "others.pem"
    others.write_bytes(b"".join(certificates.pem(chain.credential.certificates[1:]) for chain in chains))
    done = subprocess.run(
        ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-CApath", str(grid.trust_directory),
         "-untrusted", str(others), *(str(chain.path) for chain in chains)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    accepted = {line.removesuffix(": OK") for line in done.stdout.splitlines() if line.endswith(": OK")}
    for chain in chains:
        chain.openssl = "OK" if str(chain.path) in accepted else "refused"


def judge_globus(grid: TestGrid, chains: list[Chain]) -> None:
    done = subprocess.run(
        [sys.executable, str(GLOBUS_JUDGE), str(grid.trust_directory)],
        input="".join(f"{chain.path}\n" for chain in chains),
        env={"PATH": os.environ["PATH"], "X509_CERT_DIR": str(grid.trust_directory)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    for chain, line in zip(chains, done.stdout.splitlines(), strict=True):
        chain.globus = line


def test_we_accept_nothing_that_openssl_or_globus_refuses(judged: list[Chain]) -> None:
    accepted = [chain for chain in judged if chain.ours == "OK"]
    assert len(accepted) > CHAINS / 4
    for chain in accepted:
        if chain.openssl != "OK" or chain.globus != "OK":
            assert set(chain.oddities) & set(WE_ACCEPT_MORE), chain.told()


@pytest.mark.parametrize("judge", ["openssl", "globus"])
def test_what_only_we_refuse_is_for_a_listed_reason(judged: list[Chain], judge: str) -> None:
    refused = [chain for chain in judged if chain.ours != "OK"]
    assert len(refused) > CHAINS / 4
    for chain in refused:
        if getattr(chain, judge) == "OK":
            assert chain.ours in ONLY_WE_REFUSE[judge], chain.told()


def test_every_oddity_was_met(judged: list[Chain]) -> None:
    met = {oddity for chain in judged for oddity in chain.oddities}
    assert set(_PROXIES) - {"full"} <= met
    assert {"revoked user", "revoked proxy", "outside the namespace", "reversed"} <= met


def test_the_judge_of_globus_knows_this_authority(judged: list[Chain]) -> None:
    """It would refuse everything if it read another directory."""
    assert any(chain.globus == "OK" and not chain.oddities for chain in judged)
    assert all(chain.globus == "OK" for chain in judged if not chain.oddities)
    assert subject_hash(judged[0].credential.certificate)
