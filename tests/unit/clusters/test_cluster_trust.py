import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from unit.clusters.test_cluster_load import HOSTS, SMALL

from clusters import load, plan, trust
from clusters.paths import StatePaths
from fabric.errors import InvalidRequest
from security.credentials import Credential
from security.trust import TrustStore

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    state = StatePaths(tmp_path_factory.mktemp("state"))
    grid = load.loads(SMALL)
    agents = plan.make_plan(grid, plan.lab_ports(grid, {}, iter(range(20000, 30000)).__next__), state)
    trust.prepare_here(grid, state, agents, NOW)
    return grid, state, agents


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_agent_gets_a_credential_of_its_name(prepared):
    _, state, agents = prepared
    for agent in agents:
        path = Path(agent.settings["credential"])
        credential = Credential.load(path)
        assert str(credential.subject) == agent.subject
        names = credential.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "localhost" in names.get_values_for_type(x509.DNSName)
        assert mode(path) == 0o600 and mode(path.parent) == 0o700
    assert str(Credential.load(state.administrator).subject).startswith("/O=Grid/OU=Operators/CN=")
    assert mode(state.administrator) == 0o600


def test_the_trust_directory_is_complete(prepared):
    grid, state, _ = prepared
    store = TrustStore(state.certificates)
    assert store.problems == () and store.alarms(NOW) == ()
    assert {path.suffix for path in state.certificates.iterdir()} >= {".0", ".r0", ".signing_policy"}
    ca = trust.ca_directory(grid, state)
    assert mode(ca) == 0o700 and mode(ca / "key.pem") == 0o600


def test_a_second_start_keeps_what_is_good(prepared):
    grid, state, agents = prepared
    before = {agent.name: Path(agent.settings["credential"]).read_bytes() for agent in agents}
    trust.prepare_here(grid, state, agents, NOW)
    assert {agent.name: Path(agent.settings["credential"]).read_bytes() for agent in agents} == before


def test_what_ends_soon_is_made_anew(prepared):
    grid, state, agents = prepared
    path = Path(agents[0].settings["credential"])
    before = path.read_bytes()
    trust.prepare_here(grid, state, agents[:1], NOW + timedelta(days=360))
    assert path.read_bytes() != before


def test_damaged_credentials_are_replaced(prepared):
    grid, state, agents = prepared
    path = Path(agents[1].settings["credential"])
    path.write_bytes(b"garbage")
    trust.prepare_here(grid, state, agents, NOW)
    assert Credential.load(path).subject == trust.subject_of(agents[1])


def test_requests_carry_the_name_and_no_key(tmp_path):
    grid = load.loads(HOSTS)
    agents = plan.make_plan(grid, plan.well_known_ports(grid), StatePaths(tmp_path), "B")
    for agent in agents:
        pem, key = trust.make_requests([agent])[agent.name]
        request = x509.load_pem_x509_csr(pem)
        assert b"PRIVATE" not in pem and request.public_key() == key.public_key()


def test_a_certificate_for_another_key_or_name_is_refused(prepared, tmp_path):
    _, _, agents = prepared
    other = Credential.load(Path(agents[0].settings["credential"]))
    pem = other.pem_chain()
    _, key = trust.make_requests([agents[1]])[agents[1].name]
    with pytest.raises(Exception, match="private key does not belong"):
        trust.save_issued(agents[1], pem, key)
    with pytest.raises(InvalidRequest, match="instead of"):
        trust.save_issued(agents[1], pem, other.key)


def test_invitations_survive_the_disk(tmp_path):
    given = trust.Invitation("g", "B", "token", "host", 8443, "PEM", "policy", "crl", ("cms",))
    given.save(tmp_path / "B.json")
    assert trust.Invitation.load(tmp_path / "B.json") == given
    assert mode(tmp_path / "B.json") == 0o600


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", json.dumps({"grid": 1, "colour": 2}).encode()])
def test_what_is_no_invitation_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        trust.Invitation.load(tmp_path / "x.json")
    assert caught.value.reason == "INVITATION_INVALID"
    with pytest.raises(InvalidRequest, match="cannot be read"):
        trust.Invitation.load(tmp_path / "absent.json")
