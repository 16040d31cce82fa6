from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from agents.authority.authorities import FIRST, Authorities
from agents.authority.config import AuthorityConfig
from agents.authority.register import AgentRequest, Register
from fabric.errors import AlreadyExists, GridError, InvalidRequest, NotFound
from security import certificates
from security.authority import CertificateAuthority
from security.credentials import Credential, generate_key
from security.proxies import create_proxy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SITES = {"RAL": {"gatekeeper/gatekeeper.RAL": ("ce.ral.ac.uk", "10.0.0.3")}}


def request(kind: str = "ec-p256") -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(generate_key(kind), hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def authorities(tmp_path):
    authority = CertificateAuthority.create(
        tmp_path / "ca", "/O=EDG/CN=CA", lifetime=timedelta(days=999), now=NOW, key_type="ec-p256"
    )
    found = Authorities(authority, tmp_path / "authorities", AuthorityConfig(sites=SITES), "/O=EDG", lambda: NOW)
    yield found
    found.close()


@pytest.fixture
def register(authorities):
    return Register(authorities, AuthorityConfig(sites=SITES), "/O=EDG", lambda: NOW)


def agent(kind="gatekeeper", name="gatekeeper.RAL", hosts=("ce.ral.ac.uk",)) -> AgentRequest:
    return AgentRequest(kind, name, hosts, request())


def test_a_site_gets_certificates_for_its_own_agents(register):
    register.check_agents("RAL", [agent()])
    (pem,) = register.issue_agents("RAL", [agent()])
    certificate = x509.load_pem_x509_certificate(pem)
    names = [attribute.value for attribute in certificate.subject]
    assert names == ["EDG", "RAL", "gatekeeper/gatekeeper.RAL"]


@pytest.mark.parametrize(
    ("site", "wanted", "reason"),
    [
        ("CERN", agent(), "AGENT_NOT_OF_SITE"),
        ("RAL", agent(kind="broker", name="broker.RAL"), "AGENT_NOT_OF_SITE"),
        ("RAL", agent(name="gatekeeper.RAL/OU=CERN"), "AGENT_NOT_OF_SITE"),
        ("RAL", agent(hosts=("broker.cern.ch",)), "HOST_NOT_OF_AGENT"),
        ("RAL", agent(hosts=("ce.ral.ac.uk", "broker.cern.ch")), "HOST_NOT_OF_AGENT"),
        ("RAL", agent(hosts=()), "HOST_NOT_OF_AGENT"),
    ],
)
def test_what_is_not_the_sites_own_is_refused(register, site, wanted, reason):
    with pytest.raises(InvalidRequest) as caught:
        register.check_agents(site, [wanted])
    assert caught.value.reason == reason


def test_an_enrolment_of_nothing_is_refused(register):
    with pytest.raises(InvalidRequest):
        register.check_agents("RAL", [])


def test_users_are_below_their_own_unit(register):
    certificate = x509.load_pem_x509_certificate(register.issue_user("Ada Lovelace", request(), 0, renew=False))
    assert [attribute.value for attribute in certificate.subject] == ["EDG", "Users", "Ada Lovelace"]


@pytest.mark.parametrize(
    "name", ["", " ", "x" * 65, "a/OU=Operators/CN=root", "a=b", "tab\there", "*", "a+b", "new\nline"]
)
def test_names_that_could_be_taken_for_others_are_refused(register, name):
    with pytest.raises(InvalidRequest) as caught:
        register.issue_user(name, request(), 0, renew=False)
    assert caught.value.reason == "NAME_INVALID"


def test_a_second_active_certificate_needs_renewal(register):
    register.issue_user("Ada", request(), 0, renew=False)
    with pytest.raises(AlreadyExists):
        register.issue_user("Ada", request(), 0, renew=False)
    register.issue_user("Ada", request(), 0, renew=True)


def test_nobody_gets_a_longer_life_than_the_authority_gives(register):
    pem = register.issue_user("Ada", request(), 10**9, renew=False)
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == NOW + timedelta(days=365)
    with pytest.raises(InvalidRequest):
        register.issue_user("Bob", request(), -1, renew=False)


def test_garbage_requests_are_refused(register):
    with pytest.raises(InvalidRequest) as caught:
        register.issue_user("Ada", b"garbage", 0, renew=False)
    assert caught.value.reason == "REQUEST_MALFORMED"


def test_revocation_by_serial_and_by_subject(register, authorities):
    first = x509.load_pem_x509_certificate(register.issue_user("Ada", request(), 0, renew=False))
    second = x509.load_pem_x509_certificate(register.issue_user("Ada", request(), 0, renew=True))
    serial = f"{first.serial_number:X}"
    revoked = ([serial], [FIRST])
    assert register.revoke(serial, "", "keyCompromise") == revoked == register.revoke(serial.lower(), "", "")
    assert register.revoke("", "/O=EDG/OU=Users/CN=Ada", "")[0] == [serial, f"{second.serial_number:X}"]
    authorities.publish([FIRST])
    (trusted,) = authorities.trusted()
    crl = x509.load_pem_x509_crl(trusted.crl.pem)
    assert {entry.serial_number for entry in crl} == {first.serial_number, second.serial_number}


@pytest.mark.parametrize(("serial", "subject"), [("", ""), ("1", "/O=EDG/CN=x"), ("xyz", "")])
def test_unclear_revocations_are_refused(register, serial, subject):
    with pytest.raises(InvalidRequest):
        register.revoke(serial, subject, "")


def user(authority: CertificateAuthority, name: str) -> Credential:
    key = generate_key("ec-p256")
    certificate = authority.issue_user(
        f"/O=EDG/OU=Users/CN={name}", key.public_key(), lifetime=timedelta(days=9), now=NOW, renew=True
    )
    return Credential(certificate, key)


def proxy(of: Credential) -> Credential:
    return create_proxy(of, lifetime=timedelta(hours=1), now=NOW)


def test_one_proxy_is_revoked_and_its_owner_stays_good(register, authorities):
    ada = user(authorities.first, "Ada")
    stolen = proxy(proxy(ada))
    serial = f"{stolen.certificate.serial_number:X}"
    for _ in range(2):
        assert register.revoke_proxy(stolen.pem_chain(), "keyCompromise") == (serial, FIRST)
    crl = x509.load_pem_x509_crl(authorities.first.build_crl(NOW, timedelta(days=1)))
    assert [one.serial_number for one in crl] == [stolen.certificate.serial_number]


def test_what_is_no_proxy_of_ours_cannot_be_revoked_as_one(register, authorities, tmp_path):
    ada = user(authorities.first, "Ada")
    other = CertificateAuthority.create(
        tmp_path / "other", "/O=EDG/CN=CA", lifetime=timedelta(days=99), now=NOW, key_type="ec-p256"
    )
    stranger = proxy(user(other, "Ada"))
    for chain, refusal, reason in (
        (b"garbage", GridError, "CHAIN_MALFORMED"),
        (ada.pem_chain(), InvalidRequest, "REVOCATION_INVALID"),
        (certificates.pem([proxy(ada).certificate]), InvalidRequest, "REVOCATION_INVALID"),
        (certificates.pem([stranger.certificate, ada.certificate]), InvalidRequest, "REVOCATION_INVALID"),
        (stranger.pem_chain(), NotFound, "SUBJECT_UNKNOWN"),
    ):
        with pytest.raises(refusal) as refused:
            register.revoke_proxy(chain, "")
        assert refused.value.reason == reason
    other.close()


def test_unknown_certificates_cannot_be_revoked(register):
    for serial, subject in (("ABCDEF", ""), ("", "/O=EDG/OU=Users/CN=Nobody")):
        with pytest.raises(NotFound):
            register.revoke(serial, subject, "")


def test_list_numbers_grow(authorities):
    assert authorities.publish([FIRST]) + 1 == authorities.publish([FIRST])


def test_the_register_is_listed_by_prefix(register):
    register.issue_user("Ada", request(), 0, renew=False)
    register.issue_agents("RAL", [agent()])
    assert [str(row.subject) for _, row in register.issued("/O=EDG/OU=Users/")] == ["/O=EDG/OU=Users/CN=Ada"]
    assert len(register.issued("")) == 2
