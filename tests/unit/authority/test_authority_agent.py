from datetime import timedelta

import pytest
from cryptography import x509
from support.grid import ORGANISATION, LabGrid
from unit.authority.test_authority_register import request

from agents.authority.client import AuthorityClient
from fabric.clock import ManualClock
from fabric.errors import InvalidRequest, NotFound, Refused, Unauthenticated
from fabric.http import http_get
from security.certificates import subject_hash

SITES = {"RAL": {"storage/storage.RAL": ["localhost", "127.0.0.1"], "worker/worker.RAL": ["localhost"]}}
AGENTS = [("storage", "storage.RAL", ("localhost",), request()), ("worker", "worker.RAL", ("localhost",), request())]


async def started(lab: LabGrid, **options):
    directory = str(lab.grid.ca.directory)
    return await lab.start("authority", options={"directory": directory, "sites": SITES, **options})


async def client(lab: LabGrid, who=None) -> AuthorityClient:
    return AuthorityClient(await lab.channel("authority", credential=who))


@pytest.fixture
async def lab(tmp_path):
    async with LabGrid(tmp_path) as found:
        yield found


async def test_an_invited_site_enrols_once(lab):
    await started(lab)
    token, pem = await (await client(lab, lab.operator())).invite("RAL")
    assert pem == lab.grid.ca.ca_pem()
    stranger = await client(lab)
    issued = await stranger.enrol(token, "RAL", AGENTS)
    assert [x509.load_pem_x509_certificate(c).subject.rfc4514_string() for c in issued] == [
        "CN=storage/storage.RAL,OU=RAL,O=TestGrid,C=XX",
        "CN=worker/worker.RAL,OU=RAL,O=TestGrid,C=XX",
    ]
    assert await stranger.enrol(token, "RAL", AGENTS) == issued  # the answer may have been lost
    with pytest.raises(Unauthenticated) as caught:
        await stranger.enrol(token, "RAL", AGENTS[:1])
    assert caught.value.reason == "INVITATION_INVALID"


async def test_tokens_are_bound_to_a_site_and_to_its_agents(lab):
    await started(lab)
    token, _ = await (await client(lab, lab.operator())).invite("RAL")
    stranger = await client(lab)
    for wrong_token, wrong_site in (("", "RAL"), ("guess", "RAL"), (token, "CERN")):
        with pytest.raises(Unauthenticated):
            await stranger.enrol(wrong_token, wrong_site, AGENTS)
    with pytest.raises(InvalidRequest):
        await stranger.enrol(token, "RAL", [("broker", "broker.RAL", ("localhost",), request())])
    assert len(await stranger.enrol(token, "RAL", AGENTS)) == 2  # a refused attempt does not spend the token


async def test_tokens_expire_and_are_not_stored(tmp_path):
    from security.testing import NOW

    clock = ManualClock(NOW)
    async with LabGrid(tmp_path, clock=clock) as lab:
        await started(lab, invitation_lifetime_s=60)
        token, _ = await (await client(lab, lab.operator())).invite("RAL")
        stored = (tmp_path / "agents" / "authority.CERN").glob("authority.db*")
        assert all(token.encode() not in path.read_bytes() for path in stored)
        clock.advance(61)
        with pytest.raises(Unauthenticated):
            await (await client(lab)).enrol(token, "RAL", AGENTS)


async def test_invitations_survive_a_restart(lab):
    await started(lab)
    token, _ = await (await client(lab, lab.operator())).invite("RAL")
    await lab.stop("authority.CERN")
    await started(lab)
    assert len(await (await client(lab)).enrol(token, "RAL", AGENTS)) == 2


async def test_only_operators_may_issue_invite_revoke_and_list(lab):
    await started(lab)
    for who in (lab.user(), lab.service("broker")):
        caller = await client(lab, who)
        for call in (
            caller.invite("RAL"),
            caller.issue_user("Eve", request()),
            caller.revoke(subject=f"{ORGANISATION}/OU=Users/CN=alice"),
            caller.list_issued(),
        ):
            with pytest.raises(Refused) as caught:
                await call
            assert caught.value.reason in ("ADMINISTRATOR_REQUIRED", "NOT_MAPPED")


async def test_sites_outside_the_grid_are_not_invited(lab):
    await started(lab)
    with pytest.raises(InvalidRequest, match="its sites are RAL"):
        await (await client(lab, lab.operator())).invite("MARS")


async def test_a_revocation_is_published_at_once(lab):
    await started(lab)
    operator = await client(lab, lab.operator())
    pem = await operator.issue_user("Ada", request())
    serial = x509.load_pem_x509_certificate(pem).serial_number
    stem = subject_hash(lab.grid.ca.certificate)
    port = lab.port("authority.CERN", "http")
    before = await http_get("127.0.0.1", port, f"/crl/{stem}.r0")
    serials, number = await operator.revoke(subject=f"{ORGANISATION}/OU=Users/CN=Ada", reason="keyCompromise")
    assert serials == [f"{serial:X}"]
    after = await http_get("127.0.0.1", port, f"/crl/{stem}.r0", etag=before.etag)
    crl = x509.load_pem_x509_crl(after.body)
    assert serial in {entry.serial_number for entry in crl}
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    assert (lab.certificates / f"{stem}.r0").read_bytes() == after.body
    unchanged = await http_get("127.0.0.1", port, f"/crl/{stem}.r0", etag=after.etag)
    assert unchanged.body is None
    (row,) = [row for row in await operator.list_issued(f"{ORGANISATION}/OU=Users/CN=Ada")]
    assert row.revoked_at_us and row.reason == "keyCompromise"


async def test_what_everybody_may_fetch(lab):
    await started(lab)
    stem, port = subject_hash(lab.grid.ca.certificate), lab.port("authority.CERN", "http")
    for path in (f"/certificates/{stem}.0", "/bundle"):
        assert (await http_get("127.0.0.1", port, path)).body == lab.grid.ca.ca_pem()
    namespaces = await http_get("127.0.0.1", port, f"/certificates/{stem}.namespaces")
    assert (namespaces.body or b"").decode() == lab.grid.ca.namespaces()
    info = await http_get("127.0.0.1", port, f"/certificates/{stem}.info")
    assert f":{port}/crl/{stem}.r0".encode() in (info.body or b"")
    policy = await http_get("127.0.0.1", port, f"/{stem}.signing_policy")
    assert policy.body == lab.grid.ca.signing_policy().encode()
    for path in ("/", "/key.pem", "/../ca/key.pem", f"/crl/{'0' * 8}.r0"):
        with pytest.raises(NotFound):
            await http_get("127.0.0.1", port, path)


async def test_the_list_is_renewed_before_it_ends(tmp_path):
    from security.testing import NOW

    clock = ManualClock(NOW)
    async with LabGrid(tmp_path, clock=clock) as lab:
        agent = await started(lab, crl_lifetime_s=20)
        first = agent.health().numbers["crl_number"]
        await agent.agent.renew_if_due()
        assert agent.health().numbers["crl_number"] == first
        clock.advance(timedelta(seconds=11).total_seconds())
        await agent.agent.renew_if_due()
        assert agent.health().numbers["crl_number"] == first + 1


async def test_without_an_authority_it_says_so(lab):
    with pytest.raises(InvalidRequest, match="holds no authority"):
        await lab.start("authority", options={"directory": "nowhere"})
